"""From the text of a kernel to its launch: NVRTC and the driver through CuPy, and a disk cache.

A :class:`Kernel` names a ``.cu`` file of this folder, its entry point and what is fixed at compile
time. A :class:`Backend` launches it on tensors. :class:`CupyBackend` is the one for CUDA devices;
the tests bring another, which runs the same text on the CPU (``tests/shim``).

Launches go to torch's current stream of the tensors' device, allocate nothing and wait for
nothing, so that they can be captured in a CUDA graph (after one launch outside of it, which
compiles and loads).
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
HEADERS = ("device.cuh", "blend.cuh")


class KernelError(RuntimeError):
    """A kernel, or what it takes to compile and launch one, is not to be had."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of this package.

    Attributes:
        source: name of the ``.cu`` file, without its end.
        entry: name of the function in it.
        defines: names and values that are fixed when it is compiled.
        shared: bytes of dynamic shared memory that it is launched with.
        capability: the least compute capability that it runs on.
        architecture: whether it uses what only this very architecture has (``sm_90a``).
    """

    source: str
    entry: str
    defines: tuple[tuple[str, str], ...] = ()
    shared: int = 0
    capability: tuple[int, int] = (6, 1)
    architecture: bool = False

    @property
    def text(self) -> str:
        """What is compiled, without the headers."""
        return (HERE / f"{self.source}.cu").read_text(encoding="utf-8")

    @property
    def options(self) -> tuple[str, ...]:
        """What is fixed, as options of a compiler."""
        return tuple(f"-D{name}={value}" for name, value in self.defines)


@dataclass(frozen=True)
class Out:
    """An argument that the kernel writes: every element of it, or some if it is read.

    Attributes:
        tensor: the argument.
        is_read: whether its values are read before.
    """

    tensor: Tensor
    is_read: bool = False


Argument = Tensor | Out | np.generic
"""Tensors are dense (any order of their axes) and go as pointers; numbers are NumPy scalars, whose
types are those of the kernel's parameters."""

Grid = tuple[int, int, int]


class Backend(Protocol):
    """Something that launches kernels."""

    def capability(self, device: torch.device) -> tuple[int, int]:
        """Compute capability of a device."""
        ...

    def most_shared(self, device: torch.device) -> int:
        """Bytes of shared memory that one block may have."""
        ...

    def launch(
        self, kernel: Kernel, grid: Grid, block: Grid, arguments: Sequence[Argument]
    ) -> None:
        """Launch a kernel on the device of its first tensor.

        Raises:
            KernelError: it cannot be compiled or loaded.
        """
        ...


# -------------------------------------------------------------------------------------- compiling


def compile_cubin(kernel: Kernel, architecture: str, *, verbose: bool = False) -> tuple[bytes, str]:
    """Compile a kernel with NVRTC. Needs no driver and no device.

    Args:
        kernel: what to compile.
        architecture: e.g. "sm_80".
        verbose: have the assembler tell registers, spills and shared memory.

    Returns:
        the cubin, and what the compiler said.

    Raises:
        KernelError: NVRTC is missing, or refuses the text.
    """
    try:
        from cupy.cuda import nvrtc
    except ImportError as error:
        raise KernelError(f"CuPy cannot be imported: {first_line(error)}") from error
    options = [f"-arch={architecture}", "-std=c++17", "-lineinfo", *kernel.options]
    options += ["--ptxas-options=-v"] if verbose else []
    headers = [(HERE / name).read_bytes() for name in HEADERS]
    names = [name.encode() for name in HEADERS]
    try:
        program = nvrtc.createProgram(kernel.text, f"{kernel.source}.cu", headers, names)
    except Exception as error:  # the library is loaded here
        raise KernelError(f"NVRTC cannot be loaded: {first_line(error)}") from error
    try:
        nvrtc.compileProgram(program, options)
        return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program).strip() or first_line(error)
        raise KernelError(
            f"{kernel.source}.cu does not compile for {architecture}: {log}"
        ) from error
    finally:
        nvrtc.destroyProgram(program)


def compiler_version() -> tuple[int, int]:
    """Version of NVRTC.

    Raises:
        KernelError: it is missing.
    """
    try:
        from cupy.cuda import nvrtc

        major, minor = nvrtc.getVersion()
    except Exception as error:
        raise KernelError(f"NVRTC cannot be loaded: {first_line(error)}") from error
    return int(major), int(minor)


def architecture_for(kernel: Kernel, capability: tuple[int, int]) -> str:
    """The architecture to compile for: the device's own, or an older one of the same generation.

    Raises:
        KernelError: the compiler knows none that the device runs.
    """
    from cupy.cuda import nvrtc

    compiler_version()  # loads the library, or says what is missing
    major, minor = capability
    known = [a for a in nvrtc.getSupportedArchs() if a // 10 == major and a % 10 <= minor]
    if not known:
        raise KernelError(f"this NVRTC does not compile for compute capability {major}.{minor}")
    if kernel.architecture:
        return f"sm_{major}{minor}a"
    return f"sm_{max(known)}"


# ------------------------------------------------------------------------------------------ cache


def cache_folder() -> Path | None:
    """Where compiled kernels are kept: ``VS_DEBLUR_CACHE``, or the system's place for caches.

    None: nothing is named, and the user has no home folder (as some have none in containers).
    """
    if named := os.environ.get("VS_DEBLUR_CACHE"):
        return Path(named) / "kernels"
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
            return Path(base) / "vs-deblur" / "Cache" / "kernels"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "vs-deblur" / "kernels"
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:
        return None
    return Path(base) / "vs-deblur" / "kernels"


def _owners() -> tuple[int, ...]:
    """Users whose files are trusted: this one and root."""
    return os.geteuid(), 0


def _refusal(folder: Path) -> str | None:
    """Make a folder for compiled kernels; why it cannot be used, None if it can.

    Nobody but its owner, this user or root, may write to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError as error:
        return f"{error.strerror} ({folder})"
    others = stat.S_IWGRP | stat.S_IWOTH
    if os.name == "posix" and (found.st_uid not in _owners() or found.st_mode & others):
        return f"somebody else may write to {folder}"
    return None


def cached_cubin(kernel: Kernel, architecture: str, folder: Path | None = None) -> bytes:
    """The compiled kernel, from the cache if it is there and whole.

    A file holds the SHA-256 of the cubin and the cubin; its name is the SHA-256 of everything that
    the cubin depends on. One that is damaged is compiled anew and replaced. Files are put into
    place whole, so that processes that write the same one do not disturb each other. A cache that
    cannot be read or written, or where somebody else may write, costs time and a warning, nothing
    else. No other folder is taken then: what runs on the device is read only from where nobody
    else writes.

    Raises:
        KernelError: it cannot be compiled.
    """
    folder = cache_folder() if folder is None else folder
    headers = [(HERE / name).read_text(encoding="utf-8") for name in HEADERS]
    key = (kernel.text, *headers, kernel.options, architecture, compiler_version())
    name = f"{kernel.source}-{hashlib.sha256(repr(key).encode()).hexdigest()}.cubin"
    why = "there is no home folder" if folder is None else _refusal(folder)
    if folder is None or why is not None:
        _not_kept(why)
        return compile_cubin(kernel, architecture)[0]
    kept = _kept(folder / name)
    if kept is not None:
        return kept
    cubin, _ = compile_cubin(kernel, architecture)
    _keep(cubin, folder / name)
    return cubin


def _kept(path: Path) -> bytes | None:
    """A compiled kernel of the cache; None if it is not there, or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[32:]).digest() == content[:32]:
        return content[32:]
    logger.warning("a compiled kernel is damaged and compiled again (%s)", path)
    return None


def _keep(cubin: bytes, path: Path) -> None:
    """Put a compiled kernel into the cache, or say that it cannot be."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(cubin).digest() + cubin)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        _not_kept(f"{error.strerror} ({path.parent})")


@cache
def _not_kept(why: str | None) -> None:
    """Say so, once a process."""
    logger.warning(
        "compiled kernels cannot be kept, each start compiles them anew: %s; "
        "set VS_DEBLUR_CACHE to a folder of your own",
        why,
    )


# -------------------------------------------------------------------------------------- launching

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MOST_SHARED = 97  # cudaDevAttrMaxSharedMemoryPerBlockOptin
_WITHOUT_ASKING = 48 << 10  # bytes of shared memory that need no attribute


class TorchStream:
    """A stream of torch's as CuPy takes it (the CUDA stream protocol).

    torch's own streams follow the protocol from 2.10 on.
    """

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


class CupyBackend:
    """Launches on CUDA devices, in torch's contexts and on its streams."""

    def __init__(self) -> None:
        self._functions: dict[tuple[Kernel, int], Any] = {}
        self._streams: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()

    def capability(self, device: torch.device) -> tuple[int, int]:
        """Compute capability of a device."""
        return torch.cuda.get_device_capability(device)

    def most_shared(self, device: torch.device) -> int:
        """Bytes of shared memory that one block may have."""
        from cupy.cuda import runtime

        return int(runtime.deviceGetAttribute(_MOST_SHARED, _index(device)))

    def launch(
        self, kernel: Kernel, grid: Grid, block: Grid, arguments: Sequence[Argument]
    ) -> None:
        """Launch a kernel on the device of its first tensor; see :class:`Backend`."""
        from cupy.cuda import Device

        tensors = [a.tensor if isinstance(a, Out) else a for a in arguments]
        index = _index(next(t.device for t in tensors if isinstance(t, Tensor)))
        with torch.cuda.device(index), Device(index):
            function = self._functions.get((kernel, index)) or self._load(kernel, index)
            values = tuple(t.data_ptr() if isinstance(t, Tensor) else t for t in tensors)
            try:
                function(grid, block, values, kernel.shared, self._stream(index))
            except Exception as error:
                raise KernelError(f"{kernel.source}: {first_line(error)}") from error

    def _stream(self, index: int) -> Any:
        """Torch's current stream as CuPy sees it. CuPy has a current stream of its own."""
        pointer = torch.cuda.current_stream(index).cuda_stream
        found = self._streams.get((index, pointer))
        if found is None:
            from cupy.cuda import Stream

            if hasattr(Stream, "from_external"):
                found = Stream.from_external(TorchStream(pointer))
            else:  # before CuPy 14
                from cupy.cuda import ExternalStream

                found = ExternalStream(pointer, index)
            # torch's pool of streams is small and lives as long as the process.
            self._streams[index, pointer] = found
        return found

    def _load(self, kernel: Kernel, index: int) -> Any:
        with self._lock:
            if (kernel, index) in self._functions:
                return self._functions[kernel, index]
            major, minor = torch.cuda.get_device_capability(index)
            if (major, minor) < kernel.capability:
                least = ".".join(map(str, kernel.capability))
                raise KernelError(
                    f"{kernel.source} needs compute capability {least}, this device has "
                    f"{major}.{minor}"
                )
            architecture = architecture_for(kernel, (major, minor))
            try:
                from cupy.cuda import driver
                from cupy.cuda.function import Module

                module = Module()
                module.load(cached_cubin(kernel, architecture))
                function = module.get_function(kernel.entry)
                if kernel.shared > _WITHOUT_ASKING:
                    driver.funcSetAttribute(function.ptr, _MAX_DYNAMIC_SHARED, kernel.shared)
            except KernelError:
                raise
            except Exception as error:
                raise KernelError(
                    f"{kernel.source} cannot be loaded: {first_line(error)}"
                ) from error
            self._functions[kernel, index] = function
            return function


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
