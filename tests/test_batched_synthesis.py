"""The synthesis on a device: the reference's distribution, and the parts it is made of."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor

from benchmarks import synthesis
from training import batched
from training.__main__ import main as training_main
from training.batched import (
    Synthesiser,
    Views,
    _into_square,
    _seen,
    jpeg,
    jpeg_on_host,
    particle_paths,
    reduce_by_matrices,
    reduce_on_host,
    views_by_grids,
    views_on_host,
)
from training.data import PairSequence
from training.response import responses
from training.synthesis import (
    SynthesisConfig,
    affine,
    make_sequence,
    particle_path,
    power_mean,
    to_encoded,
    to_linear,
)
from vs_deblur.errors import InputError

CPU = torch.device("cpu")
NAMES = (
    "PSNR",
    "gradients",
    "brightness",
    "change of brightness",
    "motion",
    "colour",
)
CONFIG = SynthesisConfig(size=40, frames=4, max_speed=14.0, min_sharpness=20.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures with edges and texture at several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    made = []
    for i in range(5):
        picture = np.zeros((240, 320, 3))
        for block in (4, 10, 40):
            small = rng.random((240 // block + 1, 320 // block + 1, 3))
            picture += np.kron(small, np.ones((block, block, 1)))[:240, :320] / 3
        made.append(folder / f"{i}.png")
        Image.fromarray((picture * 255).astype(np.uint8)).save(made[-1])
    return made


def figures(sequence: NDArray[np.uint8]) -> list[float]:
    """PSNR, what blur left of the gradients, brightness, its change, motion, and fine colour.

    The last is the median of what is not grey of the difference from the neighbours' mean:
    compression takes it away.
    """
    blurred, sharp = sequence.astype(np.float64)

    def decibels(a: NDArray[Any], b: NDArray[Any]) -> float:
        return float(10 * np.log10(255**2 / (((a - b) ** 2).mean() + 0.01)))

    def gradients(x: NDArray[Any]) -> float:
        return float((np.diff(x, axis=1) ** 2).mean() + (np.diff(x, axis=2) ** 2).mean())

    fine = blurred[:, 1:-1, 1:-1] - (
        (blurred[:, :-2, 1:-1] + blurred[:, 2:, 1:-1]) / 4
        + (blurred[:, 1:-1, :-2] + blurred[:, 1:-1, 2:]) / 4
    )
    return [
        decibels(blurred, sharp),
        float(np.log(gradients(blurred) / gradients(sharp))),
        float(sharp.mean()),
        float(blurred.mean() - sharp.mean()),
        decibels(sharp[1:], sharp[:-1]),
        float(np.median(np.abs(fine - fine.mean(axis=-1, keepdims=True)))),
    ]


STEEP = replace(CONFIG, linear_share=1.0, powers=(1.0, 2.0, 3.0))


@pytest.mark.parametrize("config", [CONFIG, STEEP], ids=["usual", "steep response"])
def test_the_same_distribution(photos: list[Path], config: SynthesisConfig) -> None:
    """Kolmogorov and Smirnov tell the two apart in no figure (seeds are fixed)."""
    count = 240
    reference = [figures(make_sequence(config, photos, 1, i)) for i in range(count)]
    synthesiser = Synthesiser(config, photos, CPU, 1)
    ours = [figures(s) for i in range(count // 24) for s in synthesiser.batch(i, 24).numpy()]
    for i, name in enumerate(NAMES):
        chance = ks_2samp([f[i] for f in reference], [f[i] for f in ours]).pvalue
        assert chance > 0.01, name


@pytest.mark.parametrize(
    ("change", "told_by"),
    [
        ({"max_speed": 8.0}, "PSNR"),
        ({"linear_share": 0.0}, "change of brightness"),
        ({"compression_share": 0.0}, "colour"),
        ({"saturation_share": 0.9}, "change of brightness"),
        ({"powers": (3.0,)}, "change of brightness"),
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
def test_it_would_tell_another_distribution(
    photos: list[Path], change: dict[str, Any], told_by: str
) -> None:
    other = replace(CONFIG, **change)
    both = [Synthesiser(c, photos, CPU, 1) for c in (CONFIG, other)]
    which = NAMES.index(told_by)
    found = [[figures(q)[which] for i in range(10) for q in s.batch(i, 24).numpy()] for s in both]
    assert ks_2samp(*found).pvalue < 0.01


def test_a_steeper_response_brightens_what_moves() -> None:
    """The mean in a power is nearer to the largest; a highlight counts as white."""
    light = torch.tensor([[0.0, 0.2, 0.7], [0.5, 0.5, 0.5], [0.0, 0.0, 2.0]])
    expected = [(0.2**3 + 0.7**3) / 3, 0.5**3, 1 / 3]
    found = power_mean(light, 3.0, 1)
    assert found.tolist() == pytest.approx([x ** (1 / 3) for x in expected])
    assert torch.allclose(power_mean(light, 1.0, 1), light.clamp(max=1).mean(1))
    assert light.max() == 2.0  # what is given stays


def test_the_way_of_a_gpu_has_the_same_distribution(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences moved together, all frames at once, JPEG by torch, in powers of light."""
    config = replace(STEEP, compression_share=0.6)
    here, there = (Synthesiser(config, photos, CPU, 1) for _ in range(2))
    monkeypatch.setattr(there, "_is_cpu", False)
    both = [[figures(q) for i in range(10) for q in s.batch(i, 24).numpy()] for s in (here, there)]
    for i, name in enumerate(NAMES):
        assert ks_2samp(*([f[i] for f in found] for found in both)).pvalue > 0.01, name


@pytest.mark.parametrize("name", ["encoded values", "light^1", "light^2.5"])
def test_the_response_of_real_pairs_is_found(name: str, photos: list[Path]) -> None:
    """Of blur that was averaged so, that mean is kept."""
    pictures = [torch.from_numpy(np.array(Image.open(p))).double() / 255 for p in photos]
    power = float(name[6:]) if name.startswith("light") else None
    blurred: list[NDArray[np.uint8]] = []
    sharp: list[NDArray[np.uint8]] = []
    for picture in pictures:
        light = picture if power is None else to_linear(picture) ** power
        mean = torch.stack([light.roll(i - 4, 1) for i in range(9)]).mean(0)
        mean = mean if power is None else to_encoded(mean ** (1 / power))
        for x, into in ((mean, blurred), (picture, sharp)):
            into.append((x * 255).round().to(torch.uint8).numpy())
    found = list(responses([PairSequence("moved/0", np.stack(blurred), np.stack(sharp))]))
    best = min(found, key=lambda r: r.rms)
    assert best.name == name
    assert abs(best.bias) < 0.5
    steeper = [r.bias for r in found]
    assert steeper == sorted(steeper, reverse=True)


def test_the_command_that_tells_the_response(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for folder in ("blur", "sharp"):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
        picture = rng.integers(0, 256, (72, 80, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "pairs" / folder / "0.png")
    result = CliRunner().invoke(training_main, ["response", str(tmp_path / "pairs")])
    head, *rows = result.output.splitlines()
    assert (result.exit_code, head.split()) == (0, ["averaged", "brighter", "apart"])
    assert [row.split("  ")[0] for row in rows][:2] == ["encoded values", "light^1"]
    assert all(np.isfinite([float(x) for x in row.split()[-2:]]).all() for row in rows)


def test_pairs_too_small_to_tell_a_response() -> None:
    frames = np.zeros((1, 30, 64, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="64x30 is less than a block of 36"):
        list(responses([PairSequence("small/0", frames, frames)]))
    with pytest.raises(InputError, match="no pairs"):
        list(responses([]))


def test_what_does_not_move_is_not_brightened(photos: list[Path]) -> None:
    still = replace(STEEP, still_share=1.0, noise=0.0, compression_share=0.0, saturation_share=0.0)
    for blurred, sharp in Synthesiser(still, photos, CPU, 1).batch(0, 4).int():
        assert (blurred - sharp).abs().max() <= 1


def test_the_same_noise(photos: list[Path]) -> None:
    """Where one blurred frame is repeated, frames differ by nothing else."""
    frozen = replace(CONFIG, frozen_share=1.0, still_share=0.0, compression_share=0.0, frames=2)

    def deviation(sequence: NDArray[np.uint8]) -> float:
        return float(np.std(sequence[0, 1].astype(np.float64) - sequence[0, 0]))

    def ours(config: SynthesisConfig) -> list[float]:
        return [deviation(s) for s in Synthesiser(config, photos, CPU, 1).batch(0, 200).numpy()]

    reference = [deviation(make_sequence(frozen, photos, 1, i)) for i in range(200)]
    assert ks_2samp(reference, ours(frozen)).pvalue > 0.01
    assert ks_2samp(reference, ours(replace(frozen, noise=1.0))).pvalue < 0.01


def test_a_batch_is_a_function_of_seed_index_and_count(photos: list[Path]) -> None:
    first = Synthesiser(CONFIG, photos, CPU, 3)
    expected = first.batch(5, 4)
    first.batch(6, 4)
    assert torch.equal(first.batch(5, 4), expected)
    assert torch.equal(Synthesiser(CONFIG, photos, CPU, 3).batch(5, 4), expected)
    assert not torch.equal(Synthesiser(CONFIG, photos, CPU, 4).batch(5, 4), expected)
    assert expected.shape == (4, 2, 4, 40, 40, 3)
    assert expected.dtype == torch.uint8


def test_together_as_one_by_one(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU moves sequences together and whole frames at once: the way is another, not the result.

    Draws come in another order there, so the comparison is of one sequence.
    """
    config = SynthesisConfig(size=40, frames=3, noise=0.0, compression_share=0.0, layers=3)
    for index in range(6):
        alone = Synthesiser(config, photos, CPU, 9)
        expected = alone.batch(index, 1).int()
        whole = Synthesiser(config, photos, CPU, 9)
        monkeypatch.setattr(whole, "_is_cpu", False)
        difference = (whole.batch(index, 1).int() - expected).abs()
        assert difference.float().mean() < 0.02
        assert difference.max() <= 2


def still(**other: float) -> SynthesisConfig:
    return SynthesisConfig(size=40, frames=4, still_share=1.0, compression_share=0.0, **other)  # type: ignore[arg-type]


def test_without_motion_nothing_is_blurred(photos: list[Path]) -> None:
    made = Synthesiser(still(noise=0.0), photos, CPU, 1).batch(0, 3)
    assert torch.equal(made[:, 0], made[:, 1])
    assert torch.equal(made[:, :, :1].expand(-1, -1, 4, -1, -1, -1), made)


def test_noise_is_another_in_every_frame(photos: list[Path]) -> None:
    made = Synthesiser(still(noise=8.0, saturation_share=0.0), photos, CPU, 1).batch(0, 8).float()
    noise = made[:, 0] - made[:, 1]
    deviation = noise.std(dim=(1, 2, 3, 4))
    assert deviation.max() < 9
    assert deviation.max() > 2
    frames = noise.flatten(2)
    loud = frames[deviation > 2]
    correlation = (loud[:, 0] * loud[:, 1]).mean(1) / loud.var((1, 2))
    assert correlation.abs().max() < 0.1


def test_more_numbers_than_the_table_has(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "_NORMALS", 5000)
    made = Synthesiser(still(noise=8.0), photos, CPU, 1).batch(0, 4).float()
    assert (made[:, 0] - made[:, 1]).std() > 1


# ------------------------------------------------------------------------------------- the parts


def test_paths_are_as_the_reference_draws_them() -> None:
    """Extent and turning of paths whose mean step is 1 and whose middle is the origin."""
    steps = np.full(300, 120, dtype=np.int64)
    many = particle_paths(np.random.default_rng(1), steps, 4)
    rng = np.random.default_rng(2)
    single = [particle_path(rng, 120, 4) for _ in range(300)]

    def extent(path: NDArray[np.float64]) -> float:
        return float(np.log(np.linalg.norm(np.ptp(path[:, :2], axis=0))))

    def turning(path: NDArray[np.float64]) -> float:
        step = np.diff(path[:, :2], axis=0)
        return float((step[1:] * step[:-1]).sum(1).mean())

    for path in many:
        assert np.allclose(path[60], 0)
        assert np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1).mean() == pytest.approx(1)
    for figure in (extent, turning):
        assert ks_2samp([figure(p) for p in many], [figure(p) for p in single]).pvalue > 0.01


def test_shorter_paths_beside_longer_ones() -> None:
    paths = particle_paths(np.random.default_rng(1), np.asarray([30, 90], dtype=np.int64), 2)
    assert np.linalg.norm(np.diff(paths[0, :30], axis=0), axis=1).mean() == pytest.approx(1)
    assert np.allclose(paths[0, 15], 0)


@pytest.mark.parametrize(("count", "size"), [(137, 60), (64, 64), (65, 64), (200, 70)])
def test_both_ways_to_reduce(count: int, size: int) -> None:
    numbers = torch.Generator().manual_seed(count)
    square = torch.randint(0, 256, (1, 3, count, count), dtype=torch.uint8, generator=numbers)
    image = Image.fromarray(square[0].permute(1, 2, 0).numpy())
    by_pillow, by_matrices = reduce_on_host(image, size), reduce_by_matrices(square, size)
    difference = (by_pillow.int() - by_matrices.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.01


def pictures(count: int, height: int, width: int) -> Tensor:
    numbers = np.random.default_rng(4)
    small = numbers.random((count, 3, height // 4 + 1, width // 4 + 1))
    x = np.kron(small, np.ones((1, 1, 4, 4)))[..., :height, :width] * 255
    return torch.from_numpy(np.round(x)).float()


@pytest.mark.parametrize("quality", [30, 60, 80, 97])
@pytest.mark.parametrize("size", [(48, 64), (42, 36)])
def test_jpeg_is_what_libjpeg_makes_of_it(quality: int, size: tuple[int, int]) -> None:
    x = pictures(3, *size)
    ours = jpeg(x, quality)
    for picture, found in zip(x, ours, strict=True):
        buffer = io.BytesIO()
        pixels = picture.permute(1, 2, 0).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2)
        theirs = np.asarray(Image.open(buffer).convert("RGB")).astype(np.float32)
        loss = rms(theirs - pixels)
        assert rms(found.permute(1, 2, 0).numpy() - theirs) < 0.2 * loss + 1.0
        assert rms(found.permute(1, 2, 0).numpy() - pixels) == pytest.approx(loss, rel=0.1)
        on_host = jpeg_on_host(picture[None], quality)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(on_host, theirs)


def rms(x: NDArray[Any]) -> float:
    return float(np.sqrt((x.astype(np.float64) ** 2).mean()))


def test_a_layer_lies_within_its_box() -> None:
    """What a blob's box leaves out, the blob does not reach."""
    rng = np.random.default_rng(6)
    size, patch = 40, 104
    seen = 0
    for _ in range(60):
        blob = batched._Blob.draw(rng, patch)
        mask = blob.mask((0, 0), patch, CPU)
        path = particle_path(rng, 9, 4) * rng.uniform(0.5, 8)
        matrices = affine(path, size, rng).numpy()
        views = views_on_host(mask[None], matrices[None] * np.float32(size / patch), size)
        whole = views(slice(None), (0, 0, size, size))
        reached = torch.nonzero(whole[0, 0].amax(0) > 0)
        (box,) = batched._boxes(matrices[None], [blob], size, patch, 9)
        alone = [batched._boxes(m[None, None], [blob], size, patch, 1)[0] for m in matrices]
        assert batched._boxes(matrices[None], [blob], size, patch, 1) == alone
        if not len(reached):
            continue
        seen += 1
        assert box is not None
        top, left, bottom, right = box
        assert inside(reached[:, 0], top, bottom)
        assert inside(reached[:, 1], left, right)
    assert seen > 20


def test_a_layers_square_holds_all_of_its_blob() -> None:
    """What is left out of a patch lets nothing through, and the rest is where it was."""
    rng = np.random.default_rng(7)
    patch = 120
    smaller = 0
    for _ in range(60):
        blob = batched._Blob.draw(rng, patch)
        whole = blob.mask((0, 0), patch, CPU)
        side = min(int(2 * max(blob.reach)) + 2, patch)
        x, y = blob.corner(side, patch)
        square = blob.mask((x, y), side, CPU)
        torch.testing.assert_close(square, whole[:, y : y + side, x : x + side], atol=1e-3, rtol=0)
        assert float(square.sum()) == pytest.approx(float(whole.sum()), rel=1e-4)
        smaller += side < patch
    assert smaller > 30


def inside(at: Tensor, low: int, high: int) -> bool:
    return bool((at >= low).all() and (at < high).all())


@pytest.mark.parametrize("views", [views_by_grids, views_on_host])
def test_the_square_of_a_patch_holds_all_that_the_camera_sees(
    views: Callable[[torch.Tensor, NDArray[np.float32], int], Views],
) -> None:
    rng = np.random.default_rng(5)
    size, patch = 48, 176
    small = rng.normal(0, 0.05, (3, 7, 2, 3)) + np.eye(2, 3)
    small[..., 2] = rng.uniform(-1.2, 1.2, (3, 7, 2))
    matrices = small.astype(np.float32)
    pictures = torch.from_numpy(rng.random((3, 2, patch, patch), dtype=np.float32))
    corners, side = _seen(matrices, size, patch)
    assert size < side < patch
    squares = torch.stack(
        [p[:, y : y + side, x : x + side] for p, (x, y) in zip(pictures, corners, strict=True)]
    )
    box = (0, 0, size, size)
    through = matrices * np.float32(size / patch)
    into = _into_square(matrices, corners, size, patch, side)
    for n in range(3):  # on the host one at a time
        one = slice(n, n + 1)
        whole = views(pictures[one], through[one], size)(slice(None), box)
        assert whole.std() > 0.1
        part = views(squares[one], into[one], size)(slice(None), box)
        assert (part - whole).abs().max() < 1e-4


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_moved_alike_by_opencv_and_by_grids(channels: int) -> None:
    """Also in a box, at some of the points, and beyond the ends of the picture."""
    rng = np.random.default_rng(8)
    size, side = 48, 70
    matrices = rng.normal(0, 0.1, (1, 9, 2, 3)) + 0.7 * np.eye(2, 3)
    matrices[..., 2] = rng.uniform(-0.6, 0.6, (1, 9, 2))
    picture = torch.from_numpy(rng.random((1, channels, side, side), dtype=np.float32))
    there = picture.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)  # any order in memory
    by_grids = views_by_grids(picture, matrices.astype(np.float32), size)
    on_host = views_on_host(there, matrices.astype(np.float32), size)
    for points, box in ((slice(None), (0, 0, size, size)), (slice(3, 6), (5, 11, 37, 40))):
        expected, found = by_grids(points, box), on_host(points, box)
        assert found.shape == expected.shape
        assert found.is_contiguous()
        assert (found - expected).abs().max() < 1e-4
        assert found.std() > 0.1


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 5, 8, 8)])
def test_more_than_opencv_moves_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"too many values|5 channels"):
        views_on_host(torch.zeros(shape), np.zeros((shape[0], 1, 2, 3), np.float32), 8)


def test_the_benchmark_of_both(photos: list[Path], tmp_path: Path) -> None:
    """It makes sequences both ways and writes what it found."""
    output = tmp_path / "new" / "synthesis.csv"
    small = ["--size", "32", "--frames", "3", "--batch", "2", "--rounds", "2", "-o", str(output)]
    result = CliRunner().invoke(synthesis.main, [str(photos[0].parent), *small])
    assert result.exit_code == 0, result.output
    with output.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["frames"], row["size"], row["rounds"]) == ("3", "32", "2")
    assert float(row["batched_per_s"]) > 0
    assert float(row["ratio"]) > 0
