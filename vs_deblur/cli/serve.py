"""``vs-deblur serve``: the frame server."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from vs_deblur.cli._common import ModelSettings, model_options
from vs_deblur.cli._output import OutputFile
from vs_deblur.cli._progress import Progress, note, warn
from vs_deblur.cli._signals import current_stop, graceful
from vs_deblur.cli._sink import Sink
from vs_deblur.cli._sources import Reading, Source, open_source
from vs_deblur.errors import InputError, OutputError, Stopped, UsageError, reason
from vs_deblur.hosts import y4m
from vs_deblur.stdout import private_stdout

if TYPE_CHECKING:
    from vs_deblur.engine import Frame
    from vs_deblur.pipeline import Check, ClipInfo
    from vs_deblur.timeline import Output
    from vs_deblur_kernels.pixels import Matrix, PixelFormat

Container = Literal["y4m", "raw"]


@dataclass(frozen=True)
class Range:
    """The frames that are wanted.

    Attributes:
        start: first one.
        end: the one before which to stop, None for all.
        total: how many there are, None where not known.
        exact: whether ``total`` can be relied on.
    """

    start: int
    end: int | None
    total: int | None
    exact: bool


def _range(source: Source, start: int, last: int | None) -> Range:
    """Check ``--start`` and ``--end`` (inclusive, as vspipe's) against the clip."""
    length = source.info.length
    end = None if last is None else last + 1
    if last is not None and last < start:
        raise UsageError(f"--end must not be before --start, got {last} and {start}")
    if source.exact and length is not None and max(start, last or 0) >= max(length, 1):
        raise UsageError(
            f"frame {max(start, last or 0)} is beyond the clip", None, f"its last is {length - 1}"
        )
    if length is None:
        return Range(start, end, None if end is None else end - start, False)
    stop = length if end is None else min(end, length)
    return Range(start, end, max(stop - start, 0), source.exact)


def _header(source: Source, wanted: Range) -> bytes:
    """The y4m header of what is served."""
    whole = wanted.start == 0 and wanted.end is None
    if source.header is not None:
        header = source.header if whole else source.header.with_length(wanted.total)
        return y4m.write_header(header)
    rate = None
    if source.info.frame_rate is None and source.rate is not None:
        warn(f"y4m has no variable frame rate: {float(source.rate):.3f} fps on the average")
        rate = (source.rate.numerator, source.rate.denominator)
    total = wanted.total if wanted.exact else None
    return y4m.write_header(y4m.header_for(source.info, total, rate))


def _format_name(fmt: PixelFormat) -> tuple[str, str]:
    """VapourSynth's names of a format and of its family."""
    depth = {16: "H", 32: "S"}[fmt.bits] if fmt.is_float else str(fmt.bits)
    if fmt.family == "gray":
        return f"Gray{depth}", "Gray"
    if fmt.family == "rgb":
        return f"RGB{depth if fmt.is_float else fmt.bits * 3}", "RGB"
    names = {(1, 1): "420", (1, 0): "422", (0, 0): "444", (0, 1): "440", (2, 0): "411"}
    return f"YUV{names.get(fmt.subsampling, '410')}P{depth}", "YUV"


def _information(info: ClipInfo) -> bytes:
    """The clip in the words of ``vspipe --info``."""
    fmt, rate = info.fmt, info.frame_rate
    name, family = _format_name(fmt)
    lines = {
        "Width": info.width,
        "Height": info.height,
        "Frames": "Unknown" if info.length is None else info.length,
        "FPS": "Variable",
        "Format Name": name,
        "Color Family": family,
        "Sample Type": "Float" if fmt.is_float else "Integer",
        "Bits": fmt.bits,
        "SubSampling W": fmt.subsampling[0],
        "SubSampling H": fmt.subsampling[1],
    }
    if rate is not None:
        lines["FPS"] = f"{rate.numerator}/{rate.denominator} ({float(rate):.3f} fps)"
    return "".join(f"{key}: {value}\n" for key, value in lines.items()).encode()


@dataclass(frozen=True)
class Destination:
    """Where frames go.

    Attributes:
        fd: a file descriptor.
        name: its name in messages.
        remark: where a run that was stopped leaves what it wrote.
    """

    fd: int
    name: str
    remark: str = ""


@contextlib.contextmanager
def _destination(output: str, source: str, overwrite: bool) -> Iterator[Destination]:
    """Open the output, before anything is read or loaded.

    A file gets its name when the context is left without an error.
    """
    if output == "-":
        with private_stdout() as fd:
            with contextlib.suppress(OSError):
                written = os.fstat(fd)
                read = os.fstat(0) if source == "-" else Path(source).stat()
                if stat.S_ISREG(written.st_mode) and os.path.samestat(read, written):
                    raise UsageError("output is the input", None, "write to another file")
            yield Destination(fd, "stdout")
        return
    inputs = () if source == "-" else (source,)
    with OutputFile(output, overwrite=overwrite, inputs=inputs) as file:
        try:
            opened = file.part.open("wb", buffering=0)
        except OSError as error:
            raise OutputError(f"cannot write: {reason(error)}", output) from error
        try:
            remark = "" if file.special else f" (in {file.part})"
            yield Destination(opened.fileno(), output, remark)
        except BaseException:
            with contextlib.suppress(OSError):  # what led here is the error to tell
                opened.close()
            raise
        try:
            opened.close()  # where a network's disk says that it is full
        except OSError as error:
            raise OutputError(f"cannot write: {reason(error)}", output) from error


def _outputs(
    source: Source, wanted: Range, settings: ModelSettings, check: Check
) -> Generator[Output[Frame]]:
    """The frames that are wanted, deblurred if they are not already. Loads the model."""
    from vs_deblur.pipeline import deblur_frames, untouched_frames

    if source.deblurred_by is not None:
        note(f"the frames are deblurred already (by {source.deblurred_by}): served as they are")
        frames = source.frames(wanted.start, wanted.end)
        return untouched_frames(frames, origin=wanted.start, end=wanted.end, check=check)
    deblurrer = settings.deblurrer()
    plan = deblurrer.plan
    origin = plan.origin(wanted.start)
    return deblur_frames(
        deblurrer,
        source.frames(origin, None if wanted.end is None else wanted.end + plan.look_ahead),
        source.info.fmt,
        scene_threshold=settings.scene_threshold,
        origin=origin,
        first=wanted.start,
        end=wanted.end,
        check=check,
    )


def _order(info: ClipInfo) -> Sequence[int]:
    """The order in which planes are written: R, G, B as vspipe does, G B R (FFmpeg's gbrp)."""
    return (1, 2, 0) if info.fmt.family == "rgb" else range(info.fmt.planes)


def _serve(
    source: Source,
    wanted: Range,
    settings: ModelSettings,
    header: bytes,
    to: Destination,
    quiet: bool,
) -> None:
    """Frames from the source to the destination."""
    from vs_deblur.pipeline import WriteBehind

    stop = current_stop()
    sink = Sink(to.fd, to.name, stop, before=y4m.FRAME if header else b"")

    def check() -> None:
        stop.check()
        sink.check_reader()

    outputs = _outputs(source, wanted, settings, check)
    order = _order(source.info)
    progress = None if quiet else Progress(wanted.total, vspipe=True)
    stop.remark = to.remark
    writer: WriteBehind[Callable[[], None]] = WriteBehind(
        lambda job: job(), check=check, progress=lambda: sink.taken
    )
    with graceful():
        try:
            with writer, contextlib.closing(outputs):
                writer.put(partial(sink.write, header))
                for output in outputs:
                    planes = [output.value.planes[i] for i in order]
                    writer.put(partial(sink.write_frame, planes))
                    if progress is not None:
                        progress.update(stop.frames)
        except Stopped:
            if writer.gave_up:
                stop.remark += "; the reader takes no more, the frame after them is cut off"
            raise
    _judge(source, wanted, stop.frames)
    if progress is not None:
        progress.update(stop.frames)
        progress.finish()


def _judge(source: Source, wanted: Range, served: int) -> None:
    """Compare what came with what was promised.

    Raises:
        InputError: the clip ended before ``--start`` or ``--end``.
    """
    last = wanted.start + served
    if wanted.end is not None and last < wanted.end:
        raise InputError(f"the clip ended before frame {wanted.end - 1} (--end)")
    if wanted.start and not served:
        raise InputError(f"the clip ended before frame {wanted.start} (--start)")
    promised = source.header.length if source.header else None
    if not served:
        warn("there are no frames")
    elif promised is not None and last > promised:
        warn(f"the header promised {promised} frames, there were {last}")


_EXAMPLES = """\b
vs-deblur serve shaky.mp4 | ffmpeg -i - sharp.mkv
vs-deblur serve clip.vpy -s 100 -e 199 -o part.y4m"""


@click.command(epilog=_EXAMPLES)
@click.argument("source_path", metavar="IN")
@click.option(
    "-o", "--output", default="-", metavar="FILE", help="Where to write. [default: stdout]"
)
@click.option(
    "-c",
    "--format",
    "container",
    type=click.Choice(["y4m", "raw"]),
    default="y4m",
    show_default=True,
    help="raw: planes without headers; RGB as G, B, R.",
)
@click.option("-s", "--start", type=click.IntRange(min=0), default=0, help="First frame.")
@click.option("-e", "--end", type=click.IntRange(min=0), help="Last frame, inclusive.")
@click.option(
    "-r", "--requests", type=click.IntRange(1, 1024), help="Frames a script is asked for at once."
)
@click.option("-i", "--info", is_flag=True, help="Print what the clip is and end.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--matrix",
    type=click.Choice(["709", "601", "2020", "240m", "fcc"]),
    help="The YUV matrix. [default: as IN says, else 709 from height 720 on, 601 below]",
)
@click.option(
    "--range",
    "sample_range",
    type=click.Choice(["limited", "full"]),
    help="The range of samples. [default: as IN says, else limited]",
)
@click.option("--allow-interlaced", is_flag=True, help="Take interlaced frames as progressive.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@model_options
def command(
    source_path: str,
    output: str,
    container: Container,
    start: int,
    end: int | None,
    requests: int | None,
    info: bool,
    overwrite: bool,
    matrix: Matrix | None,
    sample_range: str | None,
    allow_interlaced: bool,
    quiet: bool,
    settings: ModelSettings,
) -> None:
    """Serve the frames of IN, deblurred, as vspipe does.

    IN is a video file, a VapourSynth script (its output 0), a y4m file, or - for y4m on stdin.
    Frames of a script that has deblurred them already are served as they are.
    """
    full = None if sample_range is None else sample_range == "full"
    reading = Reading(matrix, full, requests, allow_interlaced)
    with (
        _destination(output, source_path, overwrite) as to,
        open_source(source_path, reading) as source,
    ):
        if info:
            Sink(to.fd, to.name, current_stop()).write(_information(source.info))
            return
        if os.isatty(to.fd):
            raise UsageError("frames do not go to a terminal", None, "use a pipe or -o FILE")
        wanted = _range(source, start, end)
        header = _header(source, wanted) if container == "y4m" else b""
        _serve(source, wanted, settings, header, to, quiet)
