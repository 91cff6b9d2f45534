"""Where `serve` writes: a file descriptor that takes whole frames."""

from __future__ import annotations

import contextlib
import os
import select
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vs_deblur.cli._signals import Stop
from vs_deblur.errors import OutputError, ReaderClosed, reason


class Sink:
    """Writes frames to a file descriptor and counts them.

    Args:
        fd: the descriptor.
        name: its name in messages.
        stop: where whole frames are counted.
        before: bytes written before each frame.

    Attributes:
        taken: bytes that the system has taken so far.
    """

    def __init__(self, fd: int, name: str, stop: Stop, before: bytes = b"") -> None:
        self._fd, self._name, self._stop, self._before = fd, name, stop, before
        self.taken = 0
        mode = os.fstat(fd).st_mode
        self._is_file = stat.S_ISREG(mode)
        self._poll: Any = None
        if hasattr(select, "poll") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            self._poll = select.poll()  # Windows has none
            self._poll.register(fd, 0)  # errors are always reported

    def check_reader(self) -> None:
        """Notice that the reader went away while there is nothing to write.

        Raises:
            ReaderClosed: it did.
        """
        if self._poll is not None and any(
            event & (select.POLLERR | select.POLLNVAL) for _, event in self._poll.poll(0)
        ):
            raise ReaderClosed(self._stop.frames)

    def write(self, data: bytes) -> None:
        """Write all of it, before the first frame."""
        self._all([memoryview(data)])

    def write_frame(self, planes: Sequence[NDArray[Any]]) -> None:
        """Write a frame: its planes one after another.

        Raises:
            OutputError: the system refuses; a file ends with the last whole frame then.
            ReaderClosed: nobody reads any more.
        """
        views = [memoryview(self._before)] if self._before else []
        views += [memoryview(np.ascontiguousarray(p).reshape(-1).view(np.uint8)) for p in planes]
        self._all(views)
        self._stop.frames += 1

    def _all(self, views: Sequence[memoryview]) -> None:
        whole = self.taken
        try:
            for view in views:
                while view:
                    count = self._some(view)
                    self.taken += count
                    view = view[count:]
        except BrokenPipeError:
            raise ReaderClosed(self._stop.frames) from None
        except OSError as error:
            if self._is_file:
                with contextlib.suppress(OSError):  # of a disk that is gone
                    here = os.lseek(self._fd, 0, os.SEEK_CUR)
                    os.ftruncate(self._fd, here - (self.taken - whole))
            what = f"{reason(error)} at frame {self._stop.frames}"
            raise OutputError(what, self._name) from error

    def _some(self, view: memoryview) -> int:
        while True:
            try:
                return os.write(self._fd, view)
            except BlockingIOError:  # somebody made the pipe non-blocking
                select.select([], [self._fd], [])
