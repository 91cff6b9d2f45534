"""Published checkpoints in our layout: the mapping of names, and what is decided on the way.

==================  =====================================================================
DMPHN, SDNet        a folder of ``encoder_lv1.pkl`` … or ``encoder_s1_lv1.pkl`` … (Zhang et al.)
MSCNN               ``model-100.pt`` of DeepDeblur-PyTorch (Nah et al.), values 0..255
SRN                 a TensorFlow checkpoint, ``deblur.model-523000`` (Tao et al.)
ours                a state dict with the names of one of our networks, or safetensors
==================  =====================================================================

For each foreign layout there is one function that gives the foreign name of a tensor of ours; what
is missing, left over or misshapen is found from that and said in the foreign names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vs_deblur._version import __version__
from vs_deblur.errors import UsageError, WeightsError
from vs_deblur.foreign import Checkpoint, Source, read_bytes, read_checkpoint
from vs_deblur.weights import build, check_finite, unreadable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Arrays = Mapping[str, NDArray[np.float32]]

Tensors = dict[str, "Tensor"]


@dataclass(frozen=True)
class Converted:
    """A foreign checkpoint as a network of ours.

    Attributes:
        network: in evaluation mode, float32, on the CPU.
        layout: what the checkpoint was.
        sources: the files that it came from.
        notes: what was decided on the way.
    """

    network: Any
    layout: str
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()

    @property
    def metadata(self) -> dict[str, str]:
        """Provenance for the file's metadata; the same text for the same files."""
        provenance = {
            "layout": self.layout,
            "sources": {s.name: s.sha256 for s in self.sources},
            "notes": list(self.notes),
            "converted_by": f"vs-deblur {__version__}",
        }
        return {"provenance": json.dumps(provenance, ensure_ascii=False)}


def convert(
    path: Path,
    network: str | None = None,
    stacks: int | None = None,
    rgb_range: float | None = None,
) -> Converted:
    """Read a published checkpoint.

    Args:
        path: file, folder, or prefix of a TensorFlow checkpoint.
        network: which network it must be of; None for any.
        stacks: how many stacks of an SDNet folder are taken; None for as many as its name says,
            or else as there are files.
        rgb_range: largest value that a DeepDeblur-PyTorch network was trained with; None for 255.

    Raises:
        WeightsError: it cannot be read, is of no network of ours, or not of the one asked for.
        UsageError: no network has this name, or an argument does not go with the layout.
    """
    from vs_deblur_models.registry import ENTRIES

    if network is not None and network not in ENTRIES:
        raise UsageError(f"no network is called {network!r}", None, f"known: {', '.join(ENTRIES)}")
    try:
        prefix, is_folder = _tensorflow_prefix(path), path.is_dir()
    except OSError as error:  # not allowed to look, a name too long
        raise unreadable(path, error) from error
    if prefix is not None:
        found = _convert_srn(prefix)
    elif is_folder:
        found = _convert_dmphn(path, stacks)
    else:
        found = _convert_file(read_checkpoint(path), path, rgb_range)
    _check_arguments(found, stacks, rgb_range)
    got = found.network.spec.network
    if network not in (None, got):
        raise WeightsError(f"these look like weights of {got}, not of {network}", str(path))
    found.network.eval().requires_grad_(False)
    return found


def _check_arguments(found: Converted, stacks: int | None, rgb_range: float | None) -> None:
    if stacks is not None and found.layout != SDNET:
        raise UsageError("--stacks is for folders of SDNet", None, f"this is {found.layout}")
    if rgb_range is not None and found.layout != DEEPDEBLUR:
        raise UsageError("--rgb-range is for DeepDeblur-PyTorch", None, f"this is {found.layout}")


def _take(
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    foreign: Callable[[str], str],
    path: Path,
) -> Tensors:
    """The tensors of a network of ours, by our names.

    Args:
        name, config: the network.
        tensors: by foreign names.
        foreign: the foreign name of a tensor of ours.
        path: the checkpoint, for errors.

    Raises:
        WeightsError: tensors are missing, left over or misshapen.
    """
    import torch

    from vs_deblur_models.registry import (
        CheckpointMismatchError,
        build_network,
        compare_shapes,
        shapes_of,
    )

    try:
        with torch.device("meta"):  # shapes without values
            expected = shapes_of(build_network(name, config).state_dict())
        compare_shapes(shapes_of(tensors), {foreign(k): v for k, v in expected.items()})
    except (CheckpointMismatchError, ValueError, RuntimeError) as error:
        raise WeightsError(f"weights do not fit {name}: {error}", str(path)) from error
    return {k: tensors[foreign(k)] for k in expected}


# --------------------------------------------------------------------- names that are ours

OURS = "a state dict"


def _convert_file(found: Checkpoint, path: Path, rgb_range: float | None) -> Converted:
    tensors = found.tensors
    if "body_models.0.body.0.weight" in tensors:
        return _convert_mscnn(found, path, 255.0 if rgb_range is None else rgb_range)
    if "layer1.weight" in tensors or "layer24.weight" in tensors:
        raise WeightsError(
            "this is one part of a DMPHN", str(path), "give the folder that holds all parts"
        )
    notes = (f"taken from {found.inside}",) if found.inside else ()
    return Converted(build(tensors, found.metadata, path), OURS, (found.source,), notes)


# --------------------------------------------------------------------- MSCNN, DeepDeblur-PyTorch

DEEPDEBLUR = "a DeepDeblur-PyTorch checkpoint"


def _mscnn_name(key: str) -> str:
    """``networks.0.3.conv1.weight`` is ``body_models.0.body.3.body.0.weight`` there."""
    part, scale, rest = key.split(".", 2)
    if part == "enlargements":
        # Theirs is numbered by the size that it starts from, ours by the one it leads to.
        return f"conv_end_models.{int(scale) + 1}.uppath.0.{rest}"
    rest = rest.replace("conv1.", "body.0.").replace("conv2.", "body.2.")
    return f"body_models.{scale}.body.{rest}"


def mscnn_state(tensors: Mapping[str, Tensor], rgb_range: float, path: Path) -> Tensors:
    """Map the generator of DeepDeblur-PyTorch.

    It works on values 0..``rgb_range``. All of its layers are convolutions, ReLU and sums, so that
    ``f(c x; W, c b) = c f(x; W, b)``: with all biases divided by the range it is the same network
    for values 0..1.

    Args:
        tensors: the state dict, ``body_models.0.body.0.weight`` …
        rgb_range: the largest value, 255 for published checkpoints.
        path: the checkpoint, for errors.
    """
    from vs_deblur_models.registry import count_children, shapes_of

    shapes = shapes_of(tensors)
    config = {
        "scales": count_children(shapes, "body_models"),
        "blocks": count_children(shapes, "body_models.0.body") - 2,
        "channels": shapes["body_models.0.body.0.weight"][0],
    }
    state = _take("mscnn", config, tensors, _mscnn_name, path)
    return {
        k: (v.double() / rgb_range).float() if k.endswith(".bias") else v for k, v in state.items()
    }


def _convert_mscnn(found: Checkpoint, path: Path, rgb_range: float) -> Converted:
    state = mscnn_state(found.tensors, rgb_range, path)
    # Their pyramid is skimage's: each pixel the mean of four.
    network = build(state, {"pyramid": json.dumps("average")}, path)
    return Converted(network, DEEPDEBLUR, (found.source,), (f"biases / {rgb_range:g}",))


# --------------------------------------------------------------------- DMPHN, SDNet

DMPHN = "a DMPHN folder"
SDNET = "an SDNet folder"

_PART = re.compile(r"(?:encoder|decoder)_(?:s([1-9]\d?)_)?lv([1-9])\.pkl")
# Number of their layer for each of ours; those between are activations and parts never used.
_ENCODER = (1, 2, 3, 5, 6, 7, 9, 10, 11)
_DECODER = (13, 14, 16, 17, 18, 20, 21, 22, 24)


def _dmphn_name(key: str, stacked: bool) -> str:
    """``stacks.0.encoders.1.2.conv1.bias`` is ``layer3.0.bias`` in ``encoder_lv2.pkl`` there."""
    _, stack, part, level, index, rest = key.split(".", 5)
    layer = (_ENCODER if part == "encoders" else _DECODER)[int(index)]
    of_stack = f"s{int(stack) + 1}_" if stacked else ""
    rest = rest.replace("conv1.", "0.").replace("conv2.", "2.")
    return f"{part[:-1]}_{of_stack}lv{int(level) + 1}.pkl: layer{layer}.{rest}"


def _stacks_of(folder: Path, held: int, asked: int | None) -> tuple[int, str]:
    """How many stacks are taken, and why.

    The published SDNet3 folder holds a fourth stack that its authors' code does not read.
    """
    named = re.search(r"sdnet[-_ ]?([1-9])", folder.resolve().name, re.IGNORECASE)
    if asked is not None:
        return asked, f"{asked} of {held} stacks, as asked"
    if named:
        return int(named[1]), f"{named[1]} of {held} stacks, as the folder's name says"
    return held, f"all {held} stacks of the folder"


def _convert_dmphn(folder: Path, asked: int | None) -> Converted:
    try:
        files = {p.name: m for p in folder.iterdir() if (m := _PART.fullmatch(p.name))}
    except OSError as error:
        raise unreadable(folder, error) from error
    held = len({m[1] for m in files.values() if m[1]})
    levels = len({m[2] for m in files.values()})
    if not files:
        hint = "wanted: encoder_lv1.pkl, decoder_lv1.pkl …, or *.index of TensorFlow"
        raise WeightsError("no checkpoint is in this folder", str(folder), hint)
    if held and any(m[1] is None for m in files.values()):
        raise WeightsError("files of DMPHN and of SDNet are mixed in this folder", str(folder))
    stacks, note = _stacks_of(folder, held, asked) if held else (1, "")
    config = {"levels": max(levels, 3 if held else 2), "stacks": stacks}

    def foreign(key: str) -> str:
        return _dmphn_name(key, bool(held))

    tensors, sources = _read_parts(folder, files, config, foreign)
    network = build(_take("dmphn", config, tensors, foreign, folder), {}, folder)
    return Converted(network, SDNET if held else DMPHN, sources, (note,) if note else ())


def _read_parts(
    folder: Path,
    files: Mapping[str, object],
    config: Mapping[str, Any],
    foreign: Callable[[str], str],
) -> tuple[Tensors, tuple[Source, ...]]:
    """The tensors of all files that a configuration needs, by file and name."""
    import torch

    from vs_deblur_models.registry import build_network, few

    try:
        with torch.device("meta"):
            keys = build_network("dmphn", config).state_dict()
    except ValueError as error:
        raise WeightsError(f"no such DMPHN: {error}", str(folder)) from error
    wanted = dict.fromkeys(foreign(key).partition(":")[0] for key in keys)
    missing = [name for name in wanted if name not in files]
    if missing:
        raise WeightsError(f"missing: {few(missing)}", str(folder))
    tensors: Tensors = {}
    sources = []
    for name in wanted:
        part = read_checkpoint(folder / name)
        tensors |= {f"{name}: {key}": tensor for key, tensor in part.tensors.items()}
        sources.append(part.source)
    return tensors, tuple(sources)


# --------------------------------------------------------------------- SRN, TensorFlow

TENSORFLOW = "a TensorFlow checkpoint of SRN"

# With the scope that slim puts before; Adam's slots (…/weights/Adam) and counters are left out.
_VARIABLE = re.compile(
    r"(?:.*/)?((?:(?:enc|dec)\d_\d(?:/conv[12])?|convLSTM/LSTM_conv)/(?:weights|biases))"
)


def _srn_name(key: str) -> str:
    """``blocks1.0.conv1.weight`` is ``enc1_2/conv1/weights`` there."""
    module, _, rest = key.rpartition(".")
    part, *path = module.split(".")
    level = part[-1]
    if part.startswith("blocks"):
        name = f"enc{level}_{int(path[0]) + 2}/{path[1]}"
    elif part.startswith("unblocks"):
        name = f"dec{level}_{3 - int(path[0])}/{path[1]}"
    elif part.startswith("encoder"):
        name = f"enc{level}_1"
    elif part.startswith("decoder"):
        name = f"dec{level}_4"
    else:
        name = {"output": "dec1_0", "lstm": "convLSTM/LSTM_conv"}[part]
    return f"{name}/{'weights' if rest == 'weight' else 'biases'}"


def srn_state(arrays: Arrays, path: Path) -> Tensors:
    """Map the variables of the authors' TensorFlow graph.

    Kernels of convolutions are (H, W, in, out) there and (out, in, H, W) here; those of transposed
    convolutions (H, W, out, in) there and (in, out, H, W) here: one permutation for both.

    Args:
        arrays: variables by name, as ``g_net/enc1_1/weights``; others than SRN's are ignored.
        path: the checkpoint, for errors.
    """
    import numpy as np
    import torch

    tensors: Tensors = {}
    for name, array in arrays.items():
        match = _VARIABLE.fullmatch(name)
        if match is None:
            continue
        if match[1] in tensors:
            raise WeightsError(f"there are two variables {match[1]}", str(path))
        tensor = torch.from_numpy(np.array(array, dtype=np.float32))
        tensors[match[1]] = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
    if "enc1_1/weights" not in tensors:
        raise WeightsError("this is a TensorFlow checkpoint, but not of SRN", str(path))
    check_finite(tensors, path)
    config = {
        "colour": tensors["enc1_1/weights"].shape[1:2] == (6,),
        "lstm": "convLSTM/LSTM_conv/weights" in tensors,
    }
    return _take("srn", config, tensors, _srn_name, path)


def _tensorflow_prefix(path: Path) -> Path | None:
    """The prefix of a TensorFlow checkpoint, if that is what a path is."""
    if path.is_dir():
        found = sorted(p.with_suffix("") for p in path.glob("*.index"))
        if len(found) > 1:
            names = ", ".join(p.name for p in found[:5])
            raise WeightsError("several checkpoints are in this folder", str(path), f"give {names}")
        return found[0] if found else None
    name = re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path.name)
    if path.name and (name != path.name or not path.exists()):
        prefix = path.with_name(name)
        if prefix.with_name(name + ".index").is_file():
            return prefix
    return None


def _read_tensorflow(prefix: Path) -> Arrays:
    """SRN's variables of a TensorFlow checkpoint."""
    try:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no greetings on stderr
        tensorflow = import_module("tensorflow")
    except ImportError as error:
        raise WeightsError(
            "reading a TensorFlow checkpoint needs TensorFlow",
            str(prefix),
            "install it to convert (pip install tensorflow); it is not needed afterwards",
        ) from error
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
        names = reader.get_variable_to_shape_map()
        return {n: reader.get_tensor(n) for n in names if _VARIABLE.fullmatch(n)}
    except Exception as error:  # of many kinds, none of which can be named without TensorFlow
        text = " ".join(str(error).split())[:200]
        raise WeightsError(f"weights cannot be read: {text}", str(prefix)) from error


def _convert_srn(prefix: Path) -> Converted:
    files = sorted(prefix.parent.glob(f"{_escaped(prefix.name)}.data-*"))
    index = prefix.with_name(prefix.name + ".index")
    if not files:
        missing = f"{prefix.name}.data-00000-of-00001"
        raise WeightsError(f"missing: {missing}", str(prefix.parent))
    sources = tuple(
        Source(p.name, hashlib.sha256(read_bytes(p)).hexdigest()) for p in (index, *files)
    )
    state = srn_state(_read_tensorflow(prefix), prefix)
    return Converted(build(state, {}, prefix), TENSORFLOW, sources)


def _escaped(name: str) -> str:
    """A name with the wildcards of glob taken literally."""
    return re.sub(r"([*?[])", r"[\1]", name)
