"""Weights of a run into the package: fp16 file, manifest entry and model card, gains measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.card import find, same_scene, write_card
from training.train import Recipe, read_checkpoint, weights_at
from vs_deblur.errors import InputError, UsageError
from vs_deblur.weights import read_tensors, sha256_of
from vs_deblur_models.registry import from_state, save_network
from vs_deblur_models.spec import takes_frames
from vs_deblur_models.strcnn import StrcnnDtbLite


@dataclass(frozen=True)
class Finished:
    """The weights of a run that are to ship.

    Attributes:
        weights: safetensors files; of more than one the mean is shipped.
        begun_with: sha256 of the weights that the run began with; empty: none, or not known.
        is_chosen: whether somebody chose the steps: they are not just the last one.
        feedback: factor on what the fed back feature map F counts for, see :func:`damp`.
        processes: that trained, each with the recipe's batch.
        changed_at: steps up to which settings were others than the recipe's.
    """

    weights: tuple[Path, ...]
    begun_with: str = ""
    is_chosen: bool = False
    feedback: float = 1.0
    processes: int = 1
    changed_at: tuple[int, ...] = ()


def finished(
    recipe: Recipe, run: Path, steps: Sequence[int] = (), *, allow_changes: bool = False
) -> Finished:
    """The weights of a run of a recipe.

    Args:
        recipe: what was trained.
        run: the run's folder.
        steps: whose weights; none: the last.
        allow_changes: though the run's recipe was another one in something.

    Raises:
        InputError: no such run or step, or a checkpoint that cannot be read.
        UsageError: the run is of another recipe.
    """
    checkpoint = run / "checkpoint.pt"
    if not checkpoint.is_file():
        raise InputError("no run has a checkpoint here", str(run))
    kept = read_checkpoint(checkpoint, torch.device("cpu"))
    last = int(kept["step"])
    changed_at = [int(step) for step in kept.get("changed_at", ())]
    if kept.get("recipe") != recipe.digest():
        if not allow_changes:
            raise UsageError("this run is of another recipe", str(run), "see --allow-changes")
        changed_at.append(last)
    files = tuple(weights_at(run, step) for step in steps or (last,))
    for path in files:
        if not path.is_file():
            raise InputError("the run has no weights of this step", str(path))
    return Finished(
        files,
        begun_with=kept.get("begun_with", ""),
        is_chosen=tuple(steps) not in ((), (last,)),
        processes=kept.get("world", 1),
        changed_at=tuple(changed_at),
    )


def mean_of(weights: Sequence[Path]) -> Any:
    """The network whose weights are the mean of those of several steps of one run.

    Validation pairs of other scenes may be served best by a step before the last, and by the mean
    of some better than by each (Izmailov et al. 2018, stochastic weight averaging).
    """
    states = [read_tensors(path) for path in weights]
    mean = {k: torch.stack([s[k].float() for s, _ in states]).mean(0) for k in states[0][0]}
    return from_state(mean, states[0][1])


def damp(network: Any, feedback: float) -> None:
    """Let the feature map F that a network feeds back count for less, in place.

    Training unrolls a few frames; over many, a feedback that is too strong may settle in one of two
    states, and which one depends on where the recurrence began: brightness jumps at the borders of
    segments (``benchmarks.temporal``).

    Args:
        network: a ``strcnn_dtb_lite``.
        feedback: factor on the weights that F goes through first.

    Raises:
        UsageError: the network is another one.
    """
    if not isinstance(network, StrcnnDtbLite):
        raise UsageError(f"{network.spec.network} has no feedback that can be damped")
    with torch.no_grad():
        network.head.weight[:, -network.config.feedback_channels :] *= feedback


def publish(recipe: Recipe, recipe_file: Path, found: Finished, data: Path, root: Path) -> Path:
    """Ship the weights of a run.

    Args:
        recipe, recipe_file: what was trained, and the file that says so.
        found: the run's weights.
        data: the folder that the recipe's paths start from; gains are measured on its
            ``validation`` pairs.
        root: the checkout.

    Returns:
        the model card.

    Raises:
        UsageError: the recipe does not say what it is trained on, or is for another network.
    """
    if not recipe.attribution:
        raise UsageError("the recipe has no attribution", recipe_file.name)
    weights = found.weights
    folder = root / "models" / "vs_deblur_models" / "weights"
    network = mean_of(weights)
    if found.feedback != 1:
        damp(network, found.feedback)
    name = recipe.network
    if network.spec.network != name:
        raise UsageError(f"these weights are of {network.spec.network}", str(weights[0]))
    target = folder / f"{name}.safetensors"
    # Measured beside the shipped file, which is replaced together with its manifest at the end.
    fresh = weights[0].with_name(f"{name}-fp16.safetensors")
    save_network(network, fresh, torch.float16)
    findings = find(recipe, data, fresh)
    rows = [row.figures for row in findings.rows]
    seen = same_scene(recipe)
    gains = {
        row.name: round(row.gain, 3)
        for row in rows
        if row.gain is not None and row.name not in seen
    }
    manifest = folder / "manifest.json"
    entries: dict[str, Any] = {}
    if manifest.exists():
        entries = {e["name"]: e for e in json.loads(manifest.read_text())["models"]}
    entries[name] = {
        "name": name,
        "file": target.name,
        "network": name,
        "sha256": sha256_of(fresh),
        "licence": "MIT",
        "training_data": recipe.attribution,
        "recipe": recipe_file.name,
        "made": how_made(recipe, found),
        "gain_db": gains,
        "kind": "video" if takes_frames(network) else "photo",
        "default": recipe.default,
    }
    text = json.dumps({"models": list(entries.values())}, indent=2, ensure_ascii=False)
    # The card first: if it cannot be written, what ships stays what it was.
    card = write_card(entries[name], recipe, network, findings, root)
    part = target.with_suffix(".part")
    shutil.copyfile(fresh, part)
    part.replace(target)
    manifest.write_text(text + "\n")
    return card


def how_made(recipe: Recipe, found: Finished) -> str:
    """What the manifest says of a run beyond its recipe."""
    parts = []
    if recipe.begins_with or found.begun_with:
        known = f" (sha256 {found.begun_with[:12]})" if found.begun_with else ""
        of = f" of `{recipe.begins_with}`" if recipe.begins_with else ""
        parts.append(f"begun with the weights{of}{known}")
    if found.processes > 1:
        parts.append(f"trained by {found.processes} processes, each with the recipe's batch")
    for step in found.changed_at:
        parts.append(f"with other settings up to step {step}")
    steps = ", ".join(str(int(w.stem)) for w in found.weights)
    if len(found.weights) > 1:
        parts.append(f"mean of the weights at steps {steps}, chosen on the validation sequences")
    elif found.is_chosen:
        parts.append(f"the weights at step {steps}, chosen on the validation sequences")
    if found.feedback != 1:
        parts.append(f"feedback times {found.feedback:g}")
    return "; ".join(parts)
