"""The VapourSynth filter.

VapourSynth asks for frames in any order and from many threads; the recurrence wants them in order.
No callback here ever asks for a frame: the graph itself gives the order. For each frame a
``FrameEval`` decides what the frame still lacks and returns the node that brings it:

- a flag that says where a scene begins: a node that waits for those flags, then decides again;
- the state after the frame before: a node that waits for that frame's own decision, then decides
  again; so a seek goes back, through the graph, to the start of the recurrence or to the last
  state that is still kept (:class:`~vs_deblur.states.States`);
- nothing: a node that makes the step.

A segment needs warm-up frames that belong to the segment before; so there are two lanes of
decisions: *main*, frame n within its own segment, and *warm*, frame n within the warm-up of the
next segment. Nodes inside have no caches, or frames would come without their states.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import vapoursynth as vs

from vs_deblur._version import __version__
from vs_deblur.errors import DeblurError, InputError, UsageError
from vs_deblur.heap import Heap
from vs_deblur.states import Slot, States
from vs_deblur.timeline import Plan
from vs_deblur.vspixels import frame_format, guesses

if TYPE_CHECKING:
    from vs_deblur_kernels.pixels import PixelFormat

_UNKNOWN, _NO, _CUT = 0, 1, 2  # what is known of a frame: nothing, begins no scene, begins one
_FLAGS_AT_ONCE = 64  # unknown flags that one node waits for
_FAR = 256  # steps that may wait for each other in a row; farther back goes in strides of it
_PREPARED_BUDGET = 256 << 20  # bytes for frames that the engine took in
_SCENE = "_VSDeblurScene"  # prefix of what std.PlaneStats writes, on frames of ours only


type ReadFormat = Callable[[vs.VideoNode, int, Mapping[str, Any]], Any]


class Engine(Protocol):
    """What the filter needs of :class:`~vs_deblur.engine.Deblurrer`."""

    @property
    def model(self) -> str:
        """Name for the frame property."""

    @property
    def plan(self) -> Plan:
        """Segments, warm-up and window."""

    def prepare(self, planes: Sequence[Any], fmt: PixelFormat, /) -> Any:
        """Take in a frame; the planes are not to be kept."""

    def step(self, window: Sequence[Any], state: Any, /) -> tuple[Any, Any]:
        """A frame with ``planes`` and ``non_finite``, and the next state."""

    def passes_through(self) -> bool:
        """Whether frames come out as they went in."""


def deblur(
    clip: vs.VideoNode,
    *,
    model: str = "auto",
    strength: float = 1.0,
    segment: int = 64,
    warmup: int = 8,
    scene_threshold: float | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    tile: int | None = None,
) -> vs.VideoNode:
    """Remove motion blur from a clip.

    Format, size, length, frame rate and frame properties stay as they are. Frame n is the same
    whatever was asked for before or at the same time: it is computed by the recurrence started at
    ``max(last cut, segment * (n // segment) - warmup, 0)``; see docs/frame-accuracy.md.

    Args:
        clip: progressive, of constant format and size; YUV 4:2:0, 4:2:2, 4:4:4, GRAY or RGB of 8
            to 16 bits or of 16- or 32-bit floats. Matrix, range and chroma location are read from
            the frame properties.
        model: "auto", the name of a shipped model, or the path of a safetensors file of ours.
        strength: 0..1, how much of the change is applied; 0 gives every sample back untouched.
        segment: frames after which the recurrence starts anew; 0 for never, except at cuts.
        warmup: frames before a segment over which its state is warmed up.
        scene_threshold: 0..1; a frame also begins a scene if its first plane differs from that of
            the frame before by more than this share of the full scale (``PlaneStatsDiff`` of
            ``std.PlaneStats``). None: only frames with ``_SceneChangePrev`` = 1 do.
        device: "auto" (CUDA if there), "cpu", "cuda" or "cuda:N".
        precision: "auto", "fp32", "bf16" or "fp16".
        tile: largest height and width computed at once, pixels; None chooses by memory.

    Returns:
        the clip, with ``VSDeblurModel``, ``VSDeblurAnchor`` (where the recurrence of this frame
        began), ``VSDeblurReset`` (1 if with this very frame) and ``VSDeblurVersion`` on each frame,
        and ``_VSDeblurNonFinite`` = 1 where the input had NaN or infinite samples.

    Raises:
        vapoursynth.Error: "deblur: …", if the clip or an argument cannot work.
    """
    try:
        _check_clip(clip)
        _check_types(
            model=(model, str),
            strength=(strength, (int, float)),
            segment=(segment, int),
            warmup=(warmup, int),
            scene_threshold=(scene_threshold, (int, float, type(None))),
            device=(device, str),
            precision=(precision, str),
            tile=(tile, (int, type(None))),
        )
        if scene_threshold is not None and not 0.0 <= scene_threshold <= 1.0:
            raise UsageError(f"scene_threshold must be 0..1, got {scene_threshold:g}")
        _check_first_frame(clip)

        from vs_deblur.engine import Deblurrer

        engine = Deblurrer(
            model,
            device=device,
            precision=precision,
            strength=strength,
            tile=tile,
            segment=segment,
            warmup=warmup,
        )
    except DeblurError as error:
        raise vs.Error(f"deblur: {error}") from error
    return _build(clip, engine, scene_threshold)


def _build(
    clip: vs.VideoNode,
    engine: Engine,
    scene_threshold: float | None,
    read_format: ReadFormat | None = None,
) -> vs.VideoNode:
    """The filter with any engine; ``read_format`` stands in for :func:`_pixel_format`."""
    if engine.passes_through():
        mark = partial(_mark, model=engine.model)
        marked = _std(clip).ModifyFrame([clip], lambda n, f: mark(f.copy(), n=n, anchor=n))
        return cast(vs.VideoNode, marked)
    frames = _PreparedFrames(clip, engine, read_format or _pixel_format)
    recurrence = _Recurrence(clip, engine, frames, scene_threshold)
    return cast(vs.VideoNode, _std(clip).FrameEval(_Owner(recurrence)))


# ---------------------------------------------------------------------------- what is refused


def _check_clip(clip: object) -> None:
    """Refuse what can be refused without a frame.

    Raises:
        UsageError: not a clip.
        InputError: a clip that is not supported.
    """
    if not isinstance(clip, vs.VideoNode):
        raise UsageError(f"clip must be a VideoNode, not {type(clip).__name__}")
    fmt = clip.format
    if fmt.color_family == vs.UNDEFINED or not clip.width or not clip.height:
        raise InputError("constant format and size needed", None, "resize the clip's parts first")
    _check_residency(clip)
    _check_format(fmt)


def _check_residency(clip: Any) -> None:
    # VapourSynth before R80 has no frames on a GPU, and no such attribute.
    if getattr(clip, "gpu_resident", False):
        raise InputError("the clip's frames are on the GPU", None, "use std.GPUDownload first")


def _check_format(fmt: Any) -> None:
    low, high = (16, 32) if fmt.sample_type == vs.FLOAT else (8, 16)
    subsampling = (fmt.subsampling_w, fmt.subsampling_h)
    if not low <= fmt.bits_per_sample <= high or subsampling not in ((0, 0), (1, 0), (1, 1)):
        raise InputError(
            f"the format {fmt.name} is not supported",
            None,
            "use YUV 4:2:0, 4:2:2 or 4:4:4, GRAY or RGB, of 8 to 16 bits or float",
        )


def _check_types(**arguments: tuple[object, type | tuple[type, ...]]) -> None:
    for name, (value, kinds) in arguments.items():
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = kinds if isinstance(kinds, tuple) else (kinds,)
            text = " or ".join("None" if k is type(None) else k.__name__ for k in wanted)
            raise UsageError(f"{name} must be {text}, not {type(value).__name__}")


def _check_first_frame(clip: vs.VideoNode) -> None:
    """Refuse what the properties of the first frame tell, and say what is guessed."""
    try:
        with clip.get_frame(0) as frame:
            fmt = _pixel_format(clip, 0, frame.props)
            guessed = guesses(fmt, frame.props)
    except vs.Error as error:
        text = str(error).splitlines()
        raise InputError(f"the clip has no first frame: {text[-1] if text else error}") from error
    if guessed:
        message = f"deblur: the frames do not say everything: {guessed} assumed"
        vs.core.log_message(vs.MESSAGE_TYPE_WARNING, message)


def _pixel_format(clip: vs.VideoNode, n: int, props: Mapping[str, Any]) -> PixelFormat:
    """The format of frame n.

    Raises:
        InputError: interlaced, or a matrix that is not supported.
    """
    if cast(int, props.get("_FieldBased", 0)) > 0:
        raise InputError(f"frame {n} is interlaced", None, "deinterlace the clip first")
    fmt = clip.format
    return frame_format(
        fmt.color_family.name,
        fmt.bits_per_sample,
        fmt.sample_type == vs.FLOAT,
        (fmt.subsampling_w, fmt.subsampling_h),
        clip.height,
        props,
    )


# ---------------------------------------------------------------------------- nodes


def _std(clip: vs.VideoNode) -> Any:
    """The built-in filters on a clip (VapourSynth's annotations leave them out)."""
    return cast(Any, clip).std


def _uncached(clip: vs.VideoNode) -> vs.VideoNode:
    _std(clip).SetVideoCache(mode=0)
    return clip


def _shifted(clip: vs.VideoNode, by: int) -> vs.VideoNode:
    """A clip of which frame n is frame n + by of another; its ends are repeated.

    It may be shorter or longer: VapourSynth gives a filter that asks for a frame beyond the end
    the last one.
    """
    if by < 0:
        return _uncached(_std(clip).DuplicateFrames([0] * -by))
    if by > 0:
        return _uncached(_std(clip).Trim(first=min(by, clip.num_frames - 1)))
    return clip


def _marked(clip: vs.VideoNode, scene_threshold: float | None) -> vs.VideoNode:
    """The clip with the properties that say where scenes begin."""
    if scene_threshold is None:
        return clip
    before = _std(_shifted(clip, -1)).Trim(length=clip.num_frames)
    return cast(vs.VideoNode, _std(clip).PlaneStats(before, plane=0, prop=_SCENE))


def _mark(frame: vs.VideoFrame, *, n: int, anchor: int, model: str) -> vs.VideoFrame:
    """Write our properties on a frame of our own."""
    frame.props["VSDeblurModel"] = model
    frame.props["VSDeblurAnchor"] = anchor
    frame.props["VSDeblurReset"] = int(n == anchor)
    frame.props["VSDeblurVersion"] = __version__
    return frame


def _stride(plan: Plan) -> int:
    """Frames between the milestones of a recurrence: about ten in a segment."""
    return max(8, (plan.segment + plan.warmup + 9) // 10) if plan.segment else 64


class _Owner:
    """The callback of the filter's outermost node: while that node lives, the recurrence does.

    The nodes of a recurrence hold callbacks that hold the nodes, a circle that nobody but us can
    open. The outermost node is not part of it; when it is freed, it frees this.
    """

    def __init__(self, recurrence: _Recurrence) -> None:
        self._recurrence = recurrence

    def __call__(self, n: int) -> vs.VideoNode:
        return self._recurrence.output

    def __del__(self) -> None:
        self._recurrence.close()


class _Recurrence:
    """The nodes of one filter, and what their callbacks share.

    Args:
        clip: the source.
        engine: what computes.
        frames: what it took in.
        scene_threshold: see :func:`deblur`.
    """

    def __init__(
        self,
        clip: vs.VideoNode,
        engine: Engine,
        frames: _PreparedFrames,
        scene_threshold: float | None,
    ) -> None:
        self._clip, self._engine, self._plan = clip, engine, engine.plan
        self._threshold = scene_threshold
        self._length = clip.num_frames
        self._cuts = bytearray(self._length)  # facts of the clip, learned from the frames
        self._states = States(_stride(self._plan))
        self._frames = frames
        self._offsets = range(-self._plan.look_behind, self._plan.look_ahead + 1)

        # Frames of one pixel, for nodes that stand for nothing but "this is done".
        self._tick: vs.VideoNode = _std(clip).BlankClip(
            width=1, height=1, format=vs.GRAY8, keep=True
        )
        marked = _marked(clip, scene_threshold)
        self._window = [_shifted(marked, d) for d in self._offsets]
        self._flags = _uncached(self._gate(self._tick, self._learn_flag, marked))
        self._main = _uncached(self._gate(clip, self._decide_main, marked))
        self._warm = _uncached(self._gate(self._tick, self._decide_warm))
        # The main lane as ticks, for those that need its states and not its frames.
        ran = _std(self._tick).CopyFrameProps(self._main, props="VSDeblurAnchor")
        self._main_ran = _uncached(ran)
        self._main_done = _uncached(self._gate(self._tick, self._ensure_main))
        self._main_before = _uncached(self._late(self._main_done, 1))
        self._warm_before = _uncached(self._late(self._warm, 1))
        self._main_far_before = _uncached(self._late(self._main_done, _FAR + 1))

    @property
    def output(self) -> vs.VideoNode:
        """Frame n of the result."""
        return self._main

    def close(self) -> None:
        """Let go of all nodes, and with them of the engine."""
        self.__dict__.clear()

    # ------------------------------------------------------------------ small nodes

    def _gate(
        self, like: vs.VideoNode, decide: Callable[..., vs.VideoNode], *after: vs.VideoNode
    ) -> vs.VideoNode:
        """A node that asks ``decide`` for the node that gives frame n, after others' frame n."""
        sources = {"prop_src": list(after)} if after else {}
        return cast(vs.VideoNode, _std(like).FrameEval(decide, **sources))

    def _late(self, ticks: vs.VideoNode, by: int) -> vs.VideoNode:
        """Ticks of which number n is number n - by of others."""
        none = _std(self._tick).BlankClip(length=by, keep=True)
        return cast(vs.VideoNode, none + ticks)

    def _again(
        self, warm: bool, holding: Slot | None, after: Sequence[vs.VideoNode]
    ) -> vs.VideoNode:
        """A node that decides again after others' frame n.

        While it waits it holds the slot of the state that is on its way.
        """

        def decide(n: int, f: object, held: Slot | None = holding) -> vs.VideoNode:
            return self._decide(n, warm)

        return self._gate(self._tick if warm else self._clip, decide, *after)

    # ------------------------------------------------------------------ where scenes begin

    def _learn(self, n: int, frame: vs.VideoFrame) -> None:
        """Note whether frame n begins a scene."""
        props = frame.props
        cut = props.get("_SceneChangePrev", 0) == 1
        if self._threshold is not None:
            cut = cut or cast(float, props[_SCENE + "Diff"]) > self._threshold
        self._cuts[n] = _CUT if cut else _NO

    def _learn_flag(self, n: int, f: vs.VideoFrame) -> vs.VideoNode:
        self._learn(n, f)
        return self._tick

    def _last_cut(self, first: int, n: int) -> int:
        """The last frame of first..n that begins a scene, as far as is known; else first."""
        return max(self._cuts.rfind(_CUT, first + 1, n + 1), first)

    def _unknown(self, first: int, n: int) -> list[int]:
        """Frames of which must be known whether they begin a scene, latest first."""
        low = self._last_cut(first, n)
        found: list[int] = []
        end = n + 1
        while len(found) < _FLAGS_AT_ONCE:
            end = self._cuts.rfind(_UNKNOWN, low + 1, end)
            if end < 0:
                break
            found.append(end)
        return found

    # ------------------------------------------------------------------ decisions

    def _first(self, n: int, warm: bool) -> int:
        """Where the recurrence that leads through frame n of a lane starts if there is no cut."""
        if warm:
            n = self._plan.segment * (n // self._plan.segment + 1)
        return self._plan.earliest(n)

    def _decide_main(self, n: int, f: vs.VideoFrame) -> vs.VideoNode:
        self._learn(n, f)
        return self._decide(n, warm=False)

    def _decide_warm(self, n: int) -> vs.VideoNode:
        return self._decide(n, warm=True)

    def _decide(self, n: int, warm: bool) -> vs.VideoNode:
        """The node that gives frame n of a lane, or that waits for what it lacks."""
        first = self._first(n, warm)
        unknown = self._unknown(first, n)
        if unknown:
            late = [self._late(self._flags, n - c) if c < n else self._flags for c in unknown]
            return self._again(warm, None, late)
        anchor = self._last_cut(first, n)
        if warm and self._states.is_filled((anchor, n)):
            return self._tick
        if anchor == n:
            return self._step_node(warm, anchor, None, n)
        slot = self._states.slot((anchor, n - 1))
        if slot.filled:
            return self._step_node(warm, anchor, slot, n)
        if warm or (self._plan.segment and n % self._plan.segment == 0):
            return self._again(warm, slot, [self._warm_before])
        if self._is_far(anchor, n):
            slot = self._states.slot((anchor, n - 1 - _FAR))
            return self._again(warm, slot, [self._main_far_before])
        return self._again(warm, slot, [self._main_before])

    def _ensure_main(self, n: int) -> vs.VideoNode:
        """A tick when the state after frame n of the main lane is there."""
        first = self._first(n, warm=False)
        done = not self._unknown(first, n)
        done = done and self._states.is_filled((self._last_cut(first, n), n))
        return self._tick if done else self._main_ran

    def _is_far(self, anchor: int, n: int) -> bool:
        """Whether more than _FAR steps in a row would have to wait for each other."""
        if n - anchor <= _FAR:
            return False
        near = range(n - 2, n - 2 - _FAR, -1)
        return not any(self._states.is_filled((anchor, i)) for i in near)

    # ------------------------------------------------------------------ steps

    def _step_node(self, warm: bool, anchor: int, slot: Slot | None, n: int) -> vs.VideoNode:
        """A node that makes the step of frame n from the state of a slot (None: a fresh one).

        It asks for those frames of the window only that the engine has not taken in.
        """
        like = self._tick if warm else self._clip
        numbers = [min(max(n + d, 0), self._length - 1) for d in self._offsets]
        held = {i: p for i in numbers if (p := self._frames.peek(i)) is not None}
        missing = {i: node for i, node in zip(numbers, self._window, strict=True) if i not in held}
        step = partial(
            self._step, warm=warm, anchor=anchor, slot=slot, held=held, missing=tuple(missing)
        )
        return cast(vs.VideoNode, _std(like).ModifyFrame([like, *missing.values()], step))

    def _step(
        self,
        n: int,
        f: vs.VideoFrame | list[vs.VideoFrame],
        *,
        warm: bool,
        anchor: int,
        slot: Slot | None,
        held: Mapping[int, Any],
        missing: Sequence[int],
    ) -> vs.VideoFrame:
        source, *others = f if isinstance(f, list) else [f]
        arrived = dict(zip(missing, others, strict=True))
        for i, frame in arrived.items():
            self._learn(i, frame)
        window = self._plan.window(n, self._length, lambda c: self._cuts[c] == _CUT)
        state = None if slot is None else slot.state

        def work() -> tuple[Any, Any]:
            frames = [held[i] if i in held else self._frames.get(i, arrived[i]) for i in window]
            return self._engine.step(frames, state)

        try:
            result, following = _compute(work)
            self._states.put((anchor, n), following)
            if warm:
                return source
            planes = result.planes  # a GPU may still be at it
        except DeblurError as error:
            raise vs.Error(f"deblur: {error}") from error
        frame = _mark(source.copy(), n=n, anchor=anchor, model=self._engine.model)
        for i, plane in enumerate(planes):
            np.copyto(np.asarray(frame[i]), plane)
        if result.non_finite:
            frame.props["_VSDeblurNonFinite"] = 1
        return frame


class _PreparedFrames:
    """The last few frames that the engine took in."""

    def __init__(self, clip: vs.VideoNode, engine: Engine, read_format: ReadFormat) -> None:
        self._clip, self._engine, self._read_format = clip, engine, read_format
        window = engine.plan.look_behind + 1 + engine.plan.look_ahead
        # Roughly what the engine keeps of a frame: three float32 values a pixel, and its samples.
        size = 16 * clip.width * clip.height
        self._keep = max(window + 1, min(16, _PREPARED_BUDGET // size))
        self._frames: OrderedDict[int, Any] = OrderedDict()

    def peek(self, n: int) -> Any | None:
        """Frame n if it is at hand. For any thread."""
        return self._frames.get(n)

    def get(self, n: int, frame: vs.VideoFrame) -> Any:
        """Frame n, taken in now if it is not at hand. For the compute thread alone."""
        if n in self._frames:
            self._frames.move_to_end(n)
            return self._frames[n]
        fmt = self._read_format(self._clip, n, frame.props)
        planes = [np.asarray(frame[i]) for i in range(frame.format.num_planes)]
        prepared = self._frames[n] = self._engine.prepare(planes, fmt)
        while len(self._frames) > self._keep:
            self._frames.popitem(last=False)
        return prepared


# ---------------------------------------------------------------------------- the compute thread

_heap = Heap()
_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _compute[T](work: Callable[[], T]) -> T:
    """Run work in the one thread of this process that computes, and wait for it.

    VapourSynth calls from many threads, and torch would start a pool of workers for each of them.
    The thread asks VapourSynth for nothing, so to wait for it cannot be a deadlock.
    """
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(1, thread_name_prefix="vs-deblur")
    done = _pool.submit(work).result()
    _heap.look()
    return done
