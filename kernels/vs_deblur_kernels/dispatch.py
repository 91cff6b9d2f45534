"""Which of two an operation runs: its kernel, or the reference in torch.

``VS_DEBLUR_KERNELS`` says:

- ``auto`` (or nothing): kernels on CUDA devices where CuPy is installed and fits, for the
  operations that are known to gain by it. Each proves itself once per process, device and type on
  a small input against its reference; one that does not is left out, with one warning.
- ``reference``: torch everywhere.
- ``cupy``: kernels for all operations, whether they gain or not; an error where that cannot be.

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

from vs_deblur_kernels._compile import Backend, CupyBackend, KernelError, compiler_version

logger = logging.getLogger(__name__)

Mode = Literal["auto", "reference", "cupy"]
MODES: tuple[Mode, ...] = ("auto", "reference", "cupy")
VARIABLE = "VS_DEBLUR_KERNELS"


def mode() -> Mode:
    """What ``VS_DEBLUR_KERNELS`` says.

    Raises:
        ValueError: none of :data:`MODES`.
    """
    said = os.environ.get(VARIABLE) or "auto"
    if said not in MODES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(MODES)}, not {said}")
    return said


@cache
def missing() -> str | None:
    """Why no kernel can be compiled here; None if they can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    try:
        major, _ = compiler_version()
    except KernelError as error:
        return str(error)
    built_for = torch.version.cuda
    if built_for is not None and int(built_for.split(".")[0]) != major:
        return f"CuPy is for CUDA {major}, torch for CUDA {built_for}"
    return None


def require(device: torch.device) -> None:
    """See to it that what ``VS_DEBLUR_KERNELS`` asks for can be had on a device.

    Raises:
        ValueError: it asks for nothing that there is.
        KernelError: it asks for kernels by name, and there are none for this device.
    """
    if mode() != "cupy" or _stand_in is not None:
        return
    if device.type != "cuda":
        raise KernelError(f"{VARIABLE}=cupy: kernels run on CUDA devices only")
    if (reason := missing()) is not None:
        raise KernelError(f"{VARIABLE}=cupy: {reason}")


@dataclass(eq=False)
class Operation:
    """Something that both a kernel and the reference can do.

    Attributes:
        name: that of its ``.cu`` file.
        check: compares kernel and reference on a small input of a type on a device; raises
            :class:`KernelError` with what is wrong.
        automatic: whether the kernel is known to gain, and ``auto`` uses it.
        usual: the type that :func:`examine` tries.
    """

    name: str
    check: Callable[[torch.device, torch.dtype], None]
    automatic: bool
    usual: torch.dtype = torch.float16
    found: dict[tuple[torch.device, torch.dtype], str | None] = field(default_factory=dict)

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
        wrong = self._wrong(first.device, first.dtype)
        if wrong is None:
            return launcher
        if wanted == "cupy":
            raise KernelError(wrong)
        return None

    @staticmethod
    def launcher(device: torch.device) -> Backend:
        """Who launches kernels on a device, whatever is asked for.

        Raises:
            KernelError: nobody does.
        """
        launcher = _on(device)
        if launcher is None:
            raise KernelError(f"no kernels on {device}")
        return launcher

    def give_up(self, device: torch.device, dtype: torch.dtype, reason: str) -> None:
        """Leave the kernel out from now on: it failed where its check did not look.

        Raises:
            KernelError: kernels are asked for by name.
        """
        reason = (reason.strip().splitlines() or ["it failed"])[0]
        if mode() == "cupy":
            raise KernelError(f"{self.name}: {reason}")
        with _lock:
            self.found[device, dtype] = reason
        self._warn(reason)

    def _warn(self, reason: str) -> None:
        logger.warning("the kernel %s is left out, torch computes instead: %s", self.name, reason)

    def _wrong(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """What is wrong with the kernel; None if it proved itself."""
        with _lock:
            if (device, dtype) in self.found:
                return self.found[device, dtype]
            if _on(device) is _cupy and (reason := missing()) is not None:
                self.found[device, dtype] = reason
                return reason
            self.found[device, dtype] = None  # while it is checked
            try:
                self.check(device, dtype)
            except KernelError as error:
                self.found[device, dtype] = str(error)
                if mode() == "auto":
                    self._warn(str(error))
            return self.found[device, dtype]


_lock = threading.RLock()
_cupy = CupyBackend()
_stand_in: Backend | None = None


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


OPERATIONS = ("dtb", "planes", "resblock", "resblock5", "skip")


def examine(device: torch.device) -> Iterator[tuple[Operation, str | None]]:
    """Have every operation prove itself on a device; with each comes what is wrong, or None."""
    for name in OPERATIONS:
        operation: Operation = import_module(f"vs_deblur_kernels.{name}").operation
        yield operation, operation._wrong(device, operation.usual)


def compare(name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise :class:`KernelError` if two results differ by more than the tolerance anywhere."""
    worst = (found.double() - expected.double()).abs().max().item()
    if not worst <= tolerance:
        raise KernelError(f"{name} differs from its reference by {worst:.3g}")
