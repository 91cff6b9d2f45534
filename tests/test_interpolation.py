"""Sequences from ordinary video: ``training.interpolation``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tests.test_training import write_video
from training import interpolation
from training.interpolation import Interval, exposure, load_video, scenes, sub_frame
from training.synthesis import to_linear
from training.train import Recipe, make_sampler
from vs_deblur.errors import InputError, UsageError
from vs_deblur.metrics import psnr

Picture = NDArray[np.uint8]

SHUTTER = (0.6, 1.0)


def light(frame: Picture) -> Tensor:
    return torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 255


def decibels(a: Tensor, b: Tensor) -> float:
    """PSNR away from the edges, where what moves in was on no frame."""
    return float(-10 * torch.log10((a - b)[:, 8:-8, 8:-8].square().mean()))


@pytest.fixture(scope="module")
def slow() -> list[Picture]:
    """Soft noise that moves by a pixel to the right; every fourth of these moves by four."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    wide = np.asarray(coarse.resize((96, 72), Image.Resampling.BICUBIC))
    return [np.ascontiguousarray(wide[8:56, 8 + n : 72 + n]) for n in range(9)]


def test_a_frame_between_two(slow: list[Picture]) -> None:
    first, second = slow[0], slow[4]
    between = Interval.between(first, second)
    assert between.speed == pytest.approx(4, rel=0.1)
    for n in (1, 2, 3):
        found = sub_frame(light(first), light(second), between, n / 4)
        assert decibels(found, light(slow[n])) > 33
        assert decibels((light(first) + light(second)) / 2, light(slow[n])) < 28


def test_an_exposure_is_the_mean_of_what_was_seen(slow: list[Picture]) -> None:
    """Of three frames an exposure that is nearly as long as all that was filmed."""
    frames = [slow[0], slow[4], slow[8]]
    ((same, intervals),) = scenes(frames)
    assert same == frames
    found = exposure([light(f) for f in frames], intervals, 1, 1.75)
    truth = torch.stack([light(f) for f in slow[1:8]]).mean(0)  # seven of four a frame
    ghosts = torch.stack([light(f) for f in frames]).mean(0)
    assert decibels(found, truth) > 35
    assert decibels(ghosts, truth) < 28


def test_scenes_end_at_cuts(slow: list[Picture]) -> None:
    other = [np.ascontiguousarray(255 - f[::-1]) for f in slow]
    found = list(scenes([*slow[:3], *other[:2], slow[8]]))
    assert [len(frames) for frames, _ in found] == [3, 2, 1]
    assert [len(intervals) for _, intervals in found] == [2, 1, 0]


def test_a_video_as_pairs(
    slow: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "film.mkv"
    write_video(path, slow)

    def load(linear: bool = True, reduce: int = 1, most: int = 0) -> list[NDArray[np.uint8]]:
        found = load_video(path, (1, 2), SHUTTER, reduce, most, linear, tmp_path / "kept")
        assert [p.name for p in found] == ["film/0-1", "film/0-2"]
        return [np.stack((p.blurred, p.sharp)) for p in found]

    one, two = load()
    assert one.shape == (2, 7, 48, 64, 3)
    assert two.shape == (2, 4, 48, 64, 3)
    np.testing.assert_array_equal(one[1], np.stack(slow[1:8]))  # no sharp frame is interpolated
    np.testing.assert_array_equal(two[1], np.stack(slow[1:8:2]))
    assert psnr(two[0, 1], two[1, 1]) < psnr(one[0, 2], one[1, 2])  # longer exposures
    assert load(linear=False)[1][0].mean() < two[0].mean()  # the mean of light is brighter
    small = [np.asarray(Image.fromarray(f).reduce(2)) for f in slow]
    np.testing.assert_array_equal(load(reduce=2)[0][1], np.stack(small[1:8]))
    assert len(load(most=6)[0][0]) == 4

    monkeypatch.setattr(interpolation, "optical_flow", lambda *_: pytest.fail("made again"))
    again = load()
    np.testing.assert_array_equal(again[0], one)
    np.testing.assert_array_equal(again[1], two)


def test_an_exposure_is_averaged_in_linear_light() -> None:
    frames = [np.full((24, 32, 3), value, np.uint8) for value in (40, 40, 220)]
    none = torch.zeros(2, 24, 32)
    found = exposure([to_linear(light(f)) for f in frames], [Interval(none, none)] * 2, 1, 2)
    dark, bright = (float(to_linear(torch.tensor(v / 255))) for v in (40, 220))
    # Dark until the middle, then steadily brighter.
    assert float(found.mean()) == pytest.approx(dark + (bright - dark) / 4, rel=0.02)


def test_videos_that_give_no_pairs(slow: list[Picture], tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    write_video(path, slow[:3])
    with pytest.raises(InputError, match="no scene of two exposures"):
        load_video(path, (2,), SHUTTER, 1, 0, True, tmp_path / "kept")
    with pytest.raises(InputError, match="no such video"):
        load_video(tmp_path / "gone.mkv", (2,), SHUTTER, 1, 0, True, tmp_path / "kept")
    (tmp_path / "none.mkv").write_bytes(b"no video")
    with pytest.raises(InputError, match="cannot be read"):
        load_video(tmp_path / "none.mkv", (2,), SHUTTER, 1, 0, True, tmp_path / "kept")
    assert not list(tmp_path.glob("kept/*"))


RECIPE = """
network = "strcnn_dtb_lite"
frames = 3
size = 32
real_share = 1.0

[[videos]]
file = "film.mkv"
periods = [1, 2]
shutter = [0.6, 1.0]
weight = 3.0
"""


def test_a_recipe_with_ordinary_video(slow: list[Picture], tmp_path: Path) -> None:
    write_video(tmp_path / "film.mkv", slow)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE)
    sampler = make_sampler(Recipe.load(recipe), tmp_path, tmp_path / "cache")
    assert [p.name for p in sampler.pairs] == ["film/0-1", "film/0-2"]
    assert sampler.weights.tolist() == [0.5, 0.5]
    batch = sampler.draw(0, 3)
    assert batch.sharp.shape == (4, 3, 3, 32, 32)
    assert 0 < float((batch.blurred[:, 1:-1] - batch.sharp).abs().mean()) < 0.2
    for wrong in ("shutter = [1.0, 0.5]", "periods = [0]", "reduce = 0"):
        kept = [x for x in RECIPE.splitlines() if not x.startswith(wrong.split()[0])]
        recipe.write_text("\n".join([*kept, wrong]))
        with pytest.raises(UsageError, match=r"shutter|periods"):
            Recipe.load(recipe)
