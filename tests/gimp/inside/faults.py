"""Workers that fail in every way: the action says so, and the image is as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import INPUTS, Gimp, deblur, digest, load, report, start
from leftovers import left


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """The installed action waits so long for a worker's hello."""
    action = Path(Gimp.directory(), "plug-ins", "vs-deblur", "vs-deblur.py")
    text = action.read_text()
    assert "STARTING = 60.0" in text
    action.write_text(text.replace("STARTING = 60.0", f"STARTING = {seconds}"))
    try:
        yield
    finally:
        action.write_text(text)


def one(settings: str, path: str, **arguments: Any) -> dict[str, Any]:
    start(settings)
    image = load(path)
    image.clean_all()
    before = digest(image)
    result = deblur(image, **arguments)
    same = digest(image) == before and len(image.get_layers()) == 1
    # Nothing is left that would be asked about when the image is closed.
    result |= {"same": same, "dirty": image.is_dirty(), "left": left(os.getppid())}
    image.delete()
    return result


def work() -> dict[str, Any]:
    found = {name: one(text, INPUTS["picture"]) for name, text in INPUTS["faults"].items()}
    with patience(2.0):
        found["silent"] = one(INPUTS["silent"], INPUTS["picture"])
    Gimp.displays_flush()
    return found


report(work)
