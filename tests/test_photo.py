"""Photos: what is in a file is in the file made of it. Judged by Pillow, tifffile and FFmpeg."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from tests.pictures import (
    MAKER_NOTE,
    PROFILE,
    XMP,
    Array,
    Engine,
    exif,
    ffmpeg,
    jpeg,
    png,
    segment,
    through,
    waves,
)
from vs_deblur.errors import UsageError
from vs_deblur.hosts.photo import deblur, fill
from vs_deblur.photofile import Picture, check_suits, ifd, read, write
from vs_deblur.photofile.metadata import exif_density
from vs_deblur.photofile.picture import Density, Metadata
from vs_deblur.photofile.png import chunks

EXTRAS = {1: None, 2: ("unassalpha",), 3: None, 4: ("unassalpha",), 5: ("unassalpha", 0)}


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def tiff(path: Path, picture: Array, **options: Any) -> Path:
    channels = picture.shape[2]
    tifffile.imwrite(
        path,
        picture if channels > 1 else picture[..., 0],
        **{
            "photometric": "rgb" if channels > 2 else "minisblack",
            "planarconfig": "contig" if channels > 1 else None,
            "extrasamples": EXTRAS[channels],
            "metadata": None,
        }
        | options,
    )
    return path


def first(file: tifffile.TiffFile) -> Any:
    return file.pages[0]


def ffmpeg_decoded(path: Path) -> Array:
    """What FFmpeg sees in a file of 16 bits, (H, W, C)."""
    import av

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    name = frame.format.name
    channels = {"gray16": 1, "ya16": 2, "rgb48": 3, "rgba64": 4}[name[:-2]]
    rows = np.frombuffer(frame.planes[0], np.uint8).reshape(frame.height, -1)
    used = rows[:, : 2 * frame.width * channels]
    order = ">" if name.endswith("be") else "<"
    return used.copy().view(order + "u2").reshape(frame.height, frame.width, channels)


# ---------------------------------------------------------------------------- samples


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(37, 53), (1, 1), (1, 9)])
def test_png_of_8_bits_comes_back_exactly(
    tmp_path: Path, channels: int, size: tuple[int, int]
) -> None:
    picture = waves(*size, channels)
    source = save(tmp_path / "in.png", png(picture))
    assert through(source, tmp_path / "out.png", "png") == []
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        assert np.array_equal(np.asarray(image).reshape(picture.shape), picture)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(37, 53), (1, 1)])
def test_png_of_16_bits_really_has_16(tmp_path: Path, channels: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(channels)
    picture = rng.integers(0, 65536, (*size, channels), np.uint16)
    source = save(tmp_path / "in.png", png(picture))
    engine = Engine()
    through(source, tmp_path / "out.png", "png", engine)
    assert engine.seen[0].dtype == np.uint16
    assert np.array_equal(ffmpeg_decoded(tmp_path / "out.png"), picture)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_interlaced_png(tmp_path: Path, dtype: Any) -> None:
    # Adam7 by hand: no encoder at hand writes it.
    picture = waves(11, 13, 3, dtype)
    rows = b""
    for x, y, dx, dy in [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]:
        part = picture[y::dy, x::dx]
        rows += b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in part)
    from vs_deblur.photofile.png import SIGNATURE, chunk

    header = struct.pack(">IIBBBBB", 13, 11, 8 * np.dtype(dtype).itemsize, 2, 0, 0, 1)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    source = save(tmp_path / "in.png", SIGNATURE + data)
    assert np.array_equal(read(source).samples, picture)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32])
def test_tiff_comes_back_exactly(
    tmp_path: Path, dtype: Any, channels: int, compression: str | None
) -> None:
    picture = waves(37, 53, channels, dtype)
    source = tiff(tmp_path / "in.tif", picture, compression=compression)
    engine = Engine()
    assert through(source, tmp_path / "out.tif", "tiff", engine) == []
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        page = first(file)
        assert page.dtype == dtype
        assert (page.compression == 1) == (compression is None)
        assert tuple(page.extrasamples) == {1: (), 2: (2,), 3: (), 4: (2,), 5: (2, 0)}[channels]
        assert np.array_equal(page.asarray().reshape(picture.shape), picture)
    expected = np.float32 if np.dtype(dtype).kind == "f" else dtype
    assert engine.seen[0].dtype == expected
    if np.dtype(dtype).kind == "f":
        assert engine.seen[0].min() < 0
        assert engine.seen[0].max() > 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_byte_order_and_layout(tmp_path: Path, order: str, big: bool, planar: bool) -> None:
    picture = waves(37, 53, 3, np.uint16)
    stored = np.moveaxis(picture, -1, 0) if planar else picture
    tifffile.imwrite(
        tmp_path / "in.tif",
        stored,
        photometric="rgb",
        planarconfig="separate" if planar else "contig",
        byteorder=order,  # type: ignore[arg-type]
        bigtiff=big,
        tile=(16, 16) if big else None,
        description="a description",
    )
    through(tmp_path / "in.tif", tmp_path / "out.tif", "tiff")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert (file.byteorder, file.is_bigtiff) == (order, big)
        assert first(file).description == "a description"
        assert np.array_equal(first(file).asarray(), picture)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "jpeg", "tiff_deflate"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiff_compressions_of_8_bits(tmp_path: Path, compression: str, channels: int) -> None:
    picture = waves(37, 53, channels)
    image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
    if compression == "jpeg" and channels == 4:
        pytest.skip("libtiff writes no JPEG with alpha")
    image.save(tmp_path / "in.tif", compression=compression)
    with Image.open(tmp_path / "in.tif") as same:
        expected = np.asarray(same).reshape(picture.shape)
    through(tmp_path / "in.tif", tmp_path / "out.tif", "tiff")
    assert np.array_equal(tifffile.imread(tmp_path / "out.tif").reshape(picture.shape), expected)


@pytest.mark.parametrize("compression", ["lzw", "packbits", "deflate"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiff_compressions_of_16_bits(tmp_path: Path, compression: str, channels: int) -> None:
    picture = waves(37, 53, channels, np.uint16)
    data = ffmpeg(picture, "tiff", compression_algo=compression)
    source = save(tmp_path / "in.tif", data)
    through(source, tmp_path / "out.tif", "tiff")
    result = tifffile.imread(tmp_path / "out.tif")
    assert result.dtype == np.uint16
    assert np.array_equal(result.reshape(picture.shape), picture)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_white_is_zero_stays_so(tmp_path: Path, compression: str | None) -> None:
    picture = waves(37, 53, 1)
    if compression is None:
        tifffile.imwrite(tmp_path / "in.tif", 255 - picture[..., 0], photometric="miniswhite")
    else:
        image = Image.fromarray(picture[..., 0])
        image.save(tmp_path / "in.tif", compression=compression, tiffinfo={262: 0})
        with Image.open(tmp_path / "in.tif") as same:
            assert np.array_equal(np.asarray(same), picture[..., 0])
    engine = Engine()
    through(tmp_path / "in.tif", tmp_path / "out.tif", "tiff", engine)
    assert np.array_equal(engine.seen[0][..., :1], picture)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert first(file).photometric == 0
        assert np.array_equal(first(file).asarray(), 255 - picture[..., 0])


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif", ".bmp"])
def test_palettes_become_true_colour(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(waves(37, 53, 3)).quantize(16)
    source = tmp_path / f"in{suffix}"
    image.save(source)
    through(source, tmp_path / "out.png", "png")
    with Image.open(tmp_path / "out.png") as result:
        assert result.mode == "RGB"
        assert np.array_equal(np.asarray(result), np.asarray(image.convert("RGB")))


def test_palette_with_transparency_becomes_rgb_with_alpha(tmp_path: Path) -> None:
    image = Image.fromarray(waves(37, 53, 3)).quantize(16)
    image.save(tmp_path / "in.png", transparency=bytes(range(0, 160, 16)))
    with Image.open(tmp_path / "in.png") as same:
        expected = np.asarray(same.convert("RGBA"))
    through(tmp_path / "in.png", tmp_path / "out.png", "png")
    with Image.open(tmp_path / "out.png") as result:
        assert result.mode == "RGBA"
        assert np.array_equal(np.asarray(result), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_bilevel_pictures_become_grey(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(waves(37, 53, 1)[..., 0]).convert("1")
    source = tmp_path / f"in{suffix}"
    image.save(source)
    through(source, tmp_path / "out.png", "png")
    with Image.open(tmp_path / "out.png") as result:
        assert result.mode == "L"
        assert np.array_equal(np.asarray(result), np.asarray(image.convert("L")))


def test_fax_compression_of_both_polarities(tmp_path: Path) -> None:
    image = Image.fromarray(waves(37, 53, 1)[..., 0]).convert("1")
    for number, photometric in enumerate((0, 1)):
        source = tmp_path / f"in{number}.tif"
        image.save(source, compression="group4", tiffinfo={262: photometric})
        with Image.open(source) as same:
            expected = np.asarray(same.convert("L"))
        assert np.array_equal(read(source).samples[..., 0], expected)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_scaled(tmp_path: Path, bits: int) -> None:
    from vs_deblur.photofile.png import SIGNATURE, chunk

    levels = 2**bits
    values = np.arange(8, dtype=np.uint8) % levels
    packed = np.packbits(np.unpackbits(values[:, None], axis=1)[:, -bits:])
    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + packed.tobytes())
    key = chunk(b"tRNS", struct.pack(">H", 2))
    data = chunk(b"IHDR", header) + key + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    result = read(save(tmp_path / "in.png", SIGNATURE + data))
    assert result.samples[0, :, 0].tolist() == [int(v) * 255 // (levels - 1) for v in values]
    assert result.samples[0, :, 1].tolist() == [0 if v == 2 else 255 for v in values]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_transparent_colour_becomes_alpha(tmp_path: Path, dtype: Any) -> None:
    picture = waves(37, 53, 3, dtype)
    key = struct.pack(">HHH", *(int(v) for v in picture[3, 4]))
    source = save(tmp_path / "in.png", png(picture, (b"tRNS", key)))
    through(source, tmp_path / "out.png", "png")
    result = read(tmp_path / "out.png")
    assert np.array_equal(result.samples[..., :3], picture)
    same = (picture == picture[3, 4]).all(axis=2)
    assert np.array_equal(result.samples[..., 3], np.where(same, 0, np.iinfo(dtype).max))


def test_formats_that_are_only_read_become_png(tmp_path: Path) -> None:
    picture = waves(37, 53, 3)
    for suffix in (".bmp", ".ppm", ".tga"):
        source = tmp_path / f"in{suffix}"
        Image.fromarray(picture).save(source)
        result = read(source)
        assert result.format is None
        assert np.array_equal(result.samples, picture)
    deep = waves(37, 53, 1, np.uint16)
    Image.fromarray(deep[..., 0]).save(tmp_path / "in.pgm")
    assert np.array_equal(read(tmp_path / "in.pgm").samples, deep)


@pytest.mark.parametrize("alpha", [False, True])
def test_lossless_webp_comes_back_exactly(tmp_path: Path, alpha: bool) -> None:
    picture = waves(37, 53, 4 if alpha else 3)
    picture[:9, :, 3:] = 0
    options: dict[str, Any] = {"lossless": True, "exact": True}
    Image.fromarray(picture).save(
        tmp_path / "in.webp", icc_profile=PROFILE, exif=exif(1), xmp=XMP, **options
    )
    through(tmp_path / "in.webp", tmp_path / "out.webp", "webp")
    with Image.open(tmp_path / "out.webp") as result:
        assert np.array_equal(np.asarray(result), picture)
        assert result.info["icc_profile"] == PROFILE
        assert result.info["xmp"] == XMP
        assert result.getexif()[271] == "Maker"


def test_lossy_webp_stays_near(tmp_path: Path) -> None:
    picture = waves(64, 96, 3)
    Image.fromarray(picture).save(tmp_path / "in.webp", quality=80)
    through(tmp_path / "in.webp", tmp_path / "out.webp", "webp")
    data = (tmp_path / "out.webp").read_bytes()
    assert b"VP8L" not in data
    error = read(tmp_path / "out.webp").samples.astype(int) - read(tmp_path / "in.webp").samples
    assert np.abs(error).mean() < 1.5


# ---------------------------------------------------------------------------- JPEG


def tables(data: bytes) -> list[bytes]:
    """The quantisation tables of a JPEG file."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : at + 2 + length]
        if data[at + 1] == 0xDB:
            while content:
                found.append(content[1:65])
                content = content[65:]
        at += 2 + length
    return found


def sampling(path: Path) -> tuple[Any, ...]:
    with Image.open(path) as image:
        return tuple(layer[1:3] for layer in image.layer)  # type: ignore[attr-defined]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [60, 100])
def test_jpeg_is_encoded_as_it_was(
    tmp_path: Path, subsampling: int, progressive: bool, quality: int
) -> None:
    picture = waves(64, 96, 3)
    data = jpeg(picture, quality=quality, subsampling=subsampling, progressive=progressive)
    source = save(tmp_path / "in.jpg", data)
    target = tmp_path / "out.jpg"
    assert through(source, target, "jpeg") == []
    assert tables(target.read_bytes()) == tables(data)
    assert sampling(target) == sampling(source)
    with Image.open(target) as image:
        assert ("progressive" in image.info) == progressive
        error = np.asarray(image).astype(int) - read(source).samples
    # A second time through the same tables: far less than the first time cost.
    assert np.abs(error).mean() < 0.7
    assert np.abs(error).max() <= 8


def test_grey_jpeg_stays_grey(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jpg", jpeg(waves(37, 53, 1)))
    engine = Engine()
    through(source, tmp_path / "out.jpg", "jpeg", engine)
    assert engine.seen[0].shape == (37, 53, 3)
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.mode == "L"
        assert np.abs(np.asarray(image).astype(int) - read(source).samples[..., 0]).max() <= 2


def test_jpeg_of_rgb_components_stays_so(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(waves(37, 53, 3)).save(file, "JPEG", keep_rgb=True, quality=95)
    source = save(tmp_path / "in.jpg", file.getvalue())
    through(source, tmp_path / "out.jpg", "jpeg")
    with Image.open(tmp_path / "out.jpg") as image:
        assert [layer[0] for layer in image.layer] == list(b"RGB")  # type: ignore[attr-defined]
        error = np.abs(np.asarray(image).astype(int) - read(source).samples)
    assert error.max() <= 4


@pytest.mark.parametrize("progressive", [False, True])
def test_noise_of_the_finest_tables_is_written(tmp_path: Path, progressive: bool) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=100, subsampling=0)
    source = save(tmp_path / "in.jpg", file.getvalue())
    result = read(source)
    result.native.encoding = type(result.native.encoding)(
        result.native.encoding.tables, 0, progressive, False
    )
    write(result, tmp_path / "out.jpg", "jpeg")
    assert read(tmp_path / "out.jpg").size == (500, 500)


def test_jpeg_segments_are_kept(tmp_path: Path) -> None:
    profile = PROFILE + bytes(70_000)  # two segments
    parts = [profile[:60_000], profile[60_000:]]
    icc = [segment(0xE2, b"ICC_PROFILE\0" + bytes((i + 1, 2)) + p) for i, p in enumerate(parts)]
    resources = b"8BIM\x04\x04\0\0\0\0\0\x05IPTC!\0" + b"8BIM\x04\x0c\0\0\0\0\0\x04\xff\xd8\xff\xd9"
    data = jpeg(
        waves(37, 53, 3),
        segment(0xE1, b"Exif\0\0" + exif(1)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        *reversed(icc),  # in any order
        segment(0xED, b"Photoshop 3.0\0" + resources),
        segment(0xFE, b"a comment"),
        segment(0xEB, b"JP credentials"),
        segment(0xE2, b"MPF\0 more pictures"),
        dpi=(300, 300),
    )
    source = save(tmp_path / "in.jpg", data + b"\xff\xd8 a second picture")
    lost = through(source, tmp_path / "out.jpg", "jpeg")
    assert len(lost) == 2
    result = (tmp_path / "out.jpg").read_bytes()
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.format == "JPEG"
        assert image.info["icc_profile"] == profile
        assert image.info["xmp"] == XMP
        assert image.info["dpi"] == (300, 300)
        assert image.info["comment"] == b"a comment"
        assert image.info["photoshop"] == {0x0404: b"IPTC!"}  # without the thumbnail
    assert b"second picture" not in result
    assert b"credentials" not in result


# ---------------------------------------------------------------------------- metadata


def metadata(path: Path) -> dict[str, Any]:
    """EXIF as Pillow sees it."""
    with Image.open(path) as image:
        found = image.getexif()
        below = found.get_ifd(0x8769)
        return {
            "size": image.size,
            "maker": found.get(271),
            "orientation": found.get(274, 1),
            "density": (found.get(282), found.get(283), found.get(296)),
            "dimensions": (below.get(0xA002), below.get(0xA003)),
            "date": below.get(0x9003),
            "note": below.get(0x927C),
            "gps": found.get_ifd(0x8825).get(1),
            "thumbnail": bool(found.get_ifd(1)),
        }


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_reset(tmp_path: Path, orientation: int, order: str) -> None:
    picture = waves(37, 53, 3)
    data = jpeg(
        picture,
        segment(0xE1, b"Exif\0\0" + exif(orientation, order=order)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        dpi=(300, 200),
    )
    source = save(tmp_path / "in.jpg", data)
    with Image.open(source) as image:
        from PIL import ImageOps

        expected = np.asarray(ImageOps.exif_transpose(image))
    engine = Engine()
    through(source, tmp_path / "out.jpg", "jpeg", engine)
    assert np.array_equal(engine.seen[0], expected)
    found = metadata(tmp_path / "out.jpg")
    turned = orientation >= 5
    assert found["size"] == ((37, 53) if turned else (53, 37))
    assert found["orientation"] == 1
    assert found["density"] == ((200, 300, 2) if turned else (300, 200, 2))
    assert found["dimensions"] == ((37, 53) if turned else (53, 37))
    assert (found["maker"], found["gps"]) == ("Maker", "N")
    assert found["date"] == "2026:01:02 03:04:05"
    assert not found["thumbnail"]
    with Image.open(tmp_path / "out.jpg") as image:
        xmp = image.info["xmp"]
        assert image.info["dpi"] == ((200, 300) if turned else (300, 200))
    assert len(xmp) == len(XMP)
    if orientation == 1:
        assert xmp == XMP  # not ours to interpret
    else:
        assert b'tiff:Orientation="1"' in xmp
        assert (b'tiff:ImageWidth="37"' in xmp) == turned
        assert b'xmp:Rating="4"' in xmp


def test_maker_notes_stay_where_they_are(tmp_path: Path) -> None:
    block = exif(6)
    data = jpeg(waves(37, 53, 3), segment(0xE1, b"Exif\0\0" + block))
    through(save(tmp_path / "in.jpg", data), tmp_path / "out.jpg", "jpeg")
    result = read(tmp_path / "out.jpg").meta.exif
    assert result is not None
    assert result.index(MAKER_NOTE) == block.index(MAKER_NOTE)
    assert b"\xff\xd8" not in result
    assert len(result) < len(block)


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("source_kind", ["jpeg", "png", "tiff", "webp"])
def test_metadata_goes_from_format_to_format(tmp_path: Path, source_kind: str, kind: Any) -> None:
    first = save(
        tmp_path / "first.jpg",
        jpeg(
            waves(37, 53, 3),
            segment(0xE1, b"Exif\0\0" + exif(6)),
            segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
            segment(0xE2, b"ICC_PROFILE\0\1\1" + PROFILE),
            dpi=(300, 200),
        ),
    )
    source, target = tmp_path / f"in.{source_kind}", tmp_path / f"out.{kind}"
    through(first, source, source_kind)
    assert through(source, target, kind) == []
    found = metadata(target)
    assert found["size"] == (37, 53)
    assert found["orientation"] == 1
    assert found["density"] == (200, 300, 2)
    assert found["dimensions"] == (37, 53)
    assert (found["maker"], found["gps"]) == ("Maker", "N")
    assert found["note"] == MAKER_NOTE
    meta = read(target).meta
    assert meta.icc == PROFILE
    assert meta.xmp is not None
    assert b'tiff:Orientation="1"' in meta.xmp
    with Image.open(target) as image:
        assert image.info["icc_profile"] == PROFILE
        if kind != "webp":
            assert [round(float(v)) for v in image.info["dpi"]] == [200, 300]


def test_tags_of_tiff_are_kept(tmp_path: Path) -> None:
    picture = waves(37, 53, 3, np.uint16)
    tags = [
        (34675, 7, len(PROFILE), PROFILE, True),
        (700, 1, len(XMP), XMP, True),
        (33723, 7, 5, b"IPTC!", True),
        (315, 2, 7, "Artist", True),
        (65000, 4, 2, (7, 8), True),  # private
        (274, 3, 1, 8, True),
    ]
    source = tiff(
        tmp_path / "in.tif", picture, extratags=tags, resolution=(300, 200), resolutionunit="INCH"
    )
    assert through(source, tmp_path / "out.tif", "tiff") == []
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        page = first(file)
        assert np.array_equal(page.asarray(), np.rot90(picture, 1))
        assert page.tags[34675].value == PROFILE
        assert page.tags[33723].value == b"IPTC!"
        assert page.tags[315].value == "Artist"
        assert tuple(page.tags[65000].value) == (7, 8)
        assert page.tags[274].value == 1
        assert page.tags[282].value == (200, 1)
        assert page.tags[283].value == (300, 1)
        assert len(file.pages) == 1


def test_iptc_goes_from_tiff_to_jpeg_and_back(tmp_path: Path) -> None:
    source = tiff(tmp_path / "in.tif", waves(9, 9, 3), extratags=[(33723, 7, 5, b"IPTC!", True)])
    through(source, tmp_path / "a.jpg", "jpeg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.info["photoshop"] == {0x0404: b"IPTC!"}
    through(tmp_path / "a.jpg", tmp_path / "b.tif", "tiff")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert first(file).tags[33723].value == b"IPTC!"
    assert through(source, tmp_path / "a.png", "png") == ["IPTC (PNG has no place for it)"]


def test_png_chunks_are_kept_by_their_kind(tmp_path: Path) -> None:
    kept = [
        (b"gAMA", struct.pack(">I", 45455)),
        (b"cHRM", bytes(32)),
        (b"iCCP", b"a name\0\0" + zlib.compress(PROFILE)),
        (b"pHYs", struct.pack(">IIB", 11811, 5906, 1)),
        (b"tEXt", b"Author\0somebody"),
        (b"vpAg", b"private, safe to copy"),
        (b"bKGD", bytes(6)),
    ]
    dropped = [(b"iDOT", bytes(28)), (b"tIME", bytes(7)), (b"sBIT", b"\5\6\5")]
    source = save(tmp_path / "in.png", png(waves(37, 53, 3), *kept, *dropped))
    assert through(source, tmp_path / "out.png", "png") == []
    found = list(chunks((tmp_path / "out.png").read_bytes()))
    names = [name for name, _ in found]
    for c in kept:
        assert c in found
    assert not {name for name, _ in dropped} & set(names)
    assert names.index(b"iCCP") < names.index(b"IDAT")


def test_a_profile_that_is_none_is_kept_as_it_is(tmp_path: Path) -> None:
    broken = (b"iCCP", b"broken\0\0this is not zlib")
    source = save(tmp_path / "in.png", png(waves(9, 9, 3), broken))
    through(source, tmp_path / "out.png", "png")
    assert broken in list(chunks((tmp_path / "out.png").read_bytes()))
    junk = jpeg(waves(9, 9, 3), segment(0xE2, b"ICC_PROFILE\0\1\1junk"))
    through(save(tmp_path / "in.jpg", junk), tmp_path / "out.jpg", "jpeg")
    assert read(tmp_path / "out.jpg").meta.icc == b"junk"
    exif_junk = jpeg(waves(9, 9, 3), segment(0xE1, b"Exif\0\0junk"))
    through(save(tmp_path / "in.jpg", exif_junk), tmp_path / "out.jpg", "jpeg")
    assert read(tmp_path / "out.jpg").meta.exif == b"junk"


def test_wide_gamut_is_not_converted(tmp_path: Path) -> None:
    # A profile of another colour space: the engine sees the numbers of the file.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    picture = waves(37, 53, 3, np.uint16)
    source = save(
        tmp_path / "in.png", png(picture, (b"iCCP", b"wide\0\0" + zlib.compress(profile)))
    )
    engine = Engine()
    through(source, tmp_path / "out.tif", "tiff", engine)
    assert np.array_equal(engine.seen[0], picture)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert first(file).tags[34675].value == profile


# ---------------------------------------------------------------------------- what the engine sees


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colours_under_full_transparency_do_not_leak(dtype: Any) -> None:
    full = 1.0 if dtype is np.float32 else np.iinfo(dtype).max
    samples = np.zeros((40, 40, 4), dtype)
    samples[..., :3] = full  # a white that nobody sees
    samples[10:20, 5:30, :3] = dtype(full * 0.25)
    samples[10:20, 5:30, 3] = full
    samples[12, 12, 3] = dtype(full * 0.5)
    engine = Engine(lambda x: x // 2 if dtype is not np.float32 else x / 2)
    result = deblur(Picture(samples, 3, "straight"), engine).samples
    assert np.ptp(engine.seen[0]) == 0  # one colour all over
    assert np.array_equal(result[..., 3], samples[..., 3])
    hidden = samples[..., 3] == 0
    assert np.array_equal(result[hidden], samples[hidden])
    assert not np.array_equal(result[~hidden], samples[~hidden])


def test_filling_comes_from_neighbours() -> None:
    colours = np.zeros((16, 16, 1), np.uint8)
    colours[:, :4], colours[:, 12:] = 50, 200
    visible = np.zeros((16, 16), bool)
    visible[:, :4] = visible[:, 12:] = True
    filled = fill(colours, visible)[..., 0]
    assert (filled[:, :8] == 50).all()
    assert (filled[:, 8:] == 200).all()
    assert not fill(colours, np.zeros((16, 16), bool)).any()


def test_associated_alpha_is_undone_for_the_engine() -> None:
    alpha = np.full((8, 8, 1), 51, np.uint8)
    samples = np.concatenate([np.full((8, 8, 3), 20, np.uint8), alpha], axis=2)
    engine = Engine(lambda x: x + 50)
    result = deblur(Picture(samples, 3, "associated"), engine).samples
    assert (engine.seen[0] == 100).all()
    assert (result[..., :3] == 30).all()
    odd = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    assert np.array_equal(deblur(Picture(odd, 3, "associated"), Engine()).samples, odd)


def test_grey_is_the_mean_of_the_planes() -> None:
    def split(x: Array) -> Array:
        return np.asarray(x + np.array([0, 10, 20], x.dtype))

    for dtype in (np.uint8, np.uint16, np.float32):
        samples = np.full((4, 4, 1), 100, dtype)
        result = deblur(Picture(samples, 1), Engine(split)).samples
        assert result.dtype == dtype
        assert (result == 110).all()


def test_changes_arrive_and_other_channels_stay(tmp_path: Path) -> None:
    picture = waves(37, 53, 5, np.uint16)
    source = tiff(tmp_path / "in.tif", picture)
    picture[..., 3] = picture[..., 3] | 1  # nothing fully transparent
    source = tiff(tmp_path / "in.tif", picture)
    through(source, tmp_path / "out.tif", "tiff", Engine(lambda x: 65535 - x))
    result = tifffile.imread(tmp_path / "out.tif")
    assert np.array_equal(result[..., :3], 65535 - picture[..., :3])
    assert np.array_equal(result[..., 3:], picture[..., 3:])


def test_half_floats_do_not_overflow() -> None:
    samples = np.full((4, 4, 3), 60000, np.float16)
    result = deblur(Picture(samples, 3), Engine(lambda x: x * 2)).samples
    assert result.dtype == np.float16
    assert (result == np.finfo(np.float16).max).all()


# ---------------------------------------------------------------------------- other formats


def test_16_bits_become_8_only_where_asked_for_and_said(tmp_path: Path) -> None:
    picture = waves(37, 53, 3, np.uint16)
    source = save(tmp_path / "in.png", png(picture))
    for kind in ("jpeg", "webp"):
        lost = through(source, tmp_path / "out", kind)
        assert len(lost) == 1
        assert lost[0].startswith("16 bits a sample")
    with Image.open(tmp_path / "out") as image:  # WebP of a lossless source is lossless
        assert np.array_equal(np.asarray(image), np.rint(picture / 257).astype(np.uint8))
    for kind in ("png", "tiff"):
        assert through(source, tmp_path / "out", kind) == []


@pytest.mark.parametrize(
    ("picture", "kind", "what"),
    [
        (Picture(waves(4, 4, 4), 3, "straight"), "jpeg", "JPEG holds no transparency"),
        (Picture(waves(4, 4, 3, np.float32), 3), "jpeg", "JPEG holds no floats"),
        (Picture(waves(4, 4, 3, np.float32), 3), "png", "PNG holds no floats"),
        (Picture(waves(4, 4, 1, np.float16), 1), "webp", "WebP holds no floats"),
        (Picture(np.zeros((1, 16384, 3), np.uint8), 3), "webp", "16383 pixels a side"),
        (Picture(np.zeros((65501, 1, 1), np.uint8), 1), "jpeg", "65500 pixels a side"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(picture: Picture, kind: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        check_suits(picture, kind)


def test_associated_alpha_becomes_straight_in_png(tmp_path: Path) -> None:
    samples = np.zeros((8, 8, 4), np.uint8)
    samples[...] = (20, 40, 51, 51)
    write(Picture(samples, 3, "associated"), tmp_path / "out.png", "png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.getpixel((0, 0)) == (100, 200, 255, 51)


def test_grey_with_alpha_as_webp(tmp_path: Path) -> None:
    picture = waves(9, 9, 2)
    write(Picture(picture, 1, "straight"), tmp_path / "out.webp", "webp")
    with Image.open(tmp_path / "out.webp") as image:
        assert np.array_equal(np.asarray(image), picture[..., [0, 0, 0, 1]])


def test_a_profile_of_grey_does_not_go_with_webp_which_has_colours(tmp_path: Path) -> None:
    grey = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    profile = segment(0xE2, b"ICC_PROFILE\0\1\1" + grey)
    source = save(tmp_path / "in.jpg", jpeg(waves(9, 9, 1), profile))
    lost = through(source, tmp_path / "out.webp", "webp")
    assert lost == ["ICC profile (of grey, which WebP stores as RGB)"]
    assert read(tmp_path / "out.webp").meta.icc is None
    for kind in ("jpeg", "png", "tiff"):
        assert through(source, tmp_path / "out", kind) == []
        assert read(tmp_path / "out").meta.icc == grey
    colours = save(tmp_path / "rgb.jpg", jpeg(waves(9, 9, 3), profile))  # not ours to judge
    assert through(colours, tmp_path / "out.webp", "webp") == []


# ---------------------------------------------------------------------------- left behind

OTHERS: dict[str, tuple[Any, ...]] = {
    "png": ("jpeg", "tiff", "webp"),
    "jpeg": ("png", "tiff", "webp"),
    "tiff": ("jpeg", "png", "webp"),
}
DISPLAY_P3, SRGB = b"\x0c\x0d\0\1", b"\x01\x0d\0\1"
SRGB_POINTS = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
WIDE_POINTS = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
A_PROFILE = (b"iCCP", b"a\0\0" + zlib.compress(PROFILE))


@pytest.mark.parametrize(
    ("chunks_", "lost"),
    [
        ([(b"gAMA", struct.pack(">I", 100000))], ["gamma and primaries (gAMA)"]),
        ([(b"gAMA", struct.pack(">I", 45454)), (b"cHRM", WIDE_POINTS)], ["primaries (cHRM)"]),
        ([(b"gAMA", struct.pack(">I", 45454)), (b"cHRM", SRGB_POINTS)], []),
        ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455))], []),
        ([(b"gAMA", struct.pack(">I", 100000)), A_PROFILE], []),
        ([(b"cICP", SRGB)], []),
        ([(b"cICP", DISPLAY_P3), A_PROFILE], ["code points of its colours"]),
        ([(b"cICP", SRGB), (b"cLLI", bytes(8))], ["light levels (cLLI)"]),
        ([(b"iCCP", b"a\0\0none")], ["ICC profile (damaged)"]),
        ([(b"tEXt", b"Author\0me"), (b"zTXt", b"Title\0\0x")], ["text of PNG (Author, Title)"]),
        ([(b"vpAg", b"private")], ["chunks of PNG (vpAg)"]),
        ([(b"bKGD", bytes(6))], []),
    ],
)
def test_what_only_png_has_is_said_to_be_left_behind(
    tmp_path: Path, chunks_: list[tuple[bytes, bytes]], lost: list[str]
) -> None:
    source = save(tmp_path / "in.png", png(waves(9, 9, 3), *chunks_))
    assert through(source, tmp_path / "out.png", "png") == []
    for kind in OTHERS["png"]:
        said = through(source, tmp_path / "out", kind)
        assert len(said) == len(lost)
        assert all(part in text for part, text in zip(lost, said, strict=True))


def test_colours_that_only_png_can_tell_stay_in_png(tmp_path: Path) -> None:
    source = save(tmp_path / "in.png", png(waves(9, 9, 3, np.uint16), (b"cICP", DISPLAY_P3)))
    assert through(source, tmp_path / "out.png", "png") == []
    assert (b"cICP", DISPLAY_P3) in list(chunks((tmp_path / "out.png").read_bytes()))
    for kind in OTHERS["png"]:
        with pytest.raises(UsageError, match=r"cannot say what the colours are.*--format png"):
            check_suits(read(source), kind)
        with pytest.raises(UsageError):
            through(source, tmp_path / "none", kind)
    assert not (tmp_path / "none").exists()


def test_xmp_of_png_that_does_not_inflate(tmp_path: Path) -> None:
    damaged = (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + b"this is not zlib")
    source = save(tmp_path / "in.png", png(waves(9, 9, 3), damaged))
    assert through(source, tmp_path / "out.png", "png") == []
    assert damaged in list(chunks((tmp_path / "out.png").read_bytes()))
    for kind in OTHERS["png"]:
        assert through(source, tmp_path / "out", kind) == ["XMP (damaged)"]


def test_what_only_jpeg_has_is_said_to_be_left_behind(tmp_path: Path) -> None:
    parts = [
        segment(0xFE, b"a comment"),
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + XMP),
        segment(0xEC, b"Ducky"),
    ]
    source = save(tmp_path / "in.jpg", jpeg(waves(9, 9, 3), *parts))
    assert through(source, tmp_path / "out.jpg", "jpeg") == []
    assert all(part in (tmp_path / "out.jpg").read_bytes() for part in parts)
    for kind in OTHERS["jpeg"]:
        lost = through(source, tmp_path / "out", kind)
        assert lost == ["the comment", "extended XMP", "segments of JPEG (APP12)"]


def test_colorimetry_of_tiff_is_kept(tmp_path: Path) -> None:
    white, primaries = (3127, 10000, 329, 1000), (64, 100, 33, 100, 3, 10, 6, 10, 15, 100, 6, 100)
    table = tuple(range(0, 65536, 257))
    tags = [
        (318, 5, 2, white, True),
        (319, 5, 6, primaries, True),
        (301, 3, 256, table, True),
    ]
    source = tiff(tmp_path / "in.tif", waves(9, 9, 3), extratags=tags)
    assert through(source, tmp_path / "out.tif", "tiff") == []
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        found = first(file).tags
        assert tuple(found[318].value) == white
        assert tuple(found[319].value) == primaries
        assert tuple(found[301].value) == table
    for kind in OTHERS["tiff"]:
        assert through(source, tmp_path / "out", kind) == [
            "the transfer function (tag 301 of TIFF)"
        ]
        with Image.open(tmp_path / "out") as image:
            assert image.getexif()[318] == (0.3127, 0.329)
            assert 301 not in image.getexif()


def test_a_transfer_function_of_other_bits_is_left_behind(tmp_path: Path) -> None:
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8) % 2
    tags = [(301, 3, 2, (0, 65535), True)]
    tifffile.imwrite(tmp_path / "in.tif", picture.astype(bool), extratags=tags)
    lost = through(tmp_path / "in.tif", tmp_path / "out.tif", "tiff")
    assert lost == ["the transfer function (it is of other bits)"]
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert 301 not in first(file).tags


def test_a_transparency_mask_of_tiff_is_said_to_be_left_behind(tmp_path: Path) -> None:
    for kind, side, lost in (
        (4, 32, ["the transparency mask (a page of its own)"]),
        (5, 8, []),  # that of a smaller copy goes with it
    ):
        with tifffile.TiffWriter(tmp_path / "in.tif") as file:
            file.write(waves(32, 32, 3), photometric="rgb")
            file.write(waves(8, 8, 3), photometric="rgb", subfiletype=1)
            file.write(np.ones((side, side), bool), subfiletype=kind, photometric="mask")
        assert through(tmp_path / "in.tif", tmp_path / "out.tif", "tiff") == lost


# ---------------------------------------------------------------------------- density


def density_of(path: Path) -> tuple[float, float, str] | None:
    meta = read(path).meta
    found = meta.density
    if found is None and meta.exif is not None:
        found = exif_density(meta.exif)
    return None if found is None else (found.x, found.y, found.unit)


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize(
    ("density", "held_by"),
    [
        (Density(2**31 - 1, 2**31 - 1, "metre"), ("png", "tiff", "webp")),
        (Density(2**32 - 1, 1, "metre"), ("png", "tiff", "webp")),
        (Density(2**32 - 1, 2**32 - 1, "cm"), ("tiff", "webp")),
        (Density(70000, 70000, "inch"), ("png", "tiff", "webp")),
        (Density(0.25, 0.25, "inch"), ("png", "tiff", "webp")),
        (Density(1e-9, 1e-9, "inch"), ()),
        (Density(float("inf"), 300, "inch"), ()),
        (Density(1e300, 1e300, "none"), ()),
    ],
)
def test_odd_densities_are_held_or_said_to_be_lost(
    tmp_path: Path, kind: Any, density: Density, held_by: tuple[str, ...]
) -> None:
    picture = Picture(waves(9, 9, 3), 3, meta=Metadata(density=density))
    lost = write(picture, tmp_path / "out", kind)
    found = density_of(tmp_path / "out")
    if kind in held_by:
        assert lost == []
        assert found is not None
        expected = density.to(found[2])  # type: ignore[arg-type]
        assert found[:2] == pytest.approx((expected.x, expected.y), rel=0.02, abs=0.5)
    else:
        assert len(lost) == 1
        assert lost[0].startswith("density of")
        assert found in (None, (1, 1, "none"))


def test_densities_that_once_ended_the_batch(tmp_path: Path) -> None:
    odd = (b"pHYs", struct.pack(">IIB", 2**31 - 1, 2**31 - 1, 1))
    for kind in OTHERS["png"]:
        through(save(tmp_path / "in.png", png(waves(9, 9, 3), odd)), tmp_path / "out", kind)
    source = tiff(
        tmp_path / "in.tif", waves(9, 9, 3), resolution=(2**32 - 1, 2**32 - 1), resolutionunit=3
    )
    lost = through(source, tmp_path / "out", "png")
    assert lost == ["density of 4.29497e+11 x 4.29497e+11 pixels per metre (PNG cannot hold it)"]
    assert through(source, tmp_path / "out.tif", "tiff") == []
    assert density_of(tmp_path / "out.tif") == (2**32 - 1, 2**32 - 1, "cm")


def test_a_density_without_a_place_in_exif_is_said_to_be_lost(tmp_path: Path) -> None:
    block = ifd.write_block({271: ifd.Entry(2, 6, b"Maker\0")}, ifd.Layout("<"))
    extra = [(b"eXIf", block), (b"pHYs", struct.pack(">IIB", 11811, 11811, 1))]
    source = save(tmp_path / "in.png", png(waves(9, 9, 3), *extra))
    lost = through(source, tmp_path / "out.webp", "webp")
    assert lost == ["density (WebP has room for it in EXIF only)"]
    assert read(tmp_path / "out.webp").meta.exif == block
