from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest

from vs_deblur.engine import Deblurrer, Frame
from vs_deblur.errors import InputError, OutputError, Stopped, UsageError
from vs_deblur.pipeline import (
    MarkedFrame,
    SceneDetector,
    WriteBehind,
    deblur_frames,
    read_ahead,
    untouched_frames,
)
from vs_deblur.timeline import Output, Plan, stream
from vs_deblur_kernels.pixels import PixelFormat

LIMIT = 20.0  # seconds after which a wait counts as a hang
GRAY = PixelFormat("gray", 8)


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("vs-deblur ")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threads():
        thread.join(LIMIT)
        assert not thread.is_alive(), thread.name


def wait_for(event: threading.Event) -> None:
    assert event.wait(LIMIT)


class Halt:
    """A check that raises once it is told to."""

    def __init__(self) -> None:
        self.now = False
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.now:
            raise Stopped(15, 0)


# ---------------------------------------------------------------------------- read_ahead


def test_items_come_in_order() -> None:
    assert list(read_ahead(range(100), depth=3)) == list(range(100))
    assert list(read_ahead([])) == []


def test_reading_stays_a_few_items_ahead() -> None:
    given = 0
    full = threading.Event()

    def source() -> Iterator[int]:
        nonlocal given
        for i in range(1000):
            given += 1
            if given == 4:  # one taken, two waiting, one in the hand
                full.set()
            yield i

    ahead = read_ahead(source(), depth=2)
    assert next(ahead) == 0
    wait_for(full)
    assert next(ahead) == 1
    ahead.close()
    assert given <= 6


def test_an_error_of_the_source_comes_after_its_items() -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise InputError("broken")

    got: list[int] = []
    with pytest.raises(InputError, match="broken"):
        got.extend(read_ahead(source(), depth=1))
    assert got == [0, 1, 2]


def test_closing_ends_the_thread_and_closes_the_source_in_it() -> None:
    closed_in: list[threading.Thread] = []

    def source() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed_in.append(threading.current_thread())

    ahead = read_ahead(source(), depth=2)
    next(ahead)
    worker = threads()[0]
    ahead.close()
    worker.join(LIMIT)
    assert closed_in == [worker]


def test_an_iterator_that_is_forgotten_ends_its_thread() -> None:
    ahead = read_ahead(iter(range(1000)), depth=2)
    next(ahead)
    worker = threads()[0]
    del ahead
    worker.join(LIMIT)
    assert not worker.is_alive()


def test_waiting_for_a_source_that_stalls_can_be_given_up() -> None:
    going_on = threading.Event()
    halt = Halt()

    def source() -> Iterator[int]:
        yield 1
        wait_for(going_on)
        yield 2

    ahead = read_ahead(source(), check=halt)
    assert next(ahead) == 1
    threading.Timer(0.3, lambda: setattr(halt, "now", True)).start()
    with pytest.raises(Stopped):
        next(ahead)
    assert halt.calls > 1  # it was asked again while waiting
    going_on.set()  # the thread ends with the source's next item: see the fixture


def test_items_are_let_go() -> None:
    class Item:
        pass

    made: list[weakref.ref[Item]] = []

    def source() -> Iterator[Item]:
        for _ in range(20):
            item = Item()
            made.append(weakref.ref(item))
            yield item

    ahead = read_ahead(source(), depth=2)
    for _ in range(10):
        next(ahead)
    # Those that wait, the one in the worker's hands, the one handed out, and the generator's.
    assert sum(ref() is not None for ref in list(made)) <= 6
    ahead.close()


# ---------------------------------------------------------------------------- WriteBehind


def test_everything_is_written_in_order() -> None:
    got: list[int] = []
    with WriteBehind(got.append, depth=2) as writer:
        for i in range(100):
            writer.put(i)
    assert got == list(range(100))


def test_no_more_than_a_few_items_wait() -> None:
    going_on, begun = threading.Event(), threading.Event()

    def write(item: int) -> None:
        begun.set()
        wait_for(going_on)

    halt = Halt()
    writer = WriteBehind(write, depth=2, check=halt)
    for i in range(3):  # one in hand, two that wait
        writer.put(i)
    wait_for(begun)
    halt.now = True
    with pytest.raises(Stopped):
        writer.put(3)
    going_on.set()
    writer.abandon()
    assert not writer.gave_up


def test_an_error_of_writing_is_raised_once_and_nothing_is_written_after_it() -> None:
    got: list[int] = []

    def write(item: int) -> None:
        if item == 2:
            raise OutputError("disk full")
        got.append(item)

    def feed() -> None:
        with WriteBehind(write, depth=1) as writer:
            for i in range(100):
                writer.put(i)

    with pytest.raises(OutputError, match="disk full") as caught:
        feed()
    assert got == [0, 1]
    assert caught.value.__context__ is None


def test_an_error_of_the_last_item_is_raised_by_close() -> None:
    def write(item: int) -> None:
        raise OutputError("disk full")

    writer = WriteBehind(write)
    writer.put(1)
    with pytest.raises(OutputError):
        writer.close()
    with pytest.raises(ValueError, match="after the end"):
        writer.put(2)


def test_an_error_of_the_input_lets_what_waits_be_written() -> None:
    got: list[int] = []
    hold = threading.Event()

    def write(item: int) -> None:
        wait_for(hold)
        got.append(item)

    def feed() -> None:
        with WriteBehind(write, depth=4) as writer:
            for i in range(4):
                writer.put(i)
            threading.Timer(0.05, hold.set).start()
            raise InputError("cut off")

    with pytest.raises(InputError):
        feed()
    assert got == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [Stopped(2, 0), KeyboardInterrupt(), RuntimeError("bug")])
def test_stopping_finishes_the_item_in_hand_and_drops_the_rest(error: BaseException) -> None:
    got: list[int] = []
    begun, hold = threading.Event(), threading.Event()

    def write(item: int) -> None:
        begun.set()
        wait_for(hold)
        got.append(item)

    def feed() -> None:
        with WriteBehind(write, depth=4) as writer:
            for i in range(4):
                writer.put(i)
            wait_for(begun)
            threading.Timer(0.05, hold.set).start()
            raise error

    with pytest.raises(type(error)):
        feed()
    assert got == [0]


def test_an_item_without_progress_is_given_up() -> None:
    hold, begun = threading.Event(), threading.Event()

    def write(item: int) -> None:
        begun.set()
        wait_for(hold)

    writer = WriteBehind(write, progress=lambda: 0, patience=0.05)
    writer.put(1)
    wait_for(begun)
    writer.abandon()
    assert writer.gave_up
    hold.set()


def test_an_item_that_gets_on_is_waited_for() -> None:
    begun, enough = threading.Event(), threading.Event()
    looks = itertools.count()

    def progress() -> int:
        look = next(looks)
        if look == 7:
            enough.set()
        return look

    def write(item: int) -> None:
        begun.set()
        wait_for(enough)

    writer = WriteBehind(write, progress=progress, patience=0.01)
    writer.put(1)
    wait_for(begun)
    writer.abandon()
    assert enough.is_set()
    assert not writer.gave_up


def test_closing_can_be_stopped_while_the_reader_stalls() -> None:
    begun, hold = threading.Event(), threading.Event()
    halt = Halt()

    def write(item: int) -> None:
        begun.set()
        wait_for(hold)

    writer = WriteBehind(write, check=halt, progress=lambda: 0, patience=0.05)
    writer.put(1)
    wait_for(begun)
    halt.now = True
    with pytest.raises(Stopped):
        writer.close()
    assert writer.gave_up
    hold.set()


STUCK = """
import os, threading, time
from vs_deblur.pipeline import WriteBehind, read_ahead

read, write = os.pipe()
full, stuck = os.pipe()
os.set_blocking(stuck, False)
try:
    while True:
        os.write(stuck, bytes(65536))
except BlockingIOError:
    os.set_blocking(stuck, True)

def source():
    yield 1
    os.read(read, 1)

begun = threading.Event()

def write(item):
    begun.set()
    os.write(stuck, item)

writer = WriteBehind(write, progress=lambda: 0, patience=0.05)
writer.put(bytes(10))
assert begun.wait(20)
ahead = read_ahead(source())
assert next(ahead) == 1
writer.abandon()
ahead.close()
print(sorted(t.name for t in threading.enumerate() if t.name.startswith("vs-deblur ")))
"""


def test_threads_stuck_in_reading_and_writing_do_not_keep_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "['vs-deblur read ahead', 'vs-deblur write']\n", done.stderr
    assert done.returncode == 0


# ---------------------------------------------------------------------------- SceneDetector


def test_scenes_are_found_as_plane_stats_does() -> None:
    dark, light = np.full((4, 6), 10, np.uint8), np.full((4, 6), 100, np.uint8)
    detector = SceneDetector(0.3, GRAY)
    assert [detector.is_cut([f]) for f in (dark, dark, light, light, dark)] == [
        False,
        False,
        True,
        False,
        True,
    ]
    exactly = SceneDetector(90 / 255, GRAY)
    assert [exactly.is_cut([f]) for f in (dark, light)] == [False, False]
    never = SceneDetector(None, GRAY)
    assert not any(never.is_cut([f]) for f in (dark, light, dark))


def test_a_detector_keeps_no_frame_of_its_source() -> None:
    detector = SceneDetector(0.3, GRAY)
    frame = np.full((4, 6), 10, np.uint8)
    assert not detector.is_cut([frame])
    frame[:] = 200  # the source uses its buffer again
    assert detector.is_cut([frame])


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match=r"scene threshold must be 0\.\.1"):
        SceneDetector(threshold, GRAY)


# ---------------------------------------------------------------------------- deblur_frames


class Toy:
    """An engine whose output shows what it depends on: state' = state / 2 + sum of window."""

    def __init__(self, segment: int = 4, warmup: int = 2, through: bool = False) -> None:
        self.plan = Plan(segment, warmup)
        self._through = through

    def passes_through(self) -> bool:
        return self._through

    def stream(
        self,
        frames: Iterable[tuple[Sequence[Any], bool]],
        fmt: PixelFormat,
        *,
        origin: int = 0,
        first: int = 0,
        end: int | None = None,
    ) -> Iterator[Output[Frame]]:
        def step(window: Sequence[Any], state: float | None) -> tuple[Frame, float]:
            now = (state or 0.0) / 2 + sum(float(p[0, 0]) * 3**i for i, (p,) in enumerate(window))
            return Frame([np.full((1, 1), now)], False), now

        pairs = ((planes, cut) for planes, cut in frames)
        return stream(self.plan, pairs, step, origin=origin, first=first, end=end)


def toy(**options: Any) -> Deblurrer:
    return cast(Deblurrer, Toy(**options))


def sources(count: int, start: int = 0) -> Iterator[list[Any]]:
    for n in range(start, count):
        yield [np.full((2, 2), (n * n * 7) % 251, np.uint8)]


def values(outputs: Iterable[Output[Frame]]) -> list[float]:
    return [float(o.value.planes[0][0, 0]) for o in outputs]


def numbers(outputs: Iterable[Output[Frame]]) -> list[int]:
    return [o.n for o in outputs]


@pytest.mark.parametrize("first", [0, 1, 3, 4, 5, 9])
@pytest.mark.parametrize("count", [1, 4, 30])
def test_a_part_is_the_part_of_the_whole(first: int, count: int) -> None:
    engine = toy()
    whole = values(deblur_frames(engine, sources(20), GRAY))
    assert len(whole) == 20
    origin = engine.plan.origin(first)
    part = deblur_frames(
        engine, sources(20, origin), GRAY, origin=origin, first=first, end=first + count
    )
    assert values(part) == whole[first : first + count]


def test_marks_and_the_detector_both_make_cuts() -> None:
    engine = toy(segment=0, warmup=0)
    cuts = {5, 11}

    def marked() -> Iterator[MarkedFrame]:
        for n, planes in enumerate(sources(15)):
            yield MarkedFrame(planes, n in cuts)

    outputs = list(deblur_frames(engine, marked(), GRAY))
    assert [o.n for o in outputs if o.reset] == [0, 5, 11]
    detector = SceneDetector(0.4, GRAY)
    found = {n for n, planes in enumerate(sources(15)) if detector.is_cut(planes)}
    assert found - cuts
    both = list(deblur_frames(engine, marked(), GRAY, scene_threshold=0.4))
    assert {o.n for o in both if o.reset} == {0} | cuts | found


def test_frames_before_a_damaged_one_come_out_as_of_a_clip_that_ends_there() -> None:
    def damaged() -> Iterator[list[Any]]:
        yield from sources(7)
        raise InputError("frame 7: expected FRAME")

    got: list[Output[Frame]] = []
    with pytest.raises(InputError, match="frame 7"):
        got.extend(deblur_frames(toy(), damaged(), GRAY))
    assert values(got) == values(deblur_frames(toy(), sources(7), GRAY))


def test_damage_beyond_what_is_wanted_is_nobodys_problem() -> None:
    def damaged() -> Iterator[list[Any]]:
        yield from sources(7)
        raise InputError("frame 7: expected FRAME")

    assert numbers(deblur_frames(toy(), damaged(), GRAY, end=6)) == list(range(6))


def test_errors_that_are_not_the_inputs_come_at_once() -> None:
    def broken() -> Iterator[list[Any]]:
        yield from sources(3)
        raise ZeroDivisionError

    outputs = deblur_frames(toy(), broken(), GRAY)
    with pytest.raises(ZeroDivisionError):
        list(outputs)


Through = Callable[..., Iterator[Output[Frame]]]


def _by_engine(frames: Iterable[Any], **options: Any) -> Iterator[Output[Frame]]:
    return deblur_frames(toy(through=True), frames, GRAY, **options)


@pytest.mark.parametrize("through", [_by_engine, untouched_frames])
def test_untouched_frames_are_the_very_samples(through: Through) -> None:
    assert values(through(sources(9))) == [float(p[0, 0]) for (p,) in sources(9)]
    some = through((MarkedFrame(p, False) for p in sources(9, 2)), origin=2, first=3, end=5)
    assert numbers(some) == [3, 4]


@pytest.mark.parametrize("through", [_by_engine, untouched_frames])
def test_untouched_frames_ask_for_none_beyond_the_last(through: Through) -> None:
    def stalls() -> Iterator[list[Any]]:
        yield from sources(5)
        raise AssertionError("asked for more")

    assert numbers(through(stalls(), end=5)) == list(range(5))


@pytest.mark.parametrize("through", [False, True])
def test_deblurring_can_be_stopped_between_frames(through: bool) -> None:
    halt = Halt()
    outputs = deblur_frames(toy(through=through), sources(100), GRAY, check=halt)
    assert next(outputs).n == 0
    halt.now = True
    with pytest.raises(Stopped):
        next(outputs)


def test_closing_a_run_ends_its_reading() -> None:
    outputs = deblur_frames(toy(), sources(10_000), GRAY)
    next(outputs)
    assert threads()
    outputs.close()  # the fixture waits for the thread
