"""Deblur sequences whose sharp frames are known, and compare.

Works on :class:`Run` objects, so that it does not matter where frames come from: images on disk
(:func:`image_runs`), or a video that a host has opened. Frames pass one at a time; nothing holds a
whole sequence.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vs_deblur.metrics import (
    Image,
    Pulse,
    correction_change,
    mean,
    psnr,
    ssim,
    temporal_psnr,
)
from vs_deblur.sequences import ImageSequence, read_pairs

if TYPE_CHECKING:
    from vs_deblur.engine import Deblurrer
    from vs_deblur_kernels.pixels import PixelFormat

Planes = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Run:
    """Consecutive frames of one size and format.

    Attributes:
        fmt: how to read the blurred frames.
        frames: the blurred frame's planes, each frame's arrays its own, and the sharp frame as
            (H, W, 3) uint8 RGB.
    """

    fmt: PixelFormat
    frames: Iterable[tuple[Planes, Image]]


@dataclass(frozen=True)
class Compared:
    """One frame three times, (H, W, 3) uint8 RGB each.

    Attributes:
        blurred, result, sharp: the input, what became of it, and what it should be.
        starts_run: whether no frame goes before it.
        at_border: whether it is the first frame of a segment of the recurrence other than the
            first, in the middle of a scene.
    """

    blurred: Image
    result: Image
    sharp: Image
    starts_run: bool
    at_border: bool


@dataclass(frozen=True)
class FrameFigures:
    """The figures of one frame, before and after. PSNR in dB, infinite where frames are identical;
    the temporal ones are None for the first frame of a run, SSIM is NaN for tiny frames.
    """

    psnr_before: float
    psnr_after: float
    ssim_before: float
    ssim_after: float
    temporal_before: float | None = None
    temporal_after: float | None = None

    @property
    def identical(self) -> bool:
        """Whether a PSNR is infinite; such a frame is in no mean of PSNR."""
        return math.isinf(self.psnr_before) or math.isinf(self.psnr_after)

    @property
    def gain(self) -> float | None:
        """What deblurring gained, dB; None if a PSNR is infinite."""
        return None if self.identical else self.psnr_after - self.psnr_before


@dataclass
class SequenceFigures:
    """The figures of a sequence: means over its frames.

    Frames that are identical to the sharp ones, before or after, are left out of both means of
    PSNR, so that the gain is their difference. ``identical_before`` and ``identical_after`` count
    them.
    """

    name: str
    frames: list[FrameFigures] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    pulse: Pulse = field(default_factory=Pulse)

    @property
    def psnr_before(self) -> float | None:
        """Mean PSNR of the blurred frames, dB."""
        return mean(f.psnr_before for f in self.frames if not f.identical)

    @property
    def psnr_after(self) -> float | None:
        """Mean PSNR of the deblurred frames, dB."""
        return mean(f.psnr_after for f in self.frames if not f.identical)

    @property
    def gain(self) -> float | None:
        """Mean gain, dB."""
        return mean(f.gain for f in self.frames)

    @property
    def ssim_before(self) -> float | None:
        """Mean SSIM of the blurred frames."""
        return mean(f.ssim_before for f in self.frames)

    @property
    def ssim_after(self) -> float | None:
        """Mean SSIM of the deblurred frames."""
        return mean(f.ssim_after for f in self.frames)

    @property
    def temporal_before(self) -> float | None:
        """Mean PSNR of the changes from frame to frame, blurred, dB."""
        return mean(f.temporal_before for f in self.frames)

    @property
    def temporal_after(self) -> float | None:
        """Mean PSNR of the changes from frame to frame, deblurred, dB."""
        return mean(f.temporal_after for f in self.frames)

    @property
    def identical_before(self) -> int:
        """Frames whose blurred version is the sharp one."""
        return sum(math.isinf(f.psnr_before) for f in self.frames)

    @property
    def identical_after(self) -> int:
        """Frames whose deblurred version is the sharp one."""
        return sum(math.isinf(f.psnr_after) for f in self.frames)


def rgb8(planes: Planes, fmt: PixelFormat) -> Image:
    """A frame of any format as (H, W, 3) uint8 RGB, rounded."""
    import torch

    from vs_deblur_kernels.reference import to_rgb

    if fmt.family == "rgb" and fmt.bits == 8 and fmt.full_range and not fmt.is_float:
        return np.stack([np.asarray(p) for p in planes], axis=-1)
    rgb, _ = to_rgb([torch.tensor(np.asarray(p)) for p in planes], fmt)
    return rgb[0].mul_(255.0).round_().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def image_runs(sequence: ImageSequence) -> Iterator[Run]:
    """The runs of a sequence of images; where the size changes, a new run begins.

    Each run must be read to its end before the next.

    Raises:
        InputError: an image that cannot be read, or blurred and sharp of different sizes.
    """
    from vs_deblur_kernels.pixels import PixelFormat

    fmt = PixelFormat("rgb", 8, full_range=True)
    for run in sequence.runs:
        for _, pairs in groupby(read_pairs(run), key=lambda pair: pair[0].shape):
            yield Run(fmt, (([b[..., c] for c in range(3)], sharp) for b, sharp in pairs))


def compare_run(
    deblurrer: Deblurrer, run: Run, scene_threshold: float | None = None
) -> Iterator[Compared]:
    """Deblur a run and give each frame beside its sharp one.

    Raises:
        InputError: what the run's frames raise.
        EngineError, DeviceError: see :meth:`vs_deblur.engine.Deblurrer.step`.
    """
    from vs_deblur.pipeline import deblur_frames

    # The engine reads ahead: frames wait here until their result comes.
    waiting: deque[tuple[Planes, Image]] = deque()

    def blurred() -> Iterator[Planes]:
        for planes, sharp in run.frames:
            waiting.append((planes, sharp))
            yield planes

    plan = deblurrer.plan
    borders = range(plan.segment, sys.maxsize, plan.segment) if plan.segment else ()
    for output in deblur_frames(deblurrer, blurred(), run.fmt, scene_threshold=scene_threshold):
        n, (planes, sharp) = output.n, waiting.popleft()
        yield Compared(
            blurred=rgb8(planes, run.fmt),
            result=rgb8(output.value.planes, run.fmt),
            sharp=sharp,
            starts_run=n == 0,
            # At another anchor, a scene cut and not the segment began the recurrence.
            at_border=n in borders and output.anchor == plan.earliest(n),
        )


def figures_of(frame: Compared, before: Compared | None) -> FrameFigures:
    """The figures of a frame; ``before`` is the frame before it in its run, if there is one."""
    temporal: tuple[float | None, float | None] = (None, None)
    if before is not None:
        temporal = (
            temporal_psnr(frame.blurred, before.blurred, frame.sharp, before.sharp),
            temporal_psnr(frame.result, before.result, frame.sharp, before.sharp),
        )
    return FrameFigures(
        psnr(frame.blurred, frame.sharp),
        psnr(frame.result, frame.sharp),
        ssim(frame.blurred, frame.sharp),
        ssim(frame.result, frame.sharp),
        *temporal,
    )


def measure(
    name: str,
    runs: Iterable[Run],
    deblurrer: Deblurrer,
    *,
    scene_threshold: float | None = None,
    on_frame: Callable[[Compared, FrameFigures], object] | None = None,
) -> SequenceFigures:
    """Deblur a sequence and compare it with its sharp frames.

    Args:
        name: of the sequence.
        runs: its frames.
        deblurrer: the engine.
        scene_threshold: see :class:`vs_deblur.pipeline.SceneDetector`.
        on_frame: called with each frame and its figures, in order.

    Raises:
        InputError: a frame that cannot be read, or blurred and sharp of different sizes.
    """
    total = SequenceFigures(name)
    for run in runs:
        before: Compared | None = None
        for frame in compare_run(deblurrer, run, scene_threshold):
            figures = figures_of(frame, before)
            total.frames.append(figures)
            size = (frame.sharp.shape[1], frame.sharp.shape[0])
            if size not in total.sizes:
                total.sizes.append(size)
            if before is not None:
                change = correction_change(
                    frame.result, frame.blurred, before.result, before.blurred
                )
                total.pulse.add(change, frame.at_border)
            if on_frame is not None:
                on_frame(frame, figures)
            before = frame
    return total
