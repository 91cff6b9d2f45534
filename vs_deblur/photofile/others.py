"""Formats that we read but do not write, through Pillow; and files that are refused by name."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from vs_deblur.errors import InputError
from vs_deblur.photofile import pillow
from vs_deblur.photofile.picture import (
    Density,
    Metadata,
    Picture,
    Samples,
    check_size,
    damaged,
    needs_rgb,
    one_picture,
)

if TYPE_CHECKING:
    from PIL import Image

# Raw files by suffix: many are TIFF files inside, with nothing but a preview in them for others.
RAW_SUFFIXES = frozenset(
    f".{name}"
    for names in (
        "3fr arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw",
        "nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f",
    )
    for name in names.split()
)
_RAW_MARKS = (
    b"IIRO",
    b"IIRS",
    b"MMOR",
    b"IIU\0",
    b"FUJIFILM",
    b"FOVb",
    b"\0MRM",
    b"II\x1a\0\0\0HE",
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
# They run programs of their own, or are no pictures of pixels.
_NEVER = frozenset(("EPS", "WMF", "PDF", "MPEG", "HDF5", "GRIB", "BUFR", "JPEG", "MPO", "PNG"))
_NEVER |= frozenset(("TIFF", "WEBP"))
_DECODED_AT_ONCE = (b"\0\0\1\0", b"\0\0\2\0")  # ICO, CUR: with pictures of other formats inside
_OF_8_BITS = frozenset(("BMP", "DIB", "GIF", "PPM", "TGA", "PCX", "AVIF", "JPEG2000", "ICO", "QOI"))


def is_raw(data: bytes) -> bool:
    """Whether a file's first bytes are those of a camera's raw format that is not quite TIFF."""
    return data.startswith(_RAW_MARKS) or data[8:10] == b"CR" or data[4:12] == b"ftypcrx "


def is_heif(data: bytes) -> bool:
    """Whether a file's first bytes are those of HEIF (HEIC)."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def read(data: bytes, max_pixels: int) -> Picture:
    """Read a file by whatever Pillow knows.

    Raises:
        InputError: not a picture, damaged, too large, or of a kind that is refused.
    """
    from PIL import Image

    Image.init()
    known = [name for name in Image.OPEN if name not in _NEVER]
    # What is only looked at may be of any size, so that the error can tell it.
    calm = pillow.limits(max_pixels=max_pixels if data.startswith(_DECODED_AT_ONCE) else None)
    with calm:
        try:
            image = Image.open(io.BytesIO(data), formats=known)
            count = getattr(image, "n_frames", 1)
        except Image.DecompressionBombError as error:
            raise InputError(
                f"a picture in it has more than {max_pixels:,} pixels",
                None,
                "allow more with --max-pixels if the file is to be trusted",
            ) from error
        except Exception as error:
            raise _not_a_picture(data) from error
    kind = image.format or ""
    if count > 1:
        raise one_picture(count, "an animation" if kind == "GIF" else f"a {kind} file")
    check_size(*image.size, max_pixels)
    if _is_deeper(data, kind):
        raise InputError(
            f"{kind} files of more than 8 bits a sample are not supported",
            None,
            "convert it to PNG or TIFF of 16 bits first",
        )
    with pillow.limits(max_pixels=max_pixels):
        try:
            image.load()
        except Exception as error:
            raise damaged(f"the picture cannot be decoded: {pillow.plain(error)}") from error
    lost = [] if kind in _OF_8_BITS else ["more than 8 bits a sample, if the file has them"]
    samples = _samples(image)
    channels = samples.shape[2]
    return Picture(
        samples,
        3 if channels >= 3 else 1,
        alpha="straight" if channels in (2, 4) else None,
        meta=_metadata(image),
        lost=lost,
    )


def _not_a_picture(data: bytes) -> InputError:
    if is_heif(data):
        return InputError(
            "HEIC files are not supported", None, "convert it to JPEG or to TIFF of 16 bits first"
        )
    start = "".join(chr(b) if 32 <= b < 127 else "." for b in data[:16])
    return InputError(
        f"not a picture that can be read (it begins with {start!r})",
        None,
        "JPEG, PNG, TIFF and WebP are, and most others that are not raw files",
    )


def _is_deeper(data: bytes, kind: str) -> bool:
    """Whether Pillow would give fewer bits than the file has."""
    if kind == "PPM":
        text = re.sub(rb"#[^\n]*\n", b"\n", data[:4096])
        found = re.match(rb"P([36])\s+\d+\s+\d+\s+(\d+)", text)
        return found is not None and int(found[2]) > 255
    if kind == "AVIF":
        at = data.find(b"av1C")
        return at >= 0 and bool(data[at + 6 : at + 7] >= b"\x40" and data[at + 6] & 0x40)
    if kind == "JPEG2000":
        if data.startswith(b"\xff\x4f"):  # depth is in SIZ, at the first component
            return (data[42] & 0x7F) + 1 > 8
        at = data.find(b"ihdr")
        return at >= 0 and (data[at + 14] & 0x7F) + 1 > 8
    return False


def _samples(image: Image.Image) -> Samples:
    """(H, W, C), palettes looked up.

    Raises:
        InputError: a mode that is no grey or RGB.
    """
    mode = image.mode
    if mode in ("P", "PA", "L", "RGB") and image.has_transparency_data:
        image = image.convert("LA" if mode == "L" else "RGBA")
    elif mode in ("P", "RGBX"):
        image = image.convert("RGB")
    if mode.startswith("I"):
        wide = np.asarray(image)
        if int(wide.min()) < 0 or int(wide.max()) > 65535:
            raise InputError("pictures of 32-bit integers are not supported")
        return wide.astype(np.uint16)[..., np.newaxis]
    if mode == "F":
        return np.asarray(image, np.float32)[..., np.newaxis]
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        raise needs_rgb(mode)
    return pillow.samples(image)


def _metadata(image: Image.Image) -> Metadata:
    info = image.info
    exif, xmp, dpi = info.get("exif"), info.get("xmp"), info.get("dpi")
    density = None
    if isinstance(dpi, tuple) and len(dpi) == 2 and all(float(v) > 0 for v in dpi):
        density = Density(float(dpi[0]), float(dpi[1]), "inch")
    return Metadata(
        icc=info.get("icc_profile") or None,
        exif=exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else None,
        xmp=xmp if isinstance(xmp, bytes) else None,
        density=density,
    )
