"""The conversion of planes in float64, written from the definitions, and VapourSynth's own.

The definition works with positions: luma sample x sits at x, chroma sample i of a doubling at
2i + site. Chroma is read, and reduced to its own size, with a filter around the position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vs_deblur_kernels.pixels import (
    LUMA_COEFFICIENTS,
    ChromaFilter,
    ChromaLocation,
    Matrix,
    PixelFormat,
)

Array = NDArray[Any]
Real = NDArray[np.float64]

MATRICES: tuple[Matrix, ...] = get_args(Matrix)
LOCATIONS: tuple[ChromaLocation, ...] = get_args(ChromaLocation)
SUBSAMPLINGS = ((0, 0), (1, 0), (1, 1), (2, 0), (0, 1), (2, 2))

# Position of the chroma sample on the first luma sample(s), in luma samples: ITU-T H.273, figure 1.
SITES: dict[ChromaLocation, tuple[float, float]] = {
    "left": (0.0, 0.5),
    "center": (0.5, 0.5),
    "topleft": (0.0, 0.0),
    "top": (0.5, 0.0),
    "bottomleft": (0.0, 1.0),
    "bottom": (0.5, 1.0),
}


# -------------------------------------------------------------------------------- the definition


def weight(chroma: ChromaFilter, distance: Real) -> Real:
    """The triangle; or the cubic convolution of Keys 1981 with a = -1/2."""
    d, a = np.abs(distance), -0.5
    near, far = 1 - d, 0 * d
    if chroma == "bicubic":
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    weights: Real = np.where(d < 1, near, np.where(d < 2, far, 0))
    return weights


PAD = 12


def weighted(x: Real, axis: int, places: Real, chroma: ChromaFilter, width: int) -> Real:
    """Values at places along an axis, by a filter `width` times as wide as it is for neighbours."""
    x = np.moveaxis(x, axis, -1)
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(PAD, PAD)], mode="symmetric")
    indices = np.arange(-PAD, x.shape[-1] + PAD)
    weights = weight(chroma, (places[:, None] - indices) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.moveaxis(padded @ weights.T, -1, axis)


def interpolate(x: Real, axis: int, site: float, chroma: ChromaFilter) -> Real:
    """Twice as many samples along an axis."""
    return weighted(x, axis, (np.arange(2 * x.shape[axis]) - site) / 2, chroma, 1)


def reduce(x: Real, axis: int, site: float, chroma: ChromaFilter) -> Real:
    """Half as many samples along an axis."""
    return weighted(x, axis, 2 * np.arange((x.shape[axis] + 1) // 2) + site, chroma, 2)


def axes(fmt: PixelFormat) -> list[tuple[int, float]]:
    """Axis and site of every doubling; after the first one, samples are between if they were."""
    horizontal, vertical = SITES[fmt.chroma_location]
    sw, sh = fmt.subsampling
    return [(1, horizontal)] * sw + [(0, vertical)] * sh


def scales(fmt: PixelFormat) -> tuple[float, float, float, float]:
    """Offset and scale of luma, offset and scale of chroma: ITU-T H.273, equations 20 to 28."""
    if fmt.is_float:
        return 0.0, 1.0, 0.0, 1.0
    unit = 2.0 ** (fmt.bits - 8)
    if fmt.full_range:
        return 0.0, 2.0**fmt.bits - 1, 128 * unit, 2.0**fmt.bits - 1
    return 16 * unit, 219 * unit, 128 * unit, 224 * unit


def yuv_of_rgb(matrix: Matrix) -> Real:
    kr, kb = LUMA_COEFFICIENTS[matrix]
    luma = np.array([kr, 1 - kr - kb, kb])
    blue, red = np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])
    return np.stack([luma, (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)])


def exact_rgb(planes: Sequence[Array], fmt: PixelFormat, chroma: ChromaFilter = "bilinear") -> Real:
    """(3, H, W) in float64, not clamped."""
    offset, scale, chroma_offset, chroma_scale = scales(fmt)
    height, width = planes[0].shape
    luma = (planes[0].astype(np.float64) - offset) / scale
    if fmt.family == "gray":
        return np.stack([luma] * 3)
    if fmt.family == "rgb":
        return np.stack([(p.astype(np.float64) - offset) / scale for p in planes])
    uv = [(p.astype(np.float64) - chroma_offset) / chroma_scale for p in planes[1:]]
    for axis, site in axes(fmt):
        uv = [interpolate(c, axis, site, chroma) for c in uv]
    uv = [c[:height, :width] for c in uv]
    rgb: Real = np.einsum("ij,jhw->ihw", np.linalg.inv(yuv_of_rgb(fmt.matrix)), [luma, *uv])
    return rgb


def exact_sum(
    planes: Sequence[Array], fmt: PixelFormat, change: Real, chroma: ChromaFilter = "bilinear"
) -> list[Real]:
    """The planes plus the change, in float64, neither rounded nor clamped."""
    _, scale, _, chroma_scale = scales(fmt)
    luma_scales = [scale] * 3
    if fmt.family == "rgb":
        deltas = list(change)
    else:
        deltas = list(np.einsum("ij,jhw->ihw", yuv_of_rgb(fmt.matrix), change))
        luma_scales = [scale, chroma_scale, chroma_scale]
        for axis, site in axes(fmt):
            deltas[1:] = [reduce(d, axis, site, chroma) for d in deltas[1:]]
    return [
        p.astype(np.float64) + s * d
        for p, s, d in zip(planes, luma_scales, deltas, strict=False)  # grey takes the luma alone
    ]


# -------------------------------------------------------------------------------- examples


def sample_type(fmt: PixelFormat) -> np.dtype[Any]:
    if fmt.is_float:
        return np.dtype(np.float16 if fmt.bits == 16 else np.float32)
    return np.dtype(np.uint8 if fmt.bits == 8 else np.uint16)


def random_planes(fmt: PixelFormat, height: int, width: int, seed: int) -> list[Array]:
    """Samples over the whole range, outside of the nominal one too."""
    rng = np.random.default_rng(seed)
    planes = []
    for p in range(fmt.planes):
        shape = fmt.plane_shape(height, width, p)
        if fmt.is_float:
            low = -0.6 if fmt.family == "yuv" and p else -0.1
            planes.append(rng.uniform(low, low + 1.2, shape).astype(sample_type(fmt)))
        else:
            planes.append(rng.integers(0, 1 << fmt.bits, shape).astype(sample_type(fmt)))
    return planes


def tensors(planes: Sequence[Array]) -> list[torch.Tensor]:
    return [torch.tensor(p) for p in planes]


# -------------------------------------------------------------------------------- VapourSynth

# Numbers of ITU-T H.273, table 4.
VS_MATRICES: dict[Matrix, int] = {"709": 1, "fcc": 4, "601": 6, "240m": 7, "2020": 9}


def vapoursynth() -> Any:
    return pytest.importorskip("vapoursynth", reason="NO VAPOURSYNTH: it cannot be compared with")


def vs_name(fmt: PixelFormat) -> str:
    """VapourSynth's name of a YUV format of integers."""
    letters = {(0, 0): "444", (1, 0): "422", (1, 1): "420", (0, 1): "440", (2, 0): "411"}
    return f"YUV{letters[fmt.subsampling]}P{fmt.bits}"


def vs_converted(
    planes: Sequence[Array], name: str, props: Mapping[str, int], chroma: ChromaFilter, **to: int
) -> list[Real]:
    """The planes of a frame that VapourSynth's resize has converted, in float64.

    Args:
        planes: of a frame.
        name: of its format.
        props: of the frame.
        chroma: which filter.
        to: what it is converted to: arguments of resize.
    """
    vs = vapoursynth()
    height, width = planes[0].shape
    blank = vs.core.std.BlankClip(
        format=getattr(vs, name), width=width, height=height, length=1, keep=True
    )

    def fill(n: int, f: Any) -> Any:
        frame = f.copy()
        for p, plane in enumerate(planes):
            np.asarray(frame[p])[:] = plane
        for key, value in props.items():
            frame.props[key] = value
        return frame

    resize = getattr(blank.std.ModifyFrame(blank, fill).resize, chroma.capitalize())
    with resize(**to).get_frame(0) as frame:
        return [np.array(plane, np.float64) for plane in frame]


def vs_rgb(planes: Sequence[Array], fmt: PixelFormat, chroma: ChromaFilter) -> Real:
    """(3, H, W): what VapourSynth makes of a frame in RGB, clamped."""
    vs = vapoursynth()
    props = {
        "_Matrix": VS_MATRICES[fmt.matrix],
        "_Range": int(fmt.full_range),
        "_ChromaLocation": LOCATIONS.index(fmt.chroma_location),
    }
    rgb = np.stack(vs_converted(planes, vs_name(fmt), props, chroma, format=vs.RGBS))
    return rgb.clip(0, 1)


def vs_planes(rgb: Array, fmt: PixelFormat, chroma: ChromaFilter) -> list[Real]:
    """What VapourSynth makes of a picture, (3, H, W) float32 in 0..1, in a format."""
    vs = vapoursynth()
    return vs_converted(
        list(rgb),
        "RGBS",
        {"_Matrix": 0, "_Range": 1},
        chroma,
        format=getattr(vs, vs_name(fmt)),
        matrix=VS_MATRICES[fmt.matrix],
        range=int(fmt.full_range),
        chromaloc=LOCATIONS.index(fmt.chroma_location),
    )


def black(fmt: PixelFormat, height: int, width: int) -> list[Array]:
    """A frame of which all pixels are 0 in RGB."""
    offset, _, chroma_offset, _ = scales(fmt)
    values = [offset, chroma_offset, chroma_offset] if fmt.family == "yuv" else [offset] * 3
    return [
        np.full(fmt.plane_shape(height, width, p), values[p], sample_type(fmt))
        for p in range(fmt.planes)
    ]
