"""Sizes and tiles. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def padded_size(height: int, width: int, multiple: int, minimum: int) -> tuple[int, int]:
    """The size at which a network runs a frame of (height, width)."""
    return (
        round_up(max(height, minimum), multiple),
        round_up(max(width, minimum), multiple),
    )


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
