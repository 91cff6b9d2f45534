"""The core inference module: a network on a device, at a precision, in tiles if need be.

Hosts bring frames in their own pixel format (:class:`~vs_deblur_kernels.pixels.PixelFormat`) and
get them back in it. :meth:`Deblurrer.prepare` and :meth:`Deblurrer.step` are the interface of
hosts with random access, :meth:`Deblurrer.stream` that of hosts that see frames in order,
:meth:`Deblurrer.video` that of arrays. All three give the same samples for the same frame.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vs_deblur.cuda import Graphs, Transfers
from vs_deblur.errors import (
    DeblurError,
    DeviceError,
    EngineError,
    InputError,
    OutOfMemoryError,
    UsageError,
    printable,
)
from vs_deblur.processor import processor_has
from vs_deblur.tiling import (
    least_patch,
    padded_size,
    patches,
    round_up,
    tile_for_budget,
    tiles,
)
from vs_deblur.timeline import Output, Plan, stream
from vs_deblur.weights import load
from vs_deblur_kernels._compile import KernelError, first_line
from vs_deblur_kernels.dispatch import UnknownModeError, require, summary
from vs_deblur_kernels.pixels import PixelFormat
from vs_deblur_kernels.planes import add, stack, unpack
from vs_deblur_kernels.reference import add_rgb, pad_to, to_rgb
from vs_deblur_models.blocks import cast_
from vs_deblur_models.spec import NetworkSpec, State, step_of

logger = logging.getLogger(__name__)

Plane = NDArray[Any]
Progress = Callable[[int, int], None]
"""Told how many tiles of a picture are done, and how many there are."""
Kind = Literal["video", "photo"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = ("auto", "fp32", "bf16", "fp16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Prepared:
    """A frame ready to be part of windows.

    Attributes:
        fmt: the format of its samples.
        size: height and width as it came, pixels: it may have been made larger, see
            :func:`_completed`.
    """

    fmt: PixelFormat
    size: tuple[int, int]


@dataclass(frozen=True)
class Converted(Prepared):
    """A frame on the CPU, converted once for all its windows.

    Attributes:
        planes: its own samples, (h, w) each.
        rgb: (1, 3, H, W) float32, clamped, finite, padded to the network's size rule.
        non_finite: whether a sample was NaN or infinite.
    """

    planes: tuple[Tensor, ...]
    rgb: Tensor
    non_finite: bool


@dataclass(frozen=True)
class Resident(Prepared):
    """A frame on a GPU, which converts it for each window in a single pass.

    Attributes:
        frame: its own samples, packed (see :mod:`vs_deblur_kernels.planes`).
        height, width: of these, pixels.
    """

    frame: Tensor
    height: int
    width: int


def _completed(planes: list[Plane], fmt: PixelFormat) -> list[Plane]:
    """Planes with as many pixels as their chroma samples stand for.

    Of an odd size the last samples of reduced chroma lie half outside. There all planes go on with
    their last row or column, as of a clip that is padded to an even size; by one sample of chroma
    more than that, which the filters that reduce chroma see.
    """

    def whole(length: int, reduction: int) -> int:
        step = 1 << reduction
        return length if length % step == 0 else round_up(length, step) + step

    height, width = planes[0].shape
    across, down = fmt.subsampling
    size = whole(height, down), whole(width, across)
    if size == (height, width):
        return planes
    wanted = [fmt.plane_shape(*size, i) for i in range(len(planes))]
    return [
        np.pad(p, ((0, h - p.shape[0]), (0, w - p.shape[1])), mode="edge")
        for p, (h, w) in zip(planes, wanted, strict=True)
    ]


def _cropped(planes: list[Plane], size: tuple[int, int], fmt: PixelFormat) -> list[Plane]:
    """What :func:`_completed` added taken away."""
    if planes[0].shape == size:
        return planes
    sizes = [fmt.plane_shape(*size, i) for i in range(len(planes))]
    return [np.ascontiguousarray(p[:h, :w]) for p, (h, w) in zip(planes, sizes, strict=True)]


class Frame:
    """A frame as it leaves the engine.

    On a GPU it may still be computed and on its way: to read an attribute is to wait for it, and
    may raise what went wrong, the errors of :meth:`Deblurrer.step`.

    Args:
        planes: samples in the format of the input, (h, w) each, contiguous; or a function that
            waits for them and gives both attributes.
        non_finite: whether the input had NaN or infinite samples (they are finite now).
    """

    def __init__(
        self,
        planes: list[Plane] | Callable[[], tuple[list[Plane], bool]],
        non_finite: bool = False,
    ) -> None:
        self._waiting = planes if callable(planes) else None
        self._found = ([], False) if callable(planes) else (planes, non_finite)
        self._lock = threading.Lock()

    def _wait(self) -> tuple[list[Plane], bool]:
        with self._lock:
            if self._waiting is not None:
                self._found = self._waiting()
                self._waiting = None
            return self._found

    @property
    def planes(self) -> list[Plane]:
        """Samples in the format of the input, (h, w) each, contiguous."""
        return self._wait()[0]

    @property
    def non_finite(self) -> bool:
        """Whether the input had NaN or infinite samples (they are finite now)."""
        return self._wait()[1]


def bf16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 natively (AMX or AVX512-BF16)."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return processor_has("amx") or processor_has("avx512_bf16")


def choose_device(device: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that is there.

    Raises:
        UsageError: no such kind of device.
        DeviceError: a device that this machine does not have.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, not {device}") from error
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, not {device}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        what = "no CUDA device here" if chosen.index is None else f"no CUDA device {chosen.index}"
        raise DeviceError(what, None, "use --device cpu (device='cpu')")
    if chosen.type == "cuda" and chosen.index is None:
        # The number now: "cuda" alone means another device in a thread that chose another.
        return torch.device("cuda", torch.cuda.current_device())
    return chosen


def choose_precision(precision: str, device: torch.device) -> tuple[str, str]:
    """The precision to compute in, and why.

    Raises:
        UsageError: no such precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision}")
    if precision != "auto":
        return precision, "asked for"
    if device.type == "cuda":
        # The GTX 16 series has the capability of cards with tensor cores, and none.
        older = torch.cuda.get_device_capability(device) < (7, 0)
        if older or "GTX 16" in torch.cuda.get_device_name(device):
            return "fp32", "a CUDA device without tensor cores"
        return "fp16", "CUDA device"
    if bf16_is_fast():
        return "bf16", "the processor has AMX or AVX512-BF16"
    return "fp32", "the processor has neither AMX nor AVX512-BF16"


def check_kernels(device: torch.device) -> None:
    """See to it that what ``VS_DEBLUR_KERNELS`` asks for can be had on a device.

    Raises:
        UsageError: it asks for nothing that there is.
        DeviceError: it asks for kernels by name, and there are none for this device.
    """
    try:
        require(device)
    except UnknownModeError as error:
        raise UsageError(str(error)) from error
    except KernelError as error:
        raise DeviceError(str(error), str(device), KERNELS_ADVICE) from error


KERNELS_ADVICE = "unset VS_DEBLUR_KERNELS, or set it to reference to do without kernels"


def memory_budget(device: torch.device) -> float:
    """Bytes that one step may take by default.

    A fixed share of the device, so that the choice of tiles does not depend on what else runs.
    """
    if device.type == "cuda":
        return 0.6 * torch.cuda.get_device_properties(device).total_memory
    try:
        import os

        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        total = 8 << 30
    return min(4 << 30, total / 4)


# What torch's allocator, C++ and oneDNN say when the machine's memory is used up. oneDNN says the
# same of what it cannot do at all; that fails on the smallest tile too.
_OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device's memory is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error) for s in _OUT_OF_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Whether an error means that the device is lost: nothing on it can be tried again."""
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("cuda", "cudnn", "cublas", "unspecified launch"))


def _is_finite(x: Tensor) -> bool:
    # x * 0 is NaN exactly for NaN and the infinities; the sum finds one in one pass.
    return bool((x * 0).sum() == 0)


class Deblurrer:
    """A deblurring network, ready to run.

    Args:
        model: "auto", the name of a shipped model, or the path of a safetensors file of ours.
        device: "auto" (CUDA if there), "cpu", "cuda" or "cuda:N".
        precision: "auto", "fp32", "bf16" or "fp16". Auto is fp16 on CUDA, bf16 on processors with
            AMX or AVX512-BF16, fp32 elsewhere.
        strength: 0..1, how much of the change is applied; 0 gives every sample back untouched.
        tile: largest height and width computed at once, pixels (rounded up to what the network
            needs); None chooses by memory. Tiles of networks for video give the whole frame's
            result: they are read with a halo of the receptive field, and states are kept for the
            whole frame. Networks for photos see too far for that: their tiles overlap and are
            blended (``spec.tile_overlap``), have a least size, and differ a little from the whole.
        segment: frames of a segment (0: one recurrence from the last cut on).
        warmup: frames over which a segment's state is warmed up; at most a segment's length.
        memory: bytes that the network may take for a step, beyond the frames or the picture
            themselves; None for a share of the device's (60 % of a GPU's, a quarter of the
            machine's but at most 4 GiB). On the CPU that share holds a picture's own samples
            too: 60 bytes a pixel of it are set aside, and of the share 3 GiB at most are used,
            but the network gets at least an eighth of it.
        kind: "video" or "photo": which model "auto" is. Any model does either: a network for
            photos takes each frame by itself, one for video sees a photo as a clip that stands.

    Raises:
        UsageError, WeightsError, DeviceError: see :mod:`vs_deblur.errors`.
    """

    def __init__(
        self,
        model: str = "auto",
        *,
        device: str = "auto",
        precision: str = "auto",
        strength: float = 1.0,
        tile: int | None = None,
        segment: int = 64,
        warmup: int = 8,
        memory: float | None = None,
        kind: Literal["video", "photo"] = "video",  # Kind, spelled out for help()
    ) -> None:
        if not 0.0 <= strength <= 1.0:
            raise UsageError(f"strength must be 0..1, got {strength:g}")
        if tile is not None and tile < 1:
            raise UsageError(f"tile must be 1 or more pixels, got {tile}")
        self.device = choose_device(device)
        self.precision, self.precision_reason = choose_precision(precision, self.device)
        check_kernels(self.device)
        loaded = load(model, kind)
        self.dtype = _DTYPES[self.precision]
        self.model, self._path = loaded.name, str(loaded.path)
        self.card = loaded.card
        self.network = loaded.network.to(self.device, memory_format=torch.channels_last)
        cast_(self.network, self.dtype)
        self.spec: NetworkSpec = self.network.spec
        self.strength = float(strength)
        self.plan = Plan(segment, warmup, self.spec.look_behind, self.spec.look_ahead)
        if not self.spec.is_recurrent:  # nothing to warm up: every frame starts afresh
            self.plan = Plan(1, 0, self.spec.look_behind, self.spec.look_ahead)
        self.memory = memory_budget(self.device) if memory is None else float(memory)
        self._memory_is_given = memory is not None
        self._tile = None if tile is None else round_up(tile, self.spec.multiple_of)
        self._ceiling: int | None = None  # set when memory ran out
        self._told = False  # that the parts of a picture differ from the whole
        # One step at a time: hosts may call from many threads, the memory budget is for one.
        self._lock = threading.Lock()
        # A GPU takes frames in their own format and converts them itself. The network sees them in
        # float16, an eighth of a step of 8 bits, or in float32, as bfloat16 is too coarse.
        self._transfers = Transfers(self.device) if self.device.type == "cuda" else None
        self._seen = torch.float16 if self.precision == "fp16" else torch.float32
        self._steps = Graphs(self.device)
        # "auto" is another model for pictures: made when the first one comes.
        self._for_photos: Callable[[], Deblurrer] | None = None
        if model == "auto" and kind == "video":
            self._for_photos = partial(
                Deblurrer,
                device=device,
                precision=precision,
                strength=strength,
                tile=tile,
                memory=memory,
                kind="photo",
            )
        self._photographer: Deblurrer | None = None

    def __repr__(self) -> str:
        return f"<Deblurrer {self.describe()}>"

    def describe(self) -> str:
        """One line: model, device, precision and why."""
        where = str(self.device)
        if self.device.type == "cuda":
            where += f" ({torch.cuda.get_device_name(self.device)}, {summary()})"
        else:
            threads = torch.get_num_threads()
            where += f" ({threads} thread{'s' * (threads != 1)})"
        # Own weights often have the name of shipped ones.
        which = self.model if self.card is not None else f"{self.model} ({printable(self._path)})"
        return f"{which} on {where}, {self.precision} ({self.precision_reason})"

    # ------------------------------------------------------------------ hosts with random access

    @torch.inference_mode()
    def prepare(self, planes: Sequence[Plane], fmt: PixelFormat) -> Prepared:
        """Bring a frame to the device. A GPU may still be busy with that when this returns.

        Args:
            planes: (h, w) arrays of the format's type; they are copied.
            fmt: how to read them.

        Raises:
            OutOfMemoryError, DeviceError: out of memory, or the device was lost.
        """
        with self._errors():
            arrays = [np.asarray(p) for p in planes]
            height, width = arrays[0].shape
            size = (height, width)
            arrays = _completed(arrays, fmt)
            if self._transfers is not None:
                height, width = arrays[0].shape
                return Resident(fmt, size, self._transfers.upload(arrays, fmt), height, width)
            own = tuple(torch.tensor(p) for p in arrays)  # copies: hosts reuse their buffers
            rgb, bad = to_rgb(own, fmt)
            return Converted(fmt, size, own, pad_to(rgb, *self._padded(*rgb.shape[-2:])), bad)

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        """The size that the network sees."""
        spec = self.spec
        return padded_size(height, width, spec.multiple_of, spec.minimum, spec.width_multiple_of)

    @torch.inference_mode()
    def step(self, window: Sequence[Prepared], state: State | None) -> tuple[Frame, State]:
        """Deblur the middle frame of a window.

        Args:
            window: ``spec.window`` frames, oldest first, of one format and size.
            state: what the last step returned; None to start a recurrence.

        Returns:
            the frame, and the state for the next one. States may be kept and used again.

        Raises:
            OutOfMemoryError, DeviceError: out of memory even with the smallest tile, or the device
                was lost.
            EngineError: the network gave values that are not finite. A GPU tells it when the frame
                is read.
        """
        with self._lock, self._errors():
            x, bad = self._window(window)
            sharp, state = self._run(x, state)
            return self._finished(window[self.spec.look_behind], sharp, bad, state), state

    def _window(self, frames: Sequence[Prepared]) -> tuple[Tensor, Tensor | None]:
        """What the network sees, and on a GPU a flag: was a sample of the middle not finite?"""
        middle = frames[self.spec.look_behind]
        if isinstance(middle, Converted):
            seen = [f.rgb for f in frames if isinstance(f, Converted)]
            return torch.cat(seen, dim=1) if len(seen) > 1 else seen[0], None
        resident = [f for f in frames if isinstance(f, Resident)]
        assert isinstance(middle, Resident)
        size = (middle.height, middle.width)
        how = (*size, self._padded(*size), self._seen)
        if all(f.fmt == middle.fmt for f in resident):
            x, bad = stack([f.frame for f in resident], middle.fmt, *how)
        else:  # e.g. a splice of clips with different matrices
            each = [stack([f.frame], f.fmt, *how) for f in resident]
            x = torch.cat([part for part, _ in each], dim=1)
            x, bad = (
                x.contiguous(memory_format=torch.channels_last),
                torch.cat([b for _, b in each]),
            )
        return x, bad[self.spec.look_behind :][:1]

    def _finished(
        self, frame: Prepared, sharp: Tensor, bad: Tensor | None, state: State = ()
    ) -> Frame:
        """Bring what the network changed into the frame's own format.

        Args:
            frame: the frame in the middle.
            sharp: what the network made of it.
            bad: on a GPU, whether a sample of the frame was not finite.
            state: what the network will remember, which must be finite as well.
        """
        if isinstance(frame, Resident):
            assert self._transfers is not None
            assert bad is not None
            what = (frame.frame, frame.fmt, frame.height, frame.width)
            after, wrong = add(*what, sharp, self.strength, self._seen)
            # The largest value of a tensor is finite if all are: one pass, and one number.
            largest = [torch.linalg.vector_norm(s, torch.inf, dtype=torch.float32) for s in state]
            arriving = self._transfers.download(after, bad, wrong, *largest)

            def wait() -> tuple[list[Plane], bool]:
                with self._errors():
                    arrived, non_finite, not_finite, *most = arriving()
                    if not_finite.item() or not all(bool(torch.isfinite(m)) for m in most):
                        self._raise_not_finite()
                planes = unpack(arrived, frame.fmt, frame.height, frame.width)
                arrays = _cropped([p.numpy() for p in planes], frame.size, frame.fmt)
                return arrays, bool(non_finite.item())

            return Frame(wait)
        assert isinstance(frame, Converted)
        self._check_finite(sharp, *state)
        height, width = frame.planes[0].shape
        change = sharp.float().clamp(0.0, 1.0)[..., :height, :width]
        change = change.sub_(frame.rgb[..., :height, :width]).mul_(self.strength)
        planes = add_rgb(frame.planes, frame.fmt, change)
        arrays = _cropped([p.numpy() for p in planes], frame.size, frame.fmt)
        return Frame(arrays, frame.non_finite)

    def _check_finite(self, *tensors: Tensor) -> None:
        if not all(_is_finite(t) for t in tensors):
            self._raise_not_finite()

    def _raise_not_finite(self) -> NoReturn:
        raise EngineError(
            "the network gave values that are not finite",
            f"{self.model}, {self.precision}",
            "use precision fp32",
        )

    def passes_through(self) -> bool:
        """Whether frames come out as they went in (strength 0)."""
        return self.strength == 0.0

    # ------------------------------------------------------------------ hosts with frames in order

    def stream(
        self,
        frames: Iterable[tuple[Sequence[Plane], bool]],
        fmt: PixelFormat,
        *,
        origin: int = 0,
        first: int = 0,
        end: int | None = None,
    ) -> Iterator[Output[Frame]]:
        """Deblur frames that come in order; see :func:`vs_deblur.timeline.stream`.

        Args:
            frames: planes of each frame, and whether it begins a new scene.
            fmt: their format.
            origin, first, end: which frames come and which are wanted.
        """
        prepared = ((self.prepare(planes, fmt), cut) for planes, cut in frames)
        outputs = stream(self.plan, prepared, self.step, origin=origin, first=first, end=end)
        # A GPU computes the next frame while the host reads this one.
        return outputs if self._transfers is None else _ahead(outputs)

    def video(
        self, frames: Iterable[NDArray[Any]], cuts: Iterable[int] = ()
    ) -> Iterator[NDArray[Any]]:
        """Deblur a sequence of RGB arrays.

        Args:
            frames: (H, W, 3) arrays of one size and type: uint8, uint16 (full range) or float32
                (0..1, may go beyond); sRGB-encoded.
            cuts: numbers of frames that begin a new scene.

        Yields:
            arrays of the same shape and type, one for each frame.

        Raises:
            InputError: another type or shape, or one that changes on the way.
        """
        scenes = frozenset(cuts)
        first: NDArray[Any] | None = None

        def planes() -> Iterator[tuple[list[Plane], bool]]:
            nonlocal first
            for n, frame in enumerate(frames):
                frame = np.asarray(frame)
                if not frame.dtype.isnative:
                    frame = frame.astype(frame.dtype.newbyteorder("="))
                if first is None:
                    first = frame
                    array_format(frame)
                if frame.shape != first.shape or frame.dtype != first.dtype:
                    raise InputError(
                        f"frame {n} is {frame.shape} {frame.dtype}, "
                        f"the first was {first.shape} {first.dtype}"
                    )
                yield [frame[..., c] for c in range(3)], n in scenes

        source = planes()
        head = next(source, None)
        if head is None:
            return
        assert first is not None
        fmt = array_format(first)

        def rest() -> Iterator[tuple[list[Plane], bool]]:
            yield head
            yield from source

        if self.passes_through():
            for own, _ in rest():
                yield np.stack(own, axis=-1)
            return
        for output in self.stream(rest(), fmt):
            yield np.stack(output.value.planes, axis=-1)

    # ------------------------------------------------------------------ pictures

    @torch.inference_mode()
    def photo(self, picture: NDArray[Any], *, progress: Progress | None = None) -> NDArray[Any]:
        """Deblur a picture.

        A network for video sees the picture as a clip that stands still.

        Args:
            picture: (H, W, 3) or (H, W, 4) uint8, uint16 (full range) or float32 (0..1, may go
                beyond), sRGB-encoded or in the encoding of its own profile. A fourth channel
                comes back untouched and is not looked at: colours are taken as they are, also
                where alpha is 0, and their edges reach into the visible pixels beside them. To
                avoid that, do as ``vs-deblur photo`` does: give invisible pixels the colours of
                visible ones (:func:`vs_deblur.hosts.photo.fill`), divide out an alpha that is
                multiplied in, and put the invisible colours back afterwards.
            progress: called after each tile with how many are done and how many there are; from
                the start again where memory ran out and tiles were halved. What it raises ends
                the call and is raised as it is. It must not call the engine.

        Returns:
            an array of the same shape and type.

        Raises:
            InputError: another shape or type.
            WeightsError: no model for pictures is shipped ("auto").
            DeviceError, EngineError: as :meth:`step`.
        """
        picture = np.asarray(picture)
        if not picture.dtype.isnative:
            picture = picture.astype(picture.dtype.newbyteorder("="))
        fmt = array_format(picture[..., :3] if picture.shape[2:] == (4,) else picture)
        if self.passes_through():
            return picture.copy()
        if self._for_photos is not None:
            with self._lock:
                if self._photographer is None:
                    self._photographer = self._for_photos()
                    self._photographer._lock = self._lock  # one memory, one step at a time
            return self._photographer.photo(picture, progress=progress)
        stopped: list[BaseException] = []

        def tell(done: int, count: int) -> None:
            try:
                if progress is not None:
                    progress(done, count)
            except BaseException as error:
                stopped.append(error)
                raise _StoppedError from error

        prepared = self.prepare([picture[..., c] for c in range(3)], fmt)
        try:
            with self._lock, self._errors():
                x, bad = self._window([prepared] * self.spec.window)
                sharp, _ = self._run(x, None, self._photo_budget(x), tell)
                del x
                finished = self._finished(prepared, sharp, bad)
                planes = finished.planes
        except _StoppedError:
            raise stopped[0] from None
        if finished.non_finite:
            logger.warning("the picture has values that are NaN or infinite: they are finite now")
        if picture.shape[2] == 4:
            planes.append(picture[..., 3])
        return np.stack(planes, axis=-1)

    def _photo_budget(self, x: Tensor) -> float:
        """Bytes that the network may take for a tile of a picture."""
        if self._memory_is_given or self.device.type == "cuda":
            return self.memory
        rest = min(self.memory, _PHOTO_MEMORY) - _PHOTO_BYTES * x.shape[-2] * x.shape[-1]
        return max(rest, self.memory / 8)

    # ------------------------------------------------------------------ the network

    def _run(
        self,
        x: Tensor,
        state: State | None,
        memory: float | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, State]:
        """One step, in tiles that fit; on out-of-memory smaller tiles and the same frame again."""
        height, width = x.shape[-2:]
        while True:
            tile = self.tile_for(height, width, memory)
            try:
                with self._fixed_algorithms():
                    if tile is None:
                        step = partial(step_of, self.network)
                        if progress is None:
                            sharp, following = self._steps(step, x, state)
                        else:  # a picture: seldom a second one of its size
                            sharp, following = step(x, state)
                            progress(1, 1)
                    elif self.spec.tile_overlap is None:
                        sharp, following = self._step_in_tiles(x, state, tile, progress)
                    else:
                        sharp, following = self._blend_patches(x, tile, progress), ()
                return sharp, following
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block, where the traceback would keep the tensors alive.
            if self._steps.stop():  # graphs hold memory of their own
                torch.cuda.empty_cache()
                continue
            self._shrink(max(height, width), tile)

    def _least_tile(self) -> int:
        """The smallest tile that makes sense, pixels."""
        spec = self.spec
        if spec.tile_overlap is None:
            return 4 * spec.multiple_of
        return least_patch(spec.tile_overlap, spec.multiple_of)

    def _shrink(self, side: int, tile: int | None) -> None:
        """Halve the tile after the memory ran out."""
        now = tile or side
        smaller = max(round_up(now // 2, self.spec.multiple_of), self._least_tile())
        if smaller >= now:
            raise OutOfMemoryError(
                f"out of memory even with tiles of {now} pixels",
                str(self.device),
                "close other programs or use --device cpu",
            )
        if self._ceiling is None:
            logger.warning("out of memory: going on with tiles of %d pixels", smaller)
        self._ceiling = smaller
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def tile_for(self, height: int, width: int, memory: float | None = None) -> int | None:
        """The size of the tiles in which frames are computed, pixels; None: whole.

        Args:
            height, width: of the frames.
            memory: bytes that a step may take; None: as said when the engine was made.
        """
        spec = self.spec
        memory = self.memory if memory is None else memory
        if self._tile is not None:
            tile: int | None = self._tile
        else:
            size = spec.bytes_per_pixel * self.dtype.itemsize / 4
            halo = spec.receptive_field if spec.tile_overlap is None else 0
            tile = tile_for_budget(height, width, halo, spec.multiple_of, size, memory)
        if self._ceiling is not None:
            tile = min(tile or self._ceiling, self._ceiling)
        if tile is not None and spec.tile_overlap is not None:
            tile = max(tile, self._least_tile())
        return None if tile is None or tile >= max(height, width) else tile

    def _blend_patches(self, x: Tensor, tile: int, progress: Progress | None) -> Tensor:
        """A network that looks far: overlapping patches, blended where they overlap."""
        height, width = x.shape[-2:]
        spec = self.spec
        if not spec.is_tileable and not self._told:
            self._told = True
            logger.warning(
                "computed in parts of %d pixels: %s sees the whole picture otherwise, and its "
                "result differs a little",
                tile,
                self.model,
            )
        assert spec.tile_overlap is not None
        parts = list(patches(height, width, tile, spec.tile_overlap, spec.multiple_of))
        sharp = torch.zeros((1, 3, height, width), dtype=torch.float32, device=x.device)
        for n, p in enumerate(parts, 1):
            part = x[..., p.top : p.bottom, p.left : p.right].contiguous()
            out, _ = step_of(self.network, part, None)
            rows, columns = (torch.tensor(w, device=x.device) for w in (p.rows, p.columns))
            out = out.float() * rows[:, None] * columns
            sharp[..., p.top : p.bottom, p.left : p.right] += out
            if progress is not None:
                progress(n, len(parts))
        return sharp

    def _step_in_tiles(
        self, x: Tensor, state: State | None, tile: int, progress: Progress | None
    ) -> tuple[Tensor, State]:
        height, width = x.shape[-2:]
        spec = self.spec
        sharp = torch.empty((1, 3, height, width), dtype=torch.float32, device=x.device)
        following: list[Tensor] = []
        parts = list(tiles(height, width, tile, spec.receptive_field, spec.multiple_of))
        for n, t in enumerate(parts, 1):
            part = x[..., t.read_top : t.read_bottom, t.read_left : t.read_right]
            memory = None
            if state is not None:
                memory = tuple(_read(s, t.scaled(height // s.shape[-2])) for s in state)
            out, states = self.network.step(part.contiguous(), memory)
            _write(sharp, out, t)
            read_height = t.read_bottom - t.read_top
            for i, s in enumerate(states):
                divisor = read_height // s.shape[-2]
                if i == len(following):
                    size = (1, s.shape[1], height // divisor, width // divisor)
                    following.append(
                        torch.empty(size, dtype=s.dtype, device=s.device).to(
                            memory_format=torch.channels_last
                        )
                    )
                _write(following[i], s, t.scaled(divisor))
            if progress is not None:
                progress(n, len(parts))
        return sharp, tuple(following)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what torch raises into errors of ours; CUDA reports a fault wherever it waits."""
        try:
            yield
        except DeblurError:
            raise
        except KernelError as error:
            raise DeviceError(str(error), str(self.device), KERNELS_ADVICE) from error
        except (RuntimeError, MemoryError) as error:
            text = first_line(error)
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    "out of memory", str(self.device), "close other programs or use --device cpu"
                ) from error
            if is_device_failure(error):
                raise DeviceError(
                    f"the device failed: {text}", str(self.device), "start again"
                ) from error
            raise EngineError(f"the computation failed: {text}", self.model) from error

    def _fixed_algorithms(self) -> contextlib.AbstractContextManager[None]:
        """No autotuning: it may choose differently in each process."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        return flags


def _ahead(outputs: Iterable[Output[Frame]]) -> Iterator[Output[Frame]]:
    """The same, each computed one before it is asked for."""
    before: Output[Frame] | None = None
    failure: Exception | None = None
    try:
        for output in outputs:
            if before is not None:
                yield before
            before = output
    except Exception as error:  # the frame before comes first
        failure = error
    if before is not None:
        yield before
    if failure is not None:
        raise failure


def _read(full: Tensor, t: Any) -> Tensor:
    part = full[..., t.read_top : t.read_bottom, t.read_left : t.read_right]
    return part.contiguous(memory_format=torch.channels_last)


def _write(full: Tensor, part: Tensor, t: Any) -> None:
    y, x = t.top - t.read_top, t.left - t.read_left
    height, width = t.bottom - t.top, t.right - t.left
    full[..., t.top : t.bottom, t.left : t.right] = part[..., y : y + height, x : x + width]


class _StoppedError(Exception):
    """What a progress callback raised, on its way past the translation of the device's errors."""


# What a picture may take of the memory on the CPU by default, all in all, and what each of its
# pixels takes outside the network: samples, network input, result, change.
_PHOTO_MEMORY = 3 << 30
_PHOTO_BYTES = 60


def array_format(frame: NDArray[Any]) -> PixelFormat:
    """The pixel format of an RGB array.

    Raises:
        InputError: not (H, W, 3), empty, or not uint8, uint16 or float32.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise InputError(f"pictures must be (height, width, 3) arrays, not {frame.shape}")
    kinds = {"uint8": (8, False), "uint16": (16, False), "float32": (32, True)}
    if frame.dtype.name not in kinds:
        raise InputError(f"pictures must be uint8, uint16 or float32, not {frame.dtype}")
    bits, is_float = kinds[frame.dtype.name]
    return PixelFormat("rgb", bits, is_float, full_range=True)
