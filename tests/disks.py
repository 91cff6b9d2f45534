"""Small disks: real file systems, which fill up, cannot be written to or lose their power."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import sys
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


class DiskWithPlug:
    """An ext4 in a file, whose plug can be pulled: what was not brought to the disk is gone then.

    Mounting it takes root and loop devices.

    Args:
        folder: where its file and the folder that it is mounted at are made.

    Attributes:
        place: the folder that it is mounted at.
    """

    _SHUTDOWN = 2 << 30 | 4 << 16 | ord("X") << 8 | 125  # EXT4_IOC_SHUTDOWN
    _WITHOUT_FLUSHING = 2

    def __init__(self, folder: Path, size: int = 16 << 20) -> None:
        self._file, self.place = folder / "ext4", folder / "plugged"
        self._size = size

    def __enter__(self) -> DiskWithPlug:
        tools = [shutil.which(name) for name in ("mkfs.ext4", "mount", "umount")]
        if sys.platform != "linux" or os.geteuid() != 0 or None in tools:
            pytest.skip("SKIPPED: no disk whose power can be cut (Linux, root and ext4's tools)")
        self.place.mkdir()
        with self._file.open("wb") as file:
            file.truncate(self._size)
        subprocess.run(["mkfs.ext4", "-q", "-F", self._file], check=True)
        if not self._mount():
            pytest.skip("SKIPPED: no loop devices here, so no disk whose power can be cut")
        return self

    def _mount(self) -> bool:
        command = ["mount", "-o", "loop", str(self._file), str(self.place)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def pull(self) -> None:
        """Cut the power, at once, and come back: the journal of the file system is played back."""
        import fcntl

        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, self._SHUTDOWN, struct.pack("I", self._WITHOUT_FLUSHING))
        finally:
            os.close(fd)
        subprocess.run(["umount", self.place], check=True)
        assert self._mount()

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", self.place], check=False)
