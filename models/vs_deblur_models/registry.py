"""Networks by name; checkpoints recognised from their keys, hyper-parameters from their shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from vs_deblur_models.dmphn import Dmphn, DmphnConfig
from vs_deblur_models.mscnn import Mscnn, MscnnConfig
from vs_deblur_models.photo_lite import PhotoLite, PhotoLiteConfig
from vs_deblur_models.srn import Srn, SrnConfig
from vs_deblur_models.strcnn import Strcnn, StrcnnConfig, StrcnnDtbLite, StrcnnDtbLiteConfig

Shapes = Mapping[str, tuple[int, ...]]


class UnknownCheckpointError(ValueError):
    """No network of ours has these keys."""


class CheckpointMismatchError(RuntimeError):
    """The keys are those of a network of ours, but tensors are missing, left over or misshapen."""


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: name of the network.
        paper: where it comes from.
        build: makes the network from keyword hyper-parameters.
        detect: whether a checkpoint with these keys is of this network.
        infer: hyper-parameters from the shapes of a checkpoint.
        traceless: hyper-parameters that leave no trace in the shapes; :func:`save_network` writes
            them into the metadata where they are not the default.
        is_published: whether its authors published weights, which can be converted.
    """

    name: str
    paper: str
    build: Callable[..., nn.Module]
    detect: Callable[[Shapes], bool]
    infer: Callable[[Shapes], dict[str, Any]]
    traceless: tuple[str, ...] = ()
    is_published: bool = False


def count_children(shapes: Shapes, prefix: str) -> int:
    """How many numbered children a module had: ``prefix.0.``, ``prefix.1.`` …"""
    start = prefix + "."
    return len({k[len(start) :].split(".")[0] for k in shapes if k.startswith(start)})


def _is_strcnn(feedback: bool, blending: bool) -> Callable[[Shapes], bool]:
    def detect(shapes: Shapes) -> bool:
        return (
            "deconv.weight" in shapes
            and "conv1.weight" in shapes
            and ("feedback.weight" in shapes) == feedback
            and ("dtb.beta" in shapes) == blending
        )

    return detect


def _build_strcnn(feedback: bool, blending: bool) -> Callable[..., nn.Module]:
    def build(m: int = 1, residual: bool = False) -> nn.Module:
        return Strcnn(StrcnnConfig(m=m, residual=residual, feedback=feedback, blending=blending))

    return build


def _infer_strcnn(shapes: Shapes) -> dict[str, Any]:
    # A residual leaves no trace in the shapes; save_network writes it into the metadata.
    return {"m": (shapes["conv1.weight"][1] // 3 - 1) // 2}


def _infer_lite(shapes: Shapes) -> dict[str, Any]:
    feedback = shapes["feedback.weight"][0]
    frames = (shapes["head.weight"][1] - feedback) // 48
    return {
        "m": (frames - 1) // 2,
        "channels": tuple(shapes[k][0] for k in ("head.weight", "down1.weight", "down2.weight")),
        "encoder_blocks": tuple(count_children(shapes, f"encoder{i}") for i in range(3)),
        "decoder_blocks": (count_children(shapes, "decoder1"), count_children(shapes, "decoder0")),
        "feedback_channels": feedback,
    }


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    """Lists of a recipe (TOML) as the tuples of a config."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}


def _build_lite(**config: Any) -> nn.Module:
    return StrcnnDtbLite(StrcnnDtbLiteConfig(**_tuples(config)))


def _build_photo_lite(**config: Any) -> nn.Module:
    return PhotoLite(PhotoLiteConfig(**_tuples(config)))


def _infer_photo_lite(shapes: Shapes) -> dict[str, Any]:
    sizes = count_children(shapes, "encoders")
    downs = (shapes[f"down.{i}.weight"][0] for i in range(sizes - 1))
    return {
        "channels": (shapes["head.weight"][0], *downs),
        "encoder_blocks": tuple(count_children(shapes, f"encoders.{i}") for i in range(sizes)),
        "decoder_blocks": tuple(count_children(shapes, f"decoders.{i}") for i in range(sizes - 1)),
    }


def _infer_mscnn(shapes: Shapes) -> dict[str, Any]:
    return {
        "scales": count_children(shapes, "networks"),
        "blocks": count_children(shapes, "networks.0") - 2,
        "channels": shapes["networks.0.0.weight"][0],
    }


def _infer_srn(shapes: Shapes) -> dict[str, Any]:
    return {
        "colour": shapes["encoder1.weight"][1] == 6,
        "lstm": "lstm.conv.weight" in shapes,
    }


def _infer_dmphn(shapes: Shapes) -> dict[str, Any]:
    return {
        "levels": count_children(shapes, "stacks.0.encoders"),
        "stacks": count_children(shapes, "stacks"),
    }


_KIM = "Kim, Lee, Schölkopf, Hirsch, ICCV 2017"

ENTRIES: dict[str, Entry] = {
    e.name: e
    for e in (
        *(
            Entry(
                name,
                _KIM,
                _build_strcnn(feedback, blending),
                _is_strcnn(feedback, blending),
                _infer_strcnn,
                ("residual",),
            )
            for name, feedback, blending in (
                ("cnn", False, False),
                ("strcnn", True, False),
                ("strcnn_dtb", True, True),
            )
        ),
        Entry(
            "strcnn_dtb_lite",
            f"{_KIM}, reduced for processors without a GPU",
            _build_lite,
            lambda s: "dtb.beta" in s and "down2.weight" in s and "head.weight" in s,
            _infer_lite,
        ),
        Entry(
            "mscnn",
            "Nah, Kim, Lee, CVPR 2017",
            lambda **config: Mscnn(MscnnConfig(**config)),
            lambda s: "networks.0.0.weight" in s,
            _infer_mscnn,
            ("pyramid",),
            is_published=True,
        ),
        Entry(
            "srn",
            "Tao, Gao, Shen, Wang, Jia, CVPR 2018",
            lambda **config: Srn(SrnConfig(**config)),
            lambda s: "encoder3.conv.weight" in s and "unblocks3.0.conv1.weight" in s,
            _infer_srn,
            is_published=True,
        ),
        Entry(
            "dmphn",
            "Zhang, Dai, Li, Koniusz, CVPR 2019",
            lambda **config: Dmphn(DmphnConfig(**config)),
            lambda s: "stacks.0.encoders.0.0.weight" in s,
            _infer_dmphn,
            is_published=True,
        ),
        Entry(
            "photo_lite",
            "the project's own, for processors without a GPU",
            _build_photo_lite,
            lambda s: "down.0.weight" in s and "encoders.0.0.depthwise.weight" in s,
            _infer_photo_lite,
        ),
    )
}


def build_network(name: str, config: Mapping[str, Any] | None = None) -> Any:
    """Make a network with fresh weights.

    Raises:
        KeyError: no network has this name.
        TypeError: a hyper-parameter that the network does not have.
    """
    return ENTRIES[name].build(**dict(config or {}))


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a checkpoint."""
    return {k: tuple(v.shape) for k, v in state.items()}


def detect(shapes: Shapes) -> Entry:
    """The network that a checkpoint belongs to.

    Raises:
        UnknownCheckpointError: none of ours.
    """
    for entry in ENTRIES.values():
        if entry.detect(shapes):
            return entry
    raise UnknownCheckpointError("the tensors' names are not those of a known network")


def few(names: list[str]) -> str:
    """Names for an error: the first five, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def compare_shapes(shapes: Shapes, expected: Shapes) -> None:
    """Compare the shapes of a checkpoint with those of a network.

    Raises:
        CheckpointMismatchError: they differ; says so with up to five names of each kind.
    """
    missing = [k for k in expected if k not in shapes]
    extra = [k for k in shapes if k not in expected]
    misshapen = [
        f"{k} is {shapes[k]}, not {v}" for k, v in expected.items() if shapes.get(k, v) != v
    ]
    faults = {"missing": missing, "left over": extra, "misshapen": misshapen}
    text = "; ".join(f"{fault}: {few(names)}" for fault, names in faults.items() if names)
    if text:
        raise CheckpointMismatchError(text)


def from_state(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Any:
    """Build the network that a checkpoint describes and load it, as float32.

    No memory is taken and no random number drawn for weights that the checkpoint does not have.

    Args:
        state: tensors by name.
        metadata: of the safetensors file; what shapes do not tell is read from it.

    Raises:
        UnknownCheckpointError: none of our networks has these keys.
        CheckpointMismatchError: tensors are missing, left over or misshapen.
    """
    shapes = shapes_of(state)
    entry = detect(shapes)
    try:
        config = entry.infer(shapes)
        for name in entry.traceless:
            if name in (metadata or {}):
                config[name] = json.loads((metadata or {})[name])
        with torch.device("meta"):  # shapes without values
            network = build_network(entry.name, config)
    except KeyError as error:
        raise CheckpointMismatchError(f"missing: {error.args[0]}") from error
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointMismatchError(f"no {entry.name} has such shapes") from error
    compare_shapes(shapes, shapes_of(network.state_dict()))
    # Copies: tensors of a safetensors file are views of the file itself.
    own = {k: v.to(torch.float32, copy=True) for k, v in state.items()}
    network.load_state_dict(own, strict=True, assign=True)
    return network


def config_of(network: Any) -> dict[str, Any]:
    """The hyper-parameters with which :func:`build_network` makes a network like this one."""
    entry = ENTRIES[network.spec.network]
    config = entry.infer(shapes_of(network.state_dict()))
    return config | {name: getattr(network.config, name) for name in entry.traceless}


def write_network(
    network: Any,
    path: Path,
    dtype: torch.dtype = torch.float32,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write weights as safetensors, with what shapes do not tell; the same bytes each time.

    Args:
        network: the network.
        path: the file to write, in place.
        dtype: type of the numbers in the file.
        extra: more metadata.
    """
    state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in network.state_dict().items()}
    name = network.spec.network
    default = type(network.config)()
    metadata = {**(extra or {}), "network": name}
    for key in ENTRIES[name].traceless:
        if getattr(network.config, key) != getattr(default, key):
            metadata[key] = json.dumps(getattr(network.config, key))
    path.write_bytes(_sorted_metadata(save(state, metadata)))


def _sorted_metadata(data: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes it in a random one."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def save_network(
    network: Any,
    path: Path,
    dtype: torch.dtype = torch.float32,
    extra: Mapping[str, str] | None = None,
) -> None:
    """As :func:`write_network`, through a ``.part`` file that is renamed at the end."""
    part = path.with_suffix(".part")
    write_network(network, part, dtype, extra)
    part.replace(path)
