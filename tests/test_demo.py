"""The demo: what it draws, what it blurs, what it leaves and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.invoke import invoke
from vs_deblur.cli import demo
from vs_deblur.cli._common import ModelSettings
from vs_deblur.demo_scene import Renderer, Scene, hand_path, render, to_linear, to_srgb
from vs_deblur.errors import OutputError
from vs_deblur.hosts.video import open_video

SMALL = Scene(width=96, height=64, frames=3, tau=5, period=8)
SETTINGS = ModelSettings(device="cpu", precision="fp32")


def test_a_blurred_frame_is_the_mean_of_its_sub_frames_in_linear_light() -> None:
    scene = replace(SMALL, noise=0.0)
    renderer = Renderer(scene)
    for n, (blurred, sharp) in enumerate(render(scene)):
        parts = [renderer.sub_frame(n * scene.period + i) for i in range(scene.tau)]
        mean = to_srgb(np.mean(parts, axis=0, dtype=np.float64).astype(np.float32))
        assert np.abs(blurred - mean).max() <= 0.51
        assert np.abs(sharp - to_srgb(parts[scene.tau // 2])).max() <= 0.51


def test_noise_has_the_strength_asked_for() -> None:
    scene = replace(SMALL, noise=2.0)
    for (noisy, sharp), (clean, same) in zip(
        render(scene), render(replace(scene, noise=0.0)), strict=True
    ):
        assert (sharp == same).all()
        inside = (clean > 12) & (clean < 243)
        difference = (noisy.astype(float) - clean)[inside]
        assert difference.std() == pytest.approx(2.0, abs=0.15)
        assert abs(difference.mean()) < 0.1


def test_the_scene_is_the_same_each_time_and_another_with_another_seed() -> None:
    once, twice = list(render(SMALL)), list(render(SMALL))
    other = list(render(replace(SMALL, seed=8)))
    for (a, b), (c, d), (e, _) in zip(once, twice, other, strict=True):
        assert (a == c).all()
        assert (b == d).all()
        assert (a != e).any()


def test_the_scene_has_detail_everywhere_and_is_blurred_by_its_motion() -> None:
    blurred, sharp = next(iter(render(Scene(frames=1))))
    grey, soft = (x.astype(float).mean(axis=2) for x in (sharp, blurred))

    def detail(image: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
        return float(np.abs(np.diff(image, axis=0)).mean() + np.abs(np.diff(image, axis=1)).mean())

    tiles = [
        detail(grey[y : y + 60, x : x + 64]) for y in range(0, 360, 60) for x in range(0, 640, 64)
    ]
    assert min(tiles) > 3
    assert detail(soft) < 0.75 * detail(grey)


def test_the_hand_moves_less_than_a_pixel_between_sub_frames() -> None:
    renderer = Renderer(Scene())
    steps = np.linalg.norm(np.diff(renderer.camera, axis=0), axis=1)
    assert 0.2 < steps.mean() < 1.0
    assert np.percentile(steps, 95) < 1.0
    path = hand_path(np.random.default_rng(0), 500, 0.7)
    speed = np.sqrt((np.diff(path, axis=0) ** 2).sum(axis=1).mean())
    assert speed == pytest.approx(0.7)


def test_the_camera_shakes_as_told() -> None:
    usual, twice, none = (Renderer(replace(SMALL, shake=s)).camera for s in (1.0, 2.0, 0.0))
    assert len(usual) == 2 * SMALL.period + SMALL.tau
    np.testing.assert_allclose(np.diff(twice, axis=0), 2 * np.diff(usual, axis=0), atol=1e-9)
    assert (none == none[0]).all()


def test_light_there_and_back() -> None:
    values = np.arange(256)
    np.testing.assert_allclose(to_srgb(to_linear(values)), values, atol=1e-3)


def test_it_leaves_clips_and_a_picture_and_tells_the_truth(tmp_path: Path) -> None:
    figures, result = demo.run(tmp_path / "new" / "folder", SMALL, SETTINGS, overwrite=False)
    folder = tmp_path / "new" / "folder"
    assert sorted(p.name for p in folder.iterdir()) == [
        "blurred.mp4",
        "comparison.png",
        "sharp.mp4",
    ]
    assert result.frames == 3
    assert "on cpu" in result.engine
    truth = np.stack([sharp for _, sharp in render(SMALL)]).astype(float)

    def decibels(name: str) -> float:
        got = np.stack(demo.decode(folder / name)).astype(float)
        return float(10 * np.log10(255**2 / np.mean((got - truth) ** 2)))

    assert figures.before == pytest.approx(decibels("blurred.mp4"), abs=0.01)
    assert figures.after == pytest.approx(decibels("sharp.mp4"), abs=0.01)
    assert figures.gain == pytest.approx(figures.after - figures.before)
    with Image.open(folder / "comparison.png") as sheet:
        assert sheet.size[0] > 3 * SMALL.width
        assert sheet.size[1] > 2 * SMALL.height
    demo.run(folder, replace(SMALL, frames=2), SETTINGS, overwrite=True)
    assert len(demo.decode(folder / "sharp.mp4")) == 2


def test_its_clip_is_as_files_from_cameras_are(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    frames = [sharp for _, sharp in render(SMALL)]
    demo.encode(path, frames)
    info = open_video(path).info
    assert (info.width, info.height, info.length) == (96, 64, 3)
    assert info.fmt.subsampling == (1, 1)
    assert info.fmt.matrix == "709"
    assert not info.fmt.full_range
    for a, b in zip(frames, demo.decode(path), strict=True):
        assert abs(a.astype(float) - b).mean() < 6  # right colours, but for 4:2:0 and H.264


def test_the_detail_is_where_most_was_gained() -> None:
    truth = np.full((60, 90, 3), 100, np.uint8)
    blurred, sharp = truth.copy(), truth.copy()
    blurred[35:45, 62:75] = 180
    sharp[5:20, 5:20] = 110
    assert demo._most_gained(blurred, sharp, truth, 20, 30)[0] in range(25, 36)
    assert demo._most_gained(blurred, sharp, truth, 20, 30)[1] in range(45, 63)


def test_the_command_prints_the_figures_and_fails_where_nothing_was_gained(tmp_path: Path) -> None:
    small = ("--size", 96, 64, "--frames", 2, "--device", "cpu", "--precision", "fp32")
    result = invoke(demo.command, "-o", tmp_path / "a", *small)
    gain = float(result.out.split("(")[-1].split(" dB")[0])
    assert result.code == (0 if gain > 0 else 1)
    for word in ("model", "on cpu", "fp32", "frames a second", "comparison.png"):
        assert word in result.out
    # Encoded a second time and otherwise as it was: no nearer to the truth, and asked for.
    assert invoke(demo.command, "-o", tmp_path / "b", *small, "--strength", 0).code == 0


def test_a_result_that_is_not_better_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "compare", lambda *_: demo.Figures(20.0, 19.9))
    result = invoke(demo.command, "-o", tmp_path, "--size", 96, 64, "--frames", 1)
    assert result.code == 1
    assert "-0.10 dB" in result.out


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        demo.run(tmp_path / "file" / "folder", SMALL, SETTINGS, overwrite=False)


@pytest.mark.parametrize("name", demo.NAMES)
def test_files_of_somebody_else_are_not_replaced(tmp_path: Path, name: str) -> None:
    """They are refused before any work; those of an earlier demo in its own folder are not."""
    small = ("--size", 96, 64, "--frames", 1, "--device", "cpu", "--precision", "fp32")
    (tmp_path / name).write_bytes(b"precious")
    result = invoke(demo.command, "-o", tmp_path, *small)
    assert result.code == 2
    assert str(tmp_path / name) in str(result.error)
    assert "--overwrite" in str(result.error)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"precious"
    assert invoke(demo.command, "-o", tmp_path, *small, "--overwrite").code in (0, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(demo.NAMES)


def test_links_in_the_places_of_its_files_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    for name in demo.NAMES:
        (tmp_path / name).symlink_to("precious")
    demo.run(tmp_path, replace(SMALL, frames=1), SETTINGS, overwrite=True)
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_its_own_folder_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("--size", 96, 64, "--frames", 1, "--device", "cpu", "--precision", "fp32")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert invoke(demo.command, *small).code in (0, 1)
    assert sorted(p.name for p in (tmp_path / demo.FOLDER).iterdir()) == sorted(demo.NAMES)
