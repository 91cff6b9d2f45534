"""Memory is given back when the process has grown, not before, and nothing breaks without glibc."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from vs_deblur import heap
from vs_deblur.heap import Heap

MIB = 1 << 20


class System:
    """Stands for the process and its C library."""

    def __init__(self) -> None:
        self.resident: int | None = 100 * MIB
        self.free = 0
        self.trims = 0

    def trim(self, pad: int) -> int:
        assert pad == 0
        self.trims += 1
        assert self.resident is not None
        self.resident -= self.free
        self.free = 0
        return 1


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    system = System()
    monkeypatch.setattr(heap, "resident", lambda: system.resident)
    monkeypatch.setattr(heap, "_malloc_trim", lambda: system.trim)
    return system


def looks(watched: Heap, count: int) -> list[int]:
    """Numbers of the looks at which memory was given back."""
    return [i for i in range(count) if watched.look()]


def test_only_growth_makes_it_worth_while(system: System) -> None:
    watched = Heap(growth=10 * MIB, every=1)
    assert looks(watched, 5) == []
    assert system.resident is not None
    system.resident += 9 * MIB
    assert looks(watched, 5) == []
    system.resident += 1 * MIB
    system.free = 8 * MIB
    assert watched.look()
    # What is taken again before the next look does not count.
    system.resident += 9 * MIB
    assert looks(watched, 5) == []
    system.resident += 9 * MIB
    assert looks(watched, 5) == []
    system.resident += 1 * MIB
    assert looks(watched, 5) == [0]


def test_growth_counts_from_the_least(system: System) -> None:
    watched = Heap(growth=10 * MIB, every=1)
    for now, gives in ((100, False), (50, False), (59, False), (60, True)):
        system.resident = now * MIB
        assert watched.look() == gives


def test_it_looks_only_now_and_then(system: System) -> None:
    watched = Heap(growth=1, every=4)
    assert looks(watched, 4) == []
    system.resident = 200 * MIB
    assert looks(watched, 8) == [3]


def test_nothing_is_done_where_the_system_does_not_tell(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.resident = None
    assert looks(Heap(growth=0, every=1), 3) == []
    system.resident = 1
    assert looks(Heap(growth=0, every=1), 3) == [0, 1, 2]
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)
    assert looks(Heap(growth=0, every=1), 3) == []


def test_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: object) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert heap._malloc_trim() is None
    monkeypatch.setattr(sys, "platform", "win32")
    assert heap._malloc_trim() is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another")
def test_free_pages_go_back() -> None:
    """In a process of its own: small blocks kept between large ones that are freed."""
    code = """if True:
        import ctypes
        from vs_deblur.heap import Heap, resident
        c = ctypes.CDLL(None)
        c.malloc.restype = ctypes.c_void_p
        c.malloc.argtypes, c.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
        large = []
        before = resident()
        watched = Heap(growth=32 << 20, every=1)
        watched.look()
        for _ in range(1000):
            large.append(c.malloc(100_000))
            ctypes.memset(large[-1], 1, 100_000)
            c.malloc(100)
        for block in large:
            c.free(block)
        assert resident() > before + (64 << 20)
        assert watched.look()
        assert resident() < before + (16 << 20)
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
