"""Residual blocks by the library: cuDNN's convolutions, with nothing between them in memory.

For the 5x5 blocks of MSCNN and SRN, whose arithmetic (2.8 times that of 3x3) hides everything
else, and for the 3x3 blocks that ``resblock.cu`` does not take. The first convolution has its bias
and its ReLU as cuDNN's epilogue (``cudnn_convolution_relu``); the second one's bias and the skip
connection are one pass (``skip.cu``). torch alone takes three passes more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vs_deblur_kernels import reference, skip
from vs_deblur_kernels._compile import KernelError
from vs_deblur_kernels.dispatch import Operation, compare

TYPES = (torch.float16, torch.bfloat16)


def fused(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, relu: bool = False
) -> Tensor | None:
    """The block with fused epilogues; None where plain torch is to compute it.

    Arguments and result as those of :func:`vs_deblur_kernels.reference.resblock`. It takes float16
    and bfloat16 and a multiple of 8 channels; the result is channels_last.

    Raises:
        KernelError: kernels are asked for by name and there are none.
    """
    parts = (weight1, bias1, weight2, bias2)
    if x.dtype not in TYPES or any(p.dtype != x.dtype for p in parts) or x.shape[1] % 8:
        return None
    if not x.numel() or operation.backend(x, *parts) is None:
        return None
    try:
        return compose(x, *parts, relu=relu)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # cuDNN has no such fusion for this shape
        operation.give_up(x.device, x.dtype, str(error))
        return None


def compose(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, relu: bool = False
) -> Tensor:
    """The block with fused epilogues; arguments as those of :func:`fused`."""
    x = x.contiguous(memory_format=torch.channels_last)
    pad = weight1.shape[-1] // 2
    if x.is_cuda:
        one, around = (1, 1), (pad, pad)
        middle = torch.ops.aten.cudnn_convolution_relu(x, weight1, bias1, one, around, one, 1)
    else:  # where a stand-in launches the kernels
        middle = torch.relu(F.conv2d(x, weight1, bias1, padding=pad))
    y = F.conv2d(middle, weight2, padding=pad).contiguous(memory_format=torch.channels_last)
    return skip.add_(y, bias2, x, relu=relu)


def _check(device: torch.device, dtype: torch.dtype) -> None:
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
        try:
            with torch.no_grad():
                found = compose(*arguments)
        except RuntimeError as error:
            raise KernelError(f"cuDNN: {error}") from error
        compare(
            f"resblock5 with {size}x{size} kernels", found, expected, 32 * torch.finfo(dtype).eps
        )


operation = Operation("resblock5", _check, automatic=True)
