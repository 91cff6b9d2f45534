"""JPEG: segments are kept as bytes; the picture itself goes through Pillow (libjpeg-turbo)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vs_deblur.errors import InputError
from vs_deblur.photofile import ffmpeg, pillow
from vs_deblur.photofile.metadata import held, iptc_resource
from vs_deblur.photofile.picture import (
    Density,
    Metadata,
    Picture,
    Samples,
    Unit,
    check_size,
    damaged,
    needs_rgb,
)

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_ICC, _PHOTOSHOP, _MORE_PICTURES = b"ICC_PROFILE\0", b"Photoshop 3.0\0", b"MPF\0"
_APP0, _APP1, _APP2, _APP11, _APP13, _APP14, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEB, 0xED, 0xEE, 0xFE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END = 0xDA, 0xD9
_LONGEST = 65533  # bytes of a segment
_MOST_SCANS = 500  # each of a few bytes makes a decoder go through the whole picture
_UNITS: dict[int, Unit] = {0: "none", 1: "inch", 2: "cm"}
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")


@dataclass(frozen=True)
class Encoding:
    """How a file encodes its picture.

    Attributes:
        tables: quantisation tables as Pillow has them: of grey or luma, then of chroma.
        subsampling: Pillow's number: 0 for 4:4:4, 1 for 4:2:2, 2 for 4:2:0.
        progressive: whether it is.
        rgb: whether samples are R, G, B themselves.
    """

    tables: tuple[tuple[int, ...], ...]
    subsampling: int
    progressive: bool
    rgb: bool


@dataclass
class Native:
    """What only JPEG files have.

    Attributes:
        encoding: how the picture was encoded.
        segments: marker and data of further segments.
    """

    encoding: Encoding
    segments: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass(frozen=True)
class _Frame:
    """The frame header: components as (id, horizontal, vertical sampling, table)."""

    precision: int
    width: int
    height: int
    components: tuple[tuple[int, int, int, int], ...]


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the data of each segment up to that of the first scan."""
    at = 2
    while True:
        found = _MARKER.match(data, at)
        if found is None:
            raise damaged("the JPEG file is cut off or damaged in its header")
        at = found.end()
        marker = found[1][0]
        if marker == 0x01:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data) or marker == _END:
            raise damaged("the JPEG file is cut off or damaged in its header")
        yield marker, at + 2, at + length
        if marker == _SCAN:
            return
        at += length


def _end(data: bytes, at: int) -> int:
    """Where the picture ends whose first scan begins at a position."""
    scans = 1
    while found := _MARKER.search(data, at):
        at = found.end()
        if found[1][0] == _END:
            return at
        scans += found[1][0] == _SCAN
        if scans > _MOST_SCANS:
            raise damaged(f"the JPEG file is damaged: more than {_MOST_SCANS} scans")
        at += int.from_bytes(data[at : at + 2], "big")
    raise damaged("the JPEG file is cut off: its end is missing")


def _frame(data: bytes) -> _Frame:
    try:
        precision, height, width, count = struct.unpack_from(">BHHB", data)
        parts = [struct.unpack_from("BBB", data, 6 + 3 * i) for i in range(count)]
    except struct.error:
        raise damaged("the JPEG file has a damaged frame header") from None
    return _Frame(precision, width, height, tuple((i, s >> 4, s & 15, t) for i, s, t in parts))


def read(data: bytes, max_pixels: int) -> Picture:
    """Read a JPEG file, of which the first picture counts.

    Raises:
        InputError: damaged, too large, or of a kind that is refused.
    """
    parts = _sort(data, max_pixels)
    frame, collected = parts.frame, parts.collected
    image = pillow.decode(parts.bare, "JPEG", (frame.width, frame.height))
    if image.mode not in ("L", "RGB"):
        raise needs_rgb(image.mode)
    ffmpeg.check_jpeg(parts.bare)
    encoding = Encoding(
        _tables(frame, getattr(image, "quantization", {})),
        _subsampling(frame),
        bool(image.info.get("progressive")),
        parts.is_rgb,
    )
    samples = pillow.samples(image)
    return Picture(
        samples,
        samples.shape[2],
        format="jpeg",
        meta=collected.metadata(),
        native=Native(encoding, collected.others),
        lost=collected.lost(),
    )


@dataclass(frozen=True)
class _Parts:
    """A file taken apart.

    Attributes:
        frame: its frame header.
        collected: all that is not the picture.
        bare: a file of the picture alone.
        is_rgb: whether its components are R, G, B.
    """

    frame: _Frame
    collected: _Collected
    bare: bytes
    is_rgb: bool


def _sort(data: bytes, max_pixels: int) -> _Parts:
    frame, adobe, collected = None, None, _Collected()
    bare, scan = [], 0
    for marker, start, end in _segments(data):
        content, scan = data[start:end], end
        if marker in _FRAMES and frame is None:
            frame = _frame(content)
            _check(frame, max_pixels)
        if marker == _APP14 and content.startswith(b"Adobe") and len(content) >= 12:
            adobe = content[11]
        elif 0xE0 <= marker <= 0xEF or marker == _COMMENT:
            collected.add(marker, content)
            continue
        bare.append(_segment(marker, content))
    if frame is None:
        raise damaged("the JPEG file has no frame header")
    end = _end(data, scan)
    collected.more |= bool(data[end:].strip(b"\0\xff"))
    # JFIF says that colours are Y, Cb, Cr, whatever their ids and Adobe say.
    has_jfif = collected.density is not None
    head = [data[:2], _jfif(None)] if has_jfif else [data[:2]]
    ids = bytes(c[0] for c in frame.components)
    says_rgb = ids == b"RGB" if adobe is None else adobe == 0
    is_rgb = len(ids) == 3 and says_rgb and not has_jfif
    return _Parts(frame, collected, b"".join((*head, *bare, data[scan:end])), is_rgb)


def _check(frame: _Frame, max_pixels: int) -> None:
    if len(frame.components) == 4:
        raise needs_rgb("CMYK")
    if frame.precision != 8:
        raise InputError(
            f"JPEG files of {frame.precision} bits a sample are not supported",
            None,
            "save it as TIFF of 16 bits first",
        )
    check_size(frame.width, frame.height, max_pixels)


class _Collected:
    """Segments that are not the picture, sorted by what they are."""

    def __init__(self) -> None:
        self.density: Density | None = None
        self.exif: bytes | None = None
        self.xmp: bytes | None = None
        self.photoshop = bytearray()
        self.icc: dict[int, bytes] = {}
        self.others: list[tuple[int, bytes]] = []
        self.more = False  # pictures, films
        self.signed = False

    def add(self, marker: int, data: bytes) -> None:
        if marker == _APP0:
            if data.startswith(b"JFIF\0") and len(data) >= 12:
                unit, x, y = struct.unpack_from(">BHH", data, 7)
                self.density = Density(x, y, _UNITS.get(unit, "none"))
        elif marker == _APP1 and data.startswith(_EXIF) and self.exif is None:
            self.exif = data[len(_EXIF) :]
        elif marker == _APP1 and data.startswith(_XMP) and self.xmp is None:
            self.xmp = data[len(_XMP) :]
        elif marker == _APP2 and data.startswith(_ICC) and len(data) > 14:
            self.icc.setdefault(data[12], data[14:])
        elif marker == _APP2 and data.startswith(_MORE_PICTURES):
            self.more = True
        elif marker == _APP13 and data.startswith(_PHOTOSHOP):
            self.photoshop += data[len(_PHOTOSHOP) :]
        elif marker == _APP11:
            self.signed = True
        elif marker not in (_APP2, _APP14):
            self.others.append((marker, data))

    def metadata(self) -> Metadata:
        icc = b"".join(self.icc[n] for n in sorted(self.icc))
        return Metadata(
            icc=icc or None,
            exif=self.exif,
            xmp=self.xmp,
            photoshop=bytes(self.photoshop) or None,
            density=self.density,
        )

    def lost(self) -> list[str]:
        words = []
        if self.more:
            words.append("what follows the first picture in the file (another picture or a film)")
        if self.signed:
            words.append("content credentials (they are of the picture as it was)")
        return words


def _tables(frame: _Frame, tables: dict[int, Any]) -> tuple[tuple[int, ...], ...]:
    """The quantisation table of luma, and the finest of those of chroma."""
    used = [tables[t] for *_, t in frame.components if t in tables]
    if len(used) != len(frame.components):
        return ()
    rest = [tuple(int(v) for v in np.min(used[1:], axis=0))] if len(used) > 1 else []
    return (tuple(used[0]), *rest)


def _subsampling(frame: _Frame) -> int:
    """Pillow's number for it; where it has none, 4:4:4, which is not worse than any."""
    if len(frame.components) != 3 or any(not h or not v for _, h, v, _ in frame.components):
        return 0
    (_, h, v, _), *chroma = frame.components
    ratios = {(h / ch, v / cv) for _, ch, cv, _ in chroma}
    known = {(1.0, 1.0): 0, (2.0, 1.0): 1, (2.0, 2.0): 2}
    return known.get(ratios.pop(), 0) if len(ratios) == 1 else 0


def left_behind(picture: Picture) -> list[str]:
    """What a JPEG file has that no other format takes, in words.

    Args:
        picture: as it was read.
    """
    found: dict[str, None] = {}
    for marker, data in picture.native.segments:
        if marker == _COMMENT:
            found["the comment"] = None
        elif data.startswith(_EXTENDED_XMP):
            found["extended XMP"] = None
        else:
            found[f"segments of JPEG (APP{marker - _APP0})"] = None
    return list(found)


# ---------------------------------------------------------------------------- writing


def _segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(data) + 2).to_bytes(2, "big") + data


def _jfif(density: Density | None) -> bytes:
    unit, x, y = 0, 1, 1
    if density is not None:
        unit = {name: number for number, name in _UNITS.items()}[density.unit]
        x, y = round(density.x), round(density.y)
    return _segment(_APP0, b"JFIF\0" + struct.pack(">HBHHBB", 0x0102, unit, x, y, 0, 0))


def encode(samples: Samples, encoding: Encoding | None) -> bytes:
    """Encode (H, W, 1) or (H, W, 3) uint8 with libjpeg-turbo.

    Args:
        samples: the picture.
        encoding: that of the source; None: quality 95, 4:4:4.

    Raises:
        InputError: too large for JPEG.
    """
    options: dict[str, Any] = {"quality": 95, "subsampling": 0, "optimize": True}
    if encoding is not None:
        options |= {"subsampling": encoding.subsampling, "progressive": encoding.progressive}
        if encoding.tables:
            tables = encoding.tables
            if encoding.rgb:  # all components share a table
                tables = (tuple(int(v) for v in np.min(tables, axis=0)),)
            del options["quality"]  # tables would be scaled by it
            options["qtables"] = [list(t) for t in tables]
        options["keep_rgb"] = encoding.rgb
    return pillow.encode(samples, "JPEG", **options)


def write(picture: Picture) -> bytes:
    """A JPEG file. Adds to the picture's list of what is lost.

    Args:
        picture: grey or RGB, uint8, no alpha.

    Raises:
        InputError: too large for JPEG.
    """
    native: Native | None = picture.native if picture.format == "jpeg" else None
    plain = encode(picture.samples, native.encoding if native else None)
    head = []
    scan = 0
    for marker, start, end in _segments(plain):
        if marker != _APP0:
            head.append(_segment(marker, plain[start:end]))
        scan = end
    is_rgb = native is not None and native.encoding.rgb
    density = None if is_rgb else held(picture, "inch", 0.5, 65535, "JPEG")
    first = [plain[:2]] if is_rgb else [plain[:2], _jfif(density)]
    ours = _metadata_segments(picture, native.segments if native else [])
    return b"".join([*first, *ours, *head, plain[scan:]])


def _metadata_segments(picture: Picture, others: list[tuple[int, bytes]]) -> list[bytes]:
    meta, segments = picture.meta, []
    for name, mark, data in (("EXIF", _EXIF, meta.exif), ("XMP", _XMP, meta.xmp)):
        if data is None:
            continue
        if len(mark + data) > _LONGEST:
            picture.lost.append(f"{name} (too long for JPEG)")
        else:
            segments.append(_segment(_APP1, mark + data))
    photoshop = meta.photoshop
    if photoshop is None and meta.iptc is not None:
        photoshop = iptc_resource(meta.iptc)
    # Longer resources go on in the next segment.
    for part in _parts(photoshop or b"", _LONGEST - len(_PHOTOSHOP)):
        segments.append(_segment(_APP13, _PHOTOSHOP + part))
    profile = list(_parts(meta.icc or b"", _LONGEST - len(_ICC) - 2))
    if len(profile) > 255:
        picture.lost.append("ICC profile (too long for JPEG)")
        profile = []
    for i, part in enumerate(profile, 1):
        segments.append(_segment(_APP2, _ICC + bytes((i, len(profile))) + part))
    return segments + [_segment(marker, data) for marker, data in others]


def _parts(data: bytes, length: int) -> Iterator[bytes]:
    return (data[at : at + length] for at in range(0, len(data), length))
