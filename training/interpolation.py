"""Blurred and sharp sequences from ordinary video, by frames interpolated between its frames.

A video of 24 to 60 frames a second moves by many pixels from frame to frame: a mean of its frames
shows ghosts, not blur. Between them sub-frames are interpolated along the optical flow (Jiang et
al., "Super SloMo", CVPR 2018, equations 1 and 4, with flow by TV-L1 instead of a network), as REDS
was made (Nah et al., NTIRE 2019). Then equation 1 of Kim et al. 2017: a blurred frame is the mean
of the sub-frames of an exposure. The sharp frame in its middle is one of the video, never one that
was interpolated. Reduced video is crisper, and its motion easier to follow.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from training.data import Frames, PairSequence, decoded
from training.flow import optical_flow
from training.synthesis import to_encoded, to_linear
from vs_deblur.errors import InputError

# Counted up whenever the same video and settings make other sequences than before.
INTERPOLATION_VERSION = 1

_SPACING = 1.0  # pixels between sub-frames, for all but a twentieth of a picture
_MOST_POINTS = 33  # of an exposure
_CUT = 0.08  # mean difference of a frame from what the next one says of it (0..1): another scene


@dataclass(frozen=True)
class Interval:
    """What lies between two frames.

    Attributes:
        forward, backward: (2, H, W) float32, pixels down and to the right: where the things of the
            first frame are in the second, and the other way round.
    """

    forward: Tensor
    backward: Tensor

    @classmethod
    def between(cls, first: Frames, second: Frames) -> Interval:
        """By TV-L1, of two frames (H, W, 3) uint8."""
        there, back = optical_flow(first, second), optical_flow(second, first)
        return cls(torch.from_numpy(there).float(), torch.from_numpy(back).float())

    @cached_property
    def speed(self) -> float:
        """Motion that all but a twentieth of the picture stays below, pixels."""
        return float(torch.quantile(self.forward.square().sum(0).sqrt(), 0.95))


def warped(pictures: Tensor, flow: Tensor) -> Tensor:
    """Pictures (C, H, W) at a pixel's place plus its flow (2, H, W); the edge goes on outside."""
    height, width = flow.shape[1:]
    y = torch.arange(height, dtype=flow.dtype)[:, None] + flow[0]
    x = torch.arange(width, dtype=flow.dtype) + flow[1]
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    found = F.grid_sample(pictures[None], grid[None], padding_mode="border", align_corners=False)
    return found[0]


def sub_frame(first: Tensor, second: Tensor, interval: Interval, time: float) -> Tensor:
    """The picture between two frames.

    Args:
        first, second: (3, H, W), any values.
        interval: the flow between them.
        time: 0 for the first to 1 for the second.

    Returns:
        (3, H, W): both frames moved there, mixed by how near they are in time. To trust less what
        the flow there and back does not agree on made real frames that were left out 0.1 to 1.1 dB
        worse, and so did splatting on half of the clips.
    """
    there, back = interval.forward, interval.backward
    to_first = -(1 - time) * time * there + time**2 * back
    to_second = (1 - time) ** 2 * there - time * (1 - time) * back
    return (1 - time) * warped(first, to_first) + time * warped(second, to_second)


def exposure(
    frames: Sequence[Tensor], intervals: Sequence[Interval], middle: int, length: float
) -> Tensor:
    """The mean of an exposure, (3, H, W).

    Args:
        frames: (3, H, W) each, in the light that is averaged.
        intervals: the flow after each frame but the last.
        middle: the frame in the middle of the exposure.
        length: of the exposure, frames; up to twice the smaller distance to an end.
    """
    reach = math.ceil(length / 2)
    fastest = max(interval.speed for interval in intervals[middle - reach : middle + reach])
    half = math.ceil((length * fastest / _SPACING - 1) / 2)
    points = 2 * min(max(half, 3), _MOST_POINTS // 2) + 1  # odd: the middle one is the sharp frame
    total = torch.zeros_like(frames[middle])
    for i in range(points):
        at = middle + length * ((i + 0.5) / points - 0.5)
        before = math.floor(at + 1e-9)
        part = at - before
        if part < 1e-6:
            total += frames[before]
        else:
            total += sub_frame(frames[before], frames[before + 1], intervals[before], part)
    return total / points


def _is_cut(first: Frames, second: Frames, interval: Interval) -> bool:
    """Whether two frames show different scenes: no flow leads from one to the other."""
    before, after = (torch.from_numpy(f.copy()).permute(2, 0, 1) / 255 for f in (first, second))
    return float((before - warped(after, interval.forward)).abs().mean()) > _CUT


def scenes(frames: Sequence[Frames]) -> Iterator[tuple[list[Frames], list[Interval]]]:
    """Frames that show one scene, and the flow between them."""
    some: list[Frames] = []
    intervals: list[Interval] = []
    for frame in frames:
        if some:
            interval = Interval.between(some[-1], frame)
            if _is_cut(some[-1], frame, interval):
                yield some, intervals
                some, intervals = [], []
            else:
                intervals.append(interval)
        some.append(frame)
    yield some, intervals


def _pairs(
    frames: Sequence[Frames],
    intervals: Sequence[Interval],
    period: int,
    length: float,
    linear: bool,
) -> Frames | None:
    """Blurred and sharp frames of a scene, (2, T, H, W, 3); None if it is too short."""
    reach = math.ceil(length / 2)
    middles = range(reach, len(frames) - reach, period)
    if len(middles) < 2:
        return None
    light = [torch.from_numpy(f.copy()).permute(2, 0, 1).float() / 255 for f in frames]
    light = [to_linear(x) for x in light] if linear else light
    blurred = []
    for middle in middles:
        mean = exposure(light, intervals, middle, length)
        encoded = (to_encoded(mean) if linear else mean).clamp(0, 1) * 255
        blurred.append(encoded.round().to(torch.uint8).permute(1, 2, 0).numpy())
    return np.stack((np.stack(blurred), np.stack([frames[m] for m in middles])))


def _reduced(picture: Frames, factor: int) -> Frames:
    return np.asarray(Image.fromarray(picture).reduce(factor)) if factor > 1 else picture


def load_video(
    path: Path,
    periods: Sequence[int],
    shutter: tuple[float, float],
    reduce: int,
    most: int,
    linear: bool,
    cache: Path,
) -> list[PairSequence]:
    """Sequences from ordinary video, a second or so of a core for each frame; kept once made.

    Args:
        path: the video.
        periods: frames of the video from one blurred frame to the next; sequences for each.
        shutter: least and most share of the period that is exposed; the share of a period is drawn,
            the same for the same name of a video and period.
        reduce: whole factor by which frames are reduced first (box filter).
        most: frames to read; 0: all.
        linear: average in linear light (sRGB curve) instead of the encoded values.
        cache: folder to keep sequences in.

    Raises:
        InputError: the video cannot be read, or has no scene of two exposures.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError("no such video", str(path)) from error
    how = (INTERPOLATION_VERSION, path.name, size, tuple(periods), shutter, reduce, most, linear)
    key = hashlib.sha256(repr(how).encode()).hexdigest()[:12]
    done = cache / f"{path.stem}-{key}"
    if not done.is_dir():
        made = _made(path, periods, shutter, reduce, most, linear)
        part = done.with_name(f"{done.name}.{os.getpid()}.part")
        part.mkdir(parents=True, exist_ok=True)
        for name, pair in made.items():
            np.save(part / f"{name}.npy", pair)
        if done.is_dir():  # another run was faster
            for file in part.iterdir():
                file.unlink()
            part.rmdir()
        else:
            part.replace(done)
    found = []
    for file in sorted(done.glob("*.npy")):
        pair = np.load(file, mmap_mode="r")
        found.append(PairSequence(f"{path.stem}/{file.stem}", pair[0], pair[1]))
    return found


def _made(
    path: Path,
    periods: Sequence[int],
    shutter: tuple[float, float],
    reduce: int,
    most: int,
    linear: bool,
) -> dict[str, NDArray[np.uint8]]:
    """The sequences of a video by name, (2, T, H, W, 3) each."""
    read = []
    for i, frame in enumerate(decoded(path)):
        if most and i == most:
            break
        read.append(_reduced(frame, reduce))
    made = {}
    for number, (frames, intervals) in enumerate(scenes(read) if read else ()):
        for period in periods:
            draw = hashlib.sha256(f"{path.name} {period}".encode()).digest()[0] / 255
            length = period * (shutter[0] + (shutter[1] - shutter[0]) * draw)
            pair = _pairs(frames, intervals, period, length, linear)
            if pair is not None:
                made[f"{number}-{period}"] = pair
    if not made:
        raise InputError("no scene of two exposures", str(path))
    return made
