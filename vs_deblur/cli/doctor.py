"""``vs-deblur doctor``: what is installed, what is used, and whether it works."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import click

from vs_deblur._version import __version__
from vs_deblur.cli._progress import tell, tell_json
from vs_deblur.errors import DeblurError, DeviceError, EngineError, WeightsError
from vs_deblur.processor import INSTRUCTIONS, processor_has

Status = Literal["ok", "warn", "fail"]

_CUPY = ("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x")


@dataclass(frozen=True)
class Check:
    """One line.

    Attributes:
        name: what was looked at.
        status: "warn" is for what may be as it is.
        detail: what was found.
        exit_code: what a failure ends the command with.
    """

    name: str
    status: Status
    detail: str
    exit_code: int = 0


def _version(*names: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _failed(name: str, error: BaseException) -> Check:
    code = error.exit_code if isinstance(error, DeblurError) else EngineError.exit_code
    text = " ".join(str(error).split()) or type(error).__name__
    return Check(name, "fail", text, code)


def check_versions() -> Iterator[Check]:
    """Python, ourselves, and what we stand on."""
    yield Check("python", "ok", f"{platform.python_version()}, {platform.system()}")
    yield Check("vs-deblur", "ok", __version__)
    for name in ("torch", "numpy", "safetensors", "pillow"):
        version = _version(name)
        status: Status = "ok" if version else "fail"
        yield Check(name, status, version or "not installed", 0 if version else 1)
    optional = {
        "vapoursynth": ("the filter and .vpy scripts", "video"),
        "vapoursynth-bestsource": ("reading video files in scripts", "video"),
        "av": ("the commands for video files and PNG photos of 16 bits", "video"),
        "tifffile": ("TIFF photos", "photo16"),
    }
    for name, (use, extra) in optional.items():
        version = _version(name)
        missing = f"not installed, needed for {use}: pip install vs-deblur[{extra}]"
        yield Check(name, "ok" if version else "warn", version or missing)
    cupy = _version(*_CUPY)
    yield Check("cupy", "ok", cupy or "not installed; it makes CUDA devices faster")


def check_devices() -> Iterator[Check]:
    """CUDA devices, the processor, and what "auto" makes of them."""
    import torch

    from vs_deblur.engine import choose_device, choose_precision, memory_budget

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        facts = torch.cuda.get_device_properties(i)
        text = f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB, sm_{facts.major}{facts.minor}"
        yield Check(f"cuda:{i}", "ok", text)
    if not count:
        yield Check("cuda", "ok", "no CUDA device: the processor is used")
    flags = [name for name in INSTRUCTIONS if processor_has(name)]
    text = ", ".join(flags) or f"none of {', '.join(INSTRUCTIONS)}"
    yield Check("processor", "ok", f"{platform.machine()}: {text}")
    yield Check("threads", "ok", str(torch.get_num_threads()))
    device = choose_device("auto")
    yield Check("device auto", "ok", str(device))
    yield Check("precision auto", "ok", "{}: {}".format(*choose_precision("auto", device)))
    yield Check("memory a step", "ok", f"at most {memory_budget(device) / 2**30:.1f} GiB")


def check_kernels() -> Iterator[Check]:
    """Which kernels run on the device that "auto" chooses."""
    from vs_deblur.engine import check_kernels, choose_device
    from vs_deblur_kernels import dispatch

    device = choose_device("auto")
    check_kernels(device)
    if device.type != "cuda":
        yield Check("kernels", "ok", "not used: no CUDA device")
        return
    if dispatch.mode() == "reference":
        yield Check("kernels", "ok", f"not used: {dispatch.VARIABLE}=reference")
        return
    if (reason := dispatch.missing()) is not None:
        text = f"not used, torch computes instead: {reason}"
        yield Check("kernels", "warn", text)
        return
    for operation, wrong in dispatch.examine(device):
        text = "right on a small input" if wrong is None else f"left out: {wrong}"
        if wrong is None and not operation.automatic and dispatch.mode() == "auto":
            text += f"; used with {dispatch.VARIABLE}=cupy only"
        yield Check(f"kernel {operation.name}", "ok" if wrong is None else "warn", text)


def check_weights() -> Iterator[Check]:
    """Whether each shipped model has the right digest and loads."""
    from vs_deblur.weights import default_model, load, shipped

    try:
        cards = shipped()
        default_model()
    except WeightsError as error:
        yield _failed("models", error)
        return
    use = {"video": ", default for video", "photo": ", default for photos"}
    for name, card in cards.items():
        try:
            parameters = sum(p.numel() for p in load(name).network.parameters())
        except WeightsError as error:
            yield _failed(f"model {name}", error)
            continue
        text = f"sha256 right, {parameters:,} parameters"
        yield Check(f"model {name}", "ok", text + (use[card.kind] if card.default else ""))


def check_engine() -> Iterator[Check]:
    """Two tiny frames through the default model."""
    import numpy as np

    from vs_deblur.engine import Deblurrer

    frames = np.random.default_rng(0).random((2, 48, 64, 3), dtype=np.float32)
    deblurrer = Deblurrer()
    out = np.stack(list(deblurrer.video(frames)))
    if out.shape != frames.shape or not np.isfinite(out).all():
        raise EngineError("the default model gave values that are not finite")
    yield Check("self-test", "ok", deblurrer.describe())


def check_photos() -> Iterator[Check]:
    """A tiny picture through the default model for photos."""
    import numpy as np

    from vs_deblur.engine import Deblurrer
    from vs_deblur.weights import shipped

    name = "self-test photos"
    if not any(card.kind == "photo" and card.default for card in shipped().values()):
        yield Check(name, "warn", "no photo model is shipped: give --model FILE for photos")
        return
    picture = np.random.default_rng(0).random((48, 64, 3), dtype=np.float32)
    deblurrer = Deblurrer(kind="photo")
    out = deblurrer.photo(picture)
    if out.shape != picture.shape or not np.isfinite(out).all():
        raise EngineError("the default model for photos gave values that are not finite")
    yield Check(name, "ok", deblurrer.describe())


def check_filter() -> Iterator[Check]:
    """Whether the VapourSynth filter can be imported and gives a frame."""
    if _version("vapoursynth") is None:
        yield Check("filter", "warn", "VapourSynth is not installed")
        return
    import vapoursynth as vs

    from vs_deblur import deblur

    clip = vs.core.std.BlankClip(format=vs.RGB24, width=64, height=48, length=1)
    with deblur(clip).get_frame(0) as frame:
        model = frame.props["VSDeblurModel"]
    release = vs.core.core_version.release_major
    yield Check("filter", "ok", f"a frame through {model}, VapourSynth R{release}")


def check_vspipe() -> Iterator[Check]:
    """Whether vspipe starts: a fresh VapourSynth does not know its Python yet."""
    beside = Path(sys.executable).with_name("vspipe")
    found = str(beside) if beside.is_file() else shutil.which("vspipe")
    if found is None:
        yield Check("vspipe", "warn", "not found; `vs-deblur serve SCRIPT` does without it")
        return
    try:
        done = subprocess.run(
            [found, "--version"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Check("vspipe", "warn", f"does not start: {error}")
        return
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        hint = "a fresh VapourSynth wants `vapoursynth config` once; `vs-deblur serve` does not"
        yield Check("vspipe", "warn", f"does not start ({hint}): {said}")
    else:
        yield Check("vspipe", "ok", found)


CHECKS: dict[str, Callable[[], Iterator[Check]]] = {
    "versions": check_versions,
    "devices": check_devices,
    "kernels": check_kernels,
    "models": check_weights,
    "self-test": check_engine,
    "self-test photos": check_photos,
    "filter": check_filter,
    "vspipe": check_vspipe,
}


def examine() -> Iterator[Check]:
    """Every check; one that raises is a failure, and the others go on."""
    for name, check in CHECKS.items():
        try:
            yield from check()
        except Exception as error:  # a doctor that dies of the disease is of no use
            yield _failed(name, error)


def verdict(checks: list[Check]) -> int:
    """The exit code: 0, else weights before device before anything else."""
    codes = {c.exit_code for c in checks if c.status == "fail"}
    for code in (WeightsError.exit_code, DeviceError.exit_code):
        if code in codes:
            return code
    return EngineError.exit_code if codes else 0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Show versions and devices, what is used and why, and whether it works.

    Ends with 0 if all is well, 5 if weights are damaged, 6 if a device fails, 1 for other failures.
    """
    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            tell(f"{check.status:4}  {check.name}: {check.detail}")
            sys.stdout.flush()
    code = verdict(checks)
    if as_json:
        rows = [{k: v for k, v in asdict(c).items() if k != "exit_code"} for c in checks]
        tell_json({"checks": rows, "exit_code": code})
    context.exit(code)
