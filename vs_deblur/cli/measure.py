"""``vs-deblur measure``: how near the deblurred frames are to sharp ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vs_deblur.cli._common import ModelSettings, model_options
from vs_deblur.cli._measure_sources import Source, sources
from vs_deblur.cli._output import OutputFile
from vs_deblur.cli._progress import Progress, note, tell, tell_json, warn
from vs_deblur.errors import OutputError, UsageError, reason

if TYPE_CHECKING:
    from vs_deblur.engine import Deblurrer, Kind
    from vs_deblur.measuring import Compared, FrameFigures, SequenceFigures
    from vs_deblur.report import Sample, Samples


# ------------------------------------------------------------------------------------- the table

Row = dict[str, Any]

_MEANS = (
    "psnr_before",
    "psnr_after",
    "gain",
    "ssim_before",
    "ssim_after",
    "temporal_psnr_before",
    "temporal_psnr_after",
    "pulse",
)


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None


def _frame_row(figures: FrameFigures) -> Row:
    return {
        "psnr_before": _finite(figures.psnr_before),
        "psnr_after": _finite(figures.psnr_after),
        "ssim_before": _finite(figures.ssim_before),
        "ssim_after": _finite(figures.ssim_after),
        "temporal_psnr_before": _finite(figures.temporal_before),
        "temporal_psnr_after": _finite(figures.temporal_after),
    }


def as_row(figures: SequenceFigures) -> Row:
    """The figures of a sequence as JSON has them; null where there is none or it is infinite."""
    return {
        "name": figures.name,
        "frames": len(figures.frames),
        "sizes": [list(size) for size in figures.sizes],
        "psnr_before": figures.psnr_before,
        "psnr_after": figures.psnr_after,
        "gain": figures.gain,
        "ssim_before": figures.ssim_before,
        "ssim_after": figures.ssim_after,
        "temporal_psnr_before": figures.temporal_before,
        "temporal_psnr_after": figures.temporal_after,
        "pulse": figures.pulse.ratio,
        "identical_before": figures.identical_before,
        "identical_after": figures.identical_after,
        "per_frame": [_frame_row(f) for f in figures.frames],
    }


def mean_row(rows: list[Row]) -> Row:
    """The mean over sequences, each counting once."""
    from vs_deblur.metrics import mean

    means: Row = {"name": "mean", "frames": sum(r["frames"] for r in rows)}
    return means | {key: mean(r[key] for r in rows) for key in _MEANS}


def _text(row: Row, key: str, form: str) -> str:
    if key.startswith("psnr_") and "per_frame" in row:
        other = {"psnr_before": "identical_after", "psnr_after": "identical_before"}[key]
        if row[key.replace("psnr", "identical")] == row["frames"]:
            return "inf"
        if row[other] == row["frames"]:  # infinite there, so that there is no gain, but known here
            known = [f[key] for f in row["per_frame"] if f[key] is not None]
            return format(sum(known) / len(known), form)
    return "-" if row[key] is None else format(row[key], form)


def _lines(rows: list[Row], temporal: bool) -> Iterator[str]:
    columns = [
        ("frames", "frames", "d"),
        ("PSNR before", "psnr_before", ".2f"),
        ("after", "psnr_after", ".2f"),
        ("gain", "gain", "+.2f"),
        ("SSIM before", "ssim_before", ".4f"),
        ("after", "ssim_after", ".4f"),
    ]
    if temporal:
        columns += [
            ("tPSNR before", "temporal_psnr_before", ".2f"),
            ("after", "temporal_psnr_after", ".2f"),
            ("pulse", "pulse", ".2f"),
        ]
    table = [["sequence", *(title for title, _, _ in columns)]]
    table += [[r["name"], *(_text(r, key, form) for _, key, form in columns)] for r in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *cells in table:
        padded = (c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))
        yield "  ".join((name.ljust(widths[0]), *padded))


def _warn_of_identical(rows: list[Row]) -> None:
    for row in rows:
        before, after = row["identical_before"], row["identical_after"]
        if before or after:
            warn(
                f"{row['name']}: {before} frames before and {after} after are identical to the "
                "sharp ones (infinite PSNR); such frames are in neither mean of PSNR"
            )


# ----------------------------------------------------------------------------------- the command


@dataclass
class Engines:
    """The engines that sequences are measured with: "auto" is another model for photos.

    Attributes:
        settings: how to deblur.
        kind: the kind of all sequences, None for each one's own.
    """

    settings: ModelSettings
    kind: Kind | None

    def __post_init__(self) -> None:
        self.made: dict[Kind, Deblurrer] = {}

    def of(self, source: Source) -> Deblurrer:
        """The engine for a sequence, loaded when the first one needs it."""
        kind = self.kind or source.kind
        if self.settings.model != "auto":
            kind = "video"  # one model does both
        if kind not in self.made:
            self.made[kind] = self.settings.deblurrer(kind=kind)
        return self.made[kind]


def _tell_kinds(found: list[Source], engines: Engines) -> None:
    """Say what sequences are taken for and why: it decides which model is measured."""
    if engines.settings.model != "auto" or engines.kind is not None:
        return  # the user has said it
    from vs_deblur_models.registry import few

    names: dict[tuple[Kind, str], list[str]] = {}
    for source in found:
        names.setdefault((source.kind, source.why), []).append(source.name)
    for (kind, why), group in names.items():
        whose = f"{few(group)}: " if len(names) > 1 else ""
        taken = {
            "video": f"taken as video frames ({why}); --photos for single photos",
            "photo": f"taken as photos ({why}); --frames for frames in a row",
        }
        note(whose + taken[kind])


def _measure_all(
    found: list[Source], engines: Engines, with_samples: bool
) -> tuple[list[SequenceFigures], list[list[Sample]]]:
    from vs_deblur.measuring import measure
    from vs_deblur.report import Samples

    counts = [s.frames for s in found]
    progress = Progress(None if None in counts else sum(c or 0 for c in counts))
    done = 0
    figures, shown = [], []
    for source in found:
        samples = Samples()

        def on_frame(frame: Compared, its: FrameFigures, samples: Samples = samples) -> None:
            nonlocal done
            done += 1
            progress.update(done)
            if with_samples:
                samples.add(frame, its)

        figures.append(
            measure(
                source.name,
                source.runs(),
                engines.of(source),
                scene_threshold=engines.settings.scene_threshold,
                on_frame=on_frame,
            )
        )
        shown.append(samples.chosen())
    progress.finish()
    return figures, shown


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write: {reason(error)}", str(path)) from error


@click.command()
@click.argument("blurred", type=click.Path(path_type=Path))
@click.argument("sharp", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the figures of each frame.")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page with crops before, after and sharp.",
)
@click.option("--overwrite", is_flag=True, help="Replace the page if it exists.")
@click.option("--temporal", is_flag=True, help="Add columns: PSNR of frame differences, pulse.")
@click.option(
    "--photos/--frames",
    default=None,
    help="Which model auto is: the one for photos, or the one for frames in a row. [default: for "
    "photos where it is two image files, where no two images have consecutive numbers, or where "
    "their sizes differ]",
)
@model_options
def command(
    blurred: Path,
    sharp: Path | None,
    as_json: bool,
    html: Path | None,
    overwrite: bool,
    temporal: bool,
    photos: bool | None,
    settings: ModelSettings,
) -> None:
    """PSNR and SSIM before and after, against sharp frames.

    BLURRED and SHARP are two image files, two video files, folders of images, or folders of such
    folders. One folder alone holds blur/ and sharp/, or holds folders that do. Images with
    consecutive numbers are consecutive frames, unless their sizes differ: --photos says that they
    are single photos. A line on stderr says what they were taken for.

    Frames are compared as 8-bit RGB. A sequence's figure is the mean over its frames, the last
    line the mean over sequences. Pulse is the change of the correction across segment borders to
    that elsewhere: 1 is none.
    """
    if photos is not None and settings.model != "auto":
        option = "--photos" if photos else "--frames"
        raise UsageError(f"{option} is about the default model; --model names one")
    found = sources(blurred, sharp)
    # The page's folder is tried before the work, not after it.
    inputs = tuple(path for path in (blurred, sharp) if path is not None)
    with (
        OutputFile(html, overwrite=overwrite, inputs=inputs) if html else nullcontext()
    ) as page_file:
        engines = Engines(settings, None if photos is None else "photo" if photos else "video")
        _tell_kinds(found, engines)
        figures, shown = _measure_all(found, engines, page_file is not None)
        if page_file is not None:
            from vs_deblur.report import page

            used = "; ".join(e.describe() for e in engines.made.values())
            _write(page_file.part, page(figures, shown, used))
    rows = [as_row(f) for f in figures]
    _warn_of_identical(rows)
    if as_json:
        for row, source in zip(rows, found, strict=True):
            row["model"] = engines.of(source).model
        first = engines.of(found[0])
        engine = {
            "models": [e.model for e in engines.made.values()],
            "device": str(first.device),
            "precision": first.precision,
            "strength": first.strength,
            "segment": settings.segment,
            "warmup": settings.warmup,
        }
        result = {**engine, "sequences": rows, "mean": mean_row(rows)}
        tell_json(result)
        return
    for line in _lines([*rows, mean_row(rows)], temporal):
        tell(line)
