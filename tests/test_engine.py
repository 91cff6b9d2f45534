"""The engine: types kept, strength, tiles, memory, finite values, precision."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.small import scramble
from vs_deblur import engine
from vs_deblur.engine import Converted, Deblurrer, Prepared
from vs_deblur.errors import DeviceError, EngineError, InputError, UsageError
from vs_deblur_kernels.pixels import PixelFormat
from vs_deblur_models.registry import build_network, save_network


@pytest.fixture(scope="module")
def paper_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "paper.safetensors"
    network = scramble(build_network("strcnn_dtb", {"residual": True}))
    save_network(network, path)
    return path


def clip(frames: int, height: int, width: int, dtype: str = "uint8") -> list[NDArray[Any]]:
    rng = np.random.default_rng(0)
    x = rng.random((frames, height, width, 3))
    scale = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    x = x * scale if dtype == "float32" else np.round(x * scale)
    return list(x.astype(dtype))


def run(deblurrer: Deblurrer, frames: list[NDArray[Any]]) -> NDArray[Any]:
    return np.stack(list(deblurrer.video(frames)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("size", [(1, 1), (17, 9), (32, 48), (33, 16)])
def test_video_keeps_type_and_size(small_weights: Path, dtype: str, size: tuple[int, int]) -> None:
    frames = clip(3, *size, dtype)
    out = run(Deblurrer(str(small_weights), device="cpu"), frames)
    assert out.shape == (3, *size, 3)
    assert out.dtype == np.dtype(dtype)
    assert not np.array_equal(out, np.stack(frames))


def test_types_agree_with_each_other(small_weights: Path) -> None:
    deblurrer = Deblurrer(str(small_weights), device="cpu", precision="fp32")
    eight = clip(4, 24, 32)
    sixteen = run(deblurrer, [f.astype(np.uint16) * 257 for f in eight]) / 65535
    real = run(deblurrer, [(f / 255).astype(np.float32) for f in eight])
    assert np.abs(sixteen - real).max() <= 0.51 / 65535 + 1e-6
    assert np.abs(run(deblurrer, eight) / 255 - real).max() <= 0.51 / 255


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_strength_zero_is_bit_exact(small_weights: Path, dtype: str) -> None:
    frames = clip(3, 17, 9, dtype)
    if dtype == "float32":
        frames[1][0, 0] = (np.nan, np.inf, -3.0)
    out = run(Deblurrer(str(small_weights), device="cpu", strength=0.0), frames)
    assert np.array_equal(out, np.stack(frames), equal_nan=dtype == "float32")


def test_strength_mixes_linearly(small_weights: Path) -> None:
    frames = clip(4, 24, 32, "float32")
    full, half = (
        run(Deblurrer(str(small_weights), device="cpu", strength=s), frames) for s in (1.0, 0.5)
    )
    np.testing.assert_allclose(half, (np.stack(frames) + full) / 2, atol=1e-6)


def test_empty_and_one_frame_clips(small_weights: Path) -> None:
    deblurrer = Deblurrer(str(small_weights), device="cpu")
    assert list(deblurrer.video([])) == []
    assert run(deblurrer, clip(1, 20, 20)).shape == (1, 20, 20, 3)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
    ],
)
def test_frames_of_another_kind_are_refused(small_weights: Path, bad: NDArray[Any]) -> None:
    with pytest.raises(InputError):
        list(Deblurrer(str(small_weights), device="cpu").video([bad]))


def test_a_frame_of_another_size_is_refused_by_number(small_weights: Path) -> None:
    frames = [*clip(2, 16, 16), *clip(1, 18, 16)]
    with pytest.raises(InputError, match="frame 2"):
        list(Deblurrer(str(small_weights), device="cpu").video(frames))


@pytest.mark.parametrize("tile", [32, 64, 100])
def test_tiles_give_the_whole_frames_result(small_weights: Path, tile: int) -> None:
    """States are kept full-frame and halos cover the receptive field: only rounding differs."""
    frames = clip(5, 200, 331, "float32")
    whole = run(Deblurrer(str(small_weights), device="cpu", precision="fp32"), frames)
    tiled = run(Deblurrer(str(small_weights), device="cpu", precision="fp32", tile=tile), frames)
    assert np.abs(whole - tiled).max() < 2e-5


def test_tiles_of_the_papers_network(paper_weights: Path) -> None:
    frames = clip(4, 90, 122, "float32")
    whole = run(Deblurrer(str(paper_weights), device="cpu", precision="fp32"), frames)
    deblurrer = Deblurrer(str(paper_weights), device="cpu", precision="fp32", tile=40)
    # Random weights amplify rounding from frame to frame; a seam would be a hundred times larger.
    assert np.abs(whole - run(deblurrer, frames)).max() < 1e-4
    deblurrer.spec = replace(deblurrer.spec, receptive_field=16)
    assert np.abs(whole - run(deblurrer, frames)).max() > 1e-3


def test_a_small_memory_budget_makes_tiles(small_weights: Path) -> None:
    deblurrer = Deblurrer(str(small_weights), device="cpu", memory=40e6, precision="fp32")
    assert deblurrer.tile_for(96, 96) is None
    tile = deblurrer.tile_for(4320, 7680)
    assert tile is not None
    assert tile % 16 == 0
    side = tile + 2 * deblurrer.spec.receptive_field
    minimum = 4 * 16
    assert tile == minimum or side**2 * deblurrer.spec.bytes_per_pixel <= 40e6


class Starved:
    """Stands for a network's step on a device that has memory for so many pixels only."""

    def __init__(self, deblurrer: Deblurrer, pixels: int) -> None:
        self.step_, self.pixels, self.refused = deblurrer.network.step, pixels, 0

    def step(self, x: torch.Tensor, state: Any) -> Any:
        if x.shape[-1] * x.shape[-2] > self.pixels:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return self.step_(x, state)


def test_out_of_memory_halves_the_tile_and_says_so_once(
    small_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = clip(4, 400, 400, "float32")
    expected = run(Deblurrer(str(small_weights), device="cpu", precision="fp32"), frames)
    deblurrer = Deblurrer(str(small_weights), device="cpu", precision="fp32")
    starved = Starved(deblurrer, 390 * 390)
    deblurrer.network = starved
    with caplog.at_level(logging.WARNING, logger="vs_deblur.engine"):
        out = run(deblurrer, frames)
    assert starved.refused >= 1
    assert len([r for r in caplog.records if "out of memory" in r.message]) == 1
    assert np.abs(out - expected).max() < 2e-5


def test_out_of_memory_at_the_smallest_tile_is_a_device_error(small_weights: Path) -> None:
    deblurrer = Deblurrer(str(small_weights), device="cpu")
    deblurrer.network = Starved(deblurrer, 10)
    with pytest.raises(DeviceError, match="out of memory") as raised:
        run(deblurrer, clip(1, 200, 200))
    assert raised.value.exit_code == 6


@pytest.mark.parametrize("text", ["CUDA error: an illegal memory access", "unspecified launch"])
def test_a_lost_device_is_not_tried_again(small_weights: Path, text: str) -> None:
    deblurrer = Deblurrer(str(small_weights), device="cpu")
    calls = 0

    class Lost:
        def step(self, *_: Any) -> Any:
            nonlocal calls
            calls += 1
            raise RuntimeError(text)

    deblurrer.network = Lost()
    with pytest.raises(DeviceError, match="device failed"):
        run(deblurrer, clip(1, 32, 32))
    assert calls == 1


def test_values_that_are_not_finite_stay_where_they_are(small_weights: Path) -> None:
    """NaN and Inf pixels come out finite and never reach the state of later frames."""
    clean = clip(6, 32, 32, "float32")
    dirty = [f.copy() for f in clean]
    dirty[1][3, 4] = np.nan
    dirty[1][10, 10, 0] = np.inf
    dirty[1][11, 11, 1] = -np.inf
    replaced = [f.copy() for f in dirty]
    replaced[1] = np.nan_to_num(replaced[1], nan=0.0, posinf=1.0, neginf=0.0)
    deblurrer = Deblurrer(str(small_weights), device="cpu")
    out = run(deblurrer, dirty)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out, run(deblurrer, replaced))
    fmt = PixelFormat("rgb", 32, True, full_range=True)
    planes = [[f[..., c] for c in range(3)] for f in dirty[:3]]
    flags = [f.non_finite for p in planes if isinstance(f := deblurrer.prepare(p, fmt), Converted)]
    assert flags == [False, True, False]


def test_values_beyond_the_range_are_kept(small_weights: Path) -> None:
    frames = clip(3, 32, 32, "float32")
    for f in frames:
        f[5, 5] = (4.0, -2.0, 0.5)
    inside = [f.clip(0, 1) for f in frames]
    deblurrer = Deblurrer(str(small_weights), device="cpu")
    np.testing.assert_allclose(
        run(deblurrer, frames) - np.stack(frames),
        run(deblurrer, inside) - np.stack(inside),
        atol=1e-6,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["frame", "state"])
def test_a_network_that_overflows_is_an_error(
    small_weights: Path, value: float, where: str
) -> None:
    """Infinities too: clamped they would pass for white and black."""
    deblurrer = Deblurrer(str(small_weights), device="cpu")

    class Overflowing:
        def step(self, x: torch.Tensor, _: Any) -> Any:
            bad = torch.full_like(x[:, 3:6], value)
            return (bad, ()) if where == "frame" else (x[:, 3:6], (bad,))

    deblurrer.network = Overflowing()
    with pytest.raises(EngineError, match="not finite"):
        run(deblurrer, clip(1, 32, 32))


@pytest.mark.parametrize("place", ["to_rgb", "pad_to", "add_rgb"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), DeviceError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceError),
        (RuntimeError("The size of tensor a must match the size of tensor b"), EngineError),
    ],
)
def test_faults_outside_the_network_are_named_too(
    small_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
    expected: type[Exception],
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    deblurrer = Deblurrer(str(small_weights), device="cpu")
    monkeypatch.setattr(engine, place, fail)
    with pytest.raises(expected):
        run(deblurrer, clip(1, 32, 32))


def test_a_warm_up_is_never_longer_than_a_segment(small_weights: Path) -> None:
    assert Deblurrer(str(small_weights), device="cpu", segment=4).plan.warmup == 4
    frames = clip(9, 16, 16)
    short, exact = (
        run(Deblurrer(str(small_weights), device="cpu", segment=4, warmup=w), frames)
        for w in (8, 4)
    )
    assert np.array_equal(short, exact)


def test_byte_order_of_arrays_does_not_matter(small_weights: Path) -> None:
    frames = clip(2, 16, 16, "uint16")
    deblurrer = Deblurrer(str(small_weights), device="cpu")
    swapped = run(deblurrer, [f.astype(">u2") for f in frames])
    assert np.array_equal(swapped, run(deblurrer, frames))


def test_bf16_stays_close_to_fp32() -> None:
    """On the shipped network: what rounding costs is far below what deblurring gains."""
    rng = np.random.default_rng(1)
    base = np.kron(rng.random((12, 16, 3)), np.ones((8, 8, 1)))
    frames = [np.roll(base, 2 * n, axis=1).astype(np.float32) for n in range(4)]
    exact = run(Deblurrer(device="cpu", precision="fp32"), frames)
    rounded = run(Deblurrer(device="cpu", precision="bf16"), frames)
    mse = float(((exact - rounded) ** 2).mean())
    assert 0 < mse < 10 ** (-5.2)


def test_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(engine, "bf16_is_fast", lambda: True)
    assert engine.choose_precision("auto", cpu)[0] == "bf16"
    monkeypatch.setattr(engine, "bf16_is_fast", lambda: False)
    assert engine.choose_precision("auto", cpu)[0] == "fp32"
    gpu = torch.device("cuda")
    for capability, expected in (((6, 1), "fp32"), ((7, 5), "fp16"), ((12, 0), "fp16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA RTX")
        assert engine.choose_precision("auto", gpu)[0] == expected
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce GTX 1660")
    assert engine.choose_precision("auto", gpu)[0] == "fp32"
    assert engine.choose_precision("bf16", cpu) == ("bf16", "asked for")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"strength": 1.5}, UsageError),
        ({"strength": float("nan")}, UsageError),
        ({"tile": 0}, UsageError),
        ({"precision": "int8"}, UsageError),
        ({"device": "toaster"}, UsageError),
        ({"device": "mps"}, UsageError),
        ({"segment": -1}, UsageError),
        ({"warmup": -1}, UsageError),
        ({"device": "cuda:99"}, DeviceError),
    ],
)
def test_bad_arguments(
    small_weights: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Deblurrer(str(small_weights), **arguments)


def test_stepping_by_hand_equals_video(small_weights: Path) -> None:
    """The interface of hosts gives the samples that arrays get."""
    deblurrer = Deblurrer(str(small_weights), device="cpu", segment=4, warmup=2)
    frames = clip(11, 20, 24)
    fmt = engine.array_format(frames[0])
    cuts = {6}
    expected = np.stack(list(deblurrer.video(frames, cuts)))

    def ready(i: int) -> Prepared:
        return deblurrer.prepare([frames[i][..., c] for c in range(3)], fmt)

    for n in reversed(range(11)):
        state = None
        result = None
        for i in range(deblurrer.plan.start(n, cuts.__contains__), n + 1):
            window = deblurrer.plan.window(i, 11, cuts.__contains__)
            result, state = deblurrer.step([ready(j) for j in window], state)
        assert result is not None
        assert np.array_equal(np.stack(result.planes, axis=-1), expected[n])


def test_video_reads_no_further_than_it_must(small_weights: Path) -> None:
    """The first frame comes out after look-ahead + 1 frames went in: usable on a live source."""
    deblurrer = Deblurrer(str(small_weights), device="cpu")
    asked = 0

    def source() -> Iterator[NDArray[Any]]:
        nonlocal asked
        for frame in clip(10, 16, 16):
            asked += 1
            yield frame

    next(deblurrer.video(source()))
    assert asked == deblurrer.spec.look_ahead + 1


def test_the_thread_count_does_not_change_the_result(small_weights: Path) -> None:
    frames = clip(3, 64, 80, "float32")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(Deblurrer(str(small_weights), device="cpu"), frames))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])


def test_two_processes_agree(small_weights: Path, tmp_path: Path) -> None:
    frames = np.stack(clip(3, 40, 48))
    source = tmp_path / "in.npy"
    target = tmp_path / "out.npy"
    np.save(source, frames)
    code = (
        "import sys, numpy as np, vs_deblur\n"
        "d = vs_deblur.Deblurrer(sys.argv[1], device='cpu')\n"
        "np.save(sys.argv[3], np.stack(list(d.video(np.load(sys.argv[2])))))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(small_weights), str(source), str(target)],
        check=True,
        timeout=120,
    )
    out = run(Deblurrer(str(small_weights), device="cpu"), list(frames))
    np.testing.assert_array_equal(np.load(target), out)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_cuda_agrees_with_the_processor(small_weights: Path, precision: str) -> None:
    frames = clip(6, 64, 80, "float32")
    exact = run(Deblurrer(str(small_weights), device="cpu", precision="fp32"), frames)
    out = run(Deblurrer(str(small_weights), device="cuda", precision=precision), frames)
    bound = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.15}[precision]
    assert np.abs(out - exact).max() < bound
