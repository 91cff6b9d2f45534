"""The kernels on a GPU: right, in order with torch's streams, and fit for CUDA graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels_support import assert_as_good
from tests.shim import Shim
from tests.test_kernels import block, features, normal
from tests.test_kernels_dtb_conv import exact_of, hopper, inputs
from vs_deblur_kernels import dtb, dtb_conv, reference, resblock, resblock5, skip
from vs_deblur_kernels._compile import CupyBackend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = [(1, 1, 1), (2, 3, 35), (1, 33, 18), (1, 180, 320)]


@pytest.fixture(autouse=True)
def exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def backend() -> CupyBackend:
    return CupyBackend()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", list(dtb.TYPES), ids=str)
def test_dtb(backend: CupyBackend, dtype: torch.dtype, layout: str) -> None:
    for shape in ((1, 1, 1, 1), (2, 64, 37, 41), (1, 5, 33, 31)):
        a, h, p = (features(*shape, dtype=dtype, layout=layout, seed=s).cuda() for s in range(3))
        beta = torch.tensor(0.3, dtype=dtype, device="cuda")
        exact = reference.blend(a.double(), h.double(), p.double(), beta.double())
        found = dtb.launch(backend, a, h, p, beta)
        assert_as_good(found, reference.blend(a, h, p, beta), exact)


@pytest.mark.parametrize("dtype", list(dtb_conv.TYPES), ids=str)
def test_dtb_conv(backend: CupyBackend, dtype: torch.dtype, compiled: Path) -> None:
    if torch.cuda.get_device_capability() != dtb_conv.CAPABILITY:
        pytest.skip("needs compute capability 9.0")
    for images, height, width in SIZES:
        parts = [t.cuda() for t in inputs(images, height, width, dtype)]
        found = dtb_conv.launch(backend, *parts)
        assert_as_good(found, reference.blended_convolution(*parts), exact_of(parts))
    parts = inputs(1, 17, 18, dtype)
    emulated = dtb_conv.launch(hopper(compiled), *parts)
    real = dtb_conv.launch(backend, *(t.cuda() for t in parts))
    torch.testing.assert_close(real.cpu(), emulated, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", list(skip.TYPES), ids=str)
def test_skip(backend: CupyBackend, dtype: torch.dtype) -> None:
    x, y = (
        features(2, 64, 37, 41, dtype=dtype, layout="channels_last", seed=s).cuda()
        for s in range(2)
    )
    bias = normal(64, seed=2).to("cuda", dtype)
    exact = reference.skip(y.double(), bias.double(), x.double())
    plain = reference.skip(y, bias, x)
    assert_as_good(skip.launch(backend, y, bias, x), plain, exact)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", list(resblock.TYPES), ids=str)
@pytest.mark.parametrize("channels", resblock.SHAPES)
def test_resblock(
    backend: CupyBackend, channels: int, dtype: torch.dtype, relu: bool, compiled: Path
) -> None:
    if torch.cuda.get_device_capability() < resblock.CAPABILITY:
        pytest.skip("needs compute capability 8.0")
    for images, height, width in SIZES:
        x = normal(images, channels, height, width).to(dtype)
        parts = block(channels, dtype)
        there = [t.cuda() for t in (x, *parts)]
        exact = reference.resblock(*(t.double() for t in there), relu=relu)
        found = resblock.launch(backend, *there, relu=relu)
        assert_as_good(found, reference.resblock(*there, relu=relu), exact)
    # What the stand-in of the other tests computes is what tensor cores compute, but for rounding.
    x = normal(1, channels, 17, 18).to(dtype)
    emulated = resblock.launch(Shim(compiled), x, *parts, relu=relu)
    real = resblock.launch(backend, x.cuda(), *there[1:], relu=relu)
    torch.testing.assert_close(real.cpu(), emulated, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("dtype", resblock5.TYPES, ids=str)
def test_resblock_by_the_library(dtype: torch.dtype, size: int) -> None:
    x = normal(1, 64, 45, 39).to("cuda", dtype)
    parts = [p.cuda() for p in block(64, dtype, size)]
    exact = reference.resblock(x.double(), *(p.double() for p in parts))
    with torch.no_grad():
        found = resblock5.fused(x, *parts)
    assert found is not None
    assert_as_good(found, reference.resblock(x, *parts), exact)


def clip(count: int) -> list[Tensor]:
    return [normal(1, 64, 90, 160, seed=s).to("cuda", torch.float16) for s in range(count)]


def test_launches_are_in_order_with_torchs_stream(backend: CupyBackend) -> None:
    """A kernel on CuPy's own stream would read what is not yet there."""
    beta = torch.tensor(0.3, device="cuda", dtype=torch.float16)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    a, h, previous = clip(3)
    dtb.launch(backend, a, h, previous, beta)  # compiled and loaded
    expected = reference.blend(a, h * 3, previous, beta)
    late = torch.zeros_like(h)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]
        late.copy_(h * 3)
        found = dtb.launch(backend, a, late, previous, beta)
        doubled = found * 1.0
    side.synchronize()
    torch.testing.assert_close(doubled, expected, rtol=0.01, atol=0.01)


def test_launches_can_be_captured(backend: CupyBackend) -> None:
    """A replay reads what is in the tensors by then."""
    if torch.cuda.get_device_capability() < resblock.CAPABILITY:
        pytest.skip("needs compute capability 8.0")
    beta = torch.tensor(0.3, device="cuda", dtype=torch.float16)
    a, h, previous = clip(3)
    parts = [p.cuda() for p in block(64, torch.float16)]

    def compute() -> Tensor:
        return resblock.launch(backend, dtb.launch(backend, a, h, previous, beta), *parts)

    compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compute()
    h.copy_(h * 2 + 1)
    graph.replay()
    torch.testing.assert_close(found, compute())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device(small_weights: Path) -> None:
    """Launches and graphs go where the tensors are."""
    from vs_deblur.engine import Deblurrer

    frames = [(normal(40, 48, 3, seed=s).sigmoid() * 255).to(torch.uint8).numpy() for s in range(8)]
    results = [
        list(Deblurrer(str(small_weights), device=d, segment=3, warmup=1).video(frames))
        for d in ("cuda:0", "cuda:1")
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=0, atol=1)
