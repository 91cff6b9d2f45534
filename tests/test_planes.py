"""Conversion of planes by the reference in torch, against float64, and VapourSynth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.exact_planes import (
    LOCATIONS,
    MATRICES,
    SITES,
    SUBSAMPLINGS,
    Array,
    Real,
    black,
    exact_rgb,
    exact_sum,
    random_planes,
    sample_type,
    scales,
    tensors,
    vs_planes,
    vs_rgb,
    yuv_of_rgb,
)
from vs_deblur_kernels.pixels import (
    LUMA_COEFFICIENTS,
    ChromaFilter,
    ChromaLocation,
    Matrix,
    PixelFormat,
    doubling_taps,
    halving_taps,
)
from vs_deblur_kernels.reference import add_rgb, pad_to, to_rgb, yuv_matrix

FILTERS: tuple[ChromaFilter, ...] = get_args(ChromaFilter)

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


def rgb_of(planes: Sequence[Array], fmt: PixelFormat, chroma: ChromaFilter = "bilinear") -> Real:
    rgb, bad = to_rgb(tensors(planes), fmt, chroma)
    assert not bad
    assert rgb.shape == (1, 3, *planes[0].shape)
    assert rgb.dtype == torch.float32
    return rgb[0].numpy().astype(np.float64)


SIZES = st.tuples(st.integers(1, 13), st.integers(1, 13))
SEEDS = st.integers(0, 2**31)
EITHER = st.sampled_from(FILTERS)


# ------------------------------------------------------------------------- against the definition


@settings(max_examples=300, deadline=None)
@given(fmt=formats(), size=SIZES, seed=SEEDS, chroma=EITHER)
def test_to_rgb_is_as_defined(
    fmt: PixelFormat, size: tuple[int, int], seed: int, chroma: ChromaFilter
) -> None:
    planes = random_planes(fmt, *size, seed)
    expected = exact_rgb(planes, fmt, chroma).clip(0, 1)
    np.testing.assert_allclose(rgb_of(planes, fmt, chroma), expected, rtol=0, atol=2e-6)


@settings(max_examples=300, deadline=None)
@given(
    fmt=formats(),
    size=SIZES,
    seed=SEEDS,
    amount=st.sampled_from([0.02, 0.3, 1.0]),
    chroma=EITHER,
)
def test_add_rgb_is_as_defined(
    fmt: PixelFormat, size: tuple[int, int], seed: int, amount: float, chroma: ChromaFilter
) -> None:
    planes = random_planes(fmt, *size, seed)
    change = np.random.default_rng(seed + 1).uniform(-amount, amount, (3, *size))
    change = change.astype(np.float32)
    out = add_rgb(tensors(planes), fmt, torch.from_numpy(change)[None], chroma)
    for plane, got, wanted in zip(
        planes, out, exact_sum(planes, fmt, change.astype(np.float64), chroma), strict=True
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


@pytest.mark.parametrize("chroma", FILTERS)
def test_large_floats_of_both_signs_are_not_added_to_nan(chroma: ChromaFilter) -> None:
    fmt = PixelFormat("yuv", 32, True, (1, 1))
    signs = torch.randn((2, 9, 9), generator=torch.Generator().manual_seed(0)).sign()
    rgb, bad = to_rgb([torch.ones(18, 18), *(signs * 3e38)], fmt, chroma)
    assert not bad
    assert bool(torch.isfinite(rgb).all())


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


# ------------------------------------------------------------------------------------- the taps


@pytest.mark.parametrize(
    ("site", "even", "odd", "reduced"),
    [
        (0.0, [0, 1], [1 / 2, 1 / 2], [1 / 4, 2 / 4, 1 / 4, 0]),
        (0.5, [1 / 4, 3 / 4], [3 / 4, 1 / 4], [1 / 8, 3 / 8, 3 / 8, 1 / 8]),
        (1.0, [1 / 2, 1 / 2], [1, 0], [0, 1 / 4, 2 / 4, 1 / 4]),
    ],
)
def test_bilinear_taps(
    site: float, even: list[float], odd: list[float], reduced: list[float]
) -> None:
    taps = [doubling_taps("bilinear", site, parity) for parity in (0, 1)]
    assert [t.first for t in taps] == [-1, 0]
    assert [list(t.weights) for t in taps] == [even, odd]
    assert halving_taps("bilinear", site).first == -1
    assert list(halving_taps("bilinear", site).weights) == reduced


@pytest.mark.parametrize("site", [0.0, 0.5, 1.0])
def test_bicubic_taps(site: float) -> None:
    for parity in (0, 1):
        taps = doubling_taps("bicubic", site, parity)
        assert taps.first == parity - 2
        # A cubic through four points reproduces parabolas.
        places = np.arange(taps.first, taps.first + 4)
        for power in (0, 1, 2):
            assert taps.weights @ places**power == ((parity - site) / 2) ** power
    halved = halving_taps("bicubic", site)
    assert halved.first == -3
    assert len(halved.weights) == 8
    assert math.fsum(halved.weights) == pytest.approx(1, abs=1e-15)
    assert halved.weights @ np.arange(-3.0, 5.0) == pytest.approx(site, abs=1e-15)


def test_there_is_no_other_filter() -> None:
    planes = tensors(random_planes(PixelFormat(subsampling=(1, 1)), 4, 4, 0))
    with pytest.raises(ValueError, match="must be bilinear or bicubic, not 'spline36'"):
        to_rgb(planes, PixelFormat(subsampling=(1, 1)), "spline36")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- against VapourSynth

# 4:1:1 between luma samples is two doublings here and one filter there, as is bicubic 4:1:1: the
# same sites but other weights.
VS_CASES = [
    (PixelFormat("yuv", bits, False, subsampling, chroma_location=location), chroma)
    for bits, subsampling in (
        (8, (1, 1)),
        (10, (1, 1)),
        (16, (1, 1)),
        (8, (1, 0)),
        (16, (1, 0)),
        (8, (0, 1)),
        (8, (0, 0)),
        (8, (2, 0)),
    )
    for location in LOCATIONS
    for chroma in FILTERS
    if subsampling != (2, 0) or (SITES[location][0] == 0 and chroma == "bilinear")
]
VS_COLOURS: list[tuple[Matrix, bool]] = [
    ("709", False),
    ("709", True),
    ("601", False),
    ("2020", True),
    ("240m", False),
    ("fcc", True),
]
VS_SIZES = [(24, 32), (2, 4), (4, 4), (6, 8)]


def described(value: object) -> str | None:
    if isinstance(value, PixelFormat):
        letters = "".join(map(str, value.subsampling))
        return f"{value.bits}-{letters}-{value.chroma_location}"
    return None


@pytest.mark.parametrize(("matrix", "full"), VS_COLOURS)
@pytest.mark.parametrize(("fmt", "chroma"), VS_CASES, ids=described)
def test_vapoursynth_sees_the_same(
    fmt: PixelFormat, chroma: ChromaFilter, matrix: Matrix, full: bool
) -> None:
    """Within a fiftieth of a code value of the format's own depth, at 16 bits too."""
    fmt = dataclasses.replace(fmt, matrix=matrix, full_range=full)
    for size in VS_SIZES:
        planes = random_planes(fmt, *size, seed=fmt.bits + full)
        worst = np.abs(rgb_of(planes, fmt, chroma) - vs_rgb(planes, fmt, chroma)).max()
        assert worst <= 0.02 / fmt.peak, size


@pytest.mark.parametrize(("matrix", "full"), VS_COLOURS)
@pytest.mark.parametrize(("fmt", "chroma"), VS_CASES, ids=described)
def test_a_change_of_black_is_what_vapoursynth_makes_of_the_picture(
    fmt: PixelFormat, chroma: ChromaFilter, matrix: Matrix, full: bool
) -> None:
    """The same code values; at 16 bits one in twenty may be the other side of a tie.

    At the ends two halvings, of 4:1:1, are not one.
    """
    inner = slice(2, -2) if fmt.subsampling == (2, 0) else slice(None)
    fmt = dataclasses.replace(fmt, matrix=matrix, full_range=full)
    for size in VS_SIZES:
        rgb = np.random.default_rng(fmt.bits + full).uniform(0, 1, (3, *size)).astype(np.float32)
        change = torch.from_numpy(rgb)[None]
        out = add_rgb(tensors(black(fmt, *size)), fmt, change, chroma)
        for ours, theirs in zip(out, vs_planes(rgb, fmt, chroma), strict=True):
            off = np.abs(ours.numpy() - theirs)[:, inner]
            assert off.max(initial=0) <= (0 if fmt.bits <= 10 else 1), size
            assert np.count_nonzero(off) <= max(1, off.size // 20), size
