"""Pixel formats: how the samples of a frame are to be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["yuv", "rgb", "gray"]
Matrix = Literal["709", "601", "2020", "240m", "fcc"]
ChromaLocation = Literal["left", "center", "topleft", "top", "bottomleft", "bottom"]

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
    def _cosited(self) -> tuple[bool, bool]:
        """Whether chroma sits on luma samples horizontally, and vertically."""
        return (
            self.chroma_location in ("left", "topleft", "bottomleft"),
            self.chroma_location in ("topleft", "top"),
        )
