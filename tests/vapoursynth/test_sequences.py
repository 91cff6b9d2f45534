"""The filter under random sequences of requests, settings and cuts, against a plain recurrence.

The sequences are made here and carried out by one process, one VapourSynth, for all of them
(player.py); a command that is not answered in time fails, whatever it hangs on.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from numpy.typing import NDArray

from tests.vapoursynth.conftest import ROOT

LIMIT = 60.0  # seconds for one command
Planes = list[NDArray[np.uint8]]
Seen = list[Any]


class Host:
    """The other process; started anew after one that had to be killed."""

    def __init__(self, said: Path) -> None:
        self._said = said
        self._process: subprocess.Popen[bytes] | None = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            with self._said.open("wb") as said:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.vapoursynth.player"],
                    cwd=ROOT,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    start_new_session=True,
                )
        return self._process

    def tell(self, name: str, **arguments: object) -> Any:
        """Have a command carried out; what it gives."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
        process.stdin.flush()
        answer = b""
        while not answer.endswith(b"\n"):
            ready = select.select([process.stdout], [], [], LIMIT)[0]
            got = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not got:
                self.close()
                what = "ended" if ready else f"did not answer within {LIMIT:g} s"
                raise AssertionError(f"the process {what}: {self._said.read_text()[-3000:]}")
            answer += got
        told = json.loads(answer)
        assert "error" not in told, told["error"]
        return told["got"]

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
            process.wait()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host") / "stderr")
    yield running
    running.close()


# ------------------------------------------------------------------------------- what must come out


def source(length: int, size: Sequence[int]) -> list[Planes]:
    """The samples of toy.noise."""
    width, height = size
    shapes = [(height, width)] + [(height // 2, width // 2)] * 2
    clip = []
    for n in range(length):
        rng = np.random.default_rng([n, 0])
        clip.append([rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes])
    return clip


@dataclass
class Filter:
    """A filter as its documentation defines it: a frame at a time, each by a run of its own.

    The recurrence is that of toy.Toy, whose state is a hash of all that it saw.
    """

    input: list[Planes]
    marks: frozenset[int]
    plan: tuple[int, int, int, int]
    threshold: float | None
    waiting: list[int] = field(default_factory=list)
    alive: bool = True

    def __post_init__(self) -> None:
        self.length = len(self.input)
        cuts = set(self.marks)
        if self.threshold is not None:
            for n in range(1, self.length):
                a, b = (self.input[i][0].astype(int) for i in (n - 1, n))
                if abs(a - b).sum() / (a.size * 255) > self.threshold:
                    cuts.add(n)
        self.cuts = sorted(cuts)
        digests = [zlib.crc32(b"".join(p.tobytes() for p in planes)) for planes in self.input]
        self.output: list[Planes] = []
        self.wanted: list[Seen] = []
        for n, planes in enumerate(self.input):
            begin = self.begin(n)
            value = 0
            for i in range(begin, n + 1):
                for j in self.window(i):
                    value = (value * 6364136223846793005 + 2 * digests[j] + 1) & (2**64 - 1)
                    value ^= value >> 29
            shifted = [p + np.uint8(value >> 8 * k & 255) for k, p in enumerate(planes)]
            self.output.append(shifted)
            digest = hashlib.sha256(b"".join(p.tobytes() for p in shifted)).hexdigest()[:16]
            self.wanted.append([n, digest, begin, int(begin == n)])

    def begin(self, n: int) -> int:
        segment, warmup, _, _ = self.plan
        border = n // segment * segment - min(warmup, segment) if segment else 0
        return max([0, border, *(c for c in self.cuts if c <= n)])

    def window(self, n: int) -> list[int]:
        _, _, behind, ahead = self.plan
        first = max([0, *(c for c in self.cuts if c <= n)])
        last = min([self.length, *(c for c in self.cuts if c > n)]) - 1
        return [min(max(i, first), last) for i in range(n - behind, n + ahead + 1)]


# ------------------------------------------------------------------------------------ the sequences

PLANS = st.tuples(st.integers(0, 12), st.integers(0, 14), st.integers(0, 2), st.integers(0, 2))
# About half of the frames of noise differ by more than a third.
THRESHOLDS = st.none() | st.sampled_from([0.0, 0.333, 0.9])


class Requests(RuleBasedStateMachine):
    """What hosts do, in any order."""

    host: Host

    def __init__(self) -> None:
        super().__init__()
        self.filters: list[Filter] = []

    def _draw(self, data: st.DataObject, alive: bool = True) -> int:
        numbers = [i for i, f in enumerate(self.filters) if f.alive or (not alive and f.waiting)]
        return data.draw(st.sampled_from(numbers), "filter")

    def _open(self, input: list[Planes], marks: frozenset[int], **how: Any) -> None:
        made = Filter(input, marks, how["plan"], how["threshold"])
        height, width = input[0][0].shape
        size, cuts = (width, height), sorted(marks)
        number = len(self.filters)
        self.host.tell("open", number=number, length=made.length, size=size, cuts=cuts, **how)
        self.filters.append(made)

    def _check(self, number: int, frames: Sequence[int], got: list[Seen]) -> None:
        assert got == [self.filters[number].wanted[n] for n in frames]

    def _alive(self) -> bool:
        return any(f.alive for f in self.filters)

    @rule(data=st.data(), plan=PLANS, threshold=THRESHOLDS)
    def open(
        self, data: st.DataObject, plan: tuple[int, int, int, int], threshold: float | None
    ) -> None:
        if len(self.filters) < 4:
            length = data.draw(st.integers(1, 40), "length")
            # The larger ones are too many for the smallest cache.
            size = data.draw(st.sampled_from([(32, 16), (320, 192)]), "size")
            cuts = data.draw(st.frozensets(st.integers(0, length - 1), max_size=5), "cuts")
            self._open(source(length, size), cuts, source=None, plan=plan, threshold=threshold)

    @precondition(_alive)
    @rule(data=st.data(), plan=PLANS, threshold=THRESHOLDS)
    def open_on_another(
        self, data: st.DataObject, plan: tuple[int, int, int, int], threshold: float | None
    ) -> None:
        if len(self.filters) < 4:
            number = self._draw(data)
            below = self.filters[number]
            self._open(below.output, below.marks, source=number, plan=plan, threshold=threshold)

    @rule(threads=st.integers(1, 8), cache=st.sampled_from([1, 2, 5, 1000]))
    def core(self, threads: int, cache: int) -> None:
        self.host.tell("core", threads=threads, cache=cache)

    @rule()
    def clear(self) -> None:
        self.host.tell("clear")

    @precondition(_alive)
    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        number, frames = self._frames(data)
        self._check(number, frames, self.host.tell("get", number=number, frames=frames))

    @precondition(_alive)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        number, frames = self._frames(data)
        self.host.tell("ask", number=number, frames=frames)
        self.filters[number].waiting += frames

    def _frames(self, data: st.DataObject) -> tuple[int, list[int]]:
        number = self._draw(data)
        one = st.integers(0, self.filters[number].length - 1)
        return number, data.draw(st.lists(one, min_size=1, max_size=12), "frames")

    @precondition(lambda self: any(f.waiting for f in self.filters))
    @rule(data=st.data())
    def collect(self, data: st.DataObject) -> None:
        number = self._draw(data, alive=False)
        waiting, self.filters[number].waiting = self.filters[number].waiting, []
        self._check(number, waiting, self.host.tell("collect", number=number))

    @precondition(lambda self: any(f.waiting for f in self.filters))
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        number = self._draw(data, alive=False)
        self.filters[number].waiting.clear()
        self.host.tell("forget", number=number)

    @precondition(_alive)
    @rule(data=st.data(), prefetch=st.integers(1, 12))
    def play(self, data: st.DataObject, prefetch: int) -> None:
        number = self._draw(data)
        length = self.filters[number].length
        first = data.draw(st.integers(0, length - 1), "first")
        end = data.draw(st.integers(first + 1, length), "end")
        got = self.host.tell("play", number=number, first=first, end=end, prefetch=prefetch)
        self._check(number, range(first, end), got)

    @precondition(_alive)
    @rule(data=st.data(), prefetch=st.integers(1, 12))
    def both_ways(self, data: st.DataObject, prefetch: int) -> None:
        number = self._draw(data)
        last = self.filters[number].length - 1
        got = self.host.tell("both_ways", number=number, prefetch=prefetch)
        self._check(number, [n for i in range(last + 1) for n in (i, last - i)], got)

    @precondition(_alive)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        number = self._draw(data)
        self.filters[number].alive = False
        self.host.tell("drop", number=number)

    def teardown(self) -> None:
        for number, one in enumerate(self.filters):
            self._check(number, one.waiting, self.host.tell("collect", number=number))
        self.host.tell("end")


def test_random_sequences_of_requests(host: Host) -> None:
    machine = type("Requests", (Requests,), {"host": host})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            # A sequence is short enough to be read as it is, a hang takes too long to try again.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )
    assert host.tell("end") == 0
