"""Synthesis of training sequences: batched torch operations against the reference, in one run.

Both take turns, so that what else the machine does falls on both; each makes other sequences every
time, of 13 frames of 128x128 unless told otherwise.

``uv run python -m benchmarks.synthesis PHOTOS [--device cuda] [-o docs/benchmarks/synthesis.csv]``
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from benchmarks.machine import Table
from training.batched import Synthesiser
from training.synthesis import SynthesisConfig, make_sequence, photograph
from vs_deblur.sequences import images

_SEED = 5


def seconds(made: Callable[[], object], device: torch.device) -> float:
    """How long something takes, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    made()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--device", default="cpu", show_default=True)
@click.option("--size", default=128, show_default=True, help="Height and width of sequences.")
@click.option("--frames", default=13, show_default=True)
@click.option("--batch", default=16, show_default=True, help="Sequences of a batch.")
@click.option("--rounds", type=click.IntRange(2), default=7, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path))
def main(
    photos: Path,
    device: str,
    size: int,
    frames: int,
    batch: int,
    rounds: int,
    threads: int,
    output: Path | None,
) -> None:
    """Print sequences a second of both, and their ratio: the median over the rounds."""
    torch.set_num_threads(threads)
    config = SynthesisConfig(size=size, frames=frames)
    pictures = images(photos)
    place = torch.device(device)
    synthesiser = Synthesiser(config, pictures, place, _SEED)
    host = torch.device("cpu")

    def reference(first: int) -> None:
        for index in range(first, first + batch):
            make_sequence(config, pictures, _SEED, index)

    synthesiser.read_photographs()  # once in a training of hours: not what is compared
    for path in pictures:
        photograph(path)
    synthesiser.batch(rounds, batch)  # kernels are chosen
    reference(rounds * batch)
    found = []
    for n in range(rounds):
        fast = seconds(lambda n=n: synthesiser.batch(n, batch), place)  # type: ignore[misc]
        slow = seconds(lambda n=n: reference(n * batch), host)  # type: ignore[misc]
        found.append((fast, slow))
    table = Table(device)
    table.add(
        frames=frames,
        size=size,
        rounds=rounds,
        batched_per_s=round(batch / statistics.median(f for f, _ in found), 2),
        reference_per_s=round(batch / statistics.median(s for _, s in found), 2),
        ratio=round(statistics.median(s / f for f, s in found), 2),
    )
    table.write(output)


if __name__ == "__main__":
    main()
