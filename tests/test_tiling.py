"""Sizes and tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vs_deblur.tiling import Tile, padded_size, round_up, tile_for_budget, tiles

MULTIPLES = st.sampled_from([1, 2, 4, 16])


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """Height, width, size of a tile, halo and multiple."""
    multiple = draw(MULTIPLES)
    height, width, size = (draw(st.integers(1, 12)) * multiple for _ in range(3))
    return height, width, size, draw(st.integers(0, 50)), multiple


@given(value=st.integers(0, 10**6), multiple=st.integers(1, 1000))
def test_round_up(value: int, multiple: int) -> None:
    up = round_up(value, multiple)
    assert up % multiple == 0
    assert value <= up < value + multiple


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), multiple=MULTIPLES, least=MULTIPLES)
def test_padded_size(height: int, width: int, multiple: int, least: int) -> None:
    for before, after in zip(
        (height, width), padded_size(height, width, multiple, least), strict=True
    ):
        assert after % multiple == 0
        assert max(before, least) <= after < max(before, least) + multiple


@given(cuts())
def test_tiles_cover_each_pixel_once(cut: tuple[int, int, int, int, int]) -> None:
    height, width, *_ = cut
    count = np.zeros((height, width), int)
    for t in tiles(*cut):
        count[t.top : t.bottom, t.left : t.right] += 1
    assert (count == 1).all()


@given(cuts())
def test_tiles_have_their_halo_and_their_size(cut: tuple[int, int, int, int, int]) -> None:
    height, width, size, halo, multiple = cut
    for t in tiles(*cut):
        assert 0 < t.bottom - t.top <= size
        assert 0 < t.right - t.left <= size
        assert all(v % multiple == 0 for v in vars(t).values())
        assert 0 <= t.read_top <= max(t.top - halo, 0)
        assert min(t.bottom + halo, height) <= t.read_bottom <= height
        assert 0 <= t.read_left <= max(t.left - halo, 0)
        assert min(t.right + halo, width) <= t.read_right <= width
        # No more is read than the halo, rounded up.
        assert t.top - t.read_top < halo + multiple
        assert t.read_right - t.right < halo + multiple


@given(cuts(), st.integers(0, 2**31))
def test_tile_and_untile_is_the_identity(cut: tuple[int, int, int, int, int], seed: int) -> None:
    height, width, *_ = cut
    frame = np.random.default_rng(seed).random((height, width))
    again = np.full_like(frame, np.nan)
    for t in tiles(*cut):
        part = frame[t.read_top : t.read_bottom, t.read_left : t.read_right]
        y, x = t.top - t.read_top, t.left - t.read_left
        again[t.top : t.bottom, t.left : t.right] = part[
            y : y + t.bottom - t.top, x : x + t.right - t.left
        ]
    assert np.array_equal(again, frame)


@given(cuts(), st.integers(0, 2**31))
def test_a_local_filter_in_tiles_gives_the_whole_frames_result(
    cut: tuple[int, int, int, int, int], seed: int
) -> None:
    """What the halo is for: a sum over all pixels within ``halo``, zero beyond the frame."""
    height, width, _, halo, _ = cut
    frame = np.random.default_rng(seed).integers(0, 100, (height, width))

    def near(x: NDArray[np.int64]) -> NDArray[np.int64]:
        for axis in (0, 1):
            around = [(halo + 1, halo) if a == axis else (0, 0) for a in (0, 1)]
            total = np.pad(x, around).cumsum(axis=axis)
            ends = np.arange(x.shape[axis])
            x = total.take(ends + 2 * halo + 1, axis) - total.take(ends, axis)
        return x

    whole = near(frame)
    for t in tiles(*cut):
        part = near(frame[t.read_top : t.read_bottom, t.read_left : t.read_right])
        y, x = t.top - t.read_top, t.left - t.read_left
        inner = part[y : y + t.bottom - t.top, x : x + t.right - t.left]
        assert np.array_equal(inner, whole[t.top : t.bottom, t.left : t.right])


def test_a_tile_on_a_smaller_map() -> None:
    tile = Tile(32, 64, 48, 80, 16, 96, 0, 112)
    assert tile.scaled(16) == Tile(2, 4, 3, 5, 1, 6, 0, 7)
    assert tile.scaled(1) == tile


@given(
    height=st.integers(1, 500).map(lambda n: 16 * n),
    width=st.integers(1, 500).map(lambda n: 16 * n),
    halo=st.integers(0, 300),
    bytes_per_pixel=st.floats(1, 1000),
    budget=st.floats(0, 1e10),
)
def test_tiles_stay_below_the_budget(
    height: int, width: int, halo: int, bytes_per_pixel: float, budget: float
) -> None:
    size = tile_for_budget(height, width, halo, 16, bytes_per_pixel, budget)
    if size is None:
        assert height * width * bytes_per_pixel <= budget
        return
    assert height * width * bytes_per_pixel > budget
    assert size % 16 == 0
    assert size >= 64
    if size > 64:  # the smallest tile is what it is
        worst = (size + 2 * round_up(halo, 16)) ** 2
        assert worst * bytes_per_pixel <= budget


@pytest.mark.parametrize("budget", [1e6, 1e7, 1e8, 1e9])
def test_a_larger_budget_never_means_smaller_tiles(budget: float) -> None:
    small = tile_for_budget(4320, 7680, 256, 16, 216.0, budget)
    large = tile_for_budget(4320, 7680, 256, 16, 216.0, 2 * budget)
    assert small is not None
    assert large is None or large >= small
