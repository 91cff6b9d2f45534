"""Frames of noise that moves by whole pixels, alone and as pairs on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

Image = NDArray[np.uint8]


def slid(count: int, y: int, x: int) -> list[Image]:
    """Smoothed noise that moves: no two places look alike."""
    rng = np.random.default_rng(3)
    wide = np.kron(rng.uniform(20, 235, (40, 50, 3)), np.ones((3, 3, 1)))
    for axis in (0, 1):
        wide = (np.roll(wide, 1, axis) + 2 * wide + np.roll(wide, -1, axis)) / 4
    return [
        wide[20 + n * y : 68 + n * y, 20 + n * x : 84 + n * x].astype(np.uint8)
        for n in range(count)
    ]


def write_pairs(folder: Path, count: int) -> Path:
    """A pair folder: the blurred frame is the mean of three places."""
    for n, sharp in enumerate(slid(count, 1, 1)):
        blurred = ((sharp.astype(int) + np.roll(sharp, 1, 1) + np.roll(sharp, -1, 1)) // 3).astype(
            np.uint8
        )
        for kind, frame in (("sharp", sharp), ("blur", blurred)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Pillow.fromarray(frame).save(folder / kind / f"{n:03}.png")
    return folder
