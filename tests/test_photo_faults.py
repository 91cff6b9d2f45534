"""Photos that are damaged, cut off, too large or of a kind that is refused: each says so."""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from tests.bounded import bounded
from tests.pictures import (
    PROFILE,
    pillow,
    png,
    samples,
    tiff,
    waves,
)
from vs_deblur.errors import InputError
from vs_deblur.photofile import Picture, ifd, read, write
from vs_deblur.photofile.png import SIGNATURE, chunk


def header(width: int, height: int, depth: int = 8, kind: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "png16", "deflate", "lzw", "webp"])
def test_files_that_are_cut_off_are_refused_wherever(tmp_path: Path, kind: str) -> None:
    data = samples()[kind]
    path = tmp_path / "cut"
    for length in range(1, len(data) - 12, max(len(data) // 60, 1)):
        with pytest.raises(InputError) as caught:
            read(written(path, data[:length]))
        assert "\n" not in str(caught.value)


def test_jpeg_that_ends_too_early_is_refused_though_it_has_an_end(tmp_path: Path) -> None:
    data = samples()["jpeg"]
    cut = data[: len(data) - 400] + b"\xff\xd9"
    # This is what we must be better than: the rest is grey, in silence.
    with Image.open(io.BytesIO(cut)) as image:
        image.load()
    with pytest.raises(InputError, match="part of the picture is missing"):
        read(written(tmp_path / "cut.jpg", cut))


def test_truncated_files_are_not_allowed_globally() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("name", [b"IDAT", b"iCCP", b"IEND"])
def test_checksums_of_png(tmp_path: Path, name: bytes) -> None:
    data = bytearray(png(waves(9, 9, 3), (b"iCCP", b"x\0\0" + zlib.compress(PROFILE))))
    at = data.index(name)
    length = int.from_bytes(data[at - 4 : at], "big")
    data[at + 4 + length] ^= 1
    with pytest.raises(InputError, match=f"wrong checksum in chunk {name.decode()}"):
        read(written(tmp_path / "a.png", bytes(data)))


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (zlib.compress(bytes(4 * 13)[:-1]), "rows are missing"),
        (zlib.compress(bytes(4 << 20)), "does not end with its last row"),
        (zlib.compress(bytes(4 * 13))[:-1], "does not end"),
        (b"not zlib", "damaged"),
    ],
)
def test_png_data_of_another_length(tmp_path: Path, rows: bytes, what: str) -> None:
    data = SIGNATURE + header(4, 4) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(InputError, match=what):
        read(written(tmp_path / "a.png", data))


def test_palette_without_the_colours_that_are_used(tmp_path: Path) -> None:
    pixels = zlib.compress(b"\0\5")
    palette = chunk(b"PLTE", bytes(9))
    data = header(1, 1, 8, 3) + palette + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    with pytest.raises(InputError, match="colours are missing in its palette"):
        read(written(tmp_path / "a.png", SIGNATURE + data))


def test_damaged_lzw_of_16_bits_is_not_half_a_picture(tmp_path: Path) -> None:
    data = bytearray(samples()["lzw16"])
    middle = len(data) // 2
    data[middle : middle + 40] = b"\xff" * 40
    with pytest.raises(InputError, match="cannot be decoded"):
        read(written(tmp_path / "a.tif", bytes(data)))


def test_what_libtiff_says_is_not_on_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(samples()["fax"])
    data[12:60] = b"\x55" * 48
    with pytest.raises(InputError, match="cannot be decoded: Fax"):
        read(written(tmp_path / "a.tif", bytes(data)))
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------------------- not pictures


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.jpg", b"", "the file is empty"),
        ("a.jpg", b"Dear photographer,\n", "not a picture that can be read .it begins with 'Dear"),
        ("a.png", b"<!DOCTYPE html>", "not a picture"),
        ("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC files are not supported"),
        ("a.NEF", samples()["tiff"], "NEF files of cameras are not supported"),
        ("a.dng", samples()["tiff"], "DNG files of cameras are not supported"),
        ("a.orf", b"IIRO\x08\0\0\0", "ORF files of cameras"),
        ("a.tif", b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "raw files of cameras"),
        ("a.tif", b"II*\0", "damaged"),
        ("a.tif", b"II*\0\x08\0\0\0\0\0\0\0\0\0", "damaged"),
        ("a.jpg", b"\xff\xd8\xff", "cut off"),
        ("a.webp", b"RIFF\4\0\0\0WEBP", "no picture"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        read(written(tmp_path / name, data))
    assert str(tmp_path / name) in str(caught.value)


def test_files_that_are_not_there_or_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "absent.jpg")
    with pytest.raises(InputError, match="not a file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="not a file"):
        read(tmp_path / "pipe.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", samples()["png"])
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        read(path)


# ---------------------------------------------------------------------------- refused by name


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(waves(9, 9, 3) // (i + 1)) for i in range(3)]
    file = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], **options)
    return file.getvalue()


def with_tags(**values: Any) -> bytes:
    """A TIFF file of which tags were changed: ``t262=(3, 5)`` for type and value."""
    data = bytearray(tiff(waves(9, 9, 3), photometric="rgb"))
    at = int.from_bytes(data[4:8], "little")
    for name, (kind, value) in values.items():
        for i in range(int.from_bytes(data[at : at + 2], "little")):
            entry = at + 2 + 12 * i
            if int.from_bytes(data[entry : entry + 2], "little") == int(name[1:]):
                data[entry + 2 : entry + 12] = struct.pack("<HII", kind, 1, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: pillow("JPEG", mode="CMYK"), "CMYK pictures are not supported"),
        (lambda: pillow("TIFF", mode="CMYK"), "CMYK pictures are not supported"),
        (lambda: pillow("TIFF", mode="LAB"), "CIELab pictures are not supported"),
        (lambda: animation("GIF"), "an animation of 3 pictures"),
        (lambda: animation("PNG"), "an animation of 3 pictures"),
        (lambda: animation("WEBP"), "an animation of 3 pictures"),
        (lambda: tiff(np.zeros((3, 9, 9), np.uint8), photometric="minisblack"), "of 3 pictures"),
        (lambda: tiff(np.zeros((9, 9), np.uint32)), "32-bit unsigned integers"),
        (lambda: tiff(np.zeros((9, 9), np.int16)), "16-bit signed integers"),
        (lambda: tiff(np.zeros((9, 9), np.float64)), "64-bit floats"),
        (lambda: tiff(np.zeros((9, 9), np.complex64)), "complex numbers"),
        (lambda: with_tags(t262=(3, 32803)), "raw files of cameras"),
        (lambda: with_tags(t262=(3, 77)), "colour model 77"),
        (lambda: with_tags(t277=(3, 2)), "2 channels of RGB"),
        (lambda: b"P6 1 1 65535\n" + bytes(6), "PPM files of more than 8 bits"),
    ],
)
def test_kinds_that_are_refused_by_name(
    tmp_path: Path, make: Callable[[], bytes], what: str
) -> None:
    with pytest.raises(InputError, match=what) as caught:
        read(written(tmp_path / "a", make()))
    assert caught.value.hint is not None or "colour" in what or "RGB" in what


def test_previews_in_tiff_are_no_further_pictures(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(waves(32, 32, 3), photometric="rgb")
        file.write(waves(8, 8, 3), photometric="rgb", subfiletype=1)
    assert read(tmp_path / "a.tif").size == (32, 32)


def test_jpeg_of_12_bits_is_refused(tmp_path: Path) -> None:
    data = samples()["jpeg"]
    at = data.rindex(b"\xff\xc0") + 4
    with pytest.raises(InputError, match="JPEG files of 12 bits"):
        read(written(tmp_path / "a.jpg", data[:at] + b"\x0c" + data[at + 1 :]))


@pytest.mark.parametrize("missing", ["compression", "imagecodecs"])
def test_compressions_that_need_more_are_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    data = bytearray(tiff(waves(9, 9, 3, np.uint16), photometric="rgb"))
    at = int.from_bytes(data[4:8], "little")
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(data[at : at + 2], "little"), 12):
        if int.from_bytes(data[entry : entry + 2], "little") == 259:
            data[entry + 8 : entry + 10] = struct.pack("<H", 50000)

    def decode(*_: Any, **__: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {missing!r}")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", decode)
    with pytest.raises(InputError, match="Zstandard compression") as caught:
        read(written(tmp_path / "a.tif", bytes(data)))
    assert "pip install imagecodecs" in str(caught.value)
    assert "damaged" not in str(caught.value)


# ---------------------------------------------------------------------------- not thought of


@pytest.mark.parametrize(
    "error", [struct.error("no"), OverflowError("no"), ValueError("no"), OSError("no"), KeyError(1)]
)
def test_what_a_codec_raises_is_an_error_of_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    path = written(tmp_path / "a.png", samples()["png"])
    picture = read(path)
    monkeypatch.setattr("vs_deblur.photofile.png.read", fail)
    with pytest.raises(InputError, match="the picture cannot be read") as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert type(error).__name__ in str(caught.value)
    monkeypatch.setattr("vs_deblur.photofile.jpeg.write", fail)
    # The system's own errors are those of the output.
    expected = OSError if isinstance(error, OSError) else InputError
    with pytest.raises(expected):
        write(picture, tmp_path / "b.jpg", "jpeg")


def test_memory_that_is_used_up_is_no_fault_of_a_codec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError

    path = written(tmp_path / "a.png", samples()["png"])
    picture = read(path)
    monkeypatch.setattr("vs_deblur.photofile.png.read", fail)
    monkeypatch.setattr("vs_deblur.photofile.png.write", fail)
    with pytest.raises(MemoryError):
        read(path)
    with pytest.raises(MemoryError):
        write(picture, tmp_path / "b.png", "png")


def test_what_an_encoder_refuses_is_an_error_of_the_picture(tmp_path: Path) -> None:
    picture = read(written(tmp_path / "a.png", samples()["png"]))
    picture.meta.exif = b"x" * 5
    picture.samples = picture.samples[:0]
    with pytest.raises(InputError):
        write(picture, tmp_path / "b.jpg", "jpeg")


@pytest.mark.parametrize("side", [6, 60])
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
def test_a_file_that_cannot_be_finished_is_an_error_wherever(
    tmp_path: Path, kind: Any, side: int
) -> None:
    """Also at what is written when a file is closed. A limit stands for a full disk."""
    picture = Picture(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8), 3)
    path = tmp_path / "a"
    write(picture, path, kind)
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in {0, 1, 7, 8, 9, *range(max(size - 300, 10), size, 13), size - 1}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                write(picture, path, kind)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---------------------------------------------------------------------------- too large


def bombs() -> dict[str, bytes]:
    """Files that say they have 60,000 x 60,000 pixels (WebP: 16,383 x 16,383)."""
    data = samples()["jpeg"]
    at = data.rindex(b"\xff\xc0") + 5
    bitmap = bytearray(samples()["bmp"])
    bitmap[18:26] = struct.pack("<ii", 60_000, 60_000)
    webp = bytearray(samples()["lossless webp"])
    webp[21:25] = struct.pack("<I", int.from_bytes(webp[21:25], "little") | 0xFFFFFFF)
    return {
        "png": SIGNATURE + header(60_000, 60_000) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "jpeg": data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4 :],
        "tiff": with_tags(t256=(4, 60_000), t257=(4, 60_000)),
        "bmp": bytes(bitmap),
        "webp": bytes(webp),
    }


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp", "webp"])
def test_bombs_are_refused_with_their_size(tmp_path: Path, kind: str) -> None:
    size = "16384x16384" if kind == "webp" else "60000x60000"
    with pytest.raises(InputError, match=f"{size} pixels, .* million; 250 million") as caught:
        read(written(tmp_path / "bomb", bombs()[kind]))
    assert "--max-pixels" in str(caught.value)


def test_the_limit_is_ours_and_pillows_own_is_as_before(tmp_path: Path) -> None:
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 100
    try:
        path = written(tmp_path / "a.png", samples()["png"])
        assert read(path).size == (37, 53)  # no warning of Pillow, which would be an error here
        assert Image.MAX_IMAGE_PIXELS == 100
    finally:
        Image.MAX_IMAGE_PIXELS = before
    assert read(path, max_pixels=53 * 37).size == (37, 53)
    with pytest.raises(InputError, match="53x37 pixels"):
        read(path, max_pixels=53 * 37 - 1)


def test_compressed_metadata_does_not_blow_up(tmp_path: Path) -> None:
    huge = b"x\0\0" + zlib.compress(bytes(70 << 20), 1)
    result = read(written(tmp_path / "a.png", png(waves(9, 9, 3), (b"iCCP", huge))))
    assert result.meta.icc is None


def test_a_picture_inside_of_another_is_no_way_round_the_limit(tmp_path: Path) -> None:
    """An icon says that it is small, and holds a PNG file of 1 GB."""
    n = 16_000
    rows = zlib.compress(bytes(n * (4 * n + 1)), 1)
    inside = SIGNATURE + header(n, n, 8, 6) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    head = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22)
    path = written(tmp_path / "a.ico", head + inside)
    with bounded(), pytest.raises(InputError, match="has more than 1,000,000 pixels"):
        read(path, max_pixels=1_000_000)


def test_channels_count_as_well(tmp_path: Path) -> None:
    data = with_tags(t256=(4, 15_000), t257=(4, 15_000), t277=(3, 64), t258=(3, 8))
    with bounded(), pytest.raises(InputError, match="64 channels of 15000x15000 pixels"):
        read(written(tmp_path / "a.tif", data))


@pytest.mark.parametrize("compression", [1, 8, 5, 32773])
def test_a_tiff_that_holds_less_than_its_size_says(tmp_path: Path, compression: int) -> None:
    data = with_tags(t256=(4, 15_000), t257=(4, 15_000), t259=(3, compression))
    with bounded(), pytest.raises(InputError, match="it holds less than its size says"):
        read(written(tmp_path / "a.tif", data))


def test_tags_that_lie_over_each_other_take_no_more_memory_than_the_file(tmp_path: Path) -> None:
    """5000 tags of 4 MB each, in a file of 4 MB."""
    count, size = 5000, 4 << 20
    behind = 8 + 2 + 12 * count + 4
    entries = (struct.pack("<HHII", 700 + i, 1, size - behind, behind) for i in range(count))
    table = struct.pack("<H", count) + b"".join(entries) + bytes(4)
    block = (b"II*\0\x08\0\0\0" + table).ljust(size, b"x")
    with bounded():
        _, tags = ifd.read_block(block)
        assert sum(len(e.data) for e in tags.values() if isinstance(e, ifd.Entry)) <= size
        picture = read(written(tmp_path / "a.png", png(waves(9, 9, 3), (b"eXIf", block))))
        write(picture, tmp_path / "a.tif", "tiff")
    assert (tmp_path / "a.tif").stat().st_size < 2 * size


@pytest.mark.timeout(60)
def test_directories_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    """Each of 100,000 would be of 65535 tags."""
    count = 100_000
    block = bytearray(b"II*\0\x08\0\0\0" + b"\xff" * (12 * 65535 + 8 * count))
    for at in range(8, 8 + 8 * count, 8):
        struct.pack_into("<I", block, at + 2 + 12 * 65535, at + 8)
    with pytest.raises(InputError, match="directories lie over each other"):
        read(written(tmp_path / "a.tif", bytes(block)))


@pytest.mark.timeout(60)
def test_thumbnails_in_xmp_that_do_not_end(tmp_path: Path) -> None:
    packet = b"<xmp:Thumbnails>" * 200_000
    data = png(waves(9, 9, 3), (b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + packet))
    assert read(written(tmp_path / "a.png", data)).meta.xmp == packet


def test_thumbnails_in_xmp_go(tmp_path: Path) -> None:
    packet = (
        b"a<xap:Thumbnails>1</xap:Thumbnails>b<xmp:Thumbnails>2</xmp:Thumbnails>c<xmp:Thumbnails>"
    )
    data = png(waves(9, 9, 3), (b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + packet))
    assert read(written(tmp_path / "a.png", data)).meta.xmp == b"abc<xmp:Thumbnails>"


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path: Path) -> None:
    data = samples()["progressive"]
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 600 + data[-2:]
    with pytest.raises(InputError, match="more than 500 scans"):
        read(written(tmp_path / "a.jpg", many))


# ---------------------------------------------------------------------------- any damage at all


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(sorted(samples())),
    places=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
    ),
    near=st.sampled_from([1.0, 0.1, 0.02]),
    keep=st.one_of(st.just(1.0), st.floats(0.01, 1)),
)
def test_flipped_bytes_end_in_a_picture_or_one_line(
    tmp_path: Path,
    kind: str,
    places: list[tuple[float, int]],
    near: float,
    keep: float,
) -> None:
    data = bytearray(samples()[kind])
    for place, value in places:
        data[int(place * near * len(data))] = value
    path = written(tmp_path / "a", bytes(data[: max(int(len(data) * keep), 1)]))
    error = None
    try:
        picture = read(path, max_pixels=1_000_000)
    except InputError as caught:
        error = caught
    if error is not None:
        assert "\n" not in str(error)
        assert len(error.what) < 300
    else:
        assert picture.samples.ndim == 3
        assert picture.samples.shape[2] == picture.colours + bool(picture.alpha) + picture.extras
