"""Which of two an operation runs: its kernel, or the reference in torch.

``VS_DEBLUR_KERNELS`` says:

- ``auto`` (or nothing): kernels on CUDA devices where CuPy is installed and fits, for the
  operations that are marked so. Each proves itself once per process, device and type on a small
  input against its reference; one that does not is left out, with one warning.
- ``reference``: torch everywhere.
- ``cupy``: kernels for all operations, wherever they take the tensors; an error where there are
  none to be had.

Kernels have no derivatives: where one is asked for, the reference runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor

from vs_deblur_kernels._compile import (
    Backend,
    CupyBackend,
    KernelError,
    compiler_version,
    first_line,
)

logger = logging.getLogger(__name__)

Mode = Literal["auto", "reference", "cupy"]
MODES: tuple[Mode, ...] = ("auto", "reference", "cupy")
VARIABLE = "VS_DEBLUR_KERNELS"


class UnknownModeError(KernelError):
    """``VS_DEBLUR_KERNELS`` asks for nothing that there is."""


def mode() -> Mode:
    """What ``VS_DEBLUR_KERNELS`` says.

    Raises:
        UnknownModeError: none of :data:`MODES`.
    """
    said = os.environ.get(VARIABLE) or "auto"
    if said not in MODES:
        raise UnknownModeError(f"{VARIABLE} must be one of {', '.join(MODES)}, not {said}")
    return said


@cache
def missing() -> str | None:
    """Why no kernel can be compiled here; None if they can."""
    built_for = int((torch.version.cuda or "13").split(".")[0])
    extra = "cuda" if built_for > 12 else f"cuda{built_for}"
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed (pip install vs-deblur[{extra}])"
    try:
        major, _ = compiler_version()
    except KernelError as error:
        return str(error)
    if built_for != major:
        return f"CuPy is for CUDA {major}, torch for {built_for} (pip install vs-deblur[{extra}])"
    return None


def summary() -> str:
    """In a few words, whether kernels are used on a CUDA device."""
    if mode() == "reference":
        return f"no kernels: {VARIABLE}=reference"
    if _stand_in is None and (reason := missing()) is not None:
        return f"no kernels: {reason}"
    return "with kernels"


def require(device: torch.device) -> None:
    """See to it that what ``VS_DEBLUR_KERNELS`` asks for can be had on a device.

    Raises:
        UnknownModeError: it asks for nothing that there is.
        KernelError: it asks for kernels by name, and there are none for this device.
    """
    if mode() != "cupy" or _stand_in is not None:
        return
    if device.type != "cuda":
        raise KernelError(f"{VARIABLE}=cupy: kernels run on CUDA devices only")
    if (reason := missing()) is not None:
        raise KernelError(f"{VARIABLE}=cupy: {reason}")


Check = Callable[[Backend, torch.device, torch.dtype], None]


@dataclass(eq=False)
class Operation:
    """Something that both a kernel and the reference can do.

    Attributes:
        name: that of its module here, and of its ``.cu`` file if it has one.
        check: launches the kernel on a small input of a type and compares it with the reference;
            raises :class:`KernelError` with what is wrong.
        automatic: whether ``auto`` uses the kernel.
        least: the least compute capability that there is a kernel for.
        only: the one compute capability that there is a kernel for; None: it is for all from
            ``least`` on.
        usual: the type that :func:`examine` tries.
        found: what is wrong with the kernel, by device and type; None: it proved itself.
    """

    name: str
    check: Check
    automatic: bool
    least: tuple[int, int] = (0, 0)
    only: tuple[int, int] | None = None
    usual: torch.dtype = torch.float16
    found: dict[tuple[torch.device, torch.dtype], str | None] = field(default_factory=dict)

    def run[R](self, launch: Callable[[Backend], R], *tensors: Tensor) -> R | None:
        """Have the kernel compute something; None: the reference is to do it.

        Args:
            launch: launches the kernel by the backend that it is given.
            tensors: what it reads.

        Raises:
            KernelError: kernels are asked for by name, and there are none or they fail.
        """
        backend = self.backend(*tensors)
        if backend is None:
            return None
        try:
            return launch(backend)
        except KernelError as error:  # this form of it cannot be compiled or loaded
            if mode() == "cupy":
                raise
            key = _placed(tensors[0].device), tensors[0].dtype
            with _lock:
                is_news = self.found.get(key) is None
                self.found[key] = str(error)
            if is_news:
                self._warn(str(error))
            return None

    def backend(self, *tensors: Tensor) -> Backend | None:
        """Who launches the kernel on these tensors; None: the reference is to run.

        Raises:
            KernelError: kernels are asked for by name and there are none.
        """
        first = tensors[0]
        launcher = _on(first.device)
        if launcher is None or torch.compiler.is_compiling():
            return None
        wanted = mode()
        if wanted == "reference" or (wanted == "auto" and not self.automatic):
            return None
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return None
        if not self.is_for(first.device):
            return None
        wrong = self.wrong(first.device, first.dtype)
        if wrong is None:
            return launcher
        if wanted == "cupy":
            raise KernelError(wrong)
        return None

    def is_for(self, device: torch.device) -> bool:
        """Whether there is a kernel for such a device."""
        launcher = _on(device)
        if launcher is None:
            return True
        capability = launcher.capability(device)
        return capability >= self.least and self.only in (None, capability)

    def wrong(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """What is wrong with the kernel; None if it proved itself, now or before."""
        device = _placed(device)
        launcher = _on(device)
        with _lock:
            if (device, dtype) in self.found:
                return self.found[device, dtype]
            if launcher is None:
                return f"no kernels on {device}"
            if launcher is _cupy:
                if (reason := missing()) is not None:
                    self.found[device, dtype] = reason
                    return reason
                if torch.cuda.is_current_stream_capturing():
                    return f"{self.name} was not tried before a capture began"
            reason = None
            try:
                with torch.no_grad():
                    self.check(launcher, device, dtype)
            except torch.OutOfMemoryError:
                raise
            except KernelError as error:
                reason = str(error)
            except Exception as error:  # whatever a driver or a library thinks of
                reason = f"{type(error).__name__}: {first_line(error)}"
            self.found[device, dtype] = reason
            if reason is not None and self.automatic and mode() == "auto":
                self._warn(reason)
            return reason

    def _warn(self, reason: str) -> None:
        logger.warning("the kernel %s is left out, torch computes instead: %s", self.name, reason)


def _placed(device: torch.device) -> torch.device:
    """The device with its number."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


_lock = threading.RLock()
_cupy = CupyBackend()
_stand_in: Backend | None = None


def launcher(device: torch.device) -> Backend:
    """Who launches kernels on a device, whatever is asked for.

    Raises:
        KernelError: nobody does.
    """
    found = _on(device)
    if found is None:
        raise KernelError(f"no kernels on {device}")
    return found


def _on(device: torch.device) -> Backend | None:
    """Who launches kernels on a device."""
    if _stand_in is not None:
        return _stand_in
    return _cupy if device.type == "cuda" else None


@contextlib.contextmanager
def launching_by(backend: Backend) -> Iterator[None]:
    """Have all kernels launched by another backend, whatever the device (for tests)."""
    global _stand_in
    before = _stand_in
    _stand_in = backend
    try:
        yield
    finally:
        _stand_in = before


OPERATIONS = ("dtb", "dtb_conv", "planes", "resblock", "resblock5", "skip")


def examine(device: torch.device) -> Iterator[tuple[Operation, str | None]]:
    """Have every operation that there is for a device prove itself there.

    With each comes what is wrong, or None.
    """
    for name in OPERATIONS:
        operation: Operation = import_module(f"vs_deblur_kernels.{name}").operation
        if operation.is_for(device):
            yield operation, operation.wrong(device, operation.usual)


def compare(name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise :class:`KernelError` if two results differ by more than the tolerance anywhere."""
    worst = (found.double() - expected.double()).abs().max().item()
    if not worst <= tolerance:
        raise KernelError(f"{name} differs from its reference by {worst:.3g}")
