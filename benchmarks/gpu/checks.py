"""What must hold on a device before a time means anything.

Each check yields an :class:`Outcome`: passed, failed, or not run and why. A check that raises has
failed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.gpu.problems import Inputs, Problem, Size, kernels, short
from vs_deblur_kernels import dtb, dtb_conv, planes, resblock, resblock5, skip
from vs_deblur_kernels._compile import Backend, Kernel
from vs_deblur_kernels.dispatch import Operation

SMALL = (1, 17, 19)
LAUNCHED = "launched all problems"
TOOLS = ("memcheck", "racecheck", "synccheck")
_FOUND = 86  # what the sanitizer ends with where it found something


@dataclass(frozen=True)
class Outcome:
    """What a check gave.

    Attributes:
        name: of the check and what was checked.
        passed: None where it could not be run.
        detail: what was found, or why it did not run.
    """

    name: str
    passed: bool | None
    detail: str = ""

    @property
    def verdict(self) -> str:
        """In words."""
        return {True: "passed", False: "FAILED", None: "not run"}[self.passed]


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return f"{type(error).__name__}: " + (str(error).strip().splitlines() or [""])[0][:300]


def guarded(name: str, check: Callable[[], Outcome]) -> Outcome:
    """Run a check; what it raises is a failure."""
    try:
        with torch.no_grad():
            return check()
    except Exception as error:
        return Outcome(name, False, first_line(error))


# ---------------------------------------------------------------------------------- the error rule


def errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Root mean square and largest error; infinite where something is NaN."""
    difference = (found.double() - exact.to(found.device)).nan_to_num(
        torch.inf, torch.inf, torch.inf
    )
    return difference.square().mean().sqrt().item(), difference.abs().max().item()


def as_good(found: Tensor, plain: Tensor, exact: Tensor) -> tuple[bool, float]:
    """The rule: at most twice plain torch's error, half a unit in the last place allowed for.

    Returns:
        whether it holds, and the larger of the two errors' ratios to what is allowed.
    """
    unit = torch.finfo(plain.dtype).eps * exact.abs().max().item()
    worst = 0.0
    for ours, theirs in zip(errors(found, exact), errors(plain, exact), strict=True):
        allowed = 2 * theirs + unit / 2
        worst = max(worst, ours / allowed if allowed else (0.0 if not ours else torch.inf))
    return worst <= 1.0, worst


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    first, second = (t.cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(first, second)


def poison(like: Tensor) -> None:
    """Leave NaN in memory that an allocation of this size is likely to get."""
    waste = [
        torch.full((like.nbytes,), 255, dtype=torch.uint8, device=like.device) for _ in range(3)
    ]
    del waste


def judge(problem: Problem, found: Tensor, plain: Tensor, inputs: Inputs) -> tuple[bool, float]:
    """Whether a kernel's result is right, and its error in units of what is allowed."""
    assert found.dtype == plain.dtype, f"{found.dtype}, not {plain.dtype}"
    assert found.shape == plain.shape, f"{tuple(found.shape)}, not {tuple(plain.shape)}"
    if problem.rule == "close":
        ours, theirs = found.cpu().double(), plain.cpu().double()
        worst = (ours - theirs).nan_to_num(torch.inf).abs().max().item()
        return worst <= problem.tolerance, worst / problem.tolerance
    # Small sizes exactly as the tests do it: on the CPU, independent of the device.
    small = inputs[0].numel() <= 1 << 22
    exact_inputs = [(t.cpu() if small else t).double() for t in inputs]
    exact = problem.plain(exact_inputs)
    return as_good(found.to(exact.device), plain.to(exact.device), exact)


def error_rule(device: Device, problem: Problem, sizes: Sequence[Size]) -> Outcome:
    """The error rule at all sizes; the same bits when launched again, on poisoned memory."""
    backend, worst, where = device.backend(), 0.0, ""
    sizes = [s for s in sizes if s[0] == 1 or not problem.is_single]
    for seed, size in enumerate(sizes):
        inputs = problem.inputs(device.device, size, seed)
        plain = problem.plain(inputs)
        results = []
        for _ in range(3):
            poison(plain)
            results.append(problem.launch(backend, inputs))
        good, ratio = judge(problem, results[0], plain, inputs)
        at = "x".join(map(str, size))
        if not good:
            return Outcome(problem.title, False, f"{ratio:.3g} times the error allowed at {at}")
        if not all(same(results[0], r) for r in results[1:]):
            return Outcome(problem.title, False, f"other bits when launched again, at {at}")
        if ratio >= worst:
            worst, where = ratio, at
    return Outcome(
        problem.title,
        True,
        f"{len(sizes)} sizes, at most {worst:.2f} of the error allowed ({where})",
    )


# -------------------------------------------------------------------------- proofs of their own


def operations() -> dict[str, tuple[Operation, list[torch.dtype]]]:
    """The operations and the types that they prove themselves for."""
    return {
        "dtb": (dtb.operation, list(dtb.TYPES)),
        "dtb_conv": (dtb_conv.operation, list(dtb_conv.TYPES)),
        "skip": (skip.operation, list(skip.TYPES)),
        "resblock": (resblock.operation, list(resblock.TYPES)),
        "resblock5": (resblock5.operation, list(resblock5.TYPES)),
        "planes": (planes.operation, list(planes.SAMPLES)),
    }


def own_check(device: Device, operation: Operation, dtype: torch.dtype, title: str) -> Outcome:
    """The check that an operation makes before it is used with a type."""
    with kernels("cupy"):
        operation.check(device.backend(), device.device, dtype)
    return Outcome(title, True)


def own_checks(device: Device, types: Sequence[torch.dtype]) -> Iterator[Outcome]:
    """The checks of all operations that are for the device."""
    for name, (operation, known) in operations().items():
        if operation.only not in (None, device.backend().capability(device.device)):
            continue
        for dtype in known:
            if dtype.is_floating_point and dtype not in (*types, torch.float32):
                continue
            title = f"own check of {name} {short(dtype)}"
            yield guarded(title, partial(own_check, device, operation, dtype, title))


# ---------------------------------------------------------------------------- streams and graphs


def stream_order(device: Device, problem: Problem, size: Size) -> Outcome:
    """On a side stream: after torch's work before it, before torch's work after it."""
    name = f"order on a side stream, {problem.title}"
    backend = device.backend()
    real = problem.inputs(device.device, size)
    expected = problem.launch(backend, real).clone()
    decoys = problem.inputs(device.device, size, seed=1)
    device.synchronize()
    with device.side_stream():
        work = [t.clone() for t in decoys]
        device.busy()
        for mine, theirs in zip(work, real, strict=True):
            mine.copy_(theirs)
        out = problem.ours(backend, work).clone()
        for mine, theirs in zip(work, decoys, strict=True):
            mine.copy_(theirs)
    device.synchronize()
    if not same(out, expected):
        return Outcome(name, False, "another result than on the default stream")
    return Outcome(name, True)


def stray_is_seen(device: Device, problem: Problem, size: Size) -> Outcome:
    """That the check above can fail: a launch in no order gives another result."""
    name = "the check of order can fail"
    backend = device.backend()
    real = problem.inputs(device.device, size)
    expected = problem.launch(backend, real).clone()
    work = problem.inputs(device.device, size, seed=1)
    device.synchronize()
    device.busy()
    for mine, theirs in zip(work, real, strict=True):
        mine.copy_(theirs)
    with device.stray_stream():
        out = problem.ours(backend, work)
    device.synchronize()
    if same(out, expected):
        return Outcome(name, None, "a launch on a stray stream came out right; no proof")
    return Outcome(name, True, "a launch on a stray stream is told")


def graph_replay(device: Device, problem: Problem) -> Outcome:
    """Captured, then replayed with other inputs: the bits of a plain launch."""
    name = f"graph of {problem.title}"
    backend = device.backend()
    static = problem.inputs(device.device, SMALL)
    weights = [t.clone() for t in static]
    captured = device.capture(lambda: problem.ours(backend, static))
    for seed in (1, 2, 3):
        fresh = problem.inputs(device.device, SMALL, seed)
        inputs = [fresh[i] if i in problem.changing else w for i, w in enumerate(weights)]
        for i in problem.changing:
            static[i].copy_(fresh[i])
        captured.replay()
        device.synchronize()
        found = captured.result.clone()
        if not same(found, problem.launch(backend, inputs)):
            return Outcome(name, False, f"another result than eager at replay {seed}")
    return Outcome(name, True, "3 replays with other inputs")


# ------------------------------------------------------------------------------- the emulation


def emulation(device: Device, problem: Problem, shim: Any) -> Outcome:
    """The kernel's text on the device and on the CPU (``tests/shim``), on the same inputs."""
    name = f"emulation of {problem.title}"
    inputs = problem.inputs(torch.device("cpu"), SMALL)
    there = problem.launch(device.backend(), [t.to(device.device) for t in inputs]).cpu()
    here = problem.launch(shim, inputs)
    good, _ = judge(problem, here, problem.plain(inputs), inputs)
    difference = (there.double() - here.double()).nan_to_num(torch.inf).abs()
    most, share = difference.max().item(), (difference == 0).double().mean().item()
    text = f"largest difference {most:.3g}"
    if problem.rule == "twice":
        unit = torch.finfo(problem.dtype).eps * here.double().abs().max().item()
        text += f" ({most / unit:.2g} units of the largest value)"
        good = good and most <= 2 * unit
    else:
        good = good and most <= problem.tolerance
    return Outcome(name, good, f"{text}, {share:.1%} the same")


def emulations(device: Device, problems: Iterable[Problem]) -> Iterator[Outcome]:
    """The emulation of all kernels that are wholly ours."""
    problems = [p for p in problems if p.is_ours]
    try:
        from tests.shim import Shim
    except ImportError:
        yield Outcome("emulation", None, "no tests/shim here")
        return
    if shutil.which("g++") is None:
        yield Outcome("emulation", None, "no g++")
        return
    with tempfile.TemporaryDirectory() as folder:
        shim = Shim(Path(folder))
        prebuild(problems, shim, shim.library)
        for problem in problems:
            check = partial(emulation, device, problem, shim)
            yield guarded(f"emulation of {problem.title}", check)


def take_on_trust(device: torch.device) -> None:
    """Operations do without their own check on a device."""
    for operation, types in operations().values():
        for dtype in types:
            operation.found[device, dtype] = None


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Operations on the CPU do without their own check, and forget that afterwards."""
    known = {name: dict(operation.found) for name, (operation, _) in operations().items()}
    take_on_trust(torch.device("cpu"))
    try:
        yield
    finally:
        for name, (operation, _) in operations().items():
            operation.found.clear()
            operation.found.update(known[name])


@dataclass
class _Collector:
    """A backend that launches nothing and notes the kernels."""

    like: Backend
    found: list[Kernel]

    def capability(self, device: torch.device) -> tuple[int, int]:
        return self.like.capability(device)

    def most_shared(self, device: torch.device) -> int:
        return self.like.most_shared(device)

    def launch(self, kernel: Kernel, grid: Any, block: Any, arguments: Any) -> None:
        self.found.append(kernel)


def prebuild(problems: Iterable[Problem], like: Backend, build: Callable[[Kernel], object]) -> None:
    """Compile what problems launch, several at once; what fails, fails again when launched."""
    collector = _Collector(like, [])
    with undisturbed(), torch.no_grad():
        for problem in problems:
            with contextlib.suppress(Exception):
                problem.launch(collector, problem.inputs(torch.device("cpu"), (1, 8, 8)))

    def quietly(kernel: Kernel) -> None:
        with contextlib.suppress(Exception):
            build(kernel)

    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool:
        list(pool.map(quietly, dict.fromkeys(collector.found)))


# ------------------------------------------------------------------------------- the sanitizer


def find_sanitizer() -> str | None:
    """Where ``compute-sanitizer`` is: on the path, in CUDA's folders, or in its wheels."""
    folders = [os.environ.get(n, "") for n in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    places = [Path(f) / sub for f in folders if f for sub in ("bin", "compute-sanitizer")]
    found = shutil.which("compute-sanitizer")
    found = found or shutil.which("compute-sanitizer", path=os.pathsep.join(map(str, places)))
    if found is None:
        spec = importlib.util.find_spec("nvidia")
        for folder in (spec.submodule_search_locations if spec else None) or ():
            for path in sorted(Path(folder).rglob("compute-sanitizer")):
                if path.is_file() and os.access(path, os.X_OK):
                    return str(path)
    return found


@dataclass
class Sanitizing:
    """The tools of the sanitizer at work, each in a process of its own.

    Attributes:
        running: by tool: the process, and the file that its output goes to.
    """

    running: dict[str, tuple[subprocess.Popen[bytes], Path]]
    folder: Path


def start_sanitizer(program: str, command: Sequence[str]) -> Sanitizing:
    """Start all tools on a program that launches the kernels at small sizes."""
    folder = Path(tempfile.mkdtemp())
    # Every tensor an allocation of its own, so that what lies beyond it belongs to nobody.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    running = {}
    for tool in TOOLS:
        path = folder / f"{tool}.log"
        arguments = [program, "--tool", tool, "--error-exitcode", str(_FOUND)]
        # torch asks the driver for what it may not have; that is no fault of a kernel.
        arguments += ["--report-api-errors", "no", "--target-processes", "all"]
        with path.open("wb") as log:
            process = subprocess.Popen(
                [*arguments, *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        running[tool] = (process, path)
    return Sanitizing(running, folder)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started in a session of its own, and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_sanitizer(tool: str, code: int, text: str) -> Outcome:
    """What a tool found."""
    name = f"compute-sanitizer {tool}"
    lines = [line.removeprefix("=========").strip() for line in text.splitlines()]
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), "")
    counts = [int(word) for word in summary.replace("(", " ").split() if word.isdigit()]
    is_unsupported = "not supported" in text and LAUNCHED not in text
    if any(counts) and not is_unsupported:
        faults = [ln for ln in lines if re.search(r"^at |Invalid|Misaligned|Race|Barrier", ln)]
        return Outcome(name, False, "; ".join([summary, *(f[:160] for f in faults[:2])]))
    if code == 0 and LAUNCHED in text and counts:
        return Outcome(name, True, summary)
    last = next((line for line in reversed(lines) if line), "no output")
    return Outcome(name, None, f"it did not run to its end (code {code}): {last[:200]}")


def finish_sanitizer(sanitizing: Sanitizing, seconds: float) -> Iterator[Outcome]:
    """Wait for all tools, this long altogether, and say what they found."""
    until = time.monotonic() + seconds
    for tool, (process, path) in sanitizing.running.items():
        try:
            process.wait(max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            end(process)
            yield Outcome(f"compute-sanitizer {tool}", None, f"not done in {seconds:.0f} s")
            continue
        yield read_sanitizer(tool, process.returncode, path.read_text(errors="replace"))
    shutil.rmtree(sanitizing.folder, ignore_errors=True)


def launch_small(device: Device, problems: Iterable[Problem]) -> None:
    """What the sanitizer watches: every kernel once, with as little of torch as can be."""
    backend = device.backend()
    count = 0
    with torch.no_grad():
        for problem in problems:
            if problem.kind != "library":
                problem.ours(backend, problem.inputs(device.device, SMALL)).cpu()
                count += 1
    device.synchronize()
    print(f"{count} problems: {LAUNCHED}", flush=True)


# ---------------------------------------------------------------------------------- all of them


def run_checks(
    device: Device,
    problems: Sequence[Problem],
    sizes: Sequence[Size],
    *,
    large: Size | None,
    sanitizer: Sequence[str] | None,
    patience: float = 100.0,
) -> Iterator[Outcome]:
    """All checks, in the order of their use: what comes first explains what fails later.

    Args:
        device: where.
        problems: what is checked.
        sizes: at which; the last is the largest.
        large: one more, for 64 channels in float16.
        sanitizer: the command that launches the kernels at small sizes, for the sanitizer; None to
            leave it out.
        patience: seconds to wait for the sanitizer.
    """
    prebuild([p for p in problems if p.is_ours], device.backend(), device.compile_kernel)
    types = sorted({p.dtype for p in problems}, key=str)
    yield from own_checks(device, types)
    for problem in problems:
        is_main = large is not None and problem.dtype == torch.float16 and " 64" in problem.name
        its_sizes = [*sizes, large] if large is not None and is_main else sizes
        yield guarded(problem.title, partial(error_rule, device, problem, its_sizes))
    halves_first = sorted(problems, key=lambda p: p.dtype != torch.float16)
    some = {p.kind: p for p in reversed(halves_first)}  # the first of each kind
    for problem in some.values():
        yield guarded(
            f"order on a side stream, {problem.title}",
            partial(stream_order, device, problem, sizes[-1]),
        )
        yield guarded(f"graph of {problem.title}", partial(graph_replay, device, problem))
    name = "the check of order can fail"
    yield guarded(name, partial(stray_is_seen, device, halves_first[0], sizes[-1]))
    sanitizing, program = None, find_sanitizer()
    if sanitizer is None:
        yield Outcome("compute-sanitizer", None, "left out")
    elif program is None:
        yield Outcome("compute-sanitizer", None, "not found")
    else:
        sanitizing = start_sanitizer(program, sanitizer)
    try:
        yield from emulations(device, problems)
        if sanitizing is not None:
            yield from finish_sanitizer(sanitizing, patience)
    finally:
        for process, _ in sanitizing.running.values() if sanitizing is not None else ():
            if process.poll() is None:
                end(process)
