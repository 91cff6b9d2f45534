"""``benchmarks.temporal`` on generated clips: the optical flow, the two tables, the test of p."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image as Pillow

from benchmarks import temporal
from benchmarks.temporal import Setting, Source, broken, flicker, interval, permutation_p
from tests.films import Film
from tests.moving import slid, write_pairs
from training.flow import optical_flow
from vs_deblur.engine import Deblurrer
from vs_deblur.flicker import Flicker, motion_between
from vs_deblur_models.registry import build_network, save_network

Image = NDArray[np.uint8]


@pytest.mark.parametrize(("y", "x"), [(0, 2), (-3, 1), (2, 4)])
def test_the_flow_points_to_where_things_were(y: int, x: int) -> None:
    before, guide = slid(2, y, x)
    flow = optical_flow(guide, before)
    assert np.median(flow[0]) == pytest.approx(y, abs=0.1)
    assert np.median(flow[1]) == pytest.approx(x, abs=0.1)
    motion = motion_between(guide, before, optical_flow)
    assert motion.share > 0.75
    assert motion.error < 5


def test_noise_flickers_along_an_estimated_motion_as_well() -> None:
    frames = slid(5, 1, 2)
    source = Source("x", frames, frames)
    rng = np.random.default_rng(1)
    noisy = [(f + rng.normal(0, 6, f.shape)).round().clip(0, 255).astype(np.uint8) for f in frames]
    found = flicker(noisy, source).value
    # Interpolation between pixels averages noise a little.
    assert found == pytest.approx(6 * 2**0.5, rel=0.15)
    assert flicker(frames, source).value == 0
    brighter = [f // 2 + np.uint8(20) for f in frames]
    along = flicker(brighter, source).value
    assert along is not None
    assert along < 3  # the residual is of some 60 code values, and moves with the scene


# ------------------------------------------------------------------------------------------ chance


def test_p_of_what_stands_out_and_of_what_does_not() -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(60) % 8 == 0
    values = rng.normal(0, 1, 60)
    assert permutation_p([(values, labels)]) > 0.05
    assert permutation_p([(values + 3 * labels, labels)]) < 0.001
    assert permutation_p([(values - 3 * labels, labels)]) < 0.001
    assert permutation_p([(np.full(60, 0.1), labels)]) == 1.0


def test_p_is_exact_where_all_exchanges_can_be_counted() -> None:
    """One of ten values is labelled, and it is the largest: chance does that one time in ten."""
    labels = np.arange(10) == 9
    values = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1.0, 9.0])
    assert permutation_p([(values, labels)]) == pytest.approx(0.1, abs=0.01)
    assert permutation_p([(values, np.roll(labels, -1))]) == pytest.approx(1.0, abs=0.01)


def test_chance_deals_within_clips_only() -> None:
    """A clip that changes much is no reason for its borders to stand out."""
    half = np.arange(20) < 10
    calm, wild = np.zeros(20), np.full(20, 50.0)
    few = np.arange(20) < 2
    groups = [(calm, few), (wild, half)]
    assert permutation_p(groups) == 1.0
    everything = (np.concatenate((calm, wild)), np.concatenate((few, half)))
    assert permutation_p([everything]) < 0.05


def test_the_interval_holds_the_difference_as_often_as_it_says() -> None:
    """Of two clips with levels of their own; the same difference within both."""
    rng = np.random.default_rng(7)
    held, widths = 0, []
    for _ in range(60):
        groups = []
        for level in (0.0, 5.0):
            labels = np.arange(80) % 2 == 0
            groups.append((level + rng.normal(0, 1, 80) + 0.7 * labels, labels))
        low, high = interval(groups, rounds=800)
        held += low <= 0.7 <= high
        widths.append(high - low)
    assert held >= 52  # of 60: 95 % would be 57
    # Four times the standard error of the difference of two means of 80.
    assert float(np.mean(widths)) == pytest.approx(4 * (2 / 80) ** 0.5, rel=0.1)


@pytest.mark.parametrize("labels", [np.zeros(4, bool), np.ones(4, bool)])
def test_p_needs_both_kinds(labels: NDArray[np.bool_]) -> None:
    with pytest.raises(ValueError, match="borders and elsewhere"):
        permutation_p([(np.arange(4.0), labels)])


# ----------------------------------------------------------------------------------------- borders


def test_segments_are_those_of_the_product(small_weights: Path) -> None:
    """What a border did is the difference of what the engine gives with these segments."""
    frames = slid(20, 0, 1)
    source = Source("x", frames)
    deblurrer = Deblurrer(str(small_weights), device="cpu", precision="fp32")
    (cold, warm) = broken(deblurrer, source, [Setting(4, 0), Setting(4, 4)])
    assert cold.place.tolist() == [n % 4 for n in range(4, 20)]
    # With a warm-up of four, frames 4 to 7 begin with the clip, as in the unbroken run.
    assert warm.place.tolist() == [n % 4 for n in range(8, 20)]
    floats = [f.astype(np.float32) / 255 for f in frames]
    whole, parts = (
        list(
            Deblurrer(
                str(small_weights), device="cpu", precision="fp32", segment=s, warmup=0
            ).video(floats)
        )
        for s in (0, 4)
    )
    expected = [np.mean((a - b) ** 2) for a, b in zip(parts, whole, strict=True)]
    np.testing.assert_allclose(cold.errors, expected[4:], rtol=1e-4)
    assert (cold.errors[cold.at_border] > 0).all()

    def changes(out: list[Any]) -> list[float]:
        found = Flicker()
        for after, given, motion in zip(out, floats, source.motions, strict=True):
            found.add(255 * (after - given), motion)
        return found.changes

    np.testing.assert_allclose(cold.changes, changes(parts)[3:], rtol=1e-4)
    np.testing.assert_allclose(cold.usual, changes(whole)[3:], rtol=1e-4)
    np.testing.assert_allclose(cold.more, cold.changes - cold.usual)
    # The warmer the start, the nearer.
    assert warm.errors[warm.at_border].mean() < cold.errors[cold.at_border].mean()


@pytest.mark.parametrize("text", ["8", "8:x", "1:0", "8:-1"])
def test_segments_that_there_are_not(text: str, tmp_path: Path) -> None:
    clip = Film(frames=2).write(tmp_path / "a.mkv")
    result = CliRunner().invoke(temporal.main, ["--clip", str(clip), "--segments", text])
    assert result.exit_code == 2


# ------------------------------------------------------------------------------------- the command


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_models_pairs_and_a_clip(tmp_path: Path, small_weights: Path) -> None:
    write_pairs(tmp_path / "pairs" / "one", 5)
    (tmp_path / "pairs" / "single").mkdir()
    write_pairs(tmp_path / "pairs" / "single", 1)  # nothing flickers in one frame
    clip = Film(frames=14).write(tmp_path / "clip.mkv")
    plain = tmp_path / "plain.safetensors"
    save_network(build_network("cnn"), plain)
    args = ["--data", tmp_path / "pairs", "--clip", clip, "--model", small_weights]
    args += ["--model", plain, "--frames", 12, "--segments", "4:2,4:0"]
    args += ["-o", tmp_path / "new" / "t.csv", "--plot", tmp_path / "new" / "t.png"]
    result = CliRunner().invoke(temporal.main, list(map(str, args)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = rows(tmp_path / "new" / "t.csv")
    assert [(r["model"], r["sequence"], r["frames"]) for r in found] == [
        (model, sequence, frames)
        for sequence, frames in (("one", "5"), ("clip", "12"))
        for model in ("small", "plain")
    ]
    assert found[0]["flicker_before"] == found[1]["flicker_before"] != ""
    assert found[0]["flicker_after"] != found[1]["flicker_after"]
    assert found[2]["flicker_before"] == ""
    assert float(found[2]["flicker_after"]) > 0
    # Only what has a memory can have borders.
    borders = rows(tmp_path / "new" / "t_borders.csv")
    assert [(r["model"], r["segment"], r["warmup"], r["borders"]) for r in borders] == [
        ("small", "4", "2", "2"),
        ("small", "4", "0", "2"),
    ]
    assert float(borders[0]["psnr_at_border"]) > float(borders[1]["psnr_at_border"])
    for row in borders:
        assert float(row["difference_low"]) < float(row["difference_high"])
    with Pillow.open(tmp_path / "new" / "t.png") as picture:
        assert picture.width > 800
    tables = [line for line in result.output.splitlines() if line.startswith("| ")]
    assert len(tables) == 1 + len(found) + 1 + len(borders)
    assert "–" in tables[3]


def test_asking_for_nothing_is_refused(tmp_path: Path, small_weights: Path) -> None:
    model = ["--model", str(small_weights)]
    assert CliRunner().invoke(temporal.main, model).exit_code == 2
    clip = Film(frames=4).write(tmp_path / "a.mkv")
    short = ["--clip", str(clip), "--frames", "9", "--segments", "8:8"]
    result = CliRunner().invoke(temporal.main, [*model, *short])
    assert result.exit_code == 2
    assert "longer than a segment" in result.output


def test_a_clip_that_is_shorter_than_a_segment_is_refused(
    tmp_path: Path, small_weights: Path
) -> None:
    clip = Film(frames=5).write(tmp_path / "short.mkv")
    args = ["--clip", str(clip), "--model", str(small_weights), "--segments", "4:2"]
    result = CliRunner().invoke(temporal.main, args)
    assert result.exit_code == 2
    assert "short has only 5 frames" in result.output
