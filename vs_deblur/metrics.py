"""How near a frame is to the sharp one, and how steady a clip is.

All figures are of 8-bit RGB frames, (H, W, 3) uint8 arrays: what a viewer gets to see.

- :func:`psnr`: peak signal-to-noise ratio over the three channels together.
- :func:`ssim`: structural similarity of Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment:
  from error visibility to structural similarity", IEEE Transactions on Image Processing 13(4),
  2004: Gaussian window with sigma 1.5 (11x11), K1 = 0.01, K2 = 0.03, no sample covariance, each
  channel of RGB by itself, borders of 5 pixels left out. scikit-image computes the same with
  ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``.
- :func:`temporal_psnr`: PSNR of the differences between consecutive frames, against those of the
  sharp clip. Flicker lowers it although every single frame may be near.
- :class:`Pulse`: how much more the correction changes across segment borders than elsewhere.

Identical frames have an infinite PSNR. :func:`mean` leaves infinite and undefined figures out, and
whoever prints it says how many there were.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vs_deblur.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Image = NDArray[np.uint8]

_SIGMA = 1.5
_RADIUS = 5  # int(3.5 * sigma + 0.5)
_C1, _C2 = 0.01**2, 0.03**2

SSIM_MINIMUM = 2 * _RADIUS + 1
"""Smallest height and width that have an SSIM, pixels."""


def _check(a: Image, b: Image) -> None:
    for image in (a, b):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(f"frames must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    if a.shape != b.shape:
        raise InputError(
            f"frames of different sizes: {a.shape[1]}x{a.shape[0]}, {b.shape[1]}x{b.shape[0]}"
        )


def _decibels(squares: int, count: int) -> float:
    """PSNR of a sum of squared differences of 8-bit values; infinite for 0."""
    return 10.0 * math.log10(255.0**2 * count / squares) if squares else math.inf


def _sum_of_squares(difference: NDArray[np.int16]) -> int:
    # Exact: 510**2 * 3 fits int32 and the sum is taken in int64.
    wide = difference.astype(np.int32).ravel()
    return int(np.sum(wide * wide, dtype=np.int64))


def psnr(a: Image, b: Image) -> float:
    """Peak signal-to-noise ratio of two frames.

    Args:
        a, b: (H, W, 3) uint8.

    Returns:
        decibels; infinite if the frames are identical.

    Raises:
        InputError: not such frames, or of different sizes.
    """
    _check(a, b)
    return _decibels(_sum_of_squares(a.astype(np.int16) - b), a.size)


def temporal_psnr(a: Image, a_before: Image, b: Image, b_before: Image) -> float:
    """PSNR of the change from one frame to the next, against the change in another clip.

    Args:
        a, a_before: a frame and the one before it, (H, W, 3) uint8.
        b, b_before: the same frames of the clip to compare with.

    Returns:
        decibels, for a peak of 255; infinite if both changed alike.

    Raises:
        InputError: not such frames, or of different sizes.
    """
    for other in (a_before, b, b_before):
        _check(a, other)
    change = a.astype(np.int16) - a_before
    return _decibels(_sum_of_squares(change - (b.astype(np.int16) - b_before)), a.size)


def _gaussian() -> list[float]:
    weights = [math.exp(-0.5 * (i / _SIGMA) ** 2) for i in range(-_RADIUS, _RADIUS + 1)]
    return [w / sum(weights) for w in weights]


def _blur(x: Tensor, weights: list[float]) -> Tensor:
    """Gaussian means of (C, H, W), where the whole window lies inside: (C, H - 10, W - 10).

    Sums of shifted views: in float64, which a convolution needs many times as long for.
    """
    for axis in (-1, -2):
        length = x.shape[axis] - 2 * _RADIUS
        out = x.narrow(axis, 0, length) * weights[0]
        for i, w in enumerate(weights[1:], 1):
            out.add_(x.narrow(axis, i, length), alpha=w)
        x = out
    return x


def ssim(a: Image, b: Image) -> float:
    """Structural similarity of two frames; the definition is in the module's docstring.

    Args:
        a, b: (H, W, 3) uint8, at least 11x11.

    Returns:
        -1..1, 1 for identical frames; NaN for frames smaller than the window.

    Raises:
        InputError: not such frames, or of different sizes.
    """
    import torch

    _check(a, b)
    if min(a.shape[:2]) < SSIM_MINIMUM:
        return math.nan
    # (3, H, W), 0..1. In float64: a variance is a small difference of large numbers.
    x, y = (torch.from_numpy(i.transpose(2, 0, 1).astype(np.float64) / 255.0) for i in (a, b))
    weights = _gaussian()
    mean_x, mean_y = _blur(x, weights), _blur(y, weights)
    covariance = _blur(x * y, weights) - mean_x * mean_y
    variances = _blur(x * x + y * y, weights) - mean_x**2 - mean_y**2
    similarity = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    similarity /= (mean_x**2 + mean_y**2 + _C1) * (variances + _C2)
    return float(similarity.mean())


@dataclass
class Pulse:
    """How steady the correction is across the borders of segments.

    A recurrence that starts afresh in each segment may correct its first frames differently. The
    correction of a frame is what was added to the blurred one; its change is the mean absolute
    difference, in levels of 255, from the correction of the frame before.
    """

    borders: list[float] = field(default_factory=list)
    elsewhere: list[float] = field(default_factory=list)

    def add(self, change: float, at_border: bool) -> None:
        """Count the change of the correction from one frame to the next."""
        (self.borders if at_border else self.elsewhere).append(change)

    @property
    def ratio(self) -> float | None:
        """Mean change across borders to mean change elsewhere: 1 is no pulse at all.

        None where there is no border or nothing to compare it with.
        """
        if not self.borders or not self.elsewhere or not any(self.elsewhere):
            return None
        across = sum(self.borders) / len(self.borders)
        return across / (sum(self.elsewhere) / len(self.elsewhere))


def correction_change(
    out: Image, blurred: Image, out_before: Image, blurred_before: Image
) -> float:
    """Mean absolute change of ``out - blurred`` from one frame to the next, in levels of 255."""
    for other in (blurred, out_before, blurred_before):
        _check(out, other)
    now = out.astype(np.int16) - blurred
    return float(np.abs(now - (out_before.astype(np.int16) - blurred_before)).mean())


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the finite figures; None if there is none."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return sum(finite) / len(finite) if finite else None
