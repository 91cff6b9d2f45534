"""``vs-deblur measure``: sequences on disk, figures, table, JSON and page."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from tests.invoke import Result, invoke
from vs_deblur.cli._measure_sources import sources
from vs_deblur.cli.measure import command
from vs_deblur.engine import Deblurrer
from vs_deblur.errors import InputError
from vs_deblur.measuring import Compared, FrameFigures, Run, image_runs, measure, rgb8
from vs_deblur.metrics import psnr, ssim
from vs_deblur.report import CROP, Samples, most_changed
from vs_deblur.sequences import (
    ImagePair,
    frame_number,
    images,
    match,
    pair_folders,
    read_image,
    sizes_differ,
    split_runs,
    two_folders,
)
from vs_deblur.weights import load
from vs_deblur_kernels.pixels import PixelFormat

Image = NDArray[np.uint8]


def scene(n: int, height: int = 24, width: int = 32) -> Image:
    """Frame n of a pattern that moves 2 pixels a frame."""
    y, x = np.mgrid[:height, :width]
    planes = [127 + 90 * np.sin((x + 2 * n + 5 * c) / 3) * np.cos(y / 4) for c in range(3)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def blur(sharp: Image) -> Image:
    wide = np.pad(sharp.astype(np.float64), ((0, 0), (2, 2), (0, 0)), mode="edge")
    moved = [wide[:, i : i + sharp.shape[1]] for i in range(5)]
    return np.mean(moved, axis=0).round().astype(np.uint8)


def write(path: Path, pixels: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(pixels).save(path)


def write_pairs(folder: Path, names: Sequence[str], suffix: str = ".png", **size: int) -> Path:
    for n, name in enumerate(names):
        sharp = scene(n, **size)
        write(folder / "sharp" / f"{name}{suffix}", sharp)
        write(folder / "blur" / f"{name}{suffix}", blur(sharp))
    return folder


def run_json(small_weights: Path, *args: object) -> dict[str, Any]:
    result = invoke(command, *args, "--model", small_weights, "--device", "cpu", "--json")
    assert result.code == 0, result.error
    answer = json.loads(result.out)
    assert isinstance(answer, dict)
    return answer


# --------------------------------------------------------------------------- sequences on disk


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("000007", ("", 7, "")),
        ("shot2_0010_blur", ("shot2_", 10, "_blur")),
        ("portrait", ("portrait", None, "")),
    ],
)
def test_frame_numbers(name: str, parts: tuple[str, int | None, str]) -> None:
    assert frame_number(name) == parts


@pytest.mark.parametrize(
    ("names", "lengths"),
    [
        (["01", "03", "05"], [1, 1, 1]),
        (["000", "001", "002"], [3]),
        (["8", "9", "10", "12", "13"], [3, 2]),
        (["a1", "a2", "b3"], [2, 1]),
        (["left", "right"], [1, 1]),
        (["1a", "2b"], [1, 1]),
        ([], []),
    ],
)
def test_consecutive_numbers_are_consecutive_frames(names: list[str], lengths: list[int]) -> None:
    runs = split_runs([ImagePair(Path(f"{n}.png"), Path("x")) for n in names])
    assert [len(r) for r in runs] == lengths
    assert [p.blurred.stem for r in runs for p in r] == names


def test_images_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("f10.png", "f9.PNG", "f1.png", ".hidden.png", "notes.txt", "f2.webp"):
        (tmp_path / name).touch()
    assert [p.name for p in images(tmp_path)] == ["f1.png", "f2.webp", "f9.PNG", "f10.png"]


def test_pairs_are_matched_by_number_where_names_differ() -> None:
    blurred = [Path(f"blur_{i:02}.png") for i in (1, 2)]
    sharp = [Path(f"{i:04}_gt.png") for i in (2, 1)]
    pairs = match(blurred, sharp, "here")
    assert [(p.blurred.name, p.sharp.name) for p in pairs] == [
        ("blur_01.png", "0001_gt.png"),
        ("blur_02.png", "0002_gt.png"),
    ]


@pytest.mark.parametrize(
    ("blurred", "sharp", "what"),
    [
        (["1", "2"], ["1"], "2 blurred but 1 sharp"),
        (["1", "2"], ["1", "3"], "2.png has no sharp counterpart"),
        (["left", "right"], ["left", "up"], "right.png has no sharp counterpart"),
    ],
)
def test_images_without_counterpart(blurred: list[str], sharp: list[str], what: str) -> None:
    with pytest.raises(InputError, match=re.escape(what)):
        match([Path(f"{n}.png") for n in blurred], [Path(f"{n}.png") for n in sharp], "here")


@pytest.mark.parametrize(
    ("blurred", "sharp", "what"),
    [
        (["1", "2", "3"], ["1", "3"], "3 blurred but 2 sharp images: 2.png has no sharp"),
        (["1", "3"], ["1", "2", "3"], "2 blurred but 3 sharp images: 2.png has no blurred"),
        (["b1", "b2", "b3"], ["s1", "s3"], "b2.png has no sharp counterpart"),
        (["b1"], [], "b1.png has no sharp counterpart"),
    ],
)
def test_the_first_image_without_partner_is_named(
    blurred: list[str], sharp: list[str], what: str
) -> None:
    with pytest.raises(InputError, match=re.escape(what)):
        match([Path(f"{n}.png") for n in blurred], [Path(f"{n}.png") for n in sharp], "here")
    again = [Path("1.png"), Path("1.jpg")]
    with pytest.raises(InputError, match="2 blurred but 1 sharp images: two have the same name"):
        match(again, again[:1], "here")


def test_the_first_folder_without_partner_is_named(tmp_path: Path) -> None:
    for name in ("blur/a", "blur/b", "sharp/a", "sharp/b", "sharp/c"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InputError, match="2 blurred but 3 sharp sequences: c has no blurred"):
        two_folders(tmp_path / "blur", tmp_path / "sharp")
    (tmp_path / "sharp" / "b").rmdir()
    with pytest.raises(InputError, match=r"^b has no sharp counterpart"):
        two_folders(tmp_path / "blur", tmp_path / "sharp")


def test_two_images_of_one_name() -> None:
    twice = [Path("1.png"), Path("1.jpg")]
    with pytest.raises(InputError, match="two images of the same name"):
        match(twice, twice, "here")


def test_pair_folders_of_every_layout(tmp_path: Path) -> None:
    one = write_pairs(tmp_path / "one", ["0", "1"])
    write_pairs(tmp_path / "two", ["1", "3"])
    (tmp_path / "notes").mkdir()
    assert [s.name for s in pair_folders(tmp_path)] == ["one", "two"]
    assert [[len(r) for r in s.runs] for s in pair_folders(tmp_path)] == [[2], [1, 1]]
    assert [s.frames for s in pair_folders(one)] == [2]
    assert two_folders(one / "blur", one / "sharp")[0].runs == pair_folders(one)[0].runs


def test_folders_of_folders(tmp_path: Path) -> None:
    for name in ("000", "001"):
        write_pairs(tmp_path / name, ["0"])
        for kind in ("blur", "sharp"):
            (tmp_path / "all" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / kind).rename(tmp_path / "all" / kind / name)
    found = two_folders(tmp_path / "all" / "blur", tmp_path / "all" / "sharp")
    assert [s.name for s in found] == ["000", "001"]
    (tmp_path / "all" / "sharp" / "001").rename(tmp_path / "all" / "sharp" / "002")
    with pytest.raises(InputError, match="001 has no sharp counterpart"):
        two_folders(tmp_path / "all" / "blur", tmp_path / "all" / "sharp")


def test_sizes_that_differ_are_runs_of_their_own(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "a", ["0", "1"])
    assert not sizes_differ(pair_folders(folder)[0])
    for n, (height, width) in enumerate([(20, 20), (20, 20), (24, 32)], 2):
        for kind in ("blur", "sharp"):
            write(folder / kind / f"{n}.png", scene(n, height, width))
    (sequence,) = pair_folders(folder)
    assert [len(r) for r in sequence.runs] == [5]
    assert sizes_differ(sequence)
    shapes = [[sharp.shape[:2] for _, sharp in run.frames] for run in image_runs(sequence)]
    assert shapes == [[(24, 32)] * 2, [(20, 20)] * 2, [(24, 32)]]


def _png16(path: Path, colour: bool) -> None:
    """A PNG of 16 bits, which Pillow cannot write in colour."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    channels = 3 if colour else 1
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2 if colour else 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(4 * channels * 2)) * 4)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize("colour", [True, False])
def test_16_bits_are_refused_and_never_cut(tmp_path: Path, colour: bool) -> None:
    _png16(tmp_path / "x.png", colour)
    with pytest.raises(InputError, match="more than 8 bits"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_images(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "x.png")


def test_a_truncated_image(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write(tmp_path / "x.png", noise)
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "x.png")


def test_kinds_of_images(tmp_path: Path) -> None:
    pixels = scene(0)
    opaque = np.dstack((pixels, np.full(pixels.shape[:2], 255, np.uint8)))
    clear = opaque.copy()
    clear[3, 3, 3] = 254
    write(tmp_path / "opaque.png", opaque)
    write(tmp_path / "clear.png", clear)
    write(tmp_path / "grey.png", pixels[..., 0])
    assert np.array_equal(read_image(tmp_path / "opaque.png"), pixels)
    assert np.array_equal(read_image(tmp_path / "grey.png"), pixels[..., :1].repeat(3, axis=2))
    with pytest.raises(InputError, match="transparent"):
        read_image(tmp_path / "clear.png")


def test_images_are_turned_upright(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Pillow.fromarray(scene(0)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png"), np.rot90(scene(0), -1))


# --------------------------------------------------------------------------------------- figures


def test_the_figures_are_those_of_the_rounded_result(small_weights: Path, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "clip", [f"{i:03}" for i in range(5)])
    answer = run_json(small_weights, folder)
    sharp = [scene(n) for n in range(5)]
    blurred = [blur(s) for s in sharp]
    result = list(Deblurrer(str(small_weights), device="cpu").video(blurred))
    (row,) = answer["sequences"]
    assert (row["name"], row["frames"], row["sizes"]) == ("clip", 5, [[32, 24]])
    for n, frame in enumerate(row["per_frame"]):
        assert frame["psnr_before"] == psnr(blurred[n], sharp[n])
        assert frame["psnr_after"] == psnr(result[n], sharp[n])
        assert frame["ssim_before"] == ssim(blurred[n], sharp[n])
        assert frame["ssim_after"] == ssim(result[n], sharp[n])
    for key in ("psnr_before", "psnr_after", "ssim_before", "ssim_after"):
        assert row[key] == pytest.approx(np.mean([f[key] for f in row["per_frame"]]))
    assert row["gain"] == pytest.approx(row["psnr_after"] - row["psnr_before"])
    assert row["per_frame"][0]["temporal_psnr_after"] is None
    assert row["per_frame"][1]["temporal_psnr_after"] is not None


def test_a_gap_in_the_numbers_starts_afresh(small_weights: Path, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "a", ["01", "03", "05"])
    (row,) = run_json(small_weights, folder)["sequences"]
    deblurrer = Deblurrer(str(small_weights), device="cpu")
    for n, frame in enumerate(row["per_frame"]):
        (alone,) = deblurrer.video([blur(scene(n))])
        assert frame["psnr_after"] == psnr(alone, scene(n))
        assert frame["temporal_psnr_before"] is None


def test_strength_zero_changes_no_figure(small_weights: Path, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "a", ["0", "1"])
    (row,) = run_json(small_weights, folder, "--strength", "0")["sequences"]
    assert row["gain"] == 0.0
    assert row["ssim_after"] == row["ssim_before"]


def test_means_count_each_sequence_once(small_weights: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "long", ["0", "1", "2"])
    write_pairs(tmp_path / "short", ["0"], height=40, width=20)
    answer = run_json(small_weights, tmp_path)
    long, short = answer["sequences"]
    assert answer["mean"]["frames"] == 4
    for key in ("psnr_before", "psnr_after", "gain", "ssim_before", "ssim_after"):
        assert answer["mean"][key] == pytest.approx((long[key] + short[key]) / 2)


def test_identical_frames_are_counted_and_not_averaged(small_weights: Path, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "a", ["0", "1", "2"])
    write(folder / "blur" / "1.png", scene(1))
    (row,) = run_json(small_weights, folder, "--strength", "0")["sequences"]
    assert (row["identical_before"], row["identical_after"]) == (1, 1)
    assert row["per_frame"][1]["psnr_before"] is None
    expected = np.mean([row["per_frame"][n]["psnr_before"] for n in (0, 2)])
    assert row["psnr_before"] == pytest.approx(expected)
    result = invoke(command, folder, "--strength", "0", "--model", small_weights, "--device", "cpu")
    assert "a: 1 frames before and 1 after are identical" in result.err


def test_a_sequence_of_identical_frames_is_infinite(small_weights: Path, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "a", ["0", "1"]) / "sharp"
    args = (folder, folder, "--strength", "0", "--model", small_weights, "--device", "cpu")
    result = invoke(command, *args)
    assert result.code == 0
    assert re.search(r"^sharp +2 +inf +inf +- +1\.0000 +1\.0000$", result.out, re.MULTILINE)
    (row,) = run_json(small_weights, *args[:4])["sequences"]
    assert row["psnr_before"] is row["gain"] is None


def test_what_became_of_an_identical_frame_is_told(small_weights: Path, tmp_path: Path) -> None:
    """The table has the figure that the warning says is in no mean; there is no gain."""
    folder = write_pairs(tmp_path / "a", ["0"]) / "sharp"
    args = (folder, folder, "--model", small_weights, "--device", "cpu")
    result = invoke(command, *args)
    assert "1 frames before and 0 after are identical" in result.err
    assert "in neither mean" in result.err
    (row,) = run_json(small_weights, folder, folder)["sequences"]
    (frame,) = row["per_frame"]
    name, frames, before, after, gain = result.out.splitlines()[1].split()[:5]
    assert (name, frames, before, gain) == ("sharp", "1", "inf", "-")
    assert after == f"{frame['psnr_after']:.2f}"
    assert row["psnr_after"] is None


def test_a_frame_spoilt_from_identical_is_in_no_mean() -> None:
    good = FrameFigures(30.0, 31.0, 0.9, 0.9)
    spoilt = FrameFigures(math.inf, 45.0, 1.0, 0.99)
    assert good.gain == 1.0
    assert spoilt.gain is None
    assert spoilt.identical


class _Pulsing:
    """An engine that adds 40 levels to the first frame of each segment."""

    def __init__(self, segment: int) -> None:
        from vs_deblur.timeline import Plan

        self.plan = Plan(segment, 1 if segment else 0, 0, 0)

    def passes_through(self) -> bool:
        return False

    def stream(self, frames: Any, fmt: PixelFormat, **kwargs: Any) -> Any:
        from vs_deblur.engine import Frame
        from vs_deblur.timeline import stream

        def step(window: Any, _: Any) -> Any:
            return Frame(window[0], False), ()

        for output in stream(self.plan, frames, step, **kwargs):
            border = self.plan.segment and output.n % self.plan.segment == 0
            add = 40 if border else output.n % 2
            yield type(output)(
                output.n,
                Frame([p + np.uint8(add) for p in output.value.planes], False),
                output.anchor,
            )


def _still(length: int, cut: int | None = None) -> Run:
    dark, light = np.full((2, 12, 12, 3), 20, np.uint8)
    light = light + np.uint8(150)
    frames = [light if cut is not None and n >= cut else dark for n in range(length)]
    fmt = PixelFormat("rgb", 8, full_range=True)
    return Run(fmt, [([f[..., c] for c in range(3)], f) for f in frames])


def test_pulse_counts_segment_borders() -> None:
    engine: Any = _Pulsing(6)
    pulse = measure("a", [_still(20)], engine).pulse
    assert pulse.borders == [39.0, 39.0, 39.0]
    assert len(pulse.elsewhere) == 16
    assert pulse.ratio is not None
    assert pulse.ratio > 3


def test_pulse_leaves_out_borders_that_are_cuts() -> None:
    engine: Any = _Pulsing(6)
    pulse = measure("a", [_still(12, cut=6)], engine, scene_threshold=0.1).pulse
    assert pulse.borders == []
    assert len(pulse.elsewhere) == 11


def test_a_recurrence_without_segments_has_no_borders() -> None:
    engine: Any = _Pulsing(0)
    assert measure("a", [_still(9)], engine).pulse.borders == []


def test_rgb8_of_other_formats() -> None:
    sixteen = PixelFormat("rgb", 16, full_range=True)
    planes = [np.array([[0, 128, 129, 65535]], np.uint16)] * 3
    assert rgb8(planes, sixteen)[0, :, 0].tolist() == [0, 0, 1, 255]
    grey = PixelFormat("gray", 8)
    assert rgb8([np.array([[16, 235, 255]], np.uint8)], grey)[0, :, 1].tolist() == [0, 255, 255]


# ------------------------------------------------------------------------------------ the command


def test_the_table(small_weights: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", ["0", "1"])
    write_pairs(tmp_path / "b", ["0"], height=8, width=8)
    result = invoke(command, tmp_path, "--model", small_weights, "--device", "cpu", "--temporal")
    assert result.code == 0
    head, a, b, mean = result.out.splitlines()
    assert head.split()[:2] == ["sequence", "frames"]
    assert a.split()[:2] == ["a", "2"]
    assert b.split()[5:7] == ["-", "-"]  # smaller than the window of SSIM
    assert mean.split()[:2] == ["mean", "3"]
    assert len({len(line.rstrip()) for line in (head, a, b, mean)}) == 1
    assert "3 frames" in result.err


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ((), {"singles": "photo", "walk": "video"}),
        (("--photos",), "photo"),
        (("--frames",), "video"),
    ],
)
def test_photos_are_measured_with_the_model_for_photos(
    small_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    kinds: str | dict[str, str],
) -> None:
    """Two weights files stand for the defaults; each row says which one it was made with."""
    for kind in ("photo", "video"):
        shutil.copy(small_weights, tmp_path / f"{kind}.safetensors")
    monkeypatch.setattr(
        "vs_deblur.engine.load", lambda _, kind: load(str(tmp_path / f"{kind}.safetensors"))
    )
    write_pairs(tmp_path / "in" / "singles", ["01", "03"])
    write_pairs(tmp_path / "in" / "walk", ["0", "1"])
    result = invoke(command, tmp_path / "in", "--json", "--device", "cpu", *options)
    assert result.code == 0, result.error
    answer = json.loads(result.out)
    found = {row["name"]: row["model"] for row in answer["sequences"]}
    assert found == (kinds if isinstance(kinds, dict) else dict.fromkeys(found, kinds))
    assert sorted(answer["models"]) == sorted(set(found.values()))
    refused = invoke(
        command, tmp_path / "in", "--model", small_weights, *(options or ("--photos",))
    )
    assert refused.code == 2
    assert "the default model" in str(refused.error)


def kinds_of(blurred: Path, sharp: Path | None = None) -> list[tuple[str, str]]:
    return [(source.kind, source.why) for source in sources(blurred, sharp)]


def save_turned(folder: Path, orientation: int, name: str) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    for kind in ("blur", "sharp"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(scene(0)).save(folder / kind / f"{name}.jpg", exif=exif)


def test_images_of_different_sizes_are_photos(tmp_path: Path) -> None:
    """However consecutive their numbers are; upright and lying ones count as different."""
    for number in (101, 102):
        save_turned(tmp_path / "same", 1, f"IMG_{number}")
        save_turned(tmp_path / "turned", 1 if number == 101 else 6, f"IMG_{number}")
    assert kinds_of(tmp_path / "same") == [("video", "numbers follow each other")]
    assert kinds_of(tmp_path / "turned") == [("photo", "their sizes differ")]
    # One that cannot be read is no reason: what is wrong with it is said when it is read.
    (tmp_path / "same" / "blur" / "IMG_102.jpg").write_bytes(b"broken")
    assert kinds_of(tmp_path / "same") == [("video", "numbers follow each other")]


def test_two_image_files_are_a_photo(
    small_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the same figures as in folders, and without a word about an alpha that is not there."""
    folder = write_pairs(tmp_path / "a", ["IMG_1"])
    blurred, sharp = folder / "blur" / "IMG_1.png", tmp_path / "IMG_1.webp"
    Pillow.fromarray(scene(0)).save(sharp, lossless=True)
    assert kinds_of(blurred, sharp) == [("photo", "two image files")]
    (row,) = run_json(small_weights, blurred, sharp)["sequences"]
    assert "alpha" not in caplog.text
    (same,) = run_json(small_weights, folder)["sequences"]
    assert (row.pop("name"), same.pop("name")) == ("IMG_1", "a")
    assert row == same


def test_two_image_files_of_16_bits_are_a_photo_too(small_weights: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        _png16(tmp_path / name, colour=True)
    assert kinds_of(tmp_path / "a.png", tmp_path / "b.png") == [("photo", "two image files")]
    (row,) = run_json(small_weights, tmp_path / "a.png", tmp_path / "b.png")["sequences"]
    assert (row["frames"], row["sizes"]) == (1, [[4, 4]])


def test_an_animation_is_no_photo(small_weights: Path, tmp_path: Path) -> None:
    frames = [Pillow.fromarray(scene(n)) for n in range(3)]
    for name in ("a.png", "b.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=40)
    assert kinds_of(tmp_path / "a.png", tmp_path / "b.png") == [("video", "two video files")]


@pytest.mark.parametrize("as_json", [True, False])
def test_what_images_are_taken_for_is_told(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setattr("vs_deblur.engine.load", lambda _, kind: load(str(small_weights)))
    options = ("--device", "cpu", *(("--json",) if as_json else ()))
    walk = write_pairs(tmp_path / "in" / "walk", ["IMG_101", "IMG_102", "IMG_104"])
    singles = write_pairs(tmp_path / "in" / "singles", ["01", "03"])
    as_video = "taken as video frames (numbers follow each other); --photos for single photos"
    as_photos = "taken as photos (no two numbers follow each other); --frames for frames in a row"
    assert f"vs-deblur: {as_video}\n" in invoke(command, walk, *options).err
    assert f"vs-deblur: {as_photos}\n" in invoke(command, singles, *options).err
    both = invoke(command, tmp_path / "in", *options).err
    assert f"vs-deblur: walk: {as_video}\n" in both
    assert f"vs-deblur: singles: {as_photos}\n" in both
    pair = (singles / "blur" / "01.png", singles / "sharp" / "01.png")
    assert "taken as photos (two image files)" in invoke(command, *pair, *options).err
    for said in (("--photos",), ("--frames",), ("--model", small_weights)):
        result = invoke(command, walk, *options, *said)
        assert result.code == 0
        assert "taken as" not in result.err


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "img"):
            assert self.open.pop() == tag


def test_the_page_needs_nothing_else(small_weights: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "in" / "<b>&", ["0", "1", "2"])
    page = tmp_path / "page.html"
    result = invoke(
        command, tmp_path / "in", "--model", small_weights, "--device", "cpu", "--html", page
    )
    assert result.code == 0, result.error
    text = page.read_text(encoding="utf-8")
    parser = _Links()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.found) == 6  # best and worst frame: before, after, sharp
    assert all(link.startswith("data:image/png;base64,") for link in parser.found)
    assert "http" not in text
    assert "url(" not in text
    assert "&lt;b&gt;&amp;" in text
    assert "<b>" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "page.html"]


def test_a_page_of_identical_frames(small_weights: Path, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "a", ["0", "1"]) / "sharp"
    args = ("--strength", "0", "--model", small_weights, "--html", tmp_path / "page.html")
    assert invoke(command, folder, folder, *args).code == 0
    assert "<img" not in (tmp_path / "page.html").read_text()


def test_a_page_that_exists_is_kept(small_weights: Path, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "a", ["0"])
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert invoke(command, folder, "--html", page, "--model", small_weights).code == 2
    assert page.read_text() == "mine"
    assert (
        invoke(command, folder, "--html", page, "--model", small_weights, "--overwrite").code == 0
    )
    assert page.read_text() != "mine"


@pytest.mark.parametrize("name", ["absent/page.html", "."])
def test_a_page_that_cannot_be_written_is_refused_first(tmp_path: Path, name: str) -> None:
    folder = write_pairs(tmp_path / "a", ["0"])
    # The model does not exist either: the output is looked at before it.
    args = ("--html", tmp_path / name, "--model", "no_such_model")
    assert invoke(command, folder, *args).code == 4


def test_nothing_is_left_of_a_page_after_an_error(small_weights: Path, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "a", ["0", "1"])
    (folder / "blur" / "1.png").write_bytes(b"broken")
    page = tmp_path / "page.html"
    result = invoke(command, folder, "--html", page, "--model", small_weights)
    assert result.code == 3
    assert "1.png" in str(result.error)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


Arrange = Callable[[Path], Sequence[Path]]


def _pair(folder: Path) -> Path:
    return write_pairs(folder / "p", ["0", "1"])


def _short(folder: Path) -> Sequence[Path]:
    (_pair(folder) / "sharp" / "1.png").unlink()
    return [folder / "p"]


def _other_size(folder: Path) -> Sequence[Path]:
    write(_pair(folder) / "sharp" / "1.png", scene(1, 20, 20))
    return [folder / "p"]


FAULTS: dict[str, tuple[Arrange, int, str]] = {
    "missing": (lambda f: [f / "absent"], 3, "no such file or folder"),
    "missing sharp": (lambda f: [_pair(f), f / "absent"], 3, "no such file or folder"),
    "no pairs": (lambda f: [f], 3, "no blur/ and sharp/ in it"),
    "no images": (lambda f: [_pair(f) / "blur", f], 3, "2 blurred but 0 sharp"),
    "empty": (lambda f: [f, f], 3, "no images"),
    "counts": (_short, 3, "2 blurred but 1 sharp"),
    "sizes": (_other_size, 3, "blurred is 32x24, sharp 20x20"),
    "folder and file": (lambda f: [_pair(f), f / "p/blur/0.png"], 3, "one is a file"),
    "one file": (lambda f: [_pair(f) / "blur/0.png"], 2, "needs a second one"),
    "nothing": (lambda f: [], 2, "blurred"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(small_weights: Path, tmp_path: Path, fault: str) -> None:
    arrange, code, what = FAULTS[fault]
    result: Result = invoke(
        command, *arrange(tmp_path), "--model", small_weights, "--device", "cpu"
    )
    assert result.code == code
    assert what in str(result.error)
    assert result.out == ""


# --------------------------------------------------------------------------------------- videos


def write_video(path: Path, frames: Sequence[Image]) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(25))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_videos_have_the_figures_of_their_frames(small_weights: Path, tmp_path: Path) -> None:
    sharp = [scene(n) for n in range(4)]
    a = write_video(tmp_path / "a.mkv", [blur(s) for s in sharp])
    b = write_video(tmp_path / "b.mkv", sharp)
    folder = write_pairs(tmp_path / "clip", [f"{n}" for n in range(4)])
    (video,) = run_json(small_weights, a, b)["sequences"]
    (pictures,) = run_json(small_weights, folder)["sequences"]
    assert (video.pop("name"), pictures.pop("name")) == ("a", "clip")
    assert video == pictures


@pytest.mark.parametrize("lengths", [(3, 5), (5, 3)])
def test_videos_of_different_lengths(
    small_weights: Path, tmp_path: Path, lengths: tuple[int, int]
) -> None:
    paths = [
        write_video(tmp_path / f"{i}.mkv", [scene(n) for n in range(length)])
        for i, length in enumerate(lengths)
    ]
    result = invoke(command, *paths, "--model", small_weights, "--device", "cpu")
    assert result.code == 3
    assert f"{lengths[0]} blurred but {lengths[1]} sharp frames" in str(result.error)


def test_videos_of_different_sizes(small_weights: Path, tmp_path: Path) -> None:
    a = write_video(tmp_path / "a.mkv", [scene(0)])
    b = write_video(tmp_path / "b.mkv", [scene(0, 32, 24)])
    result = invoke(command, a, b, "--model", small_weights)
    assert result.code == 3
    assert "blurred is 32x24, sharp 24x32" in str(result.error)


# ------------------------------------------------------------------------------------- the page


def test_the_crop_is_where_the_most_was_changed() -> None:
    before = np.zeros((300, 400, 3), np.uint8)
    after = before.copy()
    after[210:220, 330:340] = 9
    after[10:12, 10:12] = 9
    rows, columns = most_changed(before, after)
    assert rows.stop - rows.start == columns.stop - columns.start == CROP
    assert rows.start <= 210 < 220 <= rows.stop <= 300
    assert columns.start <= 330 < 340 <= columns.stop <= 400


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5), (CROP, CROP), (CROP + 1, CROP)])
def test_crops_of_small_frames(size: tuple[int, int]) -> None:
    frame = np.zeros((*size, 3), np.uint8)
    rows, columns = most_changed(frame, frame)
    assert frame[rows, columns].shape == (min(size[0], CROP), min(size[1], CROP), 3)


def test_the_best_and_the_worst_frame_are_shown() -> None:
    samples = Samples()
    frame = Compared(scene(0), scene(0), scene(0), False, False)
    for gain in (-3.0, -1.0, -2.0, -5.0, math.inf):
        samples.add(frame, FrameFigures(30.0, 30.0 + gain, 0.9, 0.9))
    best, worst = samples.chosen()
    assert (best.number, worst.number) == (1, 3)
    alone = Samples()
    alone.add(frame, FrameFigures(30.0, 31.0, 0.9, 0.9))
    assert len(alone.chosen()) == 1
    assert Samples().chosen() == []


# ------------------------------------------------------------------------------------- real data


@pytest.mark.shared
def test_real_pairs_are_as_blurred_as_their_readme_says(small_weights: Path, shared: Path) -> None:
    folder = shared / "data" / "pairs" / "val" / "reds_train000_320x180"
    (row,) = run_json(small_weights, folder, "--strength", "0")["sequences"]
    assert row["frames"] == 10
    assert row["psnr_before"] == pytest.approx(24.5, abs=0.06)


def test_a_program_that_is_called_a_picture_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import EpsImagePlugin

    run: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **_: run.append(a))
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(page)
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "a.png")
    assert not run
