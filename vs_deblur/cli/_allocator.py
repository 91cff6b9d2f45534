"""The C library's allocator, set for a program that frees and takes frames all day long."""

from __future__ import annotations

import ctypes
import os
import sys

# <malloc.h>: the parameters of mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Have glibc keep the memory of freed frames for the next ones.

    By default it gives every block above some size back to the system and takes it again page by
    page: 6 ms of a 640x480 frame. Only programs of our own do this, never a host's process.
    Nothing is done where the user has set ``MALLOC_…`` or ``GLIBC_TUNABLES``, or the library is
    another.

    Returns:
        whether the settings were taken.
    """
    theirs = any(k.startswith(("MALLOC_", "GLIBC_TUNABLES")) for k in os.environ)
    if theirs or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # 32 MiB is the largest mmap threshold that glibc takes.
    settings = (
        (_M_MMAP_THRESHOLD, 32 * _MIB),
        (_M_TRIM_THRESHOLD, 256 * _MIB),
        (_M_TOP_PAD, 16 * _MIB),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
