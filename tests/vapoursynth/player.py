"""A host that does as it is told: ``python -m tests.vapoursynth.player``, a JSON command a line.

It answers each command with a line of JSON: ``{"got": …}``, or ``{"error": …}``. Frames are told as
``[n, digest of the samples, anchor, reset]``. See test_sequences.py for who tells it what.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import traceback
import warnings
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, cast

import vapoursynth as vs

from tests.vapoursynth.toy import Toy, filtered, noise, planes_of

type Seen = list[Any]


def seen(n: int, frame: vs.VideoFrame) -> Seen:
    """What is told of a frame."""
    with frame:
        samples = b"".join(p.tobytes() for p in planes_of(frame))
        props = frame.props
        assert props["Number"] == n
        assert not [name for name in props if name.startswith("_VSDeblur")]
        digest = hashlib.sha256(samples).hexdigest()[:16]
        return [n, digest, props["VSDeblurAnchor"], props["VSDeblurReset"]]


class Player:
    """Clips by number, and requests on their way."""

    def __init__(self) -> None:
        self.clips: dict[int, vs.VideoNode] = {}
        self.waiting: dict[int, list[tuple[int, Future[vs.VideoFrame]]]] = {}
        self.core()

    def core(self, threads: int = 2, cache: int = 1000) -> None:
        """How much VapourSynth may use: threads, and MiB of frames that are kept."""
        vs.core.num_threads = threads
        vs.core.max_cache_size = cache

    def open(
        self,
        number: int,
        source: int | None,
        length: int,
        size: list[int],
        cuts: list[int],
        plan: list[int],
        threshold: float | None,
    ) -> None:
        """A filter on a clip of noise, or on another filter."""
        width, height = size
        clip = noise(length, cuts, size=(width, height)) if source is None else self.clips[source]
        self.clips[number] = filtered(clip, Toy(*plan), threshold)
        self.waiting[number] = []

    def ask(self, number: int, frames: list[int]) -> None:
        """Ask for frames, all at once, and wait for none."""
        clip = self.clips[number]
        self.waiting[number] += [(n, clip.get_frame_async(n)) for n in frames]

    def collect(self, number: int) -> list[Seen]:
        """What came of it."""
        waiting, self.waiting[number] = self.waiting[number], []
        return [seen(n, future.result()) for n, future in waiting]

    def forget(self, number: int) -> None:
        """Nobody wants what was asked for any more."""
        self.waiting[number].clear()

    def get(self, number: int, frames: list[int]) -> list[Seen]:
        """One after the other."""
        return [seen(n, self.clips[number].get_frame(n)) for n in frames]

    def play(self, number: int, first: int, end: int, prefetch: int) -> list[Seen]:
        """A part of a clip in order, as vspipe asks for it."""
        part = self.clips[number][first:end]
        return self._told(range(first, end), part.frames(prefetch=prefetch, backlog=prefetch + 2))

    def both_ways(self, number: int, prefetch: int) -> list[Seen]:
        """The clip and its reverse at the same time."""
        clip = cast(Any, self.clips[number])
        both = cast(Any, vs.core).std.Interleave([clip, clip.std.Reverse()])
        last = clip.num_frames - 1
        numbers = [n for i in range(last + 1) for n in (i, last - i)]
        return self._told(numbers, both.frames(prefetch=prefetch))

    def _told(self, numbers: Iterable[int], frames: Iterable[vs.VideoFrame]) -> list[Seen]:
        return [seen(n, frame) for n, frame in zip(numbers, frames, strict=True)]

    def clear(self) -> None:
        """VapourSynth drops the frames that it keeps."""
        cast(Any, vs.core).clear_cache()

    def drop(self, number: int) -> None:
        """The last reference to a filter goes; what was asked of it is still on its way."""
        del self.clips[number]
        gc.collect()

    def end(self) -> int:
        """Back to where it began; tells how many filters were left."""
        self.clips.clear()
        for waiting in self.waiting.values():
            for _, future in waiting:
                future.exception()
        self.waiting.clear()
        self.core()
        self.clear()
        gc.collect()
        return sum(type(o) is Toy for o in gc.get_objects())


def main() -> None:
    warnings.simplefilter("error")
    player = Player()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"got": getattr(player, name)(**arguments)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
