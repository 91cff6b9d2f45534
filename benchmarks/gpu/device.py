"""All that ``benchmarks.kernels`` asks of a CUDA device, in one class that tests replace.

The calls are those of torch 2.6 and later: ``torch.cuda.Event(enable_timing)``, ``elapsed_time``,
``torch.cuda.Stream(device)``, ``wait_stream``, ``torch.cuda.stream``, ``torch.cuda.CUDAGraph``,
``torch.cuda.graph(cuda_graph)``, ``torch.compile(mode, dynamic)``.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vs_deblur_kernels._compile import Backend, Kernel, architecture_for, cached_cubin
from vs_deblur_kernels.dispatch import launcher

Run = Callable[[], Any]
_cuda: Any = torch.cuda  # parts of it have no types


@dataclass(frozen=True)
class Captured:
    """Work that was recorded.

    Attributes:
        replay: runs it again, on the memory that it was recorded with.
        result: what the recorded call returned; each replay writes it anew.
    """

    replay: Run
    result: Any


class Device(Protocol):
    """What the benchmark needs of a device."""

    @property
    def name(self) -> str:
        """As its maker calls it."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        ...

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability."""
        ...

    def state(self) -> str:
        """Driver, clocks and power at this moment; empty where nobody tells."""
        ...

    def backend(self) -> Backend:
        """Who launches kernels on it."""
        ...

    def compile_kernel(self, kernel: Kernel) -> None:
        """Have a kernel's machine code at hand.

        Raises:
            KernelError: it cannot be compiled.
        """
        ...

    def clock(self) -> float:
        """The host's clock, seconds."""
        ...

    def synchronize(self) -> None:
        """Wait until all work is done."""
        ...

    def milliseconds(self, run: Run) -> float:
        """Time between the beginning and the end of a run's work on the device, caches cold."""
        ...

    def capture(self, run: Run) -> Captured:
        """Record a run as a graph, after three runs outside of it."""
        ...

    def side_stream(self) -> contextlib.AbstractContextManager[None]:
        """Work goes to another stream, which waits for this one and is waited for."""
        ...

    def stray_stream(self) -> contextlib.AbstractContextManager[None]:
        """Work goes to another stream, in no order with this one: a fault, on purpose."""
        ...

    def busy(self) -> None:
        """Put some milliseconds of work on the current stream."""
        ...

    def compile(self, function: Callable[..., Any], mode: str) -> Callable[..., Any]:
        """``torch.compile`` for fixed shapes."""
        ...

    def free(self) -> None:
        """Give back memory that nothing holds."""
        ...


class CudaDevice:
    """The current CUDA device."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.device)
        self.name: str = properties.name
        self.capability = (properties.major, properties.minor)
        # Writing several times the L2 cache leaves nothing of what was there.
        size = max(4 * getattr(properties, "L2_cache_size", 0), 128 << 20)
        self._scratch = torch.empty(size, dtype=torch.uint8, device=self.device)
        self._events = [_cuda.Event(enable_timing=True) for _ in range(2)]
        self._load: list[Tensor] = []

    def state(self) -> str:
        """Driver, clocks and power, as nvidia-smi tells them."""
        program = shutil.which("nvidia-smi")
        if program is None:
            return ""
        wanted = "driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
        command = [program, f"--query-gpu={wanted}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return ""
        return (done.stdout.strip().splitlines() or [""])[0]

    def backend(self) -> Backend:
        """Who launches kernels on it."""
        return launcher(self.device)

    def compile_kernel(self, kernel: Kernel) -> None:
        """Have a kernel's machine code in the cache."""
        cached_cubin(kernel, architecture_for(kernel, self.capability))

    def clock(self) -> float:
        """The host's clock, seconds."""
        return time.perf_counter()

    def synchronize(self) -> None:
        """Wait until all work is done."""
        torch.cuda.synchronize(self.device)

    def milliseconds(self, run: Run) -> float:
        """Time between two events around a run, after the L2 cache was overwritten.

        The overwriting keeps the device busy while the host gets ahead, so that a single launch is
        there when the first event passes; a run of many launches shows how fast the host is, too.
        """
        start, end = self._events
        self._scratch.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def capture(self, run: Run) -> Captured:
        """Record a run, as the notes on CUDA graphs in torch's manual say."""
        with self.side_stream():
            for _ in range(3):
                run()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run()
        return Captured(graph.replay, result)

    @contextlib.contextmanager
    def side_stream(self) -> Iterator[None]:
        """Work goes to another stream, which waits for this one and is waited for."""
        here, there = _cuda.current_stream(self.device), _cuda.Stream(self.device)
        there.wait_stream(here)
        with torch.cuda.stream(there):
            yield
        here.wait_stream(there)

    @contextlib.contextmanager
    def stray_stream(self) -> Iterator[None]:
        """Work goes to another stream, in no order with this one."""
        with torch.cuda.stream(_cuda.Stream(self.device)):
            yield

    def busy(self) -> None:
        """Matrix products: about 10 ms on an H100, longer elsewhere."""
        if not self._load:
            self._load = [
                torch.zeros((4096, 4096), dtype=torch.float16, device=self.device) for _ in range(2)
            ]
            self.synchronize()
        a, out = self._load
        for _ in range(40):
            torch.mm(a, a, out=out)

    def compile(self, function: Callable[..., Any], mode: str) -> Callable[..., Any]:
        """``torch.compile`` for fixed shapes."""
        compiled: Callable[..., Any] = torch.compile(function, mode=mode, dynamic=False)
        return compiled

    def free(self) -> None:
        """Give back memory that nothing holds."""
        gc.collect()
        torch.cuda.empty_cache()
