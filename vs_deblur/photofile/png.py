"""PNG: chunks are kept as bytes. 8-bit pictures go through Pillow, 16-bit ones through FFmpeg."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from vs_deblur.photofile import ffmpeg, pillow
from vs_deblur.photofile.metadata import held
from vs_deblur.photofile.picture import (
    Density,
    Metadata,
    Picture,
    Samples,
    check_size,
    damaged,
    one_picture,
    scaled_to_8,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _PALETTE: (1, 2, 4, 8)}
# They may not be copied when pixels change, says their name, but they are not about single pixels.
_KEPT = frozenset((b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"sCAL"))
_XMP = b"XML:com.adobe.xmp\0"
# What colours are, without a profile; those of sRGB in hundred thousandths, as cameras round them.
_COLOUR = (b"cICP", b"sRGB", b"gAMA", b"cHRM", b"mDCV", b"cLLI")
_GAMMA_OF_SRGB, _POINTS_OF_SRGB = 45455, (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_CODE_POINTS_OF_SRGB = b"\x01\x0d\x00\x01"
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_MOST = 64 << 20  # bytes that compressed metadata may have


@dataclass(frozen=True)
class Header:
    """The chunk IHDR."""

    width: int
    height: int
    depth: int
    kind: int
    interlaced: bool

    def rows(self) -> Iterator[tuple[int, int]]:
        """Width in pixels and number of rows of each pass."""
        if not self.interlaced:
            yield self.width, self.height
            return
        for x, y, dx, dy in (
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ):
            width, height = -(-(self.width - x) // dx), -(-(self.height - y) // dy)
            if width > 0 and height > 0:
                yield width, height

    @property
    def data_length(self) -> int:
        """Bytes of the picture before compression: filter bytes and rows."""
        bits = self.depth * _CHANNELS[self.kind]
        return sum(height * (1 + (width * bits + 7) // 8) for width, height in self.rows())


@dataclass
class Native:
    """What only PNG files have.

    Attributes:
        kind, depth: colour type and bits of the source.
        before, after: chunks before and after the picture data.
    """

    kind: int
    depth: int
    before: list[tuple[bytes, bytes]] = field(default_factory=list)
    after: list[tuple[bytes, bytes]] = field(default_factory=list)

    def find(self, *names: bytes) -> dict[bytes, bytes]:
        """Chunks of these names, the first of each."""
        found = dict(reversed(self.before + self.after))
        return {name: found[name] for name in names if name in found}


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each chunk up to IEND, checksums verified.

    Raises:
        InputError: damaged or cut off.
    """
    at = len(SIGNATURE)
    while True:
        if at + 12 > len(data):
            raise damaged("the PNG file is cut off")
        length, name = struct.unpack_from(">I4s", data, at)
        if not name.isalpha():
            raise damaged("the PNG file is damaged: no chunk where one should be")
        end = at + 8 + length
        if end + 4 > len(data):
            raise damaged(f"the PNG file is cut off in chunk {name.decode()}")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise damaged(f"the PNG file is damaged: wrong checksum in chunk {name.decode()}")
        yield name, data[at + 8 : end]
        if name == b"IEND":
            return
        at = end + 4


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk as bytes."""
    crc = zlib.crc32(content, zlib.crc32(name))
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def _header(content: bytes, max_pixels: int) -> Header:
    if len(content) != 13:
        raise damaged("the PNG file has a damaged header")
    width, height, depth, kind, method, filtering, interlace = struct.unpack(">IIBBBBB", content)
    known = kind in _CHANNELS and depth in _DEPTHS.get(kind, (8, 16))
    if not known or method or filtering or interlace > 1:
        raise damaged(f"the PNG header makes no sense: colour type {kind} of {depth} bits")
    check_size(width, height, max_pixels)
    return Header(width, height, depth, kind, bool(interlace))


@dataclass
class _Parts:
    """A file's chunks, sorted."""

    header: Header
    palette: bytes = b""
    transparency: bytes | None = None
    pixels: list[bytes] = field(default_factory=list)
    others: list[tuple[bytes, bytes, bool]] = field(default_factory=list)  # name, content, after


def _sort(data: bytes, max_pixels: int) -> _Parts:
    every = chunks(data)
    name, content = next(every)
    if name != b"IHDR":
        raise damaged("the PNG file does not begin with its header")
    parts = _Parts(_header(content, max_pixels))
    for name, content in every:
        if name == b"PLTE":
            parts.palette = content
        elif name == b"tRNS":
            parts.transparency = content
        elif name == b"IDAT":
            parts.pixels.append(content)
        elif name == b"acTL" and len(content) >= 4 and content[:4] > b"\0\0\0\1":
            raise one_picture(int.from_bytes(content[:4], "big"), "an animation")
        elif name != b"IEND":
            parts.others.append((name, content, bool(parts.pixels)))
    _check_data(parts)
    return parts


def _check_data(parts: _Parts) -> None:
    """Whether the compressed data holds every row: decoders differ in what they make of less."""
    inflate, length = zlib.decompressobj(), 0
    wanted = parts.header.data_length
    try:
        for content in parts.pixels:
            while content and length <= wanted and not inflate.eof:
                length += len(inflate.decompress(content, 1 << 20))
                content = inflate.unconsumed_tail
        while (more := len(inflate.decompress(b"", 1 << 20))) and length <= wanted:
            length += more
    except zlib.error as error:
        raise damaged(f"the PNG file is damaged: {pillow.plain(error)}") from error
    if length < wanted:
        raise damaged("the PNG file is cut off: rows are missing")
    if not inflate.eof:
        raise damaged("the PNG file is damaged: its data does not end with its last row")


def read(data: bytes, max_pixels: int) -> Picture:
    """Read a PNG file.

    Raises:
        InputError: damaged, too large, or animated.
    """
    parts = _sort(data, max_pixels)
    header = parts.header
    samples = _decode(parts)
    if header.kind == _PALETTE:
        samples = _look_up(samples[..., 0], parts)
    elif parts.transparency is not None and header.kind in (_GREY, _RGB):
        samples = _with_key_as_alpha(samples, parts.transparency, header.depth)
    native = Native(header.kind, header.depth)
    picture = Picture(
        samples,
        1 if header.kind in (_GREY, _GREY_ALPHA) else 3,
        alpha="straight" if samples.shape[2] in (2, 4) else None,
        format="png",
        native=native,
    )
    for name, content, after in parts.others:
        _take(picture, name, content, native.after if after else native.before)
    return picture


def _decode(parts: _Parts) -> Samples:
    """Samples as they are in the file, fewer than 8 bits of grey scaled to 8."""
    header = parts.header
    kind = struct.pack(
        ">IIBBBBB", header.width, header.height, header.depth, header.kind, 0, 0, header.interlaced
    )
    palette = [chunk(b"PLTE", parts.palette)] if header.kind == _PALETTE else []
    pixels = [chunk(b"IDAT", content) for content in parts.pixels]
    plain = [SIGNATURE, chunk(b"IHDR", kind), *palette, *pixels, chunk(b"IEND", b"")]
    if header.depth == 16:
        samples = ffmpeg.decode(b"".join(plain), "png", (header.width, header.height))
        if samples.shape[2] != _CHANNELS[header.kind]:
            raise damaged("the PNG file has other channels than its header says")
        return samples
    image = pillow.decode(b"".join(plain), "PNG", (header.width, header.height))
    return pillow.samples(image)


def _look_up(indices: Samples, parts: _Parts) -> Samples:
    """Palette indices as RGB, with alpha if the palette has some."""
    count = len(parts.palette) // 3
    if not count or int(indices.max()) >= count:
        raise damaged("the PNG file is damaged: colours are missing in its palette")
    colours = np.frombuffer(parts.palette, np.uint8, count * 3).reshape(count, 3)
    if parts.transparency:
        alpha = np.full((count, 1), 255, np.uint8)
        given = np.frombuffer(parts.transparency, np.uint8)[:count]
        alpha[: len(given), 0] = given
        colours = np.concatenate([colours, alpha], axis=1)
    return colours[indices]


def _with_key_as_alpha(samples: Samples, key: bytes, depth: int) -> Samples:
    """The one colour that is transparent, as an alpha channel: colours are about to change."""
    channels = samples.shape[2]
    if len(key) < 2 * channels:
        return samples
    value = np.frombuffer(key, ">u2", channels).astype(np.uint16)
    if depth < 8:
        value = scaled_to_8(value, depth).astype(np.uint16)
    opaque = (samples != value).any(axis=2, keepdims=True)
    full = np.iinfo(samples.dtype).max
    return np.concatenate([samples, opaque.astype(samples.dtype) * samples.dtype.type(full)], 2)


# ---------------------------------------------------------------------------- metadata


def _inflate(data: bytes) -> bytes | None:
    """Decompress metadata, of bounded size; None if that does not work."""
    inflate = zlib.decompressobj()
    try:
        result = inflate.decompress(data, _MOST)
    except zlib.error:
        return None
    return result if inflate.eof else None


def _international_text(content: bytes) -> bytes | None:
    """The text of an iTXt chunk after its keyword."""
    if len(content) < 2:
        return None
    fields = content[2:].split(b"\0", 2)
    if len(fields) != 3:
        return None
    return _inflate(fields[2]) if content[0] else fields[2]


def _take(picture: Picture, name: bytes, content: bytes, others: list[tuple[bytes, bytes]]) -> None:
    """Put an ancillary chunk where it belongs."""
    meta: Metadata = picture.meta
    if name == b"eXIf" and meta.exif is None:
        meta.exif = content.removeprefix(b"Exif\0\0")
    elif name == b"pHYs" and len(content) == 9:
        x, y, unit = struct.unpack(">IIB", content)
        meta.density = Density(x, y, "metre" if unit == 1 else "none")
    elif name == b"iTXt" and content.startswith(_XMP) and meta.xmp is None:
        meta.xmp = _international_text(content[len(_XMP) :])
        if meta.xmp is None:  # damaged: as it is, or not at all
            others.append((name, content))
    elif name == b"iCCP":
        profile = content.split(b"\0", 1)[-1]
        meta.icc = _inflate(profile[1:])
        others.append((name, content))
    elif name == b"bKGD":
        if picture.native.kind != _PALETTE and picture.native.depth >= 8:
            others.append((name, content))
    elif name == b"caBX":
        picture.lost.append("content credentials (they are of the picture as it was)")
    elif name in _KEPT or name[3:].islower():  # the latter: may be copied, says the name
        others.append((name, content))


# ---------------------------------------------------------------------------- other formats


def has_other_colours(picture: Picture) -> bool:
    """Whether only code points (cICP) say what the colours are, and they are not those of sRGB.

    Shown without them (HDR, wide gamut), the picture would look like another.
    """
    native: Native | None = picture.native
    points = native.find(b"cICP").get(b"cICP", b"") if native is not None else b""
    return picture.meta.icc is None and len(points) == 4 and points != _CODE_POINTS_OF_SRGB


def left_behind(picture: Picture) -> list[str]:
    """What a PNG file has that no other format takes, in words.

    Args:
        picture: as it was read.
    """
    native: Native = picture.native
    lost = _colours_left_behind(picture)
    texts = [c for c in native.before + native.after if c[0] in _TEXT]
    if any(content.startswith(_XMP) for _, content in texts) and picture.meta.xmp is None:
        lost.append("XMP (damaged)")
    words = {content.split(b"\0", 1)[0] for _, content in texts if not content.startswith(_XMP)}
    if words:
        named = ", ".join(sorted(word.decode("latin-1") for word in words))
        lost.append(f"text of PNG ({named if named.isprintable() else len(words)})"[:120])
    known = (*_COLOUR, *_TEXT, b"iCCP", b"bKGD")
    others = {name.decode() for name, _ in native.before + native.after if name not in known}
    if others:
        lost.append(f"chunks of PNG ({', '.join(sorted(others))})"[:120])
    return lost


def _colours_left_behind(picture: Picture) -> list[str]:
    """What PNG says about colours in ways of its own; nothing if that is sRGB, as all assume."""
    found = picture.native.find(*_COLOUR)
    words = []
    if picture.native.find(b"iCCP") and picture.meta.icc is None:
        words.append("ICC profile (damaged)")
    if found.get(b"cICP", _CODE_POINTS_OF_SRGB) != _CODE_POINTS_OF_SRGB:
        words.append("code points of its colours (cICP)")
    if picture.meta.icc is None and b"sRGB" not in found and b"cICP" not in found:
        names = [
            name.decode()
            for name, values in ((b"gAMA", (_GAMMA_OF_SRGB,)), (b"cHRM", _POINTS_OF_SRGB))
            if name in found and not _is_near(found[name], values)
        ]
        if names:
            words.append(f"gamma and primaries ({', '.join(names)}): colours may look different")
    light = [name.decode() for name in (b"mDCV", b"cLLI") if name in found]
    if light:
        words.append(f"light levels ({', '.join(light)})")
    return words


def _is_near(content: bytes, values: tuple[int, ...]) -> bool:
    """Whether numbers are these but for rounding; damaged ones mean nothing."""
    if len(content) != 4 * len(values):
        return True
    given = struct.unpack(f">{len(values)}I", content)
    return all(abs(a - b) <= 500 for a, b in zip(given, values, strict=True))


# ---------------------------------------------------------------------------- writing


def write(picture: Picture) -> bytes:
    """A PNG file.

    Args:
        picture: grey or RGB, uint8 or uint16, with or without straight alpha.

    Raises:
        OutputError: PyAV is missing.
        InputError: the picture is too large for it.
    """
    samples = picture.samples
    plain = (
        ffmpeg.encode_png(samples) if samples.dtype == np.uint16 else pillow.encode(samples, "PNG")
    )
    made = list(chunks(plain))
    native: Native | None = picture.native if picture.format == "png" else None
    before, after = (native.before, native.after) if native else ([], [])
    if native and made[0][1][8:10] != bytes((native.depth, native.kind)):
        before = [(name, content) for name, content in before if name != b"bKGD"]
    pixels = [(name, content) for name, content in made if name == b"IDAT"]
    everything = [made[0], *before, *_metadata_chunks(picture, before), *pixels, *after]
    return SIGNATURE + b"".join(chunk(*c) for c in everything) + chunk(b"IEND", b"")


def _metadata_chunks(
    picture: Picture, there: list[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes]]:
    meta = picture.meta
    if meta.icc is not None and not any(name == b"iCCP" for name, _ in there):
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(meta.icc)
    density = held(picture, "metre", 0.5, 2**32 - 1, "PNG")
    if density is not None:
        unit = 0 if density.unit == "none" else 1
        yield b"pHYs", struct.pack(">IIB", round(density.x), round(density.y), unit)
    if meta.exif is not None:
        yield b"eXIf", meta.exif
    if meta.xmp is not None:
        yield b"iTXt", _XMP + bytes(2) + b"\0\0" + meta.xmp
    if picture.format != "png" and (meta.photoshop is not None or meta.iptc is not None):
        picture.lost.append("IPTC (PNG has no place for it)")
