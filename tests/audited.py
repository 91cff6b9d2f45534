"""Runs commands in this process and takes down what they do: ``python -m tests.audited FILE``.

FILE is JSON: ``commands``, lists of arguments of the command line, or of one word of Python each;
``writable``, folders that may be written to; ``log``, where a line goes for each thing that must
not be.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from pathlib import Path

_FORBIDDEN = (
    "os.exec os.fork os.posix_spawn os.spawn os.startfile os.system pty. subprocess. socket. "
    "pickle. urllib. http. ftplib. webbrowser."
)
FORBIDDEN = tuple(_FORBIDDEN.split())
# How ctypes looks for libraries: nothing of it comes from a file of the user.
HARMLESS = ("/sbin/ldconfig", ["/sbin/ldconfig", "-p"])
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.link",
    "os.symlink",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(settings: Path) -> None:
    """Do it."""
    wanted = json.loads(settings.read_text())
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    writable = [Path(place) for place in (*wanted["writable"], os.devnull)]

    def may_be_written(path: str) -> bool:
        real = Path(path).resolve()
        return any(real == place or place in real.parents for place in writable)

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(FORBIDDEN):
            if event != "subprocess.Popen" or arguments[:2] != HARMLESS:
                os.write(log, f"{event} {arguments!r}"[:500].encode() + b"\n")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path, mode, flags = os.fsdecode(arguments[0]), arguments[1], arguments[2]
            writes = isinstance(flags, int) and flags & WRITES
            if writes and not may_be_written(path):
                os.write(log, f"writes {path} ({mode}, {flags})\n".encode())
        elif event in _CHANGES:
            for name in (a for a in arguments[:2] if isinstance(a, str | bytes)):
                # The name itself counts, not what it links to.
                changed = Path(os.fsdecode(name))
                if not may_be_written(str(changed.parent.resolve() / changed.name)):
                    os.write(log, f"{event} {arguments!r}"[:500].encode() + b"\n")

    from vs_deblur.cli import main as run

    sys.addaudithook(look)
    for command in wanted["commands"]:
        try:
            exec(command[0]) if len(command) == 1 else run(command)
        except SystemExit as end:
            print(f"exit {end.code}: {' '.join(command)}", flush=True)
    for descriptor in range(256):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(log, b"a socket is open\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
