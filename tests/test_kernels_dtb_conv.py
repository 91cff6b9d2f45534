"""The blend with its own convolution (``dtb_conv.cu``) on the CPU; the rule is that of
``tests/test_kernels.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels_support import assert_as_good, errors
from tests.shim import Shim, ShimError
from vs_deblur_kernels import dtb, dtb_conv, reference
from vs_deblur_kernels._compile import KernelError
from vs_deblur_kernels.dispatch import launching_by
from vs_deblur_models.blocks import DynamicTemporalBlending

HALVES = list(dtb_conv.TYPES)
CPU = torch.device("cpu")


def hopper(folder: Path, seed: int = 0, changes: Sequence[tuple[str, str]] = ()) -> Shim:
    """A device that has wgmma."""
    return Shim(folder, seed, changes, capability=(9, 0), most_shared=227 << 10)


def inputs(
    images: int, height: int, width: int, dtype: torch.dtype = torch.float16, seed: int = 0
) -> list[Tensor]:
    """h, previous, weight, bias, beta. Sums are as large as tanh tells apart."""
    generator = torch.Generator().manual_seed(seed)
    h, previous = (torch.randn((images, 64, height, width), generator=generator) for _ in range(2))
    weight = torch.randn((64, 128, 5, 5), generator=generator) * 3200**-0.5
    bias = torch.randn(64, generator=generator)
    parts = [t.to(dtype) for t in (h, previous, weight, bias, torch.tensor(0.3))]
    last = torch.channels_last
    return [t.contiguous(memory_format=last) if t.ndim == 4 else t for t in parts]


def exact_of(parts: Sequence[Tensor]) -> Tensor:
    return reference.blended_convolution(*(t.double() for t in parts))


@pytest.fixture
def by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for all operations, whether they are known to gain or not."""
    monkeypatch.setenv("VS_DEBLUR_KERNELS", "cupy")


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels need not prove themselves first: the test does that."""
    for module in (dtb, dtb_conv):
        monkeypatch.setattr(module.operation, "check", lambda *_: None)
        monkeypatch.setattr(module.operation, "found", {})


# Images, height, width. Tiles are 16 high and 16 wide.
SIZES = [(1, 1, 1), (2, 17, 13), (1, 16, 16), (1, 33, 18)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.usefixtures("by_name")
def test_error(compiled: Path, dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    check(hopper(compiled, seed=size[1]), inputs(*size, dtype))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("by_name")
def test_any_order_of_threads(compiled: Path, seed: int) -> None:
    check(hopper(compiled, seed), inputs(1, 18, 20, seed=seed))


@pytest.mark.usefixtures("by_name")
def test_beta_may_have_a_type_of_its_own(compiled: Path) -> None:
    parts = inputs(1, 3, 4)
    parts[4] = parts[4].float()
    check(hopper(compiled), parts)


@pytest.mark.usefixtures("by_name")
def test_other_layouts(compiled: Path) -> None:
    """Tensors that are not channels_last, and one that begins at an odd address."""
    parts = inputs(1, 5, 6)
    parts[0] = parts[0].contiguous()
    moved = torch.empty(64 * 30 + 1, dtype=torch.float16)[1:].view(1, 5, 6, 64).permute(0, 3, 1, 2)
    parts[1] = moved.copy_(parts[1])
    check(hopper(compiled), parts)


def check(shim: Shim, parts: Sequence[Tensor]) -> None:
    with launching_by(shim):
        found = dtb_conv.fused(*parts)
    assert found is not None
    assert [k.entry for k in shim.launches] == ["dtb_conv"]
    assert found.is_contiguous(memory_format=torch.channels_last)
    plain = reference.blended_convolution(*(t.to(found.dtype) for t in parts))
    assert_as_good(found, plain, exact_of(parts))


@pytest.mark.usefixtures("by_name")
def test_what_is_not_a_number_stays_one(compiled: Path) -> None:
    """The engine looks for such values in the end: no kernel may hide them."""
    nan = torch.tensor(torch.nan)
    for place in range(5):
        parts = inputs(1, 7, 8)
        parts[place][tuple(n // 2 for n in parts[place].shape)] = nan
        with launching_by(hopper(compiled)):
            found = dtb_conv.fused(*parts)
        assert found is not None
        expected = exact_of(parts).isnan()
        assert expected.any()
        assert torch.equal(found.isnan(), expected)


# ------------------------------------------------------------------------------------ what it takes


def refused(shim: Shim, parts: Sequence[Tensor]) -> bool:
    with launching_by(shim):
        found = dtb_conv.fused(*parts)
    assert not shim.launches
    return found is None


@pytest.mark.usefixtures("by_name")
def test_it_is_for_hopper_alone(compiled: Path) -> None:
    """Elsewhere the convolution and dtb run, and nothing has to be proved."""
    parts = inputs(1, 3, 3)
    network = DynamicTemporalBlending(64).half().requires_grad_(False)
    for capability in ((8, 0), (8, 9), (10, 0)):
        shim = Shim(compiled, capability=capability, most_shared=227 << 10)
        assert refused(shim, parts)
        with launching_by(shim):
            assert network(*parts[:2]).shape == parts[0].shape
            assert not dtb_conv.operation.is_for(CPU)
        assert [k.entry for k in shim.launches] == ["dtb"]
        with pytest.raises(KernelError, match=r"needs compute capability 9\.0"):
            dtb_conv._check(shim, CPU, torch.float16)
    assert not dtb_conv.operation.found


@pytest.mark.usefixtures("by_name")
def test_what_it_does_not_take(compiled: Path) -> None:
    """Too little shared memory, other widths, types and sizes."""
    parts = inputs(1, 3, 3)
    small = Shim(compiled, capability=(9, 0), most_shared=99 << 10)
    assert refused(small, parts)
    shim = hopper(compiled)
    assert refused(shim, [t.float() for t in parts])
    assert refused(shim, [t[:, :32] if t.ndim == 4 else t for t in parts])
    assert refused(shim, [parts[0], parts[1][:, :, :2], *parts[2:]])
    assert refused(shim, [t[:0] for t in parts[:2]] + parts[2:])
    assert refused(shim, [*parts[:2], parts[2].bfloat16(), *parts[3:]])


def test_it_is_not_the_default(compiled: Path) -> None:
    """It has been shown to gain on no device yet."""
    assert refused(hopper(compiled), inputs(1, 3, 3))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_it_proves_itself(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.undo()
    shim = hopper(compiled)
    dtb_conv._check(shim, CPU, dtype)
    assert [k.entry for k in shim.launches] == ["dtb_conv"]


def test_a_wrong_one_does_not_prove_itself(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    wrong = hopper(compiled, changes=[("weights + SOURCE", "weights")])
    with pytest.raises(KernelError, match="dtb_conv differs from its reference by"):
        dtb_conv._check(wrong, CPU, torch.float16)


@torch.no_grad()
@pytest.mark.usefixtures("by_name")
def test_the_block_asks_for_it(compiled: Path) -> None:
    parts = inputs(1, 5, 7)
    network = DynamicTemporalBlending(64).half()
    network.conv.weight.copy_(parts[2])
    assert network.conv.bias is not None
    network.conv.bias.copy_(parts[3])
    shim = hopper(compiled)
    with launching_by(shim):
        found = network(*parts[:2])
    assert [k.entry for k in shim.launches] == ["dtb_conv"]
    assert_as_good(found, network(*parts[:2]), exact_of(parts))


# --------------------------------------------------------------------------------------- mutations

MUTATIONS = {
    "no barrier before the first products": ("__syncthreads();  // previous is there", ""),
    "no barrier before the second source's": ("__syncthreads();  // h is there", ""),
    "no barrier before the result": ("__syncthreads();  // all have read the sources", ""),
    "no barrier after the result": ("__syncthreads();  // the result is there", ""),
    "no wait for the first copies": ("copy_async_wait<1>();", ""),
    "no wait for the second copies": ("copy_async_wait<0>();", ""),
    "no fence after the first copies": (
        "shared_to_products();\n  __syncthreads();  // previous is there",
        "__syncthreads();",
    ),
    "a fence after the barrier": (
        "shared_to_products();\n  __syncthreads();  // h is there",
        "__syncthreads();\n  shared_to_products();",
    ),
    "no fence for registers": ("multiply_async_fence(sums);", ""),
    "no wait before weights change": ("multiply_async_wait<1>();  // the other set is free", ""),
    "no wait before sums are read": ("multiply_async_wait_all(sums);", "multiply_async_wait<1>();"),
    "a group that is not closed": ("multiply_async_commit();", ""),
    "no bound on the sources": (
        "const bool inside = y >= 0 && y < height && x >= 0 && x < width;",
        "const bool inside = true;",
    ),
    "no bound on the weights": ("if (set == 0 || !IS_LAST || tap < TAPS - 1) ", ""),
    "no bound on the result": (
        "if (top + line >= height || left + column >= width) continue;",
        "",
    ),
    "no min": ("w = w > 1.f ? 1.f : w;", ""),
}


def right(folder: Path, seed: int, *changes: tuple[str, str]) -> bool:
    parts = inputs(1, 17, 18)
    try:
        found = dtb_conv.launch(hopper(folder, seed, changes), *parts)
    except ShimError:
        return False
    return errors(found, exact_of(parts))[1] < 0.02


def test_what_mutations_are_told_from(compiled: Path) -> None:
    assert all(right(compiled, seed) for seed in range(3))


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_fault_is_found(compiled: Path, what: str) -> None:
    """A kernel with a part taken out fails for some order of threads."""
    assert not all(right(compiled, seed, MUTATIONS[what]) for seed in range(4))
