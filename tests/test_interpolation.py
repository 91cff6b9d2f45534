"""Sequences from ordinary video: ``training.interpolation``."""

from __future__ import annotations

import csv
import math
import os
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks import responses
from tests.test_training import write_video
from training import interpolation
from training.interpolation import (
    Averaging,
    Interval,
    exposure,
    is_cut,
    load_video,
    sub_frame,
    warped,
)
from training.synthesis import to_encoded, to_linear
from training.train import Recipe, make_sampler
from vs_deblur.engine import Deblurrer
from vs_deblur.errors import InputError, UsageError
from vs_deblur.metrics import psnr

Picture = NDArray[np.uint8]

HALF = Averaging((1, 2), (0.6, 1.0))


def light(frame: Picture) -> Tensor:
    return torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 255


def decibels(a: Tensor, b: Tensor) -> float:
    """PSNR away from the edges, where what moves in was on no frame."""
    return float(-10 * torch.log10((a - b)[:, 8:-8, 8:-8].square().mean()))


def moving(count: int) -> list[Picture]:
    """Soft noise that moves by a pixel to the right; every fourth of these moves by four."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    wide = np.asarray(coarse.resize((96, 72), Image.Resampling.BICUBIC))
    return [np.ascontiguousarray(wide[8:56, 8 + n : 72 + n]) for n in range(count)]


@pytest.fixture(scope="module")
def slow() -> list[Picture]:
    return moving(9)


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
    intervals = [Interval.between(*pair) for pair in pairwise(frames)]
    found = exposure([light(f) for f in frames], intervals, 1, 1.75)[0]
    truth = torch.stack([light(f) for f in slow[1:8]]).mean(0)  # seven of four a frame
    ghosts = torch.stack([light(f) for f in frames]).mean(0)
    assert decibels(found, truth) > 45
    assert decibels(ghosts, truth) < 28


def test_the_flow_at_a_time_between() -> None:
    """Equations 1 and 4 of Super SloMo, where the flow there and back do not agree."""
    slope, level = torch.linspace(0, 1, 64).expand(3, 24, 64), torch.full((3, 24, 64), 0.5)
    there, back = torch.zeros(2, 2, 24, 64)
    there[1], back[1] = 6.0, -2.0
    moved = warped(slope, there)[0, 12, 30] - slope[0, 12, 30]
    assert float(moved) == pytest.approx(6 / 63, abs=1e-4)
    time = 0.25
    first = sub_frame(slope, level, Interval(there, back), time)[0, 12, 30]
    to_first = -(1 - time) * time * 6 + time**2 * -2
    expected = (1 - time) * (float(slope[0, 12, 30]) + to_first / 63) + time * 0.5
    assert float(first) == pytest.approx(expected, abs=1e-4)
    second = sub_frame(level, slope, Interval(there, back), time)[0, 12, 30]
    to_second = (1 - time) ** 2 * 6 - time * (1 - time) * -2
    expected = (1 - time) * 0.5 + time * (float(slope[0, 12, 30]) + to_second / 63)
    assert float(second) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("columns", "speed"), [(1, 0.0), (8, 9.0)])
def test_the_speed_of_nearly_all(columns: int, speed: float) -> None:
    flow = torch.zeros(2, 24, 64)
    flow[0, :, :columns] = 9
    assert Interval(flow, -flow).speed == speed


def test_exposures_are_drawn_for_each_period_and_video() -> None:
    drawn = {HALF.length(v, n) / n for v in ("a.mp4", "b.mp4") for n in (1, 2, 3, 4)}
    assert len(drawn) > 5
    assert all(0.6 <= x <= 1 for x in drawn)


def test_fast_motion_is_seen_at_many_points() -> None:
    """A thin line that crosses the picture in an exposure leaves no row of ghosts."""
    flow = torch.zeros(2, 16, 64)
    flow[1] = 12.0
    frames = []
    for x in (10, 22, 34):
        frame = torch.zeros(3, 16, 64)
        frame[:, :, x - 1 : x + 2] = 1.0
        frames.append(frame)
    found = exposure(frames, [Interval(flow, -flow)] * 2, 1, 2.0)[0, 0, 8, 14:31]
    assert float(found.max() - found.min()) < 0.25 * float(found.mean())


def test_where_a_scene_ends(slow: list[Picture]) -> None:
    other = np.ascontiguousarray(255 - slow[0][::-1])
    for first, second, cut in (
        (slow[0], slow[1], False),
        (slow[0], slow[4], False),
        (slow[0], other, True),
        (other, slow[8], True),
    ):
        for dark in (1, 3):
            pair = first // dark, second // dark
            assert is_cut(*pair, Interval.between(*pair)) is cut
    rng = np.random.default_rng(1)
    flat = [rng.integers(120, 130, (48, 64, 3), dtype=np.uint8) for _ in range(2)]
    assert not is_cut(flat[0], flat[1], Interval.between(*flat))  # noise is no cut


def test_a_video_as_pairs(
    slow: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "film.mkv"
    write_video(path, slow)
    kept = tmp_path / "kept"

    def load(how: Averaging = HALF) -> list[Picture]:
        found = load_video(path, how, kept)
        assert [p.name for p in found] == [f"film/0-{n}" for n in how.periods]
        return [np.stack((p.blurred, p.sharp)) for p in found]

    one, two = load()
    assert one.shape == (2, 7, 48, 64, 3)
    assert two.shape == (2, 4, 48, 64, 3)
    np.testing.assert_array_equal(one[1], np.stack(slow[1:8]))  # no sharp frame is interpolated
    np.testing.assert_array_equal(two[1], np.stack(slow[1:8:2]))
    assert psnr(two[0, 1], two[1, 1]) < psnr(one[0, 2], one[1, 2])  # longer exposures
    short, long = (replace(HALF, shutter=(x, x)) for x in (0.1, 1.0))
    assert psnr(*load(short)[1][:, 1]) > psnr(*load(long)[1][:, 1]) + 6
    small = [np.asarray(Image.fromarray(f).reduce(2)) for f in slow]
    np.testing.assert_array_equal(load(replace(HALF, reduce=2))[0][1], np.stack(small[1:8]))
    assert len(load(replace(HALF, most=6))[0][0]) == 4
    load(replace(HALF, linear=False))
    load(replace(HALF, periods=(2,)))
    folders = [x for x in kept.iterdir() if x.is_dir()]
    assert len(folders) == 7  # each for itself, and nothing half made

    with monkeypatch.context() as patch:
        patch.setattr(interpolation, "optical_flow", lambda *_: pytest.fail("made again"))
        for before, again in zip((one, two), load(), strict=True):
            np.testing.assert_array_equal(again, before)
    for file in kept.glob("*/0-1.npy"):  # damaged
        file.write_bytes(file.read_bytes()[:-50])
    np.testing.assert_array_equal(load()[0], one)
    for file in kept.glob("*/0-2.npy"):
        file.unlink()
    np.testing.assert_array_equal(load()[1], two)
    os.truncate(path, 1 << 20)  # FFmpeg does not mind
    np.testing.assert_array_equal(load()[0], one)
    write_video(path, [255 - f for f in slow])
    os.truncate(path, 1 << 20)
    assert psnr(load()[0][1, 0], one[1, 0]) < 20  # another content


def test_light_is_averaged_as_asked(tmp_path: Path) -> None:
    frames = moving(17)
    write_video(tmp_path / "film.mkv", frames[::4])

    def mean(linear: bool) -> Tensor:
        """Of an exposure of four frames, by the trapezoidal rule."""
        seen = [light(f) for f in frames[2:7]]
        seen = [to_linear(x) for x in seen] if linear else seen
        whole = (0.5 * seen[0] + seen[1] + seen[2] + seen[3] + 0.5 * seen[4]) / 4
        return to_encoded(whole) if linear else whole

    for linear in (True, False):
        how = Averaging((1,), (1.0, 1.0), linear=linear)
        (pair,) = load_video(tmp_path / "film.mkv", how, tmp_path / "kept")
        assert len(pair) == 3
        assert decibels(light(pair.blurred[0]), mean(linear)) > 50
        assert decibels(light(pair.blurred[0]), mean(not linear)) < 40


def test_averages_in_powers_of_light(tmp_path: Path) -> None:
    """A sequence for each, of the same frames; the usual one is as it is alone."""
    frames = moving(17)
    write_video(tmp_path / "film.mkv", frames[::4])
    how = Averaging((1,), (1.0, 1.0), powers=(1.0, 2.5))
    usual, steep = load_video(tmp_path / "film.mkv", how, tmp_path / "kept")
    assert (usual.name, steep.name) == ("film/0-1", "film/0-1^2.5")
    (alone,) = load_video(tmp_path / "film.mkv", replace(how, powers=(1.0,)), tmp_path / "kept")
    np.testing.assert_array_equal(usual.blurred, alone.blurred)
    np.testing.assert_array_equal(steep.sharp, usual.sharp)
    seen = [to_linear(light(f)) ** 2.5 for f in frames[2:7]]
    whole = (0.5 * seen[0] + seen[1] + seen[2] + seen[3] + 0.5 * seen[4]) / 4
    assert decibels(light(steep.blurred[0]), to_encoded(whole ** (1 / 2.5))) > 45
    assert decibels(light(usual.blurred[0]), to_encoded(whole ** (1 / 2.5))) < 40


def test_videos_that_give_no_pairs(slow: list[Picture], tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    write_video(path, slow[:3])
    (tmp_path / "none.mkv").write_bytes(b"no video")
    how, kept = Averaging((2,)), tmp_path / "kept"
    with pytest.raises(InputError, match=r"no scene of two exposures .*shorter periods"):
        load_video(path, how, kept)
    for name in ("gone.mkv", "none.mkv"):
        with pytest.raises(InputError, match=rf"cannot be read.*{name}"):
            load_video(tmp_path / name, how, kept)
    with pytest.raises(InputError, match="64x48 reduced by 9 is less than 16"):
        load_video(path, replace(how, reduce=9), kept)
    assert not [x for x in kept.iterdir() if x.suffix != ".lock"]


def test_exposures_of_a_video_with_a_cut(tmp_path: Path) -> None:
    """Frames are let go as they come; what is made of them is what the whole scene gives."""
    frames = moving(17)
    scenes = [frames, [np.ascontiguousarray(255 - f[::-1]) for f in frames[:16]]]
    write_video(tmp_path / "film.mkv", scenes[0] + scenes[1])
    how = Averaging((1, 3, 4, 7), (0.7, 1.0), linear=False)
    found = {p.name: p for p in load_video(tmp_path / "film.mkv", how, tmp_path / "kept")}
    assert list(found) == [f"film/{s}-{p}" for s in (0, 1) for p in how.periods]
    for number, scene in enumerate(scenes):
        intervals = [Interval.between(*pair) for pair in pairwise(scene)]
        for period in how.periods:
            pair = found[f"film/{number}-{period}"]
            length = how.length("film.mkv", period)
            reach = math.ceil(length / 2)
            middles = range(reach, len(scene) - reach, period)
            assert len(pair) == len(middles)
            for blurred, sharp, middle in zip(pair.blurred, pair.sharp, middles, strict=True):
                np.testing.assert_array_equal(sharp, scene[middle])
                whole = exposure([light(f) for f in scene], intervals, middle, length)[0]
                assert (light(blurred) - whole).abs().max() <= 0.51 / 255


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

[[videos]]
file = "fast.mkv"
taus = [3]
"""


def test_a_recipe_with_videos(slow: list[Picture], tmp_path: Path) -> None:
    other = [np.ascontiguousarray(255 - f[::-1]) for f in slow]
    write_video(tmp_path / "film.mkv", [*slow, *other[:5]])
    write_video(tmp_path / "fast.mkv", slow)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE)
    sampler = make_sampler(Recipe.load(recipe), tmp_path, tmp_path / "cache")
    names = {p.name: (len(p), w) for p, w in zip(sampler.pairs, sampler.weights, strict=True)}
    # Each period alike, its scenes by their frames; a quarter for the other video.
    assert names == {
        "film/0-1": (7, pytest.approx(0.75 / 2 * 7 / 10)),
        "film/1-1": (3, pytest.approx(0.75 / 2 * 3 / 10)),
        "film/0-2": (4, pytest.approx(0.75 / 2 * 4 / 6)),
        "film/1-2": (2, pytest.approx(0.75 / 2 * 2 / 6)),
        "fast": (2, pytest.approx(0.25)),
    }
    batch = sampler.draw(0, 3)
    assert batch.sharp.shape == (4, 3, 3, 32, 32)
    assert 0 < float((batch.blurred[:, 1:-1] - batch.sharp).abs().mean()) < 0.2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("shutter = [1.0, 0.5]", "shutter must be two shares"),
        ("shutter = [0.5]", "shutter must be two shares"),
        ("shutter = [0.5, 1.5]", "shutter must be two shares"),
        ("shutter = 0.7", "shutter of a video must be a list"),
        ("periods = [0]", "periods must be whole and at least 1, not 0"),
        ("periods = [1.5]", "periods must be whole and at least 1, not 1.5"),
        ("periods = 2", "periods of a video must be a list"),
        ("periods = []", "periods must not be empty"),
        ("reduce = 2.0", "reduce must be whole and at least 1, not 2.0"),
        ("reduce = [2]", "reduce of a video must be one value"),
        ("most = 1.5", "most must be whole and at least 0, not 1.5"),
        ("powers = [0.5]", "powers must be a list of numbers of 1 to 4, not [0.5]"),
        ("powers = [true]", "powers must be a list of numbers of 1 to 4, not [True]"),
        ("powers = [2.0]\nlinear = false", "powers are of linear light: linear must be true"),
        ("powers = 2.5", "powers of a video must be a list"),
        ("powers = []", "powers must be a list of numbers of 1 to 4, not []"),
        ('linear = "no"', "linear must be true or false, not 'no'"),
        ("weight = 0.0", "weight of a video must be a number above 0, not 0.0"),
        ("weight = inf", "weight of a video must be a number above 0, not inf"),
        ("file = 3", "a video must have a file"),
        ("taus = [7]", "taus or periods: a video has one of them"),
        ("taus = [4]", "taus must be odd, from 3, not 4"),
        ("frames = 3", "[[videos]] has no frames"),
    ],
)
def test_videos_that_no_run_knows_are_refused(line: str, said: str, tmp_path: Path) -> None:
    first = RECIPE.partition('\n[[videos]]\nfile = "fast')[0]
    kept = [x for x in first.splitlines() if not x.startswith(line.split()[0] + " ")]
    (tmp_path / "mine.toml").write_text("\n".join([*kept, line]))
    if "frames" in line:
        (tmp_path / "mine.toml").write_text("\n".join([*first.splitlines(), line]))
    with pytest.raises(UsageError, match=re.escape(said)):
        Recipe.load(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('file = "gone.mkv"\nperiods = [1]', "no such video"),
        ('file = "film.mkv"\nperiods = [1]\nreduce = 2', "64x48 reduced by 2 is less than a patch"),
    ],
)
def test_what_is_quick_to_check_is_checked_first(
    lines: str, said: str, slow: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "film.mkv", slow)
    first, _, _ = RECIPE.partition('\n[[videos]]\nfile = "fast')
    (tmp_path / "mine.toml").write_text(f"{first}\n[[videos]]\n{lines}\n")
    monkeypatch.setattr(interpolation, "optical_flow", lambda *_: pytest.fail("too early"))
    with pytest.raises(InputError, match=said):
        make_sampler(Recipe.load(tmp_path / "mine.toml"), tmp_path, tmp_path / "cache")


def test_runs_of_high_speed_video_are_what_they_were(tmp_path: Path) -> None:
    """Settings that came later do not tell old runs apart."""
    path = tmp_path / "old.toml"
    path.write_text('network = "strcnn_dtb_lite"\n[[videos]]\nfile = "a.mkv"\ntaus = [7]\n')
    assert Recipe.load(path).digest() == "ed884bf873ed95f7"


def test_the_gain_for_each_response(tmp_path: Path) -> None:
    """Each sequence of each averaging has its row, and the gain is that of the frames it names."""
    clip, cache, output = tmp_path / "film.mkv", tmp_path / "kept", tmp_path / "new" / "r.csv"
    write_video(clip, moving(25)[::3])
    light = (("1", ""), ("3", "^3"))
    given = ["--period", "1", "--period", "2", "--reduce", "1", "--frames", "2"]
    given += ["--averaged", "encoded", "--averaged", "1", "--averaged", "3.0", "--averaged", "3"]
    given += ["--cache", str(cache), "--device", "cpu"]
    result = CliRunner().invoke(responses.main, [str(clip), *given, "-o", str(output)])
    assert result.exit_code == 0, result.output
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["sequence"], r["averaged"]) for r in rows] == [
        *[(f"film/0-{period}", "encoded") for period in (1, 2)],
        *[(f"film/0-{period}{mark}", how) for period in (1, 2) for how, mark in light],
    ]
    for how, made in (
        ("encoded", Averaging((1, 2), most=60, linear=False)),
        ("3", Averaging((1, 2), most=60, powers=(1.0, 3.0))),
    ):
        gains = []
        for pair in load_video(clip, made, cache):  # kept: what was measured
            if how == "3" and not pair.name.endswith("^3"):
                continue
            found = list(Deblurrer(device="cpu").video(list(pair.blurred[:2])))
            before = [psnr(b, s) for b, s in zip(pair.blurred, pair.sharp, strict=True)]
            after = [psnr(x, s) for x, s in zip(found, pair.sharp, strict=False)]
            gains.append(np.mean(np.subtract(after, before[:2])))
        assert [float(r["gain_db"]) for r in rows if r["averaged"] == how] == pytest.approx(
            gains, abs=0.006
        )
        mean = f"{how}: mean {np.mean(gains):+.2f} dB, least {min(gains):+.2f} dB"
        assert mean in result.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--averaged", "light"], "neither 'encoded' nor a power of 1 to 4"),
        (["--averaged", "5"], "neither 'encoded' nor a power of 1 to 4"),
        (["--frames", "0"], "not in the range x>=1"),
        (["--model", "auto", "--model", "of/another/auto"], "cannot be told apart"),
    ],
)
def test_what_cannot_be_compared_is_said_first(given: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "film.mkv").touch()
    result = CliRunner().invoke(responses.main, [str(tmp_path / "film.mkv"), *given])
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
