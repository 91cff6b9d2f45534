"""Frames to network input and back, in their own format on the device: launches ``planes.cu``.

A frame is one tensor here: its planes one after another, without padding (:func:`pack`,
:func:`unpack`). Nothing is computed on the host, and whether all values were finite is told by a
tensor, to be read when the host waits anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from vs_deblur_kernels import reference
from vs_deblur_kernels._compile import Argument, Backend, Kernel, Out
from vs_deblur_kernels.dispatch import Operation, compare
from vs_deblur_kernels.pixels import (
    LUMA_COEFFICIENTS,
    ChromaFilter,
    PixelFormat,
    doubling_taps,
    filter_taps,
    halving_taps,
)

SAMPLES = {
    torch.uint8: "uint8",
    torch.uint16: "uint16",
    torch.float16: "float16",
    torch.float32: "float",
}
VALUES = {torch.float32: "float", torch.float16: "float16", torch.bfloat16: "bfloat16"}
MOST_FRAMES = 7
_BLOCK = 256
_TILE = (64, 16)  # columns and rows of a block of `add`
_MOST_SAMPLES = 1 << 31  # indices are 32 bits
_MOST_BLOCKS = 65535  # of a grid, downwards


def sample_type(fmt: PixelFormat) -> torch.dtype:
    """The type of a format's samples."""
    if fmt.is_float:
        return torch.float16 if fmt.bits == 16 else torch.float32
    return torch.uint8 if fmt.bits == 8 else torch.uint16


def pack(planes: Sequence[Tensor]) -> Tensor:
    """Planes, (h, w) each, as one tensor of one axis."""
    return torch.cat([p.reshape(-1) for p in planes])


def unpack(frame: Tensor, fmt: PixelFormat, height: int, width: int) -> list[Tensor]:
    """The planes of a frame, (h, w) each; they share its memory.

    Raises:
        ValueError: the frame has another type, or another number of samples.
    """
    shapes = [fmt.plane_shape(height, width, p) for p in range(fmt.planes)]
    ends = list(accumulate(h * w for h, w in shapes))
    if frame.shape != (ends[-1],) or frame.dtype != sample_type(fmt):
        raise ValueError(
            f"a frame of {width} x {height} pixels must be {ends[-1]} numbers of type "
            f"{sample_type(fmt)}, not {tuple(frame.shape)} of {frame.dtype}"
        )
    return [frame[end - h * w : end].view(h, w) for end, (h, w) in zip(ends, shapes, strict=True)]


def stack(
    frames: Sequence[Tensor],
    fmt: PixelFormat,
    height: int,
    width: int,
    padded: tuple[int, int],
    dtype: torch.dtype,
    chroma: ChromaFilter = "bilinear",
) -> tuple[Tensor, Tensor]:
    """What a network sees of a window of frames.

    The kernel takes 1 to 7 frames of any format but those whose chroma has less than half of the
    columns or rows. Every frame is converted anew for every window: without the kernel it is less
    work to keep what :func:`reference.to_rgb` gives.

    Args:
        frames: packed, of one format and size, on one device.
        fmt: how to read them.
        height, width: their size, pixels.
        padded: height and width of the result, at least the frames'; what is beyond them repeats
            their last row and column.
        dtype: of the result: float32, float16 or bfloat16.
        chroma: the filter that interpolates subsampled chroma.

    Returns:
        (1, 3 * frames, height, width) at the padded size, channels_last: RGB of each frame as
        :func:`reference.to_rgb` gives it, rounded to the type; and int32 (len(frames),): not 0
        where a frame has a sample that is NaN or infinite.

    Raises:
        ValueError: sizes, types or devices that do not fit together; no such filter.
    """
    _check_frames(frames, fmt, height, width)
    if padded[0] < height or padded[1] < width:
        raise ValueError(f"the padded size {padded} is less than the frames' {(height, width)}")
    if dtype not in VALUES:
        raise ValueError(f"networks see float32, float16 or bfloat16, not {dtype}")
    filter_taps(chroma)
    if len(frames) <= MOST_FRAMES and _fits(fmt, *padded):
        what = (frames, fmt, height, width, padded, dtype, chroma)
        done = operation.run(lambda b: launch_stack(b, *what), *frames)
        if done is not None:
            return done
    values, flags = [], []
    for frame in frames:
        rgb, bad = reference.to_rgb(unpack(frame, fmt, height, width), fmt, chroma)
        values.append(reference.pad_to(rgb, *padded).to(dtype))
        flags.append(bad)
    stacked = torch.cat(values, dim=1).contiguous(memory_format=torch.channels_last)
    return stacked, torch.tensor(flags, dtype=torch.int32, device=frames[0].device)


def add(
    frame: Tensor,
    fmt: PixelFormat,
    height: int,
    width: int,
    sharp: Tensor,
    strength: float,
    dtype: torch.dtype,
    chroma: ChromaFilter = "bilinear",
) -> tuple[Tensor, Tensor]:
    """Bring what a network changed into a frame's own format.

    The change is ``(clamp(sharp) - seen) * strength``, where ``seen`` is what :func:`stack` gave
    for this frame, rounded to the type; it is added as :func:`reference.add_rgb` does it.

    Args:
        frame: packed; not changed.
        fmt: its format.
        height, width: its size, pixels.
        sharp: the network's result, (1, 3, H, W) with H and W at least the frame's; float32, else
            it is converted.
        strength: 0..1.
        dtype: what the network saw: float32, float16 or bfloat16.
        chroma: as given to :func:`stack`.

    Returns:
        the new frame, packed; and int32 (1,): not 0 if ``sharp`` has a value within the frame that
        is NaN or infinite (the new frame is finite nonetheless).

    Raises:
        ValueError: sizes, types or devices that do not fit together; no such filter.
    """
    _check_frames([frame], fmt, height, width)
    if sharp.ndim != 4 or sharp.shape[:2] != (1, 3) or not _covers(sharp, height, width):
        raise ValueError(f"sharp must be (1, 3, {height} or more, {width} or more)")
    if sharp.device != frame.device:
        raise ValueError(f"the frame is on {frame.device}, sharp on {sharp.device}")
    if dtype not in VALUES:
        raise ValueError(f"networks see float32, float16 or bfloat16, not {dtype}")
    filter_taps(chroma)
    sharp = sharp.float()
    if _fits(fmt, height, width):
        given = (frame, fmt, height, width, sharp, strength, dtype, chroma)
        done = operation.run(lambda b: launch_add(b, *given), frame, sharp)
        if done is not None:
            return done
    planes = unpack(frame, fmt, height, width)
    seen = reference.to_rgb(planes, fmt, chroma)[0].to(dtype).float()
    sharp = sharp[..., :height, :width]
    flag = (~torch.isfinite(sharp)).any().reshape(1).to(torch.int32)
    change = torch.nan_to_num(sharp, nan=0.0, posinf=1.0, neginf=0.0).clamp_(0.0, 1.0)
    change.sub_(seen).mul_(strength)
    return pack(reference.add_rgb(planes, fmt, change, chroma)), flag


def _covers(sharp: Tensor, height: int, width: int) -> bool:
    return sharp.shape[2] >= height and sharp.shape[3] >= width


def _check_frames(frames: Sequence[Tensor], fmt: PixelFormat, height: int, width: int) -> None:
    if not frames or height < 1 or width < 1:
        raise ValueError("there must be a frame of at least one pixel")
    for frame in frames:
        unpack(frame, fmt, height, width)
        if frame.device != frames[0].device:
            raise ValueError(f"frames are on {frames[0].device} and on {frame.device}")


def _fits(fmt: PixelFormat, height: int, width: int) -> bool:
    """Whether the kernels take a format and a size."""
    few = fmt.planes * height * width + _BLOCK < _MOST_SAMPLES
    return max(fmt.subsampling) <= 1 and few and height <= _MOST_BLOCKS * _TILE[1]


# --------------------------------------------------------------------------------------- launching


def stack_kernel(
    fmt: PixelFormat, dtype: torch.dtype, frames: int, chroma: ChromaFilter = "bilinear"
) -> Kernel:
    """The kernel that reads a number of frames of a format."""
    shared = _BLOCK * 3 * frames * dtype.itemsize
    return Kernel(
        "planes", "stack", (*_defines(fmt, dtype, chroma), ("FRAMES", str(frames))), shared
    )


def add_kernel(fmt: PixelFormat, dtype: torch.dtype, chroma: ChromaFilter = "bilinear") -> Kernel:
    """The kernel that adds to frames of a format."""
    # Two floats for each pixel of a tile and of what the filter reaches around it.
    ring = 2 * filter_taps(chroma) - 2
    columns, rows = (n + ring * sub for n, sub in zip(_TILE, fmt.subsampling, strict=True))
    shared = 2 * 4 * columns * rows if fmt.subsampling != (0, 0) else 0
    return Kernel("planes", "add", _defines(fmt, dtype, chroma), shared)


def _defines(
    fmt: PixelFormat, dtype: torch.dtype, chroma: ChromaFilter
) -> tuple[tuple[str, str], ...]:
    sub_x, sub_y = fmt.subsampling
    return (
        ("SAMPLE", SAMPLES[sample_type(fmt)]),
        ("VALUE", VALUES[dtype]),
        ("FAMILY", fmt.family),
        ("SUB_X", str(sub_x)),
        ("SUB_Y", str(sub_y)),
        ("TAPS", str(_taps(fmt, chroma))),
    )


def _taps(fmt: PixelFormat, chroma: ChromaFilter) -> int:
    """What is compiled: the filter matters only where there is something to filter."""
    return filter_taps("bilinear" if fmt.subsampling == (0, 0) else chroma)


@cache
def _numbers(fmt: PixelFormat, chroma: ChromaFilter, device: torch.device) -> Tensor:
    """`struct Format` of the kernel. Kept for good: a captured launch holds its address."""
    kr, kb = LUMA_COEFFICIENTS[fmt.matrix]
    kg = 1.0 - kr - kb
    numbers = [
        *(fmt.luma_offset, fmt.luma_scale, 1.0 / fmt.luma_scale),
        *(fmt.chroma_offset, fmt.chroma_scale, 1.0 / fmt.chroma_scale),
        fmt.peak,
        *(2 * (1 - kr), -2 * (1 - kb) * kb / kg, -2 * (1 - kr) * kr / kg, 2 * (1 - kb)),
        *(kr, kg, kb),
        *(0.5 / (1 - kb), 0.5 / (1 - kr)),
    ]
    for site in fmt.chroma_site:
        for parity in (0, 1):
            numbers += doubling_taps(chroma, site, parity).weights
    for site in fmt.chroma_site:
        numbers += halving_taps(chroma, site).weights
    return torch.tensor(numbers, dtype=torch.float32).to(device)


def _numbers_for(fmt: PixelFormat, chroma: ChromaFilter, device: torch.device) -> Tensor:
    return _numbers(fmt, "bilinear" if fmt.subsampling == (0, 0) else chroma, device)


def launch_stack(
    backend: Backend,
    frames: Sequence[Tensor],
    fmt: PixelFormat,
    height: int,
    width: int,
    padded: tuple[int, int],
    dtype: torch.dtype,
    chroma: ChromaFilter = "bilinear",
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments as those of :func:`stack`."""
    device = frames[0].device
    out = torch.empty(
        (1, 3 * len(frames), *padded),
        dtype=dtype,
        device=device,
        memory_format=torch.channels_last,
    )
    flags = torch.zeros(len(frames), dtype=torch.int32, device=device)
    pointers: list[Argument] = [frame.contiguous() for frame in frames]
    pointers += [np.uint64(0)] * (MOST_FRAMES - len(frames))
    backend.launch(
        stack_kernel(fmt, dtype, len(frames), chroma),
        (-(-padded[0] * padded[1] // _BLOCK), 1, 1),
        (_BLOCK, 1, 1),
        [
            *pointers,
            _numbers_for(fmt, chroma, device),
            *(np.int32(n) for n in (height, width, *padded)),
            Out(out),
            Out(flags, is_read=True),
        ],
    )
    return out, flags


def launch_add(
    backend: Backend,
    frame: Tensor,
    fmt: PixelFormat,
    height: int,
    width: int,
    sharp: Tensor,
    strength: float,
    dtype: torch.dtype,
    chroma: ChromaFilter = "bilinear",
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments as those of :func:`add`, ``sharp`` in float32."""
    frame = frame.contiguous()
    if not sharp.is_contiguous(memory_format=torch.channels_last):
        sharp = sharp.contiguous()
    out = torch.empty_like(frame)
    flag = torch.zeros(1, dtype=torch.int32, device=frame.device)
    backend.launch(
        add_kernel(fmt, dtype, chroma),
        (-(-width // _TILE[0]), -(-height // _TILE[1]), 1),
        (_BLOCK, 1, 1),
        [
            frame,
            _numbers_for(fmt, chroma, frame.device),
            sharp,
            *(np.int64(s) for s in sharp.stride()[1:]),
            np.float32(strength),
            np.int32(height),
            np.int32(width),
            Out(out),
            Out(flag, is_read=True),
        ],
    )
    return out, flag


def _check(backend: Backend, device: torch.device, dtype: torch.dtype) -> None:
    """Compare on a window of 4:2:0 frames whose samples have a type, as the engine has it."""
    is_float = dtype in (torch.float16, torch.float32)
    bits = {torch.uint8: 8, torch.uint16: 10, torch.float16: 16, torch.float32: 32}[dtype]
    fmt = PixelFormat("yuv", bits, is_float, (1, 1))
    size = (fmt, 21, 75)
    generator = torch.Generator().manual_seed(1)
    samples = sum(h * w for h, w in (fmt.plane_shape(21, 75, p) for p in range(3)))
    numbers = torch.rand((3, samples), generator=generator)
    frames = list((numbers if is_float else numbers.mul(fmt.peak).round_()).to(dtype))
    sharp = torch.rand((1, 3, 21, 75), generator=generator)
    there = [frame.to(device) for frame in frames]

    for seen_type in (torch.float16, torch.float32):
        seen, flags = launch_stack(backend, there, *size, (24, 80), seen_type)
        rgb = [reference.to_rgb(unpack(f, *size), fmt)[0] for f in frames]
        expected = reference.pad_to(torch.cat(rgb, dim=1), 24, 80)
        compare("planes", seen.cpu(), expected, 2 * torch.finfo(seen_type).eps)
        compare("planes", flags.cpu(), torch.zeros(3), 0.0)

        after, flag = launch_add(backend, there[1], *size, sharp.to(device), 1.0, seen_type)
        change = sharp - seen[:, 3:6, :21, :75].cpu().float()
        expected = pack(reference.add_rgb(unpack(frames[1], *size), fmt, change))
        # Integers: the other side of a tie, at most.
        tolerance = 1.0 if not is_float else 2e-3 if bits == 16 else 4e-6
        compare("planes", after.cpu(), expected, tolerance)
        compare("planes", flag.cpu(), torch.zeros(1), 0.0)


operation = Operation("planes", _check, automatic=True, usual=torch.uint8)
