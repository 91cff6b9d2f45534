"""Blurred and sharp sequences from ordinary video, by frames interpolated between its frames.

A video of 24 to 60 frames a second moves by many pixels from frame to frame: a mean of its frames
shows ghosts, not blur. Between them sub-frames are interpolated along the optical flow (Jiang et
al., "Super SloMo", CVPR 2018, equations 1 and 4, with flow by TV-L1 instead of a network), as REDS
was made (Nah et al., NTIRE 2019). Then equation 1 of Kim et al. 2017: a blurred frame is the mean
of the sub-frames of an exposure. The sharp frame in its middle is one of the video, never one that
was interpolated. Reduced video is crisper, and its motion easier to follow.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
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
from vs_deblur.errors import InputError, OutputError, reason

# Counted up whenever the same video and settings make other sequences than before.
INTERPOLATION_VERSION = 1

_SPACING = 1.0  # pixels between sub-frames, for all but a twentieth of a picture,
_MOST_POINTS = 33  # of an exposure that has no more than so many
# Another scene: the mean absolute difference of a frame and the next one warped onto it is above so
# much of 0..1 (noise), and above such a share of the frame's own mean absolute deviation.
_CUT_LEAST, _CUT_SHARE = 0.02, 0.35
_NAMES = "names.txt"
_LEAST = 16  # pixels on a side that TV-L1 can make something of


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
    frames: Sequence[Tensor],
    intervals: Sequence[Interval],
    middle: int,
    length: float,
    powers: Sequence[float] = (1.0,),
) -> Tensor:
    """The mean of an exposure, in each power of the light that is averaged, (powers, 3, H, W).

    Args:
        frames: (3, H, W) each, in the light that is averaged.
        intervals: the flow after each frame but the last.
        middle: the frame in the middle of the exposure.
        length: of the exposure, frames; at most twice the distance to the nearer end.
        powers: of a camera whose response is steeper, see
            :class:`training.synthesis.SynthesisConfig`.
    """
    reach = math.ceil(length / 2)
    fastest = max(interval.speed for interval in intervals[middle - reach : middle + reach])
    half = math.ceil((length * fastest / _SPACING - 1) / 2)
    points = 2 * min(max(half, 3), _MOST_POINTS // 2) + 1  # odd: the middle one is the sharp frame
    totals = torch.zeros((len(powers), *frames[middle].shape))
    for i in range(points):
        at = middle + length * ((i + 0.5) / points - 0.5)
        before = math.floor(at + 1e-9)
        part = at - before
        if part < 1e-6:
            seen = frames[before]
        else:
            seen = sub_frame(frames[before], frames[before + 1], intervals[before], part)
        for total, power in zip(totals, powers, strict=True):
            total += seen if power == 1.0 else seen**power
    means = totals / points
    for mean, power in zip(means, powers, strict=True):
        if power != 1.0:
            mean.pow_(1 / power)
    return means


def is_cut(first: Frames, second: Frames, interval: Interval) -> bool:
    """Whether no flow leads from a frame to the next, (H, W, 3) uint8 each: another scene."""
    before, after = (torch.from_numpy(f.copy()).permute(2, 0, 1) / 255 for f in (first, second))
    left = float((before - warped(after, interval.forward)).abs().mean())
    contrast = float((before - before.mean((1, 2), keepdim=True)).abs().mean())
    return left > max(_CUT_LEAST, _CUT_SHARE * contrast)


class _Scene:
    """The exposures of a scene, made as its frames come: no more frames are held than they need.

    Args:
        lengths: of exposures, frames, by period.
        how: what is averaged.

    Attributes:
        pairs: blurred and sharp frames so far, (H, W, 3) uint8 each, by period and power.
    """

    def __init__(self, lengths: Mapping[int, float], how: Averaging) -> None:
        self._lengths, self._linear, self._powers = lengths, how.linear, how.powers
        self._count = 0
        size = 2 * max(math.ceil(length / 2) for length in lengths.values()) + 1
        # The last frames, their light, and the flow after each but the last.
        self._frames: deque[Frames] = deque(maxlen=size)
        self._light: deque[Tensor] = deque(maxlen=size)
        self._intervals: deque[Interval] = deque(maxlen=size - 1)
        self.pairs: dict[tuple[int, float], list[tuple[Frames, Frames]]] = {
            (period, power): [] for period in lengths for power in how.powers
        }

    def add(self, frame: Frames) -> bool:
        """Take the next frame; False if it shows another scene, and was not taken."""
        if self._frames:
            interval = Interval.between(self._frames[-1], frame)
            if is_cut(self._frames[-1], frame, interval):
                return False
            self._intervals.append(interval)
        light = torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 255
        self._frames.append(frame)
        self._light.append(to_linear(light) if self._linear else light)
        self._count += 1
        for period, length in self._lengths.items():
            reach = math.ceil(length / 2)
            since = self._count - 1 - 2 * reach  # frames since the first exposure was whole
            if since >= 0 and since % period == 0:
                for power, blurred in zip(self._powers, self._exposed(length, reach), strict=True):
                    self.pairs[period, power].append((blurred, self._frames[-1 - reach]))
        return True

    def _exposed(self, length: float, reach: int) -> list[Frames]:
        """The exposure that the last frame ends, for each power."""
        first = len(self._frames) - 1 - 2 * reach
        light, intervals = list(self._light)[first:], list(self._intervals)[first:]
        means = exposure(light, intervals, reach, length, self._powers)
        encoded = (to_encoded(means) if self._linear else means).clamp(0, 1) * 255
        return list(encoded.round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


@dataclass(frozen=True)
class Averaging:
    """How blur is made of ordinary video.

    Attributes:
        periods: frames of the video from one blurred frame to the next; sequences for each.
        shutter: least and most share of the period that is exposed; the share of a period is drawn,
            the same for the same name of a video and period.
        reduce: whole factor by which frames are reduced first (box filter).
        most: frames to read; 0: all.
        linear: average in linear light (sRGB curve) instead of the encoded values.
        powers: of the light that is averaged; sequences for each.
    """

    periods: tuple[int, ...]
    shutter: tuple[float, float] = (0.5, 1.0)
    reduce: int = 1
    most: int = 0
    linear: bool = True
    # It came later: kept sequences that do not use it are found by what is shown.
    powers: tuple[float, ...] = field(default=(1.0,), repr=False)

    def length(self, video: str, period: int) -> float:
        """Of the exposures of a period, frames."""
        draw = hashlib.sha256(f"{video} {period}".encode()).digest()[0] / 255
        return period * (self.shutter[0] + (self.shutter[1] - self.shutter[0]) * draw)


def load_video(
    path: Path, how: Averaging, cache: Path, say: Callable[[str], object] = lambda _: None
) -> list[PairSequence]:
    """Sequences from ordinary video, made once and kept.

    That takes some 20 microseconds of a core for each pixel of each frame: two seconds for a frame
    of 424x240. Memory holds what is made, and one frame more than the longest exposure.

    Args:
        path: the video.
        how: what to make of it.
        cache: folder to keep sequences in, for each content of a video and each ``how``. Of several
            processes that need the same ones the first makes them, the others wait.
        say: is told that it begins, and every hundred frames.

    Returns:
        a sequence "STEM/SCENE-PERIOD" for each scene of two exposures and each period (and
        "STEM/SCENE-PERIOD^POWER" for powers but 1), its frames mapped from the disk.

    Raises:
        InputError: the video cannot be read, its frames change their size or are too small, or it
            has no scene of two exposures.
        OutputError: what was made cannot be read again.
    """
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"the video cannot be read: {reason(error)}", str(path)) from error
    made_by: tuple[object, ...] = (INTERPOLATION_VERSION, path.name, content, how)
    if how.powers != (1.0,):
        made_by = (*made_by, how.powers)
    key = repr(made_by)
    done = cache / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(done.with_name(f"{done.name}.lock")):
        found = _kept(done, path.stem)
        if found is None:
            say(f"{path.name}: interpolating between its frames, once for {cache}")
            _keep(_made(path, how, say), done)
            found = _kept(done, path.stem)
    if found is None:
        raise OutputError("the sequences of a video were not kept", str(done))
    return found


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file; where there are none (Windows) every process works for itself."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _keep(made: Mapping[str, NDArray[np.uint8]], done: Path) -> None:
    """Write sequences into a folder that is whole as soon as it is there."""
    part = done.with_name(f"{done.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name, pair in made.items():
            np.save(part / f"{name}.npy", pair)
        (part / _NAMES).write_text("\n".join(sorted(made)))
        shutil.rmtree(done, ignore_errors=True)  # damaged
        part.replace(done)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _kept(folder: Path, stem: str) -> list[PairSequence] | None:
    """The sequences of a folder; None if it is not there, or something in it is damaged."""
    found = []
    try:
        for name in (folder / _NAMES).read_text().splitlines():
            pair = np.load(folder / f"{name}.npy", mmap_mode="r")
            found.append(PairSequence(f"{stem}/{name}", pair[0], pair[1]))
    except (OSError, ValueError, EOFError):
        return None
    return found or None


def _made(path: Path, how: Averaging, say: Callable[[str], object]) -> dict[str, NDArray[np.uint8]]:
    """The sequences of a video by name, (2, T, H, W, 3) each."""
    made: dict[str, NDArray[np.uint8]] = {}
    lengths = {period: how.length(path.name, period) for period in how.periods}
    for number, scene in enumerate(_scenes(_frames(path, how, say), lengths, how)):
        for (period, power), pairs in scene.pairs.items():
            if len(pairs) >= 2:
                blurred, sharp = zip(*pairs, strict=True)
                kind = f"{period}" if power == 1.0 else f"{period}^{power:g}"
                made[f"{number}-{kind}"] = np.stack((np.stack(blurred), np.stack(sharp)))
    if not made:
        hint = "shorter periods, or more frames (most)"
        raise InputError("no scene of two exposures", str(path), hint)
    return made


def _scenes(
    frames: Iterable[Frames], lengths: Mapping[int, float], how: Averaging
) -> Iterator[_Scene]:
    """The scenes of a video, each whole."""
    scene = _Scene(lengths, how)
    for frame in frames:
        if not scene.add(frame):
            yield scene
            scene = _Scene(lengths, how)
            scene.add(frame)
    yield scene


def _frames(path: Path, how: Averaging, say: Callable[[str], object]) -> Iterator[Frames]:
    """The frames of a video, reduced."""
    shape = None
    for number, frame in enumerate(islice(decoded(path), how.most or None)):
        if number and number % 100 == 0:
            say(f"{path.name}: {number} frames")
        if shape is None and min(frame.shape[:2]) < how.reduce * _LEAST:
            size = f"{frame.shape[1]}x{frame.shape[0]} reduced by {how.reduce}"
            said = f"frames are too small: {size} is less than {_LEAST} pixels on a side"
            raise InputError(said, str(path))
        if shape not in (None, frame.shape):
            raise InputError("frames of more than one size", str(path))
        shape = frame.shape
        small = Image.fromarray(frame).reduce(how.reduce) if how.reduce > 1 else frame
        yield np.asarray(small)
