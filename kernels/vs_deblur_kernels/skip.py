"""The end of a residual block in one pass: launches ``skip.cu``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vs_deblur_kernels import reference
from vs_deblur_kernels._compile import Backend, Kernel, Out
from vs_deblur_kernels.dispatch import Operation, compare

TYPES = {torch.float32: "float", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_BLOCK = 256


def kernel(dtype: torch.dtype, *, relu: bool) -> Kernel:
    """The kernel for a type; ``relu``: the form with a ReLU after the sum."""
    return Kernel("skip", "skip", (("VALUE", TYPES[dtype]), ("RELU_AFTER", str(int(relu)))))


def add_(y: Tensor, bias: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
    """Add a bias and a skip connection in place; see :func:`vs_deblur_kernels.reference.skip`.

    The kernel runs for channels_last tensors of one type, float32, float16 or bfloat16, with a
    multiple of 16 bytes of channels.
    """
    if takes(y, bias, x):
        backend = operation.backend(y, bias, x)
        if backend is not None:
            return launch(backend, y, bias, x, relu=relu)
    return y.copy_(reference.skip(y, bias, x, relu=relu))


def takes(y: Tensor, bias: Tensor, x: Tensor) -> bool:
    """Whether the kernel can be launched on these tensors."""
    return (
        y.dtype in TYPES
        and y.dtype == bias.dtype == x.dtype
        and y.shape == x.shape
        and y.numel() > 0
        and y.shape[1] % (16 // y.element_size()) == 0
        and all(t.permute(0, 2, 3, 1).is_contiguous() for t in (x, y))
        and all(t.data_ptr() % 16 == 0 for t in (x, y, bias))
    )


def launch(backend: Backend, y: Tensor, bias: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
    """Launch the kernel; arguments as those of :func:`add_`, such that :func:`takes` holds."""
    values = 16 // y.element_size()
    blocks = -(-y.numel() // (values * _BLOCK))
    backend.launch(
        kernel(y.dtype, relu=relu),
        (blocks, 1, 1),
        (_BLOCK, 1, 1),
        [x, bias, Out(y, is_read=True), np.int64(y.numel()), np.int32(y.shape[1])],
    )
    return y


def _check(device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn((1, 16, 5, 7), generator=generator) for _ in range(2))
    x, y = (t.to(device, dtype, memory_format=torch.channels_last) for t in (x, y))
    bias = torch.randn(16, generator=generator).to(device, dtype)
    expected = reference.skip(y.double(), bias.double(), x.double())
    with torch.no_grad():
        compare("skip", add_(y, bias, x), expected, 8 * torch.finfo(dtype).eps)


operation = Operation("skip", _check, automatic=True)
