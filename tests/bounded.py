"""A limit of memory around a piece of a test."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

HEADROOM = 512 << 20
"""Bytes of address space that reading a file of a few kilobytes may take."""


@contextmanager
def bounded(headroom: int = HEADROOM) -> Generator[None]:
    """No more address space than so many bytes beside what the process has already."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + headroom, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
