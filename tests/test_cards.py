"""What is published with weights: manifest entry, card, pictures of failures."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow

from benchmarks.temporal import Source, flicker
from tests.moving import slid, write_pairs
from tests.small import SMALL_LITE, scramble
from training import card, failures
from training.card import Findings, measured, refresh
from training.failures import CASES, Case, Shown, sheet, show
from training.publish import Finished, damp, finished, how_made, mean_of, publish
from training.train import Recipe, weights_at
from vs_deblur.engine import Deblurrer
from vs_deblur.errors import InputError, UsageError
from vs_deblur.metrics import psnr
from vs_deblur.sequences import pair_folders, read_image
from vs_deblur.weights import sha256_of, shipped
from vs_deblur_models.registry import build_network, save_network

Image = NDArray[np.uint8]
ROOT = Path(__file__).parent.parent
RECIPE = Recipe(
    network="strcnn_dtb_lite",
    config=SMALL_LITE,
    validation=("val", "val/seen"),
    same_scene=("val/seen",),
    attribution="noise that moves",
    begins_with="start.toml",
)


def plain(frames: int = failures.FRAMES) -> Case:
    """Noise that moves, instead of a scene that takes seconds to draw."""
    sharp = [np.tile(f, (4, 4, 1)) for f in slid(frames, 1, 0)]
    return Case("Noise", "It moves.", [(np.roll(f, 1, 1), f) for f in sharp], (20, 10))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "CASES", (plain,))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Validation pairs: a sequence of four frames, one of three, and a picture."""
    write_pairs(tmp_path / "data" / "val" / "four", 4)
    write_pairs(tmp_path / "data" / "val" / "seen", 3)
    write_pairs(tmp_path / "data" / "val" / "single", 1)
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path: Path) -> list[Path]:
    """Weights of two steps of a run."""
    found = [weights_at(tmp_path / "run", step) for step in (200, 400)]
    for seed, path in enumerate(found):
        path.parent.mkdir(parents=True, exist_ok=True)
        network = scramble(build_network("strcnn_dtb_lite", SMALL_LITE), seed)
        save_network(network, path)
    return found


def published(run: list[Path], data: Path, root: Path, **changes: Any) -> Path:
    scenes = changes.pop("scenes", ())
    recipe = replace(RECIPE, validation=("val",), same_scene=scenes, **changes)
    (root / "models" / "vs_deblur_models" / "weights").mkdir(parents=True, exist_ok=True)
    found = Finished(tuple(run), "0123456789abcdef", is_chosen=len(run) > 1)
    return publish(recipe, Path("recipes/small.toml"), found, data, root)


def write_checkpoint(folder: Path, **kept: Any) -> None:
    """A run's, at step 400; publishing takes its weights from other files."""
    states: dict[str, Any] = {"network": {}, "average": {}, "optimiser": {}}
    torch.save({"step": 400, **states, **kept}, folder / "checkpoint.pt")


def table(text: str, name: str) -> list[list[str]]:
    """The rows of a card's tables that are of a sequence, the name left out."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:]] for line in lines if line[0].strip() == name]


# ----------------------------------------------------------------------------- publish and refresh


def test_what_is_published_says_how_it_was_made(
    run: list[Path], data: Path, tmp_path: Path
) -> None:
    text = published(run, data, tmp_path).read_text()
    folder = tmp_path / "models" / "vs_deblur_models" / "weights"
    (entry,) = json.loads((folder / "manifest.json").read_text())["models"]
    how = (
        "begun with the weights of `start.toml` (sha256 0123456789ab); mean of the weights at "
        "steps 200, 400, chosen on the validation sequences"
    )
    assert entry["made"] == how
    assert f"| recipe | `training/recipes/small.toml`, {how} |" in text
    assert entry["sha256"] == sha256_of(folder / entry["file"])
    assert entry["sha256"] in text
    gains, harm = table(text, "four")
    assert entry["gain_db"]["four"] == pytest.approx(float(gains[2]), abs=0.006)
    assert len(harm) == 3
    assert table(text, "single")[1][:2] == ["–", "–"]
    # A clip of one frame has nothing to remember.
    assert table(text, "single")[0][5] == table(text, "single")[0][2]
    assert gains[5] != gains[2]
    assert "![what goes in, what comes out, sharp](strcnn_dtb_lite-failures.png)" in text
    assert (tmp_path / "models" / "cards" / "strcnn_dtb_lite-failures.png").stat().st_size > 1000
    # The last step of a run is nothing to be told.
    recipe = replace(RECIPE, begins_with="")
    assert how_made(recipe, Finished((run[1],))) == ""
    # A recipe need not ask for the weights that a run was begun with.
    begun = Finished((run[1],), "0123456789abcdef", processes=2, changed_at=(300,))
    assert how_made(recipe, begun) == (
        "begun with the weights (sha256 0123456789ab); trained by 2 processes, each with the "
        "recipe's batch; with other settings up to step 300"
    )


def test_same_scene_must_name_what_is_measured(run: list[Path], data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="same_scene names no validation sequence: fuor"):
        published(run[:1], data, tmp_path, scenes=("val/fuor",))


def test_a_step_that_was_chosen_is_told(run: list[Path], tmp_path: Path) -> None:
    """Any but the last: the sequences that say how good it is chose it."""
    folder = run[0].parent.parent
    recipe = replace(RECIPE, begins_with="")
    with pytest.raises(InputError, match="no run has a checkpoint here"):
        finished(recipe, folder)
    write_checkpoint(folder, recipe=recipe.digest(), begun_with="ab", changed_at=[100])
    assert finished(recipe, folder) == Finished((run[1],), "ab", changed_at=(100,))
    with pytest.raises(UsageError, match="another recipe"):
        finished(replace(recipe, steps=9), folder)
    other = finished(replace(recipe, steps=9), folder, allow_changes=True)
    assert other.changed_at == (100, 400)
    assert finished(recipe, folder, (400,)) == finished(recipe, folder)
    chosen = finished(recipe, folder, (200,))
    assert "the weights at step 200, chosen on the validation sequences" in how_made(recipe, chosen)
    with pytest.raises(InputError, match="no weights of this step"):
        finished(recipe, folder, (300,))


def test_feedback_can_be_damped(run: list[Path], data: Path, tmp_path: Path) -> None:
    """A frame whose memory is empty is as it was; the following ones differ."""
    network, damped = mean_of(run[:1]).eval(), mean_of(run[:1]).eval()
    damp(damped, 0.5)
    window = torch.rand(1, 9, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (first, state), (same, _) = network.step(window, None), damped.step(window, None)
        (second, _), (other, _) = network.step(window, state), damped.step(window, state)
        halved, _ = network.step(window, (state[0] / 2, state[1]))
    assert torch.equal(first, same)
    assert not torch.allclose(second, other, atol=1e-4)
    torch.testing.assert_close(other, halved, atol=1e-5, rtol=0)
    found = Finished((run[1],), feedback=0.5)
    assert how_made(replace(RECIPE, begins_with=""), found) == "feedback times 0.5"
    with pytest.raises(UsageError, match="photo_lite has no feedback"):
        damp(build_network("photo_lite"), 0.5)


def test_weights_of_another_run_are_not_published(
    run: list[Path], data: Path, tmp_path: Path
) -> None:
    """Card and manifest would name a recipe and data that they are not of."""
    folder = run[0].parent.parent
    write_checkpoint(folder, recipe="of another")
    with pytest.raises(UsageError, match="another recipe"):
        finished(RECIPE, folder)
    assert finished(RECIPE, folder, allow_changes=True).weights == (run[1],)
    with pytest.raises(UsageError, match="these weights are of strcnn_dtb_lite"):
        published(run, data, tmp_path, network="photo_lite", config={})
    assert not list((tmp_path / "models").rglob("*.safetensors"))


def test_a_card_is_written_anew_from_what_ships(
    run: list[Path], data: Path, tmp_path: Path
) -> None:
    first = published(run, data, tmp_path)
    pictures = first.with_name("strcnn_dtb_lite-failures.png")
    before = first.read_text(), pictures.read_bytes()
    weights = tmp_path / "models" / "vs_deblur_models" / "weights"
    files = {p.name: p.read_bytes() for p in weights.iterdir()}
    shutil.rmtree(first.parent)
    shutil.rmtree(run[0].parent)
    # The recipe may have gone on: what is known of the run is in the manifest.
    recipe = replace(RECIPE, validation=("val",), same_scene=(), begins_with="another.toml")
    again = refresh(recipe, Path("anywhere/small.toml"), data, tmp_path)
    assert (again.read_text(), pictures.read_bytes()) == before
    assert {p.name: p.read_bytes() for p in weights.iterdir()} == files


def test_what_is_not_what_ships_is_refused(run: list[Path], data: Path, tmp_path: Path) -> None:
    published(run, data, tmp_path)
    with pytest.raises(ValueError, match=r"nothing that ships is of other\.toml"):
        refresh(RECIPE, Path("other.toml"), data, tmp_path)
    weights = tmp_path / "models" / "vs_deblur_models" / "weights" / "strcnn_dtb_lite.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(ValueError, match="not the file"):
        refresh(RECIPE, Path("small.toml"), data, tmp_path)


def test_scenes_that_training_saw_are_marked(run: list[Path], data: Path, tmp_path: Path) -> None:
    text = published(run, data, tmp_path).read_text()
    assert "shows a scene" not in text
    recipe = replace(RECIPE, validation=("val/four", "val/seen"))
    text = refresh(recipe, Path("small.toml"), data, tmp_path).read_text()
    assert len(table(text, "seen *")) == 1
    assert "Training saw none of these frames. * shows a scene" in text


# ------------------------------------------------------------------------------------- the figures


def test_flicker_and_sharp_frames(run: list[Path], data: Path) -> None:
    four, _, single = pair_folders(data / "val")
    deblurrer = Deblurrer(str(run[0]), device="cpu", precision="fp32")
    found = measured(four, deblurrer)
    blurred, sharp = (
        [read_image(path) for path in sorted((data / "val" / "four" / kind).iterdir())]
        for kind in ("blur", "sharp")
    )
    source = Source("x", blurred, sharp)
    result = list(deblurrer.video(blurred))
    expected = [flicker(frames, source).value for frames in (blurred, result)]
    assert found.flicker == pytest.approx(expected)
    kept = [psnr(a, b) for a, b in zip(deblurrer.video(sharp), sharp, strict=True)]
    assert found.kept == pytest.approx(np.mean(kept))
    assert found.figures.psnr_after == pytest.approx(
        np.mean([psnr(a, b) for a, b in zip(result, sharp, strict=True)])
    )
    assert measured(single, deblurrer).flicker is None


def test_nothing_follows_across_a_gap(run: list[Path], data: Path) -> None:
    """Frames 0 and 1, then 3: one change, not two."""
    for kind in ("blur", "sharp"):
        (data / "val" / "four" / kind / "002.png").unlink()
    deblurrer = Deblurrer(str(run[0]), device="cpu", precision="fp32")
    with_gap = measured(pair_folders(data / "val" / "four")[0], deblurrer)
    for kind in ("blur", "sharp"):
        (data / "val" / "four" / kind / "003.png").unlink()
    without = measured(pair_folders(data / "val" / "four")[0], deblurrer)
    assert with_gap.flicker is not None
    assert without.flicker is not None
    assert with_gap.flicker[0] == without.flicker[0]


def test_a_network_for_photos_has_no_flicker(data: Path, tmp_path: Path) -> None:
    network = build_network("photo_lite")  # fresh: puts out what it is given
    save_network(network, tmp_path / "photo.safetensors")
    deblurrer = Deblurrer(str(tmp_path / "photo.safetensors"), device="cpu", precision="fp32")
    rows = [measured(s, deblurrer) for s in pair_folders(data / "val")]
    assert [r.flicker for r in rows] == [None] * 3
    assert [r.kept for r in rows] == [math.inf] * 3
    entry = {"name": "x", "recipe": "x.toml", "sha256": "0", "training_data": "none"}
    entry["licence"] = "CC0-1.0"
    findings = Findings(rows, [show(deblurrer, plain())])
    text = card.write_card(entry, RECIPE, network, findings, tmp_path).read_text()
    assert table(text, "four")[1] == ["∞"]
    assert "Flicker" not in text
    assert "from photos" in text
    assert "| licence | CC0-1.0 |" in text
    assert "| recipe | `training/recipes/x.toml` |" in text


# ------------------------------------------------------------------------------------ the failures


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (20.0, 19.8, "20.0 dB become 19.8: worse than it was."),
        (20.0, 20.2, "20.0 dB become 20.2: as good as nothing."),
        (20.0, 22.0, "20.0 dB become 22.0, which is far from sharp."),
        (30.0, 33.0, "30.0 dB become 33.0."),
    ],
)
def test_sentences_say_what_was_measured(before: float, after: float, words: str) -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    shown = Shown(plain(), black, black, black, before, after)
    assert shown.sentence == f"**Noise.** It moves. {words}"


def test_what_is_shown_is_what_was_measured(run: list[Path], tmp_path: Path) -> None:
    deblurrer = Deblurrer(str(run[0]), device="cpu", precision="fp32")
    case = plain()
    shown = show(deblurrer, case)
    assert shown.before == psnr(shown.given, shown.sharp)
    assert shown.after == psnr(shown.result, shown.sharp)
    given, sharp = case.frames[3]
    assert np.array_equal(shown.given, given[20:160, 10:250])
    assert np.array_equal(shown.sharp, sharp[20:160, 10:250])
    results = list(deblurrer.video([frame for frame, _ in case.frames]))
    assert np.array_equal(shown.result, results[3][20:160, 10:250])
    sheet([shown, shown], tmp_path / "a.png")
    sheet([shown, shown], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    page = read_image(tmp_path / "a.png").astype(int)
    for i, picture in enumerate((shown.given, shown.result, shown.sharp)):
        at = page[17 : 17 + 140, 4 + 244 * i : 244 + 244 * i]
        assert abs(at - picture).mean() < 12  # a palette of 256 colours


@cache
def case_of(name: str) -> Case:
    return next(c for c in CASES if c.__name__ == name)()


def shown_part(case: Case) -> tuple[NDArray[Any], NDArray[Any]]:
    top, left = case.corner
    given, sharp = (x[top : top + 140, left : left + 240].astype(np.int64) for x in case.frames[3])
    return given, sharp


def number(case: Case) -> int:
    """The first number of what is said of the cause."""
    return next(int(word) for word in case.cause.split() if word.isdigit())


@pytest.mark.parametrize("name", [c.__name__ for c in CASES])
def test_cases_are_pairs_that_fit_the_sheet(name: str) -> None:
    case = case_of(name)
    assert len(case.frames) == failures.FRAMES
    given, sharp = shown_part(case)
    assert given.shape == sharp.shape == (140, 240, 3)
    assert all(b.dtype == s.dtype == np.uint8 for b, s in case.frames)
    assert 12 < psnr(given.astype(np.uint8), sharp.astype(np.uint8)) < 28


def test_a_long_blur_is_long() -> None:
    assert 38 <= number(case_of("long_blur")) <= 44
    given, sharp = shown_part(case_of("long_blur"))
    assert np.abs(np.diff(given, axis=1)).mean() < 0.4 * np.abs(np.diff(sharp, axis=1)).mean()


def test_only_the_foreground_is_fast() -> None:
    case = case_of("fast_foreground")
    assert 25 <= number(case) <= 40
    given, sharp = shown_part(case)
    changed = np.abs(given - sharp).max(axis=2) > 3
    assert changed.mean() < 0.5
    assert changed[30:110, 66:170].mean() > 0.7
    assert not changed[:, :10].any()


def test_highlights_are_cut_off() -> None:
    given, sharp = shown_part(case_of("highlights"))
    white, should = ((x == 255).all(axis=2).mean() for x in (given, sharp))
    assert white > 2 * should > 0
    assert sharp.mean() < 80


def test_the_dark_is_noisy() -> None:
    case = case_of("dark_noise")
    given, sharp = shown_part(case)
    assert sharp.mean() < 60
    # Differences of neighbours are noise of twice the variance, where there is little detail.
    noise = np.median(np.abs(np.diff(given, axis=1))) / 0.6745 / 2**0.5
    assert noise == pytest.approx(number(case), rel=0.4)


def test_nothing_moves_out_of_focus() -> None:
    case = case_of("defocus")
    assert all(np.array_equal(b, case.frames[0][0]) for b, _ in case.frames)
    assert number(case) == 9
    given, sharp = shown_part(case)
    assert abs(given.mean() - sharp.mean()) < 8
    assert np.abs(np.diff(given, axis=0)).mean() < 0.4 * np.abs(np.diff(sharp, axis=0)).mean()


# ------------------------------------------------------------------------------------- what ships


def test_every_shipped_model_has_its_card() -> None:
    for name, entry in shipped().items():
        page = ROOT / "models" / "cards" / f"{name}.md"
        text = page.read_text(encoding="utf-8")
        assert entry.sha256 in text
        assert entry.made in text
        pictures = page.with_name(f"{name}-failures.png")
        assert f"({pictures.name})" in text
        assert 20_000 < pictures.stat().st_size < 400_000
        with Pillow.open(pictures) as image:
            assert image.width == 736
        for sequence in entry.gain_db:
            assert len(table(text, sequence)) == 2
