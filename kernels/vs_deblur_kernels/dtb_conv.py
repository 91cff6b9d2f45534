"""Dynamic temporal blending with its own convolution, one kernel for Hopper: ``dtb_conv.cu``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vs_deblur_kernels import dtb, reference
from vs_deblur_kernels._compile import Backend, Kernel, KernelError, Out
from vs_deblur_kernels.dispatch import Operation, compare
from vs_deblur_kernels.resblock import aligned, packed

TYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
CHANNELS = 64
CAPABILITY = (9, 0)  # wgmma is in this one and in none after it
_TILE = 16
_SHARED = 2 * CHANNELS // 8 * ((_TILE + 4) ** 2 * 16 + 16)  # bytes: both sources of a tile


def kernel(dtype: torch.dtype, beta: torch.dtype) -> Kernel:
    """The kernel for tensors of a type, and beta of another."""
    defines = (("VALUE", TYPES[dtype]), ("BETA", dtb.TYPES[beta]))
    return Kernel("dtb_conv", "dtb_conv", defines, _SHARED, CAPABILITY, architecture=True)


def fused(h: Tensor, previous: Tensor, weight: Tensor, bias: Tensor, beta: Tensor) -> Tensor | None:
    """The blend and its convolution by their kernel; None where others are to compute them.

    Arguments and result as those of :func:`vs_deblur_kernels.reference.blended_convolution`. The
    kernel takes float16 and bfloat16, 64 channels, a convolution of 5x5 and devices of compute
    capability 9.0; the result is channels_last.

    Raises:
        KernelError: kernels are asked for by name and there are none.
    """
    if (
        h.dtype not in TYPES
        or not h.dtype == previous.dtype == weight.dtype
        or beta.dtype not in dtb.TYPES
        or h.shape != previous.shape
        or h.shape[1] != CHANNELS
        or weight.shape != (CHANNELS, 2 * CHANNELS, 5, 5)
        or not h.numel()
    ):
        return None
    tensors = (h, previous, weight, bias, beta)
    return operation.run(lambda b: launch(b, *tensors) if _fits(b, h) else None, *tensors)


def _fits(backend: Backend, h: Tensor) -> bool:
    """Whether the tensor's device can run the kernel on it."""
    # A grid has 65,535 blocks in these directions.
    few = h.shape[0] <= 65535 and h.shape[2] <= _TILE * 65535
    return few and backend.most_shared(h.device) >= _SHARED


def launch(
    backend: Backend, h: Tensor, previous: Tensor, weight: Tensor, bias: Tensor, beta: Tensor
) -> Tensor:
    """Launch the kernel; arguments as those of :func:`fused`."""
    images, _, height, width = h.shape
    h, previous = aligned(h), aligned(previous)
    out = torch.empty_like(h)
    weights, biases = packed(weight, bias, by=pack)
    backend.launch(
        kernel(h.dtype, beta.dtype),
        (-(-width // _TILE), -(-height // _TILE), images),
        (256, 1, 1),
        [previous, h, weights, biases, beta, Out(out), np.int32(height), np.int32(width)],
    )
    return out


def pack(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and bias as the kernel reads them.

    A step of 16 inputs by 64 outputs is 128 threads of 8 numbers, in the order that
    :func:`vs_deblur_kernels.resblock_wgmma.pack` tells.

    Args:
        weight: (64, 128, 5, 5).
        bias: (64,).

    Returns:
        weights (2, 25, 4, 128, 8) of the same type, those of the first 64 inputs first; bias (64,)
        in float32.
    """
    #   outputs: 16, 8, 1; inputs: 64, 16, 8, 2, 1; taps
    cut = weight.detach().reshape(4, 2, 8, 2, 4, 2, 4, 2, 25)
    weights = cut.permute(3, 8, 4, 0, 2, 6, 5, 1, 7).reshape(2, 25, 4, 128, 8)
    return weights.contiguous(), bias.detach().float()


def _check(backend: Backend, device: torch.device, dtype: torch.dtype) -> None:
    if backend.capability(device) != CAPABILITY:
        raise KernelError("dtb_conv needs compute capability {}.{}".format(*CAPABILITY))
    generator = torch.Generator().manual_seed(4)
    h, previous = (torch.randn((1, CHANNELS, 11, 19), generator=generator) for _ in range(2))
    weight = torch.randn((CHANNELS, 2 * CHANNELS, 5, 5), generator=generator)
    weight = weight * (50 * CHANNELS) ** -0.5
    bias = torch.randn(CHANNELS, generator=generator)
    parts = [t.to(device, dtype) for t in (h, previous, weight, bias, torch.tensor(0.3))]
    expected = reference.blended_convolution(*(t.double() for t in parts))
    compare("dtb_conv", launch(backend, *parts), expected, 32 * torch.finfo(dtype).eps)


# Not automatic: that it gains over cuDNN has been shown on no device yet (docs/kernels.md).
operation = Operation("dtb_conv", _check, automatic=False, only=CAPABILITY)
