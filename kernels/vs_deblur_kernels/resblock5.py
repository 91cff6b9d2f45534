"""Residual blocks by the library: its convolutions, and one pass of our own after each.

For the 5x5 blocks of MSCNN and SRN, whose arithmetic (2.8 times that of 3x3) hides everything
else, and for the 3x3 blocks that ``resblock.cu`` does not take. Bias and ReLU after the first
convolution are one pass, bias and skip connection after the second another (``skip.cu``); torch
alone takes two passes more.

cuDNN has a convolution with bias and ReLU as its epilogue, which would save a further pass. It is
not used: torch's ``cudnn_convolution_relu`` does not heed
``torch.backends.cudnn.deterministic``, and frames must be the same in every process.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vs_deblur_kernels import reference, skip
from vs_deblur_kernels._compile import Backend
from vs_deblur_kernels.dispatch import Operation, compare

TYPES = (torch.float16, torch.bfloat16)


def fused(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, relu: bool = False
) -> Tensor | None:
    """The block in as few passes as the library allows; None where torch is to compute it.

    Arguments and result as those of :func:`vs_deblur_kernels.reference.resblock`. It takes float16
    and bfloat16 and a multiple of 8 channels; the result is channels_last.

    Raises:
        KernelError: kernels are asked for by name and there are none.
    """
    parts = (weight1, bias1, weight2, bias2)
    if x.dtype not in TYPES or any(p.dtype != x.dtype for p in parts) or x.shape[1] % 8:
        return None
    if not x.numel():
        return None
    return operation.run(lambda b: launch(b, x, *parts, relu=relu), x, *parts)


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
    """The block; arguments as those of :func:`fused`."""

    def after(y: Tensor, bias: Tensor, other: Tensor | None, relu: bool) -> Tensor:
        y = y.contiguous(memory_format=torch.channels_last)
        if skip.takes(y, bias, other):
            return skip.launch(backend, y, bias, other, relu=relu)
        return reference.skip(y, bias, other, relu=relu)

    x = x.contiguous(memory_format=torch.channels_last)
    pad = weight1.shape[-1] // 2
    middle = after(F.conv2d(x, weight1, padding=pad), bias1, None, True)
    return after(F.conv2d(middle, weight2, padding=pad), bias2, x, relu)


def _check(backend: Backend, device: torch.device, dtype: torch.dtype) -> None:
    if dtype not in TYPES:
        return
    generator = torch.Generator().manual_seed(4)
    for size in (3, 5):
        x = torch.randn((1, 64, 12, 20), generator=generator).to(device, dtype)
        scale = size**-1 / 8
        weights = [
            (torch.randn((64, 64, size, size), generator=generator) * scale).to(device, dtype)
            for _ in range(2)
        ]
        biases = [torch.randn(64, generator=generator).to(device, dtype) for _ in range(2)]
        arguments = (x, weights[0], biases[0], weights[1], biases[1])
        expected = reference.resblock(*(t.double() for t in arguments))
        found = launch(backend, *arguments)
        what = f"resblock5 with {size}x{size} kernels"
        compare(what, found, expected, 32 * torch.finfo(dtype).eps)


operation = Operation("resblock5", _check, automatic=True)
