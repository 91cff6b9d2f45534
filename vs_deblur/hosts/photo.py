"""Photos: from a file through the engine into a file.

The engine sees the colours in the file's own encoding and depth, as RGB, upright. Alpha, other
channels and metadata go round it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vs_deblur.photofile import Picture
from vs_deblur.photofile.convert import straight
from vs_deblur.photofile.picture import Samples

if TYPE_CHECKING:
    from vs_deblur.engine import Progress

Mask = NDArray[np.bool_]


class Engine(Protocol):
    """What is needed of :class:`~vs_deblur.engine.Deblurrer`."""

    def photo(self, picture: NDArray[Any], /, *, progress: Progress | None = None) -> NDArray[Any]:
        """Deblur (H, W, 3) uint8, uint16 or float32; report tiles done and tiles in all."""


class Unchanged:
    """An engine that changes nothing: strength 0."""

    def photo(self, picture: NDArray[Any], /, *, progress: Progress | None = None) -> NDArray[Any]:
        """The picture itself."""
        return picture


def deblur(picture: Picture, engine: Engine, progress: Progress | None = None) -> Picture:
    """Deblur a picture. What the engine leaves as it is comes out bit by bit as it was.

    Args:
        picture: as it came from its file.
        engine: what deblurs.
        progress: told of tiles done and tiles in all; may raise to give up.

    Returns:
        the picture with other colours; everything else is shared with the one that came.
    """
    count = picture.colours
    colours = picture.samples[..., :count]
    if picture.alpha is None:
        sharp = _through(colours, engine, progress)
    else:
        alpha = picture.samples[..., count : count + 1]
        if picture.alpha == "straight":
            sharp = _straight(colours, alpha, engine, progress)
        else:
            sharp = _associated(picture, alpha, engine, progress)
    if picture.samples.shape[2] > count:
        sharp = np.concatenate([sharp, picture.samples[..., count:]], axis=2)
    return replace(picture, samples=sharp, lost=list(picture.lost))


def _through(colours: Samples, engine: Engine, progress: Progress | None) -> Samples:
    """Colours, (H, W, 1) or (H, W, 3), through the engine, in its types."""
    kind = colours.dtype
    given = colours.astype(np.float32) if kind == np.float16 else colours
    if colours.shape[2] == 1:
        given = np.repeat(given, 3, axis=2)
    sharp = engine.photo(np.ascontiguousarray(given), progress=progress)
    if colours.shape[2] == 1:
        sharp = _grey(sharp)
    if kind == np.float16:
        limits = np.finfo(np.float16)
        sharp = np.clip(sharp, limits.min, limits.max).astype(np.float16)
    return sharp


def _grey(rgb: Samples) -> Samples:
    """The mean of three planes. They were equal: what differs between them now is an error."""
    if rgb.dtype.kind == "f":
        # Of equal planes the mean is to be that plane, to the bit.
        low, middle, high = (rgb[..., i : i + 1] for i in range(3))
        mean = (low + middle + high) / np.float32(3)
        grey: Samples = np.where((low == middle) & (middle == high), low, mean)
    else:
        grey = (rgb.sum(axis=2, keepdims=True, dtype=np.uint32) + 1) // 3
    return grey.astype(rgb.dtype, copy=False)


def _straight(
    colours: Samples, alpha: Samples, engine: Engine, progress: Progress | None
) -> Samples:
    """Colours that alpha does not touch. Those that cannot be seen come back as they were."""
    visible: Mask = alpha[..., 0] > 0
    if visible.all():
        return _through(colours, engine, progress)
    sharp = _through(fill(colours, visible), engine, progress)
    return np.where(visible[..., np.newaxis], sharp, colours)


def _associated(
    picture: Picture, alpha: Samples, engine: Engine, progress: Progress | None
) -> Samples:
    """Colours multiplied with alpha: the engine sees them divided, its change is multiplied."""
    colours = picture.samples[..., : picture.colours]
    plain = straight(picture)[..., : picture.colours]
    sharp = _straight(plain, alpha, engine, progress)
    full = 1.0 if picture.is_float else float(np.iinfo(alpha.dtype).max)
    share = alpha.astype(np.float32) / np.float32(full)
    change = (sharp.astype(np.float32) - plain.astype(np.float32)) * share
    result: Samples = colours + (change if picture.is_float else np.rint(change))
    if not picture.is_float:
        result = np.clip(result, 0, np.maximum(colours, alpha))
    return result.astype(colours.dtype)


def fill(colours: Samples, visible: Mask) -> Samples:
    """Give pixels that cannot be seen the colours of seen ones near them.

    Means over squares of 2, 4, 8… pixels: each pixel gets that of the smallest square around it in
    which anything is seen. So the network sees no edge where there is none.

    Args:
        colours: (H, W, C).
        visible: (H, W).

    Returns:
        an array of the same shape and type; seen pixels are as they were.
    """
    result = colours.copy()
    rows, columns = np.nonzero(~visible)
    weights = visible[..., np.newaxis].astype(np.float32)
    # Of seen ones alone, and finite: what is hidden may be anything.
    sums = np.where(visible[..., np.newaxis], colours, 0).astype(np.float32)
    if colours.dtype.kind == "f":
        sums = np.nan_to_num(sums)
    level = 0
    while len(rows) and max(weights.shape[:2]) > 1:
        level += 1
        weights, sums = _halved(weights), _halved(sums)
        weight = weights[rows >> level, columns >> level]
        found = weight[:, 0] > 0
        y, x = rows[found], columns[found]
        means = sums[y >> level, x >> level] / weight[found]
        result[y, x] = means if colours.dtype.kind == "f" else np.rint(means)
        rows, columns = rows[~found], columns[~found]
    result[rows, columns] = 0  # nothing is seen anywhere
    return result


def _halved(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums over squares of 2 pixels, (⌈H/2⌉, ⌈W/2⌉, C)."""
    height, width, _ = array.shape
    rows = array[0::2].copy()
    rows[: height // 2] += array[1::2]
    result = rows[:, 0::2].copy()
    result[:, : width // 2] += rows[:, 1::2]
    return result
