"""Networks compared at equal budgets: Table 1 of Kim et al. 2017, in small.

Every variant is trained by the same recipe with several seeds and measured on sequences that no
training saw: the recipe's validation pairs, and synthetic sequences of light and of heavy blur from
photographs that are held out (the paper's figure 5). Runs go on where they stopped.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from training.batched import BATCHED_VERSION, Synthesiser
from training.data import PairSequence, load_pairs
from training.train import Recipe, Trainer, make_sampler, photographs, validation_gain
from vs_deblur.errors import UsageError
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
# Frames at both ends that do not count: there the window repeats frames, the more the wider it is,
# and a recurrence has no past yet.
_MARGIN = max(v.m for v in VARIANTS.values())
_FRAMES = 10 + 2 * _MARGIN  # of the synthetic sequences that are measured
_COLUMNS = ("recipe", "variant", "seed", "group", "sequence", "gain", "gain_without_memory")


@dataclass(frozen=True)
class Gain:
    """Gain of one network on one sequence, dB over the blurred input.

    Attributes:
        variant, seed: of the network.
        group: column of the table.
        sequence: its name within the group.
        gain: mean over the sequence's frames.
        without_memory: the same where every frame begins with the empty state of a clip's first
            one: what a recurrence has learned to use its past for is the difference. None for
            networks that have no memory.
    """

    variant: str
    seed: int
    group: str
    sequence: str
    gain: float
    without_memory: float | None = None


def recipe_of(base: Recipe, variant: Variant, seed: int) -> Recipe:
    """The recipe of a row: the base with another network and seed."""
    config = {**base.config, "m": variant.m}
    return replace(base, network=variant.network, config=config, seed=seed)


def held_out(base: Recipe, data: Path, count: int) -> list[PairSequence]:
    """What is measured: the validation pairs, and ``count`` sequences of each kind of blur.

    Raises:
        UsageError: the recipe holds no photographs out.
    """
    found = [s for v in base.validation for s in load_pairs(data / v)]
    _, photos = photographs(base, data)
    if not photos:
        raise UsageError("the recipe holds no photographs out (hold_out): nothing to measure on")
    for name, (slowest, fastest) in BLURS.items():
        config = replace(
            base.synthesis,
            frames=_FRAMES,
            min_speed=slowest,
            max_speed=fastest,
            still_share=0.0,
            frozen_share=0.0,
        )
        made = Synthesiser(config, photos, torch.device("cpu"), _SEED).batch(0, count).numpy()
        found += [PairSequence(f"{name}/{i}", *sequence) for i, sequence in enumerate(made)]
    return found


def train(base: Recipe, variant: Variant, seed: int, data: Path, run: Path, device: str) -> Path:
    """Train a row with a seed, or go on with it; the weights.

    Equal budgets are equal steps of equal samples: every network of a seed and of equal m sees the
    same ones (wider windows are other crops), and the synthetic sequences they are cut from are the
    same for all seeds.
    """
    recipe = recipe_of(base, variant, seed)
    folder = run / f"{variant.name}-{seed}"
    weights = folder / f"{variant.network}.safetensors"
    sequences = run / "sequences"
    sampler = make_sampler(recipe, data, sequences, device, synthetic_seed=base.seed, say=print)
    trainer = Trainer(recipe, sampler, folder, device)
    if trainer.step < recipe.steps:
        trainer.run([])
    return weights


def measure(
    weights: Path, sequences: Iterable[PairSequence]
) -> list[tuple[str, str, float, float | None]]:
    """Group, name and gain of each sequence, and the gain without memory.

    Sequences without any blur are left out.
    """
    network = from_state(*read_tensors(weights)).to(memory_format=torch.channels_last)

    def gain(sequence: PairSequence, memory: bool) -> float:
        return validation_gain(network, sequence, len(sequence), _MARGIN, memory)

    found = []
    for sequence in sequences:
        group, _, name = sequence.name.rpartition("/")
        whole = gain(sequence, True)
        if not math.isnan(whole):
            without = gain(sequence, False) if network.spec.is_recurrent else None
            found.append((group, name, whole, without))
    return found


def _compared(base: Recipe, count: int) -> str:
    """What tells tables that can be compared from others: budget, samples and what is measured."""
    what = (base.digest(), base.validation, count, BATCHED_VERSION)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def _read(file: Path, recipe: str) -> dict[tuple[str, int], list[Gain]]:
    """Rows of an earlier table of this recipe, by variant and seed."""
    found: dict[tuple[str, int], list[Gain]] = {}
    if file.exists():
        with file.open(newline="") as rows:
            for row in csv.DictReader(rows):
                if row.get("recipe") != recipe:  # of another budget, or measured on other pairs
                    continue
                key = row["variant"], int(row["seed"])
                without = row.get("gain_without_memory")
                gain = Gain(
                    *key,
                    row["group"],
                    row["sequence"],
                    float(row["gain"]),
                    float(without) if without else None,
                )
                found.setdefault(key, []).append(gain)
    return found


def _write(file: Path, recipe: str, rows: Iterable[Gain]) -> None:
    part = file.with_suffix(".part")
    with part.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(_COLUMNS)
        for g in rows:
            without = "" if g.without_memory is None else f"{g.without_memory:.4f}"
            row = [recipe, g.variant, g.seed, g.group, g.sequence, f"{g.gain:.4f}", without]
            writer.writerow(row)
    part.replace(file)


def table(
    base: Recipe,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    data: Path,
    run: Path,
    device: str,
    count: int = 24,
) -> list[Gain]:
    """Train and measure networks; ``table.csv`` in the run's folder grows row by row.

    Args:
        base: the recipe of all.
        variants, seeds: what is trained; rows of others that the file has are kept, if they are of
            this recipe.
        data: the folder that the recipe's paths start from.
        run: a folder for the runs.
        device: "cpu" or "cuda".
        count: synthetic sequences of each kind of blur to measure on.

    Returns:
        all rows of the file.

    Raises:
        UsageError: several processes; a run's folder holds another run; no photographs held out.
        InputError: pairs or photographs that cannot be read.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("a table is for one process")
    run.mkdir(parents=True, exist_ok=True)
    sequences = held_out(base, data, count)
    file = run / "table.csv"
    recipe = _compared(base, count)
    found = _read(file, recipe)
    # Seed by seed: a table that is not complete compares what it has.
    for seed in seeds:
        for variant in variants:
            weights = train(base, variant, seed, data, run, device)
            found[variant.name, seed] = [
                Gain(variant.name, seed, *row) for row in measure(weights, sequences)
            ]
            _write(file, recipe, (g for rows in found.values() for g in rows))
    return [g for rows in found.values() for g in rows]


Cell = Callable[[str, str], Iterable[float]]  # a value for each seed of a variant in a group


def _cell(values: Sequence[float]) -> str:
    """Mean and standard deviation; without the latter if there is one value alone."""
    if not values:
        return "–"
    text = f"{statistics.mean(values):+.2f}"
    return f"{text} ± {statistics.stdev(values):.2f}" if len(values) > 1 else text


def as_markdown(gains: Sequence[Gain]) -> str:
    """The table: for each variant and group mean and standard deviation over the seeds.

    A second table has what each variant gains more than the first one with the same seed: the
    networks of a seed saw the same samples, but for variants of another m, and all are measured on
    the same sequences. A third one has what of the gain is lost when every frame begins with an
    empty memory.
    """
    groups = list(dict.fromkeys(g.group for g in gains))
    variants = list(dict.fromkeys(g.variant for g in gains))

    def means(rows: Iterable[tuple[Gain, float]], variant: str, group: str) -> dict[int, float]:
        ours = [(g.seed, value) for g, value in rows if (g.variant, g.group) == (variant, group)]
        seeds = sorted({seed for seed, _ in ours})
        return {s: statistics.mean(value for seed, value in ours if seed == s) for s in seeds}

    whole = [(g, g.gain) for g in gains]
    by_memory = [(g, g.gain - g.without_memory) for g in gains if g.without_memory is not None]

    def gain(variant: str, group: str) -> Iterable[float]:
        return means(whole, variant, group).values()

    def more(variant: str, group: str) -> Iterable[float]:
        ours, theirs = (means(whole, v, group) for v in (variant, variants[0]))
        return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]

    def of_memory(variant: str, group: str) -> Iterable[float]:
        return means(by_memory, variant, group).values()

    def part(title: str, names: Sequence[str], of: Cell) -> list[str]:
        lines = [f"| {title}, dB | " + " | ".join(groups) + " |", "|---" * (len(groups) + 1) + "|"]
        for name in names:
            cells = [_cell(list(of(name, group))) for group in groups]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return lines

    lines = [*part("gain", variants, gain), ""]
    lines += part(f"more than {variants[0]}", variants[1:], more)
    if recurrent := list(dict.fromkeys(g.variant for g, _ in by_memory)):
        lines += ["", *part("of which by memory", recurrent, of_memory)]
    return "\n".join(lines)
