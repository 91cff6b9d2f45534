"""Real processes of the command line, without paying for the import of torch each time.

One process imports everything heavy and then forks for every run: the fork gets the descriptors,
runs ``main`` in its main thread, and is signalled, waited for and judged like any process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

LIMIT = 60.0  # seconds after which a run counts as hanging
_USUAL = re.compile(
    r"vs-deblur: (?!error: )"  # notes and warnings
    r"|Frame: \d|Output \d+ frames in |done: \d+ |\d+(/\d+)? frames, "  # progress
    r"|the script prints$|refused$"  # the tests' own
)


def _serve_forks(channel: socket.socket) -> None:
    """The process that forks: in the fork, run the command line and end with its exit code."""
    from vs_deblur.cli import main

    for heavy in ("vs_deblur.engine", "vs_deblur.hosts.vpy", "vs_deblur.hosts.video"):
        import_module(heavy)

    channel.sendall(b"ready\n")
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 3)
        if not message:
            return
        arguments, before = json.loads(message)
        pid = os.fork()
        if pid == 0:
            for target, fd in enumerate(descriptors):
                os.dup2(fd, target)
                os.close(fd)
            channel.close()
            os.setpgid(0, 0)
            try:
                exec(before, {})
                main(arguments)
            except SystemExit as end:
                # Taking down an interpreter with torch in it costs more than most runs.
                os._exit(int(end.code or 0))
            except BaseException:
                traceback.print_exc()
                os._exit(99)
        for fd in descriptors:
            os.close(fd)
        channel.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        channel.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


class Zygote:
    """The process that forks. One run at a time."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            code = (
                "import socket; from tests.cli.processes import _serve_forks;"
                f"_serve_forks(socket.socket(fileno={theirs.fileno()}))"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert self.line(120) == "ready"

    def start(self, arguments: Sequence[str], descriptors: Sequence[int], before: str = "") -> int:
        """Start a run; ``before`` is Python that the process runs first. Gives its number."""
        message = json.dumps([arguments, before]).encode()
        socket.send_fds(self._channel, [message], list(descriptors))
        return int(self.line(LIMIT))

    def line(self, limit: float) -> str:
        self._channel.settimeout(limit)
        data = b""
        while not data.endswith(b"\n"):
            got = self._channel.recv(1)
            if not got:
                raise EOFError("the process that forks ended")
            data += got
        return data.decode().strip()

    def close(self) -> None:
        self._channel.close()
        self._process.wait(LIMIT)


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    code: int
    out: bytes
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines of stderr that are no note, warning or progress."""
        return [line for line in self.err.splitlines() if not _USUAL.match(line)]


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so; files that are not there yet make it not so."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if condition():
                return
        time.sleep(0.005)
    raise AssertionError(f"waited {LIMIT:g} s in vain")


def children(pid: int) -> list[int]:
    """Processes that a process has started and that are still there (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


class Run:
    """A process of the command line.

    ``stdin``, ``stdout`` and ``stderr`` are descriptors of our ends of its pipes, None where a
    descriptor was given. ``before`` is Python that it runs first: what breaks for it alone.
    """

    def __init__(
        self,
        zygote: Zygote,
        arguments: Sequence[object],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        before: str = "",
    ) -> None:
        self._zygote = zygote
        self._code: int | None = None
        theirs: list[int] = []
        self.stdin: int | None = None
        self.stdout: int | None = None
        if stdin is None:
            read, self.stdin = os.pipe()
            theirs.append(read)
        if stdout is None:
            self.stdout, write = os.pipe()
            theirs.append(write)
        self.stderr, error_write = os.pipe()
        theirs.append(error_write)
        fds = [
            theirs[0] if stdin is None else stdin,
            write if stdout is None else stdout,
            error_write,
        ]
        self.pid = zygote.start([str(a) for a in arguments], fds, before)
        for fd in theirs:
            os.close(fd)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()
        for name in ("stdin", "stdout", "stderr"):
            self.close(name)

    def close(self, name: str) -> None:
        """Close our end of a pipe."""
        fd: Any = getattr(self, name)
        if fd is not None:
            os.close(fd)
            setattr(self, name, None)

    def write(self, data: bytes) -> None:
        """Write all of it to stdin."""
        assert self.stdin is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self.stdin, view) :]

    def read(self, count: int) -> bytes:
        """Read so many bytes of stdout, fewer only at its end."""
        assert self.stdout is not None
        data = b""
        while len(data) < count:
            self._await(self.stdout)
            got = os.read(self.stdout, count - len(data))
            if not got:
                break
            data += got
        return data

    def _await(self, fd: int) -> None:
        if not select.select([fd], [], [], LIMIT)[0]:
            self._hangs()

    def _hangs(self) -> NoReturn:
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"the process hangs (no end in {LIMIT:g} s)")

    def signal(self, number: int) -> None:
        """Send a signal; one that is over takes none."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def state(self) -> str:
        """What the system says that it does: R runs, S sleeps, T is stopped."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def wait(self) -> int:
        """Wait for the end; the exit code."""
        if self._code is None:
            try:
                self._code = int(self._zygote.line(LIMIT))
            except TimeoutError:
                os.kill(self.pid, signal.SIGKILL)
                self._code = int(self._zygote.line(LIMIT))
                raise AssertionError("the process hangs") from None
        return self._code

    def finish_open(self) -> Result:
        """Read all that comes, and wait, while stdin stays open."""
        ours, self.stdin = self.stdin, None
        try:
            return self.finish()
        finally:
            self.stdin = ours

    def finish(self, data: bytes = b"") -> Result:
        """Feed stdin, close it, read all that comes, and wait."""
        out, err = bytearray(), bytearray()
        into = {fd: b for fd, b in ((self.stdout, out), (self.stderr, err)) if fd is not None}
        rest = memoryview(data)
        if not rest:
            self.close("stdin")
        deadline = time.monotonic() + LIMIT
        while into:
            writers = [self.stdin] if self.stdin is not None else []
            readable, writable, _ = select.select(
                list(into), writers, [], max(deadline - time.monotonic(), 0)
            )
            if not readable and not writable:
                self._hangs()
            if writable and self.stdin is not None:
                try:
                    rest = rest[os.write(self.stdin, rest[:4096]) :]
                except BrokenPipeError:
                    rest = rest[:0]
                if not rest:
                    self.close("stdin")
            for fd in readable:
                got = os.read(fd, 1 << 16)
                into[fd] += got
                if not got:
                    del into[fd]
        return Result(self.wait(), bytes(out), err.decode())
