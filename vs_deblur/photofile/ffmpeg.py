"""FFmpeg, through PyAV, for what Pillow does only with 8 bits; and as a second opinion on JPEG."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from vs_deblur.errors import InputError, OutputError
from vs_deblur.photofile.picture import Samples, damaged
from vs_deblur.photofile.pillow import plain

_INSTALL = "pip install 'vs-deblur[video]'"
_FORMATS = {1: "gray16be", 2: "ya16be", 3: "rgb48be", 4: "rgba64be"}
CHANNELS = {name[:-2] + order: count for count, name in _FORMATS.items() for order in ("be", "le")}


def _rows(frame: Any, channels: int) -> Samples:
    """The samples of a packed 16-bit frame, in its own memory: (H, W, C)."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    used = rows[: frame.height, : frame.width * channels * 2]
    order = ">" if frame.format.name.endswith("be") else "<"
    return used.view(order + "u2").reshape(frame.height, frame.width, channels)


def _frames(data: bytes, codec: str) -> list[Any]:
    """All frames; any fault is an error."""
    from av.codec.context import CodecContext
    from av.packet import Packet

    decoder: Any = CodecContext.create(codec, "r")
    decoder.thread_count = 1
    decoder.options = {"err_detect": "explode+crccheck"}
    return [*decoder.decode(Packet(data)), *decoder.decode(None)]


def decode(data: bytes, codec: str, size: tuple[int, int]) -> Samples:
    """Decode a picture of 16 bits: (H, W, 1..4) uint16.

    Args:
        data: the file.
        codec: FFmpeg's decoder.
        size: width and height that the header states.

    Raises:
        InputError: PyAV is missing; the file is damaged, or of another pixel format.
    """
    name = codec.upper()
    try:
        import av
    except ImportError:
        raise InputError(f"{name} files of 16 bits need PyAV", None, _INSTALL) from None
    try:
        frames = _frames(data, codec)
    except (av.error.FFmpegError, ValueError) as error:
        raise damaged(f"the picture cannot be decoded: {plain(error)}") from error
    if len(frames) != 1 or (frames[0].width, frames[0].height) != size or frames[0].is_corrupt:
        raise damaged("the picture cannot be decoded")
    channels = CHANNELS.get(frames[0].format.name)
    if channels is None:
        raise InputError(f"{name} files of {frames[0].format.name} are not supported")
    return _rows(frames[0], channels).astype(np.uint16)


def encode_png(samples: Samples) -> bytes:
    """Encode (H, W, 1..4) uint16.

    Raises:
        OutputError: PyAV is missing.
        InputError: the picture is too large for it.
    """
    try:
        import av
        from av.codec.context import CodecContext
        from av.video.frame import VideoFrame
    except ImportError:
        raise OutputError("PNG files of 16 bits need PyAV", None, _INSTALL) from None
    height, width, channels = samples.shape
    try:
        encoder: Any = CodecContext.create("png", "w")
        encoder.width, encoder.height, encoder.pix_fmt = width, height, _FORMATS[channels]
        encoder.time_base, encoder.thread_count = Fraction(1), 1
        encoder.options = {"pred": "mixed"}
        frame = VideoFrame(width, height, _FORMATS[channels])
        _rows(frame, channels)[...] = samples
        frame.pts = 0
        return b"".join(bytes(p) for p in (*encoder.encode(frame), *encoder.encode(None)))
    except (av.error.FFmpegError, ValueError) as error:
        raise InputError(f"PNG cannot hold {width}x{height}: {plain(error)}") from error


def check_jpeg(data: bytes) -> None:
    """Refuse a JPEG file whose data ends too early: libjpeg makes it up with grey in silence.

    Nothing is checked where PyAV is not installed, or does not know the kind of JPEG.

    Raises:
        InputError: it does.
    """
    try:
        import av
    except ImportError:
        return
    try:
        _frames(data, "mjpeg")
    except av.error.InvalidDataError as error:
        raise damaged("the JPEG file is damaged: part of the picture is missing") from error
    except (av.error.FFmpegError, ValueError):
        return
