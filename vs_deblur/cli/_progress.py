"""Lines on stderr: notes, warnings and progress, which never fail; and lines on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time

import click

from vs_deblur.errors import OutputError, printable, reason

_live = False  # whether the terminal's last line is a progress line


def say(text: str, end: str = "\n") -> None:
    """Write to stderr; a stderr that is closed or gone is nobody's problem."""
    global _live
    if sys.stderr is None:
        return
    if _live:
        text = "\r\x1b[K" + text
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + end)
        sys.stderr.flush()
    _live = False


def tell(line: str) -> None:
    """One line on stdout: a result.

    Raises:
        OutputError: it cannot be written.
        BrokenPipeError: nobody reads it.
    """
    _to_stdout(printable(line))


def tell_json(value: object) -> None:
    """A result as JSON on stdout, in ASCII.

    Raises:
        OutputError, BrokenPipeError: as :func:`tell`.
        ValueError: a number is none that JSON has.
    """
    _to_stdout(json.dumps(value, indent=1, allow_nan=False))


def _to_stdout(text: str) -> None:
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write: {reason(error)}", "stdout") from error


def note(text: str) -> None:
    """One line about what is being done."""
    say(f"vs-deblur: {printable(text)}")


def warn(text: str) -> None:
    """One line about what may not be as wished."""
    say(f"vs-deblur: warning: {printable(text)}")


def is_terminal() -> bool:
    """Whether somebody is looking: stderr is a terminal."""
    try:
        return sys.stderr is not None and os.isatty(sys.stderr.fileno())
    except (OSError, ValueError):
        return False


def status(text: str) -> None:
    """A line that the next one takes the place of; where stderr is no terminal, one like others."""
    global _live
    text = printable(text)
    if is_terminal():
        say("\r\x1b[K" + text, end="")
        _live = True
    else:
        say(text)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


class Progress:
    """Frames done, frames a second, time to go.

    On a terminal one line is rewritten a few times a second; elsewhere there is a line every
    ``every`` seconds, and a last one.

    Args:
        total: frames to do, None where not known.
        vspipe: write ``Frame: 12/120 (24.00 fps)`` as vspipe does, and at the end
            ``Output 120 frames in 5.00 seconds (24.00 fps)``.
        every: seconds between lines where stderr is no terminal.
    """

    def __init__(self, total: int | None, *, vspipe: bool = False, every: float = 5.0) -> None:
        self.total, self.vspipe = total, vspipe
        self._interval = 0.2 if is_terminal() else every
        self._begin = self._last = time.monotonic()
        self._first_frame: float | None = None  # frames are timed from the end of the first one
        self.done = 0

    def update(self, done: int) -> None:
        """Say that ``done`` frames are out."""
        now = time.monotonic()
        self.done = done
        if self._first_frame is None:
            self._first_frame = now
        if now - self._last >= self._interval:
            self._last = now
            self._show(now)

    def _rate(self, now: float) -> float:
        if self.done > 1 and self._first_frame is not None and now > self._first_frame:
            return (self.done - 1) / (now - self._first_frame)
        return self.done / max(now - self._begin, 1e-6)

    def _show(self, now: float) -> None:
        rate = self._rate(now)
        count = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
        if self.vspipe:
            text = f"Frame: {count} ({rate:.2f} fps)"
        else:
            text = f"{count} frames, {rate:.2f} fps"
            if self.total is not None and rate > 0:
                text += f", {_clock((self.total - self.done) / rate)} left"
        status(text)

    def finish(self) -> None:
        """The last line."""
        took = time.monotonic() - self._begin
        rate = self.done / max(took, 1e-6)
        what = "Output" if self.vspipe else "done:"
        say(f"{what} {self.done} frames in {took:.2f} seconds ({rate:.2f} fps)")
