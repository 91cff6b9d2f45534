"""The exceptions of vs-deblur. Each class carries the exit code of the command line.

::

    DeblurError                  1   anything that went wrong on our side of the fence
    ├── EngineError              1   the computation failed (non-finite values, lost device)
    ├── UsageError (ValueError)  2   an argument that cannot work
    ├── InputError (ValueError)  3   a clip, file or stream that cannot be read
    │   └── ProtocolError        3   bytes that are not of the GIMP bridge
    ├── OutputError (OSError)    4   a file or stream that cannot be written
    ├── WeightsError             5   weights that are missing, damaged or of another network
    ├── DeviceError              6   no such device, or it failed
    │   └── OutOfMemoryError     6   not enough memory on it for this picture or frame
    └── Stopped                130   ended by a signal; 128 + its number
        └── ReaderClosed       141   whoever read our output went away (silent)

On the command line a :class:`DeblurError` is one line on stderr,
``vs-deblur: error: <what> (<where>); <what to do>``, and the process ends with its ``exit_code``.
Whatever a damaged file has made them say, they are short and have no control characters.
In VapourSynth the same text becomes ``vs.Error("deblur: …")``.
"""

from __future__ import annotations

import unicodedata
from typing import ClassVar, Self

_LONGEST = 400  # characters of what is said, and of the hint
_LONGEST_PLACE = 1000  # of the file, frame or argument


def printable(text: str) -> str:
    """Text as one line that a terminal shows and does not obey: files may have put it together."""
    text = text.replace("\n", " ")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text
    )


def _shortened(text: str, longest: int) -> str:
    """Text with its middle left out if it is long: half of it is a stranger's."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


class DeblurError(Exception):
    """Base of all our errors.

    Args:
        what: what is wrong, without a full stop.
        where: the file, frame or argument it is about.
        hint: what to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = _shortened(self.what, _LONGEST)
        if self.where:
            text += f" ({_shortened(self.where, _LONGEST_PLACE)})"
        if self.hint:
            text += f"; {_shortened(self.hint, _LONGEST)}"
        return printable(text)

    def at(self, where: str | None) -> Self:
        """The same error, told of another file, frame or argument."""
        return type(self)(self.what, where, self.hint)

    def __reduce__(self) -> tuple[type[DeblurError], tuple[str, str | None, str | None]]:
        return type(self), (self.what, self.where, self.hint)


class EngineError(DeblurError):
    """The computation failed."""


class UsageError(DeblurError, ValueError):
    """An argument that cannot work."""

    exit_code = 2


class InputError(DeblurError, ValueError):
    """A clip, file or stream that cannot be read or is not supported."""

    exit_code = 3


class ProtocolError(InputError):
    """What came through the pipe of the GIMP bridge is not of it, nor can the rest be read."""


class OutputError(DeblurError, OSError):
    """A file or stream that cannot be written."""

    exit_code = 4

    # OSError.__str__ and __new__ have ideas of their own about two or three arguments.
    __str__ = DeblurError.__str__


class WeightsError(DeblurError):
    """Weights that are missing, damaged, or not of the network asked for."""

    exit_code = 5


class DeviceError(DeblurError):
    """The device asked for is not there, or failed."""

    exit_code = 6


class OutOfMemoryError(DeviceError):
    """The device has not enough memory for this picture or frame; it may have for another."""


class Stopped(DeblurError):
    """Ended by a signal, with whole frames only.

    Args:
        signum: the signal's number; the exit code is 128 + it.
        frames: frames that were written.
    """

    exit_code = 130

    def __init__(self, signum: int, frames: int) -> None:
        self.signum, self.frames = signum, frames
        super().__init__(f"stopped after {frames} frames")
        self.code = 128 + signum

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, int]]:  # type: ignore[override]
        return type(self), (self.signum, self.frames)


class ReaderClosed(Stopped):
    """The reader of our output closed it; said nowhere, exit code 141."""

    exit_code = 141

    def __init__(self, frames: int = 0) -> None:
        super().__init__(13, frames)

    def __reduce__(self) -> tuple[type[ReaderClosed], tuple[int]]:  # type: ignore[override]
        return type(self), (self.frames,)


def reason(error: BaseException) -> str:
    """What the system, FFmpeg or a library says of an error, without number and path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def exit_code(error: BaseException) -> int:
    """The exit code that an error ends the command line with (1 for strangers)."""
    if isinstance(error, Stopped):
        return error.code
    return error.exit_code if isinstance(error, DeblurError) else 1
