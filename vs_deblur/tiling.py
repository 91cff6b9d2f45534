"""Sizes and tiles. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def padded_size(
    height: int, width: int, multiple: int, minimum: int, width_multiple: int | None = None
) -> tuple[int, int]:
    """The size at which a network runs a frame of (height, width).

    Args:
        height, width: of the frame.
        multiple, minimum: the network's ``multiple_of`` and ``minimum``.
        width_multiple: its ``width_multiple_of``; None for the same as the height's.
    """
    least, columns = (width_multiple or minimum), (width_multiple or multiple)
    return round_up(max(height, minimum), multiple), round_up(max(width, least), columns)


@dataclass(frozen=True)
class Tile:
    """A rectangle to be computed and the larger one that is read for it, in pixels.

    ``top:bottom, left:right`` is written; ``read_*`` is read: the same with a halo on each side
    that ends at the frame's border. All are multiples of the network's ``multiple_of``.
    """

    top: int
    bottom: int
    left: int
    right: int
    read_top: int
    read_bottom: int
    read_left: int
    read_right: int

    def scaled(self, divisor: int) -> Tile:
        """The same rectangles on a map that is ``divisor`` times smaller."""
        return Tile(
            *(v // divisor for v in (self.top, self.bottom, self.left, self.right)),
            *(v // divisor for v in (self.read_top, self.read_bottom)),
            *(v // divisor for v in (self.read_left, self.read_right)),
        )


def tiles(height: int, width: int, size: int, halo: int, multiple: int) -> Iterator[Tile]:
    """Cut a frame into tiles that cover each pixel once.

    Args:
        height, width: of the padded frame, multiples of ``multiple``.
        size: largest height and width written by a tile, a multiple of ``multiple``.
        halo: pixels read around it, at least; rounded up to ``multiple``.
        multiple: the network's ``multiple_of``.
    """
    halo = round_up(halo, multiple)
    for top in range(0, height, size):
        bottom = min(top + size, height)
        for left in range(0, width, size):
            right = min(left + size, width)
            yield Tile(
                top,
                bottom,
                left,
                right,
                max(top - halo, 0),
                min(bottom + halo, height),
                max(left - halo, 0),
                min(right + halo, width),
            )


def tile_for_budget(
    height: int, width: int, halo: int, multiple: int, bytes_per_pixel: float, budget: float
) -> int | None:
    """The largest tile whose memory stays below a budget.

    Args:
        height, width: of the padded frame.
        halo: pixels read around a tile.
        multiple: the network's ``multiple_of``.
        bytes_per_pixel: memory of a step, per pixel that is read.
        budget: bytes.

    Returns:
        the tile's size, at least ``4 * multiple``; None if the whole frame fits.
    """
    if height * width * bytes_per_pixel <= budget:
        return None
    side = int((budget / bytes_per_pixel) ** 0.5) - 2 * round_up(halo, multiple)
    return max(side // multiple, 4) * multiple


@dataclass(frozen=True)
class Patch:
    """A rectangle that is computed by itself and blended into its neighbours, in pixels.

    Attributes:
        top, bottom, left, right: what is read and written.
        rows, columns: weight of each row and each column, 0..1. The weight of a pixel is the
            product; those of all patches over a pixel add up to 1.
    """

    top: int
    bottom: int
    left: int
    right: int
    rows: tuple[float, ...]
    columns: tuple[float, ...]


def _spans(length: int, size: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """Spans that cover a length; neighbours share ``overlap`` pixels, rounded up."""
    if size >= length:
        return [(0, length)]
    half = round_up(-(-overlap // 2), multiple)
    count = -(-length // (size - 2 * half))
    # Even cores, so that the last one is not a sliver.
    cuts = [round(i * length / count / multiple) * multiple for i in range(count)] + [length]
    return [(max(a - half, 0), min(b + half, length)) for a, b in pairwise(cuts)]


def _ramps(spans: list[tuple[int, int]]) -> list[tuple[float, ...]]:
    """Weights of each span: linear from 0 to 1 where it shares pixels with a neighbour."""
    found = []
    for i, (start, end) in enumerate(spans):
        before = spans[i - 1][1] if i else start
        after = spans[i + 1][0] if i + 1 < len(spans) else end
        weights = []
        for x in range(start, end):
            weight = 1.0
            if x < before:  # centres of pixels, so that both ramps add up to 1
                weight = (x + 0.5 - start) / (before - start)
            if x >= after:
                weight = min(weight, 1.0 - (x + 0.5 - after) / (end - after))
            weights.append(weight)
        found.append(tuple(weights))
    return found


def least_patch(overlap: int, multiple: int) -> int:
    """The smallest size of patches with which no pixel lies under three of a row.

    Cores are at least two thirds of ``size - overlap`` where there are three and more; they must
    hold two half overlaps.
    """
    return 5 * round_up(-(-overlap // 2), multiple) + 2 * multiple


def patches(height: int, width: int, size: int, overlap: int, multiple: int) -> Iterator[Patch]:
    """Cut a picture into overlapping patches for networks whose reach is too far for a halo.

    Args:
        height, width: of the padded picture, multiples of ``multiple``.
        size: height and width of a patch at most, a multiple of ``multiple``.
        overlap: pixels that neighbours share, rounded up to twice a multiple.
        multiple: the network's ``multiple_of``.

    Raises:
        ValueError: patches so small that three would lie over a pixel.
    """
    least = least_patch(overlap, multiple)
    if size < least and size < max(height, width):
        raise ValueError(f"patches of {size} pixels are too small, the least is {least}")
    rows = _spans(height, size, overlap, multiple)
    columns = _spans(width, size, overlap, multiple)
    for (top, bottom), down in zip(rows, _ramps(rows), strict=True):
        for (left, right), across in zip(columns, _ramps(columns), strict=True):
            yield Patch(top, bottom, left, right, down, across)
