"""The orders in which a host may ask for frames."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import vapoursynth as vs

from tests.vapoursynth.toy import Planes, planes_of, same, wrong

Make = Callable[[], vs.VideoNode]


def one_by_one(clip: vs.VideoNode, order: Sequence[int]) -> Iterator[tuple[int, vs.VideoFrame]]:
    for n in order:
        yield n, clip.get_frame(n)


def burst(clip: vs.VideoNode, order: Sequence[int]) -> Iterator[tuple[int, vs.VideoFrame]]:
    """All at once."""
    futures = [(n, clip.get_frame_async(n)) for n in order]
    for n, future in futures:
        yield n, future.result()


def prefetched(clip: vs.VideoNode, ahead: int) -> Iterator[tuple[int, vs.VideoFrame]]:
    return enumerate(clip.frames(prefetch=ahead))


def consumers(clip: vs.VideoNode, wanted: Sequence[Planes], count: int) -> list[int]:
    """Threads that each play the clip, from different places and in different directions."""
    length = clip.num_frames
    bad: list[int] = []

    def play(k: int) -> None:
        order = [(k * length // count + i) % length for i in range(length)]
        bad.extend(wrong(one_by_one(clip, order[:: -1 if k % 2 else 1]), wanted))

    threads = [threading.Thread(target=play, args=(k,)) for k in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return bad


def interleaved(clip: vs.VideoNode, wanted: Sequence[Planes]) -> list[int]:
    """The clip and its reverse at the same time."""
    backwards = cast(Any, clip).std.Reverse()
    both = cast(Any, vs.core).std.Interleave([clip, backwards])
    last = clip.num_frames - 1
    bad = []
    for i, frame in enumerate(both.frames(prefetch=4)):
        n = i // 2 if i % 2 == 0 else last - i // 2
        if not same(planes_of(frame), wanted[n]):
            bad.append(n)
    return bad


def two_instances(make: Make, wanted: Sequence[Planes]) -> list[int]:
    a, b = make(), make()
    order = range(a.num_frames)
    bad = []
    for n in order:
        for clip, i in ((a, n), (b, order[-1] - n)):
            bad += wrong(one_by_one(clip, [i]), wanted)
    return bad


def check(make: Make, wanted: Sequence[Planes], seed: int = 1) -> None:
    """Ask for the frames in each way, of a fresh filter each time."""
    length = len(wanted)
    forwards = range(length)
    shuffled = random.Random(seed).sample(forwards, length)
    third = length // 3
    seek = [*range(2 * third), *range(third, min(third + 4, length)), *range(length)]
    found = {
        "sequential": wrong(one_by_one(make(), forwards), wanted),
        "reverse": wrong(one_by_one(make(), forwards[::-1]), wanted),
        "shuffled": wrong(one_by_one(make(), shuffled), wanted),
        "twice": wrong(one_by_one(make(), [n for n in forwards for _ in range(2)]), wanted),
        "seek back": wrong(one_by_one(make(), seek), wanted),
        "burst": wrong(burst(make(), shuffled), wanted),
        "interleaved": interleaved(make(), wanted),
        "two instances": two_instances(make, wanted),
        "two consumers": consumers(make(), wanted, 2),
        "three consumers": consumers(make(), wanted, 3),
    }
    for ahead in (1, 2, 8, 32):
        found[f"prefetch {ahead}"] = wrong(prefetched(make(), ahead), wanted)
    bad = {name: frames for name, frames in found.items() if frames}
    assert not bad, f"wrong frames: {bad}"
