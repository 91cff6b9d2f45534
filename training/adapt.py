"""Weights adapted to the pairs of one camera: some minutes from weights that exist.

A part of the pairs is held out: gains are measured there, before and after, and the step that
gains most there is kept. Weights that gain nothing are not written.
"""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data import PairSequence, load_pairs
from training.synthesis import laplacian_variance
from training.train import Recipe, Trainer, sampler_of, validation_gain, weights_at
from vs_deblur import weights
from vs_deblur.errors import InputError, OutputError, UsageError
from vs_deblur_models.registry import config_of, from_state, save_network
from vs_deblur_models.spec import NetworkSpec, takes_frames

_LONG = 5  # frames from which on a sequence is split, rather than taken whole for one of the parts
_VALIDATIONS = 8
_FRAMES = 10  # of each held-out sequence
_LEAST_GAIN = 0.005  # dB that weights must gain to be worth writing


@dataclass(frozen=True)
class Adapted:
    """What an adaptation came to.

    Attributes:
        step: whose weights gained most on the held-out frames; 0: those it began with.
        before, after: mean gain over the blurred input on each held-out sequence, dB, with the
            weights it began with and with those of ``step``.
    """

    step: int
    before: dict[str, float]
    after: dict[str, float]

    @property
    def harms(self) -> bool:
        """Whether the held-out frames are worse with these weights than without any."""
        return statistics.mean(x for x in self.after.values() if not math.isnan(x)) <= 0

    @property
    def gained(self) -> float:
        """Mean over the sequences of what the adaptation added, dB."""
        found = (self.after[k] - self.before[k] for k in self.before)
        return statistics.mean(x for x in found if not math.isnan(x))


def one_by_one(sequences: Sequence[PairSequence]) -> list[PairSequence]:
    """Every pair as a sequence of its own: photos, whose numbers say nothing."""
    return [
        PairSequence(f"{s.name}+{i}", s.blurred[i : i + 1], s.sharp[i : i + 1])
        for s in sequences
        for i in range(len(s))
    ]


def split(
    sequences: Sequence[PairSequence], share: float
) -> tuple[list[PairSequence], list[PairSequence]]:
    """Part pairs into those to train on and those held out.

    Of a sequence of five frames and more the last frames are held out, so that no frame between two
    of training is; of shorter ones and of photos, every so-manieth whole.

    Args:
        sequences: consecutive frames each.
        share: to hold out, 0..1.

    Raises:
        InputError: one of the parts would be empty.
    """
    trained: list[PairSequence] = []
    held_out: list[PairSequence] = []
    short = 0
    every = max(round(1 / share), 2)
    for sequence in sequences:
        count = len(sequence)
        if count < _LONG:
            short += 1
            (held_out if short % every == 0 else trained).append(sequence)
            continue
        cut = min(max(count - round(count * share), 1), count - 1)
        for part, frames in ((trained, slice(cut)), (held_out, slice(cut, count))):
            blurred, sharp = sequence.blurred[frames], sequence.sharp[frames]
            part.append(PairSequence(sequence.name, blurred, sharp))
    if trained and not held_out:
        held_out.append(trained.pop())
    if not trained or not held_out:
        count = sum(map(len, sequences))
        said = f"{count} pairs are too few to hold some of them out"
        raise InputError(said, hint="two are the least, a hundred a good number")
    return trained, held_out


def is_softer(sequences: Sequence[PairSequence]) -> bool:
    """Whether most sharp frames have less fine detail than their blurred ones, as if swapped."""
    softer = [
        laplacian_variance(s.sharp[i].mean(-1, dtype=np.float32))
        < laplacian_variance(s.blurred[i].mean(-1, dtype=np.float32))
        for s in sequences
        for i in {0, len(s) // 2, len(s) - 1}
    ]
    return 2 * sum(softer) > len(softer)


def recipe_for(network: Any, steps: int, rate: float, size: int, seed: int) -> Recipe:
    """The recipe of an adaptation: real pairs only, at a small rate.

    Args:
        network: what is adapted.
        steps: optimiser steps.
        rate: peak of the learning rate.
        size: height and width of the patches.
        seed: of every draw.
    """
    moves = takes_frames(network)
    return Recipe(
        network=network.spec.network,
        config=config_of(network),
        steps=steps,
        batch=4,
        frames=4 if moves else 1,
        size=size,
        loss="charbonnier",
        learning_rate=rate,
        warmup=max(steps // 10, 1),
        average=0.99,
        validate_every=max(steps // _VALIDATIONS, 1),
        seed=seed,
        real_share=1.0,
        still_real_share=0.05 if moves else 0.0,
        sharp_share=0.05,  # footage without blur must stay as it is
    )


def patch_size(spec: NetworkSpec, sequences: Sequence[PairSequence], most: int) -> int:
    """The largest size of square patches that fits the pairs and the network.

    Raises:
        InputError: the pairs are smaller than what the network takes.
    """
    multiple = max(spec.multiple_of, spec.width_multiple_of or 1)
    smallest: int = min(min(s.blurred.shape[1:3]) for s in sequences)
    size = min(most, smallest) // multiple * multiple
    least = max(spec.minimum, multiple)
    if size < least:
        raise InputError(
            f"pairs of {smallest} pixels are too small: {spec.network} is trained on patches of "
            f"at least {least}"
        )
    return size


def adapt(
    model: str,
    pairs: Path,
    run: Path,
    output: Path,
    *,
    steps: int = 400,
    rate: float = 1e-4,
    size: int = 128,
    share: float = 0.2,
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], object] = lambda _: None,
) -> Adapted:
    """Train weights further on pairs of blurred and sharp frames.

    Args:
        model: the name of a shipped model or a safetensors file.
        pairs: holds ``blur`` and ``sharp``, or folders of that kind.
        run: checkpoint and log; a run that was ended goes on, if all of this is as it was.
        output: the safetensors file to write, float16; only if something was gained.
        steps, rate, size, seed: of the training, see :func:`recipe_for`.
        share: of the pairs that are held out.
        device: "cpu" or "cuda".
        say: takes lines for the user: how the pairs were understood, and what is odd about them.

    Raises:
        InputError: the pairs cannot be read, are too few or too small.
        WeightsError: there are no such weights.
        UsageError: the run's folder holds a run with other settings, pairs or weights; several
            processes.
        OutputError: the output's folder does not exist.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("adapt is for one process")
    if not output.absolute().parent.is_dir():
        raise OutputError("no such folder", str(output.parent))
    loaded = weights.load(model)
    found = load_pairs(pairs)
    is_video = takes_frames(loaded.network)
    trained, held_out = split(found if is_video else one_by_one(found), share)
    say(
        f"{sum(map(len, found))} pairs, {len(found)} sequence{'s' * (len(found) != 1)}: "
        f"{sum(map(len, trained))} to train on, {sum(map(len, held_out))} held out"
    )
    if is_video and max(map(len, found)) == 1:
        say("no two of them are consecutive; if they are photos: adapt photo_lite")
    if is_softer(found):
        say("the sharp frames are softer than the blurred ones: are the folders swapped?")
    spec = loaded.network.spec
    recipe = recipe_for(loaded.network, steps, rate, patch_size(spec, trained, size), seed)
    shares = [float(len(s)) for s in trained]
    sampler = sampler_of(recipe, trained, shares, (), run / "sequences")
    network = loaded.network.to(device, memory_format=torch.channels_last)
    before = {s.name: validation_gain(network, s, _FRAMES) for s in held_out}
    # Pairs without any difference have no gain.
    before = {name: gain for name, gain in before.items() if not math.isnan(gain)}
    if not before:
        raise InputError("the pairs held out are not blurred at all", str(pairs))
    trainer = Trainer(recipe, sampler, run, device, initial=loaded.path)
    trainer.run(held_out)
    with (run / "log.csv").open(newline="") as file:
        rows = {int(float(r["step"])): r for r in csv.DictReader(file)}
    gains = {0: before}  # first: of equal ones the first is taken
    for step, row in rows.items():
        if step and weights_at(run, step).exists():
            gains[step] = {name: float(row[name]) for name in before}

    def mean_gain(step: int) -> float:
        known = [g for g in gains[step].values() if not math.isnan(g)]
        return statistics.mean(known) if known else -math.inf

    best = max(gains, key=mean_gain)
    if mean_gain(best) < mean_gain(0) + _LEAST_GAIN:
        best = 0
    if best:
        state, metadata = weights.read_tensors(weights_at(run, best))
        extra = {**loaded.metadata, "adapted_from": loaded.name}
        save_network(from_state(state, metadata), output, torch.float16, extra)
    return Adapted(best, before, gains[best])
