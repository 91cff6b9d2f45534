"""Memory that the C library keeps though nobody uses it, given back to the system.

VapourSynth's planes are aligned blocks. Glibc (seen with 2.36) seldom finds room for one where
another was freed, and takes new memory instead: with each frame that passes through
a graph the process grows by up to the size of a plane, over minutes by gigabytes, though all of it
is free. The pages of what is free can be handed back, and that is done here, whenever the process
has grown by so much. Nothing of how memory is allocated is changed: this is for hosts' processes.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

_MIB = 1 << 20


def resident() -> int | None:
    """Bytes of memory that this process has in use; None where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError, AttributeError):
        return None


def _malloc_trim() -> Callable[[int], int] | None:
    """The function of glibc's that gives back all pages that are free; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return None


class Heap:
    """Gives memory back when the process has grown.

    Args:
        growth: bytes, since the last time, that make it worth while.
        every: calls of :meth:`look` between two looks.
    """

    def __init__(self, growth: int = 64 * _MIB, every: int = 32) -> None:
        self.growth, self.every = growth, every
        self._trim = _malloc_trim()
        self._least: int | None = None
        self._calls = 0
        self._lock = threading.Lock()

    def look(self) -> bool:
        """To be called now and then, by any thread; whether memory was given back."""
        if self._trim is None or not self._lock.acquire(blocking=False):
            return False
        try:
            self._calls += 1
            now = None if self._calls % self.every else resident()
            if now is None:
                return False
            if self._least is None or now < self._least:
                self._least = now
            if now < self._least + self.growth:
                return False
            self._trim(0)
            # Much of what was given back is taken again at once: counted is from the next look on.
            self._least = None
            return True
        finally:
            self._lock.release()
