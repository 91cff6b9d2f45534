"""Nothing goes to stdout but what the user asked for.

Libraries and scripts print. While :func:`private_stdout` is in force, file descriptor 1 (and with
it ``print``, and C code) goes to stderr, and only the holder of the private descriptor writes to
where stdout led.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from vs_deblur.errors import OutputError


@contextlib.contextmanager
def private_stdout() -> Iterator[int]:
    """Point file descriptor 1 at stderr; gives a private descriptor of the real stdout.

    Raises:
        OutputError: stdout is closed.
    """
    if sys.stdout is None:  # as Python finds it where descriptor 1 came closed
        raise OutputError("standard output is closed", None, "use -o FILE")
    sys.stdout.flush()
    private = os.dup(1)
    try:
        os.dup2(2, 1)
        yield private
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()  # what was printed in between belongs to stderr
        os.dup2(private, 1)
        os.close(private)
