"""How steady a clip is along its motion.

What is wrong with a frame, its residual, is out - sharp where the sharp frame is known, and what
was done to it, out - in, where not. A residual that moves with the scene is seen as a property of
the things in it; one that changes from frame to frame is seen as flicker. Two figures, in code
values of 8 bits:

- flicker: root mean square of ``e(t) - warp(e(t - 1))``, e being the residual, over the pixels
  whose motion is known. 0 for a residual that moves along, ``s * sqrt(2)`` for one that is noise
  of standard deviation s, new in every frame (somewhat less where the motion is not of whole
  pixels: interpolation averages noise).
- pumping: standard deviation over time of a frame's mean residual: brightness that goes up and
  down.

The motion comes from guides that are not judged, the sharp frames or what goes in, so that all who
are compared are judged along the same motion. Whoever has an optical flow gives it; where it does
not explain a guide by the one before (what was hidden, what lies outside, errors of the flow), the
pixel does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vs_deblur.errors import InputError
from vs_deblur.metrics import Image

Flow = NDArray[Any]
"""(2, H, W): how far down and to the right of each pixel, in pixels, the same thing is in the frame
before."""
Residual = NDArray[Any]
"""(H, W, 3), code values of 8 bits, signed."""

TOLERANCE = 10.0
"""By how much a guide may differ from the warped one, code values (mean over the channels)."""
_BORDER = 2  # pixels that bicubic interpolation reaches


def warp(before: NDArray[Any], flow: Flow) -> NDArray[np.float64]:
    """The frame before, brought to where things are now, by bicubic interpolation.

    Args:
        before: (H, W, C).
        flow: where to look.

    Returns:
        (H, W, C); what lies outside is that of the border.

    Raises:
        InputError: shapes that do not belong together.
    """
    import torch
    from torch.nn.functional import grid_sample

    height, width = before.shape[:2]
    if before.ndim != 3 or flow.shape != (2, height, width):
        raise InputError(f"a flow of {flow.shape} does not belong to frames of {before.shape}")
    y, x = _sources(flow)
    # Pixel centres at the corners of -1..1; a side of one pixel has no scale.
    grid = np.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), axis=-1)
    moved = grid_sample(
        torch.from_numpy(before.astype(np.float64)).permute(2, 0, 1)[None],
        torch.from_numpy(grid)[None],
        mode="bicubic",
        padding_mode="border",
        align_corners=True,
    )
    return np.asarray(moved[0].permute(1, 2, 0).numpy())


def _sources(flow: Flow) -> NDArray[np.float64]:
    """Where each pixel was, (2, H, W)."""
    return np.mgrid[: flow.shape[1], : flow.shape[2]] + flow.astype(np.float64)


@dataclass(frozen=True)
class Motion:
    """From the frame before to a frame.

    Attributes:
        flow: where things were.
        valid: (H, W) bool: where the flow explains the guide.
        error: root mean square of what it leaves of the guide there, code values: what a residual
            as detailed as the guide would seem to flicker by. NaN where no pixel is valid.
    """

    flow: Flow
    valid: NDArray[np.bool_]
    error: float

    @property
    def share(self) -> float:
        """Share of the pixels that count, 0..1."""
        return float(self.valid.mean())


def motion_between(
    guide: Image,
    before: Image,
    estimate: Callable[[Image, Image], Flow],
    tolerance: float = TOLERANCE,
) -> Motion:
    """The motion of the scene, and where it is known.

    Args:
        guide: a frame, (H, W, 3) uint8.
        before: the one before it.
        estimate: an optical flow: of ``guide`` and ``before``.
        tolerance: see :data:`TOLERANCE`.

    Raises:
        InputError: frames of different sizes, or a flow of another.
    """
    if guide.shape != before.shape:
        raise InputError(f"frames of different sizes: {guide.shape}, {before.shape}")
    flow = estimate(guide, before)
    difference = guide - warp(before, flow)
    valid = np.abs(difference).mean(axis=2) <= tolerance
    for source, size in zip(_sources(flow), valid.shape, strict=True):
        valid &= (source >= min(_BORDER, size - 1)) & (source <= max(size - 1 - _BORDER, 0))
    squares = difference[valid] ** 2
    return Motion(flow, valid, math.sqrt(squares.mean()) if squares.size else math.nan)


@dataclass
class Flicker:
    """Collects the residuals of a clip, in order.

    Attributes:
        changes: mean absolute change along the motion of each pair of frames, code values; NaN
            where no pixel's motion is known.
    """

    changes: list[float] = field(default_factory=list)
    _squares: float = 0.0
    _samples: int = 0
    _residuals: float = 0.0
    _all: int = 0
    _means: list[list[float]] = field(default_factory=list)
    _before: Residual | None = None

    def add(self, residual: Residual, motion: Motion | None) -> None:
        """Count a frame.

        Args:
            residual: what is wrong with it, or was done to it.
            motion: from the frame before; None for a frame that has none before it.
        """
        residual = np.asarray(residual, dtype=np.float64)
        if motion is None:
            self._means.append([])
        elif self._before is None:
            raise InputError("the first frame has none before it")
        else:
            change = (residual - warp(self._before, motion.flow))[motion.valid]
            self._squares += float((change**2).sum())
            self._samples += change.size
            self.changes.append(float(np.abs(change).mean()) if change.size else math.nan)
        self._residuals += float((residual**2).sum())
        self._all += residual.size
        self._means[-1].append(float(residual.mean()))
        self._before = residual

    @property
    def value(self) -> float | None:
        """The flicker, code values; None where nothing could be followed."""
        return math.sqrt(self._squares / self._samples) if self._samples else None

    @property
    def pumping(self) -> float | None:
        """Standard deviation of the mean residual in time, code values; None of single frames.

        Of several runs each varies around its own mean.
        """
        runs = [np.asarray(m) for m in self._means if len(m) > 1]
        if not runs:
            return None
        squares = sum(float(((m - m.mean()) ** 2).sum()) for m in runs)
        return math.sqrt(squares / sum(m.size for m in runs))

    @property
    def residual(self) -> float | None:
        """Root mean square of the residuals themselves, code values."""
        return math.sqrt(self._residuals / self._all) if self._all else None
