"""What the hosts with frames in order share: clips, scene cuts, reading ahead, writing behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vs_deblur.errors import UsageError

if TYPE_CHECKING:
    from vs_deblur.engine import Deblurrer, Frame
    from vs_deblur.timeline import Output
    from vs_deblur_kernels.planes import PixelFormat

Plane = NDArray[Any]


@dataclass(frozen=True)
class ClipInfo:
    """A clip of one format and size.

    Attributes:
        width, height: pixels.
        fmt: how to read the samples.
        frame_rate: frames a second; None where it is unknown or varies.
        sample_aspect_ratio: width to height of a pixel; None where unknown.
        length: number of frames; None where it is not known beforehand.
    """

    width: int
    height: int
    fmt: PixelFormat
    frame_rate: Fraction | None = None
    sample_aspect_ratio: Fraction | None = None
    length: int | None = None


class SceneDetector:
    """Finds frames that begin a scene: the mean absolute difference of the first plane to the
    frame before, as a share of the full scale, is above the threshold. That is the
    ``PlaneStatsDiff`` of VapourSynth's ``std.PlaneStats``.

    Args:
        threshold: 0..1; None finds no cut.
        fmt: the clip's format.
    """

    def __init__(self, threshold: float | None, fmt: PixelFormat) -> None:
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise UsageError(f"the scene threshold must be 0..1, got {threshold:g}")
        self.threshold, self.peak = threshold, fmt.peak
        self._last: Plane | None = None

    def is_cut(self, planes: Sequence[Plane]) -> bool:
        """Whether this frame, the next in order, begins a scene."""
        if self.threshold is None:
            return False
        this = np.array(planes[0])
        last, self._last = self._last, this
        if last is None:
            return False
        wide = np.float64 if this.dtype.kind == "f" else np.int32
        difference = np.abs(this.astype(wide) - last.astype(wide))
        return bool(difference.sum(dtype=np.float64) / (this.size * self.peak) > self.threshold)


@dataclass(frozen=True)
class _Raised:
    error: BaseException


_END = object()


def read_ahead[T](items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """Iterate in a thread of its own, at most ``depth`` items ahead.

    An error of the source is raised here, after the items before it. When this iterator is closed
    the thread ends as soon as the source gives its next item.
    """
    waiting: queue.Queue[Any] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: object) -> bool:
        while not closed.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # it belongs to whoever iterates
            put(_Raised(error))

    # A daemon: a source that blocks in read() must not keep the process from ending.
    threading.Thread(target=work, name="vs-deblur read ahead", daemon=True).start()
    try:
        while True:
            item = waiting.get()
            if item is _END:
                return
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        closed.set()


class WriteBehind[T]:
    """Calls ``write(item)`` for each item, in order, in a thread of its own.

    An error of ``write`` is raised by the next :meth:`put` or by :meth:`close`. Use it as a
    context manager: leaving it normally waits until everything is written, leaving it by an error
    drops what waits but lets the item in hand be finished.
    """

    def __init__(self, write: Callable[[T], object], depth: int = 4) -> None:
        self._waiting: queue.Queue[Any] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._drop = False
        self._write = write
        self._thread = threading.Thread(target=self._work, name="vs-deblur write", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (item := self._waiting.get()) is not _END:
            if self._error is None and not self._drop:
                try:
                    self._write(item)
                except BaseException as error:  # raised where the items come from
                    self._error = error

    def _check(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            self._drop = True
            raise error

    def put(self, item: T) -> None:
        """Hand over an item; waits while too many are on their way."""
        self._check()
        self._waiting.put(item)

    def close(self, drop: bool = False) -> None:
        """Wait until everything is written (or, with ``drop``, the item in hand)."""
        if self._thread.is_alive():
            self._drop = self._drop or drop
            self._waiting.put(_END)
            self._thread.join()
        if not drop:
            self._check()

    def __enter__(self) -> WriteBehind[T]:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(drop=kind is not None)


def deblur_frames(
    deblurrer: Deblurrer,
    frames: Iterable[Sequence[Plane]],
    fmt: PixelFormat,
    *,
    scene_threshold: float | None = None,
    origin: int = 0,
    first: int = 0,
    end: int | None = None,
) -> Iterator[Output[Frame]]:
    """Deblur frames that come in order, reading ahead in a thread.

    Args:
        deblurrer: the engine.
        frames: planes of each frame from number ``origin`` on; each frame's arrays its own.
        fmt: their format.
        scene_threshold: see :class:`SceneDetector`.
        origin: number of the first frame that comes, at most ``deblurrer.plan.origin(first)``.
        first: first frame wanted.
        end: frame before which to stop; None for all.
    """
    from vs_deblur.engine import Frame
    from vs_deblur.timeline import Output

    detector = SceneDetector(scene_threshold, fmt)
    ahead = read_ahead(frames)
    try:
        if deblurrer.passes_through():
            for n, planes in enumerate(ahead, origin):
                if end is not None and n >= end:
                    return
                if n >= first:
                    yield Output(n, Frame([np.asarray(p) for p in planes], False), n)
            return
        marked = ((planes, detector.is_cut(planes)) for planes in ahead)
        yield from deblurrer.stream(marked, fmt, origin=origin, first=first, end=end)
    finally:
        ahead.close()  # type: ignore[attr-defined]
