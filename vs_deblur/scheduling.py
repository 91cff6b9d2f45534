"""The priority that this process' threads have: what a library does to it is undone."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# One opening at a time: in the midst of another, what that one's threads have would be taken for
# what they had before, and left.
_opening = threading.Lock()


def _policies() -> dict[int, int]:
    """Scheduling policy by thread; none where the system does not tell."""
    found: dict[int, int] = {}
    if not hasattr(os, "sched_getscheduler"):
        return found
    with contextlib.suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                found[int(task.name)] = os.sched_getscheduler(int(task.name))
    return found


@contextmanager
def usual_priority() -> Iterator[None]:
    """Around what opens an encoder: threads do not come out of it with real-time priority.

    SVT-AV1 (seen with 4.2), when root runs it, gives the thread that opens it and all of its own
    the policy SCHED_FIFO at priority 99: on a machine that others use too, nobody else gets a turn
    any more, and what the process starts later inherits it. Where a thread had such a priority
    before, all is left as it is. Threads may enter at the same time: each waits until the one
    before is out; not to be nested.
    """
    with _opening:
        before = _policies()
        try:
            yield
        finally:
            usual = getattr(os, "SCHED_OTHER", 0)
            real_time = {getattr(os, name, None) for name in ("SCHED_FIFO", "SCHED_RR")}
            if not real_time & set(before.values()):
                for thread, policy in _policies().items():
                    if policy in real_time:
                        with contextlib.suppress(OSError):
                            os.sched_setscheduler(thread, usual, os.sched_param(0))
