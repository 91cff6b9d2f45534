"""The residual block with 3x3 convolutions in one kernel: launches ``resblock.cu``.

Where the device and the width allow it, the kernel for Hopper takes its place
(:mod:`vs_deblur_kernels.resblock_wgmma`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from vs_deblur_kernels import reference, resblock_wgmma
from vs_deblur_kernels._compile import Backend, Kernel, Out
from vs_deblur_kernels.dispatch import Operation, compare

TYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
CAPABILITY = (8, 0)  # cp.async, and mma of 16x8x16
_STAGES = 3
_TILE_W = 16


@dataclass(frozen=True)
class Shape:
    """How the work of a block of threads is cut; the table in ``resblock.cu``.

    Attributes:
        tile_height: rows of the tile, pixels (its width is 16).
        warps_n: warps that share the channels of a pixel.
        slice: input channels of a stage of weights.
    """

    tile_height: int
    warps_n: int
    slice: int


SHAPES = {
    32: Shape(16, 1, 32),
    48: Shape(16, 1, 48),
    64: Shape(16, 2, 64),
    80: Shape(8, 1, 80),
    128: Shape(8, 2, 32),
}


def kernel(channels: int, dtype: torch.dtype, *, relu: bool) -> Kernel:
    """The kernel for a width and a type; ``relu``: the form with a ReLU after the sum."""
    shape = SHAPES[channels]
    region = (shape.tile_height + 4) * (_TILE_W + 4) * (channels + 8)
    stages = _STAGES * channels * (shape.slice + 8)
    defines = {
        "VALUE": TYPES[dtype],
        "CHANNELS": channels,
        "TILE_H": shape.tile_height,
        "WARPS_N": shape.warps_n,
        "SLICE": shape.slice,
        "STAGES": _STAGES,
        "RELU_AFTER": int(relu),
    }
    named = tuple((name, str(value)) for name, value in defines.items())
    return Kernel("resblock", "resblock", named, 2 * (region + stages), CAPABILITY)


def fused(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, relu: bool = False
) -> Tensor | None:
    """The block by its kernel; None where torch is to compute it.

    Arguments and result as those of :func:`vs_deblur_kernels.reference.resblock`. The kernel takes
    float16 and bfloat16, 32, 48, 64, 80 or 128 channels and kernels of 3x3; the result is
    channels_last.

    Raises:
        KernelError: kernels are asked for by name and there are none.
    """
    channels = x.shape[1]
    if (
        x.dtype not in TYPES
        or channels not in SHAPES
        or weight1.shape != (channels, channels, 3, 3)
        or weight2.shape != weight1.shape
        or not weight1.dtype == weight2.dtype == x.dtype
        or not x.numel()
    ):
        return None
    parts = (weight1, bias1, weight2, bias2)
    return operation.run(
        lambda b: launch(b, x, *parts, relu=relu) if _fits(b, x) else None, x, *parts
    )


def _fits(backend: Backend, x: Tensor) -> bool:
    """Whether :func:`launch` has a kernel that the tensor's device can run."""
    capability, channels = backend.capability(x.device), x.shape[1]
    make = resblock_wgmma.kernel if resblock_wgmma.takes(capability, channels) else kernel
    chosen = make(channels, x.dtype, relu=False)
    most = backend.most_shared(x.device)
    # A tile is at least 8 lines high; a grid has 65,535 blocks in these directions.
    few = x.shape[0] <= 65535 and x.shape[2] <= 8 * 65535
    return capability >= chosen.capability and chosen.shared <= most and few


def launch(
    backend: Backend,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    relu: bool = False,
) -> Tensor:
    """Launch the kernel; arguments as those of :func:`fused`."""
    images, channels, height, width = x.shape
    x = aligned(x)
    out = torch.empty_like(x)
    parts = (weight1, bias1, weight2, bias2)
    if resblock_wgmma.takes(backend.capability(x.device), channels):
        weights, biases = packed(*parts, by=resblock_wgmma.pack)
        resblock_wgmma.launch(backend, x, weights, biases, out, relu=relu)
        return out
    tile_height = SHAPES[channels].tile_height
    weights, biases = packed(*parts)
    backend.launch(
        kernel(channels, x.dtype, relu=relu),
        (-(-width // _TILE_W), -(-height // tile_height), images),
        (256, 1, 1),
        [x, weights, biases, Out(out), np.int32(height), np.int32(width)],
    )
    return out


def aligned(x: Tensor) -> Tensor:
    """The tensor as channels_last, at an address that vectors can be read from."""
    if x.permute(0, 2, 3, 1).is_contiguous() and x.data_ptr() % 16 == 0:
        return x
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


# Row 8 h + 2 t + e of sixteen is channel 4 t + 2 h + e: what lane t of four holds of two products
# of eight columns is four neighbouring channels.
_ORDER = [4 * (r % 8 // 2) + 2 * (r // 8) + r % 2 for r in range(16)]


def pack(weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases as the kernel reads them.

    Args:
        weight1, weight2: (C, C, 3, 3).
        bias1, bias2: (C,).

    Returns:
        weights (2, 9, C / slice, C, slice) of the same type, output channels reordered within each
        sixteen; biases (2, C) in float32.
    """
    channels = weight1.shape[0]
    slice_ = SHAPES[channels].slice
    both = torch.stack((weight1, weight2)).detach()
    order = torch.tensor(_ORDER, device=both.device)
    rows = torch.arange(channels, device=both.device).view(-1, 16)[:, order].flatten()
    taps = both[:, rows].flatten(3).permute(0, 3, 2, 1)  # (2, 9, in, out)
    cut = taps.unflatten(2, (channels // slice_, slice_))  # type: ignore[no-untyped-call]
    weights = cut.permute(0, 1, 2, 4, 3).contiguous()
    return weights, torch.stack((bias1, bias2)).detach().float()


_packed: Any = WeakIdKeyDictionary()


def packed(
    *parts: Tensor, by: Callable[..., tuple[Tensor, Tensor]] = pack
) -> tuple[Tensor, Tensor]:
    """:func:`pack`, remembered for as long as the first weights live and none of them changes.

    ``by``: another function of that kind, of as many parts as it takes.
    """
    # In inference mode tensors have no version, and are not changed in place after loading.
    state = (by, *((t.data_ptr(), 0 if t.is_inference() else t._version) for t in parts))
    found = _packed.get(parts[0])
    if found is None or found[0] != state:
        found = _packed[parts[0]] = (state, by(*parts))
    kept: tuple[Tensor, Tensor] = found[1]
    return kept


def _check(backend: Backend, device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    for channels in SHAPES:
        x = torch.randn((1, channels, 11, 19), generator=generator).to(device, dtype)
        scale = (9 * channels) ** -0.5
        weights = [
            (torch.randn((channels, channels, 3, 3), generator=generator) * scale).to(device, dtype)
            for _ in range(2)
        ]
        biases = [torch.randn(channels, generator=generator).to(device, dtype) for _ in range(2)]
        arguments = (x, weights[0], biases[0], weights[1], biases[1])
        if not _fits(backend, x):
            continue
        found = launch(backend, *arguments)
        expected = reference.resblock(*(t.double() for t in arguments))
        compare(f"resblock with {channels} channels", found, expected, 32 * torch.finfo(dtype).eps)


# Not automatic: that it gains over cuDNN has been shown on no device yet (docs/kernels.md).
operation = Operation("resblock", _check, automatic=False, least=CAPABILITY)
