"""What the hosts with frames in order share: clips, scene cuts, reading ahead, writing behind."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vs_deblur.errors import DeblurError, InputError, Stopped, UsageError

if TYPE_CHECKING:
    from vs_deblur.engine import Deblurrer, Frame
    from vs_deblur.timeline import Output
    from vs_deblur_kernels.pixels import PixelFormat

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


Check = Callable[[], None]
_POLL = 0.1  # seconds between two looks at whether to stop, while waiting


@dataclass(frozen=True)
class MarkedFrame:
    """A frame whose source knows where scenes begin.

    Attributes:
        planes: its samples, arrays of its own.
        cut: whether it begins a new scene.
    """

    planes: Sequence[Plane]
    cut: bool


@dataclass(frozen=True)
class _Raised:
    error: BaseException


_END = object()


def read_ahead[T](items: Iterable[T], depth: int = 4, check: Check | None = None) -> Generator[T]:
    """Iterate in a thread of its own, at most ``depth`` items ahead.

    An error of the source is raised here, after the items before it. When this iterator is closed
    the thread ends as soon as the source gives its next item; a source that is a generator is
    closed then, in that thread.

    Args:
        items: the source.
        depth: how many items may wait, 1 or more.
        check: called before each item and several times a second while one is awaited; what it
            raises is raised here.
    """
    waiting: queue.Queue[Any] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: object) -> bool:
        while not closed.is_set():
            try:
                waiting.put(item, timeout=_POLL)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    break
            if isinstance(items, Generator):
                items.close()
            put(_END)
        except BaseException as error:  # it belongs to whoever iterates
            put(_Raised(error))

    def take() -> Any:
        if check is None:
            return waiting.get()
        while True:
            check()
            try:
                return waiting.get(timeout=_POLL)
            except queue.Empty:
                continue

    # A daemon: a source that blocks in read() must not keep the process from ending.
    thread = threading.Thread(target=work, name="vs-deblur read ahead", daemon=True)
    thread.start()
    try:
        while (item := take()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        closed.set()
        # Sources give up their decoder or script when they are closed: wait for that, but not for
        # one that is stuck.
        thread.join(timeout=2 * _POLL)


class WriteBehind[T]:
    """Calls ``write(item)`` for each item, in order, in a thread of its own.

    An error of ``write`` is raised once, by the next :meth:`put` or by :meth:`close`; nothing is
    written after it. Use it as a context manager: leaving it normally, or by an error of ours,
    waits until everything is written; leaving it by :class:`~vs_deblur.errors.Stopped`, or by
    anything else, drops what waits but lets the item in hand be finished.

    Args:
        write: takes an item.
        depth: how many items may wait, besides the one in hand.
        check: called several times a second while waiting; what it raises is raised there.
        progress: something that changes while ``write`` gets on; None if nobody knows.
        patience: seconds without progress after which the item in hand is given up, where
            progress is known.

    Attributes:
        gave_up: whether it was.
    """

    def __init__(
        self,
        write: Callable[[T], object],
        depth: int = 4,
        check: Check | None = None,
        progress: Callable[[], object] | None = None,
        patience: float = 2.0,
    ) -> None:
        self._write, self._depth = write, depth
        self._check, self._progress, self._patience = check, progress, patience
        self._waiting: deque[T] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._error: BaseException | None = None
        self._failed = False
        self.gave_up = False
        # A daemon: a reader that takes no more must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="vs-deblur write", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                if not self._waiting:
                    return
                item = self._waiting.popleft()
                self._changed.notify_all()
            try:
                self._write(item)
            except BaseException as error:  # raised where the items come from
                with self._changed:
                    self._error, self._failed = error, True
                    self._waiting.clear()
                    self._changed.notify_all()
                return

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def put(self, item: T) -> None:
        """Hand over an item; waits while too many are on their way.

        Raises:
            ValueError: it was closed.
        """
        with self._changed:
            while len(self._waiting) >= self._depth and not self._failed:
                if self._check is not None:
                    self._check()
                self._changed.wait(_POLL)
            self._raise()
            if self._ending or self._failed:
                raise ValueError("written to after the end")
            self._waiting.append(item)
            self._changed.notify_all()

    def _end(self, drop: bool) -> None:
        with self._changed:
            self._ending = True
            if drop:
                self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until everything is written, and raise the error there was."""
        self._end(drop=False)
        while self._thread.is_alive():
            try:
                if self._check is not None:
                    self._check()
            except BaseException:
                self.abandon()
                raise
            self._thread.join(_POLL)
        self._raise()

    def abandon(self) -> None:
        """Drop what waits and let the item in hand be finished, or given up."""
        self._end(drop=True)
        progress = self._progress
        while self._thread.is_alive():
            before = progress() if progress is not None else None
            self._thread.join(self._patience)
            if self._thread.is_alive() and progress is not None and progress() == before:
                self.gave_up = True
                return

    def __enter__(self) -> WriteBehind[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        in_order = kind is None or issubclass(kind, DeblurError)
        if in_order and not (kind and issubclass(kind, Stopped)):
            self.close()
        else:
            self.abandon()


def deblur_frames(
    deblurrer: Deblurrer,
    frames: Iterable[Sequence[Plane] | MarkedFrame],
    fmt: PixelFormat,
    *,
    scene_threshold: float | None = None,
    origin: int = 0,
    first: int = 0,
    end: int | None = None,
    check: Check | None = None,
) -> Generator[Output[Frame]]:
    """Deblur frames that come in order, reading ahead in a thread.

    Where the source fails, the frames that it gave before still come out, as those of a clip that
    ends there; then its error is raised, unless these are all that were wanted.

    Args:
        deblurrer: the engine.
        frames: planes of each frame from number ``origin`` on, each frame's arrays its own; or
            the same with a mark at scene cuts, which counts besides those that are detected.
        fmt: their format.
        scene_threshold: see :class:`SceneDetector`.
        origin: number of the first frame that comes, at most ``deblurrer.plan.origin(first)``.
        first: first frame wanted.
        end: frame before which to stop; None for all.
        check: called at each frame and while waiting for one; raises to give up.
    """
    if deblurrer.passes_through():
        yield from untouched_frames(frames, origin=origin, first=first, end=end, check=check)
        return
    detector = SceneDetector(scene_threshold, fmt)
    failure: DeblurError | None = None

    def marked() -> Iterator[tuple[Sequence[Plane], bool]]:
        nonlocal failure
        try:
            for item in ahead:
                mark = item if isinstance(item, MarkedFrame) else MarkedFrame(item, False)
                yield mark.planes, detector.is_cut(mark.planes) or mark.cut
        except InputError as error:
            failure = error

    following = first
    with contextlib.closing(read_ahead(frames, check=check)) as ahead:
        for output in deblurrer.stream(marked(), fmt, origin=origin, first=first, end=end):
            following = output.n + 1
            yield output
    # Windows look beyond the last frame wanted; what cannot be read there is nobody's loss.
    if failure is not None and (end is None or following < end):
        raise failure


def untouched_frames(
    frames: Iterable[Sequence[Plane] | MarkedFrame],
    *,
    origin: int = 0,
    first: int = 0,
    end: int | None = None,
    check: Check | None = None,
) -> Generator[Output[Frame]]:
    """The frames as they are; arguments as :func:`deblur_frames`."""
    from vs_deblur.engine import Frame
    from vs_deblur.timeline import Output

    with contextlib.closing(read_ahead(frames, check=check)) as ahead:
        # islice reads no frame beyond the last.
        wanted = itertools.islice(ahead, None if end is None else max(end - origin, 0))
        for n, item in enumerate(wanted, origin):
            if n >= first:
                planes = item.planes if isinstance(item, MarkedFrame) else item
                yield Output(n, Frame([np.asarray(p) for p in planes], False), n)
