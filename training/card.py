"""Model cards: what ships, what it was measured to do, and what it cannot do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.failures import CASES, Shown, sheet, show
from training.flow import optical_flow
from training.train import Recipe
from vs_deblur.engine import Deblurrer
from vs_deblur.errors import UsageError
from vs_deblur.flicker import Flicker, motion_between
from vs_deblur.measuring import (
    Compared,
    FrameFigures,
    Run,
    SequenceFigures,
    compare_run,
    image_runs,
    measure,
)
from vs_deblur.metrics import Image, mean, psnr
from vs_deblur.sequences import ImageSequence, pair_folders
from vs_deblur.weights import read_tensors, sha256_of
from vs_deblur_models.registry import from_state
from vs_deblur_models.spec import takes_frames


@dataclass(frozen=True)
class Measured:
    """A validation sequence.

    Attributes:
        figures: PSNR and SSIM before and after.
        kept: PSNR in dB of what becomes of sharp frames to themselves, mean over those that are
            changed at all; infinite if none is.
        flicker: of what is wrong with the frames, blurred and deblurred, code values; None for
            photos and where no frame follows another.
        gain_without_memory: gain in dB where every frame begins with the empty memory of a clip's
            first one (its neighbours are seen as ever); None for networks without a memory.
    """

    figures: SequenceFigures
    kept: float
    flicker: tuple[float, float] | None
    gain_without_memory: float | None = None


class Steadiness:
    """Collects the flicker of frames as they are measured, along the motion of the sharp ones."""

    def __init__(self) -> None:
        self._before, self._after = Flicker(), Flicker()
        self._sharp: Image | None = None

    def add(self, frame: Compared, _: FrameFigures) -> None:
        """Count a frame."""
        motion = None
        if self._sharp is not None and not frame.starts_run:
            motion = motion_between(frame.sharp, self._sharp, optical_flow)
        self._before.add(frame.blurred.astype(np.int16) - frame.sharp, motion)
        self._after.add(frame.result.astype(np.int16) - frame.sharp, motion)
        self._sharp = frame.sharp

    @property
    def values(self) -> tuple[float, float] | None:
        """Before and after, if there was anything to follow."""
        before, after = self._before.value, self._after.value
        return None if before is None or after is None else (before, after)


def _sharp_runs(sequence: ImageSequence) -> Iterator[Run]:
    """The sharp frames as what goes in."""
    for run in image_runs(sequence):
        frames = (([sharp[..., c] for c in range(3)], sharp) for _, sharp in run.frames)
        yield Run(run.fmt, frames)


def measured(
    sequence: ImageSequence, deblurrer: Deblurrer, forgetful: Deblurrer | None = None
) -> Measured:
    """The figures of a sequence.

    Args:
        sequence: pairs of frames.
        deblurrer: the model.
        forgetful: the same, with an empty memory at every frame.
    """
    steadiness = Steadiness() if takes_frames(deblurrer.network) else None
    on_frame = None if steadiness is None else steadiness.add
    figures = measure(sequence.name, image_runs(sequence), deblurrer, on_frame=on_frame)
    kept = mean(
        psnr(frame.result, frame.sharp)
        for run in _sharp_runs(sequence)
        for frame in compare_run(deblurrer, run)
    )
    return Measured(
        figures,
        math.inf if kept is None else kept,
        None if steadiness is None else steadiness.values,
        None if forgetful is None else measure(sequence.name, image_runs(sequence), forgetful).gain,
    )


@dataclass(frozen=True)
class Findings:
    """All that a card says that was measured.

    Attributes:
        rows: validation sequences.
        failures: what went wrong, as pictures.
    """

    rows: Sequence[Measured]
    failures: Sequence[Shown]


def find(recipe: Recipe, data: Path, weights: Path) -> Findings:
    """Measure a model for its card.

    Args:
        recipe: what was trained; its ``validation`` pairs are measured.
        data: the folder that the recipe's paths start from.
        weights: the model.

    Raises:
        UsageError: ``same_scene`` names something that is not measured.
    """
    sequences = [s for v in recipe.validation for s in pair_folders(data / v)]
    if unknown := same_scene(recipe) - {s.name for s in sequences}:
        raise UsageError(f"same_scene names no validation sequence: {', '.join(sorted(unknown))}")
    deblurrer = Deblurrer(str(weights), device="cpu", precision="fp32")
    forgetful = None
    if deblurrer.network.spec.is_recurrent:
        forgetful = Deblurrer(str(weights), device="cpu", precision="fp32", segment=1, warmup=0)
    return Findings(
        [measured(s, deblurrer, forgetful) for s in sequences],
        [show(deblurrer, case()) for case in CASES],
    )


def same_scene(recipe: Recipe) -> set[str]:
    """Names of the validation sequences that show a scene of the training pairs."""
    return {Path(name).name for name in recipe.same_scene}


def write_card(
    entry: dict[str, Any], recipe: Recipe, network: Any, findings: Findings, root: Path
) -> Path:
    """Write a model's card, and its sheet of failures beside it.

    Args:
        entry: of the manifest.
        recipe: what was trained.
        network: with the weights that ship.
        findings: what was measured with them.
        root: the checkout.

    Returns:
        the card.
    """
    card = root / "models" / "cards" / f"{entry['name']}.md"
    card.parent.mkdir(parents=True, exist_ok=True)
    pictures = card.with_name(f"{entry['name']}-failures.png")
    sheet(findings.failures, pictures)
    card.write_text(_text(entry, network, findings, same_scene(recipe), pictures.name))
    return card


def refresh(recipe: Recipe, recipe_file: Path, data: Path, root: Path) -> Path:
    """Measure what ships anew and write its card; weights and manifest stay as they are.

    Args:
        recipe, recipe_file: what was trained, and the file that says so.
        data: the folder that the recipe's paths start from.
        root: the checkout.

    Returns:
        the card.

    Raises:
        UsageError: nothing that ships is of this recipe, or it is not the file that the manifest
            lists.
    """
    folder = root / "models" / "vs_deblur_models" / "weights"
    entries = json.loads((folder / "manifest.json").read_text())["models"]
    entry = next((e for e in entries if e["recipe"] == recipe_file.name), None)
    if entry is None:
        raise UsageError(f"nothing that ships is of {recipe_file.name}")
    weights = folder / entry["file"]
    if sha256_of(weights) != entry["sha256"]:
        raise UsageError(f"{weights.name} is not the file that the manifest lists")
    network = from_state(*read_tensors(weights))
    return write_card(entry, recipe, network, find(recipe, data, weights), root)


def _decibels(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.2f}"


def _figure(value: float | None, style: str = ".2f") -> str:
    """A mean, or a dash where no frame has one."""
    return "–" if value is None else format(value, style)


def _gains(rows: Sequence[Measured], seen: set[str], memory: bool) -> str:
    titles = ["sequence", "PSNR blurred", "deblurred", "gain", "SSIM blurred", "deblurred"]
    titles += ["gain without memory"] * memory
    table = [" | ".join(titles)]
    for row in rows:
        r = row.figures
        cells = [r.name + " *" * (r.name in seen)]
        cells += [_figure(r.psnr_before), _figure(r.psnr_after), _figure(r.gain, "+.2f")]
        cells += [_figure(r.ssim_before, ".4f"), _figure(r.ssim_after, ".4f")]
        cells += [_figure(row.gain_without_memory, "+.2f")] * memory
        table.append(" | ".join(cells))
    lines = [f"| {line} |" for line in table]
    return "\n".join([lines[0], "|---" * len(titles) + "|", *lines[1:]])


_MEMORY = """
Without memory: every frame begins with the empty memory of a clip's first one, and sees its
neighbours as ever; what the recurrence is worth is the difference to the gain."""
_KEPT = """Sharp frames in: PSNR in dB of what comes out to what went in (∞: untouched)."""
_FLICKER = """Flicker: by how much what is wrong with a frame changes to the next one, along
the motion; root mean square in code values of 8 bits (`vs_deblur/flicker.py`).
"""


def _harm(rows: Sequence[Measured]) -> str:
    """What deblurring may spoil: sharp frames, and steadiness."""
    if all(row.flicker is None for row in rows):
        table = ["| sequence | sharp frames in |", "|---|---|"]
        table += [f"| {row.figures.name} | {_decibels(row.kept)} |" for row in rows]
        return "\n".join([_KEPT, "", *table])
    table = ["| sequence | flicker blurred | deblurred | sharp frames in |", "|---|---|---|---|"]
    for row in rows:
        flicker = ("–", "–") if row.flicker is None else [f"{v:.2f}" for v in row.flicker]
        table.append(f"| {row.figures.name} | {' | '.join(flicker)} | {_decibels(row.kept)} |")
    return "\n".join([_FLICKER + _KEPT, "", *table])


def _text(
    entry: dict[str, Any], network: Any, findings: Findings, seen: set[str], pictures: str
) -> str:
    spec = network.spec
    parameters = sum(p.numel() for p in network.parameters())
    what = "removes motion blur from photos, each by itself"
    if takes_frames(network):
        kind = "recurrent, " * spec.is_recurrent
        frames = f"{spec.look_ahead} frame{'s' * (spec.look_ahead > 1)}"
        what = f"removes motion blur from video; {kind}look-ahead {frames}"
    cost = spec.flops_per_pixel * 640 * 480 / 1e9
    how = ", ".join(filter(None, (f"`training/recipes/{entry['recipe']}`", entry.get("made"))))
    seen_note = " * shows a scene that was trained on, in other frames." * bool(seen)
    sentences = "\n".join(f"- {row.sentence}" for row in findings.failures)
    return f"""# {entry["name"]}

| | |
|---|---|
| what | {what} |
| parameters | {parameters:,} (float16) |
| cost | {cost:.1f} GFLOP a frame at 640x480 |
| receptive field | {spec.receptive_field} px each way in one step |
| recipe | {how} |
| sha256 | `{entry["sha256"]}` |
| licence | {entry["licence"]} |
| trained on | {entry["training_data"]} |

PSNR in dB on validation pairs (float32 on the CPU, 8-bit result, mean over frames):

{_gains(findings.rows, seen, spec.is_recurrent)}

Training saw none of these frames.{seen_note}{_MEMORY * spec.is_recurrent}

{_harm(findings.rows)}

Made for camera shake and object motion as cameras average it; not for defocus, noise or compression
artefacts.

## Known failures

What goes in, what comes out, and the sharp picture: drawn by the program (`training/failures.py`),
PSNR of the part that is shown.

![what goes in, what comes out, sharp]({pictures})

{sentences}
"""
