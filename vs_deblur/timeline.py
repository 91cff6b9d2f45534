"""Which frames a frame depends on: segments, warm-up and scene cuts. Pure functions.

Output frame n is computed by the recurrence started with fresh state at ::

    start(n) = max(last_cut(n), segment * (n // segment) - warmup, 0)

where ``last_cut(n)`` is the last frame ``c <= n`` that begins a scene. That is a function of the
clip, the parameters and n alone, so frame n is the same whatever was asked for before: playing
backwards, seeking, many threads, chunks of a clip on many machines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from vs_deblur.errors import UsageError


@dataclass(frozen=True)
class Plan:
    """The parameters of the recurrence in time.

    Attributes:
        segment: frames of a segment; 0 for one segment without end ("from the last cut, however
            far", the online mode of Kim et al. 2017).
        warmup: frames before a segment over which its state is warmed up; never more than
            ``segment`` (larger values are cut to it).
        look_behind: past frames in a network's window.
        look_ahead: future frames in it.
    """

    segment: int = 64
    warmup: int = 8
    look_behind: int = 1
    look_ahead: int = 1

    def __post_init__(self) -> None:
        if self.segment < 0:
            raise UsageError(f"segment must be 0 or more, got {self.segment}")
        if self.warmup < 0:
            raise UsageError(f"warmup must be 0 or more, got {self.warmup}")
        if self.segment and self.warmup > self.segment:
            # Short segments are for short seeks: the default warm-up must not forbid them.
            object.__setattr__(self, "warmup", self.segment)

    def earliest(self, n: int) -> int:
        """The start of frame n if there were no cuts."""
        if not self.segment:
            return 0
        return max(self.segment * (n // self.segment) - self.warmup, 0)

    def origin(self, n: int) -> int:
        """The earliest frame of the clip that output frame n can depend on."""
        return max(self.earliest(n) - self.look_behind, 0)

    def start(self, n: int, is_cut: Callable[[int], bool]) -> int:
        """The frame at which the recurrence that gives frame n begins (its anchor).

        Args:
            n: frame number, 0 or more.
            is_cut: whether a frame begins a new scene; asked for frames ``earliest(n) < c <= n``
                only, from n downwards until it says yes.
        """
        first = self.earliest(n)
        for c in range(n, first, -1):
            if is_cut(c):
                return c
        return first

    def window(self, n: int, length: int, is_cut: Callable[[int], bool]) -> tuple[int, ...]:
        """The frames of the window of frame n, oldest first.

        Frames beyond a cut or an end of the clip are replaced by the nearest frame that is not.

        Args:
            n: frame number, 0..length-1.
            length: frames of the clip.
            is_cut: whether a frame begins a new scene.
        """
        first = n
        while first > max(n - self.look_behind, 0) and not is_cut(first):
            first -= 1
        last = n
        while last < min(n + self.look_ahead, length - 1) and not is_cut(last + 1):
            last += 1
        return tuple(
            min(max(i, first), last) for i in range(n - self.look_behind, n + self.look_ahead + 1)
        )


@dataclass(frozen=True)
class Output[T]:
    """One computed frame.

    Attributes:
        n: frame number in the clip.
        value: what the step gave.
        anchor: the frame at which its recurrence began.
    """

    n: int
    value: T
    anchor: int

    @property
    def reset(self) -> bool:
        """Whether the recurrence began with this very frame."""
        return self.anchor == self.n


def stream[F, M, T](
    plan: Plan,
    frames: Iterable[tuple[F, bool]],
    step: Callable[[Sequence[F], M | None], tuple[T, M]],
    *,
    origin: int = 0,
    first: int = 0,
    end: int | None = None,
) -> Iterator[Output[T]]:
    """Run the recurrence over frames that come in order, by the same rule as random access.

    Holds at most ``warmup + look_behind + look_ahead + 1`` frames. At the border of a segment the
    warm-up frames are run again with fresh state, so a linear run costs ``1 + warmup / segment``
    steps a frame.

    Args:
        plan: segments, warm-up and window.
        frames: each frame and whether it begins a scene, from frame ``origin`` on.
        step: maps the window's frames and a state (None: fresh) to an output and the next state.
        origin: number of the first frame that ``frames`` gives; at most ``plan.origin(first)``.
        first: first frame to put out.
        end: frame before which to stop; None for the end of the clip. Frames from ``end`` on are
            read only as far as a window needs them.

    Raises:
        ValueError: ``origin`` is too late for ``first``.
    """
    if origin > plan.origin(first):
        raise ValueError(f"frame {first} needs frames from {plan.origin(first)}, got {origin}")
    held: deque[tuple[F, bool]] = deque(maxlen=plan.warmup + plan.look_behind + plan.look_ahead + 1)
    source = iter(frames)
    arrived = origin  # frames before this one have come
    exhausted = False

    def is_cut(c: int) -> bool:
        return held[c - arrived][1]

    def run(i: int, memory: M | None) -> tuple[T, M]:
        return step([held[j - arrived][0] for j in plan.window(i, arrived, is_cut)], memory)

    anchor = n = plan.earliest(first)
    memory: M | None = None
    while end is None or n < end:
        while not exhausted and arrived <= n + plan.look_ahead:
            try:
                held.append(next(source))
                arrived += 1
            except StopIteration:
                exhausted = True
        if n >= arrived:
            return
        if memory is not None:
            if is_cut(n):
                anchor, memory = n, None
            elif anchor < plan.earliest(n):  # a new segment: warm up over the frames still held
                anchor, memory = plan.start(n, is_cut), None
                for i in range(anchor, n):
                    _, memory = run(i, memory)
        value, memory = run(n, memory)
        if n >= first:
            yield Output(n, value, anchor)
        n += 1
