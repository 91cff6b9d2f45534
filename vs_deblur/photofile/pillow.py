"""Pillow as a decoder and encoder of plain samples: no metadata, no limits but ours, no warnings.

Pillow sees files only after :mod:`vs_deblur.photofile` has read their size and taken out what is
not the picture itself.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from vs_deblur.errors import InputError, reason
from vs_deblur.photofile.picture import Samples, as_channels, damaged

if TYPE_CHECKING:
    from PIL import Image

_lock = threading.Lock()


@contextlib.contextmanager
def limits(buffer: int = 0, max_pixels: int | None = None) -> Iterator[None]:
    """Pillow with a limit of pixels that is ours, and with a larger buffer.

    Args:
        buffer: bytes that an encoder of JPEG may put out at once; it fails if they do not suffice.
        max_pixels: pictures of more raise ``Image.DecompressionBombError``, those inside of others
            as well; None: there is no limit, for one that has been compared with it already.
    """
    from PIL import Image, ImageFile

    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels, block = Image.MAX_IMAGE_PIXELS, ImageFile.MAXBLOCK
        # It warns at the limit and raises at twice as many.
        Image.MAX_IMAGE_PIXELS = None if max_pixels is None else (max_pixels + 1) // 2
        ImageFile.MAXBLOCK = max(block, buffer)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.MAXBLOCK = pixels, block


def decode(data: bytes, kind: str, size: tuple[int, int]) -> Image.Image:
    """Decode a file.

    Args:
        data: the file.
        kind: Pillow's name of its format.
        size: what our own reading of the header says.

    Raises:
        InputError: it is damaged, or of a kind that Pillow does not read.
    """
    from PIL import Image

    said: list[str] = []
    with limits():
        try:
            image = Image.open(io.BytesIO(data), formats=[kind])
            if image.size != size:
                raise damaged(f"the header states more than one size: {size} and {image.size}")
            with _overheard(said) if kind == "TIFF" else contextlib.nullcontext():
                image.load()
        except InputError:
            raise
        except MemoryError:
            raise InputError("the picture does not fit into memory") from None
        except Exception as error:  # decoders raise whatever they like at damaged files
            text = said[0] if said else plain(error)
            raise damaged(f"the picture cannot be decoded: {text}") from error
    if said:
        raise damaged(f"the picture cannot be decoded: {said[0]}")
    return image


@contextlib.contextmanager
def _overheard(errors: list[str]) -> Iterator[None]:
    """Take down what libtiff says is wrong: it says so on stderr only, and goes on in places."""
    with tempfile.TemporaryFile() as file:
        try:
            saved = os.dup(2)
        except OSError:  # there is no stderr
            yield
            return
        try:
            os.dup2(file.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines = file.read(4096).decode(errors="replace").splitlines()
            errors += [plain(ValueError(line)) for line in lines if "Warning" not in line]


def plain(error: BaseException) -> str:
    """The text of a library's error in one short line."""
    return " ".join(reason(error).split())[:120]


def samples(image: Image.Image) -> Samples:
    """(H, W, C) of an image of a mode without palette; bilevel ones as 0 and 255."""
    array = np.asarray(image)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    return as_channels(array)


def image_of(array: Samples) -> Image.Image:
    """An image of (H, W, 1..4) uint8."""
    from PIL import Image

    array = np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array)
    return Image.fromarray(array)


def encode(array: Samples, kind: str, **options: Any) -> bytes:
    """Encode (H, W, C) uint8.

    Raises:
        InputError: the format cannot hold it.
    """
    height, width, channels = array.shape
    file = io.BytesIO()
    with limits(buffer=4 * width * height * channels // 3 + 65536):
        try:
            image_of(array).save(file, kind, **options)
        except MemoryError:
            raise
        except Exception as error:
            raise InputError(f"{kind} cannot hold {width}x{height}: {plain(error)}") from error
    return file.getvalue()
