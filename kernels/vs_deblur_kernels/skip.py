"""What follows a convolution of a residual block, in one pass: launches ``skip.cu``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vs_deblur_kernels import reference
from vs_deblur_kernels._compile import Backend, Kernel, Out
from vs_deblur_kernels.dispatch import Operation, compare

TYPES = {torch.float32: "float", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_BLOCK = 256
_MOST_VECTORS = 1 << 32


def kernel(dtype: torch.dtype, *, skip: bool, relu: bool) -> Kernel:
    """The kernel for a type; ``skip``: with a skip connection; ``relu``: and its positive part."""
    defines = (("VALUE", TYPES[dtype]), ("WITH_SKIP", str(int(skip))), ("RELU", str(int(relu))))
    return Kernel("skip", "skip", defines)


def add_(y: Tensor, bias: Tensor, x: Tensor | None, *, relu: bool = False) -> Tensor:
    """Add a bias and a skip connection in place; see :func:`vs_deblur_kernels.reference.skip`.

    The kernel runs for channels_last tensors of one type, float32, float16 or bfloat16, with a
    multiple of 16 bytes of channels.
    """
    if takes(y, bias, x):
        tensors = (y, bias) if x is None else (y, bias, x)
        done = operation.run(lambda b: launch(b, y, bias, x, relu=relu), *tensors)
        if done is not None:
            return done
    return y.copy_(reference.skip(y, bias, x, relu=relu))


def takes(y: Tensor, bias: Tensor, x: Tensor | None) -> bool:
    """Whether the kernel can be launched on these tensors."""
    tensors = (y,) if x is None else (y, x)
    values = 16 // y.element_size()
    return (
        y.dtype in TYPES
        and all(t.dtype == y.dtype for t in (*tensors, bias))
        and all(t.shape == y.shape for t in tensors)
        and 0 < y.numel() < values * _MOST_VECTORS
        and y.shape[1] % values == 0
        and all(t.permute(0, 2, 3, 1).is_contiguous() for t in tensors)
        and all(t.data_ptr() % 16 == 0 for t in (*tensors, bias))
    )


def launch(
    backend: Backend, y: Tensor, bias: Tensor, x: Tensor | None, *, relu: bool = False
) -> Tensor:
    """Launch the kernel; arguments as those of :func:`add_`, such that :func:`takes` holds."""
    values = 16 // y.element_size()
    vectors = y.numel() // values
    backend.launch(
        kernel(y.dtype, skip=x is not None, relu=relu),
        (-(-vectors // _BLOCK), 1, 1),
        (_BLOCK, 1, 1),
        [
            np.uint64(0) if x is None else x,
            bias,
            Out(y, is_read=True),
            np.uint32(vectors),
            np.uint32(y.shape[1] // values),
        ],
    )
    return y


def _check(backend: Backend, device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn((1, 16, 5, 7), generator=generator) for _ in range(2))
    x, y = (t.to(device, dtype, memory_format=torch.channels_last) for t in (x, y))
    bias = torch.randn(16, generator=generator).to(device, dtype)
    for other, relu in ((x, False), (None, True)):
        exact = None if other is None else other.double()
        expected = reference.skip(y.double(), bias.double(), exact, relu=relu)
        found = launch(backend, y.clone(), bias, other, relu=relu)
        compare("skip", found, expected, 8 * torch.finfo(dtype).eps)


operation = Operation("skip", _check, automatic=True)
