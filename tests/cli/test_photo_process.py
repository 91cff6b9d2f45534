"""``vs-deblur photo`` as a process, with a small network."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.cli.conftest import StartRun
from tests.pictures import PROFILE, exif, jpeg, png, segment, waves
from vs_deblur.cli._common import ModelSettings

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
    assert result.err.count("was made for video") == 1
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


def test_tiles_smaller_than_the_network_can_are_said_to_be_larger(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for tile, raised in ((100, True), (5000, False)):
        settings = ModelSettings(device="cpu", precision="fp32", tile=tile)
        deblurrer = settings.deblurrer(kind="photo")
        said = capsys.readouterr().err
        assert (f"pixels instead of {tile}: photo_lite needs at least these" in said) == raised
        assert "video" not in said
        assert deblurrer.spec.tile_overlap is not None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_24_megapixels_within_4_gib(tmp_path: Path) -> None:
    """A camera's picture of 16 bits through the shipped model, on the processor."""
    rng = np.random.default_rng(0)
    samples = np.kron(rng.integers(0, 65536, (500, 750, 3)), np.ones((8, 8, 1), np.int64))
    tifffile.imwrite(tmp_path / "a.tif", samples.astype(np.uint16), photometric="rgb")
    del samples
    main, side = pty.openpty()  # a terminal is told of every tile
    command = [sys.executable, "-m", "vs_deblur", "photo", str(tmp_path / "a.tif")]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--precision", "fp32"], stdout=subprocess.DEVNULL, stderr=side
    )
    os.close(side)
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while chunk := os.read(main, 1 << 16):
            said += chunk
    os.close(main)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said.decode()
    assert used.ru_maxrss < 4 << 20  # KiB
    shares = [int(s) for s in re.findall(rb"a\.tif: (\d+) %", said)]
    assert len(shares) >= 3
    assert shares == sorted(shares)
    with tifffile.TiffFile(tmp_path / "a-sharp.tif") as file:
        assert file.series[0].shape == (4000, 6000, 3)
        assert file.series[0].dtype == np.uint16
