"""The rule of frame-accurate recurrence, against a reference that computes each frame by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vs_deblur.errors import UsageError
from vs_deblur.timeline import Output, Plan, stream

Window = tuple[int, ...]
History = tuple[Window, ...]


@dataclass(frozen=True)
class Clip:
    """A clip and how to run over it."""

    plan: Plan
    length: int
    cuts: frozenset[int]


@st.composite
def clips(draw: st.DrawFn, least: int = 1) -> Clip:
    segment = draw(st.integers(0, 9))
    warmup = draw(st.integers(0, segment if segment else 6))
    plan = Plan(segment, warmup, draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    length = draw(st.integers(least, 40))
    return Clip(plan, length, draw(st.frozensets(st.integers(0, length - 1), max_size=6)))


# ------------------------------------------------------------ the reference: the text, word by word


def reference_start(clip: Clip, n: int) -> int:
    """max(last_cut(n), segment * (n // segment) - warmup, 0)."""
    last_cut = max((c for c in clip.cuts if c <= n), default=0)
    segment, warmup = clip.plan.segment, clip.plan.warmup
    return max(last_cut, segment * (n // segment) - warmup if segment else 0, 0)


def reference_window(clip: Clip, n: int) -> Window:
    """Frames of n's scene only; beyond its ends the frame at the end is repeated."""
    begins = sorted(clip.cuts | {0, clip.length})
    first = max(b for b in begins if b <= n)
    last = min(b for b in begins if b > n) - 1
    plan = clip.plan
    wanted = range(n - plan.look_behind, n + plan.look_ahead + 1)
    return tuple(sorted((first, i, last))[1] for i in wanted)


def reference(clip: Clip, n: int) -> History:
    """What frame n depends on: the windows of the steps that lead to it, from its start on."""
    return tuple(reference_window(clip, i) for i in range(reference_start(clip, n), n + 1))


def remember(window: Sequence[int], state: History | None) -> tuple[History, History]:
    """A recurrence that forgets nothing: its output is the whole of its history."""
    history = (*(state or ()), tuple(window))
    return history, history


class Source:
    """The frames of a clip from ``origin`` on; counts those that were taken."""

    def __init__(self, clip: Clip, origin: int = 0) -> None:
        self.clip, self.origin, self.taken = clip, origin, 0

    def __iter__(self) -> Iterator[tuple[int, bool]]:
        for n in range(self.origin, self.clip.length):
            self.taken += 1
            yield n, n in self.clip.cuts


# ------------------------------------------------------------------------------------------- plan


@given(clips(), st.data())
def test_start_is_the_formula(clip: Clip, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, clip.length - 1))
    asked = []

    def is_cut(c: int) -> bool:
        asked.append(c)
        return c in clip.cuts

    plan = clip.plan
    assert plan.start(n, is_cut) == reference_start(clip, n)
    assert all(plan.earliest(n) < c <= n for c in asked)


@given(clips(), st.data())
def test_window_is_the_scene_with_its_ends_repeated(clip: Clip, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, clip.length - 1))
    assert clip.plan.window(n, clip.length, clip.cuts.__contains__) == reference_window(clip, n)


@given(clips(), st.data())
def test_origin_is_the_earliest_frame_that_matters(clip: Clip, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, clip.length - 1))
    uncut = Clip(clip.plan, clip.length, frozenset())
    assert clip.plan.origin(n) == min(min(w) for w in reference(uncut, n))
    assert clip.plan.origin(n) <= min(min(w) for w in reference(clip, n))


def test_a_seek_costs_at_most_segment_and_warmup() -> None:
    plan = Plan(segment=64, warmup=8)
    assert max(n - plan.earliest(n) + 1 for n in range(1000)) == 64 + 8
    assert plan.earliest(10**9) == 10**9 // 64 * 64 - 8
    assert Plan(segment=0, warmup=8).earliest(10**9) == 0


@pytest.mark.parametrize(
    ("segment", "warmup", "what"),
    [(-1, 0, "segment"), (8, -1, "warmup"), (0, -1, "warmup")],
)
def test_plans_that_cannot_be(segment: int, warmup: int, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Plan(segment, warmup)


# ----------------------------------------------------------------------------------------- stream


@given(clips())
def test_stream_gives_what_each_frame_is_by_itself(clip: Clip) -> None:
    outputs = list(stream(clip.plan, Source(clip), remember))
    assert [o.n for o in outputs] == list(range(clip.length))
    for o in outputs:
        assert o.value == reference(clip, o.n)
        assert o.anchor == reference_start(clip, o.n)
        assert o.reset == (len(o.value) == 1)


@given(clips(), st.data())
def test_a_chunk_is_a_part_of_the_whole(clip: Clip, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, clip.length - 1))
    end = data.draw(st.none() | st.integers(first, clip.length + 3))
    origin = data.draw(st.integers(0, clip.plan.origin(first)))
    source = Source(clip, origin)
    part = list(stream(clip.plan, source, remember, origin=origin, first=first, end=end))
    stop = clip.length if end is None else min(end, clip.length)
    assert [o.n for o in part] == list(range(first, stop))
    assert all(o.value == reference(clip, o.n) for o in part)
    assert all(o.anchor == reference_start(clip, o.n) for o in part)
    if part:  # frames beyond the last window are not read
        assert origin + source.taken <= min(stop + clip.plan.look_ahead, clip.length)


@given(clips(least=2), st.data())
def test_chunks_end_to_end_are_the_whole(clip: Clip, data: st.DataObject) -> None:
    borders = data.draw(st.lists(st.integers(0, clip.length), max_size=4))
    edges = sorted({0, clip.length, *borders})
    parts: list[Output[History]] = []
    for first, end in pairwise(edges):
        origin = clip.plan.origin(first)
        source = Source(clip, origin)
        parts += stream(clip.plan, source, remember, origin=origin, first=first, end=end)
    assert parts == list(stream(clip.plan, Source(clip), remember))


@given(clips())
def test_frames_are_taken_only_when_a_window_needs_them(clip: Clip) -> None:
    source = Source(clip)
    for o in stream(clip.plan, source, remember):
        assert source.taken <= o.n + 1 + clip.plan.look_ahead


@given(clips())
def test_the_cost_is_the_warm_up(clip: Clip) -> None:
    steps = 0

    def step(window: Sequence[int], state: History | None) -> tuple[History, History]:
        nonlocal steps
        steps += 1
        return remember(window, state)

    list(stream(clip.plan, Source(clip), step))
    borders = (clip.length - 1) // clip.plan.segment if clip.plan.segment else 0
    assert clip.length <= steps <= clip.length + borders * clip.plan.warmup


@given(clips(least=2), st.data())
def test_nothing_outside_its_reach_changes_a_frame(clip: Clip, data: st.DataObject) -> None:
    """Another frame j shows up in windows from j - look-ahead to the end of its segments only,
    and never after a cut that follows it."""
    j = data.draw(st.integers(0, clip.length - 1))
    seen = [o.n for o in stream(clip.plan, Source(clip), remember) if any(j in w for w in o.value)]
    plan = clip.plan
    assert j in seen  # its own window has it in the middle
    assert min(seen) >= j - plan.look_ahead
    next_cut = min((c for c in clip.cuts if c > j), default=clip.length)
    assert max(seen) < next_cut
    if plan.segment:
        segments = (j + plan.look_behind + plan.warmup) // plan.segment + 1
        assert max(seen) < segments * plan.segment


@pytest.mark.parametrize("late", [1, 5])
def test_an_origin_that_is_too_late_is_refused(late: int) -> None:
    plan = Plan(8, 2, 1, 1)
    with pytest.raises(ValueError, match="needs frames from 5"):
        next(stream(plan, iter([]), remember, origin=plan.origin(9) + late, first=9))


def test_an_empty_clip_gives_nothing() -> None:
    assert list(stream(Plan(), iter([]), remember)) == []


def test_a_clip_that_ends_before_the_first_frame_gives_nothing() -> None:
    clip = Clip(Plan(4, 1), 3, frozenset())
    assert list(stream(clip.plan, Source(clip), remember, first=10)) == []
