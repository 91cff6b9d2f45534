"""``vs-deblur photo`` as a process, with a small network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tests.cli.conftest import StartRun
from tests.pictures import PROFILE, exif, jpeg, png, segment, waves

CPU = ("--device", "cpu", "--precision", "fp32")


def test_photos_through_a_network(run: StartRun, small_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    picture = waves(40, 50, 4, np.uint16)
    picture[:10, :, 3] = 0
    (tmp_path / "a.png").write_bytes(png(picture))
    parts = segment(0xE1, b"Exif\0\0" + exif(6)), segment(0xE2, b"ICC_PROFILE\0\1\1" + PROFILE)
    (tmp_path / "b.jpg").write_bytes(jpeg(waves(40, 50, 3), *parts))
    tifffile.imwrite(tmp_path / "c.tif", waves(33, 47, 1, np.float32)[..., 0])
    (tmp_path / "d.jpg").write_bytes(b"no picture")
    result = run("photo", tmp_path, "-o", tmp_path / "out", "--model", small_weights, *CPU).finish()
    assert result.code == 3, result.err
    assert result.out == b""
    assert len(result.errors) == 2  # the bad file, and the last word
    assert "on cpu" in result.err
    assert "done: 3 of 4 photos" in result.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.jpg", "c.tif"]
    again = run("photo", tmp_path / "out" / "a.png", "--strength", 0).finish()
    assert again.code == 0, again.err
    from vs_deblur.photofile import read

    sharp = read(tmp_path / "out" / "a.png").samples
    assert sharp.dtype == np.uint16
    assert np.array_equal(sharp[:10], picture[:10])
    assert np.array_equal(sharp[..., 3], picture[..., 3])
    assert not np.array_equal(sharp, picture)
    with Image.open(tmp_path / "out" / "b.jpg") as image:
        assert image.size == (40, 50)
        assert image.info["icc_profile"] == PROFILE
    assert tifffile.imread(tmp_path / "out" / "c.tif").dtype == np.float32


def test_errors_are_one_line_with_their_code(run: StartRun, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(waves(9, 9, 3))[:-20])
    result = run("photo", tmp_path / "a.jpg").finish()
    assert result.code == 3
    lines = result.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("vs-deblur: error: the JPEG file is cut off")
    help_text = run("photo", "--help").finish()
    assert help_text.code == 0
    assert b"--max-pixels" in help_text.out
