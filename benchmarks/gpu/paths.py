"""Ways to run a network, each prepared, checked against float32, and ready to be timed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.checks import first_line
from benchmarks.gpu.device import Captured, Device, Run
from benchmarks.gpu.problems import convolution_relu, kernels, last, launched, with_epilogue
from vs_deblur_kernels import reference
from vs_deblur_kernels._compile import Backend
from vs_deblur_kernels.dispatch import launching_by
from vs_deblur_models.blocks import FromPixels, cast_
from vs_deblur_models.spec import State, step_of
from vs_deblur_models.strcnn import Strcnn

Step = Callable[[Tensor, State], tuple[Tensor, State]]
EAGER = "torch eager channels_last"
LIBRARY = "torch with cuDNN epilogues"
OURS, OURS_ALL = "kernels (auto)", "kernels (cupy)"
COMPILE = "torch.compile"
JAX = "JAX/XLA"


@dataclass(frozen=True)
class Path:
    """A way to run a network.

    Attributes:
        name: of the way.
        kernels: ``VS_DEBLUR_KERNELS`` meanwhile.
        is_last: whether weights and features are channels_last.
        by_library: STRCNN+DTB written with cuDNN's epilogues.
        compiled: mode of ``torch.compile``; None without.
        fixed: cuDNN chooses algorithms as the engine lets it: no trials, deterministic.
        graphs: whether to time it launched by the host, and replayed as a CUDA graph.
    """

    name: str
    kernels: str = "reference"
    is_last: bool = True
    by_library: bool = False
    compiled: str | None = None
    fixed: bool = False
    graphs: tuple[bool, ...] = (False, True)

    def label(self, graph: bool) -> str:
        """The name of a row."""
        return f"{self.name}, graph" if graph else self.name

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """What holds while this way runs."""
        flags: Any = torch.backends.cudnn.flags(
            enabled=True, benchmark=not self.fixed, deterministic=self.fixed, allow_tf32=False
        )
        # What is compiled does without inference mode, which costs the host a little more.
        grad: Any = torch.no_grad() if self.compiled else torch.inference_mode()
        with flags, kernels(self.kernels), grad:
            yield


PEERS = (
    Path("torch eager NCHW", is_last=False),
    Path(EAGER),
    Path(LIBRARY, by_library=True),
)
KERNELS = (
    Path(OURS, "auto"),
    Path(OURS_ALL, "cupy"),
    Path("kernels (auto), fixed algorithms", "auto", fixed=True, graphs=(True,)),
)
FLOAT32 = Path("float32", fixed=True)
ANCHORS = (Path(EAGER, graphs=(False,)), Path(OURS, "auto", graphs=(True,)))
COMPILED = (
    Path(COMPILE, compiled="default"),
    Path("torch.compile reduce-overhead", compiled="reduce-overhead", graphs=(False,)),
)
AUTOTUNED = (Path("torch.compile max-autotune", compiled="max-autotune-no-cudagraphs"),)


def lively(network: nn.Module) -> nn.Module:
    """Random weights under which every part of a network has a say and no value runs away."""
    with torch.no_grad():
        for i, (name, p) in enumerate(network.named_parameters()):
            drawn = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
            if p.ndim == 4:
                p.copy_(drawn * (0.7 / p[0].numel() ** 0.5))
            elif "beta" not in name:
                p.copy_(drawn * 0.1)
    return network.eval()


def by_library(network: Strcnn) -> Step:
    """STRCNN+DTB by torch alone, with all that cuDNN can do at the end of a convolution."""
    n = network
    assert n.dtb is not None
    assert n.feedback is not None
    blending, feedback = n.dtb, n.feedback
    assert isinstance(n.conv1, FromPixels)
    assert n.conv1.features is not None
    half = n.conv1.features
    first = last(torch.cat((n.conv1.weight, n.conv1.weight), dim=1).to(half))
    first_bias = n.conv1.bias
    assert first_bias is not None
    first_bias = first_bias.to(half)

    def blocks(x: Tensor, stack: nn.Sequential) -> Tensor:
        for block in stack:
            parts: Any = block
            conv1, conv2 = parts.conv1, parts.conv2
            x = with_epilogue([x, conv1.weight, conv1.bias, conv2.weight, conv2.bias])
        return x

    def step(window: Tensor, state: State) -> tuple[Tensor, State]:
        rounded = window.to(half)
        x = torch.cat((rounded, (window - rounded).to(half)), dim=1)
        x = convolution_relu(x, first, first_bias)
        x = convolution_relu(x, n.conv2.weight, n.conv2.bias, stride=2)
        h = blocks(torch.cat((x, state[0]), dim=1), n.encoder)
        a = F.conv2d(
            torch.cat((state[1], h), dim=1), blending.conv.weight, blending.conv.bias, padding=2
        )
        h = reference.blend(a, h, state[1], blending.beta)
        z = blocks(h, n.decoder)
        out: Tensor = n.output(torch.relu(n.deconv(z)))
        fed_back = convolution_relu(z, feedback.weight, feedback.bias)
        return out.float(), (fed_back, h)

    return step


@dataclass
class Prepared:
    """A row, ready to be timed.

    Attributes:
        label: its name.
        path: the way.
        graph: whether it is a graph's replay.
        run: one frame.
        verdict: "right", "wrong" or "failed".
        error: root mean square and largest error against float32.
        plain: the same of torch eager at this precision.
        launched: kernels of ours that run.
        seconds: that it took to prepare.
        note: why it failed.
    """

    label: str
    path: Path
    graph: bool
    run: Run | None = None
    verdict: str = "failed"
    error: tuple[float, float] = (0.0, 0.0)
    plain: tuple[float, float] = (0.0, 0.0)
    launched: str = ""
    seconds: float = 0.0
    note: str = ""


@dataclass
class Clip:
    """Frames at a size, and what a network makes of them in float32.

    Attributes:
        device: where.
        network: with its weights, float32, on the CPU.
        size: height and width.
        dtype: to compute in.
        windows: what the network sees, float32 on the device.
        start: state before the first of them.
        exact: everything that the network puts out, float32 eager, without TF32.
    """

    device: Device
    network: Any
    size: tuple[int, int]
    dtype: torch.dtype
    windows: list[Tensor] = field(default_factory=list)
    start: State = ()
    exact: list[Tensor] = field(default_factory=list)
    _networks: dict[bool, Any] = field(default_factory=dict)
    _plain: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        shape = (3, 3 * self.network.spec.window, *self.size)
        frames = torch.rand(shape, generator=generator)
        self.windows = [last(f[None]).to(self.device.device) for f in frames[1:]]
        whole = partial(step_of, copy.deepcopy(self.network).to(self.device.device))
        with FLOAT32.settings():
            _, self.start = whole(last(frames[:1]).to(self.device.device), None)
            self.exact = self._frames(whole, self.windows)
        del whole
        self.device.free()

    def _frames(self, step: Step, windows: Sequence[Tensor]) -> list[Tensor]:
        """All that comes out for all windows; the state goes from each to the next."""
        state, found = self.start, []
        for window in windows:
            sharp, state = step(window, state)
            found += [t.float().clone() for t in (sharp, *state)]
        return found

    def cast(self, is_last: bool) -> Any:
        """The network in its type and memory format, on the device."""
        if is_last not in self._networks:
            network = copy.deepcopy(self.network).to(self.device.device)
            if is_last:
                network = network.to(memory_format=torch.channels_last)
            cast_(network, self.dtype)
            self._networks[is_last] = network
        return self._networks[is_last]

    def buffers(self, is_last: bool) -> tuple[Tensor, State]:
        """A window and a state that stay where they are."""
        order = last if is_last else Tensor.contiguous
        return order(self.windows[0].clone()), tuple(
            order(s.to(self.dtype, copy=True)) for s in self.start
        )

    def step(self, path: Path) -> Step:
        """The network's step on a path."""
        network = self.cast(path.is_last)
        if path.by_library:
            return by_library(network)

        def step(window: Tensor, state: State) -> tuple[Tensor, State]:
            sharp, following = step_of(network, window, state)
            return sharp, following

        return self.device.compile(step, path.compiled) if path.compiled else step

    def errors(self, run: Run, window: Tensor, state: State) -> tuple[float, float]:
        """The :func:`relative_errors` of a run over all frames.

        The run reads the window and the state where they are and returns what comes out; the state
        is put back there for the next frame, and set back at the end.
        """
        found: list[Tensor] = []
        _set(state, self.start)
        for new in self.windows:
            window.copy_(new)
            sharp, following = run()
            found += [t.float().clone() for t in (sharp, *following)]
            _set(state, [t.clone() for t in following])
        _set(state, self.start)
        return relative_errors(found, self.exact)

    @property
    def plain(self) -> tuple[float, float]:
        """The errors of torch eager, channels_last, at this precision."""
        if self._plain is None:
            path = Path(EAGER)
            window, state = self.buffers(True)
            self.cast(True)
            with path.settings():
                step = self.step(path)
                self._plain = self.errors(lambda: step(window, state), window, state)
        return self._plain

    def prepare(self, path: Path) -> list[Prepared]:
        """The rows of a path. What raises is a row that failed."""
        rows: list[Prepared] = []
        begin = self.device.clock()
        try:
            window, state = self.buffers(path.is_last)
            self.cast(path.is_last)  # outside of inference mode: other paths use it, too
            plain = self.plain
            with path.settings():
                step = self.step(path)
                run = partial(step, window, state)
                run()
                sources = ""
                if path.kernels != "reference":
                    found = launched(self.device.backend(), partial(launching, run))
                    sources = ", ".join(dict.fromkeys(found))
                for graph in path.graphs:
                    now = replaying(self.device.capture(run)) if graph else run
                    row = Prepared(path.label(graph), path, graph, now, launched=sources)
                    row.error, row.plain = self.errors(now, window, state), plain
                    row.verdict = "right" if is_within(row, self.dtype) else "wrong"
                    row.seconds = self.device.clock() - begin
                    begin = self.device.clock()
                    rows.append(row)
        except Exception as error:
            note = first_line(error)
            rows += [Prepared(path.label(g), path, g, note=note) for g in path.graphs[len(rows) :]]
        return rows


def _set(state: State, values: Sequence[Tensor]) -> None:
    for to, value in zip(state, values, strict=True):
        to.copy_(value)


def relative_errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    """Root mean square and largest error, each in units of the tensor's largest value."""
    mean = most = 0.0
    for one, right in zip(found, exact, strict=True):
        off = (one.float() - right) / right.abs().max().clamp(min=1e-30)
        off = off.nan_to_num(torch.inf, torch.inf, torch.inf)
        mean = max(mean, off.square().mean().sqrt().item())
        most = max(most, off.abs().max().item())
    return mean, most


def is_within(row: Prepared, dtype: torch.dtype) -> bool:
    """The gate: at most twice the errors of torch eager, and half a unit in the last place."""
    unit = torch.finfo(dtype).eps / 2
    return all(a <= 2 * b + unit for a, b in zip(row.error, row.plain, strict=True))


def launching(run: Run, backend: Backend) -> None:
    """A run whose kernels a backend launches."""
    with launching_by(backend):
        run()


def replaying(captured: Captured) -> Run:
    """A graph as a run that returns what it wrote."""

    def run() -> Any:
        captured.replay()
        return captured.result

    return run
