"""What commands share: the run itself, errors as one line, and the options of the model.

The rest is in ``_signals`` (stopping), ``_progress`` (lines on stderr) and ``_output`` (files).
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from vs_deblur.cli import _signals
from vs_deblur.cli._progress import note, say, warn
from vs_deblur.errors import (
    DeblurError,
    OutOfMemoryError,
    OutputError,
    ReaderClosed,
    Stopped,
    UsageError,
    exit_code,
    printable,
    reason,
)

if TYPE_CHECKING:
    from vs_deblur.engine import Deblurrer, Kind

_verbose = False
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # whatever was written, and wherever
_LOGGERS = ("vs_deblur", "vs_deblur_kernels")  # those that speak to users


def be_verbose() -> None:
    """Show tracebacks and what libraries have to say."""
    global _verbose
    _verbose = True
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG)


class _OneLine(logging.Handler):
    """Log records of ours as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        (warn if record.levelno >= logging.WARNING else note)(text)


def _translate(error: BaseException) -> BaseException:
    """Errors of others as errors of ours."""
    stop = _signals.current_stop()
    if isinstance(error, _signals.Interrupted | KeyboardInterrupt):
        return Stopped(stop.signum or 2, stop.frames)
    if isinstance(error, DeblurError):
        return error
    # An import that is interrupted raises whatever it likes.
    if stop.signum is not None:
        return Stopped(stop.signum, stop.frames)
    if isinstance(error, BrokenPipeError):
        return ReaderClosed(stop.frames)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return OutputError(f"cannot write: {reason(error)}", error.filename)
    if isinstance(error, MemoryError):
        return OutOfMemoryError("out of memory", "cpu", "close other programs")
    if isinstance(error, click.UsageError):
        what = error.format_message().rstrip(".")
        what = what[:1].lower() + what[1:]
        context = error.ctx
        return UsageError(what, None, f"see {context.command_path} --help" if context else None)
    if isinstance(error, click.ClickException):
        return UsageError(error.format_message().rstrip("."))
    return error


def report(error: BaseException) -> int:
    """Say what went wrong, in one line; the exit code to end with."""
    translated = _translate(error)
    if _verbose and not isinstance(translated, Stopped):
        say("".join(traceback.format_exception(error)), end="")
    if isinstance(translated, ReaderClosed):
        pass
    elif isinstance(translated, Stopped):
        stop = _signals.current_stop()
        done = max(stop.frames, translated.frames)
        note(f"stopped after {done} {stop.unit}{stop.remark}")
    elif isinstance(translated, DeblurError):
        say(f"vs-deblur: error: {translated}")
    else:
        text = printable(" ".join(str(translated).split())) or "no message"
        hint = "" if _verbose else "; -v shows the traceback"
        say(f"vs-deblur: error: {type(translated).__name__}: {text}{hint}")
    return exit_code(translated)


def run(group: click.Group, args: Sequence[str] | None) -> NoReturn:
    """Run a command and end the process with its exit code."""
    _open_standard_descriptors()
    _signals.install()
    handler = _OneLine()
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).propagate = False
    try:
        code = _invoke(group, list(sys.argv[1:] if args is None else args))
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException as error:
        code = report(error)
    end(code)


def _open_standard_descriptors() -> None:
    """Where 0, 1 or 2 came closed, put something there, or other files would get the number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _invoke(group: click.Group, args: list[str]) -> int:
    try:
        with group.make_context("vs-deblur", args) as context:
            group.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return 2
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def end(code: int) -> NoReturn:
    """End the process: the usual way, or at once if a thread of ours is stuck in a read or write.

    Python cannot end cleanly while a thread that it does not control sits in native code.
    """
    stuck = any(t.name.startswith("vs-deblur ") for t in threading.enumerate())
    for stream in (sys.stdout, sys.stderr):
        # What cannot be written must not become a complaint about flushing at exit, code 120.
        try:
            stream.flush()
        except (OSError, ValueError):
            stuck = True
        except AttributeError:  # there is none
            pass
    if stuck or code == ReaderClosed.exit_code:
        os._exit(code)
    sys.exit(code)


@dataclass(frozen=True)
class ModelSettings:
    """The options that say how to deblur; defaults as :func:`vs_deblur.deblur`."""

    model: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    strength: float = 1.0
    tile: int | None = None
    segment: int = 64
    warmup: int = 8
    scene_threshold: float | None = None

    def deblurrer(self, *, quiet: bool = False, kind: Kind = "video") -> Deblurrer:
        """Load the model, and say in one line which, where and how.

        Args:
            quiet: say nothing.
            kind: what "auto" is to be good at.

        Raises:
            UsageError, WeightsError, DeviceError: see :class:`vs_deblur.engine.Deblurrer`.
        """
        from vs_deblur.cli._allocator import keep_freed_memory
        from vs_deblur.engine import Deblurrer

        keep_freed_memory()
        deblurrer = Deblurrer(
            self.model,
            device=self.device,
            precision=self.precision,
            strength=self.strength,
            tile=self.tile,
            segment=self.segment,
            warmup=self.warmup,
            kind=kind,
        )
        if not quiet:
            note(deblurrer.describe())
            _remark(deblurrer, self.tile, kind)
        return deblurrer


def _remark(deblurrer: Deblurrer, tile: int | None, kind: Kind) -> None:
    """Say what is otherwise than it may have been meant."""
    from vs_deblur.tiling import least_patch
    from vs_deblur_models.spec import takes_frames

    spec = deblurrer.spec
    least = spec.multiple_of
    if spec.tile_overlap is not None:
        least = least_patch(spec.tile_overlap, spec.multiple_of)
    if tile is not None and tile < least:
        note(f"tiles of {least} pixels instead of {tile}: {deblurrer.model} needs at least these")
    if kind == "photo" and takes_frames(deblurrer.network):
        warn(f"{deblurrer.model} was made for video: it hardly finds blur in single pictures")


_STILL_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--model",
        default="auto",
        show_default=True,
        metavar="NAME|FILE",
        help="A shipped model (see `vs-deblur models`) or a safetensors file of ours.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--precision",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        help="auto: fp16 on CUDA; bf16 on processors made for it, else fp32.",
    ),
    click.option(
        "--strength",
        default=1.0,
        show_default=True,
        type=click.FloatRange(0.0, 1.0),
        help="How much of the change to apply; 0 leaves every sample as it is.",
    ),
    click.option(
        "--tile",
        default=None,
        type=click.IntRange(min=1),
        metavar="PIXELS",
        help="Largest size computed at once; at least what the network needs. [default: by memory]",
    ),
)

# Those about frames in a row come on top.
_MODEL_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    *_STILL_OPTIONS,
    click.option(
        "--segment",
        default=64,
        show_default=True,
        type=click.IntRange(min=0),
        metavar="FRAMES",
        help="The recurrence starts anew every so many frames; 0: only at scene cuts.",
    ),
    click.option(
        "--warmup",
        default=8,
        show_default=True,
        type=click.IntRange(min=0),
        metavar="FRAMES",
        help="Frames before a segment that warm its state up.",
    ),
    click.option(
        "--scene-threshold",
        default=None,
        type=click.FloatRange(0.0, 1.0),
        metavar="0..1",
        help="Difference between frames that begins a new scene, e.g. 0.15. [default: no search]",
    ),
)


def model_options[F: Callable[..., Any]](function: F) -> F:
    """Add the options of the model; the command gets them as ``settings: ModelSettings``."""
    return _with_options(function, _MODEL_OPTIONS)


def still_options[F: Callable[..., Any]](function: F) -> F:
    """As :func:`model_options`, without those that are about frames in a row."""
    return _with_options(function, _STILL_OPTIONS)


def _with_options[F: Callable[..., Any]](function: F, options: Sequence[Callable[[Any], Any]]) -> F:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        names = ModelSettings.__dataclass_fields__.keys() & kwargs.keys()
        settings = ModelSettings(**{name: kwargs.pop(name) for name in names})
        return function(*args, settings=settings, **kwargs)

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]
