"""Pickles that do something when they are read: nobody may ever read them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.mark,)


class Eval(Hostile):
    """The same through ``eval``."""

    def __reduce__(self) -> Any:
        return eval, (f"__import__('os').mkdir({str(self.mark)!r})",)


def save_hostile(hostile: Hostile, path: Path, way: str | int) -> None:
    """Write it as a checkpoint, "zip" or "legacy", beside a tensor; or alone, by protocol."""
    if isinstance(way, int):
        path.write_bytes(pickle.dumps(hostile, protocol=way))
        return
    content = {"state_dict": {"head.weight": torch.zeros(2), "x": hostile}}
    torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
