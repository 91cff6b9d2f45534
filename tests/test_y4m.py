from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.cli.clips import clip, frames_of
from vs_deblur.errors import InputError
from vs_deblur.hosts import y4m

MINIMAL = b"YUV4MPEG2 W48 H32"


def read(data: bytes, **options: bool) -> y4m.Y4mReader:
    return y4m.Y4mReader(io.BufferedReader(io.BytesIO(data)), "test", **options)


def drain(data: bytes) -> tuple[int, InputError | None]:
    """Frames of a stream, and the error at its end."""
    count = 0
    try:
        for _ in read(data).frames():
            count += 1
    except InputError as error:
        return count, error
    return count, None


TAGS = st.sampled_from(
    ["420jpeg", "420mpeg2", "420paldv", "420", "422", "444", "411", "440", "mono"]
    + [f"{base}p{bits}" for base in ("420", "422", "444", "440") for bits in (9, 10, 12, 14, 16)]
    + [f"mono{bits}" for bits in (9, 10, 12, 16)]
)
PAIRS = st.tuples(st.integers(0, 2**31), st.integers(0, 2**31))
EXTRA = st.text(
    st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=30
)
HEADERS = st.builds(
    y4m.Header,
    st.integers(1, y4m.LARGEST_SIDE),
    st.integers(1, y4m.LARGEST_SIDE),
    TAGS,
    st.none() | PAIRS,
    st.none() | st.sampled_from("ptbm?"),
    st.none() | PAIRS,
    st.lists(EXTRA, max_size=4).map(tuple),
)


@given(HEADERS)
def test_a_header_written_and_parsed_is_the_same(header: y4m.Header) -> None:
    line = y4m.write_header(header)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert y4m.parse_header(line) == header


@given(HEADERS)
def test_frame_size_is_the_sum_of_the_planes_as_the_format_has_them(header: y4m.Header) -> None:
    fmt = header.pixel_format()
    shapes = [fmt.plane_shape(header.height, header.width, p) for p in range(fmt.planes)]
    assert header.plane_shapes == shapes
    wide = 2 if fmt.bits > 8 else 1
    assert header.frame_bytes == wide * sum(h * w for h, w in shapes)


@given(st.data())
@settings(max_examples=200)
def test_any_prefix_of_a_valid_stream_gives_its_whole_frames(data: st.DataObject) -> None:
    stream = clip(3, 9, 7, data.draw(st.sampled_from(["420", "444p10", "mono"])))
    cut = data.draw(st.integers(0, len(stream)))
    header = stream.index(b"\n") + 1
    size = (len(stream) - header) // 3
    if cut < header:
        with pytest.raises(InputError, match="YUV4MPEG2"):
            read(stream[:cut])
        return
    count, error = drain(stream[:cut])
    assert count == (cut - header) // size
    assert (error is None) == ((cut - header) % size == 0)


@given(st.binary(max_size=300))
@example(b"YUV4MPEG2 W1 H1\nFRAME\nabc")
@example(b"YUV4MPEG2 W1 H1 \nFRAME \nabc")
def test_garbage_is_an_error_of_ours_or_frames(data: bytes) -> None:
    with contextlib.suppress(InputError):
        drain(data)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "input is empty: expected YUV4MPEG2"),
        (b"YUV4", "expected YUV4MPEG2, got 'YUV4'"),
        (b"YUV4MPEG2", "the stream ends in its header"),
        (b"YUV4MPEG2 W48 H32", "the stream ends in its header"),
        (b"YUV4MPEG1 W48 H32\n", "expected YUV4MPEG2, got 'YUV4MPEG1 W48 H32"),
        (b"YUV4MPEG22 W48 H32\n", "expected YUV4MPEG2"),
        (b"YUV4MPEG2 W48" + b" " * 5000 + b"H32\n", "header too long"),
        (b"YUV4MPEG2 H32\n", "no width (W)"),
        (b"YUV4MPEG2 W48\n", "no height (H)"),
        (b"YUV4MPEG2 W0 H32\n", "width (W) must be 1..32768, got 0"),
        (b"YUV4MPEG2 W48 H-3\n", "height (H) must be 1..32768, got -3"),
        (b"YUV4MPEG2 W4x8 H32\n", "width (W) must be 1..32768, got '4x8'"),
        (b"YUV4MPEG2 W\xb2 H32\n", r"width (W) must be 1..32768, got '\xb2'"),
        (b"YUV4MPEG2 W999999999 H32\n", "width (W) must be 1..32768, got 999999999"),
        (b"YUV4MPEG2 W48 H32 C999\n", "colour space '999' is not supported"),
        (b"YUV4MPEG2 W48 H32 C444alpha\n", "supported: 420jpeg, 420mpeg2"),
        (b"YUV4MPEG2 W48 H32 C420p17\n", "not supported"),
        (b"YUV4MPEG2 W48 W48 H32\n", "tag W is twice"),
        (b"YUV4MPEG2 W48 H32 F25\n", "frame rate (F) must be two numbers"),
        (b"YUV4MPEG2 W48 H32 F25:-1\n", "frame rate (F) must be two numbers"),
        (b"YUV4MPEG2 W48 H32 A:\n", "sample aspect ratio (A) must be two numbers"),
        (b"YUV4MPEG2 W48 H32 Iq\n", "interlacing (I) must be one of"),
        (b"YUV4MPEG2 W48 H32 Z1\n", "unknown tag 'Z1'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(1000), r"expected YUV4MPEG2, got '\x89PNG\r\n\x1a\n"),
    ],
)
def test_bad_headers_are_named(header: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(header)
    assert message in str(caught.value)
    assert "(test)" in str(caught.value)


def test_what_is_quoted_is_escaped_and_short() -> None:
    assert y4m.quote(b"\x1b[31m\n") == r"'\x1b[31m\n'"
    assert y4m.quote(bytes(64)) == "'" + r"\x00" * 64 + "'"
    assert y4m.quote(bytes(65)) == "'" + r"\x00" * 64 + "'…"


@pytest.mark.parametrize("letter", "tbm")
def test_interlaced_streams_are_refused_by_name_unless_allowed(letter: str) -> None:
    header = MINIMAL + f" I{letter}\n".encode()
    with pytest.raises(InputError, match=f"interlaced .I{letter}.*deinterlace first"):
        read(header)
    assert read(header, allow_interlaced=True).header.interlacing == letter


@pytest.mark.parametrize("rate", [b"F0:0", b"F25:0", b"F0:1", b""])
def test_a_rate_that_says_nothing_is_unknown_and_passed_on(rate: bytes) -> None:
    header = read(MINIMAL + b" " + rate + b"\n").header
    assert header.frame_rate is None
    assert rate in y4m.write_header(header)


def test_what_tags_mean() -> None:
    line = b"YUV4MPEG2 W720 H576 F50:2 Ip A16:15 C422p10 XCOLORRANGE=FULL XLENGTH=7 XFOO\n"
    header = y4m.parse_header(line)
    info = read(line).info()
    assert (info.width, info.height, info.length) == (720, 576, 7)
    assert (info.frame_rate, info.sample_aspect_ratio) == (Fraction(25), Fraction(16, 15))
    assert (info.fmt.family, info.fmt.bits, info.fmt.subsampling) == ("yuv", 10, (1, 0))
    assert info.fmt.full_range
    assert header.extra == ("COLORRANGE=FULL", "LENGTH=7", "FOO")
    assert y4m.write_header(header).split()[4] == b"F50:2"


@pytest.mark.parametrize(
    ("tags", "location"),
    [
        (b"", "center"),
        (b" C420jpeg", "center"),
        (b" C420mpeg2", "left"),
        (b" C420paldv", "topleft"),
        (b" C420", "left"),
        (b" XYSCSS=420MPEG2", "left"),
        (b" C420jpeg XYSCSS=420MPEG2", "center"),
    ],
)
def test_siting_of_chroma(tags: bytes, location: str) -> None:
    header = y4m.parse_header(MINIMAL + tags)
    assert header.layout.chroma_location == location
    assert header.pixel_format().chroma_location == location


@pytest.mark.parametrize(("height", "matrix"), [(719, "601"), (720, "709")])
def test_the_matrix_goes_by_height_unless_it_is_said(height: int, matrix: str) -> None:
    header = y4m.Header(48, height)
    assert header.pixel_format().matrix == matrix
    assert header.pixel_format("2020").matrix == "2020"
    assert not header.pixel_format().full_range
    assert header.pixel_format(full_range=True).full_range


@pytest.mark.parametrize("tag", ["420jpeg", "420", "422p10", "444p16", "mono", "mono12", "411"])
def test_the_tag_of_a_layout_leads_back_to_it(tag: str) -> None:
    layout = y4m.layout_of(tag)
    assert layout is not None
    assert y4m.colour_tag(layout) == tag


def test_layouts_without_a_tag() -> None:
    assert y4m.colour_tag(y4m.Layout("yuv", 8, (2, 2), "left")) is None
    assert y4m.colour_tag(y4m.Layout("yuv", 10, (2, 0), "left")) is None


@pytest.mark.parametrize("colour", ["420", "422", "444p10", "mono", "mono16", "420p12", "440"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (17, 17), (48, 32)])
def test_planes_hold_the_samples_of_the_stream(colour: str, width: int, height: int) -> None:
    stream = clip(3, width, height, colour)
    reader = read(stream)
    got = [b"".join(p.tobytes() for p in planes) for planes in reader.frames()]
    assert got == frames_of(reader.header, 3)
    assert reader.count == 3


def test_frames_have_memory_of_their_own() -> None:
    first, second = read(clip(2)).frames()
    first[0][...] = 1
    assert not np.array_equal(first[0], second[0])
    assert not any(np.shares_memory(a, b) for a in first for b in second)


def test_frames_from_a_later_one_on() -> None:
    whole = list(read(clip(6)).frames())
    late = list(read(clip(6)).frames(start=4))
    assert len(late) == 2
    for a, b in zip(whole[4:], late, strict=True):
        for p, q in zip(a, b, strict=True):
            np.testing.assert_array_equal(p, q)
    assert list(read(clip(2)).frames(start=9)) == []


def test_frame_parameters_are_ignored() -> None:
    stream = clip(2).replace(b"FRAME\n", b"FRAME Ixyz Xq\n")
    assert drain(stream) == (2, None)


def test_a_frame_line_that_is_none_is_named_after_the_frames_before() -> None:
    stream = clip(8)
    size = len(y4m.FRAME) + read(stream).header.frame_bytes
    at = stream.index(b"\n") + 1 + 7 * size
    count, error = drain(stream[:at] + b"FRAMF" + stream[at + 5 :])
    assert count == 7
    assert "frame 7: expected FRAME, got 'FRAMF" in str(error)


def test_a_frame_line_without_end_is_bounded() -> None:
    count, error = drain(clip(1) + b"FRAME " + b"x" * 100_000)
    assert count == 1
    assert "FRAME line too long" in str(error)


def test_a_last_frame_that_is_cut_off_is_an_error() -> None:
    count, error = drain(clip(5)[:-100])
    assert count == 4
    assert "frame 4 is cut off: 2204 of 2304 bytes" in str(error)


def test_fewer_frames_than_promised_are_an_error() -> None:
    count, error = drain(clip(5, extra="XLENGTH=6"))
    assert count == 5
    assert "ends after 5 frames, its header says 6" in str(error)


def test_a_header_alone_is_a_clip_without_frames() -> None:
    assert drain(clip(0)) == (0, None)


def test_another_length() -> None:
    header = y4m.parse_header(MINIMAL + b" XA Xlength=3 XB")
    assert header.with_length(7).extra == ("A", "B", "LENGTH=7")
    assert header.with_length(None).extra == ("A", "B")


def test_another_range() -> None:
    header = y4m.parse_header(MINIMAL + b" XA Xcolorrange=full XB")
    assert header.with_range(False).extra == ("A", "B", "COLORRANGE=LIMITED")
    assert header.with_range(True).full_range


def test_a_size_that_is_claimed_takes_no_memory_until_it_comes() -> None:
    """A process that may not grow reads a claim of 6 GB and is told what is missing."""
    code = """
import io, resource
from vs_deblur.errors import InputError
from vs_deblur.hosts import y4m
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream = io.BytesIO(b"YUV4MPEG2 W32768 H32768 C444p16\\nFRAME\\n" + bytes(1000))
try:
    next(y4m.Y4mReader(stream, "x").frames())
except InputError as error:
    assert "is cut off: 1000 of 6442450944 bytes" in str(error), error
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 20_000  # KiB


def test_nothing_heavy_is_loaded_for_it() -> None:
    code = "import sys, vs_deblur.hosts.y4m; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"
