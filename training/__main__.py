"""``python -m training``: synthesise, look, measure, train, adapt, compare, plot, publish."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from training.adapt import adapt
from training.card import refresh
from training.data import load_pairs, prepare
from training.look import contact_sheet, plot
from training.publish import finished, publish
from training.response import responses
from training.table import VARIANTS, as_markdown, table
from training.train import Recipe, Trainer, check_beginning, make_sampler
from vs_deblur.errors import DeblurError, DeviceError, OutOfMemoryError, OutputError, reason

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
OUTPUT = click.Path(path_type=Path, dir_okay=False)


def _as_png(_ctx: click.Context, _param: click.Parameter, path: Path) -> Path:
    if path.suffix.lower() != ".png":
        raise click.BadParameter(f"pictures are PNG: name it {path.stem}.png")
    return path


PICTURE: dict[str, Any] = {"type": OUTPUT, "show_default": True, "callback": _as_png}
DATA = click.option(
    "--data", type=FOLDER, required=True, help="Folder that the recipe's paths start from."
)
RUN = click.option(
    "--run", type=FOLDER, required=True, help="Folder of the run: sequences, checkpoint, log."
)


class OneLine(click.Group):
    """A group whose commands say in one line what is wrong, with its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("ended; repeat the command to go on from the last checkpoint", err=True)
            ctx.exit(128 + signal.SIGINT)
        except (DeblurError, torch.OutOfMemoryError, OSError) as error:
            told = as_ours(error)
            click.echo(f"Error: {told}", err=True)
            ctx.exit(told.exit_code)


def as_ours(error: Exception) -> DeblurError:
    """An error as one of ours, with its exit code."""
    if isinstance(error, DeblurError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemoryError("not enough memory on the device", None, "a smaller batch")
    where = getattr(error, "filename", None)  # no such folder, a full disk
    return OutputError(reason(error), None if where is None else str(where))


@click.group(cls=OneLine)
def main() -> None:
    """Train the networks of vs-deblur."""


def prepare_device(device: str, threads: int) -> None:
    """Set the threads; raises DeviceError if there is no such device."""
    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device", device, "leave out --device cuda")


@main.command()
@click.argument("recipe", type=FILE)
@DATA
@RUN
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True)
def synthesise(recipe: Path, data: Path, run: Path, processes: int) -> None:
    """Make the synthetic sequences beforehand (training makes those that are missing)."""
    prepare(make_sampler(Recipe.load(recipe), data, run / "sequences", say=click.echo), processes)


@main.command()
@click.argument("recipe", type=FILE)
@DATA
@RUN
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads on the CPU."
)
@click.option("--allow-changes", is_flag=True, help="Go on though the recipe was changed.")
@click.option("--initial", type=FILE, help="Weights to begin a run with, e.g. the shipped ones.")
def train(
    recipe: Path,
    data: Path,
    run: Path,
    device: str,
    threads: int,
    allow_changes: bool,
    initial: Path | None,
) -> None:
    """Train, or go on from the run's checkpoint."""
    prepare_device(device, threads)
    what = Recipe.load(recipe)
    check_beginning(what, run, initial)
    place = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}" if device == "cuda" else device
    validation = [s for v in what.validation for s in load_pairs(data / v)]
    sampler = make_sampler(what, data, run / "sequences", place, say=click.echo)
    trainer = Trainer(what, sampler, run, device, allow_changes=allow_changes, initial=initial)
    click.echo(
        f"{what.network} on {device}: {what.steps} steps of {what.batch} samples, from "
        f"{len(sampler.pairs)} real sequences and {len(sampler.photos)} photographs; "
        f"{run / 'log.csv'} gets a row every {what.validate_every} steps"
    )
    if trainer.step:
        click.echo(f"{run} goes on from step {trainer.step} of {what.steps}")
    trainer.run(validation)
    click.echo(f"finished: {run / what.network}.safetensors")


@main.command("adapt")
@click.argument("model")
@click.option("--pairs", type=FOLDER, required=True, help="Holds blur/ and sharp/.")
@RUN
@click.option("-o", "--output", type=OUTPUT, required=True, help="Weights to write: *.safetensors.")
@click.option("--steps", type=click.IntRange(1), default=400, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=1e-4,
    show_default=True,
    help="Peak learning rate.",
)
@click.option("--size", type=click.IntRange(16), default=128, show_default=True, help="Of patches.")
@click.option(
    "--hold-out",
    type=click.FloatRange(0.02, 0.5),
    default=0.2,
    show_default=True,
    help="Share of the pairs to measure on.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads on the CPU."
)
def adapt_command(
    model: str,
    pairs: Path,
    run: Path,
    output: Path,
    steps: int,
    rate: float,
    size: int,
    hold_out: float,
    device: str,
    threads: int,
) -> None:
    """Train the weights of MODEL (a shipped name, or a file) further on pairs of your own."""
    prepare_device(device, threads)
    if output.suffix != ".safetensors":
        raise click.UsageError(f"weights are safetensors: name them {output.stem}.safetensors")
    found = adapt(
        model,
        pairs,
        run,
        output,
        steps=steps,
        rate=rate,
        size=size,
        share=hold_out,
        device=device,
        say=click.echo,
    )
    click.echo("gain over the blurred input on the frames held out, dB: before, after")
    for name, before in found.before.items():
        click.echo(f"sequence from {name}: {before:+.2f}, {found.after[name]:+.2f}")
    if not found.step:
        hint = "a smaller --rate may do better"
        raise click.ClickException(f"nothing was gained: {output} is not written; {hint}")
    click.echo(f"{output}: weights of step {found.step}, {found.gained:+.2f} dB")
    if found.harms:
        click.echo("with them too, these frames come out worse than they go in", err=True)


@main.command()
@click.argument("recipe", type=FILE)
@DATA
@RUN
@click.option("--count", type=click.IntRange(1), default=12, show_default=True, help="Rows.")
@click.option("-o", "--output", default=Path("sheet.png"), **PICTURE)
def sheet(recipe: Path, data: Path, run: Path, count: int, output: Path) -> None:
    """Write a picture of what the network is fed: blurred frames left, sharp ones right."""
    sampler = make_sampler(Recipe.load(recipe), data, run / "sequences", say=click.echo)
    contact_sheet(sampler, output, count)
    click.echo(f"{output}: blurred frames left, sharp ones right")


@main.command()
@click.argument("pairs", type=FOLDER, nargs=-1, required=True)
def response(pairs: tuple[Path, ...]) -> None:
    """Show what the camera of real pairs averaged: encoded values, light, or a power of it.

    For each, by how many code values (0..255) blocks of blurred frames are brighter than those of
    sharp ones, and how far apart they are (rms). The least of the latter is the one to synthesise:
    linear_share and powers in a recipe's [synthesis], linear and powers in its [[videos]].
    """
    found = [sequence for folder in pairs for sequence in load_pairs(folder)]
    click.echo("averaged         brighter  apart")
    for tried in responses(found):
        click.echo(f"{tried.name:<15}  {tried.bias:+8.2f}  {tried.rms:5.2f}")


@main.command("table")
@click.argument("recipe", type=FILE)
@DATA
@RUN
@click.option("--variants", default="cnn,strcnn,strcnn_dtb", show_default=True)
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each variant."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads on the CPU."
)
def table_command(
    recipe: Path, data: Path, run: Path, variants: str, seeds: int, device: str, threads: int
) -> None:
    """Compare networks at equal budgets: Table 1 of Kim et al. 2017, in small."""
    names = list(dict.fromkeys(variants.split(",")))
    unknown = [v for v in names if v not in VARIANTS]
    if unknown:
        known = ", ".join(VARIANTS)
        raise click.UsageError(f"no variant {', '.join(unknown)}; there are {known}")
    prepare_device(device, threads)
    chosen = [VARIANTS[v] for v in names]
    gains = table(Recipe.load(recipe), chosen, range(seeds), data, run, device)
    click.echo(as_markdown(gains))


@main.command("plot")
@click.argument("runs", type=FOLDER, nargs=-1, required=True)
@click.option("-o", "--output", default=Path("training.png"), **PICTURE)
def plot_command(runs: tuple[Path, ...], output: Path) -> None:
    """Draw the log of a run, or of several that went on from one another."""
    plot([run / "log.csv" for run in runs], output)


@main.command("publish")
@click.argument("recipe", type=FILE)
@DATA
@RUN
@click.option(
    "--step",
    "steps",
    type=int,
    multiple=True,
    help="Of several: their mean; 0: what the run began with. Default: last.",
)
@click.option("--allow-changes", is_flag=True, help="Though the recipe is not the run's any more.")
@click.option(
    "--feedback",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="How much F counts (strcnn_dtb_lite).",
)
def publish_command(
    recipe: Path,
    data: Path,
    run: Path,
    steps: tuple[int, ...],
    allow_changes: bool,
    feedback: float,
) -> None:
    """Ship the weights of a run: file, manifest and model card, with gains measured."""
    what = Recipe.load(recipe)
    root = Path(__file__).parent.parent
    found = finished(what, run, steps, allow_changes=allow_changes)
    found = replace(found, feedback=feedback)
    card = publish(what, recipe, found, data, root)
    click.echo(card.read_text())


@main.command("card")
@click.argument("recipe", type=FILE)
@DATA
def card_command(recipe: Path, data: Path) -> None:
    """Measure the shipped weights of a recipe anew and rewrite their model card."""
    card = refresh(Recipe.load(recipe), recipe, data, Path(__file__).parent.parent)
    click.echo(card.read_text())


if __name__ == "__main__":
    main()
