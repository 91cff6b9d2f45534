"""What `serve` reads: a y4m stream, a VapourSynth script or a video file, as one thing."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vs_deblur.cli._progress import warn
from vs_deblur.errors import InputError, UsageError, reason
from vs_deblur.hosts import y4m

if TYPE_CHECKING:
    from vs_deblur.pipeline import ClipInfo, MarkedFrame, Plane
    from vs_deblur_kernels.pixels import Matrix

Kind = Literal["y4m", "vpy", "video"]


@dataclass(frozen=True)
class Reading:
    """How a source is to be read.

    Attributes:
        matrix, full_range: what the user says of the samples; None: what the source says.
        requests: frames a script is asked for at once.
        allow_interlaced: take interlaced frames as if they were progressive.
    """

    matrix: Matrix | None = None
    full_range: bool | None = None
    requests: int | None = None
    allow_interlaced: bool = False


@dataclass(frozen=True)
class Source:
    """A clip to be served.

    Attributes:
        info: the clip.
        frames: frames from one number on and before another (None: all); for one call.
        exact: whether ``info.length`` can be relied on.
        header: the y4m header that it came with.
        rate: frames a second for a header, where ``info`` has none.
        deblurred_by: the model by which it is deblurred already.
    """

    info: ClipInfo
    frames: Callable[[int, int | None], Iterable[Sequence[Plane] | MarkedFrame]]
    exact: bool = False
    header: y4m.Header | None = None
    rate: Fraction | None = None
    deblurred_by: str | None = None


def kind_of(path: str) -> Kind:
    """What a path is; files are known by their first bytes, streams are taken for y4m.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if path == "-":
        return "y4m"
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError("input is a folder", path, "give a file")
        suffix = Path(path).suffix.lower()
        if suffix == ".vpy":
            return "vpy"
        if suffix == ".y4m" or not stat.S_ISREG(mode):
            return "y4m"
        with Path(path).open("rb") as file:
            return "y4m" if file.read(len(y4m.MAGIC)) == y4m.MAGIC else "video"
    except FileNotFoundError as error:
        raise InputError("no such file", path) from error
    except OSError as error:
        raise InputError(f"cannot read: {reason(error)}", path) from error


@contextlib.contextmanager
def open_source(path: str, reading: Reading) -> Iterator[Source]:
    """Open a source for as long as the context lasts.

    Raises:
        InputError: it cannot be read or is not supported.
        UsageError: stdin is a terminal.
    """
    kind = kind_of(path)
    if kind == "y4m":
        with _descriptor(path) as fd:
            yield _stream(fd, "stdin" if path == "-" else path, reading)
    elif kind == "vpy":
        from vs_deblur.hosts.vpy import Script

        script = Script(path, allow_interlaced=reading.allow_interlaced)
        try:
            yield Source(
                _override(script.info, reading),
                lambda start, end: script.frames(start, end, reading.requests),
                exact=True,
                deblurred_by=script.deblurred_by,
            )
        finally:
            script.close()
    else:
        yield _video(path, reading)


@contextlib.contextmanager
def _descriptor(path: str) -> Iterator[int]:
    if path == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed", None, "give a file")
        if os.isatty(0):
            raise UsageError(
                "standard input is a terminal", None, "pipe y4m into it, or give a file"
            )
        yield 0
        return
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise InputError(f"cannot read: {reason(error)}", path) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _stream(fd: int, name: str, reading: Reading) -> Source:
    reader = y4m.Y4mReader(
        y4m.open_descriptor(fd, name), name, allow_interlaced=reading.allow_interlaced
    )
    header = reader.header
    if header.rate is not None and header.frame_rate is None:
        warn(f"the frame rate of {name} is unknown (F{header.rate[0]}:{header.rate[1]})")
    full = reading.full_range
    if full is not None and full != bool(header.full_range):
        header = header.with_range(full)
    info = reader.info(reading.matrix, full)
    if reading.matrix is None and info.fmt.family == "yuv":
        warn(f"y4m does not say its matrix: BT.{info.fmt.matrix} assumed for its height (--matrix)")
    return Source(info, lambda start, end: reader.frames(start), header=header)


def _video(path: str, reading: Reading) -> Source:
    from vs_deblur.hosts.video import open_video

    video = open_video(path, allow_interlaced=reading.allow_interlaced)

    def frames(start: int, end: int | None) -> Iterator[Sequence[Plane]]:
        for frame in video.timed_frames(start):
            yield frame.planes

    return Source(_override(video.info, reading), frames, rate=video.nominal_rate)


def _override(info: ClipInfo, reading: Reading) -> ClipInfo:
    fmt = info.fmt
    if reading.matrix is not None and fmt.family != "rgb":
        fmt = replace(fmt, matrix=reading.matrix)
    if reading.full_range is not None:
        fmt = replace(fmt, full_range=reading.full_range)
    return replace(info, fmt=fmt)
