"""What tests of kernels share: the rule for their errors, and NVRTC's machine code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vs_deblur_kernels._compile import Kernel, compile_cubin

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120")


def errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Root mean square and largest error; infinite where something is NaN."""
    difference = (found.double() - exact).nan_to_num(torch.inf, torch.inf, torch.inf)
    return difference.square().mean().sqrt().item(), difference.abs().max().item()


def assert_as_good(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The rule. A unit in the last place is allowed for: on few numbers, torch may be lucky."""
    assert found.dtype == plain.dtype
    assert found.shape == plain.shape
    unit = torch.finfo(plain.dtype).eps * exact.abs().max().item()
    for ours, theirs in zip(errors(found, exact), errors(plain, exact), strict=True):
        assert ours <= 2 * theirs + unit / 2


def assert_compiles(kernel: Kernel, architecture: str) -> None:
    """To machine code, without a device; nothing is spilled from registers."""
    pytest.importorskip("cupy", reason="SKIPPED: NO CuPy")
    digits = architecture.removeprefix("sm_").removesuffix("a")
    if (int(digits[:-1]), int(digits[-1])) < kernel.capability:
        return
    if kernel.architecture and not architecture.endswith("a"):
        return
    cubin, log = compile_cubin(kernel, architecture, verbose=True)
    assert cubin.startswith(b"\x7fELF")
    assert "0 bytes spill stores, 0 bytes spill loads" in log
    assert "Potential Performance Loss" not in log  # wgmma's products one at a time
    # What the smallest of them have; 9.0a is one alone.
    assert kernel.shared <= (227 if kernel.architecture else 99) << 10
