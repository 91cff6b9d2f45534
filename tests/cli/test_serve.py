"""``vs-deblur serve``: what comes out, and what it says. Ends and signals: test_serve_faults."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.clips import (
    DEBLURRED,
    WITH_PROPS,
    clip,
    frames_of,
    make_video,
    padded,
    planes_of,
    script,
    split,
)
from tests.cli.conftest import StartRun
from tests.cli.processes import LIMIT, Result
from vs_deblur.hosts import y4m


def served(run: StartRun, data: bytes, *options: object) -> Result:
    return run("serve", "-", *options).finish(data)


def good(result: Result) -> bytes:
    assert result.code == 0, result.err
    return result.out


def test_frames_of_a_stream_are_deblurred_and_the_header_is_kept(run: StartRun) -> None:
    data = clip(6, extra="XLENGTH=6 XFOO=bar")
    result = served(run, data)
    header, frames = split(good(result))
    assert header == data.partition(b"\n")[0]
    before = split(data)[1]
    assert [len(f) for f in frames] == [len(f) for f in before]
    assert all(a != b for a, b in zip(frames, before, strict=True))
    assert "BT.601 assumed" in result.err
    assert " on cpu" in result.err
    assert result.err.splitlines()[-1].startswith("Output 6 frames in ")


def test_strength_0_gives_every_sample_back(run: StartRun) -> None:
    data = clip(9, 17, 17, "422p10")
    assert good(served(run, data, "--strength", 0)) == data


def test_raw_is_the_planes_without_headers(run: StartRun) -> None:
    data = clip(3)
    out = good(served(run, data, "--strength", 0, "--format", "raw"))
    assert out == b"".join(split(data)[1])


@pytest.mark.parametrize(
    ("width", "height", "colour"),
    [(1, 1, "420"), (1, 9, "444"), (17, 17, "420jpeg"), (31, 2, "mono"), (20, 12, "444p16")],
)
def test_odd_and_small_sizes_and_depths(
    run: StartRun, width: int, height: int, colour: str
) -> None:
    data = clip(2, width, height, colour)
    header, frames = split(good(served(run, data)))
    assert header == data.partition(b"\n")[0]
    assert len(frames) == 2


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    width=st.integers(1, 32),
    height=st.integers(1, 32),
    colour=st.sampled_from(["420", "420jpeg", "422", "444", "mono", "440", "411", "420p10"]),
)
def test_any_small_size_comes_out_as_it_went_in(
    run: StartRun, width: int, height: int, colour: str
) -> None:
    data = clip(2, width, height, colour)
    with run("serve", "-", "--device", "cpu") as process:
        header, frames = split(good(process.finish(data)))
    assert header == data.partition(b"\n")[0]
    assert len(frames) == 2


@pytest.mark.parametrize("colour", ["444", "mono", "420", "420jpeg", "422", "440", "411"])
def test_an_odd_size_gives_the_picture_of_one_that_is_padded(run: StartRun, colour: str) -> None:
    """17x17, sample by sample."""
    found = []
    for data in (clip(4, 17, 17, colour), padded(clip(4, 17, 17, colour), 32, 32)):
        line, frames = split(good(served(run, data, "--device", "cpu", "--precision", "fp32")))
        found.append([planes_of(f, y4m.parse_header(line)) for f in frames])
    for small, large in zip(*found, strict=True):
        for a, b in zip(small, large, strict=True):
            np.testing.assert_array_equal(a, b[: a.shape[0], : a.shape[1]])


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_samples_stay_deep(run: StartRun, bits: int) -> None:
    out = split(good(served(run, clip(2, 48, 32, f"444p{bits}"))))[1]
    samples = np.frombuffer(b"".join(out), "<u2")
    assert samples.max() <= (1 << bits) - 1
    assert samples.max() > 1 << (bits - 1)
    # Of samples made from 8 bits all would be multiples, and only 256 of them.
    assert (samples % (1 << (bits - 8)) != 0).mean() > 0.5


def test_one_frame(run: StartRun) -> None:
    assert len(split(good(served(run, clip(1))))[1]) == 1


def test_a_header_alone(run: StartRun) -> None:
    result = served(run, clip(0))
    assert good(result) == clip(0)
    assert "warning: there are no frames" in result.err


def test_parts_put_end_to_end_are_the_whole(run: StartRun, tmp_path: Path) -> None:
    path = tmp_path / "clip"  # known by its content
    path.write_bytes(clip(20))
    options = ("--segment", 6, "--warmup", 2)
    whole = split(good(run("serve", path, *options).finish()))[1]
    parts = []
    for start, end in ((0, 3), (4, 11), (12, 12), (13, None)):
        last = () if end is None else ("--end", end)
        out = good(run("serve", path, "--start", start, *last, *options).finish())
        parts += split(out)[1]
    assert parts == whole
    assert len(set(parts)) == 20


def test_the_length_in_the_header_is_that_of_the_part(run: StartRun) -> None:
    result = served(run, clip(9, extra="XLENGTH=9"), "-s", 2, "-e", 5, "--strength", 0)
    header, frames = split(good(result))
    assert y4m.parse_header(header).length == len(frames) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-e", 6), "the clip ended before frame 6 (--end)"),
        (("-s", 7), "the clip ended before frame 7 (--start)"),
    ],
)
def test_frames_beyond_a_stream_are_an_error(
    run: StartRun, options: tuple[object, ...], message: str
) -> None:
    result = served(run, clip(6), "--strength", 0, *options)
    assert result.code == 3
    assert result.errors == [f"vs-deblur: error: {message}"]


def test_no_more_is_read_than_asked_for(run: StartRun) -> None:
    process = run("serve", "-", "--strength", 0, "-e", 2)
    process.write(clip(3))  # and the stream stays open
    out = process.read(len(clip(3, extra="XLENGTH=3")))
    assert split(out)[1] == split(clip(3))[1]
    assert process.wait() == 0


def test_a_promise_of_fewer_frames_is_noticed(run: StartRun) -> None:
    result = served(run, clip(3, extra="XLENGTH=2"), "--strength", 0)
    assert len(split(good(result))[1]) == 3
    assert "the header promised 2 frames, there were 3" in result.err


def test_matrix_and_range_can_be_said(run: StartRun) -> None:
    data = clip(3)
    plain = served(run, data)
    said = served(run, data, "--matrix", "601", "--range", "limited")
    other = served(run, data, "--matrix", "2020", "--range", "full")
    assert good(said) == good(plain)
    assert "assumed" not in said.err
    assert good(other) != good(plain)
    assert "assumed" not in other.err


@pytest.mark.parametrize(
    ("extra", "option", "said"),
    [
        ("", "full", True),
        ("", "limited", None),
        ("XCOLORRANGE=LIMITED", "full", True),
        ("XCOLORRANGE=FULL", "full", True),
        ("XCOLORRANGE=FULL", "limited", False),
    ],
)
def test_a_range_that_is_said_goes_into_the_header(
    run: StartRun, extra: str, option: str, said: bool | None
) -> None:
    result = served(run, clip(2, extra=extra), "--range", option, "--strength", 0)
    header = y4m.parse_header(split(good(result))[0])
    assert header.full_range is said
    assert sum("COLORRANGE" in text for text in header.extra) == (said is not None)


def test_info_is_in_vspipes_words(run: StartRun) -> None:
    result = served(run, clip(3, 48, 32, "422p10", "XLENGTH=3"), "--info")
    assert good(result).decode().splitlines() == [
        "Width: 48",
        "Height: 32",
        "Frames: 3",
        "FPS: 25/1 (25.000 fps)",
        "Format Name: YUV422P10",
        "Color Family: YUV",
        "Sample Type: Integer",
        "Bits: 10",
        "SubSampling W: 1",
        "SubSampling H: 0",
    ]


def test_a_file_gets_its_name_when_it_is_done(run: StartRun, tmp_path: Path) -> None:
    source, target = tmp_path / "a.y4m", tmp_path / "b.y4m"
    source.write_bytes(clip(3))
    result = run("serve", source, "-o", target, "--strength", 0).finish()
    assert good(result) == b""
    assert target.read_bytes() == clip(3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.y4m", "b.y4m"]


@pytest.mark.parametrize("rate", ["0:0", "25:0"])
def test_an_unknown_frame_rate_is_passed_on_with_a_warning(run: StartRun, rate: str) -> None:
    data = clip(2).replace(b"F25:1", b"F" + rate.encode())
    result = served(run, data, "--strength", 0)
    assert good(result) == data
    assert result.err.count(f"frame rate of stdin is unknown (F{rate})") == 1


def test_interlaced_streams_need_to_be_allowed(run: StartRun) -> None:
    data = clip(2).replace(b" Ip", b" It")
    refused = served(run, data)
    assert (refused.code, refused.out) == (3, b"")
    assert "interlaced" in refused.errors[0]
    assert good(served(run, data, "--strength", 0, "--allow-interlaced")) == data


def test_progress_can_be_left_out(run: StartRun) -> None:
    data = clip(4)
    assert "Output 4 frames in " in served(run, data, "--strength", 0).err
    assert "Output" not in served(run, data, "--strength", 0, "--quiet").err


# ---------------------------------------------------------------------------- video files


def test_a_video_file_gives_the_frames_of_the_same_y4m(run: StartRun, tmp_path: Path) -> None:
    data = clip(12)
    path = tmp_path / "clip.mkv"
    make_video(path, data)
    from_video = run("serve", path).finish()
    header, frames = split(good(from_video))
    assert frames == split(good(served(run, data)))[1]
    assert header.startswith(b"YUV4MPEG2 C420 W48 H32 F25:1 Ip A")
    part = run("serve", path, "-s", 5, "-e", 7).finish()
    assert split(good(part))[1] == frames[5:8]


def test_a_file_that_is_no_video(run: StartRun, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no frames here")
    result = run("serve", path).finish()
    assert (result.code, result.out) == (3, b"")
    assert len(result.errors) == 1


# ---------------------------------------------------------------------------- scripts


def test_a_script_is_served_as_the_filter_deblurs_it(run: StartRun, tmp_path: Path) -> None:
    plain = run("serve", script(tmp_path)).finish()
    out = good(plain)
    header, frames = split(out)
    assert header == b"YUV4MPEG2 C420 W48 H32 F25:1 Ip A0:0 XLENGTH=16"  # as vspipe writes it
    assert "the script prints" in plain.err
    assert "assumed" not in plain.err

    ready = run("serve", script(tmp_path, DEBLURRED), "--requests", 3).finish()
    assert "deblurred already (by " in ready.err
    assert good(ready) == out

    part = run("serve", script(tmp_path), "-s", 4, "-e", 12).finish()
    assert split(good(part))[1] == frames[4:13]
    unmarked = run(
        "serve",
        script(tmp_path, WITH_PROPS + "clip = clip.std.RemoveFrameProps('_SceneChangePrev')"),
    ).finish()
    same = [a == b for a, b in zip(split(good(unmarked))[1], frames, strict=True)]
    assert same.index(False) == 4  # the first frame that would look beyond a cut


def vspipe(path: Path, folder: Path) -> bytes:
    """The stream that vspipe makes of a script."""
    programs = Path(sys.executable).parent
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config"), "OMP_NUM_THREADS": "1"}
    commands: tuple[list[str | Path], ...] = (
        [programs / "vapoursynth", "config"],  # a fresh install's vspipe needs it once
        [programs / "vspipe", "-c", "y4m", path, folder / "out.y4m"],
    )
    for command in commands:
        subprocess.run(command, env=environment, capture_output=True, check=True, timeout=LIMIT)
    return (folder / "out.y4m").read_bytes()


def test_the_stream_is_vspipes_of_the_script_with_the_filter(run: StartRun, tmp_path: Path) -> None:
    ours = good(run("serve", script(tmp_path)).finish())
    assert ours == vspipe(script(tmp_path, DEBLURRED), tmp_path)


def test_what_a_script_does_not_say_is_guessed_with_a_warning(
    run: StartRun, tmp_path: Path
) -> None:
    guessed = run("serve", script(tmp_path, ""), "-e", 1).finish()
    said = run("serve", script(tmp_path, "clip = clip.std.SetFrameProps(_Matrix=6)"), "-e", 1)
    assert good(guessed) == good(said.finish())
    assert "matrix BT.601 and limited range assumed" in guessed.err


def test_a_header_says_more_than_vspipes_where_the_clip_does(run: StartRun, tmp_path: Path) -> None:
    props = "clip = clip.std.SetFrameProps(_Range=1, _ChromaLocation=1, _SARNum=4, _SARDen=3)"
    result = run("serve", script(tmp_path, props), "-s", 3, "-e", 3, "--strength", 0).finish()
    header = y4m.parse_header(good(result).partition(b"\n")[0])
    assert header.full_range
    assert header.layout.chroma_location == "center"
    assert header.sample_aspect_ratio == Fraction(4, 3)
    assert header.length == 1


def test_rgb_goes_out_raw_only(run: StartRun, tmp_path: Path) -> None:
    path = script(tmp_path, "", "RGB24")
    refused = run("serve", path).finish()
    assert (refused.code, refused.out) == (3, b"")
    assert "y4m has no name for 8-bit rgb clips; use --format raw" in refused.errors[0]
    raw = good(run("serve", path, "--format", "raw", "--strength", 0, "-e", 0).finish())
    planes = [np.random.default_rng(p).integers(20, 220, (32, 48)) for p in (1, 2, 0)]
    assert raw == b"".join(p.astype(np.uint8).tobytes() for p in planes)  # G, B, R
    assert b"Format Name: RGB24" in good(run("serve", path, "--info").finish())


@pytest.mark.parametrize(
    ("rest", "code", "message"),
    [
        ("1 +", 3, "the script failed: SyntaxError: "),
        ("nothing_of_that_name", 3, "NameError: name 'nothing_of_that_name' is not defined"),
        ("raise SystemExit(0)", 3, "the script failed: SystemExit: "),
        ("clip = vs.core.std.Trim(clip, 99)", 3, "the script failed: Trim: "),
        ("clip = clip[:2] + clip[2:].resize.Point(64, 48)", 3, "mismatch"),
        ("clip = vs.core.std.BlankAudio()", 3, "output 0 of the script is not video"),
        ("class clip: set_output = int", 3, "the script sets no output 0"),
        ("clip = clip.std.SetFrameProps(_FieldBased=2)", 3, "frame 0 is interlaced"),
        ("clip = clip.std.SetFrameProps(_Matrix=14)", 3, "the matrix is not supported: ICtCp"),
        ("clip = clip[:2]", 2, "frame 3 is beyond the clip; its last is 1"),
    ],
)  # fmt: skip
def test_scripts_that_cannot_be_served(
    run: StartRun, tmp_path: Path, rest: str, code: int, message: str
) -> None:
    result = run("serve", script(tmp_path, rest), "-e", 3).finish()
    assert (result.code, result.out) == (code, b""), result.err
    assert len(result.errors) == 1
    assert message in result.errors[0]
    assert "Traceback" not in result.err


def test_a_script_that_fails_at_a_frame(run: StartRun, tmp_path: Path) -> None:
    rest = (
        "def fail(n, f):\n"
        "    if n == 7: raise RuntimeError('the seventh')\n"
        "    return f\n"
        "clip = clip.std.ModifyFrame(clip, fail)"
    )
    result = run("serve", script(tmp_path, rest)).finish()
    assert result.code == 3
    assert len(split(result.out)[1]) == 7
    assert len(result.errors) == 1
    assert "frame 7: RuntimeError: the seventh" in result.errors[0]


def test_a_script_runs_in_its_folder(run: StartRun, tmp_path: Path) -> None:
    (tmp_path / "size.txt").write_text("16")
    rest = "clip = clip.resize.Point(int(open('size.txt').read()), 16)"
    here = Path.cwd()
    result = run("serve", script(tmp_path, rest), "--info").finish()
    assert b"Width: 16\n" in good(result)
    assert Path.cwd() == here


def test_frames_are_the_samples_of_the_stream(run: StartRun) -> None:
    """The helper that makes clips is right about where samples lie."""
    data = clip(2, 9, 5, "420p12")
    header = y4m.parse_header(data.partition(b"\n")[0])
    assert split(data)[1] == frames_of(header, 2)
    assert good(served(run, data, "--strength", 0, "--format", "raw")) == b"".join(
        frames_of(header, 2)
    )


def test_frames_do_not_go_to_a_terminal(run: StartRun) -> None:
    ours, theirs = os.openpty()
    try:
        result = run("serve", "-", stdout=theirs).finish(clip(1))
    finally:
        os.close(ours)
        os.close(theirs)
    assert result.code == 2
    assert "frames do not go to a terminal" in result.errors[0]
