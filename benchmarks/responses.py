"""What a network gains on the same scenes where cameras of other responses averaged them.

Blur is made of sharp clips by frames that are interpolated between theirs
(:mod:`training.interpolation`) and averaged as encoded values, as light, or in a power of it. A
network that has learned one of these sees too much or too little blur in the others.

``uv run python -m benchmarks.responses CLIP… [--model M]… -o docs/benchmarks/responses.csv``
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.machine import Table
from training.data import PairSequence
from training.interpolation import Averaging, load_video
from training.synthesis import powers_of
from vs_deblur.engine import Deblurrer
from vs_deblur.metrics import mean, psnr

ENCODED = "encoded"
SOME = click.IntRange(1)


def sequences(
    clip: Path, averaged: Sequence[str], how: Averaging, cache: Path
) -> Iterator[tuple[str, PairSequence]]:
    """What was averaged, and the sequence that came of it; flow is computed once for all powers.

    Args:
        clip: sharp video.
        averaged: ``encoded``, or powers of light.
        how: periods and the like.
        cache: folder to keep sequences in.
    """
    if ENCODED in averaged:
        for pair in load_video(clip, replace(how, linear=False), cache):
            yield ENCODED, pair
    if powers := tuple(float(name) for name in averaged if name != ENCODED):
        for pair in load_video(clip, replace(how, powers=powers), cache):
            last = pair.name.rpartition("-")[2]  # the period, and a power but 1
            yield last.partition("^")[2] or "1", pair


def gain(deblurrer: Deblurrer, pair: PairSequence, frames: int) -> float:
    """Mean gain in PSNR over the first frames of a sequence, dB; without sharp ones.

    Raises:
        click.UsageError: all are sharp.
    """
    blurred, sharp = pair.blurred[:frames], pair.sharp[:frames]
    found = deblurrer.video(list(blurred))
    each = mean(psnr(x, s) - psnr(b, s) for x, b, s in zip(found, blurred, sharp, strict=True))
    if each is None:
        raise click.UsageError(f"{pair.name} is not blurred at all")
    return each


def how_averaged(
    _context: click.Context, _option: click.Parameter, values: Sequence[str]
) -> tuple[str, ...]:
    """What is averaged: ``encoded``, or powers of light, each once and as sequences name them."""
    try:
        powers = [float(value) for value in values if value != ENCODED]
        found = powers_of(powers) if powers else ()
    except ValueError as error:
        raise click.BadParameter(f"neither '{ENCODED}' nor a power of 1 to 4: {error}") from error
    return (ENCODED,) * (ENCODED in values) + tuple(f"{power:g}" for power in found)


@click.command()
@click.argument("clips", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["auto"],
    show_default=True,
    help="A name or a file of weights; several are compared.",
)
@click.option(
    "--averaged",
    multiple=True,
    default=[ENCODED, "1", "2.5"],
    show_default=True,
    callback=how_averaged,
    help="What is averaged: 'encoded', or a power of light.",
)
@click.option(
    "--period",
    "periods",
    type=SOME,
    multiple=True,
    default=[1, 2, 4],
    show_default=True,
    help="Frames of the clip from one blurred frame to the next.",
)
@click.option(
    "--reduce", type=SOME, default=3, show_default=True, help="Factor by which clips are reduced."
)
@click.option(
    "--most", type=SOME, default=60, show_default=True, help="Frames to read of each clip."
)
@click.option("--frames", type=SOME, default=12, show_default=True, help="Frames to measure.")
@click.option("--device", default="auto", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), help="Folder to keep sequences in.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Table (CSV).")
def main(
    clips: tuple[Path, ...],
    models: tuple[str, ...],
    averaged: tuple[str, ...],
    periods: tuple[int, ...],
    reduce: int,
    most: int,
    frames: int,
    device: str,
    cache: Path | None,
    output: Path | None,
) -> None:
    """Print the gain of each model on each clip, however it was averaged, and their means."""
    names = [Path(model).stem for model in models]
    if len(set(names)) < len(names):
        raise click.UsageError("models of the same name cannot be told apart; copy one to another")
    deblurrers = {m: Deblurrer(m, device=device, kind="video") for m in dict.fromkeys(models)}
    table = Table(next(iter(deblurrers.values())).device.type)
    means: dict[tuple[str, str], list[float]] = defaultdict(list)
    blur = Averaging(periods, reduce=reduce, most=most)
    with tempfile.TemporaryDirectory() as folder:
        for clip in clips:
            for how, pair in sequences(clip, averaged, blur, cache or Path(folder)):
                height, width = pair.sharp.shape[1:3]
                for model, deblurrer in deblurrers.items():
                    found = gain(deblurrer, pair, frames)
                    means[model, how].append(found)
                    table.add(
                        model=Path(model).stem,
                        sequence=pair.name,
                        size=f"{width}x{height}",
                        averaged=how,
                        gain_db=round(found, 2),
                    )
    for (model, how), gains in means.items():
        of_all, least = statistics.fmean(gains), min(gains)
        print(f"{Path(model).stem}  {how}: mean {of_all:+.2f} dB, least {least:+.2f} dB")
    table.write(output)


if __name__ == "__main__":
    main()
