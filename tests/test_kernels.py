"""The kernels' own text, compiled by g++ and run thread by thread on the CPU (``tests/shim``).

The rule for every kernel: its error against float64 is at most twice that of plain torch at the
same precision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.kernels_support import ARCHITECTURES, assert_as_good, assert_compiles, errors
from tests.shim import Shim, ShimError
from vs_deblur_kernels import dtb, dtb_conv, reference, resblock, resblock5, resblock_wgmma, skip
from vs_deblur_kernels._compile import Kernel, KernelError, compile_cubin
from vs_deblur_kernels.dispatch import launching_by
from vs_deblur_models.blocks import cast_
from vs_deblur_models.dmphn import Dmphn, DmphnConfig
from vs_deblur_models.mscnn import Mscnn, MscnnConfig
from vs_deblur_models.srn import Srn
from vs_deblur_models.strcnn import Strcnn, StrcnnDtbLite

HALVES = list(resblock.TYPES)
FLOATS = list(dtb.TYPES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


# ------------------------------------------------------------------------------------------- dtb

LAYOUTS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}


def features(*shape: int, dtype: torch.dtype, layout: str, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).to(dtype).contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 3, 1, 5), (2, 64, 7, 9), (1, 5, 33, 31), (1, 8, 16, 32)]
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtb(
    compiled: Path, dtype: torch.dtype, shape: tuple[int, ...], layout: str, seed: int
) -> None:
    a, h, previous = (features(*shape, dtype=dtype, layout=layout, seed=s) for s in range(3))
    beta = torch.tensor(0.3, dtype=dtype)
    shim = Shim(compiled, seed)
    with launching_by(shim):
        found = dtb.blend(a * 3, h, previous, beta)
    assert len(shim.launches) == 1
    assert found.stride() == h.stride()
    exact = reference.blend((a * 3).double(), h.double(), previous.double(), beta.double())
    assert_as_good(found, reference.blend(a * 3, h, previous, beta), exact)


@pytest.mark.parametrize("beta", [-0.5, 0.0, 1.0, 2.0])
def test_dtb_keeps_to_between_the_two(compiled: Path, beta: float) -> None:
    """Beta is clamped, and the weight never exceeds 1."""
    a, h, previous = (normal(1, 4, 5, 5, seed=s) for s in range(3))
    with launching_by(Shim(compiled)):
        found = dtb.blend(a, h, previous, torch.tensor(beta))
    assert (found <= torch.maximum(h, previous) + 1e-6).all()
    assert (found >= torch.minimum(h, previous) - 1e-6).all()
    torch.testing.assert_close(found, reference.blend(a, h, previous, torch.tensor(beta)))


def test_dtb_brings_layouts_together(compiled: Path) -> None:
    """Tensors of other strides, and one that begins at an odd address."""
    whole = normal(1, 8, 9, 7, seed=3)
    h = normal(2 * 8 * 9 * 7 + 1)[1:].view(2, 8, 9, 7)[:1]
    a = normal(1, 8, 9, 7, seed=1).to(memory_format=torch.channels_last)
    previous = whole.transpose(2, 3).contiguous().transpose(2, 3)
    beta = torch.tensor(0.25)
    with launching_by(Shim(compiled)):
        found = dtb.blend(a, h, previous, beta)
    torch.testing.assert_close(found, reference.blend(a, h, previous, beta))


def test_beta_may_have_a_type_of_its_own(compiled: Path) -> None:
    a, h, previous = (normal(1, 8, 4, 4, seed=s).bfloat16() for s in range(3))
    beta = torch.tensor(0.3)
    with launching_by(Shim(compiled)):
        found = dtb.blend(a, h, previous, beta)
    exact = reference.blend(a.double(), h.double(), previous.double(), beta.double())
    assert_as_good(found, reference.blend(a, h, previous, beta.bfloat16()), exact)


# ------------------------------------------------------------------------------------------ skip


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 64, 5, 7), (1, 24, 33, 11)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_skip(
    compiled: Path, dtype: torch.dtype, shape: tuple[int, ...], relu: bool, connected: bool
) -> None:
    x, y = (features(*shape, dtype=dtype, layout="channels_last", seed=s) for s in range(2))
    other = x if connected else None
    bias = normal(shape[1], seed=2).to(dtype)
    exact_other = x.double() if connected else None
    exact = reference.skip(y.double(), bias.double(), exact_other, relu=relu)
    plain = reference.skip(y, bias, other, relu=relu)
    shim = Shim(compiled)
    with launching_by(shim):
        found = skip.add_(y, bias, other, relu=relu)
    assert found is y
    assert len(shim.launches) == 1
    assert_as_good(found, plain, exact)


def test_skip_leaves_what_it_cannot_take_to_torch(compiled: Path) -> None:
    """Channels that are no whole vectors, and tensors that are not channels_last."""
    shim = Shim(compiled)
    for shape in ((1, 5, 4, 4), (1, 8, 4, 4)):
        x, y = normal(*shape), normal(*shape, seed=1)
        bias = normal(shape[1], seed=2)
        expected = reference.skip(y, bias, x)
        with launching_by(shim):
            torch.testing.assert_close(skip.add_(y, bias, x), expected)
    assert not shim.launches


# -------------------------------------------------------------------------------------- resblock


def block(channels: int, dtype: torch.dtype, size: int = 3, seed: int = 0) -> list[Tensor]:
    """Weights and biases of a residual block."""
    scale = (size * size * channels) ** -0.5
    w1, w2 = (normal(channels, channels, size, size, seed=seed + s) * scale for s in range(2))
    b1, b2 = (normal(channels, seed=seed + 2 + s) for s in range(2))
    return [t.to(dtype) for t in (w1, b1, w2, b2)]


def check_resblock(
    shim: Shim, x: Tensor, parts: list[Tensor], *, relu: bool = False, entry: str = "resblock"
) -> None:
    fused = resblock5.fused if entry == "skip" else resblock.fused
    with launching_by(shim):
        found = fused(x, *parts, relu=relu)
    assert found is not None
    assert {k.entry for k in shim.launches} == {entry}
    assert found.is_contiguous(memory_format=torch.channels_last)
    exact = reference.resblock(x.double(), *(p.double() for p in parts), relu=relu)
    assert_as_good(found, reference.resblock(x, *parts, relu=relu), exact)


@pytest.fixture
def by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for all operations, whether they are known to gain or not."""
    monkeypatch.setenv("VS_DEBLUR_KERNELS", "cupy")


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels need not prove themselves first: the test does that."""
    for module in (dtb, dtb_conv, skip, resblock, resblock5):
        monkeypatch.setattr(module.operation, "check", lambda *_: None)
        monkeypatch.setattr(module.operation, "found", {})


SIZES = [(1, 1, 1), (1, 16, 16), (1, 17, 15), (2, 3, 35), (1, 33, 18)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("channels", resblock.SHAPES)
@pytest.mark.usefixtures("by_name")
def test_resblock(
    compiled: Path, channels: int, dtype: torch.dtype, size: tuple[int, int, int]
) -> None:
    images, height, width = size
    x = normal(images, channels, height, width).to(dtype)
    check_resblock(Shim(compiled, seed=height), x, block(channels, dtype))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("by_name")
def test_resblock_in_any_order_of_threads(compiled: Path, seed: int) -> None:
    x = normal(1, 64, 18, 20, seed=seed).half()
    check_resblock(Shim(compiled, seed), x, block(64, torch.float16, seed=seed))


@pytest.mark.usefixtures("by_name")
def test_resblock_with_relu_after_the_sum(compiled: Path) -> None:
    x = normal(1, 32, 18, 20).half()
    check_resblock(Shim(compiled), x, block(32, torch.float16), relu=True)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.usefixtures("by_name")
def test_resblock_by_the_library(compiled: Path, size: int) -> None:
    x = normal(1, 24, 9, 11).half()
    check_resblock(Shim(compiled), x, block(24, torch.float16, size), entry="skip")


@pytest.mark.usefixtures("by_name")
def test_resblock_takes_what_fits_the_device(compiled: Path) -> None:
    """No tensor cores of the kind, or too little shared memory: torch computes."""
    x, parts = normal(1, 64, 4, 4).half(), block(64, torch.float16)
    for shim in (Shim(compiled, capability=(7, 5)), Shim(compiled, most_shared=64 << 10)):
        with launching_by(shim):
            assert resblock.fused(x, *parts) is None
        assert not shim.launches


def test_resblock_is_not_the_default(compiled: Path) -> None:
    """It has been shown to gain on no device yet; the library's form takes its place."""
    x, parts = normal(1, 32, 4, 4).half(), block(32, torch.float16)
    with launching_by(Shim(compiled)):
        assert resblock.fused(x, *parts) is None
        assert resblock5.fused(x, *parts) is not None


def test_packed_weights_are_remembered_until_they_change() -> None:
    parts = block(32, torch.float16)
    first = resblock.packed(*parts)
    assert resblock.packed(*parts)[0] is first[0]
    parts[2].mul_(2)
    second = resblock.packed(*parts)
    assert torch.equal(second[0][0], first[0][0])
    assert torch.equal(second[0][1], 2 * first[0][1])


# -------------------------------------------------------------------------------- resblock_wgmma


def hopper(folder: Path, seed: int = 0, changes: Sequence[tuple[str, str]] = ()) -> Shim:
    """A device that has wgmma."""
    return Shim(folder, seed, changes, capability=(9, 0), most_shared=227 << 10)


# Channels, type, ReLU after the sum; images, height, width. Tiles are 16 high and 14 wide.
WGMMA = [
    (64, torch.float16, False, (1, 1, 1)),
    (64, torch.float16, False, (1, 16, 14)),
    (64, torch.float16, True, (2, 17, 13)),
    (64, torch.bfloat16, False, (1, 33, 15)),
    (64, torch.bfloat16, True, (2, 3, 30)),
    (128, torch.float16, False, (1, 15, 16)),
    (128, torch.bfloat16, True, (2, 18, 5)),
]


@pytest.mark.parametrize(("channels", "dtype", "relu", "size"), WGMMA, ids=str)
@pytest.mark.usefixtures("by_name")
def test_resblock_wgmma(
    compiled: Path, channels: int, dtype: torch.dtype, relu: bool, size: tuple[int, int, int]
) -> None:
    images, height, width = size
    x = normal(images, channels, height, width).to(dtype)
    parts = block(channels, dtype)
    check_resblock(hopper(compiled, height), x, parts, relu=relu, entry="resblock_wgmma")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("by_name")
def test_resblock_wgmma_in_any_order_of_threads(compiled: Path, seed: int) -> None:
    x = normal(1, 64, 18, 20, seed=seed).half()
    parts = block(64, torch.float16, seed=seed)
    check_resblock(hopper(compiled, seed), x, parts, entry="resblock_wgmma")


@pytest.mark.parametrize("capability", [(8, 9), (10, 0), (12, 0)], ids=str)
@pytest.mark.usefixtures("by_name")
def test_resblock_wgmma_is_for_hopper_alone(compiled: Path, capability: tuple[int, int]) -> None:
    shim = Shim(compiled, capability=capability)
    check_resblock(shim, normal(1, 64, 4, 4).half(), block(64, torch.float16))


@pytest.mark.parametrize(
    ("most_shared", "expected"),
    [
        (227 << 10, {32: "", 48: "", 64: "_wgmma", 80: "", 128: "_wgmma"}),
        (64 << 10, {32: "", 48: "", 64: "_wgmma"}),
    ],
    ids=["whole", "small"],
)
def test_resblock_proves_the_kernels_it_would_launch(
    compiled: Path, most_shared: int, expected: dict[int, str]
) -> None:
    shim = Shim(compiled, capability=(9, 0), most_shared=most_shared)
    with launching_by(shim):
        resblock._check(shim, torch.device("cpu"), torch.float16)
    launched = {int(dict(k.defines)["CHANNELS"]): k.entry for k in shim.launches}
    assert launched == {c: f"resblock{kind}" for c, kind in expected.items()}


def test_weights_packed_for_one_kernel_are_not_given_to_another() -> None:
    parts = block(64, torch.float16)
    mma, _ = resblock.packed(*parts)
    wgmma, _ = resblock.packed(*parts, by=resblock_wgmma.pack)
    assert mma.shape == (2, 9, 1, 64, 64)
    assert wgmma.shape == (2, 9, 4, 1, 128, 8)
    assert torch.equal(mma.flatten().sort().values, wgmma.flatten().sort().values)


# ------------------------------------------------------------------------------------------- NaN


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.usefixtures("by_name")
def test_what_is_not_a_number_stays_one(compiled: Path, capability: tuple[int, int]) -> None:
    """The engine looks for such values in the end: no kernel may hide them."""
    nan = torch.tensor(torch.nan)
    most = (99 if capability == (8, 0) else 227) << 10
    shim = Shim(compiled, capability=capability, most_shared=most)
    with launching_by(shim):
        x, parts = normal(1, 64, 3, 3).half(), block(64, torch.float16)
        parts[0][5, 7, 1, 1] = nan
        for relu in (False, True):
            found = resblock.fused(x, *parts, relu=relu)
            expected = reference.resblock(x, *parts, relu=relu)
            assert found is not None
            assert torch.equal(found.isnan(), expected.isnan())
        a, h, previous = (normal(1, 8, 3, 3, seed=s) for s in range(3))
        a[0, 2, 1, 1] = nan
        h[0, 3, 0, 0] = nan
        assert dtb.blend(a, h, previous, torch.tensor(0.3)).isnan().sum() == 2
        assert dtb.blend(a, h, previous, nan).isnan().all()
        y = features(1, 8, 3, 3, dtype=torch.float32, layout="channels_last")
        y[0, 1, 2, 2] = nan
        assert skip.add_(y, normal(8), None, relu=True).isnan().sum() == 1


# ------------------------------------------------------------------------------------- mutations

STAGE = "__syncthreads();  // the stage is there for all, and all are done with the one before"
MUTATIONS: dict[str, tuple[str, str, str]] = {
    "no barrier a stage": ("resblock", STAGE, ""),
    "no barrier before the middle": (
        "resblock",
        "__syncthreads();  // all have read the input",
        "",
    ),
    "no wait for copies": ("resblock", "copy_async_wait<STAGES - 2>();", ""),
    "a wait for one copy too few": (
        "resblock",
        "copy_async_wait<STAGES - 2>();",
        "copy_async_wait<STAGES - 1>();",
    ),
    "no bound on the stages": (
        "resblock",
        "if (step + STAGES - 1 < 2 * STEPS) fetch_weights",
        "fetch_weights",
    ),
    "no bound on the input": (
        "resblock",
        "const bool inside = y >= 0 && y < height && x >= 0 && x < width;",
        "const bool inside = true;",
    ),
    "no bound on the result": (
        "resblock",
        "|| row >= height || column >= width) continue;",
        ") continue;",
    ),
    # Elsewhere the middle's last tiles lie within the input that it replaces.
    "no bound on the middle": ("resblock 80", "if (pixel >= MID_H * MID_W) continue;", ""),
    "a middle that is not zero outside": (
        "resblock",
        "from_float(inside ? positive(sum) : 0.f,",
        "from_float(positive(sum),",
    ),
    "no ReLU": ("resblock", "inside ? positive(sum) : 0.f", "inside ? sum : 0.f"),
    "wgmma: no barrier before the first products": (
        "resblock_wgmma",
        "__syncthreads();  // the input is there",
        "",
    ),
    "wgmma: no barrier before the middle": (
        "resblock_wgmma",
        "__syncthreads();  // all have read the input",
        "",
    ),
    "wgmma: no barrier after the middle": (
        "resblock_wgmma",
        "__syncthreads();  // the middle is there",
        "",
    ),
    "wgmma: no barrier before the result": (
        "resblock_wgmma",
        "__syncthreads();  // all have read the middle",
        "",
    ),
    "wgmma: no barrier after the result": (
        "resblock_wgmma",
        "__syncthreads();  // the result is there",
        "",
    ),
    "wgmma: no wait for copies": ("resblock_wgmma", "copy_async_wait<0>();", ""),
    "wgmma: no fence after copies": (
        "resblock_wgmma",
        "shared_to_products();\n  __syncthreads();  // the input is there",
        "__syncthreads();",
    ),
    "wgmma: a fence after the barrier": (
        "resblock_wgmma",
        "shared_to_products();\n  __syncthreads();  // the middle is there",
        "__syncthreads();\n  shared_to_products();",
    ),
    "wgmma: no fence for registers": ("resblock_wgmma", "multiply_async_fence(sums);", ""),
    "wgmma: no wait before weights change": (
        "resblock_wgmma",
        "multiply_async_wait<1>();  // the other set is free",
        "",
    ),
    "wgmma: no wait before sums are read": (
        "resblock_wgmma",
        "multiply_async_wait_all(sums);",
        "multiply_async_wait<1>();",
    ),
    "wgmma: a group that is not closed": ("resblock_wgmma", "multiply_async_commit();", ""),
    "wgmma: strides of the matrix swapped": (
        "resblock_wgmma",
        "uint64(LINE >> 4) << 32 | uint32(PLANE >> 4) << 16",
        "uint64(PLANE >> 4) << 32 | uint32(LINE >> 4) << 16",
    ),
    "wgmma: no bound on the input": (
        "resblock_wgmma",
        "const bool inside = y >= 0 && y < height && x >= 0 && x < width;",
        "const bool inside = true;",
    ),
    "wgmma: no bound on the weights": (
        "resblock_wgmma",
        "if (set == 0 || slice < CHANNELS / 64 - 1 || tap < 8) ",
        "",
    ),
    "wgmma: no bound on the result": (
        "resblock_wgmma",
        "if (top + line >= height || left + column >= width) continue;",
        "",
    ),
    "wgmma: a middle that is not zero outside": (
        "resblock_wgmma",
        "(row >= 0 && row < height ? inside : 0)",
        "~0u",
    ),
    "dtb without a bound on vectors": ("dtb", "if (first + VALUES <= count) {", "{"),
    "dtb without a bound on the rest": ("dtb", "if (rest < count) ", ""),
    "dtb without the rest": ("dtb", "if (rest < count) out[rest]", "if (false) out[rest]"),
    "dtb without min": ("dtb", "w = w > 1.f ? 1.f : w;", ""),
    "skip of another channel": ("skip", "vector % period * VALUES", "vector % 1 * VALUES"),
    "skip without the skip": ("skip", "sum += to_float(vx.value[i]);", ""),
    "no end of a group of copies": (
        "resblock",
        "copy_async_commit();  // empty at the end, so that the count of groups stays right",
        "",
    ),
    "skip without a bound": ("skip", "if (vector >= vectors) return;", ""),
}


def right(source: str, folder: Path, seed: int, *changes: tuple[str, str]) -> bool:
    """Whether a kernel gives what it should; "resblock 80" is the one for 80 channels."""
    wgmma = source == "resblock_wgmma"
    shim = (hopper if wgmma else Shim)(folder, seed, changes)
    try:
        if source.startswith("resblock"):
            channels = 64 if wgmma else int(source.removeprefix("resblock") or 32)
            x, parts = normal(1, channels, 19, 18).half(), block(channels, torch.float16)
            found = resblock.launch(shim, x, *parts)
            exact = reference.resblock(x.double(), *(p.double() for p in parts))
        elif source == "dtb":
            a, h, previous = (normal(1, 5, 13, 37, seed=s).half() * 2 for s in range(3))
            beta = torch.tensor(0.3).half()
            found = dtb.launch(shim, a, h, previous, beta)
            exact = reference.blend(a.double(), h.double(), previous.double(), beta.double())
        else:
            assert source == "skip"
            x, y = (
                features(1, 24, 5, 7, dtype=torch.float16, layout="channels_last", seed=s)
                for s in range(2)
            )
            bias = normal(24, seed=2).half()
            exact = reference.skip(y.double(), bias.double(), x.double())
            found = skip.launch(shim, y, bias, x)
    except ShimError:
        return False
    return errors(found, exact)[1] < 0.02


@pytest.mark.parametrize("source", sorted({source for source, _, _ in MUTATIONS.values()}))
def test_what_mutations_are_told_from(compiled: Path, source: str) -> None:
    assert all(right(source, compiled, seed) for seed in range(3))


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_fault_is_found(compiled: Path, what: str) -> None:
    """A kernel with a part taken out fails for some order of threads."""
    source, old, new = MUTATIONS[what]
    assert not all(right(source, compiled, seed, (old, new)) for seed in range(4))


# ------------------------------------------------------------------------------- whole networks


def video(network: Any, frames: int = 3) -> Callable[[Any, torch.dtype], Tensor]:
    """A clip through a network for video: all sharp frames and the last state in a row."""
    window = network.spec.window
    clip = torch.rand((frames, 3 * window, 32, 48), generator=generator(5))

    def run(copy: Any, dtype: torch.dtype) -> Tensor:
        state: tuple[Tensor, ...] | None = None
        found = []
        for n in range(frames):
            sharp, state = copy.step(clip[n : n + 1].to(dtype), state)
            found.append(sharp.flatten())
        return torch.cat([*found, *(s.flatten() for s in state or ())])

    return run


def photo(network: Any) -> Callable[[Any, torch.dtype], Tensor]:
    picture = torch.rand((1, 3, 32, 32), generator=generator(6))
    return lambda copy, dtype: copy(picture.to(dtype)).flatten()


def lively(network: nn.Module) -> nn.Module:
    """Weights under which every part of a network has a say in the result."""
    with torch.no_grad():
        for i, (name, p) in enumerate(network.named_parameters()):
            if p.ndim == 4:
                p.copy_(normal(*p.shape, seed=i) * (0.7 / p[0].numel() ** 0.5))
            elif "beta" not in name:
                p.copy_(normal(*p.shape, seed=i) * 0.1)
    return network.to(memory_format=torch.channels_last)


NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], set[str]]] = {
    "strcnn_dtb": (Strcnn, video, {"resblock", "dtb"}),
    "strcnn_dtb_lite": (StrcnnDtbLite, video, {"resblock", "dtb"}),
    "dmphn": (lambda: Dmphn(DmphnConfig(levels=2)), photo, {"resblock"}),
    "mscnn": (lambda: Mscnn(MscnnConfig(blocks=2)), photo, {"skip"}),
    "srn": (Srn, photo, {"skip"}),
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("by_name")
def test_networks(compiled: Path, name: str, dtype: torch.dtype) -> None:
    check_network(name, dtype, Shim(compiled), NETWORKS[name][2])


@pytest.mark.usefixtures("by_name")
def test_network_by_wgmma(compiled: Path) -> None:
    check_network("strcnn_dtb", torch.float16, hopper(compiled), {"resblock_wgmma", "dtb_conv"})


@torch.no_grad()
def check_network(name: str, dtype: torch.dtype, shim: Shim, entries: set[str]) -> None:
    """With kernels as without, at the same precision, as the rule for one kernel says."""
    make, runner, _ = NETWORKS[name]
    network = lively(make())
    run = runner(network)
    exact = run(copy.deepcopy(network).double(), torch.float64).double()
    cast_(network, dtype)
    plain = run(network, torch.float32)
    with launching_by(shim):
        found = run(network, torch.float32)
    assert {k.entry for k in shim.launches} == entries
    assert_as_good(found.float(), plain.float(), exact)


# ------------------------------------------------------------------------------------------ NVRTC


def variants() -> list[Kernel]:
    """Every form of every kernel that is ever launched."""
    found = [dtb.kernel(t, b) for t in dtb.TYPES for b in dtb.TYPES]
    found += [dtb_conv.kernel(t, b) for t in dtb_conv.TYPES for b in dtb.TYPES]
    both = [(False, False), (False, True), (True, False), (True, True)]
    found += [skip.kernel(t, skip=w, relu=r) for t in skip.TYPES for w, r in both]
    found += [
        resblock.kernel(c, t, relu=r)
        for c in resblock.SHAPES
        for t in resblock.TYPES
        for r in (False, True)
    ]
    found += [
        resblock_wgmma.kernel(c, t, relu=r)
        for c in resblock_wgmma.CHANNELS
        for t in resblock_wgmma.TYPES
        for r in (False, True)
    ]
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles(architecture: str) -> None:
    """To machine code, without a device; nothing is spilled from registers.

    Every form for the two that differ most, of the others one form of each width.
    """
    for kernel in variants():
        defines = dict(kernel.defines)
        without_relu = all(defines.get(name, "0") == "0" for name in ("RELU", "RELU_AFTER"))
        halves = {defines["VALUE"], defines.get("BETA", "float16")} == {"float16"}
        is_usual = without_relu and halves
        if architecture in ("sm_80", "sm_90a") or is_usual:
            assert_compiles(kernel, architecture)


def test_the_compiler_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy", reason="SKIPPED: NO CuPy")
    wrong = Kernel("dtb", "dtb", (("VALUE", "double"), ("BETA", "float")))
    with pytest.raises(KernelError, match=r"dtb\.cu does not compile for sm_80: .*error"):
        compile_cubin(wrong, "sm_80")
