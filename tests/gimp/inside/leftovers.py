"""Processes that the action should not have left behind."""

from __future__ import annotations

import time
from pathlib import Path

# What the command line of a worker has in it: the real one's, and those of the tests.
_SIGNS = (
    b"\0gimp\0worker",
    b"'gimp', 'worker'",
    b"echo.py",
    b"vs_deblur_is_not_here",
)


def _left(root: int) -> int:
    parents, states = {}, {}
    count = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            line = (path / "cmdline").read_bytes()
        except OSError:  # it ended just now
            continue
        states[int(path.name)], parents[int(path.name)] = fields[0], int(fields[1])
        count += fields[0] != "Z" and any(sign in line for sign in _SIGNS)
    for pid, state in states.items():
        # One that ended has no command line any more. Those that the one above has to wait for, as
        # a system's first process does for orphans, are not left by the action.
        if state == "Z" and parents[pid] != root:
            above = parents[pid]
            while above not in (0, root):
                above = parents.get(above, 0)
            count += above == root
    return count


def left(root: int, limit: float = 5.0) -> int:
    """Workers that are there, and processes below another that ended and were not waited for.

    Args:
        root: the process above, GIMP or who started it.
        limit: seconds that they are given to go.
    """
    deadline = time.monotonic() + limit
    while (count := _left(root)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return count
