"""A picture in memory: samples, and everything that belongs to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vs_deblur.errors import InputError

Samples = NDArray[Any]
Format = Literal["jpeg", "png", "tiff", "webp"]
Alpha = Literal["straight", "associated"]
Unit = Literal["inch", "cm", "metre", "none"]

#: centimetres of a unit of length
_CENTIMETRES: dict[str, float] = {"inch": 2.54, "cm": 1.0, "metre": 100.0}


@dataclass(frozen=True)
class Density:
    """Pixels for a unit of length; with the unit "none" only the ratio means anything."""

    x: float
    y: float
    unit: Unit

    def to(self, unit: Unit) -> Density:
        """The same in another unit; as it is if one of them is no length."""
        if unit == self.unit or "none" in (unit, self.unit):
            return self
        factor = _CENTIMETRES[unit] / _CENTIMETRES[self.unit]
        return Density(self.x * factor, self.y * factor, unit)

    def turned(self) -> Density:
        """For the picture on its side."""
        return Density(self.y, self.x, self.unit)


@dataclass
class Metadata:
    """What a file says about its picture, as bytes that go unchanged from file to file.

    Attributes:
        icc: ICC profile.
        exif: a TIFF structure (no ``Exif`` header) with EXIF and all else that is kept in tags.
        xmp: an XMP packet.
        photoshop: image resources of Adobe Photoshop (``8BIM…``), IPTC is among them.
        iptc: IPTC records in a place of their own (TIFF).
        density: pixels for a unit of length.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    photoshop: bytes | None = None
    iptc: bytes | None = None
    density: Density | None = None


@dataclass
class Picture:
    """A picture as it was in its file.

    Attributes:
        samples: (H, W, C) uint8, uint16, float16 or float32: the colours, then alpha if there is
            one, then channels of no known meaning.
        colours: 1 (grey) or 3 (RGB).
        alpha: how colours and alpha relate; "associated" means multiplied. None: no alpha.
        format: of the file that it came from; None for one that we do not write.
        meta: what the file says about it.
        native: what only its own format knows and takes back, see the module of the format.
        lost: what the file had that no output will have, in words.
    """

    samples: Samples
    colours: int
    alpha: Alpha | None = None
    format: Format | None = None
    meta: Metadata = field(default_factory=Metadata)
    native: Any = None
    lost: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.samples.shape[1], self.samples.shape[0]

    @property
    def bits(self) -> int:
        """Bits of a sample."""
        return 8 * self.samples.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether samples are floats."""
        return self.samples.dtype.kind == "f"

    @property
    def extras(self) -> int:
        """Number of channels that are neither colour nor alpha."""
        channels: int = self.samples.shape[2]
        return channels - self.colours - (self.alpha is not None)

    def describe(self) -> str:
        """Size and kind of samples in a few words."""
        kind = {1: "grey", 3: "RGB"}[self.colours] + (" + alpha" if self.alpha else "")
        depth = f"{self.bits}-bit float" if self.is_float else f"{self.bits} bit"
        return f"{self.size[0]}x{self.size[1]} {kind}, {depth}"


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture by the size that its header states, before anything is decoded.

    Raises:
        InputError: empty, or larger than allowed.
    """
    if width < 1 or height < 1:
        raise InputError(f"the picture has no pixels: {width}x{height}")
    if width * height > max_pixels:
        raise InputError(
            "the picture has {}x{} pixels, {}; {} are allowed".format(
                width, height, *_counts(width * height, max_pixels)
            ),
            None,
            "allow more with --max-pixels if the file is to be trusted",
        )


def _counts(*numbers: int) -> list[str]:
    """Numbers to be compared: in millions if that tells them apart, else to the last digit."""
    exact = [f"{n:,}" for n in numbers]
    short = [
        f"{n / 1e6:,.1f}".removesuffix(".0") + " million" if n >= 1_000_000 else text
        for n, text in zip(numbers, exact, strict=True)
    ]
    return short if len(set(short)) == len(set(exact)) else exact


def damaged(what: str) -> InputError:
    """The error for a file that is cut off or broken."""
    return InputError(what, None, "get the file anew, or save it again with another program")


def needs_rgb(kind: str) -> InputError:
    """The error for a colour model that networks do not see in."""
    return InputError(
        f"{kind} pictures are not supported",
        None,
        "convert it to RGB or grey first, with the program that made it",
    )


def one_picture(count: int, what: str) -> InputError:
    """The error for a file of several pictures."""
    return InputError(f"{what} of {count} pictures", None, "save the one that you want by itself")


def as_channels(samples: Samples) -> Samples:
    """(H, W) as (H, W, 1); (H, W, C) as it is."""
    return samples[..., np.newaxis] if samples.ndim == 2 else samples


def scaled_to_8(samples: Samples, bits: int) -> Samples:
    """Samples of 1, 2 or 4 bits as uint8 with the same black and white."""
    return samples.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
