"""What is timed: peaks of the device, networks, kernels, frames from and to their own format."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu import paths as ways
from benchmarks.gpu import xla
from benchmarks.gpu.checks import as_good, first_line, judge
from benchmarks.gpu.device import Device, Run
from benchmarks.gpu.paths import Clip, Path, Prepared, lively, replaying
from benchmarks.gpu.problems import (
    FORMATS,
    HALVES,
    RAGGED,
    Inputs,
    Problem,
    Size,
    adding,
    blended_convolving,
    blending,
    blends_convolved,
    chosen,
    composed,
    fits,
    kernels,
    last,
    packed_frame,
    residual,
    residual_as_chosen,
    short,
    skipping,
    stacking,
    traffic,
    with_blend,
    with_epilogue,
)
from benchmarks.gpu.results import Results
from vs_deblur_kernels.pixels import PixelFormat
from vs_deblur_kernels.planes import add, pack, stack, unpack
from vs_deblur_kernels.reference import add_rgb, pad_to, to_rgb
from vs_deblur_models.registry import build_network, save_network
from vs_deblur_models.spec import State, step_of

LEAST = 5
"""Rounds that are timed whatever they take."""


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        label: name of these settings in the results.
        main: width and height that matter most.
        others: the other sizes.
        widths: of residual blocks.
        halves: 16-bit types.
        rounds: how often a row is timed.
        seconds: after which a group of rows is timed no more (but :data:`LEAST` times).
        copies: sets of inputs of a kernel.
        matmul: sides of square matrices.
        copy_bytes: sizes of copies.
        frames: timed end to end.
        checked: images, heights and widths that kernels are checked at.
        large: one more, half a frame; None without.
    """

    label: str = "full"
    main: tuple[int, int] = (1280, 720)
    others: tuple[tuple[int, int], ...] = ((640, 480), (1920, 1080))
    widths: tuple[int, ...] = (32, 48, 64, 80, 128)
    halves: tuple[torch.dtype, ...] = HALVES
    rounds: int = 40
    seconds: float = 12.0
    copies: int = 4
    matmul: tuple[int, ...] = (4096, 8192, 12288)
    copy_bytes: tuple[int, ...] = (512 << 20, 1 << 30)
    frames: int = 120
    checked: tuple[Size, ...] = RAGGED
    large: Size | None = (1, 360, 640)


QUICK = Options("quick", rounds=8, seconds=3.0, matmul=(8192,), frames=40, large=None)


@dataclass
class Session:
    """One measurement.

    Attributes:
        device: what is measured.
        results: where rows go.
        options: how much.
        wrong: kernels that failed a check, by the name of their problem's kind.
    """

    device: Device
    results: Results
    options: Options
    wrong: set[str] = field(default_factory=set)

    def peak(self, subject: str, name: str) -> float | None:
        """A measured peak."""
        row = self.results.find(kind="peak", subject=subject)
        return float(row[name]) if row is not None and row[name] else None


@dataclass
class Timed:
    """Something to be timed.

    Attributes:
        run: it.
        settings: what must hold meanwhile.
        times: what was measured, ms.
        note: why it was given up.
    """

    run: Run
    settings: Callable[[], contextlib.AbstractContextManager[Any]]
    times: list[float] = field(default_factory=list)
    note: str = ""


def interleave(device: Device, timed: Sequence[Timed], rounds: int, seconds: float) -> None:
    """Time all in turn, round by round, each round in another order: clocks and neighbours hit all.

    The first two rounds warm up.
    """
    begin = device.clock()
    for r in range(rounds + 2):
        if r >= LEAST + 2 and device.clock() - begin > seconds:
            break
        turn = r % max(len(timed), 1)
        for one in [*timed[turn:], *timed[:turn]]:
            if one.note:
                continue
            try:
                with one.settings():
                    took = device.milliseconds(one.run)
            except Exception as error:
                one.note = first_line(error)
                continue
            if r >= 2:
                one.times.append(took)


def quantiles(times: Sequence[float], calls: int = 1) -> dict[str, Any]:
    """20th, 50th and 80th percentile of times, for one of several calls."""
    if not times:
        return {}
    low, middle, high = (float(np.percentile(times, p)) / calls for p in (20, 50, 80))
    return {"ms_p20": low, "ms_p50": middle, "ms_p80": high, "repeats": len(times)}


def middle(one: Timed | None) -> float | None:
    """The median time, ms."""
    return statistics.median(one.times) if one is not None and one.times else None


def speed(
    session: Session,
    dtype: str,
    one: Timed | None,
    eager: float | None,
    *,
    calls: int = 1,
    flops: float = 0.0,
    moved: float = 0.0,
    is_frame: bool = False,
) -> dict[str, Any]:
    """The numbers of a row.

    Args:
        session: the measurement.
        dtype: type of the matrix product to compare with.
        one: what was timed.
        eager: what torch eager takes for the same, ms.
        calls: in a run.
        flops: of a call.
        moved: bytes of a call.
        is_frame: whether a call is a frame.
    """
    values = quantiles(one.times if one is not None else (), calls)
    if not values:
        return {}
    took = values["ms_p50"]
    if is_frame:
        values["fps"] = 1e3 / took
    if flops:
        values["tflops"] = flops / took / 1e9
    if moved:
        values["gbps"] = moved / took / 1e6
    if eager is not None:
        values["times_eager"] = eager / took
    return values | shares(session, dtype, values)


def add_row(session: Session, one: Timed | None, verdict: str, note: str, **values: Any) -> None:
    """Put a row into the results; one that could not be timed has failed."""
    if one is not None and one.note:
        verdict, note = "failed", one.note
    session.results.add(verdict=verdict, note=note, **values)


def text(size: tuple[int, int]) -> str:
    """Width and height as WIDTHxHEIGHT."""
    return f"{size[0]}x{size[1]}"


# ------------------------------------------------------------------------------------------ peaks


def peaks(session: Session) -> None:
    """The fastest matrix product of each type, and the fastest copy."""
    device, options = session.device, session.options
    for dtype in options.halves:
        subject = f"matmul {short(dtype)}"
        if session.results.has(kind="peak", subject=subject):
            continue
        timed = {}
        for n in options.matmul:
            a, b = (torch.randn((n, n), device=device.device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            timed[n] = Timed(partial(_product, a, b, out), torch.no_grad)
        interleave(device, list(timed.values()), options.rounds, options.seconds)
        rates = {n: 2e-9 * n**3 / statistics.median(t.times) for n, t in timed.items() if t.times}
        n = max(rates, key=rates.__getitem__)
        values = quantiles(timed[n].times)
        session.results.add(
            kind="peak",
            subject=subject,
            dtype=short(dtype),
            tflops=rates[n],
            note=f"{n} x {n}",
            **values,
        )
        del timed
        device.free()
    if session.results.has(kind="peak", subject="copy"):
        return
    copies = {}
    for size in options.copy_bytes:
        source = torch.ones(size, dtype=torch.uint8, device=device.device)
        copies[size] = Timed(partial(torch.empty_like(source).copy_, source), torch.no_grad)
    interleave(device, list(copies.values()), options.rounds, options.seconds)
    rates = {n: 2e-6 * n / statistics.median(t.times) for n, t in copies.items() if t.times}
    n = max(rates, key=rates.__getitem__)
    values = quantiles(copies[n].times)
    note = f"{n >> 20} MB read and written"
    session.results.add(kind="peak", subject="copy", gbps=rates[n], note=note, **values)
    del copies
    device.free()


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    torch.mm(a, b, out=out)


def shares(session: Session, dtype: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What share of the measured peaks a row reaches."""
    found = {}
    product, copied = session.peak(f"matmul {dtype}", "tflops"), session.peak("copy", "gbps")
    if product and values.get("tflops"):
        found["of_matmul"] = values["tflops"] / product
    if copied and values.get("gbps"):
        found["of_copy"] = values["gbps"] / copied
    return found


# --------------------------------------------------------------------------------------- networks


def padded(network: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which a network runs a frame of a width and height."""
    spec = network.spec
    rows, columns = spec.multiple_of, spec.width_multiple_of or spec.multiple_of
    return -(-size[1] // rows) * rows, -(-size[0] // columns) * columns


def network(
    session: Session,
    subject: str,
    size: tuple[int, int],
    wanted: Mapping[torch.dtype, Sequence[Path]],
    anchors: Sequence[Path] = (),
) -> None:
    """Rows of a network at a size: all paths and types in turn.

    Args:
        session: the measurement.
        subject: name of the network.
        size: width and height of the frame.
        wanted: paths by type.
        anchors: paths that are timed too, for the ratio, but make no rows (they have theirs).
    """
    device, results = session.device, session.results
    made: Any = lively(build_network(subject))
    prepared: list[tuple[torch.dtype, Prepared, bool]] = []
    for dtype, its_paths in wanted.items():
        key = {"kind": "network", "subject": subject, "size": text(size), "dtype": short(dtype)}
        missing = [
            path
            for path in its_paths
            if not all(results.has(path=path.label(g), **key) for g in path.graphs)
        ]
        if not missing:
            continue
        clip = Clip(device, made, padded(made, size), dtype)
        eager = Path(ways.EAGER, graphs=(False,))
        extra = [p for p in (anchors or (eager,)) if p.name not in {m.name for m in missing}]
        for path, is_row in [*((p, False) for p in extra), *((p, True) for p in missing)]:
            for row in clip.prepare(path):
                is_new = is_row and not results.has(path=row.label, **key)
                prepared.append((dtype, row, is_new))
                if row.verdict == "failed":
                    print(f"  {row.label} {short(dtype)}: {row.note}", flush=True)
    timed = {
        i: Timed(row.run, row.path.settings)
        for i, (_, row, _) in enumerate(prepared)
        if row.run is not None and row.verdict != "failed"
    }
    interleave(device, list(timed.values()), session.options.rounds, session.options.seconds)
    first = {
        dtype: middle(timed[i])
        for i, (dtype, row, _) in enumerate(prepared)
        if i in timed and row.label == ways.EAGER
    }
    for i, (dtype, row, is_new) in enumerate(prepared):
        if is_new:
            one = timed.get(i)
            add_network_row(session, made, subject, size, dtype, row, one, first.get(dtype))
    del prepared, timed
    device.free()


def add_network_row(
    session: Session,
    made: Any,
    subject: str,
    size: tuple[int, int],
    dtype: torch.dtype,
    row: Prepared,
    one: Timed | None,
    eager: float | None,
) -> None:
    """Put a row of a network into the results; one with a kernel that failed a check is wrong."""
    verdict, note = row.verdict, row.note
    if row.path.kernels != "reference" and not row.launched and verdict == "right":
        verdict, note = "wrong", "no kernel was launched"
    used = session.wrong & set(row.launched.split(", "))
    if used and verdict == "right":
        verdict, note = "wrong", f"{', '.join(sorted(used))} failed a check"
    flops = made.spec.flops_per_pixel * size[0] * size[1]
    values = speed(session, short(dtype), one, eager, flops=flops, is_frame=True)
    add_row(
        session,
        one,
        verdict,
        note,
        kind="network",
        subject=subject,
        path=row.label,
        size=text(size),
        dtype=short(dtype),
        error_rms=row.error[0],
        error_max=row.error[1],
        plain_rms=row.plain[0],
        plain_max=row.plain[1],
        launched=row.launched,
        seconds=row.seconds,
        **values,
    )


def in_jax(session: Session, size: tuple[int, int], platform: str = "gpu") -> None:
    """STRCNN+DTB by JAX/XLA: frames in a row on the host's clock, and torch's the same way."""
    device, subject = session.device, "strcnn_dtb"
    why = xla.missing(platform)
    if why is not None:
        print(f"  {ways.JAX}: {why}", flush=True)
        return
    made: Any = lively(build_network(subject))
    for dtype in session.options.halves:
        if session.results.has(
            kind="network", subject=subject, path=ways.JAX, size=text(size), dtype=short(dtype)
        ):
            continue
        row, one, first = Prepared(ways.JAX, Path(ways.JAX), False), None, None
        begin = device.clock()
        try:
            clip = Clip(device, made, padded(made, size), dtype)
            step = xla.strcnn_step(made, dtype)
            frames = partial(_in_jax, step, xla.to_jax(clip.windows[0]), _jax_state(clip, dtype))
            row.error, row.plain = _jax_errors(clip, step, dtype), clip.plain
            row.verdict = "right" if ways.is_within(row, dtype) else "wrong"
            row.seconds = device.clock() - begin
            beside = {
                r.label: Timed(partial(_several, r.run), r.path.settings)
                for p in ways.ANCHORS
                for r in clip.prepare(p)
                if r.run is not None
            }
            one = Timed(frames, contextlib.nullcontext)
            in_a_row(device, [one, *beside.values()], session.options.rounds)
            first = middle(beside.get(ways.EAGER))
            others = ", ".join(f"{label} {middle(t):.4g}" for label, t in beside.items())
            row.note = f"frames in a row, caches warm, host's clock; the same way: {others}"
        except Exception as error:
            row.verdict, row.note = "failed", first_line(error)
        add_network_row(session, made, subject, size, dtype, row, one, first)
        device.free()


IN_A_ROW = 20
"""Frames without a pause."""


def _jax_state(clip: Clip, dtype: torch.dtype) -> list[Any]:
    jnp = importlib.import_module("jax.numpy")
    half = {torch.float16: jnp.float16, torch.bfloat16: jnp.bfloat16}[dtype]
    return [xla.to_jax(s).astype(half) for s in clip.start]


def _jax_errors(clip: Clip, step: xla.Step, dtype: torch.dtype) -> tuple[float, float]:
    state, found = _jax_state(clip, dtype), []
    for window in clip.windows:
        sharp, *state = step(xla.to_jax(window), state[0], state[1])
        found += [xla.to_torch(a).to(clip.device.device) for a in (sharp, *state)]
    return ways.relative_errors(found, clip.exact)


def _in_jax(step: xla.Step, window: Any, state: Sequence[Any]) -> None:
    for _ in range(IN_A_ROW):
        _, *state = step(window, state[0], state[1])
    state[1].block_until_ready()


def _several(run: Run) -> None:
    for _ in range(IN_A_ROW):
        run()


def in_a_row(device: Device, timed: Sequence[Timed], rounds: int) -> None:
    """Milliseconds a frame of several frames without a pause, on the host's clock, in turn."""
    for r in range(rounds + 1):
        for one in timed:
            with one.settings():
                begin = device.clock()
                one.run()
                device.synchronize()
                took = (device.clock() - begin) * 1e3 / IN_A_ROW
            if r:
                one.times.append(took)


# ---------------------------------------------------------------------------------------- kernels

KERNEL_SETTINGS = Path("kernels", "cupy")


def kernel(
    session: Session,
    problem: Problem,
    subject: str,
    size: tuple[int, int],
    others: Mapping[str, Callable[[Inputs], Tensor]],
    *,
    name: str = "kernel",
    more: Sequence[tuple[str, Problem]] = (),
    is_wide: bool = True,
) -> None:
    """Rows of one kernel: torch eager in both memory formats, other ways, the kernel.

    Args:
        session: the measurement.
        problem: the kernel.
        subject: name of the rows' subject.
        size: width and height of the features, or of the frame.
        others: other ways to compute the same, by name.
        name: of the kernel's row.
        more: other kernels for the same, by name.
        is_wide: whether the inputs have memory formats.
    """
    device, options, results = session.device, session.options, session.results
    key = {"kind": "kernel", "subject": subject, "size": text(size), "dtype": short(problem.dtype)}
    backend = device.backend()
    ways_: dict[str, tuple[Callable[[Inputs], Tensor], bool]] = {}
    kinds: dict[str, str] = {}
    if is_wide:
        ways_["torch eager NCHW"] = (problem.plain, False)
    ways_[ways.EAGER] = (problem.plain, True)
    ways_ |= {label: (other, True) for label, other in others.items()}
    for label, ours in ((name, problem), *more):
        ways_[label] = (partial(ours.ours, backend), True)
        kinds[label] = ours.kind
    if all(results.has(path=label, **key) for label in ways_):
        return
    shape = (1, size[1], size[0])
    sets = [problem.inputs(device.device, shape, seed) for seed in range(options.copies)]
    with ways.FLOAT32.settings():
        wide = [t.float() if t.is_floating_point() else t for t in sets[0]]
        exact = problem.plain(wide).clone()
        plain = problem.plain(sets[0]).clone()
    moved = traffic([sets[0][i] for i in problem.changing], plain)
    flops = problem.flops(sets[0])
    timed: dict[str, Timed] = {}
    verdicts: dict[str, str] = {}
    notes: dict[str, str] = {}
    for label, (way, is_last) in ways_.items():
        try:
            own = [_arranged(inputs, is_last) for inputs in sets]
            fresh = _fresh(problem, own[0])
            with KERNEL_SETTINGS.settings():
                found = way(fresh).clone()
                if problem.rule == "twice":
                    good, ratio = as_good(found, plain, exact.double())
                else:
                    good, ratio = judge(problem, found, plain, own[0])
                run = partial(_all, way, own)
                timed[label] = Timed(replaying(device.capture(run)), KERNEL_SETTINGS.settings)
            verdicts[label] = "right" if good else "wrong"
            notes[label] = f"{ratio:.2f} of the error allowed"
        except Exception as error:
            verdicts[label], notes[label] = "failed", first_line(error)
    interleave(device, list(timed.values()), options.rounds, options.seconds)
    first = middle(timed.get(ways.EAGER))
    for label in ways_:
        if results.has(path=label, **key):
            continue
        one = timed.get(label)
        values = speed(
            session,
            short(problem.dtype),
            one,
            None if first is None else first / options.copies,
            calls=options.copies,
            flops=flops,
            moved=moved,
        )
        verdict, note = verdicts[label], notes[label]
        if kinds.get(label) in session.wrong and verdict == "right":
            verdict, note = "wrong", f"{kinds[label]} failed a check"
        add_row(session, one, verdict, note, path=label, **key, **values)
    del timed, sets
    device.free()


def _arranged(inputs: Inputs, is_last: bool) -> Inputs:
    """Inputs of their own, in a memory format."""
    order = last if is_last else Tensor.contiguous
    return [order(t.clone()) if t.ndim == 4 else t.clone() for t in inputs]


def _fresh(problem: Problem, inputs: Inputs) -> Inputs:
    return [inputs[0].clone(), *inputs[1:]] if problem.in_place else inputs


def _all(way: Callable[[Inputs], Tensor], sets: Sequence[Inputs]) -> list[Tensor]:
    return [way(inputs) for inputs in sets]


def blend_and_skip(session: Session, size: tuple[int, int]) -> None:
    """The two that are bound by memory, at half the frame's size."""
    half = (size[0] // 2, size[1] // 2)
    for dtype in session.options.halves:
        for problem in (blending(64, dtype), skipping(64, dtype)):
            compiled = session.device.compile(problem.plain, "default")
            kernel(session, problem, problem.name, half, {ways.COMPILE: compiled})


def convolved_blend(session: Session, size: tuple[int, int]) -> None:
    """The blend with its own convolution, at half the frame's size."""
    device = session.device
    backend = device.backend()
    if not blends_convolved(backend, device.device):
        print("  dtb_conv: not for this device", flush=True)
        return
    for dtype in session.options.halves:
        problem = blended_convolving(dtype)
        others: dict[str, Callable[[Inputs], Tensor]] = {
            "the library and the kernel dtb": partial(with_blend, backend),
            ways.COMPILE: device.compile(problem.plain, "default"),
        }
        kernel(session, problem, problem.name, (size[0] // 2, size[1] // 2), others)


def blocks(session: Session, size: tuple[int, int], widths: Sequence[int]) -> None:
    """Residual blocks with 3x3 convolutions, at the sizes where the networks have them."""
    device = session.device
    backend = device.backend()
    for channels in widths:
        # 32: DMPHN at full size; 48 and 80: the light network; 128: DMPHN at a quarter.
        by = {32: 1, 48: 4, 64: 2, 80: 8, 128: 4}[channels]
        there = (size[0] // by, size[1] // by)
        for dtype in session.options.halves:
            subject = f"resblock {channels} 3x3"
            others: dict[str, Callable[[Inputs], Tensor]] = {ways.LIBRARY: with_epilogue}
            library = composed(channels, 3, dtype)
            others["the library and the kernel skip"] = partial(library.ours, backend)
            if not fits(backend, device.device, channels, dtype):
                print(f"  {subject} {short(dtype)}: the kernel does not fit this device")
                continue
            source = chosen(backend, device.device, channels, dtype)
            more = []
            if source is not None:
                more.append((f"kernel {source}", residual_as_chosen(channels, dtype, source)))
            kernel(session, residual(channels, dtype), subject, there, others, more=more)


def large_blocks(session: Session, size: tuple[int, int]) -> None:
    """Residual blocks with 5x5 convolutions, by the library."""
    half = (size[0] // 2, size[1] // 2)
    for dtype in session.options.halves[:1]:
        problem = composed(64, 5, dtype)
        name = "the library and the kernel skip"
        others = {ways.LIBRARY: with_epilogue}
        kernel(session, problem, "resblock 64 5x5", half, others, name=name)


def planes(session: Session, size: tuple[int, int]) -> None:
    """Frames to network input and back."""
    for dtype in session.options.halves[:1]:
        for name in ("yuv420p8", "rgb24"):
            for problem in (stacking(name, dtype), adding(name, dtype)):
                kernel(session, problem, problem.name, size, {}, is_wide=False)


# ----------------------------------------------------------------------------------------- frames

CONVERTED = "strcnn_dtb with conversion"


@dataclass
class Conversion:
    """Three frames of YUV420P8 on a device, and how the middle one is deblurred.

    Attributes:
        size: width and height.
        padded: height and width of what the network sees.
        frames: packed, each one tensor.
        dtype: of what the network sees.
    """

    size: tuple[int, int]
    padded: tuple[int, int]
    frames: list[Tensor]
    dtype: torch.dtype
    fmt: PixelFormat = FORMATS["yuv420p8"]

    def by_torch(self, step: ways.Step, state: State) -> Tensor:
        """A frame by the reference's conversions."""
        width, height = self.size
        planes = [unpack(f, self.fmt, height, width) for f in self.frames]
        seen = [to_rgb(p, self.fmt)[0] for p in planes]
        window = pad_to(torch.cat(seen, dim=1), *self.padded)
        sharp, _ = step(last(window), state)
        change = sharp[..., :height, :width].float().clamp(0.0, 1.0) - seen[1]
        return pack(add_rgb(planes[1], self.fmt, change))

    def by_kernels(self, step: ways.Step, state: State) -> Tensor:
        """A frame by ``planes``."""
        width, height = self.size
        size = (self.fmt, height, width)
        window, _ = stack(self.frames, *size, self.padded, self.dtype)
        sharp, _ = step(window, state)
        return add(self.frames[1], *size, sharp, 1.0, self.dtype)[0]


def converted(session: Session, size: tuple[int, int]) -> None:
    """A frame of YUV420P8 on the device to a frame of YUV420P8 on the device."""
    device, results, dtype = session.device, session.results, torch.float16
    key = {"kind": "frames", "subject": CONVERTED, "size": text(size), "dtype": short(dtype)}
    made: Any = lively(build_network("strcnn_dtb"))
    generator = torch.Generator().manual_seed(3)
    frames = [packed_frame(generator, FORMATS["yuv420p8"], size[1], size[0]) for _ in range(3)]
    frames = [f.to(device.device) for f in frames]
    conversion = Conversion(size, padded(made, size), frames, dtype)
    eager = f"{ways.EAGER}, conversion in torch"
    wanted = [(Path(ways.EAGER), eager, conversion.by_torch)]
    wanted += [(p, f"{p.name} and planes", conversion.by_kernels) for p in ways.KERNELS[:2]]
    labels = [name + (", graph" if g else "") for path, name, _ in wanted for g in path.graphs]
    if all(results.has(path=label, **key) for label in labels):
        return
    clip = Clip(device, made, conversion.padded, dtype)
    whole = partial(step_of, copy.deepcopy(made).to(device.device))
    with ways.FLOAT32.settings():
        exact = conversion.by_torch(whole, clip.start).float()
    del whole
    timed: dict[str, Timed] = {}
    verdicts: dict[str, tuple[str, str]] = {}
    allowed = 0.0
    for path, name, convert in wanted:
        for graph in path.graphs:
            label = name + (", graph" if graph else "")
            try:
                _, state = clip.buffers(True)
                clip.cast(True)
                with path.settings():
                    run: Run = partial(convert, clip.step(path), state)
                    run()
                    if graph:
                        run = replaying(device.capture(run))
                    off = (run().float() - exact).square().mean().sqrt().item()
                # The rounding to codes, 0.3 root mean square, is nobody's fault.
                allowed = allowed or 2 * off + 0.3
                timed[label] = Timed(run, path.settings)
                verdict = "right" if off <= allowed else "wrong"
                verdicts[label] = (verdict, f"off by {off:.2g} codes, root mean square")
            except Exception as error:
                verdicts[label] = ("failed", first_line(error))
    interleave(device, list(timed.values()), session.options.rounds, session.options.seconds)
    flops = made.spec.flops_per_pixel * size[0] * size[1]
    first = middle(timed.get(eager))
    for label, (verdict, note) in verdicts.items():
        if not results.has(path=label, **key):
            values = speed(
                session, short(dtype), timed.get(label), first, flops=flops, is_frame=True
            )
            add_row(session, timed.get(label), verdict, note, path=label, **key, **values)
    del timed, clip
    device.free()


def noise(size: tuple[int, int], count: int) -> list[list[np.ndarray[Any, Any]]]:
    """Frames of YUV420P8, planes of noise."""
    rng, fmt = np.random.default_rng(0), FORMATS["yuv420p8"]
    return [
        [
            rng.integers(16, 236, fmt.plane_shape(size[1], size[0], p), dtype=np.uint8)
            for p in range(3)
        ]
        for _ in range(count)
    ]


def end_to_end(session: Session, size: tuple[int, int]) -> None:
    """Frames from host memory to host memory: the engine, and the VapourSynth filter."""
    made: Any = lively(build_network("strcnn_dtb"))
    with tempfile.TemporaryDirectory() as folder:
        model = FilePath(folder) / "benchmark.safetensors"
        save_network(made, model)
        for mode in ("auto", "cupy"):
            with kernels(mode):
                _frames(session, size, f"engine, kernels ({mode})", partial(_engine, model))
        if importlib.util.find_spec("vapoursynth") is None:
            print("  VapourSynth is not installed", flush=True)
        else:
            with kernels("auto"):
                _frames(session, size, "VapourSynth filter", partial(_filter, model))


def _frames(
    session: Session,
    size: tuple[int, int],
    path: str,
    make: Callable[[Session, tuple[int, int], int], Iterator[Any]],
) -> None:
    precision = "fp16" if session.device.device.type == "cuda" else "fp32"
    subject = "strcnn_dtb from host to host"
    key = {"kind": "frames", "subject": subject, "size": text(size), "dtype": precision}
    if session.results.has(path=path, **key):
        return
    count = session.options.frames
    warm = max(min(20, count // 2), 1)
    device, marks = session.device, []
    try:
        for _ in make(session, size, warm + count):
            marks.append(device.clock())
    except Exception as error:
        session.results.add(path=path, verdict="failed", note=first_line(error), **key)
        return
    times = [(b - a) * 1e3 for a, b in zip(marks[warm - 1 :], marks[warm:], strict=False)]
    values = quantiles(times)
    # The rate counts all the time: frames may come in bursts.
    values["fps"] = 1e3 * len(times) / sum(times)
    note = "host's clock; the rate is over all frames"
    session.results.add(path=path, verdict="right", note=note, **key, **values)
    device.free()


def _engine(model: FilePath, session: Session, size: tuple[int, int], count: int) -> Iterator[Any]:
    engine = importlib.import_module("vs_deblur.engine")
    is_cuda = session.device.device.type == "cuda"
    deblurrer = engine.Deblurrer(
        str(model),
        device=str(session.device.device),
        precision="fp16" if is_cuda else "fp32",
        segment=0,
    )
    frames = noise(size, 8)
    source = ((frames[n % 8], False) for n in range(count))
    yield from deblurrer.stream(source, FORMATS["yuv420p8"])


def _filter(model: FilePath, session: Session, size: tuple[int, int], count: int) -> Iterator[Any]:
    vs: Any = importlib.import_module("vapoursynth")
    deblur = importlib.import_module("vs_deblur").deblur
    is_cuda = session.device.device.type == "cuda"
    frames = noise(size, 8)

    def fill(n: int, f: Any) -> Any:
        out = f.copy()
        for p in range(3):
            np.asarray(out[p])[:] = frames[n % 8][p]
        out.props["_Matrix"], out.props["_Range"] = 1, 1
        return out

    blank = vs.core.std.BlankClip(
        format=vs.YUV420P8, width=size[0], height=size[1], length=8, keep=True
    )
    clip = blank.std.ModifyFrame(blank, fill).std.Loop(-(-count // 8))[:count]
    deblurred = deblur(
        clip,
        model=str(model),
        device=str(session.device.device),
        precision="fp16" if is_cuda else "fp32",
        segment=0,
    )
    yield from deblurred.frames(close=True)
