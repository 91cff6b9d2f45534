"""Long random sequences of requests against a plain recurrence: streams, seeks, tiles.

Unlike the tests of single calls, what was asked for before stays: iterators half used, states kept,
memory that ran out. The filter itself is asked so in ``tests/vapoursynth/test_sequences.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tests.test_timeline import (
    Clip,
    History,
    Source,
    clips,
    reference,
    reference_start,
    reference_window,
    remember,
)
from vs_deblur.engine import Deblurrer, Prepared
from vs_deblur.errors import DeviceError
from vs_deblur.states import Slot, States, size_of
from vs_deblur.timeline import Output, stream
from vs_deblur_kernels.pixels import PixelFormat
from vs_deblur_models.spec import NetworkSpec

# No clock decides, on a busy machine either.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# -------------------------------------------------------------------------------- hosts in order


@dataclass
class Playing:
    """A stream that somebody reads."""

    outputs: Iterator[Output[History]]
    source: Source
    following: int
    stop: int


class Streams(RuleBasedStateMachine):
    """Several streams over one clip, each opened somewhere, read a little now and then, closed."""

    @initialize(clip=clips())
    def begin(self, clip: Clip) -> None:
        self.clip = clip
        self.playing: list[Playing] = []

    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        clip = self.clip
        first = data.draw(st.integers(0, clip.length - 1), "first")
        end = data.draw(st.none() | st.integers(first, clip.length + 2), "end")
        origin = data.draw(st.integers(0, clip.plan.origin(first)), "origin")
        source = Source(clip, origin)
        outputs = stream(clip.plan, source, remember, origin=origin, first=first, end=end)
        stop = clip.length if end is None else min(end, clip.length)
        self.playing.append(Playing(outputs, source, first, stop))

    @precondition(lambda self: self.playing)
    @rule(data=st.data(), count=st.integers(1, 12))
    def read(self, data: st.DataObject, count: int) -> None:
        one = data.draw(st.sampled_from(self.playing))
        for _ in range(count):
            output = next(one.outputs, None)
            if output is None:
                assert one.following == one.stop
                return
            n = one.following
            assert (output.n, output.anchor) == (n, reference_start(self.clip, n))
            assert output.value == reference(self.clip, n)
            seen = one.source.origin + one.source.taken
            assert seen <= min(n + 1 + self.clip.plan.look_ahead, self.clip.length)
            one.following += 1

    @precondition(lambda self: self.playing)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.playing.remove(data.draw(st.sampled_from(self.playing)))


def test_streams_do_not_disturb_each_other() -> None:
    run_state_machine_as_test(
        Streams, settings=settings(UNTIMED, max_examples=60, stateful_step_count=20)
    )


# ---------------------------------------------------------------------------- hosts in any order


@dataclass(frozen=True)
class Kept:
    """A state that is the whole history of its recurrence and claims to take memory."""

    history: History
    nbytes: int


class Seeks(RuleBasedStateMachine):
    """A host that asks for frames in any order and keeps states, as few as it can."""

    @initialize(
        clip=clips(),
        stride=st.integers(1, 6),
        keep=st.integers(2, 5),
        budget=st.integers(0, 1000),
        size=st.integers(0, 300),
    )
    def begin(self, clip: Clip, stride: int, keep: int, budget: int, size: int) -> None:
        self.clip, self.size = clip, size
        self.states = States(stride, keep, budget)
        self.held: list[tuple[tuple[int, int], Slot, bool]] = []
        self.steps = 0

    def _step(self, n: int, state: tuple[Kept] | None) -> tuple[History, tuple[Kept]]:
        self.steps += 1
        window = self.clip.plan.window(n, self.clip.length, self.clip.cuts.__contains__)
        history, _ = remember(window, None if state is None else state[0].history)
        return history, (Kept(history, self.size),)

    def _frame(self, n: int) -> History:
        anchor = self.clip.plan.start(n, self.clip.cuts.__contains__)
        state: tuple[Kept] | None = None
        first = anchor
        for i in range(n - 1, anchor - 1, -1):
            if self.states.is_filled((anchor, i)):
                state, first = self.states.slot((anchor, i)).state, i + 1
                break
        for i in range(first, n + 1):
            value, state = self._step(i, state)
            self.states.put((anchor, i), state)
        return value

    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(0, self.clip.length - 1))
        before = self.steps
        assert self._frame(n) == reference(self.clip, n)
        assert self.steps - before <= n - reference_start(self.clip, n) + 1

    @rule(data=st.data(), count=st.integers(2, 8), back=st.booleans())
    def play(self, data: st.DataObject, count: int, back: bool) -> None:
        n = data.draw(st.integers(0, self.clip.length - 1))
        for i in range(n, n - count, -1) if back else range(n, n + count):
            if 0 <= i < self.clip.length:
                assert self._frame(i) == reference(self.clip, i)

    @rule(data=st.data())
    def wait_for(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(0, self.clip.length - 1))
        key = (reference_start(self.clip, n), n)
        slot = self.states.slot(key)
        self.held.append((key, slot, slot.filled))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def have(self, data: st.DataObject) -> None:
        """What somebody waits for is his when it comes, however much comes after it."""
        key, slot, _ = data.draw(st.sampled_from(self.held))
        assert self._frame(key[1]) == reference(self.clip, key[1])
        assert slot.filled
        assert self.states.slot(key) is slot

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        self.held.remove(data.draw(st.sampled_from(self.held)))

    @invariant()
    def states_are_of_their_frames(self) -> None:
        for (anchor, n), slot in self.states._slots.items():
            if slot.filled:
                windows = tuple(reference_window(self.clip, i) for i in range(anchor, n + 1))
                assert slot.state[0].history == windows
        for _, slot, was_filled in self.held:
            assert slot.filled or not was_filled

    @invariant()
    def no_more_is_kept_than_may_be(self) -> None:
        states = self.states
        recent, milestones = states._recent, states._milestones
        assert not recent.keys() & milestones.keys()
        assert len(recent) <= states.keep
        assert len(milestones) <= states.keep
        assert all(n % states.stride == 0 for _, n in milestones)
        kept = [*recent.values(), *milestones.values()]
        assert states._bytes == sum(size_of(slot.state) for slot in kept)
        assert states._bytes <= states.budget or (len(recent) <= 2 and not milestones)


def test_seeks_with_few_states_give_each_frame_its_own_history() -> None:
    run_state_machine_as_test(
        Seeks, settings=settings(UNTIMED, max_examples=60, stateful_step_count=25)
    )


# ------------------------------------------------------------------------------------------ tiles

LEVELS = 256  # values are integers below this, over it: exact in float32 whatever is added when
REACH = 4
FORMAT = PixelFormat("rgb", 32, True, full_range=True)
WEIGHTS = (1, 3, 2, 5, 7, 11, 13, 4, 6)  # of the channels of a window of three frames


def _around(x: Tensor, reach: int) -> Tensor:
    """Sums over squares, with zeros beyond the border."""
    wide = F.pad(x, (reach,) * 4)
    height, width = x.shape[-2:]
    size = range(2 * reach + 1)
    rows = sum((wide[..., i : i + height, :] for i in size), torch.zeros(()))
    return sum((rows[..., i : i + width] for i in size), torch.zeros(()))


class Exact:
    """A network of integers that looks as far as it says, with states of full and half size."""

    spec = NetworkSpec(
        network="exact",
        multiple_of=4,
        minimum=8,
        receptive_field=REACH,
        look_behind=1,
        look_ahead=1,
        is_recurrent=True,
        flops_per_pixel=1.0,
        bytes_per_pixel=1.0,
    )
    room = 1 << 30  # pixels of the largest part that there is memory for

    def step(self, window: Tensor, state: Any) -> tuple[Tensor, Any]:
        if window.shape[-1] * window.shape[-2] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        height, width = window.shape[-2:]
        half, full = state or (
            torch.zeros(1, 1, height // 2, width // 2),
            torch.zeros(1, 1, height, width),
        )
        x = torch.round(window * LEVELS)
        weights = torch.tensor(WEIGHTS, dtype=torch.float32)[:, None, None]
        seen = _around((x * weights).sum(1, keepdim=True), REACH)
        twice = _around(half, 1).repeat_interleave(2, -1).repeat_interleave(2, -2)
        total = seen + 3 * twice + 5 * _around(full, 2)
        out = torch.remainder(x[:, 3:6] + total, LEVELS)
        both = out.sum(1, keepdim=True)
        pairs = both[..., ::2, :] + both[..., 1::2, :]
        pairs = pairs[..., ::2] + pairs[..., 1::2]
        return out / LEVELS, (torch.remainder(pairs, LEVELS), torch.remainder(total, LEVELS))


Integers = NDArray[np.int64]


def exact_step(
    window: Sequence[Integers], state: tuple[Integers, Integers] | None
) -> tuple[Integers, tuple[Integers, Integers]]:
    """What :class:`Exact` does to whole frames (3, H, W), written by other means."""
    _, height, width = window[0].shape

    def around(x: Integers, reach: int) -> Integers:
        total = np.zeros_like(x)
        h, w = x.shape
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                top, bottom = max(-dy, 0), h - max(dy, 0)
                left, right = max(-dx, 0), w - max(dx, 0)
                if top < bottom and left < right:
                    total[top:bottom, left:right] += x[
                        top + dy : bottom + dy, left + dx : right + dx
                    ]
        return total

    half, full = state or (
        np.zeros((height // 2, width // 2), np.int64),
        np.zeros((height, width), np.int64),
    )
    channels = [c for frame in window for c in frame]
    mixed = sum((w * c for w, c in zip(WEIGHTS, channels, strict=True)), np.zeros_like(full))
    total = around(mixed, REACH) + 3 * np.kron(around(half, 1), np.ones((2, 2), np.int64))
    total += 5 * around(full, 2)
    out = (window[1] + total) % LEVELS
    blocks = out.sum(0).reshape(height // 2, 2, width // 2, 2).sum((1, 3))
    return out, (blocks % LEVELS, total % LEVELS)


@dataclass(frozen=True)
class Point:
    """A place in a recurrence that was reached: both states after it, ours and the reference's."""

    frame: int
    state: Any
    wanted: Any


class Tiles(RuleBasedStateMachine):
    """One clip, each step in tiles of another size, with memory that runs out, and from states
    that were kept: always the same integers."""

    weights: Path

    def __init__(self) -> None:
        super().__init__()
        self.deblurrer = Deblurrer(str(self.weights), device="cpu", precision="fp32")
        self.deblurrer.network = self.network = Exact()
        self.deblurrer.spec = Exact.spec

    @initialize(
        height=st.integers(1, 60),
        width=st.integers(1, 60),
        length=st.integers(1, 4),
        seed=st.integers(0, 99),
    )
    def begin(self, height: int, width: int, length: int, seed: int) -> None:
        self.frames = np.random.default_rng(seed).integers(0, LEVELS, (length, 3, height, width))
        bottom, right = (max(-(-side // 4) * 4, 8) - side for side in (height, width))
        padding = ((0, 0), (0, 0), (0, bottom), (0, right))
        self.padded = np.pad(self.frames, padding, mode="edge")
        self.points: list[Point] = []

    def _window(self, n: int) -> list[int]:
        return [min(max(n + d, 0), len(self.frames) - 1) for d in (-1, 0, 1)]

    def _prepared(self, n: int) -> Prepared:
        return self.deblurrer.prepare([(p / LEVELS).astype("f4") for p in self.frames[n]], FORMAT)

    def _go(self, n: int, state: Any, wanted_state: Any) -> None:
        numbers = self._window(n)
        frame, following = self.deblurrer.step([self._prepared(i) for i in numbers], state)
        wanted, wanted_following = exact_step([self.padded[i] for i in numbers], wanted_state)
        height, width = self.frames.shape[-2:]
        for got, plane in zip(frame.planes, wanted, strict=True):
            assert got.tobytes() == (plane[:height, :width] / LEVELS).astype("f4").tobytes()
        for ours, theirs in zip(following, wanted_following, strict=True):
            assert ours[0, 0].numpy().tobytes() == theirs.astype("f4").tobytes()
        self.points.append(Point(n, following, wanted_following))

    @rule(tile=st.none() | st.integers(1, 40))
    def cut(self, tile: int | None) -> None:
        self.deblurrer._tile = None if tile is None else -(-tile // 4) * 4

    @rule(room=st.none() | st.integers(24 * 24, 60 * 60))
    def memory(self, room: int | None) -> None:
        """So much memory as for the least tile, 16 pixels and twice 4, is always there."""
        self.network.room = room or 1 << 30

    @rule()
    def recover(self) -> None:
        self.deblurrer._ceiling = None

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self._go(data.draw(st.integers(0, len(self.frames) - 1)), None, None)

    @precondition(lambda self: self.points)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        point = data.draw(st.sampled_from(self.points))
        self._go(min(point.frame + 1, len(self.frames) - 1), point.state, point.wanted)

    @precondition(lambda self: self.points)
    @rule()
    def starve(self) -> None:
        """No memory for anything: an error, and nothing that was kept is harmed."""
        if max(self.padded.shape[-2:]) <= 16:
            return
        room, self.network.room = self.network.room, 10
        tile, self.deblurrer._tile = self.deblurrer._tile, None
        point = self.points[-1]
        numbers = self._window(point.frame)
        with pytest.raises(DeviceError):
            self.deblurrer.step([self._prepared(i) for i in numbers], point.state)
        self.network.room, self.deblurrer._tile = room, tile
        self.deblurrer._ceiling = None


def test_tiles_of_any_size_in_any_order_are_the_whole_frame(small_weights: Path) -> None:
    machine = type("Tiles", (Tiles,), {"weights": small_weights})
    run_state_machine_as_test(
        machine,
        settings=settings(
            UNTIMED,
            max_examples=40,
            stateful_step_count=15,
            # A sequence is short enough to be read as it is; to shorten it would take minutes.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )
