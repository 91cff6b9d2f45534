"""Weights of a run into the package: fp16 file, manifest entry and model card, gains measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from training.card import find, same_scene, write_card
from training.train import Recipe
from vs_deblur.engine import Deblurrer
from vs_deblur.weights import read_tensors, sha256_of
from vs_deblur_models.registry import from_state, save_network
from vs_deblur_models.spec import takes_frames


def mean_of(weights: Sequence[Path]) -> Any:
    """The network whose weights are the mean of those of several steps of one run.

    Validation pairs of other scenes may be served best by a step before the last, and by the mean
    of some better than by each (Izmailov et al. 2018, stochastic weight averaging).
    """
    states = [read_tensors(path) for path in weights]
    mean = {k: torch.stack([s[k].float() for s, _ in states]).mean(0) for k in states[0][0]}
    return from_state(mean, states[0][1])


def publish(
    recipe: Recipe, recipe_file: Path, weights: Sequence[Path], data: Path, root: Path
) -> Path:
    """Ship the weights of a run.

    Args:
        recipe, recipe_file: what was trained, and the file that says so.
        weights: the run's safetensors files; of more than one the mean is shipped.
        data: the folder that the recipe's paths start from; gains are measured on its
            ``validation`` pairs.
        root: the checkout.

    Returns:
        the model card.

    Raises:
        ValueError: the recipe does not say what it is trained on.
    """
    if not recipe.attribution:
        raise ValueError(f"{recipe_file.name} has no attribution")
    folder = root / "models" / "vs_deblur_models" / "weights"
    network = mean_of(weights)
    name = recipe.network
    target = folder / f"{name}.safetensors"
    # Measured beside the shipped file, which is replaced together with its manifest at the end.
    fresh = weights[0].with_name(f"{name}-fp16.safetensors")
    save_network(network, fresh, torch.float16)
    deblurrer = Deblurrer(str(fresh), device="cpu", precision="fp32")
    findings = find(recipe, data, deblurrer)
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
        "made": how_made(recipe, weights),
        "gain_db": gains,
        "kind": "video" if takes_frames(network) else "photo",
        "default": recipe.default,
    }
    text = json.dumps({"models": list(entries.values())}, indent=2, ensure_ascii=False)
    shutil.copyfile(fresh, target)
    manifest.write_text(text + "\n")
    return write_card(entries[name], recipe, network, findings, root)


def how_made(recipe: Recipe, weights: Sequence[Path]) -> str:
    """What the manifest says of a run beyond its recipe."""
    parts = []
    if recipe.begins_with:
        parts.append(f"begun with the weights of `{recipe.begins_with}`")
    if len(weights) > 1:
        steps = ", ".join(str(int(w.stem)) for w in weights)
        parts.append(f"mean of the weights at steps {steps}, chosen on the validation sequences")
    return "; ".join(parts)
