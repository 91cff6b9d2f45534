"""Video files: frames in their own pixel format, with their times and colour properties.

Frame numbers count the frames that the decoder puts out, in display order, from 0. Reading begins
at the file's beginning always: seeking by time finds *a* frame, not frame n.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from vs_deblur.avpixels import Colour, Layout, Plane, layout, planes_of
from vs_deblur.avstreams import main_video, open_input
from vs_deblur.errors import InputError, reason
from vs_deblur.h273 import MATRICES, UNSPECIFIED, guessed_matrix
from vs_deblur.pipeline import ClipInfo
from vs_deblur.wholeness import is_cut_off
from vs_deblur_kernels.pixels import ChromaLocation, PixelFormat

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.rational import AVRational
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

# Chroma sample locations as FFmpeg numbers them.
_LOCATIONS: dict[int, ChromaLocation] = {
    1: "left",
    2: "center",
    3: "topleft",
    4: "top",
    5: "bottomleft",
    6: "bottom",
}
_PROGRESSIVE = (0, 1)  # AVFieldOrder: unknown, progressive


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame.

    Attributes:
        planes: samples in the file's own format, arrays of their own.
        pts: time at which it is shown, in units of the reader's ``time_base``.
        duration: in the same unit; 0 where the file does not say.
    """

    planes: list[Plane]
    pts: int
    duration: int


def fraction(value: AVRational | Fraction) -> Fraction:
    """PyAV's rational as Python's."""
    return Fraction(value.numerator, value.denominator)


def _colour(frame: VideoFrame, stream: VideoStream) -> Colour:
    """What the frame says, and where it says nothing, the stream."""
    context = stream.codec_context

    def first(silent: int, *values: int) -> int:
        return next((v for v in map(int, values) if v != silent), silent)

    return Colour(
        first(0, frame.color_range, context.color_range),
        first(UNSPECIFIED, frame.colorspace, context.colorspace),
        first(UNSPECIFIED, frame.color_primaries, context.color_primaries),
        first(UNSPECIFIED, frame.color_trc, context.color_trc),
        first(0, frame.chroma_location, context.chroma_sample_location),
    )


def _pixel_format(at: Layout, colour: Colour, height: int, path: str) -> PixelFormat:
    """How to read the samples; guesses are said once."""
    matrix = guessed_matrix(height)
    if at.family == "yuv":
        known = MATRICES.get(colour.matrix)
        if known is None and colour.matrix not in (0, UNSPECIFIED, 3):
            raise InputError(
                f"the colour matrix number {colour.matrix} is not supported",
                path,
                "convert the clip to BT.709 or BT.2020 (non-constant luminance) first",
            )
        if known is None:
            logger.warning(
                "%s does not state its colour matrix: taken as BT.%s for its height", path, matrix
            )
        matrix = known or matrix
    else:
        matrix = MATRICES.get(colour.matrix, matrix)
    full = at.full_range if colour.range == 0 else colour.range == 2
    location: ChromaLocation = _LOCATIONS.get(colour.location, "left")
    return PixelFormat(
        at.family, at.bits, at.is_float, at.subsampling, matrix, full and not at.is_float, location
    )


def _rate(stream: VideoStream) -> Fraction | None:
    """Frames a second, if the file's two statements about it agree."""
    average, base = stream.average_rate, stream.base_rate
    if not average or not base:
        return None
    agree = abs(float(average) / float(base) - 1) < 0.01
    return fraction(base) if agree else None


class VideoReader:
    """A video file. Each call of :meth:`frames` reads it anew.

    Args:
        path: the file.
        allow_interlaced: take interlaced frames as if they were progressive.

    Attributes:
        info: the clip; its ``length`` is what the file's header says, None where it says nothing.
        pix_fmt: FFmpeg's name of the pixel format.
        colour: colour properties.
        time_base: unit of times, seconds.
        nominal_rate: frames a second, on the average where they vary.

    Raises:
        InputError: not a video file, no video in it, or of a format that is not supported.
    """

    def __init__(self, path: str | Path, *, allow_interlaced: bool = False) -> None:
        self.path = str(path)
        self.allow_interlaced = allow_interlaced
        with self._open() as container:
            stream = main_video(container)
            frame = self._first_frame(container, stream)
            at = layout(frame.format.name)
            if at.has_alpha:
                logger.warning("%s: the alpha channel is not kept", self.path)
            self.pix_fmt = frame.format.name
            self.colour = _colour(frame, stream)
            if self.colour.range == 0 and at.full_range and at.family == "yuv":
                self.colour = replace(self.colour, range=2)
            self.time_base = fraction(stream.time_base)
            rate = _rate(stream)
            self.nominal_rate = rate or fraction(stream.average_rate or Fraction(25))
            aspect = stream.sample_aspect_ratio
            self.info = ClipInfo(
                frame.width,
                frame.height,
                _pixel_format(at, self.colour, frame.height, self.path),
                rate,
                fraction(aspect) if aspect else None,
                stream.frames or None,
            )

    def _open(self) -> InputContainer:
        import av

        try:
            if not Path(self.path).exists():
                raise InputError("no such file", self.path)
            if Path(self.path).is_dir():
                raise InputError("input is a folder", self.path, "give a video file")
            return open_input(self.path)
        except (av.error.FFmpegError, OSError) as error:
            if isinstance(error, InputError):
                raise
            if is_cut_off(Path(self.path)):
                raise self._cut_off() from error
            raise InputError(f"cannot be read as a video: {reason(error)}", self.path) from error

    def _first_frame(self, container: InputContainer, stream: VideoStream) -> VideoFrame:
        import av

        order = stream.codec_context.field_order
        if order not in _PROGRESSIVE:
            self._refuse_interlaced("the clip")
        try:
            for frame in container.decode(stream):
                if frame.interlaced_frame:
                    self._refuse_interlaced("frame 0")
                return frame
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"frame 0 cannot be decoded: {reason(error)}", self.path) from error
        if is_cut_off(Path(self.path)):
            raise self._cut_off()
        raise InputError("there is no frame in it", self.path)

    def _cut_off(self) -> InputError:
        """The error for a file whose frames cannot even be found."""
        return InputError(
            "the file is cut off before its first frame, or before what says where frames are",
            self.path,
            "copy it again, or have a tool for broken recordings mend it",
        )

    def _refuse_interlaced(self, what: str) -> None:
        if not self.allow_interlaced:
            raise InputError(
                f"{what} is interlaced",
                self.path,
                "deinterlace first, or take it as progressive with --allow-interlaced",
            )

    def frames(self) -> Iterator[list[Plane]]:
        """The planes of each frame, in the file's own format, arrays of their own.

        Raises:
            InputError: a frame cannot be decoded, or is of another size or format, or the file
                ends before it should; the frames before it have come.
        """
        for frame in self.timed_frames():
            yield frame.planes

    def timed_frames(self, origin: int = 0) -> Iterator[TimedFrame]:
        """Frames from number ``origin`` on with their times; see :meth:`frames`."""
        clock = _Clock(self.time_base, self.nominal_rate)
        with self._open() as container:
            stream = main_video(container)
            for n, frame in enumerate(self._decode(container, stream)):
                pts = clock.time(frame.pts)
                if n < origin:
                    continue
                self._check(n, frame)
                yield TimedFrame(planes_of(frame), pts, frame.duration or 0)

    def goes_on_after(self, n: int, pts: int) -> bool:
        """Whether there are frames after frame ``n``, by the file's packets; none is decoded.

        Args:
            n: a frame's number.
            pts: the time at which it is shown, in units of ``time_base``.
        """
        import av

        untimed = 0
        try:
            with self._open() as container:
                for packet in container.demux(main_video(container)):
                    if not packet.size or packet.is_discard:
                        continue
                    untimed += packet.pts is None
                    if untimed > n + 1 or (packet.pts is not None and packet.pts > pts):
                        return True
        except av.error.FFmpegError:
            return True
        return False

    def _check(self, n: int, frame: VideoFrame) -> None:
        info = self.info
        if (frame.width, frame.height) != (info.width, info.height):
            size = f"{frame.width}x{frame.height}"
            raise InputError(
                f"frame {n} is {size}, those before it are {info.width}x{info.height}",
                self.path,
                "cut the clip there",
            )
        if frame.format.name != self.pix_fmt:
            raise InputError(
                f"frame {n} is {frame.format.name}, those before it are {self.pix_fmt}",
                self.path,
                "cut the clip there",
            )
        if frame.interlaced_frame:
            self._refuse_interlaced(f"frame {n}")

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Every frame, then an error if the file ends too early.

        A packet that the demuxer calls corrupt is the end of a file that is cut off if it is the
        last one, else damage that the decoder copes with, or fails at.
        """
        import av

        stream.thread_type = "AUTO"
        n, damaged, said = 0, False, False
        try:
            for packet in container.demux(stream):
                if packet.size:
                    if damaged and not said:
                        said = True
                        logger.warning("%s is damaged near frame %d", self.path, max(n - 1, 0))
                    damaged = packet.is_corrupt
                for frame in stream.decode(packet):
                    yield frame
                    n += 1
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(
                f"frame {n} cannot be decoded: {reason(error)}",
                self.path,
                f"--end {n - 1} keeps the frames before it" if n else None,
            ) from error
        if damaged or is_cut_off(Path(self.path)):
            raise InputError(
                f"the file is cut off after frame {n - 1}",
                self.path,
                f"--end {n - 1} keeps the frames that are there" if n else None,
            )


class _Clock:
    """Times of frames that always grow, even where the file states none."""

    def __init__(self, time_base: Fraction, rate: Fraction) -> None:
        self._step = max(1, round(1 / (rate * time_base)))
        self._last: int | None = None

    def time(self, pts: int | None) -> int:
        """The time of the next frame."""
        least = None if self._last is None else self._last + 1
        if pts is None:
            pts = 0 if self._last is None else self._last + self._step
        self._last = pts if least is None else max(pts, least)
        return self._last


def open_video(path: str | Path, *, allow_interlaced: bool = False) -> VideoReader:
    """Open a video file; see :class:`VideoReader`."""
    return VideoReader(path, allow_interlaced=allow_interlaced)
