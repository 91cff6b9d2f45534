"""Small disks: real file systems, which fill up or cannot be written to."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def disk(place: Path, size: int = 1 << 20, *, read_only: bool = False) -> Iterator[Path]:
    """A file system in memory, for as long as the context lasts.

    It is mounted in a name space of its own, for which Linux asks no privileges where user name
    spaces are allowed, and seen from outside through ``/proc``. The process that holds it ends
    with this one.

    Args:
        place: an empty folder.
        size: bytes that it holds; a page is the least.
        read_only: nothing can be written.
    """
    if shutil.which("unshare") is None:
        pytest.skip("SKIPPED: NO unshare (Linux only), so no small disks")
    options = f"size={size}" + (",ro" if read_only else "")
    line = f'mount -t tmpfs -o {options} none "$0" && echo ready && exec cat'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", line, str(place)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            pytest.skip("SKIPPED: no user name spaces are allowed here, so no small disks")
        yield Path(f"/proc/{holder.pid}/root", *place.parts[1:])
