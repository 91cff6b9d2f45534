"""Training: synthesis by equation 1, sampling, losses, runs that learn and resume bit for bit."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from tests.small import SMALL_LITE, scramble
from training.__main__ import main
from training.adversarial import Adversary
from training.data import (
    PairSequence,
    Sampler,
    load_high_speed,
    load_pairs,
    prepare,
    soften,
)
from training.interpolation import Averaging
from training.look import contact_sheet, plot
from training.losses import (
    LOSSES,
    charbonnier,
    log_mse,
    mean_squared_error,
    multi_scale,
    scales_of,
    weight_penalty,
)
from training.optimisers import Optimisers, orthogonalised
from training.publish import mean_of
from training.synthesis import (
    SynthesisConfig,
    laplacian_variance,
    make_sequence,
    particle_path,
    to_encoded,
    to_linear,
)
from training.table import VARIANTS, Gain, _compared, _read, as_markdown, recipe_of, table
from training.train import (
    PairSource,
    Recipe,
    Trainer,
    burnt_in,
    dead_share,
    make_sampler,
    predict,
    sampler_of,
    unroll,
    validation_gain,
    weights_at,
)
from vs_deblur.errors import EngineError, InputError, UsageError
from vs_deblur.metrics import psnr
from vs_deblur.sequences import images
from vs_deblur.weights import read_tensors, sha256_of
from vs_deblur_models.registry import build_network, from_state, save_network
from vs_deblur_models.strcnn import StrcnnDtbLite

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "training" / "recipes").glob("*.toml"))
SMALL = SynthesisConfig(size=48, frames=5, max_speed=6.0, taus=(7, 9))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Textured pictures to move about."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    for i in range(3):
        fine = rng.random((60, 80, 3))
        picture = np.kron(fine, np.ones((5, 5, 1))) * 200 + rng.random((300, 400, 3)) * 40
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{i}.png")
    (folder / "ATTRIBUTION.csv").write_text("not a picture\n")
    return images(folder)


def moving(frames: int, size: int = 64) -> PairSequence:
    rng = np.random.default_rng(2)
    base = np.kron(rng.random((size // 8, size // 4, 3)), np.ones((8, 8, 1))) * 255
    base = base[:, : 2 * size]
    sharp = [np.roll(base, 3 * n, axis=1) for n in range(frames)]
    blurred = [np.mean([np.roll(s, k, axis=1) for k in (-1, 0, 1)], axis=0) for s in sharp]
    stack = [np.stack(x)[:, :size, :size].round().astype(np.uint8) for x in (blurred, sharp)]
    return PairSequence("moving/0", *stack)


def sampler_for(pictures: list[Path], folder: Path, **changes: Any) -> Sampler:
    settings: dict[str, Any] = {
        "pairs": [moving(9)],
        "weights": [1.0],
        "synthesis": SMALL,
        "photos": pictures,
        "cache": folder,
        "count": 4,
        "real_share": 0.5,
        "still_real_share": 0.2,
        "size": 32,
        "longest": 3,
        "m": 1,
        "batch": 2,
        "seed": 11,
    }
    return Sampler(**{**settings, **changes})


def recipe_for(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "network": "strcnn_dtb_lite",
        "config": {"m": 1, **SMALL_LITE},
        "steps": 8,
        "batch": 2,
        "frames": 3,
        "size": 32,
        "loss": "charbonnier",
        "learning_rate": 3e-3,
        "warmup": 1,
        "validate_every": 4,
    }
    return Recipe(**{**settings, **changes})


def test_linear_light_and_back() -> None:
    x = torch.linspace(0, 1, 257)
    torch.testing.assert_close(to_encoded(to_linear(x)), x, atol=1e-5, rtol=0)
    assert float(to_linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-4)


def test_paths_have_unit_speed_and_start_nowhere_special() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        path = particle_path(rng, 90, 4)
        steps = np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1)
        assert path.shape == (90, 4)
        assert steps.mean() == pytest.approx(1.0)
        assert np.allclose(path[45], 0)


def test_sequences_do_not_depend_on_order(photos: list[Path]) -> None:
    first = make_sequence(SMALL, photos, seed=3, index=8)
    make_sequence(SMALL, photos, seed=3, index=1)
    again = make_sequence(SMALL, photos, seed=3, index=8)
    assert first.shape == (2, 5, 48, 48, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, make_sequence(SMALL, photos, seed=4, index=8))


def test_motion_blurs_and_stillness_does_not(photos: list[Path]) -> None:
    clean = replace(SMALL, noise=0.0, compression_share=0.0, saturation_share=0.0, frozen_share=0.0)
    still = make_sequence(replace(clean, still_share=1.0), photos, 0, 1)
    np.testing.assert_array_equal(still[0], still[1])
    blurrier = 0
    for i in range(6):
        config = replace(clean, still_share=0.0, min_speed=5.0)
        blurred, sharp = make_sequence(config, photos, 0, i)[:, 2].astype(np.float32).mean(-1)
        blurrier += laplacian_variance(blurred) < laplacian_variance(sharp)
    assert blurrier >= 5


def test_frozen_sequences_repeat_one_blurred_frame(photos: list[Path]) -> None:
    config = replace(SMALL, frozen_share=1.0, still_share=0.0, noise=0.0, compression_share=0.0)
    blurred, sharp = make_sequence(replace(config, min_speed=5.0), photos, 0, 2)
    for n in range(1, 5):
        np.testing.assert_array_equal(blurred[0], blurred[n])
        np.testing.assert_array_equal(sharp[0], sharp[n])
    assert not np.array_equal(blurred[0], sharp[0])


def test_linear_averages_are_brighter_than_encoded_ones(photos: list[Path]) -> None:
    """As on REDS: averaging in linear light brightens (Jensen), in encoded values it does not."""
    base = replace(
        SMALL,
        noise=0.0,
        compression_share=0.0,
        saturation_share=0.0,
        still_share=0.0,
        frozen_share=0.0,
        min_speed=5.0,
        layers=0,
    )
    rise = []
    for share in (1.0, 0.0):
        pairs = [
            make_sequence(replace(base, linear_share=share), photos, 1, i).astype(np.float64)
            for i in range(4)
        ]
        rise.append(np.mean([p[0].mean() - p[1].mean() for p in pairs]))
    assert rise[0] > rise[1] + 0.5


def test_runs_of_numbers_are_sequences(tmp_path: Path) -> None:
    for kind in ("blur", "sharp"):
        (tmp_path / kind).mkdir()
        for number in (1, 2, 3, 7, 8):
            Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / kind / f"{number:06d}.png")
    pairs = load_pairs(tmp_path, reduce=(1, 2))
    assert [(len(p), p.blurred.shape[1:3]) for p in pairs] == [
        (3, (6, 8)),
        (3, (3, 4)),
        (2, (6, 8)),
        (2, (3, 4)),
    ]


def test_samples_are_a_function_of_the_step(photos: list[Path], tmp_path: Path) -> None:
    one = sampler_for(photos, tmp_path / "a")
    two = sampler_for(photos, tmp_path / "b")
    prepare(sampler_for(photos, tmp_path / "b"), processes=1)
    assert len(list((tmp_path / "b").glob("*/*.npy"))) == 4
    two.draw(0, 3)
    a, b = one.draw(5, 3), two.draw(5, 3)
    assert torch.equal(a.blurred, b.blurred)
    assert torch.equal(a.sharp, b.sharp)
    assert a.blurred.shape == (2, 5, 3, 32, 32)
    assert a.sharp.shape == (2, 3, 3, 32, 32)
    assert not torch.equal(a.blurred, two.draw(6, 3).blurred)
    assert not torch.equal(a.blurred, two.draw(5, 3, rank=1).blurred)


def test_blurred_and_sharp_of_a_sample_belong_together(photos: list[Path], tmp_path: Path) -> None:
    identical = moving(9)
    identical = PairSequence("same", identical.sharp, identical.sharp)
    sampler = sampler_for(photos, tmp_path, pairs=[identical], real_share=1.0)
    for step in range(6):
        batch = sampler.draw(step, 3)
        assert torch.equal(batch.blurred[:, 1:4], batch.sharp)


def test_sharp_samples_go_in_as_they_must_come_out(photos: list[Path], tmp_path: Path) -> None:
    blurred = sampler_for(photos, tmp_path, real_share=1.0, still_real_share=0.0)
    sharp = sampler_for(photos, tmp_path, real_share=1.0, still_real_share=0.0, sharp_share=1.0)
    for step in range(3):
        assert not torch.equal(blurred.draw(step, 3).blurred[:, 1:4], blurred.draw(step, 3).sharp)
        assert torch.equal(sharp.draw(step, 3).blurred[:, 1:4], sharp.draw(step, 3).sharp)


def test_losses() -> None:
    a, b = torch.rand(2, 3, 3, 8, 8), torch.rand(2, 3, 3, 8, 8)
    mse = (a - b).square()
    assert float(mean_squared_error(a, b)) == pytest.approx(float(mse.mean()))
    assert float(charbonnier(a, b)) == pytest.approx(float((a - b).abs().mean()), abs=2e-3)
    psnrs = 10 * torch.log10(mse.mean(dim=(2, 3, 4)) + 3e-4)
    assert float(log_mse(a, b)) == pytest.approx(float(psnrs.mean()), rel=1e-5)
    for loss in LOSSES.values():
        assert float(loss(a, a)) < float(loss(a, b))
    network = StrcnnDtbLite()
    expected = sum(float(p.detach().square().sum()) for p in network.parameters() if p.ndim == 4)
    assert float(weight_penalty(network).detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_whole(path: Path) -> None:
    recipe = Recipe.load(path)
    network = build_network(recipe.network, recipe.config)
    assert network.spec.network == recipe.network
    assert recipe.loss in LOSSES
    assert recipe.rate(0) <= recipe.learning_rate
    assert recipe.rate(recipe.steps) < recipe.learning_rate
    validation = set(recipe.validation)
    assert all("/val/" in v for v in validation)
    assert not any("/val/" in p.folder for p in recipe.pairs)


def test_the_recipe_of_the_docs_is_whole(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.S)
    assert blocks
    for text in blocks:
        (tmp_path / "mine.toml").write_text(text)
        assert Recipe.load(tmp_path / "mine.toml").videos


def test_unknown_keys_of_a_recipe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('network = "strcnn_dtb_lite"\nlearning_speed = 3\n')
    with pytest.raises(UsageError, match="learning_speed"):
        Recipe.load(path)
    path.write_text('network = "strcnn_dtb_lite"\n[synthesis]\nspeed = 3\n')
    with pytest.raises(UsageError, match="speed"):
        Recipe.load(path)


@pytest.mark.parametrize(
    "line",
    [
        'schedule = "linear"',
        'precision = "fp16"',
        'loss = "l3"',
        'same_scene = ["pairs/val/x"]',
        "config = { colour = true }",
        "synthesis = { taus = [7, 8] }",
        "synthesis = { size = 63 }",
        "synthesis = { min_speed = 9, max_speed = 3 }",
        "synthesis = { still_share = 6 }",
        "pairs = [3]",
        "steps = = 3",
        "validate_every = 0",
        "real_share = 40",
        "burn_in = -5",
        "early_frames = 9",
        "learning_rate = 3",
    ],
)
def test_values_that_no_run_knows_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f'network = "strcnn_dtb_lite"\n{line}\n')
    said = {"config": "colour", "pairs": "mapping", "steps": "no recipe can"}
    name, _, value = line.partition(" = ")
    # Of the synthesis the first setting that is wrong is named.
    expected = value.split()[1].split("=")[0] if name == "synthesis" else said.get(name, name)
    with pytest.raises(UsageError, match=expected):
        Recipe.load(path)
    path.write_text('network = "strcnn_dtb_light"\n')
    with pytest.raises(UsageError, match="network must be one of"):
        Recipe.load(path)


# Sizes of the real pairs that recipes name: frames, height, width.
REAL = {"gopro_0372_720p": (40, 720, 1280), "reds_027_320x180": (60, 180, 320)}
REAL_REDS = (10, 180, 320)


def size_of(video: str) -> tuple[int, int]:
    """Height and width that the name of a clip tells."""
    found = re.search(r"_(\d+)x(\d+)_", video)
    return (int(found[2]), int(found[1])) if found else (720, 1280)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_patches_of_every_recipe_fit_its_pairs(path: Path, tmp_path: Path) -> None:
    """Of the sizes that the real pairs have, samples can be drawn and shown."""
    recipe = replace(Recipe.load(path), real_share=1.0)
    sequences = []
    for source in recipe.pairs:
        frames, height, width = REAL.get(Path(source.folder).name, REAL_REDS)
        for factor in source.reduce:
            grey = np.zeros((1, height // factor, width // factor, 3), np.uint8)
            stack = np.broadcast_to(grey, (frames, *grey.shape[1:]))
            sequences.append(PairSequence(f"{source.folder}/0/{factor}", stack, stack))
    for video in recipe.videos:
        height, width = (side // video.reduce for side in size_of(video.file))
        stack = np.broadcast_to(np.zeros((1, height, width, 3), np.uint8), (9, height, width, 3))
        sequences.append(PairSequence(video.file, stack, stack))
    if not sequences:  # of synthetic ones alone: what stands for them is as large as they are
        side, length = recipe.synthesis.size, recipe.synthesis.frames
        stack = np.zeros((length, side, side, 3), np.uint8)
        sequences.append(PairSequence("synthetic", stack, stack))
    sampler = sampler_of(recipe, sequences, [1.0] * len(sequences), [], tmp_path)
    for step in range(8):
        batch = sampler.draw(step, recipe.frames)
        assert batch.sharp.shape[1:] == (recipe.frames, 3, recipe.size, recipe.size)
    if recipe.synthetic_count:  # as drawn from synthetic sequences too
        assert recipe.synthesis.size >= recipe.size
        assert recipe.synthesis.frames >= recipe.frames + 2 * sampler.m
    contact_sheet(sampler, tmp_path / "sheet.png", count=1)


def test_pairs_that_are_smaller_than_a_patch_are_refused(
    photos: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"64x64 is less than a patch of 128 \(moving/0\)"):
        sampler_for(photos, tmp_path, size=128)


def test_other_material_is_another_cache_and_another_run(
    photos: list[Path], tmp_path: Path
) -> None:
    """Sequences of another seed, other settings or photographs are never mixed in."""
    one = sampler_for(photos, tmp_path / "cache")
    others = [
        sampler_for(photos, tmp_path / "cache", **change)
        for change in (
            {"seed": 12},
            {"synthesis": replace(SMALL, max_speed=5.0)},
            {"synthesis": replace(SMALL, powers=(2.0,))},
            {"synthesis": replace(SMALL, powers=(1.0, 2.0))},
            {"photos": photos[:2]},
        )
    ]
    assert len({s.cache for s in (one, *others)}) == 6
    assert len({s.digest for s in (one, *others)}) == 6
    shared = sampler_for(photos, tmp_path / "cache", seed=12, synthetic_seed=11)
    assert shared.cache == one.cache
    np.testing.assert_array_equal(shared.synthetic(2), one.synthetic(2))
    assert not torch.equal(shared.draw(0, 3).blurred, one.draw(0, 3).blurred)
    brighter = moving(9)
    brighter = PairSequence(brighter.name, brighter.blurred, brighter.sharp // 2)
    pairs = sampler_for(photos, tmp_path / "cache", pairs=[brighter])
    assert (pairs.cache, pairs.digest != one.digest) == (one.cache, True)
    Trainer(recipe_for(), one, tmp_path / "run", "cpu").save()
    with pytest.raises(UsageError, match="other pairs or photographs"):
        Trainer(recipe_for(), pairs, tmp_path / "run", "cpu")


def test_kept_sequences_are_found_again() -> None:
    """Their folders are named by these: what is not used leaves no mark on them."""
    assert repr(SynthesisConfig()) == (
        "SynthesisConfig(size=160, frames=8, taus=(7, 9, 11, 13, 15), max_speed=28.0,"
        " min_speed=1.5, layers=3, linear_share=0.5, still_share=0.06, frozen_share=0.06,"
        " noise=3.0, saturation_share=0.15, compression_share=0.3, min_sharpness=100.0)"
    )
    assert repr(Averaging((1,))) == (
        "Averaging(periods=(1,), shutter=(0.5, 1.0), reduce=1, most=0, linear=True)"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("powers = 2.5", "powers must be a list of numbers of 1 to 4, not 2.5"),
        ('powers = ["a"]', "powers must be a list of numbers of 1 to 4, not ['a']"),
        ("powers = []", "powers must be a list of numbers of 1 to 4, not []"),
        ("powers = [true]", "powers must be a list of numbers of 1 to 4, not [True]"),
        ("powers = [2]\nlinear_share = 0.0", "powers are of linear light"),
    ],
)
def test_powers_that_cannot_be_are_refused(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'network = "cnn"\n[synthesis]\n{line}\n')
    with pytest.raises(UsageError, match=re.escape(said)):
        Recipe.load(tmp_path / "mine.toml")


def test_powers_that_are_the_same_are_one_recipe(tmp_path: Path) -> None:
    found = set()
    for powers in ("[2, 3]", "[2.0, 3.0]", "[2.0, 2.0, 3]"):
        (tmp_path / "mine.toml").write_text(f'network = "cnn"\n[synthesis]\npowers = {powers}\n')
        found.add(Recipe.load(tmp_path / "mine.toml").digest())
    assert len(found) == 1


def test_photographs_that_cannot_be_read_are_told_before_a_run(
    photos: list[Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "photos").mkdir(parents=True)
    recipe = recipe_for(photos="photos", hold_out=0)
    with pytest.raises(InputError, match="no photographs to synthesise from"):
        make_sampler(recipe, data, tmp_path / "cache")
    shutil.copy(photos[0], data / "photos" / "0.png")
    (data / "photos" / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(InputError, match=r"this photograph cannot be read .*1\.png"):
        make_sampler(recipe, data, tmp_path / "cache")
    deep = np.zeros((64, 64), np.uint16)
    Image.fromarray(deep).save(data / "photos" / "1.png")
    with pytest.raises(InputError, match=r"more than 8 bits a sample .*1\.png"):
        make_sampler(recipe, data, tmp_path / "cache")


@pytest.mark.parametrize("live", [False, True])
def test_half_a_photograph_is_named(photos: list[Path], tmp_path: Path, live: bool) -> None:
    """Its header is whole, so that it is seen only when it is drawn."""
    half = tmp_path / "photos" / "half.png"
    half.parent.mkdir()
    half.write_bytes(photos[0].read_bytes()[: photos[0].stat().st_size // 2])
    place = torch.device("cpu") if live else None
    sampler = sampler_for([half], tmp_path / "c", pairs=[], weights=[], live=place)
    with pytest.raises(InputError, match=r"this photograph cannot be read: .*half\.png"):
        sampler.draw(0, 3)


def test_sequences_that_were_cut_short_are_made_again(photos: list[Path], tmp_path: Path) -> None:
    sampler = sampler_for(photos, tmp_path)
    whole = np.array(sampler.synthetic(0))
    for content in (b"", b"\x93NUMPY\x01\x00"):
        (sampler.cache / "000000.npy").write_bytes(content)
        np.testing.assert_array_equal(sampler.synthetic(0), whole)


def test_pairs_for_validation_are_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "pairs" / "val" / "one").mkdir(parents=True)
    for held in ("pairs/val/one", "pairs/val", "pairs/../pairs/val/one/"):
        recipe = recipe_for(pairs=(PairSource("pairs/val/one"),), validation=(held,))
        with pytest.raises(UsageError, match=r"for validation.*pairs/val/one"):
            make_sampler(recipe, tmp_path, tmp_path / "cache")


def test_a_checkpoint_of_another_recipe_is_refused(photos: list[Path], tmp_path: Path) -> None:
    sampler = sampler_for(photos, tmp_path / "cache")
    Trainer(recipe_for(), sampler, tmp_path / "run", "cpu").save()
    changed = recipe_for(learning_rate=1e-3)
    with pytest.raises(ValueError, match="another recipe"):
        Trainer(changed, sampler, tmp_path / "run", "cpu")
    # Though it may go on, it is told from one that was so from its beginning.
    trainer = Trainer(changed, sampler, tmp_path / "run", "cpu", allow_changes=True)
    assert (trainer.step, trainer.changed_at) == (0, [0])
    trainer.train_step()
    trainer.save()
    assert Trainer(changed, sampler, tmp_path / "run", "cpu").changed_at == [0]
    other = recipe_for(network="cnn", config={})
    with pytest.raises(UsageError, match="of another network"):
        Trainer(other, sampler, tmp_path / "run", "cpu", allow_changes=True)


def test_a_checkpoint_of_more_processes_is_refused(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their batches together are the run's."""
    sampler = sampler_for(photos, tmp_path / "cache")
    trainer = Trainer(recipe_for(), sampler, tmp_path / "run", "cpu")
    trainer.world = 2
    trainer.save()
    with pytest.raises(UsageError, match="of 2 processes"):
        Trainer(recipe_for(), sampler, tmp_path / "run", "cpu")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", b"{}"])
def test_a_damaged_checkpoint_is_named(photos: list[Path], tmp_path: Path, content: bytes) -> None:
    sampler = sampler_for(photos, tmp_path / "cache")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint cannot be read.*checkpoint\.pt"):
        Trainer(recipe_for(), sampler, tmp_path / "run", "cpu")
    torch.save({"step": 3}, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(InputError, match="no checkpoint of a run"):
        Trainer(recipe_for(), sampler, tmp_path / "run", "cpu")


def test_what_belongs_to_a_checkpoint_is_there_before_it(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends between two files goes on from before both, and misses nothing."""
    recipe = recipe_for(steps=4, validate_every=2)
    sampler = sampler_for(photos, tmp_path / "cache")
    trainer = Trainer(recipe, sampler, tmp_path / "run", "cpu")

    def ended(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.train._atomic_save", ended)
        with pytest.raises(KeyboardInterrupt):
            trainer.run([])
    again = Trainer(recipe, sampler, tmp_path / "run", "cpu")
    assert again.step == 0
    again.run([])
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [0, 2, 4]
    assert (tmp_path / "run" / "log-2.csv").exists()  # what the first had told
    last, _ = read_tensors(tmp_path / "run" / "strcnn_dtb_lite.safetensors")
    kept, _ = read_tensors(weights_at(tmp_path / "run", 4))
    assert all(torch.equal(last[k], kept[k]) for k in last)


def test_a_run_can_begin_with_weights(photos: list[Path], tmp_path: Path) -> None:
    sampler = sampler_for(photos, tmp_path / "cache")
    first = Trainer(recipe_for(), sampler, tmp_path / "first", "cpu")
    first.run([])
    weights = tmp_path / "first" / "strcnn_dtb_lite.safetensors"
    second = Trainer(recipe_for(seed=5), sampler, tmp_path / "second", "cpu", initial=weights)
    for key, value in first.average.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[key]), key
        assert torch.equal(value, second.average.state_dict()[key]), key
    begun, _ = read_tensors(weights_at(tmp_path / "second", 0))
    assert all(torch.equal(v, begun[k]) for k, v in first.average.state_dict().items())
    second.save()
    assert second.begun_with == sha256_of(weights)
    again = Trainer(recipe_for(seed=5), sampler, tmp_path / "second", "cpu")
    assert again.begun_with == second.begun_with
    others = tmp_path / "others.safetensors"
    save_network(second.network, others, torch.float16)
    with pytest.raises(UsageError, match="began with other weights"):
        Trainer(recipe_for(seed=5), sampler, tmp_path / "second", "cpu", initial=others)


def test_weights_to_begin_with_must_be_there_and_fit(photos: list[Path], tmp_path: Path) -> None:
    sampler = sampler_for(photos, tmp_path / "cache")
    recipe = recipe_for(begins_with="start.toml")
    with pytest.raises(UsageError, match=r"begins with the weights of start\.toml.*--initial"):
        Trainer(recipe, sampler, tmp_path / "run", "cpu")
    # A residual leaves no trace in the shapes.
    weights = tmp_path / "strcnn.safetensors"
    save_network(build_network("strcnn", {"residual": True}), weights)
    other = recipe_for(network="strcnn", config={"residual": False})
    with pytest.raises(UsageError, match=r"residual': True.*residual': False"):
        Trainer(other, sampler, tmp_path / "run", "cpu", initial=weights)
    with pytest.raises(UsageError, match="of strcnn "):
        Trainer(recipe, sampler, tmp_path / "run", "cpu", initial=weights)


def test_weights_to_begin_with_are_asked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before minutes are spent on clips."""
    monkeypatch.setattr("training.__main__.make_sampler", lambda *_, **__: pytest.fail("too early"))
    recipe = tmp_path / "second.toml"
    recipe.write_text('network = "strcnn_dtb_lite"\nbegins_with = "start.toml"\n')
    given = [str(recipe), "--data", str(tmp_path), "--run", str(tmp_path / "run")]
    result = CliRunner().invoke(main, ["train", *given])
    assert result.exit_code == 2
    assert "begins with the weights of start.toml" in result.output
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_optimiser_is_refused(photos: list[Path], tmp_path: Path) -> None:
    sampler = sampler_for(photos, tmp_path / "cache")
    Trainer(recipe_for(), sampler, tmp_path / "run", "cpu").save()
    muon = recipe_for(optimiser="muon")
    with pytest.raises(ValueError, match="another optimiser"):
        Trainer(muon, sampler, tmp_path / "run", "cpu", allow_changes=True)


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_orthogonalised_matrices_keep_their_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-4
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalised(matrix)
    values = torch.diagonal(u.T @ result @ v.T)
    assert torch.all((values > 0.3) & (values < 1.3))
    assert torch.allclose(u @ torch.diag(values) @ v, result, atol=1e-4)


def test_muon_trains_inner_kernels_and_adam_the_rest() -> None:
    network = build_network("strcnn_dtb_lite", SMALL_LITE)
    parts = Optimisers(network, "muon", ("head", "output", "feedback")).parts
    adam, muon = ({id(p) for g in o.param_groups for p in g["params"]} for o in parts)
    for path, p in network.named_parameters():
        inner = p.ndim == 4 and path.split(".")[0] not in ("head", "output", "feedback")
        assert id(p) in (muon if inner else adam), path
    assert not adam & muon


def test_synthetic_samples_are_softened(photos: list[Path], tmp_path: Path) -> None:
    """And real ones are not; without softness the draws are what they were."""
    for share, is_changed in ((0.0, True), (1.0, False)):
        settings: dict[str, Any] = {"real_share": share, "still_real_share": 0.0}
        crisp = sampler_for(photos, tmp_path, **settings).draw(0, 1)
        soft = sampler_for(photos, tmp_path, **settings, softness=3.0).draw(0, 1)
        assert torch.equal(crisp.sharp, soft.sharp) != is_changed
        assert torch.equal(crisp.blurred, soft.blurred) != is_changed
    dot = torch.zeros(2, 1, 33, 33, 3, dtype=torch.uint8)
    dot[:, :, 16, 16] = 255
    softer = soften(dot, 1.5)[0, 0, ..., 0].float()
    distance = torch.arange(33.0) - 16
    spread = (softer.sum(0) * distance**2).sum() / softer.sum()
    assert spread.sqrt() == pytest.approx(1.5, rel=0.1)
    assert softer.sum() == pytest.approx(255, rel=0.1)
    assert torch.equal(soften(dot, 1.5)[0], soften(dot, 1.5)[1])
    flat = torch.full((2, 1, 9, 9, 3), 77, dtype=torch.uint8)
    assert torch.equal(soften(flat, 1.5), flat)


def test_the_papers_schedule() -> None:
    recipe = Recipe.load(ROOT / "training" / "recipes" / "strcnn_dtb_paper.toml")
    assert recipe.rate(9_999) == pytest.approx(1e-4)
    assert recipe.rate(10_000) == pytest.approx(0.96e-4)
    assert recipe.rate(299_999) == pytest.approx(1e-4 * 0.96**29)
    assert (recipe.batch, recipe.frames, recipe.size, recipe.steps) == (8, 13, 128, 300_000)


def test_a_run_learns_logs_and_writes_weights(photos: list[Path], tmp_path: Path) -> None:
    sampler = sampler_for(photos, tmp_path / "cache", real_share=1.0, still_real_share=0.0)
    recipe = recipe_for(steps=120, validate_every=60, loss="log_mse", average=0.9)
    trainer = Trainer(recipe, sampler, tmp_path / "run", "cpu")
    before = validation_gain(trainer.network, moving(6))
    trainer.run([moving(6)])
    assert before == pytest.approx(0.0, abs=1e-6)
    assert validation_gain(trainer.network, moving(6)) > 0.2
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == [0, 60, 120]
    first, early, last = rows
    assert float(first["moving/0"]) == pytest.approx(before, abs=1e-6)
    assert math.isnan(float(first["loss"]))
    assert float(last["loss"]) < float(early["loss"])
    assert 0 <= float(rows[-1]["dead"]) < 0.3
    state, metadata = read_tensors(tmp_path / "run" / "strcnn_dtb_lite.safetensors")
    assert from_state(state, metadata).config == trainer.network.config
    log = tmp_path / "run" / "log.csv"
    plot([log], tmp_path / "plot.png")
    plot([log, log], tmp_path / "two.png")
    with Image.open(tmp_path / "plot.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.width > 300
        assert one.tobytes() != two.tobytes()


@pytest.mark.parametrize(
    ("loss", "optimiser"),
    [("charbonnier", "adam"), ("mse", "adam"), ("log_mse", "adam"), ("charbonnier", "muon")],
)
def test_a_run_that_is_interrupted_ends_the_same(
    photos: list[Path], tmp_path: Path, loss: str, optimiser: str
) -> None:
    recipe = recipe_for(
        loss=loss, optimiser=optimiser, weight_decay=1e-5, early_frames=2, early_share=0.5
    )
    whole = Trainer(recipe, sampler_for(photos, tmp_path / "a"), tmp_path / "whole", "cpu")
    whole.run([])
    part = Trainer(recipe, sampler_for(photos, tmp_path / "b"), tmp_path / "part", "cpu")
    for _ in range(3):
        part.train_step()
    part.save()
    del part
    resumed = Trainer(recipe, sampler_for(photos, tmp_path / "b"), tmp_path / "part", "cpu")
    assert resumed.step == 3
    resumed.run([])
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key]), key
    for key, value in whole.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[key]), key


def test_burn_in_and_live_samples_survive_an_interruption(
    photos: list[Path], tmp_path: Path
) -> None:
    recipe = recipe_for(precision="bf16", burn_in=3)
    sampler = sampler_for(photos, tmp_path / "c", live=torch.device("cpu"))
    whole = Trainer(recipe, sampler, tmp_path / "whole", "cpu")
    whole.run([])
    part = Trainer(recipe, sampler, tmp_path / "part", "cpu")
    for _ in range(3):
        part.train_step()
    part.save()
    resumed = Trainer(recipe, sampler, tmp_path / "part", "cpu")
    resumed.run([])
    for key, value in whole.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[key]), key


def test_burn_in_goes_to_and_fro() -> None:
    torch.manual_seed(4)
    network = scramble(build_network("strcnn_dtb_lite", SMALL_LITE))
    x = torch.rand(2, 5, 3, 32, 32)
    longer = torch.cat((x[:, [2, 3, 4, 3, 2, 1]], x), dim=1)
    for count in (6, 2, 1):
        state = burnt_in(network, x, count)
        assert state is not None
        assert not any(s.requires_grad for s in state)
        expected = unroll(network, longer[:, 6 - count :])[:, count:]
        torch.testing.assert_close(unroll(network, x, state), expected)
        assert not torch.allclose(unroll(network, x), expected)
    assert burnt_in(network, x, 0) is None


def test_burn_in_is_drawn_by_the_step_and_trains_all_weights(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(burn_in=4, precision="bf16")
    counts = [recipe.burn_in_at(step) for step in range(200)]
    assert counts == [recipe.burn_in_at(step) for step in range(200)]
    assert set(counts) == {0, 1, 2, 3, 4}
    assert 70 < counts.count(0) < 130
    assert not any(recipe_for().burn_in_at(step) for step in range(20))
    monkeypatch.setattr(Recipe, "burn_in_at", lambda *_: 3)
    trainer = Trainer(recipe, sampler_for(photos, tmp_path / "cache"), tmp_path / "run", "cpu")
    scramble(trainer.network)  # the last layer of a new network is zero: it makes no difference
    loss, *_ = trainer._loss(0)
    loss.backward()  # type: ignore[no-untyped-call]
    slopes = [p.grad for p in trainer.network.parameters()]
    assert all(g is not None and g.any() for g in slopes)
    monkeypatch.setattr(Recipe, "burn_in_at", lambda *_: 0)
    assert float(trainer._loss(0)[0].detach()) != float(loss.detach())
    with pytest.raises(ValueError, match="burn_in is for networks for video"):
        replace(recipe, network="photo_lite", config={}).check()


def test_dead_units_are_counted() -> None:
    network = build_network("strcnn_dtb_lite", SMALL_LITE)
    x = torch.rand(1, 3, 3, 32, 32)
    alive = dead_share(network, lambda: unroll(network, x))
    with torch.no_grad():
        network.encoder0[0].conv1.weight.zero_()
        network.encoder0[0].conv1.bias.fill_(-1.0)
    dead = dead_share(network, lambda: unroll(network, x))
    units = sum(b.conv1.out_channels for b in network.modules() if type(b).__name__ == "ResBlock")
    assert dead - alive == pytest.approx(8 / units, abs=2 / units)


def test_contact_sheet(photos: list[Path], tmp_path: Path) -> None:
    contact_sheet(sampler_for(photos, tmp_path / "c"), tmp_path / "s.png", count=3, frames=2)
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width == 4 * 32
        header = picture.height - 3 * 32
        assert header > 0
        left, right = np.split(np.asarray(picture)[:header], 2, axis=1)
        assert left.min() < 100 < left.max() == 255  # said above each half
        assert right.min() < 100 < right.max() == 255
        assert np.asarray(picture)[header:].std() > 5


def write_video(path: Path, frames: list[NDArray[np.uint8]]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=240)
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_high_speed_video_is_averaged_by_equation_1(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (16, 32, 3), dtype=np.uint8) for _ in range(20)]
    write_video(tmp_path / "fast.mkv", frames)
    pair = load_high_speed(tmp_path / "fast.mkv", tau=7, period=9, linear=False)
    assert len(pair) == 2
    for n in range(2):
        exposure = np.stack(frames[9 * n : 9 * n + 7]).astype(np.float64)
        assert np.abs(pair.blurred[n] - exposure.mean(0)).max() <= 0.51
        np.testing.assert_array_equal(pair.sharp[n], frames[9 * n + 3])
    with pytest.raises(ValueError, match="tau"):
        load_high_speed(tmp_path / "fast.mkv", tau=8, period=9, linear=False)
    with pytest.raises(InputError, match="shorter"):
        load_high_speed(tmp_path / "fast.mkv", tau=21, period=21, linear=True)
    (tmp_path / "none.mkv").write_bytes(b"no video")
    for name in ("none.mkv", "missing.mkv"):
        with pytest.raises(InputError, match=rf"the video cannot be read: .*{name}"):
            load_high_speed(tmp_path / name, tau=7, period=9, linear=True)


DDP = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from tests.test_training import recipe_for, sampler_for
from vs_deblur.sequences import images
from training.optimisers import average_gradients
from training.train import Trainer
folder = Path(sys.argv[2])
sampler = sampler_for(images(Path(sys.argv[3])), folder / "cache")
trainer = Trainer(recipe_for(steps=3), sampler, folder / "run", "cpu")
loss, *_ = trainer._loss(0)
loss.backward()
own = [p.grad.clone() for p in trainer.network.parameters()]
average_gradients(trainer.network, 2)
mean = [p.grad.clone() for p in trainer.network.parameters()]
torch.save((own, mean), folder / f"gradients{trainer.rank}.pt")
trainer.run([])
torch.save(trainer.network.state_dict(), folder / f"rank{trainer.rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_train_one_network(photos: list[Path], tmp_path: Path) -> None:
    """Gradients are averaged: both processes hold the same weights after every step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    prepare(sampler_for(photos, tmp_path / "cache"), processes=1)
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-c", DDP, str(ROOT), str(tmp_path), str(photos[0].parent)]
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(2)
    ]
    try:
        assert [p.wait(timeout=120) for p in processes] == [0, 0]
    finally:
        for p in processes:
            p.kill()
    a, b = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2))
    for key in a:
        assert torch.equal(a[key], b[key])
    assert math.isfinite(float(a["dtb.beta"]))
    gradients = [torch.load(tmp_path / f"gradients{r}.pt", weights_only=True) for r in range(2)]
    (one, mean), (two, _) = gradients
    assert any(not torch.allclose(x, y, rtol=1e-3) for x, y in zip(one, two, strict=True))
    for x, y, both in zip(one, two, mean, strict=True):
        torch.testing.assert_close(both, (x + y) / 2, rtol=1e-4, atol=1e-7)


# --------------------------------------------------------------------------------- photo networks


PHOTO: dict[str, dict[str, Any]] = {
    "mscnn": {
        "config": {"blocks": 1, "channels": 8},
        "loss": "mse",
        "halved_mean": True,
        "learning_rate": 2e-3,
    },
    "srn": {"config": {"colour": True, "lstm": False}, "loss": "mse", "learning_rate": 2e-4},
    "dmphn": {"config": {"levels": 2}, "loss": "mse", "learning_rate": 3e-4},
}


def photo_run(name: str, folder: Path, photos: list[Path], **changes: Any) -> Trainer:
    settings = {"frames": 1, "size": 32, "steps": 12, "warmup": 1, "average": 0.5, **PHOTO[name]}
    recipe = recipe_for(network=name, **{**settings, **changes})
    sampler = sampler_for(
        photos, folder / "cache", real_share=1.0, still_real_share=0.0, m=0, longest=1
    )
    return Trainer(recipe, sampler, folder / "run", "cpu")


@pytest.mark.parametrize("name", PHOTO)
def test_photo_networks_learn(name: str, photos: list[Path], tmp_path: Path) -> None:
    trainer = photo_run(name, tmp_path, photos)
    losses = [trainer.train_step()[0] for _ in range(12)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert math.isfinite(validation_gain(trainer.average, moving(2)))


def test_losses_of_several_sizes_are_the_papers() -> None:
    network = build_network("mscnn", {"blocks": 0, "channels": 2})
    sharp = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    sizes = [torch.zeros(2, 3, 16 >> k, 16 >> k) for k in range(3)]
    targets = scales_of(network, sizes, sharp)
    assert [t.shape for t in targets] == [s.shape for s in sizes]
    each = [float(t.square().mean()) for t in targets]
    assert float(multi_scale(mean_squared_error, sizes, targets)) == pytest.approx(sum(each))
    nah = float(multi_scale(mean_squared_error, sizes, targets, halved_mean=True))
    assert nah == pytest.approx(sum(each) / 6)
    tao = scales_of(build_network("srn", {}), sizes, sharp)
    assert torch.equal(tao[2], sharp[..., ::4, ::4])


def test_validation_is_the_gain_in_psnr_of_what_is_measured() -> None:
    """The same figures as `vs-deblur measure`; frames that are identical to sharp ones are out."""
    network = build_network("mscnn", {"blocks": 1, "channels": 8}).eval()
    pair = moving(3)
    pair.blurred[1] = pair.sharp[1]
    gains = []
    for n in (0, 2):
        x = torch.from_numpy(pair.blurred[n]).permute(2, 0, 1)[None] / 255
        out = (network(x).detach()[0].clamp(0, 1) * 255).round().permute(1, 2, 0)
        result = out.numpy().astype(np.uint8)
        gains.append(psnr(result, pair.sharp[n]) - psnr(pair.blurred[n], pair.sharp[n]))
    assert validation_gain(network, pair) == pytest.approx(np.mean(gains))
    pair.blurred[:] = pair.sharp
    assert math.isnan(validation_gain(network, pair))


def test_both_sides_of_the_adversarial_game_move(photos: list[Path], tmp_path: Path) -> None:
    trainer = photo_run("mscnn", tmp_path, photos, adversarial=1e-4, batch=1)
    trainer.sampler.size, trainer.sampler.real_share = 256, 1.0
    trainer.sampler.pairs = [moving(2, 256)]
    trainer.sampler.batch = 1
    assert trainer.adversary is not None
    sides = (trainer.network, trainer.adversary.discriminator)
    before = [[p.detach().clone() for p in side.parameters()] for side in sides]
    for _ in range(2):
        trainer.train_step()
    for side, old in zip(sides, before, strict=True):
        moved = [not torch.equal(a, b) for a, b in zip(side.parameters(), old, strict=True)]
        assert all(moved)
    trainer.save()
    again = Trainer(trainer.recipe, trainer.sampler, tmp_path / "run", "cpu")
    assert again.adversary is not None
    kept = again.adversary.discriminator.state_dict()
    for key, value in sides[1].state_dict().items():
        assert torch.equal(value, kept[key]), key


def test_the_discriminator_learns_and_its_verdict_moves_the_network() -> None:
    """One side alone: it learns to tell two kinds apart; what passes costs less."""
    torch.manual_seed(0)
    adversary = Adversary(1.0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(4)
    sharp = torch.rand(1, 3, 256, 256, generator=generator)
    flat = torch.full((1, 3, 256, 256), 0.5)
    losses = [adversary.update(flat, sharp, 3e-4) for _ in range(5)]
    assert losses[-1] < losses[0] - 0.01
    with torch.no_grad():
        assert float(adversary.term(flat)) > float(adversary.term(sharp))
    # It is the picture that is told how to pass.
    x = flat.clone().requires_grad_()
    (slope,) = torch.autograd.grad(adversary.term(x), x)
    assert torch.isfinite(slope).all()
    with torch.no_grad():
        towards = flat - 0.01 * slope / slope.abs().max()
        assert float(adversary.term(towards)) < float(adversary.term(flat))


def test_the_adversarial_term_is_of_the_finest_size_alone(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other term of the loss left out, only the finest prediction has a slope."""
    trainer = photo_run("mscnn", tmp_path, photos, adversarial=1e-4, batch=1)
    trainer.sampler.size = 256
    trainer.sampler.pairs = [moving(2, 256)]
    sizes: list[torch.Tensor] = []

    def predicted(*args: Any) -> list[torch.Tensor]:
        sizes.extend(out.detach().requires_grad_() for out in predict(*args))
        return sizes

    monkeypatch.setattr("training.train.predict", predicted)
    monkeypatch.setattr("training.train.multi_scale", lambda *_: torch.zeros(()))
    loss = trainer._loss(0)[0]
    finest, *others = torch.autograd.grad(loss, sizes, allow_unused=True)
    assert len(others) == 2
    assert torch.isfinite(finest).all()
    assert (finest != 0).any()
    assert all(slope is None or not slope.any() for slope in others)


def test_the_discriminator_has_the_rate_of_the_network(photos: list[Path], tmp_path: Path) -> None:
    trainer = photo_run("mscnn", tmp_path, photos, adversarial=1e-4, batch=1, warmup=3, steps=6)
    trainer.sampler.size = 256
    trainer.sampler.pairs = [moving(2, 256)]
    assert trainer.adversary is not None
    rates = []
    for _ in range(2):
        trainer.train_step()
        rates.append([group["lr"] for group in trainer.adversary.optimiser.param_groups])
    assert rates == [[trainer.recipe.rate(0)], [trainer.recipe.rate(1)]]
    assert rates[0] != rates[1]


def test_weights_of_several_steps_are_averaged(photos: list[Path], tmp_path: Path) -> None:
    """What is published of several steps is the mean of what the run kept at each."""
    sampler = sampler_for(photos, tmp_path / "cache")
    trainer = Trainer(recipe_for(steps=4, validate_every=2), sampler, tmp_path / "run", "cpu")
    trainer.run([])
    kept = [weights_at(tmp_path / "run", step) for step in (2, 4)]
    one, two = (read_tensors(path)[0] for path in kept)
    assert not torch.equal(one["head.weight"], two["head.weight"])
    for key, value in mean_of(kept).state_dict().items():
        assert torch.allclose(value, (one[key] + two[key]) / 2, atol=1e-7), key
    last = read_tensors(tmp_path / "run" / "strcnn_dtb_lite.safetensors")[0]
    assert torch.equal(last["head.weight"], two["head.weight"])


# ------------------------------------------------------------------------------ live, and setbacks


def test_live_samples_are_a_function_of_the_step(photos: list[Path], tmp_path: Path) -> None:
    """Made anew for each step; nothing is kept on the disk."""
    cpu = torch.device("cpu")
    one, two = (sampler_for(photos, tmp_path / "none", live=cpu) for _ in range(2))
    two.draw(0, 3)
    a, b = one.draw(5, 3), two.draw(5, 3)
    assert torch.equal(a.blurred, b.blurred)
    assert torch.equal(a.sharp, b.sharp)
    assert a.blurred.shape == (2, 5, 3, 32, 32)
    assert not torch.equal(a.blurred, two.draw(6, 3).blurred)
    assert not torch.equal(a.blurred, two.draw(5, 3, rank=1).blurred)
    assert not (tmp_path / "none").exists()
    prepare(one, 1)
    assert not (tmp_path / "none").exists()


def test_live_samples_are_blurred_and_never_the_same(photos: list[Path], tmp_path: Path) -> None:
    sampler = sampler_for(photos, tmp_path, live=torch.device("cpu"), pairs=[], weights=[], batch=4)
    seen = [sampler.draw(step, 3) for step in range(6)]
    gains = [(b.blurred[:, 1:4] - b.sharp).square().mean().item() for b in seen]
    assert max(gains) > 1e-4
    pictures = torch.cat([b.sharp[:, 0].flatten(1) for b in seen])
    assert len(torch.unique(pictures, dim=0)) == len(pictures)


def test_a_run_that_diverges_goes_back(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """To the last checkpoint, with half the rate and other batches, as often as it takes."""
    recipe = recipe_for(steps=12)
    trainer = Trainer(recipe, sampler_for(photos, tmp_path), tmp_path / "run", "cpu")
    real = trainer.train_step
    spoiled = []

    def step() -> tuple[float, float, float]:
        found = real()
        if trainer.step == 6 and trainer.setbacks < 2:
            spoiled.append(trainer.rate)
            with torch.no_grad():
                trainer.network.output.weight.fill_(torch.nan)
            return math.nan, *found[1:]
        return found

    monkeypatch.setattr(trainer, "train_step", step)
    trainer.run([])
    assert trainer.step == 12
    assert trainer.setbacks == 2
    assert spoiled[1] == pytest.approx(spoiled[0] / 2)
    assert all(torch.isfinite(p).all() for p in trainer.average.parameters())
    said = capsys.readouterr().out
    assert said.count("diverged at step 8: back to step 4, rate halved") == 2
    again = Trainer(recipe, sampler_for(photos, tmp_path), tmp_path / "run", "cpu")
    assert again.setbacks == 2


def test_a_gain_that_falls_is_a_divergence(photos: list[Path], tmp_path: Path) -> None:
    trainer = Trainer(recipe_for(), sampler_for(photos, tmp_path), tmp_path / "run", "cpu")
    found = [trainer._has_diverged(0.1, g, 200) for g in (-2.0, 0.5, 0.1, -2.4, -2.6)]
    assert found == [False, False, False, False, True]
    assert not trainer._has_diverged(0.1, -9.0, 3)  # samples differ by as much
    assert trainer._has_diverged(math.inf, 1.0, 3)


def test_a_run_that_cannot_be_saved_says_so(photos: list[Path], tmp_path: Path) -> None:
    trainer = Trainer(recipe_for(), sampler_for(photos, tmp_path), tmp_path / "run", "cpu")
    with pytest.raises(EngineError, match=r"diverged before step 0 .*smaller learning_rate"):
        trainer._go_back()
    trainer.save()
    for _ in range(4):
        trainer._go_back()
    with pytest.raises(EngineError, match="diverged 5 times, the last at step 0"):
        trainer._go_back()


def test_one_bad_batch_does_not_cost_the_run(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out of the means; the best gain so far outlives the process."""
    recipe = recipe_for(steps=8)
    trainer = Trainer(recipe, sampler_for(photos, tmp_path), tmp_path / "run", "cpu")
    real = trainer.train_step
    good: list[float] = []

    def step() -> tuple[float, float, float]:
        found = real()
        if trainer.step == 6:
            return math.inf, math.nan, math.nan
        if trainer.step > 4:
            good.append(found[0])
        return found

    monkeypatch.setattr(trainer, "train_step", step)
    monkeypatch.setattr(trainer, "_best_gain", 1.5)
    trainer.run([])
    assert (trainer.step, trainer.setbacks) == (8, 0)
    with (tmp_path / "run" / "log.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["loss"]) == pytest.approx(np.mean(good), rel=1e-4)
    again = Trainer(recipe, sampler_for(photos, tmp_path), tmp_path / "run", "cpu")
    assert again._best_gain == 1.5


def test_a_log_with_other_columns_is_kept(photos: list[Path], tmp_path: Path) -> None:
    """Figures of a changed validation are never written under another's name."""
    sampler = sampler_for(photos, tmp_path / "cache")
    Trainer(recipe_for(), sampler, tmp_path / "run", "cpu").run([])
    longer = recipe_for(steps=12)
    trainer = Trainer(longer, sampler, tmp_path / "run", "cpu", allow_changes=True)
    trainer.run([moving(4)])
    with (tmp_path / "run" / "log-8.csv").open() as file:
        assert [r["step"] for r in csv.DictReader(file)] == ["0", "4", "8"]
    with (tmp_path / "run" / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["step"] == "12"
    assert math.isfinite(float(row["moving/0"]))


# ------------------------------------------------------------------------------------- the table


def table_recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "network": "strcnn_dtb",
        "config": {"residual": True},
        "steps": 2,
        "batch": 1,
        "validate_every": 1,
        "synthesis": replace(SMALL, frames=7),
        "real_share": 0.0,
        "live": True,
        "hold_out": 3,
        "photos": "photos",
    }
    return recipe_for(**{**settings, **changes})


def test_a_table_of_networks(photos: list[Path], tmp_path: Path) -> None:
    """Each variant by each seed, on what is held out; it goes on where it stopped."""
    data = tmp_path / "data"
    shutil.copytree(photos[0].parent, data / "photos")
    variants = [VARIANTS["cnn"], VARIANTS["strcnn_dtb-5"]]
    run = tmp_path / "run"
    gains = table(table_recipe(), variants, range(2), data, run, "cpu", count=2)
    assert [(g.variant, g.seed) for g in gains[::4]] == [
        *(("cnn", 0), ("strcnn_dtb-5", 0), ("cnn", 1), ("strcnn_dtb-5", 1)),
    ]
    assert {(g.group, g.sequence) for g in gains} == {
        *(("light", "0"), ("light", "1"), ("heavy", "0"), ("heavy", "1")),
    }
    assert all(math.isfinite(g.gain) for g in gains)
    # What has no memory loses nothing without it; what has one gives something else.
    for g in gains:
        assert (g.without_memory is None) == (g.variant == "cnn")
        assert g.without_memory != g.gain
    assert "| strcnn_dtb-5 |" in as_markdown(gains).partition("of which by memory")[2]
    assert len({round(g.gain, 4) for g in gains}) > 8  # seeds and networks differ
    assert len((run / "table.csv").read_text().splitlines()) == 1 + len(gains)
    # Another budget, or other sequences to measure on, cannot be compared.
    for other in (table_recipe(steps=3), table_recipe(validation=("val",))):
        assert _read(run / "table.csv", _compared(other, 2)) == {}
    assert len(_read(run / "table.csv", _compared(table_recipe(), 2))) == 4
    # Rows of networks and seeds that are not asked for stay; nothing is trained again.
    trained = {p: p.stat().st_mtime_ns for p in run.glob("*/*.safetensors")}
    again = table(table_recipe(), variants[1:], range(1), data, run, "cpu", count=2)
    assert {p: p.stat().st_mtime_ns for p in run.glob("*/*.safetensors")} == trained
    assert [(g.variant, g.seed, g.sequence) for g in again] == [
        (g.variant, g.seed, g.sequence) for g in gains
    ]
    assert [g.gain for g in again] == pytest.approx([g.gain for g in gains], abs=1e-4)
    assert [g.without_memory for g in again] == pytest.approx(
        [g.without_memory for g in gains], abs=1e-4
    )


def test_networks_of_a_seed_see_the_same_samples(photos: list[Path], tmp_path: Path) -> None:
    """Real pairs and sequences from the cache: equal for all networks, other ones for each seed."""
    data = tmp_path / "data"
    shutil.copytree(photos[0].parent, data / "photos")
    for name in ("blur", "sharp"):
        (data / "pairs" / "one" / name).mkdir(parents=True)
        frames = moving(6).blurred if name == "blur" else moving(6).sharp
        for n, frame in enumerate(frames):
            Image.fromarray(frame).save(data / "pairs" / "one" / name / f"{n:06d}.png")
    base = table_recipe(
        live=False, real_share=0.5, synthetic_count=3, pairs=(PairSource("pairs/one"),), batch=4
    )
    drawn = {
        (name, seed): make_sampler(
            recipe_of(base, VARIANTS[name], seed), data, tmp_path / "c", synthetic_seed=base.seed
        ).draw(0, 3)
        for name in ("cnn", "strcnn_dtb")
        for seed in (0, 1)
    }
    for seed in (0, 1):
        assert torch.equal(drawn["cnn", seed].blurred, drawn["strcnn_dtb", seed].blurred)
        assert torch.equal(drawn["cnn", seed].sharp, drawn["strcnn_dtb", seed].sharp)
    assert not torch.equal(drawn["cnn", 0].blurred, drawn["cnn", 1].blurred)
    assert len(list((tmp_path / "c").iterdir())) == 1  # one cache for all seeds


def test_a_table_needs_something_to_measure(photos: list[Path], tmp_path: Path) -> None:
    shutil.copytree(photos[0].parent, tmp_path / "photos")
    arguments = ([VARIANTS["cnn"]], range(1), tmp_path, tmp_path / "run", "cpu")
    with pytest.raises(UsageError, match="holds no photographs out"):
        table(table_recipe(hold_out=0), *arguments)


def test_means_and_spread_of_a_table() -> None:
    """Seeds may differ by more than networks do: the second table is of differences."""
    gains = [
        Gain(variant, seed, "light", str(i), gain + (0.2 if variant == "b" else 0.0))
        for variant in ("a", "b")
        for seed, both in enumerate(((1.0, 2.0), (3.0, 4.0)))
        for i, gain in enumerate(both)
    ]
    assert as_markdown(gains).splitlines() == [
        "| gain, dB | light |",
        "|---|---|",
        "| a | +2.50 ± 1.41 |",
        "| b | +2.70 ± 1.41 |",
        "",
        "| more than a, dB | light |",
        "|---|---|",
        "| b | +0.20 ± 0.00 |",
    ]
    one = [g for g in gains if g.seed == 0]
    assert "| b | +1.70 |" in as_markdown(one).splitlines()
    kept = [replace(g, without_memory=g.gain - 0.25) if g.variant == "b" else g for g in gains]
    assert as_markdown(kept).splitlines() == [
        *as_markdown(gains).splitlines(),
        "",
        "| of which by memory, dB | light |",
        "|---|---|",
        "| b | +0.25 ± 0.00 |",
    ]
    # Rows of tables that did not measure it count as missing, not as nothing.
    partly = [
        g if g.variant == "b" and g.seed == 0 else replace(g, without_memory=None) for g in kept
    ]
    assert as_markdown(partly).splitlines()[-1] == "| b | +0.25 |"


def test_frames_at_the_ends_need_not_count() -> None:
    """There the window repeats frames, and a recurrence has no past."""
    network = build_network("cnn", {"residual": True})
    with torch.no_grad():
        network.output.bias.fill_(4 / 255)
    pair = moving(8)
    gains = [
        psnr(np.clip(b.astype(int) + 4, 0, 255).astype(np.uint8), s) - psnr(b, s)
        for b, s in zip(pair.blurred, pair.sharp, strict=True)
    ]
    assert validation_gain(network, pair, 8, margin=3) == pytest.approx(np.mean(gains[3:5]))
    assert validation_gain(network, pair, 8) == pytest.approx(np.mean(gains))
    assert np.mean(gains) != pytest.approx(np.mean(gains[3:5]), abs=1e-4)


def test_the_gain_without_memory_is_that_of_first_frames() -> None:
    """Of a clip that stands still every frame is then like its first one."""
    torch.manual_seed(3)
    network = build_network("strcnn", {"residual": True})
    torch.nn.init.normal_(network.output.weight, std=0.01)  # of a residual's zeros nothing is seen
    frame = moving(1)
    still = PairSequence("still", frame.blurred.repeat(6, 0), frame.sharp.repeat(6, 0))
    first = PairSequence("first", frame.blurred, frame.sharp)
    without = validation_gain(network, still, memory=False)
    assert without == pytest.approx(validation_gain(network, first), abs=1e-6)
    assert validation_gain(network, still) != pytest.approx(without, abs=1e-3)


def test_photographs_that_are_held_out(photos: list[Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos[0].parent, data / "photos")
    recipe = table_recipe()
    kept = recipe.kept_from_training(images(data / "photos"))
    sampler = make_sampler(recipe, data, tmp_path / "cache")
    assert len(kept) == 1
    assert not set(kept) & set(sampler.photos)
    assert len(kept) + len(sampler.photos) == 3
    assert table_recipe(hold_out=0).kept_from_training(photos) == []


def test_new_kinds_of_settings_leave_old_runs_alone() -> None:
    """Only what is set tells recipes apart."""
    # As a run of today will have kept it: what is added to recipes later must not change it.
    plain = Recipe("cnn", {"m": 1}, steps=8, synthesis=SynthesisConfig(frames=5))
    assert plain.digest() == "42496123f188319f"
    assert recipe_for().digest() != recipe_for(live=True).digest()
    assert recipe_for().digest() != recipe_for(network="cnn", config={}).digest()


# ----------------------------------------------------------------------------------- the commands


def said(*arguments: object) -> tuple[int, str]:
    """Exit code and output of a command."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


@pytest.fixture
def small_recipe(photos: list[Path], tmp_path: Path) -> Path:
    """A recipe in a folder with its data."""
    shutil.copytree(photos[0].parent, tmp_path / "data" / "photos")
    path = tmp_path / "small.toml"
    path.write_text(
        """network = "strcnn_dtb_lite"
steps = 4
batch = 1
frames = 2
size = 32
validate_every = 2
synthetic_count = 2
photos = "photos"
real_share = 0.0
attribution = "squares"
[config]
channels = [8, 8, 8]
feedback_channels = 4
[synthesis]
size = 48
frames = 5
taus = [7]
"""
    )
    return path


def test_a_run_by_its_commands(small_recipe: Path, tmp_path: Path) -> None:
    """Sequences, a look at them, training, going on, a plot."""
    where = ("--data", tmp_path / "data", "--run", tmp_path / "run")
    assert said("synthesise", small_recipe, *where) == (0, "")
    assert len(list((tmp_path / "run" / "sequences").glob("*/*.npy"))) == 2
    sheet = tmp_path / "sheet.png"
    code, output = said("sheet", small_recipe, *where, "--count", 2, "-o", sheet)
    assert (code, output) == (0, f"{sheet}: blurred frames left, sharp ones right\n")
    with Image.open(sheet) as picture:
        assert picture.size == (2 * 2 * 32, 2 * 32 + 17)
    finished = f"finished: {tmp_path / 'run' / 'strcnn_dtb_lite.safetensors'}"
    code, output = said("train", small_recipe, *where)
    first, *rows, last = output.splitlines()
    assert (code, last) == (0, finished)
    assert first.startswith(
        "strcnn_dtb_lite on cpu: 4 steps of 1 samples, from 0 real sequences and 3"
    )
    assert [row.split()[1] for row in rows] == ["0", "2", "4"]
    code, output = said("train", small_recipe, *where)
    on = f"{tmp_path / 'run'} goes on from step 4 of 4"
    assert (code, output.splitlines()[1:]) == (0, [on, finished])
    assert said("plot", tmp_path / "run", "-o", tmp_path / "plot.png") == (0, "")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_what_is_wrong_is_said_in_one_line(small_recipe: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    where = ("--data", data, "--run", run)
    broken = tmp_path / "broken.toml"
    broken.write_text("network = 3 4")
    held_out = tmp_path / "held.toml"
    held_out.write_text(small_recipe.read_text().replace("batch = 1", "batch = 1\nhold_out = 1"))
    (tmp_path / "empty").mkdir()

    def slip(name: str, line: str) -> Path:
        """The recipe with a line that is wrong."""
        key = line.split()[0]
        lines = small_recipe.read_text().splitlines()
        kept = [kept for kept in lines if not kept.startswith(f"{key} ")]
        if "." in key:
            kept = kept[: kept.index("[config]")]
        path = tmp_path / f"{name}.toml"
        path.write_text("\n".join([line, *kept]))
        return path

    for code, message, *arguments in (
        (2, "no recipe can be read", "train", broken, *where),
        (3, "no such folder", "train", small_recipe, "--data", tmp_path / "none", "--run", run),
        (3, "no photographs", "train", held_out, *where),
        (3, "no log can be read", "plot", tmp_path / "empty"),
        (3, "no run has a checkpoint here", "publish", small_recipe, *where),
        (2, "nothing that ships is of small.toml", "card", small_recipe, "--data", data),
        (2, "holds no photographs out", "table", small_recipe, *where, "--variants", "cnn"),
        (2, "no variant cnm", "table", small_recipe, *where, "--variants", "cnn,cnm"),
        (2, "Invalid value for '--seeds'", "table", small_recipe, *where, "--seeds", 0),
        (2, "pictures are PNG: name it p.png", "plot", tmp_path / "empty", "-o", "p.foo"),
        (4, "No such file or directory", "sheet", small_recipe, *where, "-o", "none/p.png"),
        (2, "did you mean batch?", "train", slip("bach", "bach = 3"), *where),
        (2, "validation must be a list", "train", slip("v", 'validation = "val"'), *where),
        (2, "size must be a multiple of 16, at least 16", "train", slip("s", "size = 50"), *where),
        (2, "batch must be a whole number, not '2'", "train", slip("b", 'batch = "2"'), *where),
        (2, "config of strcnn_dtb_lite", "train", slip("c", "config.chanels = 3"), *where),
    ):
        found, output = said(*arguments)
        assert (found, message in output) == (code, True), output
        if "Usage:" not in output:
            assert len(output.splitlines()) == 1
            assert output.startswith("Error: ")
