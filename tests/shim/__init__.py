"""Runs the kernels' own text on the CPU: compiled by g++ against ``shim.h``, called by ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vs_deblur_kernels._compile import HEADERS, HERE, Argument, Grid, Kernel, Out

SHIM = Path(__file__).parent
PAGE = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class ShimError(AssertionError):
    """A kernel did what it may not do."""


class Guarded:
    """Bytes between pages that may not be touched, as close to one of them as alignment allows."""

    def __init__(self, size: int, alignment: int, at_end: bool) -> None:
        pages = -(-max(size, 1) // PAGE) + 2
        self.length = pages * PAGE
        self.base: int = _libc.mmap(None, self.length, 3, 0x22, -1, 0)
        assert self.base not in (None, ctypes.c_void_p(-1).value), "mmap"
        first, last = self.base + PAGE, self.base + self.length - PAGE
        assert _libc.mprotect(self.base, PAGE, 0) == 0
        assert _libc.mprotect(last, PAGE, 0) == 0
        self.size = size
        self.address = (last - size) // alignment * alignment if at_end else first
        self.inside = (first, last)
        ctypes.memset(first, 0xFF, last - first)

    def spilled(self) -> bool:
        """Whether something was written between the bytes and the pages around them."""
        before = ctypes.string_at(self.inside[0], self.address - self.inside[0])
        end = self.address + self.size
        after = ctypes.string_at(end, self.inside[1] - end)
        return bool((before + after).strip(b"\xff"))

    def free(self) -> None:
        _libc.munmap(self.base, self.length)


def span(t: Tensor) -> int:
    """Bytes that a dense tensor covers."""
    reach = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    assert reach == t.numel(), "kernels take dense tensors"
    return reach * t.element_size()


def compile_(*arguments: object) -> None:
    """Run g++."""
    compiler = shutil.which("g++")
    assert compiler is not None
    done = subprocess.run(
        [
            *(compiler, "-std=c++17", "-O2", "-fPIC", "-w", "-U_FORTIFY_SOURCE"),
            *("-fno-strict-aliasing", "-ffp-contract=off", "-DVS_DEBLUR_SHIM", f"-I{HERE}"),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


class Shim:
    """A :class:`vs_deblur_kernels._compile.Backend` on the CPU.

    Args:
        folder: for what is compiled.
        seed: of the order in which threads run; it also decides on which side of a tensor the
            forbidden page is near.
        changes: pairs of texts: the first, which must be in the kernel's text exactly once, is
            replaced by the second. To see whether a fault is found.
        capability: what the device claims to be.
    """

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        changes: Sequence[tuple[str, str]] = (),
        capability: tuple[int, int] = (8, 0),
        most_shared: int = 99 << 10,
    ) -> None:
        self.folder, self.seed, self.changes = folder, seed, tuple(changes)
        self._capability, self._most_shared = capability, most_shared
        self.launches: list[Kernel] = []

    def capability(self, device: torch.device) -> tuple[int, int]:
        return self._capability

    def most_shared(self, device: torch.device) -> int:
        return self._most_shared

    def text(self, kernel: Kernel) -> str:
        text = kernel.text
        for name in HEADERS[1:]:  # they may be changed as well; device.cuh is ours
            text = text.replace(f'#include "{name}"\n', (HERE / name).read_text(encoding="utf-8"))
        for old, new in self.changes:
            assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {kernel.source}.cu"
            text = text.replace(old, new)
        return text

    def _header(self) -> Path:
        """A copy of ``shim.h`` with its compiled form beside it: that saves a third of the time."""
        header = self.folder / "shim.h"
        compiled = self.folder / "shim.h.gch"
        if not compiled.exists():
            header.write_text((SHIM / "shim.h").read_text())
            part = self.folder / f"shim.{id(self)}"
            compile_("-x", "c++-header", header, "-o", part)
            part.replace(compiled)
        return header

    def library(self, kernel: Kernel) -> Any:
        """The kernel as a shared library; compiled where it is not yet."""
        unit = f"{self.text(kernel)}\nSHIM_KERNEL({kernel.entry})\n"
        headers = [(HERE / h).read_text() for h in HEADERS] + [(SHIM / "shim.h").read_text()]
        key = hashlib.sha256(repr((unit, headers, kernel.options)).encode()).hexdigest()[:24]
        path = self.folder / f"{kernel.source}-{key}.so"
        if not path.exists():
            source, part = path.with_suffix(".cpp"), path.with_suffix(f".{id(self)}")
            source.write_text(unit)
            shim = ("-include", self._header(), f"-I{self.folder}")
            compile_("-shared", *kernel.options, *shim, source, "-o", part)
            part.replace(path)
        return ctypes.CDLL(str(path))

    def _bound(self, kernel: Kernel) -> int:
        """Threads that the kernel says a block has at most."""
        text = self.text(kernel)
        found = re.search(rf"KERNEL\((\w+)[^)]*\)\s*{kernel.entry}\(", text)
        assert found is not None
        if found[1].isdigit():
            return int(found[1])
        constant = re.search(rf"constexpr int {found[1]} = (\d+)[;,]", text)
        return int(constant[1]) if constant is not None else 1024

    def launch(
        self, kernel: Kernel, grid: Grid, block: Grid, arguments: Sequence[Argument]
    ) -> None:
        assert self._capability >= kernel.capability
        assert kernel.shared <= self._most_shared, "too much shared memory"
        assert block[0] * block[1] * block[2] <= self._bound(kernel), "too many threads"
        assert grid[0] < 1 << 31, "too large a grid"
        assert max(grid[1:]) < 1 << 16, "too large a grid"
        function = getattr(self.library(kernel), f"launch_{kernel.entry}")
        function.restype = ctypes.c_char_p
        at_end = self.seed % 2 == 0
        buffers: list[tuple[Guarded, Tensor, bool]] = []
        values: list[Any] = []
        for a in arguments:
            if isinstance(a, np.generic):
                values.append(ctypes.create_string_buffer(a.tobytes(), a.nbytes))
                continue
            tensor = a.tensor if isinstance(a, Out) else a
            buffer = Guarded(span(tensor), 16, at_end)
            if not isinstance(a, Out) or a.is_read:
                ctypes.memmove(buffer.address, tensor.data_ptr(), buffer.size)
            buffers.append((buffer, tensor, isinstance(a, Out)))
            values.append(ctypes.c_void_p(buffer.address))
        for _, tensor, is_out in buffers:
            same = [t for _, t, _ in buffers if t.data_ptr() == tensor.data_ptr()]
            assert not is_out or len(same) == 1, "a result that is an argument as well"
        sizes = [v._length_ if isinstance(v, ctypes.Array) else 8 for v in values]
        shared = Guarded(kernel.shared, 128, at_end)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        three = ctypes.c_uint * 3
        try:
            error = function(
                three(*grid),
                three(*block),
                ctypes.c_void_p(shared.address),
                ctypes.c_size_t(kernel.shared),
                pointers,
                (ctypes.c_size_t * len(sizes))(*sizes),
                ctypes.c_size_t(len(sizes)),
                ctypes.c_uint(self.seed),
            )
            if error is not None:
                raise ShimError(error.decode())
            for buffer, tensor, is_out in buffers:
                if buffer.spilled():
                    raise ShimError("something was written beside a tensor")
                if is_out:
                    ctypes.memmove(tensor.data_ptr(), buffer.address, buffer.size)
                else:
                    before = ctypes.string_at(tensor.data_ptr(), buffer.size)
                    if ctypes.string_at(buffer.address, buffer.size) != before:
                        raise ShimError("an input was written")
        finally:
            for buffer, _, _ in buffers:
                buffer.free()
            shared.free()
        self.launches.append(kernel)
