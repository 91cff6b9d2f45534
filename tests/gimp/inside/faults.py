"""Workers that fail in every way: the action says so, and the image is as it was."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from common import INPUTS, Gimp, deblur, digest, load, report, start


def workers() -> int:
    """Processes of workers that are still there."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended just now
            count += b"echo.py" in path.read_bytes()
    return count


def one(settings: str, path: str, **arguments: Any) -> dict[str, Any]:
    start(settings)
    image = load(path)
    image.clean_all()
    before = digest(image)
    result = deblur(image, **arguments)
    same = digest(image) == before and len(image.get_layers()) == 1
    # Nothing is left that would be asked about when the image is closed.
    result |= {"same": same, "dirty": image.is_dirty(), "left": workers()}
    image.delete()
    return result


def work() -> dict[str, Any]:
    found = {name: one(text, INPUTS["picture"]) for name, text in INPUTS["faults"].items()}
    Gimp.displays_flush()
    return found


report(work)
