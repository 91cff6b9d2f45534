"""Samples for training: real pairs and synthetic sequences, reproducible draw by draw."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.synthesis import SynthesisConfig, make_sequence, to_encoded, to_linear
from vs_deblur.sequences import pair_folders, read_pairs

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class PairSequence:
    """Consecutive blurred and sharp frames, (T, H, W, 3) uint8 each."""

    name: str
    blurred: Frames
    sharp: Frames

    def __len__(self) -> int:
        return len(self.blurred)


def load_pairs(folder: Path, reduce: Sequence[int] = (1,)) -> list[PairSequence]:
    """Read a pair folder: ``blur/000000.webp``, ``sharp/000000.webp`` and so on.

    Args:
        folder: holds ``blur`` and ``sharp`` with files of equal names.
        reduce: whole factors by which copies are reduced (box filter), 1 for the original.
    """
    found = []
    for sequence in pair_folders(folder):
        for run in sequence.runs:
            frames = [[Image.fromarray(x) for x in pair] for pair in read_pairs(run)]
            for factor in reduce:
                blurred, sharp = (
                    np.stack([np.asarray(i.reduce(factor) if factor > 1 else i) for i in images])
                    for images in zip(*frames, strict=True)
                )
                name = f"{sequence.name}/{run[0].blurred.stem}"
                found.append(PairSequence(name + f"/{factor}" * (factor > 1), blurred, sharp))
    return found


def load_high_speed(path: Path, tau: int, period: int, linear: bool) -> PairSequence:
    """A sequence from high-speed video by equation 1 of Kim et al. 2017.

    Args:
        path: a video whose motion between frames is below a pixel or so (240 fps and more).
        tau: frames of an exposure, odd; the middle one is the sharp frame.
        period: frames from one exposure to the next, ``tau <= period < 2 tau``.
        linear: average in linear light (sRGB curve) instead of the encoded values.

    Raises:
        ValueError: the video is shorter than one exposure, or ``tau`` and ``period`` do not fit.
    """
    import av

    if tau % 2 == 0 or not tau <= period < 2 * tau:
        raise ValueError(f"tau must be odd and tau <= period < 2 tau, got {tau} and {period}")
    blurred: list[Frames] = []
    sharp: list[Frames] = []
    total: NDArray[np.float32] | None = None
    with av.open(str(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            phase = i % period
            if phase >= tau:
                continue
            picture = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
            light = picture.astype(np.float32) / 255.0
            light = to_linear(torch.from_numpy(light)).numpy() if linear else light
            total = light if phase == 0 or total is None else total + light
            if phase == tau // 2:
                sharp.append(picture)
            if phase == tau - 1:
                mean = torch.from_numpy(total / tau)
                encoded = to_encoded(mean) if linear else mean
                blurred.append((encoded.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    if not blurred:
        raise ValueError(f"{path.name} is shorter than one exposure of {tau} frames")
    return PairSequence(path.stem, np.stack(blurred), np.stack(sharp[: len(blurred)]))


@dataclass(frozen=True)
class Batch:
    """Frames for one step, sRGB-encoded 0..1.

    ``blurred``: (B, T + 2m, 3, S, S); ``sharp``: (B, T, 3, S, S), the middle T of them.
    """

    blurred: Tensor
    sharp: Tensor


def _augment(rng: np.random.Generator, pair: Frames) -> Frames:
    """Flips, quarter turns, order of colours, direction of time; pair is (2, T, H, W, 3)."""
    if rng.random() < 0.5:
        pair = pair[:, :, :, ::-1]
    pair = np.rot90(pair, int(rng.integers(4)), axes=(2, 3))
    if rng.random() < 0.5:  # an exposure reversed in time is the same exposure
        pair = pair[:, ::-1]
    if rng.random() < 0.3:
        pair = pair[..., rng.permutation(3)]
    return pair


class Sampler:
    """Draws the batch of any step: a pure function of (seed, step).

    Args:
        pairs: real sequences.
        synthesis: what to synthesise; sequences are kept under ``cache`` once made.
        photos: sharp photographs for the synthesis.
        cache: folder for made sequences.
        count: number of different synthetic sequences.
        real_share: share of samples from real pairs.
        weights: relative weight of each real sequence.
        still_real_share: share of real samples in which one frame is repeated.
        sharp_share: share of real samples in which the sharp frames are also what goes in: footage
            without blur must stay as it is.
        size: patch height and width; longest: most output frames T; m: frames on each side.
        batch: samples a step; seed: of every draw.
    """

    def __init__(
        self,
        *,
        pairs: Sequence[PairSequence],
        weights: Sequence[float],
        synthesis: SynthesisConfig,
        photos: Sequence[Path],
        cache: Path,
        count: int,
        real_share: float,
        still_real_share: float,
        sharp_share: float = 0.0,
        size: int,
        longest: int,
        m: int,
        batch: int,
        seed: int,
    ) -> None:
        self.pairs, self.photos, self.cache = list(pairs), list(photos), cache
        total = np.asarray(weights, dtype=np.float64)
        self.weights = total / total.sum() if len(total) else total
        self.synthesis, self.count, self.real_share = synthesis, count, real_share
        self.still_real_share, self.sharp_share = still_real_share, sharp_share
        self.size, self.m, self.batch, self.seed = size, m, batch, seed
        cache.mkdir(parents=True, exist_ok=True)
        if synthesis.frames < longest + 2 * m or synthesis.size < size:
            raise ValueError("synthetic sequences are smaller than the samples drawn from them")

    def synthetic(self, index: int) -> Frames:
        """Synthetic sequence ``index``, from the cache or made now."""
        path = self.cache / f"{index:06d}.npy"
        try:
            loaded: Frames = np.load(path, mmap_mode="r")
        except (OSError, ValueError):
            loaded = make_sequence(self.synthesis, self.photos, self.seed, index)
            part = path.with_suffix(f".{os.getpid()}.part")
            with part.open("wb") as file:
                np.save(file, loaded)
            part.replace(path)
        return loaded

    def _sample(self, rng: np.random.Generator, count: int) -> Frames:
        need = count + 2 * self.m
        if self.pairs and rng.random() < self.real_share:
            sequence = self.pairs[int(rng.choice(len(self.pairs), p=self.weights))]
            t = int(rng.integers(max(len(sequence) - need, 0) + 1))
            sharp = bool(self.sharp_share) and rng.random() < self.sharp_share
            stack: tuple[Frames, Frames] = (
                sequence.sharp if sharp else sequence.blurred,
                sequence.sharp,
            )
            frames = np.minimum(np.arange(t, t + need), len(sequence) - 1)
            if rng.random() < self.still_real_share:
                frames = np.full(need, frames[need // 2])
        else:
            made = self.synthetic(int(rng.integers(self.count)))
            stack = (made[0], made[1])
            t = int(rng.integers(len(made[0]) - need + 1))
            frames = np.arange(t, t + need)
        height, width = stack[0].shape[1:3]
        y = int(rng.integers(height - self.size + 1))
        x = int(rng.integers(width - self.size + 1))
        crop = np.s_[y : y + self.size, x : x + self.size]
        pair = np.stack([np.stack([s[f][crop] for f in frames]) for s in stack])
        return _augment(rng, pair)

    def draw(self, step: int, frames: int, rank: int = 0) -> Batch:
        """The batch of a step (of one process of several), with ``frames`` output frames T."""
        rng = np.random.default_rng([self.seed, 1, step, rank])
        samples = np.stack([self._sample(rng, frames) for _ in range(self.batch)])
        x = torch.from_numpy(np.ascontiguousarray(samples)).permute(0, 1, 2, 5, 3, 4)
        x = x.to(torch.float32) / 255.0
        return Batch(x[:, 0], x[:, 1, self.m : self.m + frames])


def prepare(sampler: Sampler, processes: int) -> None:
    """Make all synthetic sequences that the cache lacks, in parallel."""
    missing = [i for i in range(sampler.count) if not (sampler.cache / f"{i:06d}.npy").exists()]
    sampler.pairs = []  # not needed there, and large
    if processes <= 1:
        for i in missing:
            sampler.synthetic(i)
        return
    with ProcessPoolExecutor(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(sampler.synthetic, missing, chunksize=8):
            pass
