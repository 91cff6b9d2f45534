"""STRCNN+DTB in JAX: the network of ``vs_deblur_models.strcnn``, its weights copied, for XLA."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vs_deblur_models.strcnn import Strcnn

Step = Callable[[Any, Any, Any], tuple[Any, Any, Any]]
"""Window, F and h~ (all NHWC) to the sharp frame, the next F and the next h~."""


def missing(platform: str = "gpu") -> str | None:
    """Why JAX cannot be timed here; None if it can."""
    if importlib.util.find_spec("jax") is None:
        return "jax is not installed"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory too
    try:
        jax = importlib.import_module("jax")
        jax.devices(platform)
    except Exception as error:
        return f"jax has no {platform}: {(str(error).splitlines() or [''])[0][:120]}"
    return None


def to_jax(t: Tensor) -> Any:
    """A tensor (B, C, H, W) as a float32 array (B, H, W, C) on JAX's device."""
    jnp = importlib.import_module("jax.numpy")
    return jnp.asarray(t.detach().float().cpu().permute(0, 2, 3, 1).contiguous().numpy())


def to_torch(array: Any) -> Tensor:
    """An array (B, H, W, C) as a float32 tensor (B, C, H, W) on the CPU."""
    jnp, numpy = importlib.import_module("jax.numpy"), importlib.import_module("numpy")
    found = numpy.array(array.astype(jnp.float32))
    return torch.from_numpy(found).permute(0, 3, 1, 2)


def strcnn_step(network: Strcnn, dtype: torch.dtype) -> Step:
    """A step of the network, compiled by XLA, features in a type of 16 bits.

    Args:
        network: with feedback and blending, without a residual; its weights are copied.
        dtype: float16 or bfloat16; what touches pixels is in float32, as :func:`cast_` does it.
    """
    jax = importlib.import_module("jax")
    jnp, lax = importlib.import_module("jax.numpy"), importlib.import_module("jax.lax")
    half = {torch.float16: jnp.float16, torch.bfloat16: jnp.bfloat16}[dtype]
    bits = {torch.float16: (5, 10), torch.bfloat16: (8, 7)}[dtype]  # exponent and mantissa
    weights = {}
    for name, p in network.state_dict().items():
        value = jnp.asarray(p.detach().float().cpu().numpy())
        if p.ndim == 4:  # OIHW to HWIO; the transposed one is IOHW, and its taps are mirrored
            is_transposed = name.startswith("deconv")
            value = jnp.transpose(value, (2, 3, 0, 1) if is_transposed else (2, 3, 1, 0))
            value = value[::-1, ::-1] if is_transposed else value
        weights[name] = value

    def convolve(x: Any, name: str, at: Any, stride: int = 1, is_transposed: bool = False) -> Any:
        kernel, bias = weights[f"{name}.weight"].astype(at), weights[f"{name}.bias"].astype(at)
        if name == "conv1":  # the picture goes in as what is rounded and what rounding left
            kernel = jnp.concatenate((kernel, kernel), axis=2)
        pad = kernel.shape[0] - 2 if is_transposed else kernel.shape[0] // 2
        out = lax.conv_general_dilated(
            x.astype(at),
            kernel,
            (stride, stride),
            [(pad, pad), (pad, pad)],
            lhs_dilation=(2, 2) if is_transposed else None,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST if at == jnp.float32 else None,
        )
        return out + bias

    def blocks(x: Any, name: str) -> Any:
        for i in range(4):
            middle = jax.nn.relu(convolve(x, f"{name}.{i}.conv1", half))
            x = x + convolve(middle, f"{name}.{i}.conv2", half)
        return x

    def step(window: Any, fed_back: Any, blended: Any) -> tuple[Any, Any, Any]:
        # Not casts to and fro: XLA may leave those out.
        rounded = lax.reduce_precision(window, *bits)
        both = jnp.concatenate((rounded.astype(half), (window - rounded).astype(half)), axis=3)
        x = jax.nn.relu(convolve(both, "conv1", half))
        x = jax.nn.relu(convolve(x, "conv2", half, stride=2))
        h = blocks(jnp.concatenate((x, fed_back), axis=3), "encoder")
        a = convolve(jnp.concatenate((blended, h), axis=3), "dtb.conv", half)
        beta = jnp.clip(weights["dtb.beta"].astype(half), 0.0, 1.0)
        w = jnp.minimum(jnp.abs(jnp.tanh(a)) + beta, 1.0)
        h = w * h + (1.0 - w) * blended
        z = blocks(h, "decoder")
        x = jax.nn.relu(convolve(z, "deconv", half, is_transposed=True))
        out = convolve(x, "output", jnp.float32)
        return out, jax.nn.relu(convolve(z, "feedback", half)), h

    compiled: Step = jax.jit(step)
    return compiled
