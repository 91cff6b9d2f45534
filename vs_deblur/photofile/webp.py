"""WebP: through Pillow; its chunks for profile, EXIF and XMP are read here."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vs_deblur.photofile import pillow
from vs_deblur.photofile.metadata import exif_with_density
from vs_deblur.photofile.picture import Metadata, Picture, check_size, damaged, one_picture

_QUALITY = 95  # of lossy files: their own is not to be read from them


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise damaged("the WebP file is cut off")
    at = 12
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > end:
            raise damaged("the WebP file is cut off or damaged")
        yield name, data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _size(name: bytes, content: bytes) -> tuple[int, int] | None:
    """The size that a chunk states, if it is one that does."""
    if name == b"VP8X" and len(content) >= 10:
        width, height = (int.from_bytes(content[i : i + 3], "little") for i in (4, 7))
        return width + 1, height + 1
    if name == b"VP8L" and len(content) >= 5 and content[0] == 0x2F:
        bits = int.from_bytes(content[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if name == b"VP8 " and len(content) >= 10 and content[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", content, 6)
        return width & 0x3FFF, height & 0x3FFF
    return None


def read(data: bytes, max_pixels: int) -> Picture:
    """Read a WebP file.

    Raises:
        InputError: damaged, too large, or animated.
    """
    found: dict[bytes, bytes] = {}
    size, frames = None, 0
    for name, content in _chunks(data):
        found.setdefault(name, content)
        frames += name == b"ANMF"
        size = size or _size(name, content)
    if frames > 1:
        raise one_picture(frames, "an animation")
    if size is None:
        raise damaged("the WebP file has no picture")
    check_size(*size, max_pixels)
    image = pillow.decode(data, "WEBP", size)
    if image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGB")
    samples = pillow.samples(image)
    exif = found.get(b"EXIF")
    meta = Metadata(
        icc=found.get(b"ICCP"),
        exif=exif.removeprefix(b"Exif\0\0") if exif else None,
        xmp=found.get(b"XMP "),
    )
    return Picture(
        samples,
        3,
        alpha="straight" if samples.shape[2] == 4 else None,
        format="webp",
        meta=meta,
        native=b"VP8L" in found,
    )


def write(picture: Picture) -> bytes:
    """A WebP file: lossless if the source was, or was of a lossless format.

    Args:
        picture: RGB, uint8, with or without straight alpha.

    Raises:
        InputError: too large for WebP.
    """
    lossless = picture.native if picture.format == "webp" else picture.format != "jpeg"
    meta = picture.meta
    if meta.photoshop is not None or meta.iptc is not None:
        picture.lost.append("IPTC (WebP has no place for it)")
    return pillow.encode(
        picture.samples,
        "WEBP",
        lossless=lossless,
        exact=True,
        quality=80 if lossless else _QUALITY,
        method=4,
        icc_profile=meta.icc or b"",
        exif=exif_with_density(picture, "WebP") or b"",
        xmp=meta.xmp or b"",
    )
