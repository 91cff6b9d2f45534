"""Samples for training: real pairs and synthetic sequences, reproducible draw by draw."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from training.batched import BATCHED_VERSION, Synthesiser
from training.synthesis import (
    SYNTHESIS_VERSION,
    SynthesisConfig,
    make_sequence,
    to_encoded,
    to_linear,
)
from vs_deblur.errors import InputError, UsageError, reason
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

    Returns:
        a sequence for each run of consecutive numbers and equal sizes, and each factor.

    Raises:
        InputError: no such folder, an image that cannot be read, blurred and sharp that differ in
            number or size.
    """
    found = []
    for sequence in pair_folders(folder):
        for run in sequence.runs:
            read = zip(run, read_pairs(run), strict=True)
            for _, same in groupby(read, lambda pair: pair[1][0].shape):
                some = list(same)
                name = f"{sequence.name}/{some[0][0].blurred.stem}"
                frames = [[Image.fromarray(x) for x in pair] for _, pair in some]
                for factor in reduce:
                    blurred, sharp = (
                        np.stack([np.asarray(i.reduce(factor) if factor > 1 else i) for i in side])
                        for side in zip(*frames, strict=True)
                    )
                    found.append(PairSequence(name + f"/{factor}" * (factor > 1), blurred, sharp))
    return found


def decoded(path: Path) -> Iterator[Frames]:
    """The frames of a video, (H, W, 3) uint8.

    Raises:
        InputError: it cannot be read.
    """
    import av

    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    except (OSError, ValueError, IndexError) as error:  # FFmpeg's errors are of both kinds
        raise InputError(f"the video cannot be read: {reason(error)}", str(path)) from error


def load_high_speed(path: Path, tau: int, period: int, linear: bool) -> PairSequence:
    """A sequence from high-speed video by equation 1 of Kim et al. 2017.

    Args:
        path: a video whose motion between frames is below a pixel or so (240 fps and more).
        tau: frames of an exposure, odd; the middle one is the sharp frame.
        period: frames from one exposure to the next, ``tau <= period < 2 tau``.
        linear: average in linear light (sRGB curve) instead of the encoded values.

    Raises:
        InputError: the video cannot be read, or is shorter than one exposure.
        UsageError: ``tau`` and ``period`` do not fit.
    """
    if tau % 2 == 0 or not tau <= period < 2 * tau:
        raise UsageError(f"tau must be odd and tau <= period < 2 tau, got {tau} and {period}")
    blurred: list[Frames] = []
    sharp: list[Frames] = []
    total: NDArray[np.float32] | None = None
    for i, picture in enumerate(decoded(path)):
        phase = i % period
        if phase >= tau:
            continue
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
        raise InputError(f"shorter than one exposure of {tau} frames", str(path))
    return PairSequence(path.stem, np.stack(blurred), np.stack(sharp[: len(blurred)]))


def digest_of(sequences: Sequence[PairSequence]) -> str:
    """What tells sequences from others, as text: their names and every sample."""
    found = hashlib.blake2b(digest_size=16)
    for sequence in sequences:
        found.update(repr((sequence.name, sequence.blurred.shape)).encode())
        for frame in (*sequence.blurred, *sequence.sharp):
            found.update(np.ascontiguousarray(frame))
    return found.hexdigest()


_CRISP = 0.2  # standard deviation of a Gaussian that changes nothing, pixels
_MOST_RANKS = 4096  # processes that draw batches of one run


@dataclass(frozen=True)
class Batch:
    """Frames for one step, sRGB-encoded 0..1.

    ``blurred``: (B, T + 2m, 3, S, S); ``sharp``: (B, T, 3, S, S), the middle T of them.
    """

    blurred: Tensor
    sharp: Tensor


def _augment(rng: np.random.Generator, pair: Tensor) -> Tensor:
    """Flips, quarter turns, order of colours, direction of time; pair is (2, T, H, W, 3)."""
    if rng.random() < 0.5:
        pair = pair.flip(3)
    pair = torch.rot90(pair, int(rng.integers(4)), (2, 3))
    if rng.random() < 0.5:  # an exposure reversed in time is the same exposure
        pair = pair.flip(1)
    if rng.random() < 0.3:
        pair = pair[..., torch.from_numpy(rng.permutation(3)).to(pair.device)]
    return pair


def soften(pair: Tensor, sigma: float) -> Tensor:
    """What a lens, a sensor's colour filters and a scaler leave of crisp pictures: a Gaussian.

    Args:
        pair: (2, T, H, W, 3) uint8, sRGB-encoded.
        sigma: standard deviation, pixels.

    Returns:
        the same, softer.
    """
    reach = math.ceil(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).to(pair.device)
    x = pair.permute(0, 1, 4, 2, 3).reshape(-1, 1, *pair.shape[2:4]).float()
    x = F.pad(x, (reach,) * 4, mode="reflect")
    x = F.conv2d(F.conv2d(x, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))
    planes = x.round().clamp(0, 255).to(torch.uint8)
    return planes.view(*pair.shape[:2], 3, *pair.shape[2:4]).permute(0, 1, 3, 4, 2)


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
        softness: synthetic samples are softened, what goes in and what is sharp alike, by a
            Gaussian of a standard deviation between 0 and so many pixels: photographs that were
            reduced are crisper than what cameras film.
        size: patch height and width; longest: most output frames T; m: frames on each side.
        batch: samples a step; seed: of every draw.
        synthetic_seed: of the synthetic sequences, if another: runs of several seeds share them.
        live: where to make synthetic sequences anew for every sample (``cache`` and ``count`` mean
            nothing then); None: take them from the cache.

    Attributes:
        digest: what tells the material of this sampler (real pairs, photographs, how they are
            made) from others, as text.

    Raises:
        InputError: a real sequence is smaller than a patch; nothing to draw from.
        UsageError: a synthetic sequence is.
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
        softness: float = 0.0,
        size: int,
        longest: int,
        m: int,
        batch: int,
        seed: int,
        synthetic_seed: int | None = None,
        live: torch.device | None = None,
    ) -> None:
        self.pairs, self.photos, self.longest = list(pairs), list(photos), longest
        for sequence in self.pairs:
            height, width = sequence.blurred.shape[1:3]
            if min(height, width) < size:
                raise InputError(f"{width}x{height} is less than a patch of {size}", sequence.name)
        self.synthetic_seed = seed if synthetic_seed is None else synthetic_seed
        made_of = [(p.name, p.stat().st_size) for p in self.photos]
        how: tuple[object, ...] = (SYNTHESIS_VERSION, self.synthetic_seed, synthesis, made_of)
        if synthesis.powers != (1.0,):
            how = (*how, synthesis.powers)
        key = hashlib.sha256(repr(how).encode()).hexdigest()
        # Another seed, other settings or photographs: other sequences.
        self.cache = cache / key[:12]
        total = np.asarray(weights, dtype=np.float64)
        self.weights = total / total.sum() if len(total) else total
        self.synthesis, self.count, self.real_share = synthesis, count, real_share
        self.still_real_share, self.sharp_share = still_real_share, sharp_share
        self.softness = softness
        self.size, self.m, self.batch, self.seed = size, m, batch, seed
        self.device = torch.device("cpu") if live is None else live
        self._live: Synthesiser | None = None
        self.synthesises = not self.pairs or real_share < 1
        made_live = f"live {BATCHED_VERSION}" if live is not None else ""
        material = (key + made_live if self.synthesises else "") + digest_of(self.pairs)
        self.digest = hashlib.sha256(material.encode()).hexdigest()[:16]
        if not self.synthesises:
            return
        if not self.photos:
            raise InputError("no photographs to synthesise from", str(cache))
        if synthesis.frames < longest + 2 * m or synthesis.size < size:
            raise UsageError("synthetic sequences are smaller than the samples drawn from them")
        if live is not None:
            self._live = Synthesiser(synthesis, self.photos, live, self.synthetic_seed)

    @property
    def is_live(self) -> bool:
        """Whether synthetic sequences are made anew for every sample."""
        return self._live is not None

    def synthetic(self, index: int) -> Frames:
        """Synthetic sequence ``index``, from the cache or made now."""
        path = self.cache / f"{index:06d}.npy"
        try:
            loaded: Frames = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            loaded = make_sequence(self.synthesis, self.photos, self.synthetic_seed, index)
            self.cache.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            with part.open("wb") as file:
                np.save(file, loaded)
            part.replace(path)
        return loaded

    def _sample(self, rng: np.random.Generator, count: int, made: Tensor | None) -> Tensor:
        """A sample, (2, count + 2m, size, size, 3) uint8.

        Args:
            rng: what draws.
            count: output frames T.
            made: a sequence made for this sample; None: a real one, or one from the cache.
        """
        need = count + 2 * self.m
        stack: tuple[Any, Any]
        is_real = made is None and (self._live is not None or self._is_real(rng))
        if is_real:
            sequence = self.pairs[int(rng.choice(len(self.pairs), p=self.weights))]
            t = int(rng.integers(max(len(sequence) - need, 0) + 1))
            sharp = bool(self.sharp_share) and rng.random() < self.sharp_share
            stack = (sequence.sharp if sharp else sequence.blurred, sequence.sharp)
            frames = np.minimum(np.arange(t, t + need), len(sequence) - 1)
            if rng.random() < self.still_real_share:
                frames = np.full(need, frames[need // 2])
        else:
            found = self.synthetic(int(rng.integers(self.count))) if made is None else made
            stack = (found[0], found[1])
            t = int(rng.integers(len(stack[0]) - need + 1))
            frames = np.arange(t, t + need)
        height, width = stack[0].shape[1:3]
        y = int(rng.integers(height - self.size + 1))
        x = int(rng.integers(width - self.size + 1))
        crop = np.s_[y : y + self.size, x : x + self.size]
        if isinstance(stack[0], Tensor):
            pair = torch.stack([s[frames.tolist()][:, *crop] for s in stack])
        else:
            pair = torch.from_numpy(
                np.stack([np.stack([s[f][crop] for f in frames]) for s in stack])
            )
        if self.softness and not is_real and (sigma := rng.uniform(0, self.softness)) > _CRISP:
            pair = soften(pair, float(sigma))
        return _augment(rng, pair)

    def _is_real(self, rng: np.random.Generator) -> bool:
        return bool(self.pairs) and rng.random() < self.real_share

    def draw(self, step: int, frames: int, rank: int = 0) -> Batch:
        """The batch of a step (of one process of several), with ``frames`` output frames T."""
        rng = np.random.default_rng([self.seed, 1, step, rank])
        made: list[Tensor | None] = [None] * self.batch
        if self._live is not None:
            synthetic = [i for i in range(self.batch) if not self._is_real(rng)]
            if synthetic:
                sequences = self._live.batch(step * _MOST_RANKS + rank, len(synthetic))
                for i, sequence in zip(synthetic, sequences, strict=True):
                    made[i] = sequence
        samples = [self._sample(rng, frames, m).to(self.device) for m in made]
        x = torch.stack(samples).permute(0, 1, 2, 5, 3, 4)
        x = x.to(torch.float32) / 255.0
        return Batch(x[:, 0], x[:, 1, self.m : self.m + frames])


def prepare(sampler: Sampler, processes: int) -> None:
    """Make all synthetic sequences that the cache lacks, in parallel; none for a live recipe."""
    if sampler.is_live or not sampler.synthesises:
        return
    missing = [i for i in range(sampler.count) if not (sampler.cache / f"{i:06d}.npy").exists()]
    sampler.pairs = []  # not needed there, and large
    if processes <= 1:
        for i in missing:
            sampler.synthetic(i)
        return
    with ProcessPoolExecutor(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(sampler.synthetic, missing, chunksize=8):
            pass
