"""Dynamic temporal blending in one pass: launches ``dtb.cu``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vs_deblur_kernels import reference
from vs_deblur_kernels._compile import Backend, Kernel, Out
from vs_deblur_kernels.dispatch import Operation, compare

TYPES = {torch.float32: "float", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_BLOCK = 256


def kernel(dtype: torch.dtype, beta: torch.dtype) -> Kernel:
    """The kernel for tensors of a type, and beta of another."""
    return Kernel("dtb", "dtb", (("VALUE", TYPES[dtype]), ("BETA", TYPES[beta])))


def blend(a: Tensor, h: Tensor, previous: Tensor, beta: Tensor) -> Tensor:
    """Blend features with those of the past; see :func:`vs_deblur_kernels.reference.blend`.

    The kernel runs for float32, float16 and bfloat16 on tensors of one type and any one memory
    format; tensors of several formats are first brought into that of ``h``.
    """
    if (
        h.dtype in TYPES
        and a.dtype == h.dtype == previous.dtype
        and beta.dtype in TYPES
        and h.numel()
    ):
        tensors = (h, a, previous, beta)
        blended = operation.run(lambda b: launch(b, a, h, previous, beta), *tensors)
        if blended is not None:
            return blended
    return reference.blend(a, h, previous, beta)


def launch(backend: Backend, a: Tensor, h: Tensor, previous: Tensor, beta: Tensor) -> Tensor:
    """Launch the kernel; arguments as those of :func:`blend`."""
    out = torch.empty_like(h)  # dense, in the order of h's axes
    h, a, previous = (_laid_out_as(out, t) for t in (h, a, previous))
    count = out.numel()
    values = 16 // out.element_size()
    blocks = -(-count // (values * _BLOCK))
    backend.launch(
        kernel(out.dtype, beta.dtype),
        (blocks, 1, 1),
        (_BLOCK, 1, 1),
        [a, h, previous, beta, Out(out), np.int64(count)],
    )
    return out


def _laid_out_as(model: Tensor, t: Tensor) -> Tensor:
    """The tensor with the strides of the model, at an address that vectors can be read from."""
    if t.stride() == model.stride() and t.data_ptr() % 16 == 0:
        return t
    return torch.empty_like(model).copy_(t)


def _check(backend: Backend, device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    a, h, previous = (torch.randn((1, 5, 7, 9), generator=generator) for _ in range(3))
    a, h, previous = (t.to(device, dtype) for t in (a, h, previous))
    beta = torch.tensor(0.3, device=device, dtype=dtype)
    expected = reference.blend(a.double(), h.double(), previous.double(), beta.double())
    found = launch(backend, a, h, previous, beta)
    compare("dtb", found, expected, 8 * torch.finfo(dtype).eps)


operation = Operation("dtb", _check, automatic=True)
