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
from itertools import product
from pathlib import Path

import click

from benchmarks.machine import Table
from training.data import PairSequence
from training.interpolation import Averaging, load_video
from vs_deblur.engine import Deblurrer
from vs_deblur.metrics import psnr

ENCODED = "encoded"


def averaging(name: str, periods: tuple[int, ...], reduce: int, most: int) -> Averaging:
    """How blur is made.

    Args:
        name: ``encoded``, or the power of light that is averaged.
        periods, reduce, most: as those of :class:`training.interpolation.Averaging`.
    """
    if name == ENCODED:
        return Averaging(periods, reduce=reduce, most=most, linear=False)
    return Averaging(periods, reduce=reduce, most=most, powers=(float(name),))


def gain(deblurrer: Deblurrer, pair: PairSequence, frames: int) -> float:
    """Mean gain in PSNR over the first frames of a sequence, dB."""
    blurred, sharp = pair.blurred[:frames], pair.sharp[:frames]
    found = deblurrer.video(list(blurred))
    each = [psnr(x, s) - psnr(b, s) for x, b, s in zip(found, blurred, sharp, strict=True)]
    return statistics.fmean(each)


@click.command()
@click.argument("clips", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", "models", multiple=True, default=["auto"], show_default=True)
@click.option(
    "--averaged",
    multiple=True,
    default=[ENCODED, "1", "2.5"],
    show_default=True,
    help="What is averaged: 'encoded', or a power of light.",
)
@click.option("--period", "periods", multiple=True, default=[1, 2, 4], show_default=True)
@click.option("--reduce", default=3, show_default=True, help="Factor by which clips are reduced.")
@click.option("--most", default=60, show_default=True, help="Frames to read of each clip.")
@click.option("--frames", default=12, show_default=True, help="Frames to measure.")
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
    cache: Path | None,
    output: Path | None,
) -> None:
    """Print the gain of each model on each clip, however it was averaged, and their means."""
    deblurrers = {m: Deblurrer(m, kind="video") for m in models}
    devices = {d.device.type for d in deblurrers.values()}
    table = Table(devices.pop())
    means: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for clip, how in product(clips, averaged):
            made = averaging(how, periods, reduce, most)
            for pair in load_video(clip, made, cache or Path(folder)):
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
        mean, least = statistics.fmean(gains), min(gains)
        print(f"{Path(model).stem}  {how}: mean {mean:+.2f} dB, least {least:+.2f} dB")
    table.write(output)


if __name__ == "__main__":
    main()
