"""Pixel planes to network input and back (the reference that defines the conversion, in torch).

A frame is a list of planes in its own format: Y, U, V; or R, G, B; or grey. :func:`to_rgb` gives
what a network sees. :func:`add_rgb` never converts a frame back: it adds the *change* that the
network made, brought into the frame's own format, to the frame's own samples::

    out = round(in + M (rgb' - rgb)),     M: RGB -> the frame's family, linear

So samples that the network leaves alone keep their exact value, chroma that was not touched is not
resampled, and values outside the nominal range (superwhite, floats beyond 0..1) survive. For 4:2:0
and 4:2:2, chroma is interpolated linearly at its siting, and the change is reduced by the matching
linear filter ([1 2 1]/4 where chroma sits on a luma sample, [1 1]/2 where it sits between two).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vs_deblur_kernels.pixels import LUMA_COEFFICIENTS, Matrix, PixelFormat


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


def skip(y: Tensor, bias: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
    """The end of a residual block.

    Args:
        y: the second convolution without its bias, (B, C, H, W).
        bias: that bias, (C,).
        x: the block's input, (B, C, H, W).
        relu: a ReLU after the sum.

    Returns:
        ``y + bias + x``, (B, C, H, W).
    """
    out = y + bias[:, None, None] + x
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


def _double(x: Tensor, cosited: bool, axis: int) -> Tensor:
    """Double an axis (counted from the front) by linear interpolation at the siting.

    The edges are repeated. Written row by row into place: this runs for every frame.
    """
    count = x.shape[axis]
    out = x.new_empty((*x.shape[: axis + 1], 2, *x.shape[axis + 1 :]))
    even, odd = out.select(axis + 1, 0), out.select(axis + 1, 1)
    here, following = x.narrow(axis, 0, count - 1), x.narrow(axis, 1, count - 1)
    odd.narrow(axis, count - 1, 1).copy_(x.narrow(axis, count - 1, 1))
    if cosited:
        even.copy_(x)
        odd.narrow(axis, 0, count - 1).copy_(torch.lerp(here, following, 0.5))
    else:
        even.narrow(axis, 0, 1).copy_(x.narrow(axis, 0, 1))
        even.narrow(axis, 1, count - 1).copy_(torch.lerp(following, here, 0.25))
        odd.narrow(axis, 0, count - 1).copy_(torch.lerp(here, following, 0.25))
    return out.flatten(axis, axis + 1)


def _halve(x: Tensor, cosited: bool, axis: int) -> Tensor:
    """Halve an axis (an odd end is repeated), the counterpart of :func:`_double`."""
    if x.shape[axis] % 2:
        x = torch.cat((x, x.narrow(axis, x.shape[axis] - 1, 1)), dim=axis)
    pairs = x.unflatten(axis, (-1, 2))  # type: ignore[no-untyped-call]
    even, odd = pairs.select(axis + 1, 0), pairs.select(axis + 1, 1)
    if not cosited:
        halved: Tensor = (even + odd) * 0.5
        return halved
    before = torch.cat((even.narrow(axis, 0, 1), odd.narrow(axis, 0, odd.shape[axis] - 1)), axis)
    weighted: Tensor = before * 0.25 + even * 0.5 + odd * 0.25
    return weighted


def _bottom_flipped(fmt: PixelFormat) -> bool:
    """Bottom-sited chroma is top-sited chroma upside down (for frames of even height)."""
    return fmt.chroma_location in ("bottom", "bottomleft")


def upsample_chroma(x: Tensor, fmt: PixelFormat, height: int, width: int) -> Tensor:
    """Chroma (…, h, w) at the luma's size, (…, height, width)."""
    horizontal, vertical = fmt._cosited
    columns, rows = x.ndim - 1, x.ndim - 2
    for _ in range(fmt.subsampling[0]):
        x = _double(x, horizontal, columns)
    if fmt.subsampling[1]:
        flip = _bottom_flipped(fmt)
        x = x.flip(rows) if flip else x
        for _ in range(fmt.subsampling[1]):
            x = _double(x, vertical or flip, rows)
        x = x.flip(rows) if flip else x
    return x[..., :height, :width]


def downsample_chroma(x: Tensor, fmt: PixelFormat) -> Tensor:
    """Values at the luma's size, (…, H, W), reduced to the chroma's size."""
    horizontal, vertical = fmt._cosited
    columns, rows = x.ndim - 1, x.ndim - 2
    if fmt.subsampling[1]:
        flip = _bottom_flipped(fmt)
        for _ in range(fmt.subsampling[1]):
            if flip and x.shape[rows] % 2:
                x = torch.cat((x, x[..., -1:, :]), dim=rows)
            x = x.flip(rows) if flip else x
            x = _halve(x, vertical or flip, rows)
            x = x.flip(rows) if flip else x
    for _ in range(fmt.subsampling[0]):
        x = _halve(x, horizontal, columns)
    return x


def to_rgb(planes: Sequence[Tensor], fmt: PixelFormat) -> tuple[Tensor, bool]:
    """What a network sees of a frame.

    Args:
        planes: (h, w) each, of the format's sample type.
        fmt: how to read them.

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
        chroma = torch.stack(values[1:]).sub_(fmt.chroma_offset).mul_(1.0 / fmt.chroma_scale)
        if fmt.subsampling != (0, 0):
            chroma = upsample_chroma(chroma, fmt, height, width)
        kr, kb = LUMA_COEFFICIENTS[fmt.matrix]
        kg = 1.0 - kr - kb
        u, v = chroma[0], chroma[1]
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


def add_rgb(planes: Sequence[Tensor], fmt: PixelFormat, change: Tensor) -> list[Tensor]:
    """Add a change in RGB to a frame in its own format.

    Args:
        planes: the frame, (h, w) each; not changed.
        fmt: its format.
        change: (1, 3, H, W) float32, in units of 0..1, on the planes' device.

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
        chroma = torch.stack((delta[2], delta[0]))
        chroma[0].sub_(luma).mul_(0.5 / (1 - kb))
        chroma[1].sub_(luma).mul_(0.5 / (1 - kr))
        if fmt.subsampling != (0, 0):
            chroma = downsample_chroma(chroma, fmt)
        deltas = [luma, chroma[0], chroma[1]]
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
