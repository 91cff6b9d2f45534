"""The kernels as problems: inputs, the kernel, the same in plain torch, work and traffic.

The same problems are checked at small sizes and timed at large ones.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vs_deblur_kernels import dtb, dtb_conv, planes, reference, resblock, resblock5, skip
from vs_deblur_kernels._compile import Argument, Backend, Grid, Kernel, KernelError
from vs_deblur_kernels.dispatch import VARIABLE, launching_by
from vs_deblur_kernels.pixels import PixelFormat

Size = tuple[int, int, int]
"""Images, height, width."""
Inputs = list[Tensor]
HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, *HALVES)
FORMATS = {
    "yuv420p8": PixelFormat("yuv", 8, subsampling=(1, 1)),
    "yuv422p10": PixelFormat("yuv", 10, subsampling=(1, 0)),
    "yuv444p16": PixelFormat("yuv", 16),
    "rgb24": PixelFormat("rgb", 8, full_range=True),
    "gray8": PixelFormat("gray", 8),
}
"""Pixel formats that the conversions are checked with."""
RAGGED: tuple[Size, ...] = (
    *((1, 1, 1), (1, 16, 16), (1, 17, 15), (2, 3, 35), (1, 33, 18)),
    (1, 90, 161),
)
"""Sizes that kernels are checked at, the last with many blocks."""


@contextlib.contextmanager
def kernels(mode: str) -> Iterator[None]:
    """Set ``VS_DEBLUR_KERNELS`` for a while."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = mode
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


@dataclass(frozen=True)
class Problem:
    """One kernel with one type.

    Attributes:
        kind: the kernel.
        name: kernel and width, or format.
        dtype: of the inputs that are floats.
        make: inputs on the CPU, from a generator and a size.
        ours: the kernel, launched by a backend. May write its first input (``in_place``).
        plain: the same in torch, at the precision of its inputs.
        rule: "twice": the error against float64 is at most twice that of plain torch; "close":
            plain torch is the definition, and the result is off by ``tolerance`` at most.
        changing: the inputs that change from frame to frame; the others are weights.
        in_place: whether the first input is written.
        is_single: whether it takes one image.
        is_ours: whether all that runs is ours, so that a stand-in for the device can launch it.
        flops: of a call with such inputs.
        tolerance: see ``rule``.
    """

    kind: str
    name: str
    dtype: torch.dtype
    make: Callable[[torch.Generator, Size], Inputs]
    ours: Callable[[Backend, Inputs], Tensor]
    plain: Callable[[Inputs], Tensor]
    rule: Literal["twice", "close"] = "twice"
    changing: tuple[int, ...] = (0,)
    in_place: bool = False
    is_single: bool = False
    is_ours: bool = True
    flops: Callable[[Inputs], float] = lambda _: 0.0
    tolerance: float = 0.0

    @property
    def title(self) -> str:
        """Name and type."""
        return f"{self.name} {short(self.dtype)}"

    def inputs(self, device: torch.device, size: Size, seed: int = 0) -> Inputs:
        """Inputs on a device, the same numbers everywhere; memory formats are kept."""
        made = self.make(torch.Generator().manual_seed(seed), size)
        return [t.to(device) for t in made]

    def launch(self, backend: Backend, inputs: Inputs) -> Tensor:
        """The kernel on a copy of what it writes."""
        if self.in_place:
            inputs = [inputs[0].clone(), *inputs[1:]]
        return self.ours(backend, inputs)


def short(dtype: torch.dtype) -> str:
    """fp16, bf16, fp32."""
    names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def traffic(inputs: Sequence[Tensor], out: Tensor) -> int:
    """Bytes that must be moved: every input read once, the result written once."""
    return sum(t.nbytes for t in inputs) + out.nbytes


def last(t: Tensor) -> Tensor:
    """The tensor as channels_last."""
    return t.contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------ the kernels


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def blending(channels: int, dtype: torch.dtype, layout: str = "channels_last") -> Problem:
    """Dynamic temporal blending."""
    arranged = last if layout == "channels_last" else Tensor.contiguous

    def make(generator: torch.Generator, size: Size) -> Inputs:
        images, height, width = size
        shape = (images, channels, height, width)
        a, h, previous = (arranged(_normal(generator, *shape).to(dtype)) for _ in range(3))
        return [a * 3, h, previous, torch.tensor(0.3, dtype=dtype)]

    return Problem(
        "dtb",
        f"dtb {channels}" + ("" if layout == "channels_last" else " NCHW"),
        dtype,
        make,
        lambda backend, t: dtb.launch(backend, t[0], t[1], t[2], t[3]),
        lambda t: reference.blend(t[0], t[1], t[2], t[3]),
        changing=(0, 1, 2, 3),
    )


def blended_convolving(dtype: torch.dtype) -> Problem:
    """Dynamic temporal blending with its own convolution, by ``dtb_conv.cu``."""

    def make(generator: torch.Generator, size: Size) -> Inputs:
        images, height, width = size
        shape = (images, dtb_conv.CHANNELS, height, width)
        h, previous = (last(_normal(generator, *shape).to(dtype)) for _ in range(2))
        weight = _normal(generator, shape[1], 2 * shape[1], 5, 5) * (50 * shape[1]) ** -0.5
        bias = _normal(generator, shape[1])
        return [h, previous, weight.to(dtype), bias.to(dtype), torch.tensor(0.3, dtype=dtype)]

    return Problem(
        "dtb_conv",
        f"dtb_conv {dtb_conv.CHANNELS}",
        dtype,
        make,
        lambda backend, t: dtb_conv.launch(backend, t[0], t[1], t[2], t[3], t[4]),
        lambda t: reference.blended_convolution(t[0], t[1], t[2], t[3], t[4]),
        changing=(0, 1, 4),
        is_ours=False,  # a stand-in need not be a device that the kernel is for
        flops=lambda t: 2.0 * t[0].numel() * t[2][0].numel(),
    )


def with_blend(backend: Backend, t: Inputs) -> Tensor:
    """The same by the library's convolution and the kernel ``dtb``."""
    both = torch.cat((t[1], t[0]), dim=1)
    return dtb.launch(backend, F.conv2d(both, t[2], t[3], padding=2), t[0], t[1], t[4])


def skipping(channels: int, dtype: torch.dtype, *, relu: bool = False) -> Problem:
    """The end of a residual block, in place."""

    def make(generator: torch.Generator, size: Size) -> Inputs:
        images, height, width = size
        y, x = (
            last(_normal(generator, images, channels, height, width).to(dtype)) for _ in range(2)
        )
        return [y, _normal(generator, channels).to(dtype), x]

    return Problem(
        "skip",
        f"skip {channels}" + (" relu" if relu else ""),
        dtype,
        make,
        lambda backend, t: skip.launch(backend, t[0], t[1], t[2], relu=relu),
        lambda t: reference.skip(t[0], t[1], t[2], relu=relu),
        changing=(0, 2),
        in_place=True,
    )


def _block(channels: int, taps: int, dtype: torch.dtype) -> Callable[..., Inputs]:
    def make(generator: torch.Generator, size: Size) -> Inputs:
        images, height, width = size
        x = last(_normal(generator, images, channels, height, width).to(dtype))
        scale = (taps * taps * channels) ** -0.5
        parts = []
        for _ in range(2):
            parts.append((_normal(generator, channels, channels, taps, taps) * scale).to(dtype))
            parts.append(_normal(generator, channels).to(dtype))
        return [x, *parts]

    return make


def _block_flops(t: Inputs) -> float:
    images, channels, height, width = t[0].shape
    return 4.0 * images * height * width * channels * channels * t[1].shape[-1] ** 2


def residual(channels: int, dtype: torch.dtype, *, relu: bool = False) -> Problem:
    """The residual block by ``resblock.cu``."""
    return Problem(
        "resblock",
        f"resblock {channels}" + (" relu" if relu else ""),
        dtype,
        _block(channels, 3, dtype),
        lambda backend, t: resblock.launch(backend, t[0], t[1], t[2], t[3], t[4], relu=relu),
        lambda t: reference.resblock(t[0], t[1], t[2], t[3], t[4], relu=relu),
        flops=_block_flops,
    )


def residual_as_chosen(channels: int, dtype: torch.dtype, source: str) -> Problem:
    """The residual block as :func:`resblock.fused` chooses it on this device."""

    def ours(backend: Backend, t: Inputs) -> Tensor:
        with kernels("cupy"), launching_by(backend), torch.no_grad():
            found = resblock.fused(t[0], t[1], t[2], t[3], t[4])
        assert found is not None
        return found

    return Problem(
        source,
        f"resblock {channels} by {source}",
        dtype,
        _block(channels, 3, dtype),
        ours,
        lambda t: reference.resblock(t[0], t[1], t[2], t[3], t[4]),
        is_ours=False,
        flops=_block_flops,
    )


def composed(channels: int, taps: int, dtype: torch.dtype) -> Problem:
    """The residual block by the library, what follows its convolutions by ``skip.cu``."""

    def ours(backend: Backend, t: Inputs) -> Tensor:
        with torch.no_grad():
            return resblock5.launch(backend, t[0], t[1], t[2], t[3], t[4])

    return Problem(
        "library",
        f"resblock {channels} {taps}x{taps} by the library",
        dtype,
        _block(channels, taps, dtype),
        ours,
        lambda t: reference.resblock(t[0], t[1], t[2], t[3], t[4]),
        is_ours=False,
        flops=_block_flops,
    )


def with_epilogue(t: Inputs) -> Tensor:
    """The residual block by torch alone, as well as its library can: cuDNN's bias and ReLU."""
    middle = convolution_relu(t[0], t[1], t[2])
    return t[0] + F.conv2d(middle, t[3], t[4], padding=t[3].shape[-1] // 2)


def convolution_relu(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """``relu(conv(x))`` with cuDNN's epilogue; without one on the CPU."""
    pad = weight.shape[-1] // 2
    if not x.is_cuda:
        return torch.relu(F.conv2d(x, weight, bias, stride=stride, padding=pad))
    pairs = [(n, n) for n in (stride, pad, 1)]
    out: Tensor = torch.ops.aten.cudnn_convolution_relu(x, weight, bias, *pairs, 1)
    return out


# ----------------------------------------------------------------------------------------- planes


def packed_frame(generator: torch.Generator, fmt: PixelFormat, height: int, width: int) -> Tensor:
    """Noise: the planes of a frame, one after another in one tensor."""
    shapes = [fmt.plane_shape(height, width, p) for p in range(fmt.planes)]
    count = sum(h * w for h, w in shapes)
    noise = torch.randint(0, int(fmt.peak) + 1, (count,), generator=generator)
    return noise.to(planes.sample_type(fmt))


def stacking(name: str, dtype: torch.dtype) -> Problem:
    """Three frames to what a network sees."""
    fmt = FORMATS[name]

    def make(generator: torch.Generator, size: Size) -> Inputs:
        # Height and width travel with the frames: a frame is one row of samples.
        _, height, width = size
        frames = [packed_frame(generator, fmt, height, width) for _ in range(3)]
        return [*frames, torch.empty((height, width), dtype=torch.uint8)]

    def ours(backend: Backend, t: Inputs) -> Tensor:
        height, width = t[3].shape
        padded = (height + height % 2, width + width % 2)
        return planes.launch_stack(backend, t[:3], fmt, height, width, padded, dtype)[0]

    def plain(t: Inputs) -> Tensor:
        height, width = t[3].shape
        rgb = [reference.to_rgb(planes.unpack(f, fmt, height, width), fmt)[0] for f in t[:3]]
        padded = reference.pad_to(torch.cat(rgb, 1), height + height % 2, width + width % 2)
        return last(padded.to(dtype))

    return Problem(
        "planes stack",
        f"planes stack {name}",
        dtype,
        make,
        ours,
        plain,
        rule="close",
        is_single=True,
        changing=(0, 1, 2),
        # The other side of a tie in the last place, at values up to 1.
        tolerance=torch.finfo(dtype).eps + 2e-6,
    )


def adding(name: str, dtype: torch.dtype) -> Problem:
    """What a network changed, into a frame."""
    fmt = FORMATS[name]

    def make(generator: torch.Generator, size: Size) -> Inputs:
        _, height, width = size
        sharp = torch.rand((1, 3, height, width), generator=generator)
        return [packed_frame(generator, fmt, height, width), last(sharp)]

    def ours(backend: Backend, t: Inputs) -> Tensor:
        height, width = t[1].shape[-2:]
        return planes.launch_add(backend, t[0], fmt, height, width, t[1], 1.0, dtype)[0]

    def plain(t: Inputs) -> Tensor:
        before = planes.unpack(t[0], fmt, *t[1].shape[-2:])
        seen = reference.to_rgb(before, fmt)[0].to(dtype).float()
        after = reference.add_rgb(before, fmt, t[1].clamp(0.0, 1.0) - seen)
        return planes.pack(after)

    return Problem(
        "planes add",
        f"planes add {name}",
        dtype,
        make,
        ours,
        plain,
        rule="close",
        is_single=True,
        changing=(0, 1),
        tolerance=1.0,  # the other side of a tie
    )


# ------------------------------------------------------------------------------------ all of them


@dataclass
class Recorder:
    """A backend that notes what another launches.

    Attributes:
        backend: who launches.
        sources: names of the ``.cu`` files, in the order of launches.
    """

    backend: Backend
    sources: list[str]

    def capability(self, device: torch.device) -> tuple[int, int]:
        """As the other says."""
        return self.backend.capability(device)

    def most_shared(self, device: torch.device) -> int:
        """As the other says."""
        return self.backend.most_shared(device)

    def launch(
        self, kernel: Kernel, grid: Grid, block: Grid, arguments: Sequence[Argument]
    ) -> None:
        """Note and launch."""
        self.sources.append(kernel.source)
        self.backend.launch(kernel, grid, block, arguments)


def launched(backend: Backend, run: Callable[[Backend], object]) -> list[str]:
    """The kernels that a run launches."""
    recorder = Recorder(backend, [])
    run(recorder)
    return recorder.sources


def fits(backend: Backend, device: torch.device, channels: int, dtype: torch.dtype) -> bool:
    """Whether ``resblock.cu`` runs on a device."""
    if backend.capability(device) < resblock.CAPABILITY:
        return False
    return resblock.kernel(channels, dtype, relu=False).shared <= backend.most_shared(device)


def blends_convolved(backend: Backend, device: torch.device) -> bool:
    """Whether ``dtb_conv.cu`` runs on a device."""
    shared = dtb_conv.kernel(torch.float16, torch.float16).shared
    is_for = backend.capability(device) == dtb_conv.CAPABILITY
    return is_for and shared <= backend.most_shared(device)


def chosen(backend: Backend, device: torch.device, channels: int, dtype: torch.dtype) -> str | None:
    """The source that :func:`resblock.fused` runs where that is not ``resblock``."""
    probe = residual_as_chosen(channels, dtype, "")
    inputs = probe.inputs(device, (1, 8, 8))
    try:
        probe.ours(backend, inputs)  # once, so that what proves itself first is not noted
        sources = launched(backend, lambda b: probe.ours(b, inputs))
    except (KernelError, AssertionError):  # the checks say so
        return None
    return next((s for s in sources if s != "resblock"), None)


def every_problem(
    backend: Backend, device: torch.device, widths: Sequence[int], halves: Sequence[torch.dtype]
) -> list[Problem]:
    """All kernels to be checked on a device.

    Args:
        backend: who launches.
        device: where.
        widths: of residual blocks.
        halves: the 16-bit types; float32 is added where a kernel takes it.
    """
    floats = [t for t in FLOATS if t in halves or t == torch.float32]
    found = [blending(64, t) for t in floats]
    found += [blending(5, t, "NCHW") for t in floats]
    if blends_convolved(backend, device):
        found += [blended_convolving(t) for t in halves]
    found += [skipping(64, t) for t in floats]
    found += [skipping(24, t, relu=True) for t in halves]
    for dtype in halves:
        for channels in widths:
            if not fits(backend, device, channels, dtype):
                continue
            found.append(residual(channels, dtype))
            if channels == min(widths):
                found.append(residual(channels, dtype, relu=True))
            source = chosen(backend, device, channels, dtype)
            if source is not None:
                found.append(residual_as_chosen(channels, dtype, source))
        found += [composed(64, taps, dtype) for taps in (3, 5)]
    found += [stacking(name, t) for name in FORMATS for t in halves]
    found += [adding(name, t) for name in FORMATS for t in halves]
    return found
