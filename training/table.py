"""Networks compared at equal budgets: Table 1 of Kim et al. 2017, in small.

Every variant is trained by the same recipe with several seeds and measured on sequences that no
training saw: the recipe's validation pairs, and synthetic sequences of light and of heavy blur from
photographs that are held out (the paper's figure 5). Runs go on where they stopped.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from training.batched import Synthesiser
from training.data import PairSequence, load_pairs
from training.train import Recipe, Trainer, make_sampler, validation_gain
from vs_deblur.sequences import images
from vs_deblur.weights import read_tensors
from vs_deblur_models.registry import from_state


@dataclass(frozen=True)
class Variant:
    """A row of the table.

    Attributes:
        name: of the row.
        network: in the registry.
        m: frames on each side of the middle one.
    """

    name: str
    network: str
    m: int = 1


VARIANTS = {
    v.name: v
    for v in (
        Variant("cnn", "cnn"),
        Variant("strcnn", "strcnn"),
        Variant("strcnn_dtb", "strcnn_dtb"),
        Variant("strcnn_dtb-5", "strcnn_dtb", 2),
        Variant("strcnn_dtb-7", "strcnn_dtb", 3),
    )
}

# Path lengths between two frames, pixels: below 4 a blur is hard to see, above 12 hard to miss.
BLURS = {"light": (1.5, 4.0), "heavy": (12.0, 28.0)}
_SEED = 977  # of the sequences that are measured: none of a recipe's


@dataclass(frozen=True)
class Gain:
    """Gain of one network on one sequence, dB over the blurred input."""

    variant: str
    seed: int
    sequence: str
    gain: float


def recipe_of(base: Recipe, variant: Variant, seed: int) -> Recipe:
    """The recipe of a row: the base with another network and seed."""
    config = {**base.config, "m": variant.m}
    return replace(base, network=variant.network, config=config, seed=seed)


def held_out(base: Recipe, data: Path, count: int) -> list[PairSequence]:
    """What is measured: the validation pairs, and ``count`` sequences of each kind of blur."""
    found = [s for v in base.validation for s in load_pairs(data / v)]
    photos = base.kept_from_training(images(data / base.photos))
    for name, (slowest, fastest) in BLURS.items():
        config = replace(
            base.synthesis,
            min_speed=slowest,
            max_speed=fastest,
            still_share=0.0,
            frozen_share=0.0,
        )
        made = Synthesiser(config, photos, torch.device("cpu"), _SEED).batch(0, count).numpy()
        found += [PairSequence(f"{name}/{i}", *sequence) for i, sequence in enumerate(made)]
    return found


def train(base: Recipe, variant: Variant, seed: int, data: Path, run: Path, device: str) -> Path:
    """Train a row with a seed, or go on with it; the weights."""
    recipe = recipe_of(base, variant, seed)
    folder = run / f"{variant.name}-{seed}"
    weights = folder / f"{variant.network}.safetensors"
    sampler = make_sampler(recipe, data, run / "sequences", device)
    trainer = Trainer(recipe, sampler, folder, device)
    if trainer.step < recipe.steps:
        trainer.run([])
    return weights


def measure(weights: Path, sequences: Iterable[PairSequence]) -> dict[str, float]:
    """Mean gain of weights on each group of sequences, those that differ in their last part."""
    network = from_state(*read_tensors(weights)).to(memory_format=torch.channels_last)
    groups: dict[str, list[float]] = {}
    for sequence in sequences:
        group = sequence.name.rpartition("/")[0]
        groups.setdefault(group, []).append(validation_gain(network, sequence, 30))
    return {group: float(np.nanmean(gains)) for group, gains in groups.items()}


def table(
    base: Recipe,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    data: Path,
    run: Path,
    device: str,
    count: int = 24,
) -> list[Gain]:
    """Train and measure everything; ``table.csv`` in the run's folder grows row by row."""
    run.mkdir(parents=True, exist_ok=True)
    sequences = held_out(base, data, count)
    found: list[Gain] = []
    with (run / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", "sequence", "gain"])
        # Seed by seed: a table that is not complete compares what it has.
        for seed in seeds:
            for variant in variants:
                weights = train(base, variant, seed, data, run, device)
                for group, gain in measure(weights, sequences).items():
                    found.append(Gain(variant.name, seed, group, gain))
                    writer.writerow([variant.name, seed, group, f"{gain:.4f}"])
                file.flush()
    return found


def as_markdown(gains: Sequence[Gain]) -> str:
    """Mean and spread (standard deviation over seeds) of each variant and group of sequences."""
    groups = list(dict.fromkeys(g.sequence for g in gains))
    variants = list(dict.fromkeys(g.variant for g in gains))
    lines = ["| network | " + " | ".join(groups) + " |", "|---" * (len(groups) + 1) + "|"]
    for variant in variants:
        cells = []
        for group in groups:
            values = [g.gain for g in gains if (g.variant, g.sequence) == (variant, group)]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):+.2f} ± {spread:.2f}")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
