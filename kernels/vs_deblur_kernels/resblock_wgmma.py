"""The residual block with 3x3 convolutions for Hopper (wgmma): launches ``resblock_wgmma.cu``.

:mod:`vs_deblur_kernels.resblock` asks for it on devices that run it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vs_deblur_kernels._compile import Backend, Kernel, Out

TYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
CHANNELS = (64, 128)
CAPABILITY = (9, 0)
_TILE_H, _TILE_W = 16, 14
_PLANE = (_TILE_H + 4) * (_TILE_W + 4) * 16 + 16  # bytes of 8 channels of the input


def takes(capability: tuple[int, int], channels: int) -> bool:
    """Whether the kernel runs on a device and has a form for a width.

    Args:
        capability: compute capability; wgmma is in 9.0 and in none after it.
        channels: of the block.
    """
    return capability == CAPABILITY and channels in CHANNELS


def kernel(channels: int, dtype: torch.dtype, *, relu: bool) -> Kernel:
    """The kernel for a width and a type; ``relu``: the form with a ReLU after the sum."""
    defines = (
        ("VALUE", TYPES[dtype]),
        ("CHANNELS", str(channels)),
        ("RELU_AFTER", str(int(relu))),
    )
    return Kernel(
        "resblock_wgmma",
        "resblock_wgmma",
        defines,
        shared=channels // 8 * _PLANE,
        capability=CAPABILITY,
        architecture=True,
    )


def launch(
    backend: Backend, x: Tensor, weights: Tensor, biases: Tensor, out: Tensor, *, relu: bool = False
) -> None:
    """Launch the kernel.

    Args:
        backend: who launches it.
        x: (B, C, H, W), channels_last, at a multiple of 16 bytes.
        weights, biases: as :func:`pack` gives them.
        out: as x; all of it is written.
        relu: a ReLU after the sum.
    """
    images, channels, height, width = x.shape
    backend.launch(
        kernel(channels, x.dtype, relu=relu),
        (-(-width // _TILE_W), -(-height // _TILE_H), images),
        (4 * channels, 1, 1),
        [x, weights, biases, Out(out), np.int32(height), np.int32(width)],
    )


def pack(weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases as the kernel reads them.

    A step of 16 inputs i by 64 outputs o is 128 threads of 8 numbers (PTX ISA, "Register Fragments"
    of wgmma.m64nNk16): thread ``32 (o / 16) + 4 (o % 8) + i % 8 / 2`` holds, in this order of
    significance, the halves ``i / 8`` of the inputs, ``o % 16 / 8`` of its warp's outputs, and
    ``i % 2``.

    Args:
        weight1, weight2: (C, C, 3, 3).
        bias1, bias2: (C,).

    Returns:
        weights (2, 9, C / 16, C / 64, 128, 8) of the same type; biases (2, C) in float32.
    """
    channels = weight1.shape[0]
    steps, slabs = channels // 16, channels // 64
    both = torch.stack((weight1, weight2)).detach()
    #      convolution, outputs: 64, 16, 8, 1; inputs: 16, 8, 2, 1; taps
    cut = both.reshape(2, slabs, 4, 2, 8, steps, 2, 4, 2, 9)
    weights = cut.permute(0, 9, 5, 1, 2, 4, 7, 6, 3, 8).reshape(2, 9, steps, slabs, 128, 8)
    return weights.contiguous(), torch.stack((bias1, bias2)).detach().float()
