"""Pictures for people: what the network is fed, and how a run went."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.data import Sampler
from vs_deblur.errors import InputError, reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEADER = 17  # height of the line that says what the columns are, pixels


def contact_sheet(sampler: Sampler, path: Path, count: int = 12, frames: int = 3) -> None:
    """Write samples as rows of a picture: consecutive blurred frames, then the sharp ones.

    A line above says which are which.

    Args:
        sampler: where samples come from.
        path: of the PNG.
        count: rows.
        frames: most frames of each sample.
    """
    frames = min(frames, sampler.longest)
    rows: list[np.ndarray] = []
    step = 0
    while len(rows) < count:
        batch = sampler.draw(step, frames)
        step += 1
        middle = batch.blurred[:, sampler.m : sampler.m + frames]
        for blurred, sharp in zip(middle, batch.sharp, strict=True):
            x = np.concatenate([*blurred.numpy(), *sharp.numpy()], axis=2)  # (3, S, 2 * frames * S)
            rows.append((x.transpose(1, 2, 0) * 255).round().astype(np.uint8))
    pictures = Image.fromarray(np.concatenate(rows[:count]))
    page = Image.new("RGB", (pictures.width, pictures.height + _HEADER), (255, 255, 255))
    page.paste(pictures, (0, _HEADER))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for left, label in ((0, "blurred"), (pictures.width // 2, "sharp")):
        draw.text((left + 2, 1), label, (20, 20, 20), font)
    page.save(path)


def _read(log: Path) -> list[dict[str, float]]:
    """Rows of a log; raises InputError if there are none."""
    try:
        with log.open(newline="") as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"no log can be read: {reason(error)}", str(log)) from error
    if not rows:
        raise InputError("the log has no rows", str(log))
    return rows


def plot(logs: Sequence[Path], path: Path) -> None:
    """Draw a run, or several of which each went on from the one before, along one axis of steps.

    Three plots: gains on validation pairs and on training samples (dB over the blurred input);
    the loss; dead units, beta and the learning rate.

    Args:
        logs: ``log.csv`` of each run, in their order.
        path: of the PNG.

    Raises:
        InputError: a log is missing or has no rows.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    gains, loss, other = all_axes = figure.subplots(3, 1, sharex=True)
    colours: dict[str, str] = {}
    begin = 0.0

    def draw(axes: Axes, steps: list[float], values: list[float], label: str, style: str) -> None:
        # One colour and one entry of the legend for all runs.
        known = label in colours
        colour = colours.setdefault(label, f"C{len(colours)}")
        axes.plot(steps, values, style, color=colour, label=None if known else label)

    for log in logs:
        rows = _read(log)
        steps = [begin + r["step"] for r in rows]
        for key in (k for k in rows[0] if "/" in k):
            folder, _, name = key.partition("/")
            # Sequences that are one photo each: their names tell them apart.
            label = folder if name.strip("0") == "" else f"{folder} {name}"
            draw(gains, steps, [r[key] for r in rows], label, "-")
        draw(gains, steps, [r["train_gain"] for r in rows], "training samples", "--")
        draw(loss, steps, [r["loss"] for r in rows], "loss", "-")
        for key in ("dead", "beta"):
            if key in rows[0]:
                draw(other, steps, [r[key] for r in rows], key, "-")
        peak = max(r["rate"] for r in rows) or 1.0
        draw(other, steps, [r["rate"] / peak for r in rows], "learning rate / its peak", ":")
        begin = steps[-1]
        if log is not logs[-1]:
            for axes in all_axes:
                axes.axvline(begin, color="grey", linewidth=0.8)

    gains.axhline(0, color="grey", linewidth=0.5)
    gains.set_ylabel("gain over the blurred input, dB")
    loss.set_ylabel("loss")
    other.set_xlabel("step")
    for axes in all_axes:
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=90)
