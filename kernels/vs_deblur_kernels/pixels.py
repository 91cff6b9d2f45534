"""Pixel formats: how the samples of a frame are to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

Family = Literal["yuv", "rgb", "gray"]
Matrix = Literal["709", "601", "2020", "240m", "fcc"]
ChromaLocation = Literal["left", "center", "topleft", "top", "bottomleft", "bottom"]
ChromaFilter = Literal["bilinear", "bicubic"]

# Kr and Kb of Rec. ITU-T H.273, table 4.
LUMA_COEFFICIENTS: dict[Matrix, tuple[float, float]] = {
    "709": (0.2126, 0.0722),
    "601": (0.299, 0.114),
    "2020": (0.2627, 0.0593),
    "240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
}


@dataclass(frozen=True)
class PixelFormat:
    """How samples are to be read.

    Attributes:
        family: "yuv" and "rgb" have three planes, "gray" one.
        bits: 8..16 for integers; 16 or 32 for floats.
        is_float: floats are 0..1 (chroma -0.5..0.5) and may go beyond.
        subsampling: log2 of the horizontal and vertical reduction of chroma.
        matrix: YUV matrix (also the weights of grey).
        full_range: 0..2^bits-1 if true, else 16..235 (chroma 16..240) times 2^(bits-8).
        chroma_location: siting of subsampled chroma.
    """

    family: Family = "yuv"
    bits: int = 8
    is_float: bool = False
    subsampling: tuple[int, int] = (0, 0)
    matrix: Matrix = "709"
    full_range: bool = False
    chroma_location: ChromaLocation = "left"

    def __post_init__(self) -> None:
        if self.is_float and self.bits not in (16, 32):
            raise ValueError(f"float samples must have 16 or 32 bits, not {self.bits}")
        if not self.is_float and not 8 <= self.bits <= 16:
            raise ValueError(f"integer samples must have 8 to 16 bits, not {self.bits}")
        if self.family != "yuv" and self.subsampling != (0, 0):
            raise ValueError(f"{self.family} planes cannot be subsampled")
        if self.matrix not in LUMA_COEFFICIENTS:
            raise ValueError(f"unknown matrix {self.matrix!r}")

    @property
    def planes(self) -> int:
        """Number of planes."""
        return 1 if self.family == "gray" else 3

    @property
    def peak(self) -> float:
        """Largest sample value (1 for floats)."""
        return 1.0 if self.is_float else float((1 << self.bits) - 1)

    @property
    def luma_scale(self) -> float:
        """Sample units between black and white."""
        if self.is_float:
            return 1.0
        return self.peak if self.full_range else float(219 << (self.bits - 8))

    @property
    def luma_offset(self) -> float:
        """Sample value of black."""
        if self.is_float or self.full_range:
            return 0.0
        return float(16 << (self.bits - 8))

    @property
    def chroma_scale(self) -> float:
        """Sample units of a chroma difference of 1 (from -0.5 to 0.5)."""
        if self.is_float:
            return 1.0
        return self.peak if self.full_range else float(224 << (self.bits - 8))

    @property
    def chroma_offset(self) -> float:
        """Sample value of no colour."""
        return 0.0 if self.is_float else float(1 << (self.bits - 1))

    def plane_shape(self, height: int, width: int, plane: int) -> tuple[int, int]:
        """Height and width of a plane of a frame."""
        if plane == 0 or self.family != "yuv":
            return height, width
        sw, sh = self.subsampling
        return -(-height >> sh), -(-width >> sw)

    @property
    def chroma_site(self) -> tuple[float, float]:
        """Where the first chroma sample of a 4:2:0 frame sits, in luma samples.

        Horizontally and vertically; 0 is on the first luma sample, 1/2 between it and the second:
        Rec. ITU-T H.273, figure 1.
        """
        location = self.chroma_location
        column = 0.0 if location in ("left", "topleft", "bottomleft") else 0.5
        row = {"t": 0.0, "b": 1.0}.get(location[0], 0.5)
        return column, row


# ---------------------------------------------------------------------------------- chroma filters


@dataclass(frozen=True)
class Taps:
    """Weights of consecutive samples; where they begin is said by who makes them.

    Attributes:
        first: index of the first sample.
        weights: of the samples from there on; their sum is 1. Some may be 0.
    """

    first: int
    weights: tuple[float, ...]


def filter_taps(chroma: ChromaFilter) -> int:
    """How many samples a chroma filter interpolates between.

    Raises:
        ValueError: no such filter.
    """
    taps = {"bilinear": 2, "bicubic": 4}.get(chroma)
    if taps is None:
        raise ValueError(f"the chroma filter must be bilinear or bicubic, not {chroma!r}")
    return taps


def _kernel(chroma: ChromaFilter, distance: float) -> float:
    """Weight of a sample at a distance, in samples.

    The triangle; or the cubic of Mitchell and Netravali 1988 with b = 0 and c = 1/2 (Catmull-Rom),
    the default of VapourSynth.
    """
    d = abs(distance)
    if chroma == "bilinear":
        return max(0.0, 1.0 - d)
    if d < 1.0:
        return 1.0 + d * d * (1.5 * d - 2.5)
    return 2.0 + d * (-4.0 + d * (2.5 - 0.5 * d)) if d < 2.0 else 0.0


@cache
def doubling_taps(chroma: ChromaFilter, site: float, parity: int) -> Taps:
    """How luma sample 2 i + parity sees chroma: ``first`` counts from chroma sample i.

    Samples beyond the ends are those within, mirrored, the end itself repeated: -1 is 0, -2 is 1.
    The samples are the same whatever the site; some of their weights are 0 then.

    Args:
        chroma: the filter.
        site: where chroma sample 0 sits, in luma samples: 0, 1/2 or 1.
        parity: 0 or 1.

    Raises:
        ValueError: no such filter.
    """
    taps = filter_taps(chroma)
    first = parity - taps // 2
    position = (parity - site) / 2
    return Taps(first, tuple(_kernel(chroma, first + k - position) for k in range(taps)))


@cache
def halving_taps(chroma: ChromaFilter, site: float) -> Taps:
    """How chroma sample i is made of luma's size: ``first`` counts from luma sample 2 i.

    The filter of :func:`doubling_taps`, stretched to twice its width and normalised: [1 2 1]/4 for
    the bilinear one where chroma sits on a luma sample, [1 3 3 1]/8 where it sits between two.

    Raises:
        ValueError: no such filter.
    """
    taps = filter_taps(chroma)
    first = 1 - taps
    weights = [_kernel(chroma, (first + k - site) / 2) for k in range(2 * taps)]
    total = math.fsum(weights)
    return Taps(first, tuple(w / total for w in weights))
