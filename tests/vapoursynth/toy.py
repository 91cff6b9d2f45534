"""A recurrence that costs nothing and forgets nothing, clips, and what must come out of them."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

from vs_deblur.hosts.vapoursynth import _build
from vs_deblur.timeline import Plan

Planes = list[NDArray[Any]]
FORMAT = vs.YUV420P8
SIZE = (32, 16)
CUTS = frozenset({5, 23, 24, 31, 60, 64, 77})


@dataclass
class ToyFrame:
    planes: Planes
    non_finite: bool = False


class Toy:
    """Its state is a hash of all that it ever saw, and each sample it puts out depends on it."""

    model = "toy"

    def __init__(self, segment: int = 16, warmup: int = 4, behind: int = 1, ahead: int = 1) -> None:
        self.plan = Plan(segment, warmup, behind, ahead)
        self.steps = self.running = 0
        self.fails: set[int] = set()  # numbers of steps that raise

    def passes_through(self) -> bool:
        return False

    def prepare(self, planes: Sequence[Any], fmt: object) -> tuple[Planes, int]:
        own = [np.array(p) for p in planes]
        return own, zlib.crc32(b"".join(p.tobytes() for p in own))

    def step(self, window: Sequence[tuple[Planes, int]], state: Any) -> tuple[ToyFrame, Any]:
        self.running += 1
        assert self.running == 1, "two steps at a time"
        assert len(window) == self.plan.look_behind + 1 + self.plan.look_ahead
        self.steps += 1
        try:
            if self.steps in self.fails:
                from vs_deblur.errors import EngineError

                raise EngineError("the toy is broken", f"step {self.steps}")
            value = 0 if state is None else int(state[0])
            for _, digest in window:
                value = (value * 6364136223846793005 + 2 * digest + 1) % (1 << 64)
                value ^= value >> 29
            shift = np.frombuffer(value.to_bytes(8, "little"), np.uint8)
            middle = window[self.plan.look_behind][0]
            out = [(p + shift[i]).astype(p.dtype) for i, p in enumerate(middle)]
            return ToyFrame(out), (value,)
        finally:
            self.running -= 1


def noise(
    length: int,
    cuts: Collection[int] = (),
    *,
    fmt: int = FORMAT,
    size: tuple[int, int] = SIZE,
    changed: int | None = None,
    props: Mapping[int, Mapping[str, int]] | None = None,
) -> vs.VideoNode:
    """A clip of random samples, another at frame ``changed`` than without it."""
    width, height = size
    core = cast(Any, vs.core)
    blank = core.std.BlankClip(
        format=fmt, width=width, height=height, length=length, fpsnum=25, fpsden=1, keep=True
    )
    bits = blank.format.bits_per_sample

    def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        rng = np.random.default_rng([n, int(n == changed)])
        frame = f.copy()
        for p in range(blank.format.num_planes):
            plane = np.asarray(frame[p])
            if plane.dtype.kind == "f":
                plane[...] = rng.random(plane.shape, np.float32) - (0.5 if fmt_chroma(f, p) else 0)
            else:
                plane[...] = rng.integers(0, 1 << bits, plane.shape)
        frame.props.update(_Matrix=1, _Range=0, _SceneChangePrev=int(n in cuts), Number=n)
        frame.props.update((props or {}).get(n, {}))
        return frame

    return cast(vs.VideoNode, blank.std.ModifyFrame([blank], draw))


def fmt_chroma(frame: vs.VideoFrame, plane: int) -> bool:
    return plane > 0 and frame.format.color_family == vs.YUV


def planes_of(frame: vs.VideoFrame) -> Planes:
    return [np.array(frame[p]) for p in range(frame.format.num_planes)]


def read(clip: vs.VideoNode) -> list[Planes]:
    """All frames of a clip, one after the other."""
    out = []
    for n in range(clip.num_frames):
        with clip.get_frame(n) as frame:
            out.append(planes_of(frame))
    return out


def start(n: int, cuts: Collection[int], segment: int, warmup: int) -> int:
    """Where the recurrence of frame n starts, by the definition."""
    border = segment * (n // segment) - warmup if segment else 0
    return max([c for c in cuts if c <= n] + [border, 0])


def reference(
    engine: Any, frames: Sequence[Planes], cuts: Collection[int], fmt: object = None
) -> list[Planes]:
    """What must come out: each frame by a loop of its own, by the definition."""
    plan: Plan = engine.plan
    last = len(frames) - 1
    out = []
    for n in range(len(frames)):
        state = None
        for i in range(start(n, cuts, plan.segment, plan.warmup), n + 1):
            low = max([c for c in cuts if c <= i] + [0])
            high = min([c - 1 for c in cuts if c > i] + [last])
            window = [
                engine.prepare(frames[min(max(j, low), high)], fmt)
                for j in range(i - plan.look_behind, i + plan.look_ahead + 1)
            ]
            result, state = engine.step(window, state)
        out.append([np.array(p) for p in result.planes])
    return out


def filtered(clip: vs.VideoNode, engine: Any, threshold: float | None = None) -> vs.VideoNode:
    """The filter on a clip, with a toy (which needs no pixel format, and so no torch)."""
    return _build(clip, engine, threshold, lambda clip, n, props: None)


def same(got: Planes, wanted: Planes) -> bool:
    """Whether two frames are equal bit by bit."""
    return len(got) == len(wanted) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(got, wanted, strict=True)
    )


def wrong(frames: Iterator[tuple[int, vs.VideoFrame]], wanted: Sequence[Planes]) -> list[int]:
    """Numbers of the frames that are not what they must be."""
    bad = []
    for n, frame in frames:
        if not same(planes_of(frame), wanted[n]):
            bad.append(n)
        frame.close()
    return bad
