"""How the engine computes on a GPU, tried on the CPU: frames that stay packed on the device, steps
as graphs, results that arrive later. What CUDA itself does is left to the tests marked ``gpu``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.shim import Shim
from vs_deblur import cuda
from vs_deblur.cuda import Graphs, Transfers
from vs_deblur.engine import Deblurrer, Frame, Resident
from vs_deblur.errors import EngineError
from vs_deblur.timeline import Output
from vs_deblur_kernels.dispatch import launching_by
from vs_deblur_kernels.pixels import PixelFormat

CPU = torch.device("cpu")


def as_on_a_gpu(deblurrer: Deblurrer, seen: torch.dtype = torch.float32) -> Deblurrer:
    """The same engine, working as it does with a GPU."""
    deblurrer._transfers = Transfers(CPU)
    deblurrer._seen = seen
    return deblurrer


FORMATS = {
    "YUV420P8": PixelFormat("yuv", 8, False, (1, 1)),
    "YUV422P10": PixelFormat("yuv", 10, False, (1, 0), "2020", True),
    "YUV444P16": PixelFormat("yuv", 16, False, (0, 0), "601"),
    "YUV410P8": PixelFormat("yuv", 8, False, (2, 2)),
    "RGB24": PixelFormat("rgb", 8, False, full_range=True),
    "RGBS": PixelFormat("rgb", 32, True, full_range=True),
    "GRAY10": PixelFormat("gray", 10, False),
}


def clip(fmt: PixelFormat, height: int, width: int, count: int = 5) -> list[list[NDArray[Any]]]:
    rng = np.random.default_rng(3)
    frames = []
    for _ in range(count):
        planes: list[NDArray[Any]] = []
        for p in range(fmt.planes):
            shape = fmt.plane_shape(height, width, p)
            if fmt.is_float:
                planes.append(rng.uniform(-0.1, 1.1, shape).astype(np.float32))
            else:
                kind = np.uint8 if fmt.bits == 8 else np.uint16
                planes.append(rng.integers(0, 1 << fmt.bits, shape).astype(kind))
        frames.append(planes)
    return frames


def through(
    deblurrer: Deblurrer, frames: list[list[NDArray[Any]]], fmt: PixelFormat
) -> list[list[NDArray[Any]]]:
    outputs = deblurrer.stream(((planes, False) for planes in frames), fmt)
    return [output.value.planes for output in outputs]


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("size", [(32, 48), (17, 21)])
@pytest.mark.parametrize("name", FORMATS)
def test_the_same_samples_as_on_the_cpu(
    small_weights: Path, name: str, size: tuple[int, int], strength: float
) -> None:
    """Bit for bit, where the network sees the same numbers."""
    fmt = FORMATS[name]
    frames = clip(fmt, *size)
    make = {"model": str(small_weights), "device": "cpu", "precision": "fp32"}
    ours = Deblurrer(**make, strength=strength)  # type: ignore[arg-type]
    other = as_on_a_gpu(Deblurrer(**make, strength=strength))  # type: ignore[arg-type]
    for a, b in zip(through(ours, frames, fmt), through(other, frames, fmt), strict=True):
        for own, theirs in zip(a, b, strict=True):
            np.testing.assert_array_equal(own, theirs)


@pytest.mark.parametrize("name", FORMATS)
def test_a_network_that_sees_halves(small_weights: Path, name: str) -> None:
    """What rounding took from its input does not come out as a change."""
    fmt = FORMATS[name]
    frames = clip(fmt, 24, 32)
    make = {"model": str(small_weights), "device": "cpu", "precision": "fp32"}
    plain = Deblurrer(**make)  # type: ignore[arg-type]
    halves = as_on_a_gpu(Deblurrer(**make), torch.float16)  # type: ignore[arg-type]
    worst = 2e-3 * fmt.peak if fmt.is_float else max(1.0, 1.5e-3 * fmt.peak)
    for a, b in zip(through(plain, frames, fmt), through(halves, frames, fmt), strict=True):
        for own, theirs in zip(a, b, strict=True):
            assert np.abs(own.astype(float) - theirs).max() <= worst
    with torch.no_grad():
        halves.network.output.weight.zero_()
        halves.network.output.bias.zero_()
    for a, b in zip(through(halves, frames, fmt), frames, strict=True):
        for own, theirs in zip(a, b, strict=True):
            np.testing.assert_array_equal(own, theirs)


@pytest.mark.parametrize("name", ["YUV420P8", "YUV422P10", "RGBS"])
def test_with_the_kernels(small_weights: Path, compiled: Path, name: str) -> None:
    """The kernels that convert, and the network's, launched by the stand-in."""
    fmt = FORMATS[name]
    frames = clip(fmt, 17, 21, 4)
    make = {"model": str(small_weights), "device": "cpu", "precision": "fp32"}
    expected = through(Deblurrer(**make), frames, fmt)  # type: ignore[arg-type]
    other = as_on_a_gpu(Deblurrer(**make))  # type: ignore[arg-type]
    with launching_by(shim := Shim(compiled)):
        found = through(other, frames, fmt)
    assert {"stack", "add", "dtb"} <= {k.entry for k in shim.launches}
    worst = 1e-4 if fmt.is_float else 1.0
    for a, b in zip(expected, found, strict=True):
        for own, theirs in zip(a, b, strict=True):
            assert np.abs(own.astype(float) - theirs).max() <= worst


def test_samples_that_are_not_finite(small_weights: Path) -> None:
    fmt = FORMATS["RGBS"]
    frames = clip(fmt, 16, 16)
    frames[1][0][2, 3] = np.nan
    frames[3][1][4, 4] = np.inf
    deblurrer = as_on_a_gpu(Deblurrer(str(small_weights), device="cpu"))
    outputs = list(deblurrer.stream(((p, False) for p in frames), fmt))
    assert [o.value.non_finite for o in outputs] == [False, True, False, True, False]
    assert all(np.isfinite(p).all() for o in outputs for p in o.value.planes)


def test_a_network_that_fails_is_told_when_the_frame_is_read(small_weights: Path) -> None:
    fmt = FORMATS["YUV420P8"]
    deblurrer = as_on_a_gpu(Deblurrer(str(small_weights), device="cpu"))
    frames = [deblurrer.prepare(p, fmt) for p in clip(fmt, 16, 16, 3)]
    with torch.no_grad():
        deblurrer.network.output.bias[0] = torch.nan
    frame, _ = deblurrer.step(frames, None)
    for _ in range(2):
        with pytest.raises(EngineError, match="not finite"):
            _ = frame.planes


def test_pictures(small_weights: Path) -> None:
    picture = clip(FORMATS["RGB24"], 19, 27, 1)[0]
    rgb = np.stack(picture, axis=-1)
    told: list[tuple[int, int]] = []
    make = {"model": str(small_weights), "device": "cpu", "precision": "fp32"}
    expected = Deblurrer(**make).photo(rgb)  # type: ignore[arg-type]
    deblurrer = as_on_a_gpu(Deblurrer(**make))  # type: ignore[arg-type]
    found = deblurrer.photo(rgb, progress=lambda *done: told.append(done))
    np.testing.assert_array_equal(found, expected)
    assert told == [(1, 1)]


def test_frames_are_copied_when_they_are_taken_in(small_weights: Path) -> None:
    """Hosts use their buffers again."""
    fmt = FORMATS["YUV420P8"]
    deblurrer = as_on_a_gpu(Deblurrer(str(small_weights), device="cpu"))
    frames = clip(fmt, 16, 16, 1)[0]
    before = deblurrer.prepare(frames, fmt)
    assert isinstance(before, Resident)
    kept = before.frame.clone()
    for plane in frames:
        plane[:] = 0
    assert torch.equal(before.frame, kept)


def test_planes_with_strides(small_weights: Path) -> None:
    """Rows may be padded, as those of hosts are."""
    fmt = FORMATS["YUV420P8"]
    planes = clip(fmt, 16, 24, 1)[0]
    wide = [np.zeros((p.shape[0], 64), p.dtype)[:, : p.shape[1]] for p in planes]
    for own, plane in zip(wide, planes, strict=True):
        own[:] = plane
    transfers = Transfers(CPU)
    assert torch.equal(transfers.upload(wide, fmt), transfers.upload(planes, fmt))


# ------------------------------------------------------------------------- one frame ahead


def test_a_frame_is_waited_for_once() -> None:
    calls = []

    def wait() -> tuple[list[NDArray[Any]], bool]:
        calls.append(1)
        return [np.zeros((2, 2))], True

    frame = Frame(wait)
    assert not calls
    assert frame.non_finite
    assert frame.planes is frame.planes
    assert len(calls) == 1


def outputs(count: int, made: list[int], fail_at: int | None = None) -> Iterator[Output[Frame]]:
    for n in range(count):
        if n == fail_at:
            raise EngineError("no more")
        made.append(n)
        yield Output(n, Frame([]), 0)


def test_the_next_frame_is_computed_before_this_one_is_read() -> None:
    from vs_deblur.engine import _ahead

    made: list[int] = []
    ahead = _ahead(outputs(3, made))
    seen = []
    for output in ahead:
        seen.append(output.n)
        assert made == list(range(min(output.n + 2, 3)))
    assert seen == [0, 1, 2]
    assert not list(_ahead(outputs(0, made)))


def test_frames_before_a_failure_come_out_first() -> None:
    from vs_deblur.engine import _ahead

    ahead = _ahead(outputs(9, [], fail_at=2))
    assert [next(ahead).n for _ in range(2)] == [0, 1]
    with pytest.raises(EngineError, match="no more"):
        next(ahead)


# ---------------------------------------------------------------------------------- graphs


class Recorded:
    """Stands in for a captured step."""

    captured: int = 0

    def __init__(self, step: Any, window: Tensor, state: Any, *_: Any) -> None:
        Recorded.captured += 1
        self._step = step

    def __call__(self, window: Tensor, state: Any) -> Any:
        return self._step(window, state)


def step(window: Tensor, state: Any) -> Any:
    return window + 1, (window,)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Graphs as on a GPU; what is captured is counted."""
    monkeypatch.setattr(cuda, "_Graph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    Recorded.captured = 0
    graphs = Graphs(CPU)
    graphs._is_off = False
    return graphs


def test_the_second_step_of_a_shape_is_captured(captured: Graphs) -> None:
    small, large = torch.zeros(1, 9, 4, 4), torch.zeros(1, 9, 8, 8)
    state = (small,)
    counts = []
    for window, memory in [
        *[(small, None), (small, state), (small, state), (small, state), (small, None)],
        *[(large, None), (large, None), (small, None), (small, None)],
    ]:
        sharp, following = captured(step, window, memory)
        assert torch.equal(sharp, window + 1)
        assert following[0].shape == window.shape
        counts.append(Recorded.captured)
    # Fresh and carried states are two graphs; another shape lets go of those of the one before.
    assert counts == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_a_step_that_cannot_be_captured(
    captured: Graphs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(cuda, "_Graph", refuse)
    window = torch.zeros(1, 9, 4, 4)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            captured(step, window, None)
    (record,) = caplog.records
    assert record.message.startswith("steps run without CUDA graphs: operation not permitted")
    assert "more" not in record.message


def test_what_is_captured_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device's own stream: torch's own for captures is that of the first device used."""
    entered: list[tuple[str, Any]] = []

    @contextlib.contextmanager
    def context(name: str, *arguments: Any, **options: Any) -> Iterator[None]:
        entered.append((name, options or arguments))
        yield

    class Stream:
        def wait_stream(self, other: Any) -> None:
            pass

    stream = Stream()
    monkeypatch.setattr(cuda, "_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
    for name in ("stream", "device", "graph"):
        monkeypatch.setattr(torch.cuda, name, partial(context, name))
    cuda._Graph(step, torch.zeros(1), None, CPU, (0, 1))
    assert [name for name, _ in entered] == ["stream", "device", "graph"]
    assert entered[1][1] == (CPU,)
    assert entered[2][1]["stream"] is stream
    assert entered[2][1]["capture_error_mode"] == "thread_local"


def test_memory_of_graphs_is_given_back_before_tiles_are_halved(
    small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deblurrer = Deblurrer(str(small_weights), device="cpu", precision="fp32")
    frames = [deblurrer.prepare(p, FORMATS["RGB24"]) for p in clip(FORMATS["RGB24"], 16, 16, 3)]
    expected, _ = deblurrer.step(frames, None)
    graphs = deblurrer._steps
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    graphs._is_off, graphs._pool = False, (0, 1)
    calls = []

    def short(*arguments: Any) -> Any:
        calls.append(graphs._is_off)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("none left")
        return arguments[0](*arguments[1:])

    monkeypatch.setattr(Graphs, "__call__", lambda self, *arguments: short(*arguments))
    found, _ = deblurrer.step(frames, None)
    np.testing.assert_array_equal(found.planes[0], expected.planes[0])
    assert calls == [False, True]
    assert deblurrer._ceiling is None


def test_frames_of_several_formats_in_a_window(small_weights: Path) -> None:
    """A splice of clips with different matrices: each frame is read as its own properties say."""
    other = PixelFormat("yuv", 8, False, (1, 1), "601", True)
    formats = [FORMATS["YUV420P8"], FORMATS["YUV420P8"], other]
    planes = clip(other, 16, 32, 3)
    make = {"model": str(small_weights), "device": "cpu", "precision": "fp32"}
    results = []
    for deblurrer in (Deblurrer(**make), as_on_a_gpu(Deblurrer(**make))):  # type: ignore[arg-type]
        frames = [deblurrer.prepare(p, f) for p, f in zip(planes, formats, strict=True)]
        results.append(deblurrer.step(frames, None)[0].planes)
    for own, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_a_state_that_is_not_finite_is_told(small_weights: Path) -> None:
    fmt = FORMATS["YUV420P8"]
    deblurrer = as_on_a_gpu(Deblurrer(str(small_weights), device="cpu"))
    frames = [deblurrer.prepare(p, fmt) for p in clip(fmt, 16, 16, 3)]
    with torch.no_grad():
        deblurrer.network.feedback.bias[0] = torch.nan
    frame, _ = deblurrer.step(frames, None)
    with pytest.raises(EngineError, match="not finite"):
        _ = frame.planes


def test_nothing_is_captured_on_the_cpu() -> None:
    graphs = Graphs(CPU)
    for _ in range(3):
        graphs(step, torch.zeros(1), None)
    assert not graphs._graphs


# ------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernels", ["auto", "reference", "cupy"])
@pytest.mark.parametrize("name", FORMATS)
def test_cuda_agrees_with_the_cpu_in_every_format(
    small_weights: Path, monkeypatch: pytest.MonkeyPatch, name: str, kernels: str
) -> None:
    """With graphs: the clip is long enough for both to be captured and replayed."""
    fmt = FORMATS[name]
    frames = clip(fmt, 34, 50, 12)
    monkeypatch.setenv("VS_DEBLUR_KERNELS", kernels)
    deblurrer = Deblurrer(str(small_weights), device="cuda", segment=4, warmup=2)
    monkeypatch.delenv("VS_DEBLUR_KERNELS")
    exact = Deblurrer(str(small_weights), device="cpu", precision="fp32", segment=4, warmup=2)
    expected = through(exact, frames, fmt)
    monkeypatch.setenv("VS_DEBLUR_KERNELS", kernels)
    worst = 0.02 * fmt.peak
    for _ in range(2):
        for a, b in zip(expected, through(deblurrer, frames, fmt), strict=True):
            for own, theirs in zip(a, b, strict=True):
                assert np.abs(own.astype(float) - theirs).max() <= worst
    assert not deblurrer._steps._is_off
