"""Pixel planes to network input and back (the reference that defines the conversion, in torch).

A frame is a list of planes in its own format: Y, U, V; or R, G, B; or grey. :func:`to_rgb` gives
what a network sees. :func:`add_rgb` never converts a frame back: it adds the *change* that the
network made, brought into the frame's own format, to the frame's own samples::

    out = round(in + M (rgb' - rgb)),     M: RGB -> the frame's family, linear

So samples that the network leaves alone keep their exact value, chroma that was not touched is not
resampled, and values outside the nominal range (superwhite, floats beyond 0..1) survive.

Subsampled chroma is interpolated at its siting, and the change is reduced to it, as VapourSynth's
``resize.Bilinear`` and ``resize.Bicubic`` do: :func:`~vs_deblur_kernels.pixels.doubling_taps` and
:func:`~vs_deblur_kernels.pixels.halving_taps`. For 4:1:1 and 4:1:0 both are done twice, which is
not what VapourSynth does: its filters are four samples wide there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vs_deblur_kernels.pixels import (
    LUMA_COEFFICIENTS,
    ChromaFilter,
    Matrix,
    PixelFormat,
    Taps,
    doubling_taps,
    halving_taps,
)


def blend(a: Tensor, h: Tensor, previous: Tensor, beta: Tensor) -> Tensor:
    """Dynamic temporal blending, equations 2 and 3 of Kim et al. 2017.

    Args:
        a: what the blend's convolution gave, (B, C, H, W), any values.
        h: features of this frame, (B, C, H, W).
        previous: blended features of the last frame, (B, C, H, W).
        beta: the bias, a tensor of one element; clamped to 0..1.

    Returns:
        ``w h + (1 - w) previous`` with ``w = min(1, |tanh(a)| + beta)``, (B, C, H, W).
    """
    w = (torch.tanh(a).abs() + beta.clamp(0.0, 1.0)).clamp(max=1.0)
    return w * h + (1.0 - w) * previous


def blended_convolution(
    h: Tensor, previous: Tensor, weight: Tensor, bias: Tensor, beta: Tensor
) -> Tensor:
    """Dynamic temporal blending with its own convolution, equations 2 and 3 of Kim et al. 2017.

    Args:
        h: features of this frame, (B, C, H, W).
        previous: blended features of the last frame, (B, C, H, W).
        weight: of the blend's convolution, (C, 2C, K, K), K odd; the first C inputs are
            ``previous``.
        bias: of that convolution, (C,).
        beta: as for :func:`blend`.

    Returns:
        :func:`blend` with ``a = conv(cat(previous, h))``, zeros around the image, (B, C, H, W).
    """
    both = torch.cat((previous, h), dim=1)
    return blend(F.conv2d(both, weight, bias, padding=weight.shape[-1] // 2), h, previous, beta)


def resblock(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, relu: bool = False
) -> Tensor:
    """A residual block: the one of Nah et al. 2017, section 3.1.

    Args:
        x: (B, C, H, W).
        weight1, weight2: (C, C, K, K), K odd.
        bias1, bias2: (C,).
        relu: a ReLU after the sum (He et al. 2016), which the networks here do not have.

    Returns:
        ``x + conv2(relu(conv1(x)))``, (B, C, H, W).
    """
    pad = weight1.shape[-1] // 2
    middle = torch.relu(F.conv2d(x, weight1, bias1, padding=pad))
    out = x + F.conv2d(middle, weight2, bias2, padding=pad)
    return torch.relu(out) if relu else out


def skip(y: Tensor, bias: Tensor, x: Tensor | None, *, relu: bool = False) -> Tensor:
    """What follows a convolution of a residual block.

    Args:
        y: the convolution without its bias, (B, C, H, W).
        bias: that bias, (C,).
        x: the block's input, (B, C, H, W); None within the block.
        relu: a ReLU at the end.

    Returns:
        ``y + bias + x``, (B, C, H, W).
    """
    out = y + bias[:, None, None]
    out = out if x is None else out + x
    return torch.relu(out) if relu else out


def yuv_matrix(matrix: Matrix) -> Tensor:
    """RGB 0..1 to Y 0..1, Cb and Cr -0.5..0.5: a (3, 3) float32 matrix."""
    kr, kb = LUMA_COEFFICIENTS[matrix]
    kg = 1.0 - kr - kb
    rows = [
        [kr, kg, kb],
        [-kr / (2 * (1 - kb)), -kg / (2 * (1 - kb)), 0.5],
        [0.5, -kg / (2 * (1 - kr)), -kb / (2 * (1 - kr))],
    ]
    return torch.tensor(rows, dtype=torch.float32)


def _mirrored(index: int, count: int) -> int:
    """The sample within that stands for one beyond the ends: -1 is 0, count is count - 1."""
    index = -1 - index if index < 0 else index
    index = 2 * count - 1 - index if index >= count else index
    return max(index, 0)


def _weigh(x: Tensor, taps: Taps, step: int, axis: int, out: Tensor) -> None:
    """Along an axis: out[i] = the sum of weights[k] x[step i + first + k], mirrored at the ends.

    Slice by slice, and the few samples at the ends one by one: this runs for every frame.
    """
    used = [(taps.first + k, w) for k, w in enumerate(taps.weights) if w]
    count, wanted = x.shape[axis], out.shape[axis]
    # Where all samples are within.
    begin = min(-(used[0][0] // step), wanted)
    end = max(min((count - 1 - used[-1][0]) // step + 1, wanted), begin)
    if end > begin:
        steps = slice(None, None, step)
        length = (end - begin - 1) * step + 1
        parts = [
            x.narrow(axis, begin * step + offset, length)[(slice(None),) * axis + (steps,)]
            for offset, _ in used
        ]
        _sum(parts, [w for _, w in used], out.narrow(axis, begin, end - begin))
    for i in (*range(begin), *range(end, wanted)):
        parts = [x.select(axis, _mirrored(step * i + offset, count)) for offset, _ in used]
        _sum(parts, [w for _, w in used], out.select(axis, i))


def _sum(parts: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    if len(parts) == 1:
        out.copy_(parts[0])
    elif len(parts) == 2:
        out.copy_(torch.lerp(parts[0], parts[1], weights[1]))
    else:
        torch.mul(parts[0], weights[0], out=out)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            out.add_(part, alpha=weight)


def _double(x: Tensor, chroma: ChromaFilter, site: float, axis: int) -> Tensor:
    """Double an axis (counted from the front); see :func:`pixels.doubling_taps`."""
    out = x.new_empty((*x.shape[: axis + 1], 2, *x.shape[axis + 1 :]))
    for parity in (0, 1):
        taps = doubling_taps(chroma, site, parity)
        _weigh(x, taps, 1, axis, out.select(axis + 1, parity))
    return out.flatten(axis, axis + 1)


def _halve(x: Tensor, chroma: ChromaFilter, site: float, axis: int) -> Tensor:
    """Halve an axis (rounding its length up); see :func:`pixels.halving_taps`."""
    out = x.new_empty((*x.shape[:axis], -(-x.shape[axis] // 2), *x.shape[axis + 1 :]))
    _weigh(x, halving_taps(chroma, site), 2, axis, out)
    return out


def upsample_chroma(
    x: Tensor, fmt: PixelFormat, height: int, width: int, chroma: ChromaFilter = "bilinear"
) -> Tensor:
    """Chroma (…, h, w) at the luma's size, (…, height, width)."""
    column, row = fmt.chroma_site
    for _ in range(fmt.subsampling[0]):
        x = _double(x, chroma, column, x.ndim - 1)
    for _ in range(fmt.subsampling[1]):
        x = _double(x, chroma, row, x.ndim - 2)
    return x[..., :height, :width]


def downsample_chroma(x: Tensor, fmt: PixelFormat, chroma: ChromaFilter = "bilinear") -> Tensor:
    """Values at the luma's size, (…, H, W), reduced to the chroma's size."""
    column, row = fmt.chroma_site
    for _ in range(fmt.subsampling[1]):
        x = _halve(x, chroma, row, x.ndim - 2)
    for _ in range(fmt.subsampling[0]):
        x = _halve(x, chroma, column, x.ndim - 1)
    return x


def to_rgb(
    planes: Sequence[Tensor], fmt: PixelFormat, chroma: ChromaFilter = "bilinear"
) -> tuple[Tensor, bool]:
    """What a network sees of a frame.

    Args:
        planes: (h, w) each, of the format's sample type.
        fmt: how to read them.
        chroma: the filter that interpolates subsampled chroma.

    Returns:
        (1, 3, H, W) float32, sRGB-encoded (the frame's own encoding), clamped to 0..1 and finite;
        and whether any sample was NaN or infinite.
    """
    height, width = planes[0].shape
    values = [p.to(torch.float32) for p in planes]
    bad = False
    if fmt.is_float:
        # x * 0 is NaN exactly for NaN and the infinities; the sum of it finds one in one pass.
        bad = not all(bool((v * 0).sum() == 0) for v in values)
        if bad:
            values = [torch.nan_to_num(v, nan=0.0, posinf=1.0, neginf=0.0) for v in values]
    if fmt.family == "yuv":
        luma = (values[0] - fmt.luma_offset) * (1.0 / fmt.luma_scale)
        uv = torch.stack(values[1:]).sub_(fmt.chroma_offset).mul_(1.0 / fmt.chroma_scale)
        if fmt.subsampling != (0, 0):
            uv = upsample_chroma(uv, fmt, height, width, chroma)
            if fmt.is_float and fmt.bits == 32:  # the largest floats have no sums
                uv = torch.nan_to_num(uv)
        kr, kb = LUMA_COEFFICIENTS[fmt.matrix]
        kg = 1.0 - kr - kb
        u, v = uv[0], uv[1]
        rgb = torch.empty((3, height, width), dtype=torch.float32, device=luma.device)
        torch.add(luma, v, alpha=2 * (1 - kr), out=rgb[0])
        torch.add(luma, u, alpha=-2 * (1 - kb) * kb / kg, out=rgb[1])
        rgb[1].add_(v, alpha=-2 * (1 - kr) * kr / kg)
        torch.add(luma, u, alpha=2 * (1 - kb), out=rgb[2])
    else:
        rgb = torch.stack(values) if len(values) == 3 else values[0].expand(3, -1, -1).clone()
        if fmt.luma_offset:
            rgb.sub_(fmt.luma_offset)
        rgb.mul_(1.0 / fmt.luma_scale)
    return rgb.clamp_(0.0, 1.0)[None], bad


def add_rgb(
    planes: Sequence[Tensor],
    fmt: PixelFormat,
    change: Tensor,
    chroma: ChromaFilter = "bilinear",
) -> list[Tensor]:
    """Add a change in RGB to a frame in its own format.

    Args:
        planes: the frame, (h, w) each; not changed.
        fmt: its format.
        change: (1, 3, H, W) float32, in units of 0..1, on the planes' device.
        chroma: the filter that reduces the change to subsampled chroma.

    Returns:
        new planes of the same types; integers rounded and clamped to their range, floats not
        clamped (samples that were not finite become finite).
    """
    delta = change[0]
    if fmt.family == "rgb":
        deltas = [delta[0], delta[1], delta[2]]
        scales = [fmt.luma_scale] * 3
    elif fmt.family == "gray":
        kr, kb = LUMA_COEFFICIENTS[fmt.matrix]
        deltas = [delta[0] * kr + delta[1] * (1.0 - kr - kb) + delta[2] * kb]
        scales = [fmt.luma_scale]
    else:
        kr, kb = LUMA_COEFFICIENTS[fmt.matrix]
        luma = delta[0] * kr + delta[1] * (1.0 - kr - kb) + delta[2] * kb
        uv = torch.stack((delta[2], delta[0]))
        uv[0].sub_(luma).mul_(0.5 / (1 - kb))
        uv[1].sub_(luma).mul_(0.5 / (1 - kr))
        if fmt.subsampling != (0, 0):
            uv = downsample_chroma(uv, fmt, chroma)
        deltas = [luma, uv[0], uv[1]]
        scales = [fmt.luma_scale, fmt.chroma_scale, fmt.chroma_scale]
    out = []
    for plane, d, scale in zip(planes, deltas, scales, strict=True):
        value = plane.to(torch.float32)
        if fmt.is_float:
            value = torch.nan_to_num(value, nan=0.0, posinf=1.0, neginf=0.0) + d
            out.append(value.to(plane.dtype))
        else:
            value = value.add(d, alpha=scale).round_().clamp_(0.0, fmt.peak)
            out.append(value.to(plane.dtype))
    return out


def pad_to(rgb: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last row and column until (…, height, width)."""
    down, right = height - rgb.shape[-2], width - rgb.shape[-1]
    if not down and not right:
        return rgb
    return F.pad(rgb, (0, right, 0, down), mode="replicate")
