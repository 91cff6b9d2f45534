"""Weights: what ships, where it is, and whether it is what it says.

The manifest, ``vs_deblur_models/weights/manifest.json``, lists each shipped file with its sha256,
licence, training data and measured gain. A listed file must match its digest; a file of the user's
own must be safetensors with finite values and the keys of a network of ours. There is no way to
run a network without trained weights from here.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vs_deblur.errors import WeightsError, reason

if TYPE_CHECKING:
    from vs_deblur_models.registry import Entry


@dataclass(frozen=True)
class Card:
    """What the manifest says of a shipped model.

    Attributes:
        name: what users call it.
        file: name of the file beside the manifest.
        network: architecture, a name in the registry.
        sha256: digest of the file.
        licence: licence of the weights.
        training_data: what they were trained on, with attribution.
        recipe: the recipe in ``training/recipes`` that made them.
        made: how, beyond what the recipe says: what the run began with, which steps were chosen.
        gain_db: measured gain in dB over the blurred input, by validation sequence.
        kind: "video" or "photo".
        default: whether ``model="auto"`` means this one for its kind.
    """

    name: str
    file: str
    network: str
    sha256: str
    licence: str
    training_data: str
    recipe: str
    gain_db: Mapping[str, float]
    kind: str = "video"
    default: bool = False
    made: str = ""

    @property
    def path(self) -> Path:
        """Where the file is."""
        return weights_folder() / self.file

    @property
    def mean_gain(self) -> float:
        """Mean of the measured gains, dB."""
        return sum(self.gain_db.values()) / max(len(self.gain_db), 1)


@dataclass(frozen=True)
class Loaded:
    """A network with trained weights.

    Attributes:
        network: the module, in evaluation mode, float32, on the CPU.
        name: the shipped model's name, or the file's name without its ending.
        path: the file.
        card: its entry in the manifest, None for a user's own file.
        metadata: of the file; strangers' files may have anything in it.
    """

    network: Any
    name: str
    path: Path
    card: Card | None
    metadata: Mapping[str, str] = field(default_factory=dict)


def weights_folder() -> Path:
    """The folder that holds the shipped weights and their manifest."""
    return Path(str(files("vs_deblur_models"))) / "weights"


@cache
def shipped() -> dict[str, Card]:
    """The shipped models by name.

    Raises:
        WeightsError: the manifest is missing or damaged.
    """
    path = weights_folder() / "manifest.json"
    try:
        cards = [_card(e) for e in json.loads(path.read_text(encoding="utf-8"))["models"]]
        return {card.name: card for card in cards}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(
            "the manifest of the shipped weights cannot be read", str(path), "reinstall vs-deblur"
        ) from error


def _card(fields: Mapping[str, Any]) -> Card:
    """An entry of the manifest.

    Raises:
        ValueError, TypeError: it is none; its file is not one beside the manifest.
    """
    card = Card(**fields)
    words = (card.name, card.file, card.network, card.sha256, card.licence, card.training_data)
    if not all(isinstance(word, str) and word.isprintable() for word in (*words, card.recipe)):
        raise TypeError("words must be text")
    if not (isinstance(card.gain_db, dict) and all(map(math.isfinite, card.gain_db.values()))):
        raise TypeError("gains must be numbers")
    if card.kind not in ("video", "photo") or not isinstance(card.default, bool):
        raise ValueError("no such kind")
    if card.file in ("", ".", "..") or any(c in card.file for c in "/\\:"):
        raise ValueError("the file must lie beside the manifest")
    return card


def default_model(kind: str = "video") -> str:
    """The name that ``model="auto"`` stands for."""
    for card in shipped().values():
        if card.kind == kind and card.default:
            return card.name
    hint = "give --model FILE"
    if kind == "photo":
        hint += (
            "; `vs-deblur models convert` makes one of published weights, see docs/converting.md"
        )
    raise WeightsError(f"no {kind} model is shipped", None, hint)


def unreadable(path: str | Path, error: OSError | RuntimeError | ValueError) -> WeightsError:
    """The error that says that a file or folder of weights cannot be read."""
    return WeightsError(f"weights cannot be read: {reason(error)}", str(path))


def sha256_of(path: Path) -> str:
    """Digest of a file, as 64 hexadecimal digits.

    Raises:
        WeightsError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def _networks() -> Mapping[str, Entry]:
    from vs_deblur_models.registry import ENTRIES

    return ENTRIES


def no_weights(network: str) -> WeightsError:
    """The error that says that no weights of a network ship, and how to come by some."""
    hint = f"shipped: {', '.join(shipped()) or 'none'}"
    if _networks()[network].is_published:
        hint += "; `vs-deblur models convert` makes a file of published ones"
    return WeightsError(f"no trained weights for {network} are shipped", None, hint)


def locate(model: str, kind: str = "video") -> tuple[Path, Card | None]:
    """The file of a model.

    Args:
        model: "auto", the name of a shipped model, or the path of a safetensors file.
        kind: "video" or "photo", for "auto".

    Raises:
        WeightsError: no such model or file.
    """
    if model == "auto":
        model = default_model(kind)
    cards = shipped()
    if model in cards:
        card = cards[model]
        if not card.path.is_file():
            raise WeightsError("shipped weights are missing", str(card.path), "reinstall vs-deblur")
        return card.path, card
    path = Path(model)
    try:
        path = path.expanduser()
        if path.is_file():
            return path, None
        if path.is_dir():
            raise WeightsError("a folder is no weights file", model, "give a safetensors file")
    # not allowed to look, a name too long, no such home, a name that cannot be
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(model, error) from error
    ships = ", ".join(cards) or "none"
    if model in _networks():
        raise no_weights(model)
    if path.suffix or path.name != model:
        raise WeightsError("no such weights file", model, f"shipped models: {ships}")
    near = difflib.get_close_matches(model, cards, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise WeightsError(f"no model is called {model!r}", None, f"{hint}shipped: {ships}")


def _explain(path: Path, error: BaseException) -> str:
    """What a file is that is not safetensors."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as own:
        return reason(own)
    if not head:
        return "the file is empty"
    pickled = head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if pickled or head[:2] == b"PK" or path.suffix in (".pth", ".pt", ".pkl", ".ckpt"):
        return "it is a PyTorch checkpoint, not safetensors"
    if head.lstrip()[:1] == b"<":
        return "it is a web page, not weights"
    return f"it is not a whole safetensors file ({' '.join(str(error).split())[:120]})"


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a safetensors file, every value checked to be finite.

    Raises:
        WeightsError: not safetensors, truncated, or a value is NaN or infinite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            # safe_open is a context manager with keys(), not a mapping.
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        what = _explain(path, error)
        hint = None
        if "checkpoint" in what:
            hint = "nothing in a pickle is ever run; `vs-deblur models convert` reads checkpoints"
        raise WeightsError(f"weights cannot be read: {what}", str(path), hint) from error
    check_finite(state, path)
    return state, metadata


def check_finite(state: Mapping[str, Any], path: Path) -> None:
    """Check every value of tensors by name.

    Raises:
        WeightsError: a value is NaN or infinite; says which tensor.
    """
    import torch

    for name, tensor in state.items():
        # As float32, which it will be used as: a float64 may be too large for it.
        if not bool(torch.isfinite(tensor.float()).all()):
            raise WeightsError(f"tensor {name} has values that are NaN or infinite", str(path))


def load(model: str = "auto", kind: str = "video") -> Loaded:
    """Load a network with trained weights.

    Args:
        model: "auto", the name of a shipped model, or the path of a safetensors file of ours.
        kind: "video" or "photo", for "auto".

    Raises:
        WeightsError: missing, damaged (sha256 differs), not finite, or of no network of ours.
    """
    path, card = locate(model, kind)
    if card is not None:
        got = sha256_of(path)
        if got != card.sha256:
            raise WeightsError(
                f"sha256 differs: expected {card.sha256}, got {got}",
                str(path),
                "the file is damaged; reinstall vs-deblur",
            )
    state, metadata = read_tensors(path)

    network = build(state, metadata, path)
    _check_name(network.spec.network, card.network if card else metadata.get("network"), path)
    network.eval().requires_grad_(False)
    name = card.name if card else path.stem
    return Loaded(network, name, path, card, metadata)


def build(state: Mapping[str, Any], metadata: Mapping[str, str], path: Path) -> Any:
    """The network of a checkpoint with our names, as float32 on the CPU.

    Args:
        state: tensors by name.
        metadata: of the safetensors file; what shapes do not tell is read from it.
        path: the file, for errors.

    Raises:
        WeightsError: of no network of ours, or tensors are missing, left over or misshapen.
    """
    from vs_deblur_models.registry import (
        CheckpointMismatchError,
        UnknownCheckpointError,
        from_state,
    )

    try:
        return from_state(state, metadata)
    except UnknownCheckpointError as error:
        keys = ", ".join(sorted(state)[:5]) or "none"
        known = ", ".join(_networks())
        raise WeightsError(
            "these are not weights of a network of ours", str(path), f"keys: {keys}; known: {known}"
        ) from error
    except CheckpointMismatchError as error:
        raise WeightsError(f"weights do not fit their network: {error}", str(path)) from error


def _check_name(network: str, stated: str | None, path: Path) -> None:
    if stated is not None and stated != network:
        raise WeightsError(f"these look like weights of {network}, not of {stated}", str(path))
