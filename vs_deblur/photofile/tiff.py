"""TIFF: samples through tifffile (what it cannot decode: Pillow, FFmpeg); tags are kept as bytes.

A file is written by tifffile with the tags of the samples only; then a directory with these and
all tags of the source is put at its end.
"""

from __future__ import annotations

import contextlib
import io
import logging
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vs_deblur.errors import InputError, OutputError
from vs_deblur.photofile import ffmpeg, ifd, pillow
from vs_deblur.photofile.ifd import BadDirectory, Directory, Entry, Layout, Tree
from vs_deblur.photofile.metadata import (
    LEAST_IN_TAGS,
    MOST_IN_TAGS,
    X_RESOLUTION,
    density_tags,
    exif_density,
    held,
    iptc_of,
)
from vs_deblur.photofile.picture import (
    Metadata,
    Picture,
    Samples,
    as_channels,
    check_size,
    damaged,
    needs_rgb,
    one_picture,
    scaled_to_8,
)

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_CHANNELS, _PLANAR, _PREDICTOR, _EXTRA, _FORMAT, _COLORMAP = 277, 284, 317, 338, 339, 320
_XMP, _IPTC, _PHOTOSHOP, _ICC = 700, 33723, 34377, 34675
_LAYERS, _CREDENTIALS, _SUBDIRECTORIES = 37724, 0xCD41, 330
_DNG = 50706
_TRANSFER = 301  # a table of 2 to the power of bits, so no longer than its samples
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_UNSUPPORTED = {4: "mask", _CMYK: "CMYK", 8: "CIELab", 9: "ICCLab", 10: "ITULab"}
_RAW = (32803, 34892)
# Offsets and lengths of strips, of tiles.
_PIECES = ((273, 279), (324, 325))
# What is about how samples are stored: taken from the new file, never from the old one.
_STORAGE: frozenset[int] = frozenset().union(
    (_SUBFILE, 255, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 263, 264, 265, 266, 273),
    (_CHANNELS, 278, 279, 280, 281, _PLANAR, 288, 289, 290, 291, 292, 293, _PREDICTOR),
    (_COLORMAP, 321, 322, 323, 324, 325, _SUBDIRECTORIES, 332, 333, 334, 336, _EXTRA),
    (_FORMAT, 340, 341, 342, 347, *range(512, 522), 529, 530, 531, 532, _LAYERS, _CREDENTIALS),
)
# Of these, what no decoder needs.
_ASIDE = frozenset((_SUBFILE, 255, _SUBDIRECTORIES, _LAYERS, _CREDENTIALS))
_NONE, _LZW, _JPEG, _OLD_DEFLATE, _DEFLATE, _PACKBITS = 1, 5, 7, 32946, 8, 32773
# How many bytes one byte of compressed data can become, at most.
_EXPANDS = {_NONE: 1, _PACKBITS: 64, _DEFLATE: 1032, _OLD_DEFLATE: 1032, _LZW: 4096}
_NAMES = {_LZW: "LZW", _JPEG: "JPEG", 6: "old JPEG", 50000: "Zstandard", 50001: "WebP"}
_NAMES |= {34887: "LERC", 50002: "JPEG XL", 34712: "JPEG 2000", 34925: "LZMA"}


@dataclass(frozen=True)
class Native:
    """How a TIFF file stores its picture.

    Attributes:
        layout: byte order, and whether it is BigTIFF.
        compressed: whether it is.
        white_is_zero: grey is stored inverted.
        extras: TIFF's numbers for the meaning of each channel after the colours.
        transfer: the transfer function.
    """

    layout: Layout
    compressed: bool
    white_is_zero: bool
    extras: tuple[int, ...]
    transfer: Entry | None = None


@dataclass(frozen=True)
class _Header:
    """What the tags say about the samples."""

    width: int
    height: int
    bits: int
    compression: int
    photometric: int
    channels: int
    kind: int  # of samples: 1 unsigned, 2 signed, 3 float
    extras: tuple[int, ...]
    planar: bool

    @property
    def least_bytes(self) -> int:
        """Bytes that the samples have at least before compression."""
        if self.photometric == _YCBCR:  # chroma may be subsampled by 4x4
            return self.width * self.height * self.bits // 8
        return self.width * self.height * self.channels * self.bits // 8


def read(data: bytes, max_pixels: int) -> Picture:
    """Read a TIFF file of one picture.

    Raises:
        InputError: damaged, too large, or of a kind that is refused.
    """
    try:
        layout, at = ifd.read_header(data)
        pages = []
        for page in ifd.directories(data, at, layout, rest=(_SUBFILE,)):
            pages.append(page)
            if len(pages) > 10_000:
                break
        if not pages:
            raise BadDirectory("there is no picture")
        header = _read_header(pages[0], layout)
    except BadDirectory as error:
        raise damaged(f"the TIFF file is cut off or damaged: {error}") from error
    _refuse(pages, header, layout)
    check_size(header.width, header.height, max_pixels)
    if header.width * header.height * header.channels > 4 * max_pixels:
        raise InputError(
            f"{header.channels} channels of {header.width}x{header.height} pixels are too many",
            None,
            "allow more with --max-pixels if the file is to be trusted",
        )
    _check_pieces(data, pages[0], header, layout)
    samples = _interpreted(_decode(data, pages[0], header, layout), header, data, pages[0], layout)
    return _picture(samples, data, pages, header, layout)


def _numbers(page: Directory, tag: int, layout: Layout, default: tuple[int, ...]) -> Any:
    entry = page.entries.get(tag)
    return default if entry is None else entry.numbers(layout.order)


def _read_header(page: Directory, layout: Layout) -> _Header:
    def number(tag: int, default: int) -> int:
        return int(_numbers(page, tag, layout, (default,))[0])

    if not {_WIDTH, _HEIGHT, _PHOTOMETRIC} <= page.entries.keys():
        raise BadDirectory("the size or colour model is missing")
    channels = number(_CHANNELS, 1)
    bits = set(_numbers(page, _BITS, layout, (1,)))
    kinds = set(_numbers(page, _FORMAT, layout, (1,)))
    if len(bits) != 1 or len(kinds) != 1:
        raise InputError(
            "TIFF files with channels of different types are not supported",
            None,
            "save it with all channels of the same type",
        )
    photometric = number(_PHOTOMETRIC, 1)
    colours = 3 if photometric in (_RGB, _YCBCR) else 1
    extras = tuple(_numbers(page, _EXTRA, layout, ()))[: max(channels - colours, 0)]
    return _Header(
        number(_WIDTH, 0),
        number(_HEIGHT, 0),
        bits.pop(),
        number(_COMPRESSION, 1),
        photometric,
        channels,
        kinds.pop(),
        extras + (0,) * (channels - colours - len(extras)),
        number(_PLANAR, 1) == 2,
    )


def _refuse(pages: list[Directory], header: _Header, layout: Layout) -> None:
    """Refuse by name what is not an ordinary picture."""
    if _DNG in pages[0].entries or header.photometric in _RAW:
        raise raw_file("DNG" if _DNG in pages[0].entries else "raw")
    if header.photometric in _UNSUPPORTED:
        raise needs_rgb(_UNSUPPORTED[header.photometric])
    if header.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR):
        raise needs_rgb(f"TIFF files with colour model {header.photometric}")
    colours = 3 if header.photometric in (_RGB, _YCBCR) else 1
    if header.channels < colours:
        raise damaged(f"the TIFF header makes no sense: {header.channels} channels of RGB")
    if header.channels > 64:
        raise InputError(f"TIFF files of {header.channels} channels are not supported")
    kinds = {1: "unsigned integers", 2: "signed integers", 3: "floats"}
    allowed = {1: (1, 2, 4, 8, 16), 3: (16, 32)}.get(header.kind, ())
    if header.kind == 4 and header.bits <= 16:
        allowed = (1, 2, 4, 8, 16)
    if header.bits not in allowed:
        raise InputError(
            f"TIFF files of {header.bits}-bit {kinds.get(header.kind, 'complex numbers')}"
            " are not supported",
            None,
            "save it with 8 or 16 bits a channel, or as 32-bit floats",
        )
    others = [p for p in pages[1:] if not _subfile(p, layout) & (_REDUCED | _MASK)]
    if others:
        raise one_picture(len(others) + 1, "a TIFF file")


def raw_file(name: str) -> InputError:
    """The error for what comes straight from a camera's sensor."""
    return InputError(
        f"{name} files of cameras are not supported",
        None,
        "develop it into a TIFF file of 16 bits first",
    )


_REDUCED, _MASK = 1, 4  # bits of the subfile type


def _subfile(page: Directory, layout: Layout) -> int:
    with contextlib.suppress(BadDirectory):
        return int(_numbers(page, _SUBFILE, layout, (0,))[0])
    return 0


def _check_pieces(data: bytes, page: Directory, header: _Header, layout: Layout) -> None:
    """Whether all strips or tiles are within the file: decoders make black of those that are not.

    Raises:
        InputError: one is not, or all together cannot be the picture.
    """
    for at_tag, length_tag in _PIECES:
        try:
            starts = _numbers(page, at_tag, layout, ())
            lengths = _numbers(page, length_tag, layout, ())
        except BadDirectory:
            break
        if starts and len(starts) == len(lengths):
            if any(not n or at + n > len(data) for at, n in zip(starts, lengths, strict=True)):
                raise damaged("the TIFF file is cut off: picture data is missing")
            if header.least_bytes > sum(lengths) * _EXPANDS.get(header.compression, 1 << 40):
                raise damaged("the TIFF file is damaged: it holds less than its size says")
            return
    raise damaged("the TIFF file is damaged: it does not say where the picture is")


# ---------------------------------------------------------------------------- samples


def _decode(data: bytes, page: Directory, header: _Header, layout: Layout) -> Samples:
    """(H, W, C) samples as they are stored."""
    whole, data = data, _bare(data, page, layout, _ASIDE)
    if header.compression in (_NONE, _DEFLATE, _OLD_DEFLATE) and header.photometric != _YCBCR:
        return _with_tifffile(data, header)
    if header.bits <= 8 and header.channels <= 4:
        return _with_pillow(data, header)
    if header.bits == 16 and header.kind == 1 and header.compression in (_LZW, _PACKBITS):
        # FFmpeg does not know what extra samples are, and counts channels.
        data = _bare(whole, page, layout, _ASIDE | {_EXTRA})
        samples = ffmpeg.decode(data, "tiff", (header.width, header.height))
        if samples.shape[2] != header.channels:
            raise damaged("the TIFF file has other channels than its header says")
        # FFmpeg turns white-is-zero round itself.
        return ~samples if header.photometric == _WHITE_IS_ZERO else samples
    return _with_tifffile(data, header)


def _bare(data: bytes, page: Directory, layout: Layout, aside: frozenset[int]) -> bytes:
    """The file with no tags but those of its samples: decoders trip over others, or heed them."""
    tags: Tree = {tag: entry for tag, entry in page.entries.items() if tag in _STORAGE - aside}
    end = len(data) + len(data) % 2
    word = struct.calcsize(layout.word)
    head = data[: layout.header - word] + struct.pack(layout.word, end)
    body = data[layout.header :].ljust(end - layout.header, b"\0")
    return b"".join((head, body, ifd.write(tags, layout, end)))


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError:
        raise InputError(
            "TIFF files need tifffile", None, "pip install 'vs-deblur[photo16]'"
        ) from None
    # It reports what it raises on the logger as well.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    return tifffile


def _with_tifffile(data: bytes, header: _Header) -> Samples:
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            array = np.asarray(page.asarray(maxworkers=1))
    except MemoryError:
        raise InputError("the picture does not fit into memory") from None
    except Exception as error:  # whatever damaged files lead it to
        if "imagecodecs" in str(error) or isinstance(error, ImportError):
            name = _NAMES.get(header.compression, f"no. {header.compression}")
            raise InputError(
                f"TIFF files of {header.bits} bits with {name} compression or its predictor are"
                " not supported",
                None,
                "save it uncompressed or with ZIP without predictor, or pip install imagecodecs",
            ) from error
        raise damaged(f"the picture cannot be decoded: {pillow.plain(error)}") from error
    if header.planar and header.channels > 1:
        array = np.moveaxis(array, 0, -1)
    array = as_channels(array)
    if array.shape != (header.height, header.width, header.channels):
        raise damaged(f"the picture has another shape than the header says: {array.shape}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _with_pillow(data: bytes, header: _Header) -> Samples:
    """Samples of up to 8 bits, of compressions that libtiff knows."""
    image = pillow.decode(data, "TIFF", (header.width, header.height))
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
        raise needs_rgb(image.mode)
    array = np.asarray(image)
    samples = as_channels(array.astype(np.uint8) if array.dtype == np.bool_ else array)
    if samples.shape[2] != header.channels:
        raise InputError(
            f"TIFF files of {header.channels} channels with this compression are not supported",
            None,
            "save it uncompressed or with ZIP compression",
        )
    if header.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and header.bits < 8:
        levels = 2**header.bits - 1
        if header.bits > 1:
            samples = samples // (255 // levels)
    # Pillow turns white-is-zero round itself.
    if header.photometric == _WHITE_IS_ZERO:
        samples = np.asarray((2**header.bits - 1) - samples).astype(np.uint8)
    return samples


def _interpreted(
    samples: Samples, header: _Header, data: bytes, page: Directory, layout: Layout
) -> Samples:
    """Stored samples as grey or RGB with black at 0."""
    if samples.dtype == np.bool_:
        samples = samples.astype(np.uint8)
    if header.photometric == _PALETTE:
        return _look_up(samples, header, page, layout)
    if header.bits < 8:
        samples = scaled_to_8(samples, header.bits)
    if header.photometric == _WHITE_IS_ZERO:
        if samples.dtype.kind == "f":
            raise InputError("floating-point TIFF files with white at 0 are not supported")
        samples = samples.copy()
        np.invert(samples[..., 0], out=samples[..., 0])
    return samples


def _look_up(samples: Samples, header: _Header, page: Directory, layout: Layout) -> Samples:
    """Palette indices as RGB; 8 bits if the palette has no more."""
    try:
        colours = np.array(_numbers(page, _COLORMAP, layout, ()), np.uint16)
    except BadDirectory:
        colours = np.zeros(0, np.uint16)
    if colours.size != 3 * 2**header.bits or header.channels != 1 or header.bits > 8:
        raise damaged("the TIFF file has no palette that fits")
    high = colours >> 8
    if (colours == high * 257).all() or not (colours & 255).any():
        colours = high.astype(np.uint8)
    return colours.reshape(3, -1).T[samples[..., 0]]


# ---------------------------------------------------------------------------- tags


def _picture(
    samples: Samples, data: bytes, pages: list[Directory], header: _Header, layout: Layout
) -> Picture:
    tags = ifd.tree(data, pages[0], layout)
    lost = []
    if _LAYERS in tags:
        lost.append("layers of Photoshop")
    if _CREDENTIALS in tags:
        lost.append("content credentials (they are of the picture as it was)")
    if any(_subfile(p, layout) & (_REDUCED | _MASK) == _MASK for p in pages[1:]):
        lost.append("the transparency mask (a page of its own)")

    def taken(tag: int) -> bytes | None:
        entry = tags.pop(tag, None)
        return entry.data if isinstance(entry, Entry) else None

    meta = Metadata(
        icc=taken(_ICC), xmp=taken(_XMP), photoshop=taken(_PHOTOSHOP), iptc=taken(_IPTC)
    )
    kept: Tree = {tag: value for tag, value in tags.items() if tag not in _STORAGE}
    transfer = kept.pop(_TRANSFER, None)
    if transfer is not None and header.bits != 8 * samples.dtype.itemsize:
        transfer = None
        lost.append("the transfer function (it is of other bits)")
    if kept:
        # EXIF blocks are never BigTIFF: those types of values have no place there.
        meta.exif = ifd.write_block(_classic(kept), Layout(layout.order))
        meta.density = exif_density(meta.exif)
    colours = 3 if header.photometric in (_RGB, _YCBCR, _PALETTE) else 1
    alpha = {1: "associated", 2: "straight"}.get(header.extras[0] if header.extras else 0)
    return Picture(
        np.ascontiguousarray(samples),
        colours,
        alpha=alpha,  # type: ignore[arg-type]
        format="tiff",
        meta=meta,
        native=Native(
            layout,
            header.compression != _NONE,
            header.photometric == _WHITE_IS_ZERO,
            header.extras,
            transfer if isinstance(transfer, Entry) else None,
        ),
        lost=lost,
    )


def _classic(tags: Tree) -> Tree:
    """Without values of 64-bit types, which only BigTIFF has."""
    return {
        tag: _classic(value) if isinstance(value, dict) else value
        for tag, value in tags.items()
        if isinstance(value, dict) or value.kind not in (ifd.LONG8, 17, 18)
    }


def left_behind(picture: Picture) -> list[str]:
    """What a TIFF file has that no other format takes, in words.

    Args:
        picture: as it was read.
    """
    native: Native = picture.native
    return [] if native.transfer is None else ["the transfer function (tag 301 of TIFF)"]


# ---------------------------------------------------------------------------- writing


def write(picture: Picture, path: Path) -> None:
    """Write a TIFF file.

    Args:
        picture: of any kind.
        path: the file to make.

    Raises:
        OutputError: tifffile is missing.
        InputError: it cannot write this.
        OSError: the system cannot.
    """
    try:
        tifffile = _tifffile()
    except InputError as error:
        raise OutputError(error.what, None, error.hint) from None
    native: Native | None = picture.native if picture.format == "tiff" else None
    layout = native.layout if native else Layout(_order(picture.meta.exif))
    samples = picture.samples
    if native is not None and native.white_is_zero:
        samples = samples.copy()
        np.invert(samples[..., 0], out=samples[..., 0])
    compressed = native.compressed if native else True
    # BigTIFF from where offsets of 32 bits may not reach.
    big = layout.big or samples.nbytes > (4 << 30) - (64 << 20)
    layout = Layout(layout.order, big)
    try:
        # A file of ours: tifffile does not tell what goes wrong when it closes one of its own.
        with (
            path.open("wb") as file,
            tifffile.TiffWriter(file, bigtiff=big, byteorder=layout.order) as writer,
        ):
            writer.write(
                samples if samples.shape[2] > 1 else samples[..., 0],
                photometric=_photometric(picture, native),
                planarconfig="contig" if samples.shape[2] > 1 else None,
                extrasamples=_extras(picture, native),
                compression="zlib" if compressed else None,
                predictor=2 if compressed and not picture.is_float else None,
                metadata=None,
                software=False,
                maxworkers=1,
            )
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise InputError(f"the TIFF file cannot be written: {pillow.plain(error)}") from error
    tags = _tags(picture, layout)
    if native is not None and native.transfer is not None:
        tags[_TRANSFER] = native.transfer
    _add_tags(tags, path, layout)


def _order(exif: bytes | None) -> str:
    """Byte order of an EXIF block: its values are copied as they are."""
    with contextlib.suppress(BadDirectory):
        return ifd.read_header(exif or b"")[0].order
    return "<"


def _photometric(picture: Picture, native: Native | None) -> str:
    if picture.colours == 3:
        return "rgb"
    return "miniswhite" if native is not None and native.white_is_zero else "minisblack"


def _extras(picture: Picture, native: Native | None) -> tuple[int, ...] | None:
    """TIFF's numbers for the channels after the colours."""
    count = picture.samples.shape[2] - picture.colours
    if native is not None and len(native.extras) == count:
        return native.extras or None
    known = {None: (), "associated": (1,), "straight": (2,)}[picture.alpha]
    return (known + (0,) * picture.extras) or None


def _add_tags(tags: Tree, path: Path, layout: Layout) -> None:
    """Put a directory with the tags of the samples and all others at the end of a file."""
    with path.open("r+b") as file:
        head = file.read(layout.header)
        at = struct.unpack_from(layout.word, head, layout.header - struct.calcsize(layout.word))[0]
        # tifffile puts the directory in front of the samples: values are not far.
        file.seek(0)
        start = file.read(at + (1 << 20))
        made = ifd.read_directory(start, at, layout).entries
        if not {_WIDTH, _HEIGHT, *_PIECES[0]} <= made.keys():
            file.seek(0)
            made = ifd.read_directory(file.read(), at, layout).entries
        storage = {tag: entry for tag, entry in made.items() if tag in _STORAGE}
        end = file.seek(0, 2)
        if end % 2:
            end += file.write(b"\0")
        file.write(ifd.write(tags | storage, layout, end))
        file.seek(layout.header - struct.calcsize(layout.word))
        file.write(struct.pack(layout.word, end))


def _tags(picture: Picture, layout: Layout) -> Tree:
    """All tags that are not about how samples are stored."""
    meta = picture.meta
    tags: Tree = {}
    with contextlib.suppress(BadDirectory):
        if meta.exif is not None:
            tags = ifd.read_block(meta.exif)[1]
    tags = {tag: value for tag, value in tags.items() if tag not in _STORAGE}
    if X_RESOLUTION not in tags:
        density = held(picture, "inch", LEAST_IN_TAGS, MOST_IN_TAGS, "TIFF")
        if density is not None:
            tags |= density_tags(density, layout)
    iptc = meta.iptc
    if iptc is None and meta.photoshop is not None:
        iptc = iptc_of(meta.photoshop)
    for tag, data in ((_ICC, meta.icc), (_XMP, meta.xmp), (_PHOTOSHOP, meta.photoshop)):
        if data is not None:
            tags[tag] = Entry(1 if tag == _XMP else ifd.UNDEFINED, len(data), data)
    if iptc is not None:
        tags[_IPTC] = Entry(ifd.UNDEFINED, len(iptc), iptc)
    return tags
