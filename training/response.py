"""Which response the camera of real pairs had: what blur has kept of a scene.

An exposure adds up light: where code values are brought back to what was added up, a blurred and a
sharp frame have the same mean over a block that is larger than the blur. The inverse response
(Grossberg and Nayar, "What is the space of camera response functions?", 2003) for which the means
come nearest to each other is the one to synthesise with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.data import PairSequence
from training.synthesis import to_linear
from vs_deblur.errors import InputError

FloatArray = NDArray[np.float64]

_BLOCK = 36  # pixels
POWERS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)  # of light, that are tried


@dataclass(frozen=True)
class Response:
    """How far blurred and sharp frames are apart, were it averaged so.

    Attributes:
        name: "encoded values", or the power of light.
        bias: by how much blurred blocks are brighter, code values (0..255).
        rms: root mean square of the difference of blocks, code values.
    """

    name: str
    bias: float
    rms: float


def _block_means(frame: NDArray[np.uint8], curve: FloatArray) -> FloatArray:
    """Means of a curve's values over whole blocks of (H, W, 3), one number a block and colour."""
    rows, columns = (n // _BLOCK for n in frame.shape[:2])
    values = curve[frame[: rows * _BLOCK, : columns * _BLOCK]]
    means: FloatArray = values.reshape(rows, _BLOCK, columns, _BLOCK, 3).mean((1, 3)).ravel()
    return means


def responses(sequences: Iterable[PairSequence], most: int = 24) -> Iterator[Response]:
    """Try the mean of encoded values, and of light to each power (1: the sRGB curve undone).

    Args:
        sequences: real pairs; frames of at least 36x36 pixels.
        most: frames of each sequence, evenly spread.

    Raises:
        InputError: there are none, or frames are smaller.
    """
    found = list(sequences)
    for s in found:
        height, width = s.blurred.shape[1:3]
        if min(height, width) < _BLOCK:
            raise InputError(f"{width}x{height} is less than a block of {_BLOCK}", s.name)
    if not found:
        raise InputError("no pairs to look at")
    light = to_linear(torch.arange(256, dtype=torch.float64) / 255).numpy()
    curves = {"encoded values": np.arange(256) / 255}
    curves |= {f"light^{power:g}": light**power for power in POWERS}
    for name, curve in curves.items():
        apart = []
        for s in found:
            for n in np.unique(np.linspace(0, len(s) - 1, min(most, len(s))).round().astype(int)):
                blurred, sharp = (
                    np.interp(_block_means(np.asarray(x[n]), curve), curve, np.arange(256))
                    for x in (s.blurred, s.sharp)
                )
                apart.append(blurred - sharp)
        both = np.concatenate(apart)
        yield Response(name, float(both.mean()), float(np.sqrt((both**2).mean())))
