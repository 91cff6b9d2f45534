"""Flicker along the motion, and whether the borders of segments can be told.

Flicker (:mod:`vs_deblur.flicker`) of what is wrong with the frames, before and after, on pairs; of
what was done to them on clips without a sharp original. Motion is that of the sharp frames, or of
what goes in, so that all models are judged along the same motion.

Borders: each clip is deblurred in one recurrence from its first frame to its last, and again in
short segments, both in float32. How much does the correction change along the motion from one
frame to the next, at borders of segments and elsewhere? Labels "at a border" and "elsewhere" are
exchanged within each clip at random to tell how often chance gives as large a difference of the
means as was found: ``p_paired`` of what is more than in the unbroken run, which nobody sees who has
but the result, and ``p_alone`` of the result's own changes. Segments without warm-up are the
control.

``uv run python -m benchmarks.temporal --data DATA/pairs/val --clip CLIP… --model NAME_OR_FILE…
-o docs/benchmarks/temporal.csv --plot docs/images/temporal.png``
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.warmup import decibels
from training.flow import optical_flow
from vs_deblur.engine import Deblurrer, array_format
from vs_deblur.flicker import Flicker, Motion, motion_between
from vs_deblur.metrics import Image
from vs_deblur.sequences import pair_folders, read_pairs
from vs_deblur.timeline import Plan, stream

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------ frames


@dataclass(frozen=True)
class Source:
    """Consecutive frames, and the motion in them.

    Attributes:
        name: of the sequence or clip.
        given: what goes in.
        sharp: what should come out; None where nobody knows.
    """

    name: str
    given: Sequence[Image]
    sharp: Sequence[Image] | None = None
    motions: list[Motion | None] = field(default_factory=list)

    @property
    def targets(self) -> Sequence[Image]:
        """What results are compared with: sharp frames, or else what went in."""
        return self.given if self.sharp is None else self.sharp

    def __post_init__(self) -> None:
        guides = self.targets
        self.motions.append(None)
        self.motions.extend(
            motion_between(guide, before, optical_flow) for before, guide in pairwise(guides)
        )


def middle(frame: Image, width: int, height: int) -> Image:
    """At most so many pixels of the middle of a frame."""
    y, x = max(frame.shape[0] - height, 0) // 2, max(frame.shape[1] - width, 0) // 2
    return np.ascontiguousarray(frame[y : y + height, x : x + width])


def pairs(folder: Path, count: int, size: tuple[int, int]) -> Iterator[Source]:
    """The sequences of a folder of pairs that have more than one frame in a row."""
    for sequence in pair_folders(folder):
        for n, run in enumerate(sequence.runs):
            if len(run) > 1:
                frames = [[middle(f, *size) for f in pair] for pair in read_pairs(run[:count])]
                given, sharp = zip(*frames, strict=True)
                yield Source(sequence.name + (f"/{n}" if n else ""), given, sharp)


def clip(path: Path, count: int, size: tuple[int, int]) -> Source:
    """The first frames of a video."""
    with av.open(str(path)) as container:
        frames = [
            middle(np.asarray(f.to_ndarray(format="rgb24"), dtype=np.uint8), *size)
            for f in islice(container.decode(video=0), count)
        ]
    return Source(path.stem, frames)


# ----------------------------------------------------------------------------------------- flicker


def flicker(frames: Iterable[Image], source: Source) -> Flicker:
    """That of a source's frames, or of what a network made of them."""
    found = Flicker()
    for frame, target, motion in zip(frames, source.targets, source.motions, strict=True):
        found.add(frame.astype(np.int16) - target, motion)
    return found


def flicker_row(deblurrer: Deblurrer, source: Source) -> Row:
    """Figures of a model on a source, before and after, code values of 8 bits."""
    before = flicker(source.given, source) if source.sharp is not None else None
    after = flicker(deblurrer.video(source.given), source)
    known = [m for m in source.motions if m is not None]
    row: Row = {
        "model": deblurrer.model,
        "network": deblurrer.spec.network,
        "sequence": source.name,
        "residual": "clip: out - in" if before is None else "pairs: out - sharp",
        "frames": len(source.given),
    }
    for name in ("value", "pumping", "residual"):
        label = {"value": "flicker", "residual": "rms"}.get(name, name)
        row[f"{label}_before"] = before and getattr(before, name)
        row[f"{label}_after"] = getattr(after, name)
    row["followed"] = float(np.mean([m.share for m in known]))
    row["guide_error"] = float(np.nanmean([m.error for m in known]))
    return row


# ----------------------------------------------------------------------------------------- borders


@dataclass(frozen=True)
class Setting:
    """Frames of a segment and of its warm-up."""

    segment: int
    warmup: int

    @classmethod
    def parse(cls, text: str) -> Setting:
        """From "SEGMENT:WARMUP"."""
        try:
            segment, warmup = map(int, text.split(":"))
        except ValueError:
            raise click.BadParameter(f"must be SEGMENT:WARMUP, not {text}") from None
        if segment < 2 or warmup < 0:
            raise click.BadParameter(f"must be at least 2:0, not {text}")
        return cls(segment, warmup)

    def __str__(self) -> str:
        return f"{self.segment}, warm-up {self.warmup}"


@dataclass(frozen=True)
class Broken:
    """What segments did to a clip.

    Attributes:
        setting: the segments.
        place: number of each frame in its segment, 0 at a border.
        errors: mean squared difference of each frame from the unbroken run's (values 0..1).
        changes: by how much the correction changes along the motion from the frame before, code
            values of 8 bits.
        usual: the same in the unbroken run.

    Only frames whose recurrence began after the clip's first frame are kept, and whose motion from
    the frame before is known.
    """

    setting: Setting
    place: NDArray[np.int64]
    errors: NDArray[np.float64]
    changes: NDArray[np.float64]
    usual: NDArray[np.float64]

    @property
    def at_border(self) -> NDArray[np.bool_]:
        """Which frames begin a segment."""
        return np.asarray(self.place == 0)

    @property
    def far(self) -> NDArray[np.bool_]:
        """Which lie in the second half of a segment: what a border does falls off behind it."""
        return np.asarray(self.place >= self.setting.segment // 2)

    @property
    def more(self) -> NDArray[np.float64]:
        """How much more the correction changes than in the unbroken run, code values."""
        return self.changes - self.usual


def deblurred(deblurrer: Deblurrer, frames: Sequence[Any], plan: Plan) -> list[NDArray[np.float32]]:
    """What comes out of prepared frames, (H, W, 3) each, by the product's own timeline."""
    outputs = stream(plan, ((f, False) for f in frames), deblurrer.step)
    return [np.stack(o.value.planes, axis=-1) for o in outputs]


def broken(deblurrer: Deblurrer, source: Source, settings: Sequence[Setting]) -> list[Broken]:
    """A clip in segments, compared with the same in one recurrence. All in float32."""
    frames = [g.astype(np.float32) / 255 for g in source.given]
    fmt = array_format(frames[0])
    ready = [deblurrer.prepare([f[..., c] for c in range(3)], fmt) for f in frames]

    def changes(out: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        found = Flicker()
        for after, before, motion in zip(out, frames, source.motions, strict=True):
            found.add(255 * (after - before), motion)
        return np.asarray([math.nan, *found.changes])

    unbroken = deblurred(deblurrer, ready, replace(deblurrer.plan, segment=0))
    usual = changes(unbroken)
    found = []
    for setting in settings:
        plan = replace(deblurrer.plan, segment=setting.segment, warmup=setting.warmup)
        out = deblurred(deblurrer, ready, plan)
        squares = [np.square(a - b, dtype=np.float64) for a, b in zip(out, unbroken, strict=True)]
        now = changes(out)
        kept = np.array([plan.earliest(n) > 0 for n in range(len(out))])
        kept &= np.isfinite(now)
        errors = np.array([s.mean() for s in squares])
        place = np.arange(len(out)) % setting.segment
        found.append(Broken(setting, place[kept], errors[kept], now[kept], usual[kept]))
    return found


def permutation_p(
    groups: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]], rounds: int = 9999
) -> float:
    """How often chance makes labelled values differ from the others by as much as they do.

    The statistic is the difference of the means, labelled less others, on both sides; labels are
    exchanged within groups only.

    Args:
        groups: values of each, and which of them are labelled.
        rounds: exchanges tried.

    Returns:
        p, from 1 / (rounds + 1) to 1.

    Raises:
        ValueError: nothing is labelled, or everything.
    """
    values = np.concatenate([v for v, _ in groups])
    labels = np.concatenate([chosen for _, chosen in groups])
    if labels.all() or not labels.any():
        raise ValueError("there must be values at borders and elsewhere")
    rng = np.random.default_rng(0)
    drawn = np.concatenate(
        [rng.permuted(np.tile(chosen, (rounds, 1)), axis=1) for _, chosen in groups], axis=1
    )
    centred = values - values.mean()  # nothing is lost where all are alike and large

    def statistic(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        # The others' sum is minus that of the labelled.
        return np.asarray(np.abs(chosen @ centred) * (1 / labels.sum() + 1 / (~labels).sum()))

    # What is as large but for rounding is as large.
    observed = statistic(labels) - 1e-12 * np.abs(centred).max()
    return float((1 + (statistic(drawn) >= observed).sum()) / (1 + rounds))


def interval(
    groups: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]], rounds: int = 9999
) -> tuple[float, float]:
    """95 % interval of the difference of the means, labelled less others, by the bootstrap.

    Args:
        groups: values of each, and which of them are labelled; both are drawn anew within groups.
        rounds: draws.

    Returns:
        lower and upper end.
    """
    rng = np.random.default_rng(0)
    means = []
    for wanted in (True, False):
        parts = [values[chosen == wanted] for values, chosen in groups]
        drawn = [rng.choice(part, (rounds, part.size)).sum(axis=1) for part in parts if part.size]
        means.append(np.sum(drawn, axis=0) / sum(part.size for part in parts))
    low, high = np.quantile(means[0] - means[1], (0.025, 0.975))
    return float(low), float(high)


def border_row(model: str, clips: Sequence[Broken]) -> Row:
    """The figures of one setting over clips."""
    at = np.concatenate([c.at_border for c in clips])
    far = np.concatenate([c.far for c in clips])
    compared = [c.at_border | c.far for c in clips]
    low, high = interval(
        [(c.more[k], c.at_border[k]) for c, k in zip(clips, compared, strict=True)]
    )
    errors, more, usual = (
        np.concatenate([getattr(c, name) for c in clips]) for name in ("errors", "more", "usual")
    )
    return {
        "model": model,
        "segment": clips[0].setting.segment,
        "warmup": clips[0].setting.warmup,
        "clips": len(clips),
        "borders": int(at.sum()),
        "psnr_at_border": decibels(float(errors[at].mean())),
        "psnr_worst": decibels(float(errors[at].max())),
        "psnr_far": decibels(float(errors[far].mean())),
        "usual_change": float(usual.mean()),
        "more_at_border": float(more[at].mean()),
        "more_far": float(more[far].mean()),
        "difference_low": low,
        "difference_high": high,
        "p_paired": permutation_p(
            [(c.more[k], c.at_border[k]) for c, k in zip(clips, compared, strict=True)]
        ),
        "p_alone": permutation_p(
            [(c.changes[k], c.at_border[k]) for c, k in zip(clips, compared, strict=True)]
        ),
    }


# ------------------------------------------------------------------------------------------ output


def text(value: object, digits: int) -> str:
    """A cell: numbers rounded, what there is none of as a dash."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def markdown(rows: Sequence[Row], digits: Mapping[str, int]) -> str:
    """A table; ``digits`` are those after the point, 2 where not said."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = (text(value, digits.get(key, 2)) for key, value in row.items())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(path: Path, rows: Sequence[Row]) -> None:
    """All rows as CSV, to five digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


def draw(path: Path, rows: Sequence[Row], breaks: Mapping[str, Sequence[Sequence[Broken]]]) -> None:
    """Flicker of each model, and what segments add by place in a segment."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    bars, curves = figure.subplots(1, 2, width_ratios=(3, 2))
    sequences = list(dict.fromkeys(r["sequence"] for r in rows))
    models = list(dict.fromkeys(r["model"] for r in rows))
    series = {"blurred": {r["sequence"]: r["flicker_before"] for r in rows}} | {
        m: {r["sequence"]: r["flicker_after"] for r in rows if r["model"] == m} for m in models
    }
    width = 0.8 / len(series)
    for i, (label, values) in enumerate(series.items()):
        at = [(n + i * width, v) for n, s in enumerate(sequences) if (v := values[s]) is not None]
        if at:
            bars.bar(*zip(*at, strict=True), width, label=label)
    ticks = [n + 0.4 - width / 2 for n in range(len(sequences))]
    bars.set_xticks(ticks, sequences, rotation=20, ha="right", fontsize=7)
    bars.set_ylabel("flicker along the motion, code values")
    bars.legend(fontsize=7)
    for model, settings in breaks.items():
        for clips in settings:
            more = np.concatenate([c.more for c in clips])
            place = np.concatenate([c.place for c in clips])
            places = sorted(set(place.tolist()))
            means = [more[place == k].mean() for k in places]
            label = f"{model}, segments of {clips[0].setting}"
            curves.plot(places, means, "o-", markersize=3, label=label)
    curves.axhline(0, color="grey", linewidth=0.5)
    curves.set_yscale("symlog", linthresh=1e-3)
    curves.set_xlabel("frame of the segment")
    curves.set_ylabel("change along the motion,\nmore than unbroken, code values")
    curves.grid(alpha=0.3)
    if breaks:
        curves.legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


@click.command()
@click.option(
    "--data",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Pair folder, or folder of such folders.",
)
@click.option(
    "--clip",
    "clips",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Real clip without a sharp original.",
)
@click.option("--model", "models", multiple=True, default=("auto",), show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--frames", default=41, show_default=True, help="Frames of each, at most.")
@click.option(
    "--size", nargs=2, default=(480, 270), show_default=True, help="Width and height, at most."
)
@click.option(
    "--segments",
    default="8:8,16:8,8:0",
    show_default=True,
    help="Frames of a segment and of its warm-up; the last is the control.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Tables (CSV).")
@click.option("--plot", type=click.Path(path_type=Path), help="Plot (PNG).")
def main(
    data: tuple[Path, ...],
    clips: tuple[Path, ...],
    models: tuple[str, ...],
    device: str,
    precision: str,
    frames: int,
    size: tuple[int, int],
    segments: str,
    output: Path | None,
    plot: Path | None,
) -> None:
    """Print two tables (Markdown): flicker, and borders of segments on the clips."""
    settings = [Setting.parse(s) for s in segments.split(",")]
    if clips and frames <= max(s.segment for s in settings) + 1:
        raise click.UsageError("clips must be longer than a segment: more --frames")
    engines = [Deblurrer(m, device=device, precision=precision) for m in models]
    judged = [s for folder in data for s in pairs(folder, frames, size)]
    real = [clip(path, frames, size) for path in clips]
    for source in real:
        if len(source.given) <= max(s.segment for s in settings) + 1:
            raise click.UsageError(f"{source.name} has only {len(source.given)} frames")
    if not judged and not real:
        raise click.UsageError("nothing to measure: --data or --clip")
    rows = [flicker_row(engine, source) for source in (*judged, *real) for engine in engines]
    print(markdown(rows, {"followed": 3, "pumping_before": 3, "pumping_after": 3}))
    breaks = {}
    for engine in engines:
        if real and engine.spec.is_recurrent:
            each = [broken(engine, source, settings) for source in real]
            breaks[engine.model] = list(zip(*each, strict=True))
    borders = [border_row(model, c) for model, found in breaks.items() for c in found]
    if borders:
        names = ("more_at_border", "more_far", "difference_low", "difference_high")
        fine = dict.fromkeys((*names, "p_paired", "p_alone"), 4)
        print("\n" + markdown(borders, dict.fromkeys(borders[0], 1) | fine | {"usual_change": 3}))
    if output is not None:
        write(output, rows)
        if borders:
            write(output.with_stem(f"{output.stem}_borders"), borders)
    if plot is not None:
        draw(plot, rows, breaks)


if __name__ == "__main__":
    main()
