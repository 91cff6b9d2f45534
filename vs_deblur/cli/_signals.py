"""SIGINT, SIGTERM and SIGHUP: the first ends the run in order, the second ends it at once.

Commands run with the default manner: the first signal raises :class:`Interrupted` in the main
thread. A command that must not be cut in the middle of a frame works inside :func:`graceful`; there
the first signal only sets a flag, which :meth:`Stop.check` turns into
:class:`~vs_deblur.errors.Stopped` between two frames and in every wait.

The second signal is seen by a thread of its own (``signal.set_wakeup_fd``), so that it ends the
process even while the main thread is inside a long computation that runs no Python.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from vs_deblur.errors import Stopped

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Interrupted(BaseException):
    """A signal came while nothing needed finishing. Not an Exception: libraries swallow those."""


class Stop:
    """What signals have asked for.

    Attributes:
        signum: number of the first signal, None so far.
        graceful: whether it is for the command to end (see :func:`graceful`).
        frames: whole frames that were put out; the command counts here, for the last line.
        unit: what it counts, if not frames.
        remark: what else the last line says.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.graceful = False
        self.frames = 0
        self.unit = "frames"
        self.remark = ""

    def check(self) -> None:
        """Raise if a signal came.

        Raises:
            Stopped: it did.
        """
        if self.signum is not None:
            raise Stopped(self.signum, self.frames)


# Terminals, shells and wrappers pass one wish on twice within moments: that is one signal.
_DOUBLE = 0.1  # seconds

_stop = Stop()


def current_stop() -> Stop:
    """The process's state."""
    return _stop


@contextlib.contextmanager
def graceful() -> Iterator[Stop]:
    """Inside, the first signal lets the frame in hand be finished: call ``check()`` often."""
    _stop.check()
    _stop.graceful = True
    try:
        yield _stop
    finally:
        _stop.graceful = False


def _handle(signum: int, _frame: FrameType | None) -> None:
    first = _stop.signum is None
    if first:
        _stop.signum = signum
    if not _stop.graceful and first:
        raise Interrupted


def _watch(fd: int) -> None:
    """Read signal numbers as the kernel delivers them; end the process at the second."""
    first: float | None = None
    while data := os.read(fd, 64):
        numbers = [n for n in data if n in SIGNALS]
        now = time.monotonic()
        if not numbers:
            continue
        if first is None:
            first = now
        elif now - first > _DOUBLE:
            with contextlib.suppress(OSError):
                os.write(2, b"\nvs-deblur: stopped at once\n")
            os._exit(128 + numbers[-1])


def install() -> None:
    """Take over the signals, but for those that were ignored when we came (``nohup``).

    Only in the main thread of a process that is ours.
    """
    receive, send = os.pipe()
    os.set_blocking(send, False)
    signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(receive,), name="signals", daemon=True).start()
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _handle)
