"""Picture files: read with everything in them, and written with everything still there.

:func:`read` gives a :class:`~vs_deblur.photofile.picture.Picture`: upright samples of the file's
own depth, and the metadata as bytes. :func:`write` makes a file of it. Between the two only the
samples are to change. JPEG, PNG, TIFF and WebP are read and written; everything else that Pillow
opens is read, and written as PNG.

What a file may be is judged by its content. Files that are cut off, or whose checksums are wrong,
are refused: half a picture is never taken for a whole one. The size is read from the header and
compared with a limit before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vs_deblur.errors import DeblurError, InputError, UsageError, reason
from vs_deblur.photofile import jpeg, others, pillow, png, tiff, webp
from vs_deblur.photofile.convert import check_suits, suited
from vs_deblur.photofile.metadata import exif_density, upright
from vs_deblur.photofile.picture import Format, Picture

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Format",
    "Picture",
    "check_suits",
    "format_in",
    "format_of",
    "is_picture",
    "is_raw",
    "read",
    "write",
]

MAX_PIXELS = 250_000_000

#: The suffixes of the formats that we write; the first is the one of files that we name.
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png",),
    "tiff": (".tif", ".tiff"),
    "webp": (".webp",),
}
_READ_ONLY = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".pbm", ".pgm", ".ppm", ".tga")


def format_of(path: Path) -> Format:
    """The format that a suffix asks for.

    Raises:
        UsageError: none that we write.
    """
    suffix = path.suffix.lower()
    for name, suffixes in SUFFIXES.items():
        if suffix in suffixes:
            return name
    raise UsageError(
        f"the output must end in .jpg, .png, .tif or .webp, not {suffix or 'nothing'}",
        str(path),
        "or say --format",
    )


def is_picture(path: Path) -> bool:
    """Whether a name is that of a picture (raw files of cameras are not counted)."""
    suffix = path.suffix.lower()
    return suffix in _READ_ONLY or any(suffix in known for known in SUFFIXES.values())


def is_raw(path: Path) -> bool:
    """Whether a name is that of a camera's raw file."""
    return path.suffix.lower() in others.RAW_SUFFIXES


def format_in(path: Path) -> Format | None:
    """What a file begins as; None for what is only read, or cannot be."""
    try:
        with path.open("rb") as file:
            reader = _reader(file.read(64))
    except (OSError, InputError):
        return None
    known: dict[Callable[[bytes, int], Picture], Format] = {
        jpeg.read: "jpeg",
        png.read: "png",
        tiff.read: "tiff",
        webp.read: "webp",
    }
    return known.get(reader)


def read(path: Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file. The samples are upright, whatever its orientation.

    Args:
        path: the file; its suffix means nothing, but for raw files of cameras.
        max_pixels: pictures of more are refused.

    Raises:
        InputError: it is missing, damaged, too large, or of a kind that is refused.
    """
    try:
        return _read(path, max_pixels)
    except InputError as error:
        raise error.at(str(path)) from error


def _read(path: Path, max_pixels: int) -> Picture:
    if is_raw(path):
        raise tiff.raw_file(path.suffix[1:].upper())
    try:
        if not path.exists():
            raise InputError("no such file")
        if not path.is_file():
            raise InputError("not a file")
        with path.open("rb") as file:
            start = file.read(64)
            if not start:
                raise InputError("the file is empty")
            reader = _reader(start)
            data = start + file.read()
    except OSError as error:
        raise InputError(f"cannot be read: {reason(error)}") from error
    except MemoryError:
        raise InputError("the file does not fit into memory") from None
    try:
        picture = reader(data, max_pixels)
        upright(picture)
    except (DeblurError, MemoryError):
        raise
    except Exception as error:  # one picture that nobody thought of does not end a batch
        raise _unforeseen("read", error) from error
    return picture


def _unforeseen(what: str, error: Exception) -> InputError:
    """The error for a picture at which our own code, or a library, fails."""
    text = f"{type(error).__name__}: {pillow.plain(error)}"
    return InputError(f"the picture cannot be {what}: {text}", None, "-v shows the traceback")


def _reader(start: bytes) -> Callable[[bytes, int], Picture]:
    """Who reads a file that begins so."""
    if others.is_raw(start):
        raise tiff.raw_file("raw")
    if start.startswith(b"\xff\xd8\xff"):
        return jpeg.read
    if start.startswith(png.SIGNATURE):
        return png.read
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return tiff.read
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return webp.read
    return others.read


def write(picture: Picture, path: Path, kind: Format) -> list[str]:
    """Write a picture file.

    Args:
        picture: what to write.
        path: where to; a file of that name is replaced.
        kind: the format.

    Returns:
        what the source had that this file has not, in words.

    Raises:
        UsageError: the format cannot hold it.
        InputError: it is one at which the encoder fails.
        OutputError: what is needed to write it is not installed.
        OSError: the system cannot write it.
    """
    check_suits(picture, kind)
    try:
        return _write(picture, path, kind)
    except (DeblurError, OSError, MemoryError):
        raise
    except Exception as error:
        raise _unforeseen("written", error) from error


_LEFT_BEHIND: dict[Format | None, Callable[[Picture], list[str]]] = {
    "jpeg": jpeg.left_behind,
    "png": png.left_behind,
    "tiff": tiff.left_behind,
}


def _write(picture: Picture, path: Path, kind: Format) -> list[str]:
    left = []
    if kind != picture.format and picture.format in _LEFT_BEHIND and picture.native is not None:
        left = _LEFT_BEHIND[picture.format](picture)
    picture = suited(picture, kind)
    picture.lost += left
    meta = picture.meta
    if kind != picture.format and meta.density is None and meta.exif is not None:
        picture.meta = replace(meta, density=exif_density(meta.exif))
    if kind == "tiff":
        tiff.write(picture, path)
    else:
        data = {"jpeg": jpeg.write, "png": png.write, "webp": webp.write}[kind](picture)
        path.write_bytes(data)
    return picture.lost
