"""``python -m training``: synthesise, look, train, plot."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from training.data import load_pairs, prepare
from training.train import Recipe, Trainer, make_sampler

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.group()
def main() -> None:
    """Train the networks of vs-deblur."""


@main.command()
@click.argument("recipe", type=FILE)
@click.option(
    "--data", type=FOLDER, required=True, help="Folder that the recipe's paths start from."
)
@click.option(
    "--run", type=FOLDER, required=True, help="Folder of the run: cache, checkpoint, log."
)
@click.option("--processes", type=int, default=1, show_default=True)
def synthesise(recipe: Path, data: Path, run: Path, processes: int) -> None:
    """Make the synthetic sequences beforehand (training makes those that are missing)."""
    prepare(make_sampler(Recipe.load(recipe), data, run / "sequences"), processes)


@main.command()
@click.argument("recipe", type=FILE)
@click.option(
    "--data", type=FOLDER, required=True, help="Folder that the recipe's paths start from."
)
@click.option(
    "--run", type=FOLDER, required=True, help="Folder of the run: cache, checkpoint, log."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=int, default=1, show_default=True, help="Threads on the CPU.")
def train(recipe: Path, data: Path, run: Path, device: str, threads: int) -> None:
    """Train, or go on from the run's checkpoint."""
    torch.set_num_threads(threads)
    what = Recipe.load(recipe)
    trainer = Trainer(what, make_sampler(what, data, run / "sequences"), run, device)
    trainer.run([s for v in what.validation for s in load_pairs(data / v)])


if __name__ == "__main__":
    main()
