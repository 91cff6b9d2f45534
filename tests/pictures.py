"""Pictures made for the tests of photos, and engines that stand in for networks."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Array = NDArray[Any]

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"'
    b' tiff:ImageWidth="53" tiff:ImageLength="37" xmp:Rating="4"/></x:xmpmeta>'
)
MAKER_NOTE = b"MAKER\0 with offsets from the start of the block"


def matrix_profile(primaries: tuple[tuple[float, float], ...], gamma: float) -> bytes:
    """An ICC profile (version 2, a matrix and a curve) of a display.

    Args:
        primaries: chromaticity (x, y) of red, green and blue; white is D65.
        gamma: exponent of its curve.
    """
    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    d50, d65 = np.array([0.9642, 1.0, 0.8249]), np.array([0.9505, 1.0, 1.0891])
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    to_xyz = columns * np.linalg.solve(columns, d65)
    scale = np.diag(bradford @ d50 / (bradford @ d65))
    adapted = np.linalg.inv(bradford) @ scale @ bradford @ to_xyz

    def xyz(values: Any) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(v) * 65536) for v in values))

    name = b"wide gamut\0"
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(79),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(d50),
        **{c + b"XYZ": xyz(adapted[:, i]) for i, c in enumerate((b"r", b"g", b"b"))},
        **{c + b"TRC": curve for c in (b"r", b"g", b"b")},
    }
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for signature, content in tags.items():
        table += signature + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", start + len(data), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ "
    )
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + table + data


P3 = matrix_profile(((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), 2.2)


def waves(height: int, width: int, channels: int, dtype: Any = np.uint8) -> Array:
    """A smooth picture, (H, W, C), from black to white; floats from below 0 to beyond 1."""
    y, x = np.mgrid[:height, :width]
    planes = [(np.sin(x / 7 + i) + np.cos(y / 9 + 2 * i)) / 4 + 0.5 for i in range(channels)]
    picture = np.stack(planes, axis=-1)
    if np.dtype(dtype).kind == "f":
        return (picture * 1.4 - 0.2).astype(dtype)
    return np.rint(picture * np.iinfo(dtype).max).astype(dtype)


def exif(orientation: int = 6, *, thumbnail: bool = True, order: str = "<") -> bytes:
    """An EXIF block: maker, orientation, density, dimensions, a maker note, GPS, a thumbnail."""
    small = io.BytesIO()
    Image.new("RGB", (16, 12), "red").save(small, "JPEG")
    short, long, ascii_, rational, undefined = 3, 4, 2, 5, 7

    def directory(at: int, entries: list[tuple[int, int, int, bytes]], following: bool) -> bytes:
        table, behind = b"", b""
        start = at + 2 + 12 * len(entries) + 4
        for tag, kind, count, value in sorted(entries):
            field_ = value.ljust(4, b"\0")
            if len(value) > 4:
                field_ = struct.pack(order + "I", start + len(behind))
                behind += value + b"\0" * (len(value) % 2)
            table += struct.pack(order + "HHI", tag, kind, count) + field_
        next_ = start + len(behind) if following else 0
        return (
            struct.pack(order + "H", len(entries))
            + table
            + struct.pack(order + "I", next_)
            + behind
        )

    def number(code: str, *values: int) -> bytes:
        return struct.pack(order + code * len(values), *values)

    def main(exif_at: int, gps_at: int) -> bytes:
        return directory(
            gps_at + len(gps),
            [
                (271, ascii_, 6, b"Maker\0"),
                (274, short, 1, number("H", orientation)),
                (282, rational, 1, number("I", 300, 1)),
                (283, rational, 1, number("I", 200, 1)),
                (296, short, 1, number("H", 2)),
                (0x8769, long, 1, number("I", exif_at)),
                (0x8825, long, 1, number("I", gps_at)),
            ],
            thumbnail,
        )

    below = directory(
        8,
        [
            (0x9003, ascii_, 20, b"2026:01:02 03:04:05\0"),
            (0x927C, undefined, len(MAKER_NOTE), MAKER_NOTE),
            (0xA002, short, 1, number("H", 53)),
            (0xA003, long, 1, number("I", 37)),
        ],
        False,
    )
    gps_at = 8 + len(below)
    gps = directory(gps_at, [(1, ascii_, 2, b"N\0")], False)
    mark = b"II" if order == "<" else b"MM"
    block = main(8, gps_at)
    block = mark + struct.pack(order + "HI", 42, gps_at + len(gps)) + below + gps + block
    if thumbnail:
        picture = small.getvalue()
        entries = [(513, long, 1, b"\0" * 4), (514, long, 1, number("I", len(picture)))]
        at = len(block)
        end = at + len(directory(at, entries, False))
        entries[0] = (513, long, 1, number("I", end))
        block += directory(at, entries, False) + picture
    return block


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG file."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def jpeg(picture: Array, *segments: bytes, **options: Any) -> bytes:
    """A JPEG file, with segments after its first."""
    file = io.BytesIO()
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    image.save(file, "JPEG", **({"quality": 90} | options))
    data = file.getvalue()
    first = 4 + int.from_bytes(data[4:6], "big")
    return data[:first] + b"".join(segments) + data[first:]


def png(picture: Array, *chunks: tuple[bytes, bytes], **options: Any) -> bytes:
    """A PNG file of uint8 or uint16, with chunks after its header."""
    from vs_deblur.photofile.png import chunk

    if picture.dtype == np.uint16:
        data = ffmpeg(picture, "png")
    else:
        file = io.BytesIO()
        Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(
            file, "PNG", **options
        )
        data = file.getvalue()
    return data[:33] + b"".join(chunk(*c) for c in chunks) + data[33:]


def ffmpeg(picture: Array, codec: str, **options: str) -> bytes:
    """A PNG or TIFF file of uint16, made by FFmpeg."""
    from av.codec.context import CodecContext
    from av.video.frame import VideoFrame

    height, width, channels = picture.shape
    order = "be" if codec == "png" else "le"
    name = {1: "gray16", 2: "ya16", 3: "rgb48", 4: "rgba64"}[channels] + order
    encoder: Any = CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, name
    encoder.time_base, encoder.options = Fraction(1), options
    frame = VideoFrame(width, height, name)
    rows = np.frombuffer(frame.planes[0], np.uint8).reshape(height, -1)
    samples = picture.astype(">u2" if order == "be" else "<u2").reshape(height, -1)
    rows[:, : 2 * width * channels] = samples.view(np.uint8)
    frame.pts = 0
    return b"".join(bytes(p) for p in (*encoder.encode(frame), *encoder.encode(None)))


def pillow(kind: str, picture: Any = None, mode: str | None = None, **options: Any) -> bytes:
    """A file of a small picture, as Pillow writes it."""
    file = io.BytesIO()
    image = Image.fromarray(waves(37, 53, 3) if picture is None else picture)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def tiff(picture: Any, **options: Any) -> bytes:
    """A TIFF file, as tifffile writes it."""
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, picture, **options)
    return file.getvalue()


@cache
def samples() -> dict[str, bytes]:
    """A small file of each kind that is read."""
    picture, deep = waves(37, 53, 3), waves(37, 53, 3, np.uint16)
    segments = (
        segment(0xE1, b"Exif\0\0" + exif(6)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + PROFILE),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x05IPTC!\0"),
    )
    return {
        "jpeg": jpeg(picture, *segments),
        "progressive": jpeg(picture, segments[0], progressive=True),
        "png": png(picture, (b"eXIf", exif(6)), (b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + XMP)),
        "png16": png(waves(37, 53, 4, np.uint16)),
        "palette": pillow("PNG", mode="P"),
        "tiff": tiff(picture, photometric="rgb", extratags=[(700, 1, len(XMP), XMP, True)]),
        "deflate": tiff(deep, photometric="rgb", compression="zlib", rowsperstrip=8),
        "tiles": tiff(waves(37, 53, 3, np.float32), photometric="rgb", bigtiff=True, tile=(16, 16)),
        "lzw16": ffmpeg(deep, "tiff", compression_algo="lzw"),
        "lzw": pillow("TIFF", compression="tiff_lzw"),
        "fax": pillow("TIFF", mode="1", compression="group4"),
        "webp": pillow("WEBP", exif=exif(6)),
        "lossless webp": pillow("WEBP", lossless=True),
        "gif": pillow("GIF"),
        "bmp": pillow("BMP"),
    }


@dataclass
class Engine:
    """Stands in for a network: keeps what it saw, and changes it by a function."""

    change: Callable[[Array], Array] = lambda x: x
    seen: list[Array] = field(default_factory=list)

    def photo(
        self, picture: Array, /, *, progress: Callable[[int, int], None] | None = None
    ) -> Array:
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert picture.dtype in (np.uint8, np.uint16, np.float32)
        self.seen.append(picture)
        if progress is not None:
            progress(1, 2)
            progress(2, 2)
        return self.change(picture).astype(picture.dtype)


def through(source: Path, target: Path, kind: Any, engine: Any = None) -> list[str]:
    """Read, deblur with an engine (one that changes nothing), write; what was lost."""
    from vs_deblur.hosts.photo import deblur
    from vs_deblur.photofile import read, write

    return write(deblur(read(source), engine or Engine()), target, kind)
