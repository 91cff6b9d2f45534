"""Checkpoints of other programs, read without ever running what is in them.

A pickle is a program. Before one is loaded, its opcodes are read (nothing is executed by that): it
may ask for nothing but tensors, their storages and ordered dictionaries. Only then
``torch.load(weights_only=True)`` reads it, which checks again by its own rules. What comes out must
be plain floating-point tensors that the file is large enough to hold.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vs_deblur.errors import WeightsError
from vs_deblur.weights import check_finite, read_tensors, unreadable

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 4 << 30
"""Bytes of the largest file that is read; the largest published checkpoint has 0.1 GB."""

WRAPPERS = ("params_ema", "params", "state_dict", "model", "G", "generator", "net")
"""Names under which training programs put the state dict, the first that is there counts."""

_DEEPEST = 4  # wrappers in wrappers
_KINDS = ("Float", "Half", "Double", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_HARMLESS = frozenset(
    (
        "collections OrderedDict",
        "torch Size",
        "torch device",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.nn.parameter Parameter",
        *(f"{module} {kind}Storage" for module in ("torch", "torch.cuda") for kind in _KINDS),
    )
)
# Other ways to name a thing to call than GLOBAL, whose argument is in plain sight.
_HIDDEN = frozenset(("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"))
_LEGACY_PICKLES = 5  # magic number, version, machine, the object, names of the storages
_ALONE = "save the state dict alone and convert that"


@dataclass(frozen=True)
class Source:
    """A file that weights come from.

    Attributes:
        name: its name, without folders.
        sha256: digest of it, 64 hexadecimal digits.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """The state dict of a file.

    Attributes:
        tensors: finite floating-point tensors on the CPU by name.
        source: the file.
        inside: the wrapper that they were in, as ``model.params_ema``; "" for none.
        metadata: of a safetensors file.
    """

    tensors: dict[str, Tensor]
    source: Source
    inside: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


def read_bytes(path: Path) -> bytes:
    """A whole file of reasonable size.

    Raises:
        WeightsError: not a file, unreadable, empty or larger than :data:`LARGEST`.
    """
    try:
        if not path.is_file():
            raise WeightsError("no such file or folder", str(path))
        if path.stat().st_size > LARGEST:
            raise WeightsError(f"larger than {LARGEST >> 30} GiB, so no checkpoint", str(path))
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if not data:
        raise WeightsError("weights cannot be read: the file is empty", str(path))
    return data


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a PyTorch checkpoint, zipped or of before 2020, or a safetensors file.

    Wrappers (:data:`WRAPPERS`) are opened, and prefixes that all names share, as ``module.``,
    are taken off.

    Raises:
        WeightsError: it is neither, is damaged, asks for anything but tensors, or has values that
            are not finite.
    """
    data = read_bytes(path)
    source = Source(path.name, hashlib.sha256(data).hexdigest())
    if data[8:9] == b"{" or path.suffix == ".safetensors":
        state, metadata = read_tensors(path)
        return Checkpoint(_stripped(state), source, "", metadata)
    _check_version()
    content, inside = _unwrapped(_loaded(_inspected(data, path), path))
    tensors = _plain(content, path, len(data))
    return Checkpoint(_stripped(tensors), source, inside)


def _check_version() -> None:
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        # Below, weights_only could be got around (CVE-2025-32434).
        raise WeightsError(
            f"PyTorch {torch.__version__} is too old to read checkpoints safely",
            None,
            "install PyTorch 2.6 or later to convert",
        )


def _broken(data: bytes, why: str = "") -> str:
    """What a file is that cannot be read as a checkpoint."""
    if data.lstrip()[:1] == b"<":
        return "it is a web page, not weights"
    if data.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself"
    if data[:2] not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "it is not a PyTorch checkpoint"
    return why or "the checkpoint is damaged or cut short"


def _inspected(data: bytes, path: Path) -> bytes:
    """What of a checkpoint is to be loaded.

    Of an archive that is a new one with the members that were looked at: readers of zip files
    differ in which ones they find in the same bytes.

    Raises:
        WeightsError: it asks for more than tensors, or unpacks to more than it is.
    """
    if data[:4] != b"PK\x03\x04":
        stream = io.BytesIO(data)
        for _ in range(_LEGACY_PICKLES):
            _inspect_pickle(stream, data, path)
        return data
    made = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(made, "w") as copy:
            members = archive.infolist()
            if sum(m.file_size for m in members) > len(data):
                raise WeightsError("it unpacks to more than its own size", str(path), _ALONE)
            if any(m.filename.endswith("/constants.pkl") for m in members):
                raise WeightsError("it is a TorchScript program", str(path), _ALONE)
            if len({m.filename for m in members}) < len(members):
                raise WeightsError("it has two members of the same name", str(path), _ALONE)
            pickles = [m for m in members if m.filename.endswith(".pkl")]
            for member in members:
                content = archive.read(member)
                if member in pickles:
                    _inspect_pickle(io.BytesIO(content), data, path)
                copy.writestr(zipfile.ZipInfo(member.filename), content)
    except WeightsError:
        raise
    except Exception as error:  # strangers' bytes: EOFError, zlib.error and whatever else
        raise WeightsError(f"weights cannot be read: {_broken(data)}", str(path)) from error
    if not pickles:
        what = "it is a zip file, but not a PyTorch checkpoint"
        raise WeightsError(what, str(path), "unpack it and convert what is inside")
    return made.getvalue()


def _inspect_pickle(stream: io.BytesIO, data: bytes, path: Path) -> None:
    """Read the opcodes of one pickle up to its end and refuse all but harmless names."""
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in _HIDDEN or (opcode.name == "GLOBAL" and argument not in _HARMLESS):
                raise WeightsError(
                    _complaint(argument), str(path), f"nothing in it was run; {_ALONE}"
                )
    except WeightsError:
        raise
    except Exception as error:  # strangers' bytes: whatever the parser makes of them
        raise WeightsError(f"weights cannot be read: {_broken(data)}", str(path)) from error


def _complaint(argument: object) -> str:
    if not isinstance(argument, str):  # the name is only put together while it is loaded
        return "it can run code, and which cannot be seen beforehand"
    name = "".join(c if c.isprintable() else "?" for c in argument.replace(" ", "."))[:80]
    return f"it asks for {name}, which is no part of weights"


def _loaded(data: bytes, path: Path) -> object:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of formats
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # as above
        raise WeightsError(f"weights cannot be read: {_broken(data)}", str(path)) from error


def _unwrapped(content: object) -> tuple[object, str]:
    """The state dict inside of what a training program saved, and where it was."""
    inside: list[str] = []
    while isinstance(content, dict) and len(inside) < _DEEPEST:
        # Unbound: a pickle may give an OrderedDict attributes that hide its methods.
        found = next((w for w in WRAPPERS if isinstance(dict.get(content, w), dict)), None)
        if found is None:
            break
        content = dict.get(content, found)
        inside.append(found)
    return content, ".".join(inside)


def _plain(content: object, path: Path, size: int) -> dict[str, Tensor]:
    """The tensors of a state dict, each checked to be what a network can be given."""
    import torch

    found: dict[Any, Any] = {}
    if isinstance(content, dict):
        found = {k: v for k, v in dict.items(content) if isinstance(v, torch.Tensor)}
    if not found:
        raise WeightsError("there is no state dict in it", str(path), _ALONE)
    for name in found:
        if not (isinstance(name, str) and name.isprintable() and len(name) < 256):
            raise WeightsError("its tensors have no proper names", str(path))
    for name, tensor in found.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not (plain and tensor.is_floating_point() and tensor.numel()):
            raise WeightsError(f"tensor {name} is not of floating-point numbers", str(path))
    # A tensor may repeat one number for ever (strides of zero): nobody's weights do.
    if sum(t.numel() * t.element_size() for t in found.values()) > size:
        raise WeightsError("it declares more numbers than it holds", str(path))
    tensors = {name: tensor.detach() for name, tensor in found.items()}
    check_finite(tensors, path)
    return tensors


def _stripped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off prefixes that all names share, as ``module.`` of DataParallel."""
    while True:
        heads = {name.partition(".")[0] for name in tensors}
        if len(heads) != 1 or heads.isdisjoint(("module", *WRAPPERS)):
            return tensors
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
