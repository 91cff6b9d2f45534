"""Pictures for people: what the network is fed, and how a run went."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from training.data import Sampler


def contact_sheet(sampler: Sampler, path: Path, count: int = 12, frames: int = 3) -> None:
    """Write samples as rows of a picture: consecutive blurred frames, then the sharp ones.

    Args:
        sampler: where samples come from.
        path: of the PNG.
        count: rows.
        frames: frames of each sample.
    """
    rows: list[np.ndarray] = []
    step = 0
    while len(rows) < count:
        batch = sampler.draw(step, frames)
        step += 1
        middle = batch.blurred[:, sampler.m : sampler.m + frames]
        for blurred, sharp in zip(middle, batch.sharp, strict=True):
            x = np.concatenate([*blurred.numpy(), *sharp.numpy()], axis=2)  # (3, S, 2 * frames * S)
            rows.append((x.transpose(1, 2, 0) * 255).round().astype(np.uint8))
    Image.fromarray(np.concatenate(rows[:count])).save(path)


def plot(log: Path, path: Path) -> None:
    """Draw the log of a run: loss, gains on training samples and validation pairs, dead units.

    Raises:
        ValueError: the log has no rows.
    """
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    if not rows:
        raise ValueError(f"{log} has no rows")
    steps = [r["step"] for r in rows]
    figure = Figure(figsize=(9, 8), layout="constrained")
    gains, loss, other = figure.subplots(3, 1, sharex=True)
    for key in rows[0]:
        if "/" in key:
            gains.plot(steps, [r[key] for r in rows], label=key.split("/")[0])
    gains.plot(steps, [r["train_gain"] for r in rows], "--", label="training samples")
    gains.set_ylabel("gain over the blurred input, dB")
    gains.axhline(0, color="grey", linewidth=0.5)
    gains.legend()
    loss.plot(steps, [r["loss"] for r in rows])
    loss.set_ylabel("loss")
    for key in ("dead", "beta"):
        if key in rows[0]:
            other.plot(steps, [r[key] for r in rows], label=key)
    rate = [r["rate"] / max(max(x["rate"] for x in rows), 1e-12) for r in rows]
    other.plot(steps, rate, ":", label="learning rate / its peak")
    other.set_xlabel("step")
    other.legend()
    for axes in (gains, loss, other):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
