"""Beside the computing on a CUDA device: frames on their way to and fro, steps as CUDA graphs.

The classes here run on the CPU as well, where nothing overlaps and nothing is captured: so they are
tested where there is no GPU.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vs_deblur_kernels._compile import first_line
from vs_deblur_kernels.pixels import PixelFormat
from vs_deblur_kernels.planes import sample_type, unpack
from vs_deblur_models.spec import State

logger = logging.getLogger(__name__)

Step = Callable[[Tensor, State | None], tuple[Tensor, State]]


class Transfers:
    """Brings frames to a device and back, each way on a stream of its own.

    Host memory is page-locked, so that copies run while the device computes; it comes from torch's
    cache of such memory, which gives a piece out again only when the copies from it are done.

    Args:
        device: where to and from.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            self._up, self._down = (_stream(device) for _ in range(2))

    def upload(self, planes: Sequence[NDArray[Any]], fmt: PixelFormat) -> Tensor:
        """Start bringing a frame to the device.

        Args:
            planes: (h, w) arrays of the format's sample type; they are copied before this returns.
            fmt: their format.

        Returns:
            the frame, packed (see :mod:`vs_deblur_kernels.planes`); the current stream waits for
            it, the host does not.
        """
        height, width = planes[0].shape
        count = sum(p.size for p in planes)
        staged = torch.empty(count, dtype=sample_type(fmt), pin_memory=self._is_cuda)
        for own, plane in zip(unpack(staged, fmt, height, width), planes, strict=True):
            np.copyto(own.numpy(), plane, casting="unsafe")  # hosts may hold 10 bits in int16
        if not self._is_cuda:
            return staged
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._up):
            frame = staged.to(self._device, non_blocking=True)
        current.wait_stream(self._up)
        frame.record_stream(current)  # its memory is the other stream's
        return frame

    def download(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        """Start bringing results to the host.

        Returns:
            a function that waits for them and gives them, in host memory of their own.
        """
        if not self._is_cuda:
            copies = [t.clone() for t in tensors]
            return lambda: copies
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        staged = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        with torch.cuda.stream(self._down):
            for own, tensor in zip(staged, tensors, strict=True):
                own.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._down)
            # Who waits for it does not spin.
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(self._down)

        def wait() -> list[Tensor]:
            done.synchronize()
            return staged

        return wait


class Graphs:
    """Steps of a network as CUDA graphs, one for each shape: a launch instead of a hundred.

    The first step of a shape runs as it is, and so chooses, compiles and loads all that it needs;
    the second is captured. When the shape changes, the graphs of the one before are let go. Where
    a step cannot be captured, steps run as they are from then on.

    Args:
        device: where steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: dict[tuple[Any, ...], _Graph | None] = {}
        self._is_off = device.type != "cuda"
        self._pool: Any = None  # memory that the graphs share: no two of them run at once

    def __call__(self, step: Step, window: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One step, always by the same function.

        Args:
            step, window, state: see :meth:`vs_deblur_models.spec.VideoNetwork.step`.

        Returns:
            the sharp frame, valid until the next call, and the state, which is the caller's.

        Raises:
            torch.OutOfMemoryError: to capture takes more memory than there is; see :meth:`stop`.
        """
        if self._is_off:
            return step(window, state)
        shape = (window.shape, window.dtype)
        key = (*shape, state is None)
        if key not in self._graphs:
            if any(k[:2] != shape for k in self._graphs):
                self._graphs.clear()
                self._pool = None
            self._graphs[key] = None
            return step(window, state)
        graph = self._graphs[key] or self._capture(step, window, state)
        if graph is None:
            return step(window, state)
        self._graphs[key] = graph
        return graph(window, state)

    def _capture(self, step: Step, window: Tensor, state: State | None) -> _Graph | None:
        try:
            with _capturing:
                if self._pool is None:
                    self._pool = torch.cuda.graph_pool_handle()
                return _Graph(step, window, state, self._device, self._pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = first_line(error)
        # Outside the except block, where the traceback would keep the tensors alive.
        logger.warning("steps run without CUDA graphs: %s", reason)
        self.stop()
        return None

    def stop(self) -> bool:
        """Run steps as they are from now on, and give the graphs' memory back.

        Returns:
            whether there was any: after an out-of-memory the same may be tried again.
        """
        had = any(g is not None for g in self._graphs.values()) or self._pool is not None
        self._graphs.clear()
        self._pool = None
        self._is_off = True
        return had


_capturing = threading.Lock()  # a process captures one graph at a time


class _Graph:
    """A step that was captured, and the tensors that it reads and writes."""

    def __init__(
        self, step: Step, window: Tensor, state: State | None, device: torch.device, pool: Any
    ) -> None:
        self._window = window.clone()
        self._state = None if state is None else tuple(s.clone() for s in state)
        # Once on the stream of the capture: libraries keep a workspace for each.
        side, current = _stream(device), torch.cuda.current_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            step(self._window, self._state)
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # The stream is named: torch's own one for captures is of whichever device came first. Other
        # threads may go on using the device meanwhile.
        how = {"pool": pool, "stream": side, "capture_error_mode": "thread_local"}
        with torch.cuda.device(device), torch.cuda.graph(self._graph, **how):
            self._sharp, self._following = step(self._window, self._state)

    def __call__(self, window: Tensor, state: State | None) -> tuple[Tensor, State]:
        self._window.copy_(window)
        for own, given in zip(self._state or (), state or (), strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._sharp, tuple(s.clone() for s in self._following)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
