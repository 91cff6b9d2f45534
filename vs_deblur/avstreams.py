"""Which stream of a file is its video."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vs_deblur.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


def main_video(container: InputContainer) -> VideoStream:
    """The first video stream that is not a cover picture.

    Args:
        container: an open file.

    Raises:
        InputError: there is none, or no decoder for it.
    """
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise InputError("no decoder for its video", container.name)
            return stream
    raise InputError("there is no video in it", container.name)
