"""How many warm-up frames a segment needs.

For frames deep inside a clip: PSNR between the frame computed with the whole history and the frame
computed from fresh state with W warm-up frames, the worst case being the first frame of a segment.

``uv run python -m benchmarks.warmup CLIP_OR_FOLDER… -o docs/images/warmup.png``
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import av
import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vs_deblur.engine import Deblurrer, Prepared, array_format
from vs_deblur_models.spec import State

WARMUPS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def read_frames(path: Path, count: int) -> list[NDArray[np.uint8]]:
    """The first frames of a video, or of a folder of images, cropped to at most 640x360."""
    frames: list[NDArray[np.uint8]] = []
    if path.is_dir():
        for file in islice(sorted(p for p in path.iterdir() if p.stem.isdigit()), count):
            with Image.open(file) as image:
                frames.append(np.asarray(image.convert("RGB")))
    else:
        with av.open(str(path)) as container:
            for frame in islice(container.decode(video=0), count):
                frames.append(np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8))
    if not frames:
        raise click.UsageError(f"no frames in {path}")
    height, width = frames[0].shape[:2]
    y, x = max(height - 360, 0) // 2, max(width - 640, 0) // 2
    return [f[y : y + 360, x : x + 640] for f in frames]


def differences(deblurrer: Deblurrer, frames: Sequence[NDArray[np.uint8]]) -> dict[int, float]:
    """Mean squared error (values 0..1) by number of warm-up frames."""
    fmt = array_format(frames[0])
    ready: list[Prepared] = [deblurrer.prepare([f[..., c] for c in range(3)], fmt) for f in frames]
    last = len(frames) - 1 - deblurrer.spec.look_ahead
    window = deblurrer.plan.window

    def step(n: int, state: State | None) -> tuple[NDArray[np.float64], State]:
        inputs = [ready[i] for i in window(n, len(frames), lambda _: False)]
        frame, state = deblurrer.step(inputs, state)
        return np.stack(frame.planes).astype(np.float64) / 255, state

    whole: dict[int, NDArray[np.float64]] = {}
    state: State | None = None
    for n in range(last + 1):
        whole[n], state = step(n, state)
    targets = list(range(max(WARMUPS) + 1, last + 1))[:: max(1, (last - 32) // 5)][:5]
    if not targets:
        raise click.UsageError(
            f"clips must have {max(WARMUPS) + 2 + deblurrer.spec.look_ahead} frames"
        )
    errors: dict[int, float] = {}
    for w in WARMUPS:
        found = []
        for target in targets:
            state = None
            for n in range(target - w, target + 1):
                out, state = step(n, state)
            found.append(float(((out - whole[target]) ** 2).mean()))
        errors[w] = float(np.mean(found))
    return errors


def decibels(mse: float) -> float:
    """PSNR in dB; 99 stands for identical frames."""
    return 99.0 if mse <= 1e-10 else -10 * math.log10(mse)


@click.command()
@click.argument("clips", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", default="auto", show_default=True)
@click.option("--frames", default=48, show_default=True, help="Frames of each clip.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Plot (PNG).")
def main(clips: tuple[Path, ...], model: str, frames: int, output: Path | None) -> None:
    """Print a table (Markdown) of PSNR in dB by warm-up, and draw it."""
    deblurrer = Deblurrer(model, device="cpu", precision="fp32", segment=0)
    table: dict[str, dict[int, float]] = {}
    for clip in clips:
        name = clip.parent.name if clip.name in ("blur", "sharp") else clip.stem
        table[name] = {
            w: decibels(e) for w, e in differences(deblurrer, read_frames(clip, frames)).items()
        }
    print("| warm-up | " + " | ".join(table) + " | worst |")
    print("|---" * (len(table) + 2) + "|")
    for w in WARMUPS:
        row = [values[w] for values in table.values()]
        print(f"| {w} | " + " | ".join(f"{v:.1f}" for v in row) + f" | {min(row):.1f} |")
    if output is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in table.items():
        axes.plot(list(values), list(values.values()), "o-", markersize=3, label=name)
    axes.axhline(48.1, color="grey", linestyle=":", label="one code value at 8 bit")
    axes.set_xlabel("warm-up frames before the segment")
    axes.set_ylabel("PSNR to the whole history, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main()
