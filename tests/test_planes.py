"""Conversion of planes, against a float64 reference written from the definitions, and VapourSynth.

The reference works with positions: luma sample x sits at x, chroma sample i of a doubling at 2i
where it is cosited and at 2i + 1/2 where it is between; chroma is read by linear interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vs_deblur_kernels.pixels import LUMA_COEFFICIENTS, ChromaLocation, Matrix, PixelFormat
from vs_deblur_kernels.reference import add_rgb, pad_to, to_rgb, yuv_matrix

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


# -------------------------------------------------------------------------------- the reference


def interpolate(x: Real, axis: int, site: float) -> Real:
    """Twice as many samples along an axis; beyond the ends the end is repeated."""
    length = x.shape[axis]
    positions = (np.arange(2 * length) - site) / 2

    def line(values: Real) -> Real:
        return np.interp(positions, np.arange(length), values)

    out: Real = np.apply_along_axis(line, axis, x)
    return out


def reduce(x: Real, axis: int, site: float) -> Real:
    """Half as many samples: [1 2 1]/4 around a luma sample, [1 1]/2 between two."""
    if x.shape[axis] % 2:
        x = np.concatenate((x, x.take([-1], axis)), axis)
    length = x.shape[axis]
    places = 2 * np.arange(length // 2)
    if site == 0.5:
        pair: Real = (x.take(places, axis) + x.take(places + 1, axis)) / 2
        return pair
    middle = places + int(site)
    around = [np.clip(middle + d, 0, length - 1) for d in (-1, 0, 1)]
    before, at, after = (x.take(p, axis) for p in around)
    mean: Real = (before + 2 * at + after) / 4
    return mean


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


def reference_rgb(planes: Sequence[Array], fmt: PixelFormat) -> Real:
    """(3, H, W) in float64, not clamped."""
    offset, scale, chroma_offset, chroma_scale = scales(fmt)
    height, width = planes[0].shape
    luma = (planes[0].astype(np.float64) - offset) / scale
    if fmt.family == "gray":
        return np.stack([luma] * 3)
    if fmt.family == "rgb":
        return np.stack([(p.astype(np.float64) - offset) / scale for p in planes])
    chroma = [(p.astype(np.float64) - chroma_offset) / chroma_scale for p in planes[1:]]
    for axis, site in axes(fmt):
        chroma = [interpolate(c, axis, site) for c in chroma]
    chroma = [c[:height, :width] for c in chroma]
    rgb: Real = np.einsum("ij,jhw->ihw", np.linalg.inv(yuv_of_rgb(fmt.matrix)), [luma, *chroma])
    return rgb


def reference_sum(planes: Sequence[Array], fmt: PixelFormat, change: Real) -> list[Real]:
    """The planes plus the change, in float64, neither rounded nor clamped."""
    _, scale, _, chroma_scale = scales(fmt)
    luma_scales = [scale] * 3
    if fmt.family == "rgb":
        deltas = list(change)
    else:
        deltas = list(np.einsum("ij,jhw->ihw", yuv_of_rgb(fmt.matrix), change))
        luma_scales = [scale, chroma_scale, chroma_scale]
        for axis, site in axes(fmt):
            deltas[1:] = [reduce(d, axis, site) for d in deltas[1:]]
    return [
        p.astype(np.float64) + s * d
        for p, s, d in zip(planes, luma_scales, deltas, strict=False)  # grey takes the luma alone
    ]


# -------------------------------------------------------------------------------------- examples


@st.composite
def formats(draw: st.DrawFn) -> PixelFormat:
    is_float = draw(st.booleans())
    family: Any = draw(st.sampled_from(["yuv", "yuv", "rgb", "gray"]))
    return PixelFormat(
        family,
        draw(st.sampled_from([16, 32]) if is_float else st.integers(8, 16)),
        is_float,
        draw(st.sampled_from(SUBSAMPLINGS)) if family == "yuv" else (0, 0),
        draw(st.sampled_from(MATRICES)),
        draw(st.booleans()),
        draw(st.sampled_from(LOCATIONS)),
    )


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


def rgb_of(planes: Sequence[Array], fmt: PixelFormat) -> Real:
    rgb, bad = to_rgb(tensors(planes), fmt)
    assert not bad
    assert rgb.shape == (1, 3, *planes[0].shape)
    assert rgb.dtype == torch.float32
    return rgb[0].numpy().astype(np.float64)


SIZES = st.tuples(st.integers(1, 13), st.integers(1, 13))
SEEDS = st.integers(0, 2**31)


# -------------------------------------------------------------------------- against the reference


@settings(max_examples=300, deadline=None)
@given(fmt=formats(), size=SIZES, seed=SEEDS)
def test_to_rgb_is_the_reference(fmt: PixelFormat, size: tuple[int, int], seed: int) -> None:
    planes = random_planes(fmt, *size, seed)
    expected = reference_rgb(planes, fmt).clip(0, 1)
    np.testing.assert_allclose(rgb_of(planes, fmt), expected, rtol=0, atol=2e-6)


@settings(max_examples=300, deadline=None)
@given(fmt=formats(), size=SIZES, seed=SEEDS, amount=st.sampled_from([0.02, 0.3, 1.0]))
def test_add_rgb_is_the_reference(
    fmt: PixelFormat, size: tuple[int, int], seed: int, amount: float
) -> None:
    planes = random_planes(fmt, *size, seed)
    change = np.random.default_rng(seed + 1).uniform(-amount, amount, (3, *size))
    change = change.astype(np.float32)
    out = add_rgb(tensors(planes), fmt, torch.from_numpy(change)[None])
    for plane, got, wanted in zip(
        planes, out, reference_sum(planes, fmt, change.astype(np.float64)), strict=True
    ):
        values = got.numpy()
        assert values.dtype == plane.dtype
        assert values.shape == plane.shape
        if fmt.is_float:
            error = 2e-6 if fmt.bits == 32 else 2e-3
            np.testing.assert_allclose(values, wanted, rtol=0, atol=error)
        else:
            # The nearest code value; float32 may decide a tie at 16 bits otherwise.
            error = 0.5 + 0.02 * 2.0 ** (fmt.bits - 16)
            clamped = wanted.clip(0, 2**fmt.bits - 1)
            np.testing.assert_allclose(values, clamped, rtol=0, atol=error)


@settings(max_examples=200, deadline=None)
@given(fmt=formats(), size=SIZES, seed=SEEDS)
def test_no_change_gives_the_same_samples(
    fmt: PixelFormat, size: tuple[int, int], seed: int
) -> None:
    planes = random_planes(fmt, *size, seed)
    for plane, out in zip(
        planes, add_rgb(tensors(planes), fmt, torch.zeros(1, 3, *size)), strict=True
    ):
        assert np.array_equal(out.numpy(), plane)


@settings(max_examples=100, deadline=None)
@given(fmt=formats(), size=SIZES, seed=SEEDS)
def test_inputs_are_left_alone(fmt: PixelFormat, size: tuple[int, int], seed: int) -> None:
    planes = tensors(random_planes(fmt, *size, seed))
    change = torch.rand(1, 3, *size)
    before = [p.clone() for p in (*planes, change)]
    to_rgb(planes, fmt)
    outs = add_rgb(planes, fmt, change)
    assert all(torch.equal(a, b) for a, b in zip(before, (*planes, change), strict=True))
    pointers = {p.data_ptr() for p in planes}
    assert not any(o.data_ptr() in pointers for o in outs)


@settings(max_examples=100, deadline=None)
@given(fmt=formats(), size=SIZES, grey=st.floats(0.0, 1.0))
def test_grey_has_no_colour(fmt: PixelFormat, size: tuple[int, int], grey: float) -> None:
    """A flat grey frame is flat grey whatever the matrix, range, subsampling and siting."""
    offset, scale, chroma_offset, _ = scales(fmt)
    planes = []
    for p in range(fmt.planes):
        value = chroma_offset if fmt.family == "yuv" and p else offset + grey * scale
        planes.append(np.full(fmt.plane_shape(*size, p), value).astype(sample_type(fmt)))
    rgb = rgb_of(planes, fmt)
    assert np.ptp(rgb) < 1e-6
    step = 1e-3 if fmt.is_float else 1.001 / scale
    assert rgb.max() == pytest.approx(grey, abs=step)


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_matrix(matrix: Matrix) -> None:
    m = yuv_matrix(matrix).numpy()
    np.testing.assert_allclose(m, yuv_of_rgb(matrix), atol=1e-7)
    np.testing.assert_allclose(m @ np.ones(3), [1, 0, 0], atol=1e-6)
    # Pure blue and pure red are at the ends of their chroma axes.
    assert m[1, 2] == m[2, 0] == 0.5


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("bits", [8, 10, 16])
def test_black_and_white(bits: int, full: bool) -> None:
    unit = 1 << (bits - 8)
    black, white = (0, (1 << bits) - 1) if full else (16 * unit, 235 * unit)
    fmt = PixelFormat("gray", bits, full_range=full)
    plane = np.array([[black, white]], sample_type(fmt))
    np.testing.assert_allclose(rgb_of([plane], fmt)[:, 0], [[0, 1]] * 3, atol=1e-6)


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_ramp_of_chroma_stays_a_ramp(location: ChromaLocation) -> None:
    """Linear interpolation at the right sites keeps a linear ramp, away from the borders."""
    fmt = PixelFormat("yuv", 32, True, (1, 1), "709", True, location)
    dx, dy = SITES[location]
    y, x = np.mgrid[:16, :16]
    ramp = 0.004 * (2 * x + dx) + 0.003 * (2 * y + dy)
    planes = [np.full((32, 32), 0.3), np.zeros((16, 16)), ramp]
    kr, _ = LUMA_COEFFICIENTS["709"]
    red = rgb_of([p.astype(np.float32) for p in planes], fmt)[0] - 0.3
    y, x = np.mgrid[:32, :32]
    expected = 2 * (1 - kr) * (0.004 * x + 0.003 * y)
    inner = (slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(red[inner], expected[inner], atol=1e-6)


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_a_change_comes_back(location: ChromaLocation, subsampling: tuple[int, int]) -> None:
    """A flat change is added exactly, at any siting, and seen again in RGB."""
    fmt = PixelFormat("yuv", 32, True, subsampling, "601", True, location)
    rng = np.random.default_rng(3)
    planes = [
        rng.uniform(low, low + 0.1, fmt.plane_shape(9, 11, p)).astype(np.float32)
        for p, low in enumerate((0.4, -0.05, -0.05))
    ]
    change = torch.tensor([0.05, -0.03, 0.02])[None, :, None, None].expand(1, 3, 9, 11)
    after = [o.numpy() for o in add_rgb(tensors(planes), fmt, change)]
    np.testing.assert_allclose(
        rgb_of(after, fmt) - rgb_of(planes, fmt), change[0].numpy(), atol=1e-6
    )


# --------------------------------------------------------------------------- values not finite


@settings(max_examples=150, deadline=None)
@given(
    fmt=formats().filter(lambda f: f.is_float),
    size=SIZES,
    seed=SEEDS,
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    data=st.data(),
)
def test_values_that_are_not_finite(
    fmt: PixelFormat, size: tuple[int, int], seed: int, value: float, data: st.DataObject
) -> None:
    planes = random_planes(fmt, *size, seed)
    p = data.draw(st.integers(0, fmt.planes - 1))
    y = data.draw(st.integers(0, planes[p].shape[0] - 1))
    x = data.draw(st.integers(0, planes[p].shape[1] - 1))
    mended = [q.copy() for q in planes]
    planes[p][y, x] = value
    mended[p][y, x] = 1.0 if value == math.inf else 0.0
    rgb, bad = to_rgb(tensors(planes), fmt)
    assert bad
    assert torch.equal(rgb, to_rgb(tensors(mended), fmt)[0])
    change = torch.rand(1, 3, *size)
    for got, wanted in zip(
        add_rgb(tensors(planes), fmt, change), add_rgb(tensors(mended), fmt, change), strict=True
    ):
        assert torch.equal(got, wanted)
        assert bool(torch.isfinite(got).all())


def test_large_floats_are_not_taken_for_infinite() -> None:
    planes = [torch.full((40, 40), 3e38) for _ in range(3)]
    rgb, bad = to_rgb(planes, PixelFormat("rgb", 32, True))
    assert not bad
    assert bool((rgb == 1).all())


# ----------------------------------------------------------------------------- shapes and refusals


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    down=st.integers(0, 9),
    right=st.integers(0, 9),
)
def test_padding_repeats_the_last_row_and_column(
    height: int, width: int, down: int, right: int
) -> None:
    x = torch.rand(1, 3, height, width)
    padded = pad_to(x, height + down, width + right).numpy()
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (0, down), (0, right)), mode="edge")
    assert np.array_equal(padded, expected)


@pytest.mark.parametrize(
    ("subsampling", "size", "chroma"),
    [((1, 1), (5, 7), (3, 4)), ((2, 0), (5, 7), (5, 2)), ((0, 0), (1, 1), (1, 1))],
)
def test_odd_sizes_have_chroma_for_every_sample(
    subsampling: tuple[int, int], size: tuple[int, int], chroma: tuple[int, int]
) -> None:
    fmt = PixelFormat("yuv", subsampling=subsampling)
    assert fmt.plane_shape(*size, 0) == size
    assert fmt.plane_shape(*size, 1) == fmt.plane_shape(*size, 2) == chroma


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 7},
        {"bits": 17},
        {"bits": 8, "is_float": True},
        {"family": "rgb", "subsampling": (1, 0)},
        {"family": "gray", "subsampling": (1, 1)},
        {"matrix": "xyz"},
    ],
)
def test_formats_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must have|cannot be|unknown"):
        PixelFormat(**wrong)


# ---------------------------------------------------------------------------- against VapourSynth

# Numbers of ITU-T H.273, table 4.
VS_MATRICES: dict[Matrix, int] = {"709": 1, "fcc": 4, "601": 6, "240m": 7, "2020": 9}


VS_FORMATS = {
    "YUV420P8": (8, (1, 1)),
    "YUV420P10": (10, (1, 1)),
    "YUV422P8": (8, (1, 0)),
    "YUV422P16": (16, (1, 0)),
    "YUV444P8": (8, (0, 0)),
    "YUV411P8": (8, (2, 0)),
}
# 4:1:1 between luma samples is two doublings here and one straight line there: the same sites but
# another filter.
VS_CASES = [
    (name, *rest, location)
    for name, rest in VS_FORMATS.items()
    for location in LOCATIONS
    if not (name == "YUV411P8" and SITES[location][0] == 0.5)
]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(("name", "bits", "subsampling", "location"), VS_CASES)
def test_vapoursynth_converts_alike(
    name: str,
    bits: int,
    subsampling: tuple[int, int],
    location: ChromaLocation,
    matrix: Matrix,
    full: bool,
) -> None:
    """Within one code value of 8 bits, everywhere."""
    vs: Any = pytest.importorskip("vapoursynth")
    fmt = PixelFormat("yuv", bits, False, subsampling, matrix, full, location)
    planes = random_planes(fmt, 24, 32, seed=bits + full)
    blank = vs.core.std.BlankClip(
        format=getattr(vs, name), width=32, height=24, length=1, keep=True
    )

    def fill(n: int, f: Any) -> Any:
        frame = f.copy()
        for p, plane in enumerate(planes):
            np.asarray(frame[p])[:] = plane
        frame.props["_Matrix"] = VS_MATRICES[matrix]
        frame.props["_Range"] = int(full)
        frame.props["_ChromaLocation"] = LOCATIONS.index(location)
        return frame

    clip = blank.std.ModifyFrame(blank, fill)
    with clip.resize.Bilinear(format=vs.RGBS).get_frame(0) as frame:
        theirs = np.stack([np.array(frame[p]) for p in range(3)])
    worst = np.abs(rgb_of(planes, fmt) - theirs.clip(0, 1)).max()
    assert worst <= 1 / 255
