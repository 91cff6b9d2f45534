"""The engine on pictures: shapes and types, alpha, tiles that are blended, memory."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.small import save_small, scramble
from vs_deblur.engine import Deblurrer, Precision
from vs_deblur.errors import DeviceError, InputError, WeightsError
from vs_deblur.hosts.photo import fill
from vs_deblur.tiling import least_patch, patches, round_up
from vs_deblur.weights import shipped
from vs_deblur_models.registry import build_network, save_network

NETWORKS: dict[str, dict[str, Any]] = {
    "mscnn": {"scales": 2, "blocks": 1, "channels": 4},
    "srn": {"colour": True, "lstm": True},
    "dmphn": {"levels": 4},
    "photo_lite": {"channels": (4, 6, 8), "encoder_blocks": (1, 1, 1), "decoder_blocks": (1, 1)},
}

OUTPUT = {  # the layer that puts out pixels
    "mscnn": "networks.0.2",
    "srn": "output",
    "dmphn": "stacks.0.decoders.0.8",
    "photo_lite": "output",
}


def save_calm(name: str, path: Path, scale: float | None = None) -> Path:
    """Weights of a photo network whose output is near the middle of the range, where nothing is
    clipped: the kernels of its output are made so much smaller.
    """
    if scale is None:
        scale = 0.3 if name == "mscnn" else 0.05
    network = scramble(build_network(name, NETWORKS[name]))
    with torch.no_grad():
        network.get_parameter(f"{OUTPUT[name]}.weight").mul_(scale)
        if name == "srn":  # the others add their result to the picture, or to 0.5
            network.get_parameter("output.bias").fill_(0.5)
    save_network(network, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A weights file for each photo network, and for a small video network."""
    folder = tmp_path_factory.mktemp("photo")
    found = {"video": save_small(folder / "video.safetensors")}
    return found | {name: save_calm(name, folder / f"{name}.safetensors") for name in NETWORKS}


def picture(height: int, width: int, dtype: str, channels: int = 3) -> NDArray[Any]:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:height, :width] / 9.0
    smooth = 0.5 + 0.3 * np.sin(x[..., None] + np.arange(channels)) * np.cos(y[..., None])
    smooth = smooth + rng.normal(0, 0.02, smooth.shape)
    if dtype != "float32":
        smooth = (smooth.clip(0, 1) * np.iinfo(dtype).max).round()
    found: NDArray[Any] = smooth.astype(dtype)
    return found


def photographer(path: Path, **options: Any) -> Deblurrer:
    return Deblurrer(str(path), device="cpu", precision="fp32", kind="photo", **options)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("name", [*NETWORKS, "video"])
def test_shape_type_and_alpha_are_kept(
    weights: dict[str, Path], name: str, dtype: str, channels: int
) -> None:
    engine = photographer(weights[name])
    for height, width in ((1, 1), (21, 37)):
        before = picture(height, width, dtype, channels)
        kept = before.copy()
        out = engine.photo(before)
        assert (out.shape, out.dtype) == (before.shape, before.dtype)
        assert np.array_equal(before, kept)
        assert np.array_equal(out[..., 3:], before[..., 3:])
        assert not np.array_equal(out[..., :3], before[..., :3])


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_picture_is_what_the_network_makes_of_it(weights: dict[str, Path], name: str) -> None:
    engine = photographer(weights[name])
    before = picture(32, 48, "float32").clip(0, 1)
    x = torch.from_numpy(before).permute(2, 0, 1)[None]
    expected = engine.network(x)[0].permute(1, 2, 0).clamp(0, 1).numpy()
    assert np.abs(engine.photo(before) - expected).max() < 1e-6


def test_a_video_network_sees_a_clip_that_stands_still(weights: dict[str, Path]) -> None:
    engine = photographer(weights["video"])
    before = picture(33, 50, "uint8")
    (as_clip,) = Deblurrer(str(weights["video"]), device="cpu", precision="fp32").video([before])
    assert np.array_equal(engine.photo(before), as_clip)
    of_video = Deblurrer(str(weights["video"]), device="cpu", precision="fp32")
    assert np.array_equal(of_video.photo(before), as_clip)


def test_strength(weights: dict[str, Path]) -> None:
    before = picture(20, 20, "uint16", 4)
    assert np.array_equal(photographer(weights["srn"], strength=0.0).photo(before), before)
    half, whole = (photographer(weights["srn"], strength=s).photo(before) for s in (0.5, 1.0))
    mean = (before.astype(float) + whole) / 2
    assert np.abs(half - mean).max() <= 1


def test_values_beyond_the_range_and_big_endian_come_back(weights: dict[str, Path]) -> None:
    before = picture(16, 16, "float32")
    before[3, 4] = (1.7, -0.4, 0.5)
    out = photographer(weights["srn"]).photo(before)
    inside = photographer(weights["srn"]).photo(before.clip(0, 1))
    assert np.allclose(out[3, 4] - before[3, 4], (inside - before.clip(0, 1))[3, 4], atol=1e-6)
    swapped = photographer(weights["srn"]).photo(before.astype(">f4"))
    assert np.array_equal(swapped, out)


def test_values_that_are_no_numbers_end_as_numbers(
    weights: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    before = picture(16, 16, "float32")
    before[2, 2, 0] = np.nan
    with caplog.at_level(logging.WARNING):
        out = photographer(weights["mscnn"]).photo(before)
    assert np.isfinite(out).all()
    assert "NaN or infinite" in caplog.text


@pytest.mark.parametrize(
    "bad",
    [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3))],
)
def test_what_is_no_picture_is_refused(weights: dict[str, Path], bad: NDArray[Any]) -> None:
    with pytest.raises(InputError, match="pictures must be"):
        photographer(weights["srn"]).photo(bad)


def test_a_network_for_photos_takes_each_frame_by_itself(weights: dict[str, Path]) -> None:
    engine = Deblurrer(str(weights["dmphn"]), device="cpu", precision="fp32", warmup=3)
    frames = [picture(16, 24, "uint8"), picture(16, 24, "uint8")[::-1].copy()]
    assert (engine.plan.segment, engine.plan.warmup) == (1, 0)
    for out, frame in zip(engine.video(frames), frames, strict=True):
        assert np.array_equal(out, photographer(weights["dmphn"]).photo(frame))


def test_auto_is_another_model_for_pictures(
    weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    real = Deblurrer.__init__.__globals__["load"]

    def load(model: str, kind: str) -> Any:
        asked.append((model, kind))
        return real(str(weights["srn" if kind == "photo" else "video"]), kind)

    monkeypatch.setattr("vs_deblur.engine.load", load)
    engine = Deblurrer(device="cpu", precision="fp32", strength=0.5)
    before = picture(16, 16, "uint8")
    out = engine.photo(before)
    engine.photo(before)
    assert asked == [("auto", "video"), ("auto", "photo")]
    assert np.array_equal(out, photographer(weights["srn"], strength=0.5).photo(before))


# --------------------------------------------------------------------------------- tiles


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    overlap=st.integers(1, 40),
    multiple=st.sampled_from([1, 4, 8]),
    extra=st.integers(0, 12),
)
def test_patches_cover_and_their_weights_add_up(
    height: int, width: int, overlap: int, multiple: int, extra: int
) -> None:
    height, width = height * multiple, width * multiple
    size = least_patch(overlap, multiple) + extra * multiple
    total = np.zeros((height, width))
    for p in patches(height, width, size, overlap, multiple):
        assert p.bottom - p.top <= max(round_up(size, multiple), 1) + multiple
        assert all(v % multiple == 0 for v in (p.top, p.bottom, p.left, p.right))
        total[p.top : p.bottom, p.left : p.right] += np.outer(p.rows, p.columns)
    assert np.abs(total - 1).max() < 1e-9


def test_patches_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        list(patches(100, 100, least_patch(16, 4) - 4, 16, 4))


@pytest.mark.parametrize(("name", "scale"), [("mscnn", 1.0), ("srn", 0.2), ("photo_lite", 1.0)])
def test_tiles_are_blended_without_seams(tmp_path: Path, name: str, scale: float) -> None:
    """Tiles of a network give nearly what the whole gives, and nothing jumps at their borders.

    The weights carry borders far: overlaps of 32 pixels are too small for them.
    """
    path = save_calm(name, tmp_path / f"{name}.safetensors", scale)
    engine = photographer(path)
    before = picture(64, 3 * engine._least_tile(), "float32")
    steps: list[tuple[int, int]] = []
    whole = engine.photo(before, progress=lambda *n: steps.append(n))
    assert steps == [(1, 1)]
    steps.clear()
    engine._tile = 1
    tiled = engine.photo(before, progress=lambda *n: steps.append(n))
    count = steps[0][1]
    assert count > 1
    assert steps == [(n, count) for n in range(1, count + 1)]
    assert decibels(tiled, whole) > 50
    engine.spec = replace(engine.spec, tile_overlap=32)
    assert decibels(engine.photo(before), whole) < 50


def decibels(a: NDArray[Any], b: NDArray[Any]) -> float:
    """PSNR of values 0..1."""
    return float(-10 * np.log10(np.mean((a - b) ** 2) + 1e-20))


def test_weights_of_patches_rise_and_fall_evenly() -> None:
    """No step anywhere, not even at a patch's first pixel: that is what hides the borders."""
    for p in patches(64, 400, 128, 40, 4):
        for weights, first, last in (
            (p.rows, p.top == 0, p.bottom == 64),
            (p.columns, p.left == 0, p.right == 400),
        ):
            ends = ([1.0] if first else [0.0], [1.0] if last else [0.0])
            steps = np.diff([*ends[0], *weights, *ends[1]])
            assert np.abs(steps).max() <= 1.01 / 40


def test_the_photographer_is_made_once_and_engines_are_let_go(
    weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = Deblurrer.__init__.__globals__["load"]

    def load(model: str, kind: str) -> Any:
        made.append(kind)
        return real(str(weights["photo_lite" if kind == "photo" else "video"]), kind)

    monkeypatch.setattr("vs_deblur.engine.load", load)
    engine = Deblurrer(device="cpu")
    before = picture(16, 16, "uint8")
    threads = [threading.Thread(target=engine.photo, args=(before,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(made) == ["photo", "video"]
    gc.collect()
    gc.disable()  # nothing may depend on it
    try:
        left = weakref.ref(engine.network)
        del engine, threads, thread
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [RuntimeError("cuda is a word"), MemoryError(), KeyError("x")])
def test_what_a_callback_raises_comes_out_as_it_is(
    weights: dict[str, Path], error: Exception
) -> None:
    engine = photographer(weights["srn"])

    def progress(done: int, count: int) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        engine.photo(picture(16, 16, "uint8"), progress=progress)
    assert caught.value is error
    assert engine._ceiling is None
    engine.photo(picture(16, 16, "uint8"))


def levels(samples: NDArray[Any]) -> int:
    """How many different values a plane has."""
    return len(np.unique(samples[..., 0]))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_16_bit_floats_make_no_steps(
    weights: dict[str, Path], name: str, precision: Precision
) -> None:
    """A ramp keeps its values in networks that put out whole pictures too.

    Cast to bfloat16, values from 0.5 to 1 would be one of 128.
    """
    ramp = np.linspace(0.5, 1.0, 32 * 1024) * 65535
    before = np.repeat(ramp.reshape(32, 1024, 1), 3, axis=2).round().astype(np.uint16)
    full = Deblurrer(str(weights[name]), device="cpu", precision="fp32").photo(before)
    half = Deblurrer(str(weights[name]), device="cpu", precision=precision).photo(before)
    assert levels(half) > 0.5 * levels(full) > 1000
    error = np.abs(half.astype(float) - full).mean() / 65535
    assert error < {"bf16": 0.02, "fp16": 0.0025}[precision]  # the weights amplify


def test_a_network_that_needs_the_whole_picture_says_when_it_is_cut(
    weights: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    engine = photographer(weights["dmphn"], tile=1)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            engine.photo(picture(32, 2 * engine._least_tile(), "uint8"))
    assert caplog.text.count("sees the whole picture") == 1


def test_pictures_are_cut_to_fit_the_memory(weights: dict[str, Path]) -> None:
    steps: list[tuple[int, int]] = []
    engine = photographer(weights["mscnn"], memory=30e6)
    side = 2 * engine._least_tile()
    engine.photo(picture(side, side, "uint8"), progress=lambda *n: steps.append(n))
    assert steps[-1][0] == steps[-1][1] > 1


def test_memory_that_is_given_is_what_the_network_may_take(weights: dict[str, Path]) -> None:
    """A picture that just fits is computed whole; a byte less, and it is cut."""
    spec = photographer(weights["mscnn"]).spec
    height, width = 64, 2 * least_patch(spec.tile_overlap or 0, spec.multiple_of)
    needed = height * width * spec.bytes_per_pixel
    before = picture(height, width, "uint8")
    counts: list[int] = []
    for memory in (needed, needed - 1):
        engine = photographer(weights["mscnn"], memory=memory)
        engine.photo(before, progress=lambda _, count: counts.append(count))
    assert counts[0] == 1
    assert counts[-1] > 1
    huge = torch.empty(1, 3, 4000, 6000, device="meta")
    assert photographer(weights["mscnn"], memory=9e9)._photo_budget(huge) == 9e9
    assert photographer(weights["mscnn"], memory=1e6)._photo_budget(huge) == 1e6


@pytest.mark.parametrize("machine", [1 << 30, 8 << 30, 64 << 30])
def test_by_default_a_picture_of_24_megapixels_stays_within_4_gib(
    weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch, machine: int
) -> None:
    """What its own samples take and what the network may take together."""
    monkeypatch.setattr("vs_deblur.engine.memory_budget", lambda _: min(4 << 30, machine / 4))
    engine = photographer(weights["mscnn"])
    huge = torch.empty(1, 3, 4000, 6000, device="meta")
    assert 0 < engine._photo_budget(huge) <= (3 << 30) - 60 * 24e6


def test_colours_under_alpha_0_are_taken_as_they_are(weights: dict[str, Path]) -> None:
    """As the docstring says; `vs_deblur.hosts.photo.fill` is there for those who mind."""
    engine = photographer(weights["srn"])
    before = picture(32, 48, "float32", 4)
    before[:, 24:, 3] = 0.0
    other = before.copy()
    other[:, 24:, :3] = 1.0
    assert not np.array_equal(engine.photo(before)[:, :24], engine.photo(other)[:, :24])
    visible = before[..., 3] > 0
    assert np.array_equal(fill(before[..., :3], visible), fill(other[..., :3], visible))


def test_out_of_memory_halves_the_tile(
    weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A device that takes no more than so many pixels at once."""
    engine = photographer(weights["mscnn"])
    before = picture(64, 4 * engine._least_tile(), "float32")
    expected = engine.photo(before)
    real = type(engine.network).forward
    limit = 2 * engine._least_tile()

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] > limit:
            raise torch.OutOfMemoryError("too large")
        out: torch.Tensor = real(self, x)
        return out

    monkeypatch.setattr(type(engine.network), "forward", forward)
    with caplog.at_level(logging.WARNING):
        out = engine.photo(before)
    assert "out of memory: going on with tiles" in caplog.text
    assert np.abs(out - expected).max() < 0.01
    limit = 8
    with pytest.raises(DeviceError, match="even with tiles"):
        engine.photo(before)


def test_auto_works_on_pictures_or_says_what_is_missing() -> None:
    shipped_for_photos = any(card.kind == "photo" for card in shipped().values())
    if shipped_for_photos:
        out = Deblurrer(device="cpu", kind="photo").photo(picture(16, 16, "uint8"))
        assert out.shape == (16, 16, 3)
    else:
        with pytest.raises(WeightsError, match="no photo model is shipped"):
            Deblurrer(device="cpu", kind="photo")
