"""Weights adapted to pairs of one's own: the split, what is gained, what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from training.__main__ import main
from training.adapt import Adapted, adapt, one_by_one, patch_size, split
from training.data import PairSequence, load_pairs
from vs_deblur import weights
from vs_deblur.errors import InputError, OutputError, UsageError
from vs_deblur_models.registry import ENTRIES, build_network, config_of, save_network, shapes_of

WIDTH, HEIGHT = 96, 64
UNUSUAL = {"pyramid": "average"}  # of what leaves no trace in the shapes of weights; else: true


def pictures(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Blurred and sharp frames of a texture that moves by three pixels a frame.

    The blurred ones are brighter by 16 code values: what a network learns in a few steps.
    """
    rng = np.random.default_rng(2)
    base = np.kron(rng.random((HEIGHT // 4, WIDTH // 2, 3)), np.ones((4, 4, 1))) * 200
    sharp = [np.roll(base, 3 * n, axis=1) for n in range(frames)]
    blurred = [16 + np.mean([np.roll(s, k, axis=1) for k in (-1, 0, 1)], axis=0) for s in sharp]
    both = (np.stack(x)[:, :, :WIDTH].round().astype(np.uint8) for x in (blurred, sharp))
    return next(both), next(both)


def sequence(frames: int, name: str = "one/0") -> PairSequence:
    return PairSequence(name, *pictures(frames))


def write_pairs(folder: Path, frames: int) -> Path:
    for name, stack in zip(("blur", "sharp"), pictures(frames), strict=True):
        (folder / name).mkdir(parents=True)
        for n, picture in enumerate(stack):
            Image.fromarray(picture).save(folder / name / f"{n:06d}.png")
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network, fresh: it changes nothing yet."""
    torch.manual_seed(3)
    small = {"channels": (8, 8, 8), "feedback_channels": 4}
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_network(build_network("strcnn_dtb_lite", small), path, extra={"note": "kept"})
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "mine", 15)


def test_the_last_frames_of_long_sequences_are_held_out() -> None:
    whole = sequence(10)
    trained, held_out = split([whole], 0.2)
    np.testing.assert_array_equal(trained[0].blurred, whole.blurred[:8])
    np.testing.assert_array_equal(held_out[0].sharp, whole.sharp[8:])


def test_of_short_sequences_some_are_held_out_whole() -> None:
    trained, held_out = split([sequence(1, str(n)) for n in range(10)], 0.2)
    assert [s.name for s in held_out] == ["4", "9"]
    assert [s.name for s in trained] == ["0", "1", "2", "3", "5", "6", "7", "8"]
    trained, held_out = split([sequence(1, "a"), sequence(4, "b")], 0.2)
    assert [s.name for s in (*trained, *held_out)] == ["a", "b"]


@pytest.mark.parametrize("sequences", [[], [sequence(1)]], ids=["none", "one"])
def test_too_few_pairs_are_refused(sequences: list[PairSequence]) -> None:
    with pytest.raises(InputError, match="too few to hold some of them out; two"):
        split(sequences, 0.2)


@pytest.mark.parametrize("name", list(ENTRIES))
def test_a_network_can_be_made_again_from_its_hyper_parameters(name: str) -> None:
    entry = ENTRIES[name]
    unusual = {key: UNUSUAL.get(key, True) for key in entry.traceless}
    with torch.device("meta"):
        network = build_network(name, unusual)
        again = build_network(name, config_of(network))
    assert again.config == network.config
    assert shapes_of(again.state_dict()) == shapes_of(network.state_dict())


def test_patches_fit_pairs_and_network() -> None:
    with torch.device("meta"):
        spec = build_network("strcnn_dtb_lite").spec
    assert patch_size(spec, [sequence(5)], 128) == HEIGHT
    assert patch_size(spec, [sequence(5)], 50) == 48
    with pytest.raises(InputError, match=r"pairs of 64 pixels are too small: .* at least 256"):
        patch_size(dataclasses.replace(spec, minimum=256), [sequence(5)], 128)


def test_adapted_weights_gain_on_frames_that_were_held_out(
    begun: Path, pairs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "mine.safetensors"
    found = adapt(str(begun), pairs, tmp_path / "run", output, steps=60, rate=5e-3, size=32)
    assert found.before["mine/000000"] == pytest.approx(0.0, abs=0.01)
    assert found.gained > 0.5
    assert found.after["mine/000000"] - found.before["mine/000000"] == pytest.approx(found.gained)
    loaded = weights.load(str(output))
    assert loaded.metadata["adapted_from"] == "small"
    assert loaded.metadata["note"] == "kept"
    assert next(iter(weights.read_tensors(output)[0].values())).dtype == torch.float16
    before = output.read_bytes()
    output.unlink()
    again = adapt(str(begun), pairs, tmp_path / "run", output, steps=60, rate=5e-3, size=32)
    assert again == found  # the run had ended: nothing is trained again
    assert output.read_bytes() == before


def test_a_log_that_was_left_is_no_baseline(begun: Path, pairs: Path, tmp_path: Path) -> None:
    """Of a run that ended before its first checkpoint, with other weights perhaps."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.csv").write_text("step,mine/000000\n0,9\n")
    output = tmp_path / "mine.safetensors"
    found = adapt(str(begun), pairs, run, output, steps=60, rate=5e-3, size=32)
    assert found.step > 0
    assert found.before["mine/000000"] == pytest.approx(0.0, abs=0.01)
    assert output.exists()
    assert (run / "log-0.csv").exists()


def test_weights_that_gain_nothing_are_not_written(
    begun: Path, pairs: Path, tmp_path: Path
) -> None:
    gained = tmp_path / "gained.safetensors"  # a gain that the log rounds
    found = adapt(str(begun), pairs, tmp_path / "a", gained, steps=60, rate=5e-3, size=32)
    assert found.gained > 0.5
    arguments = ["adapt", str(gained), "--pairs", str(pairs), "--run", str(tmp_path / "run")]
    output = tmp_path / "mine.safetensors"
    short = ["-o", str(output), "--steps", "2", "--rate", "1e-12", "--size", "16"]
    result = CliRunner().invoke(main, [*arguments, *short])
    assert result.exit_code == 1
    assert f"nothing was gained: {output} is not written" in result.output
    assert not output.exists()


def test_the_command_says_what_was_gained_and_what_is_wrong(
    begun: Path, pairs: Path, tmp_path: Path
) -> None:
    run, output = str(tmp_path / "run"), str(tmp_path / "mine.safetensors")
    wanted = ["--run", run, "-o", output, "--steps", "40", "--rate", "5e-3", "--size", "32"]
    result = CliRunner().invoke(main, ["adapt", str(begun), "--pairs", str(pairs), *wanted])
    assert result.exit_code == 0, result.output
    assert "sequence from mine/000000: +0.00, +" in result.output
    assert f"{output}: weights of step " in result.output
    assert "to train on, " in result.output
    assert "swapped" not in result.output
    refused = CliRunner().invoke(main, ["adapt", "x", "--pairs", ".", "--run", run, "-o", "m.pt"])
    assert (refused.exit_code, "m.safetensors" in refused.output) == (2, True)
    for wrong, message, code in (
        (["adapt", "no-such-model", "--pairs", str(pairs)], "no-such-model", 5),
        (["adapt", str(begun), "--pairs", str(tmp_path / "none")], "none", 3),
        (["adapt", str(begun), "--pairs", str(pairs), "--hold-out", "0.5"], "other pairs", 2),
        (["adapt", str(begun), "--pairs", str(pairs), "--device", "cuda"], "CUDA", 6),
    ):
        if "cuda" in wrong and torch.cuda.is_available():
            continue
        result = CliRunner().invoke(main, [*wrong, *wanted])
        assert result.exit_code == code, result.output
        # How the pairs were understood, and what is wrong.
        *told, error = result.output.splitlines()
        assert len(told) <= 1
        assert error.startswith("Error: ")
        assert message in error


def test_a_run_is_of_its_pairs_its_weights_and_its_split(
    begun: Path, pairs: Path, tmp_path: Path
) -> None:
    """Another camera's pairs never come back with the gains of the first one's."""
    run, output = tmp_path / "run", tmp_path / "mine.safetensors"
    adapt(str(begun), pairs, run, output, steps=4, size=32)
    others = write_pairs(tmp_path / "others" / "mine", 15)
    with Image.open(others / "blur" / "000003.png") as picture:
        changed = np.array(picture)
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(others / "blur" / "000003.png")
    weights_ = tmp_path / "other.safetensors"
    save_network(weights.load(str(begun)).network, weights_, torch.float16)
    for model, folder, share, message in (
        (begun, others, 0.2, "other pairs"),
        (begun, pairs, 0.4, "other pairs"),
        (weights_, pairs, 0.2, "other weights"),
    ):
        with pytest.raises(UsageError, match=message):
            adapt(str(model), folder, run, output, steps=4, size=32, share=share)


def test_pairs_without_blur_have_no_gain_and_spoil_none(begun: Path, tmp_path: Path) -> None:
    """A tripod's photos among those held out."""
    folder = tmp_path / "pairs"
    write_pairs(folder / "a", 15)
    write_pairs(folder / "b", 15)
    for n in range(15):
        name = f"{n:06d}.png"
        (folder / "b" / "blur" / name).write_bytes((folder / "b" / "sharp" / name).read_bytes())
    output = tmp_path / "mine.safetensors"
    found = adapt(str(begun), folder, tmp_path / "run", output, steps=60, rate=5e-3, size=32)
    assert list(found.before) == ["a/000000"]
    assert found.gained > 0.5
    for n in range(15):
        name = f"{n:06d}.png"
        (folder / "a" / "blur" / name).write_bytes((folder / "a" / "sharp" / name).read_bytes())
    with pytest.raises(InputError, match="not blurred at all"):
        adapt(str(begun), folder, tmp_path / "second", output, steps=4, size=32)


def test_photos_are_split_one_by_one_whatever_their_sizes(tmp_path: Path) -> None:
    """Consecutive numbers of a camera's photos say nothing; some are upright."""
    folder = write_pairs(tmp_path / "photos", 12)
    for name in ("blur", "sharp"):
        path = folder / name / "000004.png"
        with Image.open(path) as picture:
            picture.transpose(Image.Transpose.ROTATE_90).save(path)
    found = load_pairs(folder)
    assert [len(s) for s in found] == [4, 1, 7]
    photos = one_by_one(found)
    trained, held_out = split(photos, 0.25)
    assert len(photos) == len({s.name for s in photos}) == 12
    assert (len(trained), len(held_out)) == (9, 3)


def test_an_output_that_cannot_be_is_told_before_the_training(
    begun: Path, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="no such folder"):
        adapt(str(begun), pairs, tmp_path / "run", tmp_path / "none" / "mine.safetensors")
    assert not (tmp_path / "run").exists()


def test_pairs_the_wrong_way_round_are_told(begun: Path, pairs: Path, tmp_path: Path) -> None:
    """A network that learns to blur gains on them, and harms what it is for."""
    swapped = tmp_path / "pairs"
    shutil.copytree(pairs / "blur", swapped / "sharp")
    shutil.copytree(pairs / "sharp", swapped / "blur")
    said: list[str] = []
    output = tmp_path / "mine.safetensors"
    adapt(str(begun), swapped, tmp_path / "run", output, steps=2, size=16, say=said.append)
    assert any("are the folders swapped?" in line for line in said)
    assert Adapted(3, {"a": -0.5}, {"a": -0.2}).harms
    assert not Adapted(3, {"a": -0.5}, {"a": 0.2}).harms


def test_photos_for_a_network_for_video_are_told(begun: Path, pairs: Path, tmp_path: Path) -> None:
    """Numbers that are not consecutive: each pair by itself."""
    apart = tmp_path / "pairs"
    for side in ("blur", "sharp"):
        (apart / side).mkdir(parents=True)
        for n, path in enumerate(sorted((pairs / side).iterdir())[:6]):
            shutil.copy(path, apart / side / f"{7 * n:06d}{path.suffix}")
    said: list[str] = []
    output = tmp_path / "mine.safetensors"
    adapt(str(begun), apart, tmp_path / "run", output, steps=2, size=16, say=said.append)
    assert said[0] == "6 pairs, 6 sequences: 5 to train on, 1 held out"
    assert "if they are photos: adapt photo_lite" in said[1]
