"""``vs-deblur video`` on small generated files, inside this process."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests import films
from tests.films import Film
from tests.invoke import Result, invoke
from vs_deblur import journal
from vs_deblur.avpixels import Colour
from vs_deblur.cli import video
from vs_deblur.cli._common import ModelSettings
from vs_deblur.cli._output import OutputFile
from vs_deblur.cli.video import Range, prepare
from vs_deblur.encoder import Wanted
from vs_deblur.engine import Deblurrer
from vs_deblur.errors import InputError, OutputError, Stopped, UsageError
from vs_deblur.hosts.video import TimedFrame, VideoReader, open_video
from vs_deblur.pipeline import deblur_frames
from vs_deblur.scheduling import usual_priority
from vs_deblur.wholeness import is_cut_off

SETTINGS = ModelSettings(device="cpu", precision="fp32", segment=6, warmup=2)
SAME = replace(SETTINGS, strength=0.0)
SEGMENTS = ("--segment", 6, "--warmup", 2)


@pytest.fixture(scope="module")
def engine() -> Deblurrer:
    return Deblurrer(device="cpu", precision="fp32", segment=6, warmup=2)


@pytest.fixture(scope="module")
def idle() -> Deblurrer:
    """An engine that leaves every sample as it is."""
    return Deblurrer(device="cpu", precision="fp32", segment=6, warmup=2, strength=0.0)


def run(
    deblurrer: Deblurrer,
    source: Path,
    target: Path,
    wanted: Wanted | None = None,
    frames: Range | None = None,
    *,
    resume: bool = False,
    chunk: int = 6,
    check: Callable[[], None] = lambda: None,
    interlaced: bool = False,
) -> int:
    """What the command does after reading its options."""
    settings = replace(SETTINGS, strength=deblurrer.strength)
    with OutputFile(target, overwrite=True, inputs=(source,), keep_part=resume) as output:
        job = prepare(
            source,
            target,
            settings,
            wanted or Wanted(lossless=True),
            frames or Range(),
            allow_interlaced=interlaced,
            chunk=chunk,
        )
        return job.run(deblurrer, settings, output, resume=resume, check=check)


def deblurred(deblurrer: Deblurrer, source: Path) -> list[list[films.Plane]]:
    """The engine's own frames."""
    reader = open_video(source)
    return [o.value.planes for o in deblur_frames(deblurrer, reader.frames(), reader.info.fmt)]


def assert_same(expected: list[list[films.Plane]], got: list[list[films.Plane]]) -> None:
    assert len(expected) == len(got)
    for n, (a, b) in enumerate(zip(expected, got, strict=True)):
        for p, q in zip(a, b, strict=True):
            np.testing.assert_array_equal(p, q, err_msg=f"frame {n}")


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def command(*arguments: object) -> Result:
    return invoke(video.command, *arguments)


# ----------------------------------------------------------------------------------------- formats

FORMATS = [
    ("ffv1", "yuv420p", 64, 48, ".mkv"),
    ("ffv1", "yuv420p", 63, 47, ".mkv"),
    ("ffv1", "yuv420p10le", 64, 48, ".mkv"),
    ("ffv1", "yuv422p10le", 65, 49, ".mkv"),
    ("ffv1", "yuv444p16le", 33, 32, ".mkv"),
    ("ffv1", "yuv411p", 64, 48, ".mkv"),
    ("ffv1", "yuv440p", 64, 48, ".mkv"),
    ("ffv1", "gray", 64, 48, ".mkv"),
    ("ffv1", "gray16le", 31, 33, ".mkv"),
    ("ffv1", "bgr0", 33, 47, ".mkv"),
    ("ffv1", "gbrp10le", 64, 48, ".mkv"),
    ("ffv1", "rgb48le", 64, 48, ".mkv"),
    ("ffv1", "yuv420p", 64, 48, ".mp4"),
    ("ffv1", "yuv422p", 64, 48, ".mp4"),
    ("ffv1", "yuv444p", 63, 47, ".mp4"),
    ("ffv1", "yuv420p", 63, 47, ".mp4"),
    ("ffv1", "yuv420p10le", 64, 48, ".mp4"),
    ("ffv1", "yuv422p12le", 64, 48, ".mp4"),
    ("ffv1", "gray", 64, 48, ".mp4"),
    ("ffv1", "gray12le", 64, 48, ".mov"),
    ("ffv1", "bgr0", 64, 48, ".mp4"),
    ("ffv1", "gbrp10le", 64, 48, ".mp4"),
    ("ffv1", "yuv420p", 63, 47, ".webm"),
    ("ffv1", "yuv444p", 64, 48, ".webm"),
    ("libx264", "yuv420p10le", 64, 48, ".mkv"),
    ("libx265", "yuv422p10le", 64, 48, ".mp4"),
    ("libvpx-vp9", "yuv420p", 64, 48, ".webm"),
    ("mjpeg", "yuvj422p", 64, 48, ".mkv"),
    ("rawvideo", "yuyv422", 64, 48, ".mkv"),
    ("rawvideo", "nv12", 63, 47, ".mkv"),
    ("rawvideo", "rgb24", 33, 48, ".mkv"),
    ("png", "rgb48be", 32, 32, ".mkv"),
]


def _containing(codec: str) -> str:
    return "nut" if codec in ("rawvideo", "png") else "matroska"


def _options(codec: str) -> tuple[tuple[str, str], ...]:
    return (("x265-params", "log-level=error"),) if codec == "libx265" else ()


@pytest.mark.parametrize(("codec", "pix_fmt", "width", "height", "suffix"), FORMATS)
def test_lossless_output_is_what_the_engine_gave(
    engine: Deblurrer,
    tmp_path: Path,
    codec: str,
    pix_fmt: str,
    width: int,
    height: int,
    suffix: str,
) -> None:
    film = Film(codec, pix_fmt, width, height, 8, options=_options(codec))
    source = film.write(tmp_path / "in.bin", _containing(codec))
    target = tmp_path / f"out{suffix}"
    assert run(engine, source, target) == 8
    before, after = open_video(source), open_video(target)
    expected = deblurred(engine, source)
    assert_same(expected, list(after.frames()))
    for name in ("family", "bits", "is_float", "subsampling", "full_range", "matrix"):
        assert getattr(before.info.fmt, name) == getattr(after.info.fmt, name)
    untouched = list(before.frames())
    assert any(
        (a != b).any()
        for x, y in zip(untouched, expected, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert not target.with_name(target.name + ".part").exists()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "gbrp10le", "gray16le"])
def test_strength_0_gives_every_sample_back(idle: Deblurrer, tmp_path: Path, pix_fmt: str) -> None:
    source = Film("ffv1", pix_fmt, 63, 47).write(tmp_path / "in.mkv")
    run(idle, source, tmp_path / "out.mkv")
    assert_same(list(films.raw_frames(source)), list(films.raw_frames(tmp_path / "out.mkv")))


@pytest.mark.parametrize(
    ("pix_fmt", "suffix", "codec"),
    [
        ("yuv420p", ".mp4", "h264"),
        ("yuv420p", ".m4v", "h264"),
        ("yuv420p10le", ".mkv", "h264"),
        ("yuv422p12le", ".mov", "hevc"),
        ("gray", ".mp4", "hevc"),
        ("yuv420p14le", ".mkv", "ffv1"),
        ("yuv420p", ".webm", "vp9"),
        ("yuv420p10le", ".webm", "libdav1d"),
    ],
)
def test_the_default_codec_keeps_the_depth(
    idle: Deblurrer, tmp_path: Path, pix_fmt: str, suffix: str, codec: str
) -> None:
    source = Film("ffv1", pix_fmt).write(tmp_path / "in.mkv")
    target = tmp_path / f"out{suffix}"
    run(idle, source, target, Wanted())
    with av.open(str(target)) as found:
        assert found.streams.video[0].codec_context.name == codec
    after = open_video(target)
    assert after.info.fmt.bits == open_video(source).info.fmt.bits
    for a, b in zip(films.raw_frames(source), after.frames(), strict=True):
        error = np.mean((a[0].astype(float) - b[0]) ** 2) ** 0.5 / after.info.fmt.peak
        assert error < 0.03


@pytest.mark.parametrize(
    ("pix_fmt", "size", "suffix", "wanted"),
    [
        ("yuv420p14le", (64, 48), ".mp4", Wanted()),
        ("yuv420p14le", (64, 48), ".mov", Wanted(lossless=True)),
        ("yuv411p", (64, 48), ".mp4", Wanted(lossless=True)),
        ("yuv420p10le", (64, 48), ".webm", Wanted(lossless=True)),
        ("yuv420p", (63, 47), ".mkv", Wanted(codec="libx264")),
        ("yuv444p", (64, 48), ".mkv", Wanted(codec="mpeg4")),
        ("yuv420p", (64, 48), ".webm", Wanted(codec="libx264")),
    ],
)
def test_what_cannot_be_held_is_refused_not_converted(
    idle: Deblurrer,
    tmp_path: Path,
    pix_fmt: str,
    size: tuple[int, int],
    suffix: str,
    wanted: Wanted,
) -> None:
    source = Film("ffv1", pix_fmt, *size).write(tmp_path / "in.mkv")
    with pytest.raises(OutputError):
        run(idle, source, tmp_path / f"out{suffix}", wanted)
    assert listing(tmp_path) == ["in.mkv"]


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
def test_mjpeg_of_a_limited_range_clip_is_refused_with_the_reason(
    tmp_path: Path, suffix: str
) -> None:
    source = Film().write(tmp_path / "in.mkv")
    result = _refused(source, tmp_path / f"out{suffix}", "--codec", "mjpeg")
    assert result.code == 4
    assert "mjpeg holds full-range video only, the clip is limited range" in str(result.error)
    full = Film("mjpeg", "yuvj420p").write(tmp_path / "full.mkv")
    held = command(full, tmp_path / f"out{suffix}", "--codec", "mjpeg", "--strength", 0)
    assert held.code == 0, held.error


# What encoders are given, and whether they read what nothing was written to.
ENCODED = (
    ("libx264", "yuv420p"),
    ("libx264", "yuv420p10le"),
    ("libx264rgb", "rgb24"),
    ("libx265", "yuv420p"),
    ("libvpx-vp9", "yuv420p"),
    ("libsvtav1", "yuv420p"),
)
ENCODE = """
import sys
from pathlib import Path
from tests.test_video import ENCODED, run
from vs_deblur.encoder import Wanted
from vs_deblur.engine import Deblurrer
idle = Deblurrer(device="cpu", precision="fp32", segment=8, warmup=2, strength=0.0)
folder, filling = Path(sys.argv[1]), sys.argv[2]
for n, (codec, _) in enumerate(ENCODED):
    target = folder / f"{n}.{filling}.mkv"
    run(idle, folder / f"{n}.mkv", target, Wanted(codec=codec), chunk=8)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="MALLOC_PERTURB_ is glibc's")
def test_encoders_give_the_same_bytes_whatever_memory_held_before(tmp_path: Path) -> None:
    """x264 with AVX-512 does not by itself."""
    for n, (codec, pix_fmt) in enumerate(ENCODED):
        shown = "libx264rgb" if codec == "libx264rgb" else "libx264"
        film = Film(shown, pix_fmt=pix_fmt, width=96, height=64, frames=24)
        film.write(tmp_path / f"{n}.mkv")
    fillings = ("1", "170", "255")
    for filling in fillings:
        subprocess.run(
            [sys.executable, "-c", ENCODE, str(tmp_path), filling],
            env=os.environ | {"MALLOC_PERTURB_": filling, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            timeout=90,
        )
    for n, (codec, pix_fmt) in enumerate(ENCODED):
        made = {(tmp_path / f"{n}.{filling}.mkv").read_bytes() for filling in fillings}
        assert len(made) == 1, f"{codec} {pix_fmt}"


def real_time_threads() -> list[str]:
    """Threads of this process that nobody else gets a turn beside."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
            if os.sched_getscheduler(int(thread.name)) in (os.SCHED_FIFO, os.SCHED_RR):
                found.append((thread / "comm").read_text().strip())
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are not told of here")
def test_no_encoder_takes_real_time_priority(idle: Deblurrer, tmp_path: Path) -> None:
    """SVT-AV1 does where root runs it; what ran beside it got no turn."""
    assert real_time_threads() == []
    source = Film(frames=3).write(tmp_path / "in.mkv")
    looks, seen = 0, list[str]()

    def look() -> None:
        nonlocal looks
        with usual_priority():  # never in the midst of an opening, which another thread does
            looks += 1
            seen.extend(real_time_threads())

    run(*(idle, source, tmp_path / "out.mkv", Wanted(codec="libsvtav1")), chunk=1, check=look)
    assert looks
    assert seen == []
    assert real_time_threads() == []


def may_take_real_time() -> bool:
    """Whether this process may: root in a container often may not."""
    if not hasattr(os, "SCHED_FIFO"):
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True


@pytest.mark.skipif(not may_take_real_time(), reason="real-time priority may not be taken")
def test_two_threads_that_open_encoders_leave_no_real_time_priority() -> None:
    """The second does not take what the first is given for what was there before."""
    taken, go_on = threading.Event(), threading.Event()
    after: list[int] = []

    def opens(wait: bool) -> None:
        with usual_priority():
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            taken.set()
            if wait:
                go_on.wait(10)
        after.append(os.sched_getscheduler(0))

    first, second = (threading.Thread(target=opens, args=(wait,)) for wait in (True, False))
    first.start()
    assert taken.wait(10)
    second.start()
    second.join(0.2)  # time in which it would go through, were it let in
    go_on.set()
    first.join(10)
    second.join(10)
    assert after == [os.SCHED_OTHER] * 2


@pytest.mark.skipif(not may_take_real_time(), reason="real-time priority may not be taken")
def test_real_time_priority_that_was_there_stays() -> None:
    """Who starts the program so wants it so."""
    code = """
import os
from vs_deblur.scheduling import usual_priority
before = os.sched_getscheduler(0)
with usual_priority():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
print(before, os.sched_getscheduler(0))
"""
    for prefix, expected in (((), (os.SCHED_OTHER,) * 2), (("chrt", "-r", "1"), (2, 1))):
        command = [*prefix, sys.executable, "-c", code]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert tuple(map(int, said.stdout.split())) == expected


@pytest.mark.parametrize(("suffix", "hinted"), [(".mkv", False), (".mp4", True)])
def test_another_container_is_hinted_at_where_it_is_another(
    tmp_path: Path, suffix: str, hinted: bool
) -> None:
    source = Film().write(tmp_path / "in.mkv")
    result = _refused(source, tmp_path / f"out{suffix}", "--codec", "libsvtav1", "--preset", "99")
    assert "choose another --codec" in str(result.error)
    assert (".mkv takes everything" in str(result.error)) == hinted


# ------------------------------------------------------------------------------ times and the rest


@pytest.mark.parametrize(
    ("suffix", "time_base"),
    [(".mkv", Fraction(1, 1000)), (".mp4", Fraction(1, 15360)), (".mov", Fraction(1, 90000))],
)
@pytest.mark.parametrize("codec", ["libx264", "ffv1", "libx265"])
def test_variable_frame_times_stay(
    idle: Deblurrer, tmp_path: Path, suffix: str, time_base: Fraction, codec: str
) -> None:
    if codec == "ffv1" and suffix != ".mkv":
        codec = "mpeg4"
    steps = [1, 3, 1, 1, 7, 2, 1, 4, 1, 1, 1, 9, 2]
    unit = round(Fraction(1, 60) / time_base)
    times = [sum(steps[:i]) * unit for i in range(len(steps))]
    film = Film("libx264", frames=len(steps), times=times, time_base=time_base)
    source = film.write(tmp_path / f"in{suffix}")
    target = tmp_path / f"out{suffix}"
    run(idle, source, target, Wanted(codec=codec))
    assert films.times(target) == films.times(source)
    assert len(films.times(target)) == len(steps)
    shown = [p.time for p in films.packets(target, "video")]
    assert sorted(t for t in shown if t is not None) == films.times(source)


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "aac"), (".mkv", "libopus"), (".webm", "libopus")]
)
def test_sound_is_copied_packet_by_packet(
    idle: Deblurrer, tmp_path: Path, suffix: str, codec: str
) -> None:
    video_codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    source = Film(video_codec, frames=14, audio=codec).write(tmp_path / f"in{suffix}")
    target = tmp_path / f"out{suffix}"
    run(idle, source, target, Wanted())
    assert len(films.packets(source, "audio")) > 10
    assert films.packets(source, "audio") == films.packets(target, "audio")


def test_packets_of_sound_lie_beside_their_frames(idle: Deblurrer, tmp_path: Path) -> None:
    source = Film("libx264", frames=50, audio="aac").write(tmp_path / "in.mkv")
    run(idle, source, tmp_path / "out.mkv", Wanted())
    with av.open(str(tmp_path / "out.mkv")) as found:
        order = [
            (float(p.dts * p.time_base), p.stream.type) for p in found.demux() if p.dts is not None
        ]
    stamps = [t for t, _ in order]
    assert max(a - b for a, b in itertools.pairwise(stamps)) < 0.2


def test_subtitles_are_copied_or_named(
    idle: Deblurrer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Film(frames=10).write(tmp_path / "plain.mkv")
    source = films.with_subtitles(plain, tmp_path / "in.mkv", ["one", "two", "three"])
    run(idle, source, tmp_path / "out.mkv")
    assert films.packets(tmp_path / "out.mkv", "subtitle") == films.packets(source, "subtitle")
    job = prepare(source, tmp_path / "out.mp4", SAME, Wanted(), Range())
    assert job.copies.streams == ()
    assert job.copies.lost == ("stream 1 (subtitle, srt)",)
    assert run(idle, source, tmp_path / "out.mp4", Wanted()) == 10
    assert command(source, tmp_path / "b.mp4", "--strength", 0).err.count("srt") == 1


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
@pytest.mark.parametrize(
    "colour",
    [(1, 9, 9, 16, 3), (2, 1, 1, 1, 1), (1, 5, 5, 6, 1), (1, 6, 6, 6, 2)],
    ids=["pq-2020-topleft", "full-709", "625", "525-center"],
)
def test_colour_properties_stay(
    idle: Deblurrer, tmp_path: Path, suffix: str, colour: tuple[int, ...]
) -> None:
    film = Film("libx264", "yuv420p10le", colour=colour, aspect=Fraction(4, 3))  # type: ignore[arg-type]
    source = film.write(tmp_path / f"in{suffix}")
    run(idle, source, tmp_path / f"out{suffix}", Wanted())
    before, after = open_video(source), open_video(tmp_path / f"out{suffix}")
    assert before.colour == after.colour == Colour(*colour)
    assert before.info == after.info
    assert before.info.sample_aspect_ratio == Fraction(4, 3)


def test_an_unknown_matrix_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = Film(width=64, height=48).write(tmp_path / "small.mkv")
    large = Film(width=16, height=720, frames=1).write(tmp_path / "large.mkv")
    assert open_video(small).info.fmt.matrix == "601"
    assert open_video(large).info.fmt.matrix == "709"
    assert [r.getMessage().count("does not state") for r in caplog.records] == [1, 1]


def test_a_matrix_that_is_not_linear_is_refused(tmp_path: Path) -> None:
    source = Film("libx264", colour=(1, 10, 9, 14, 1)).write(tmp_path / "in.mkv")
    with pytest.raises(InputError, match="matrix"):
        open_video(source)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_rotation_stays(idle: Deblurrer, tmp_path: Path, suffix: str) -> None:
    source = Film("libx264", rotation=90).write(tmp_path / f"in{suffix}")
    run(idle, source, tmp_path / f"out{suffix}", Wanted())
    assert films.display_matrix(source) is not None
    assert films.display_matrix(tmp_path / f"out{suffix}") == films.display_matrix(source)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_chapters_and_metadata_stay(idle: Deblurrer, tmp_path: Path, suffix: str) -> None:
    film = Film(
        "libx264",
        frames=10,
        metadata=(("title", "A title"), ("comment", "x")),
        chapters=((0, 200, "first"), (200, 400, "second")),
    )
    source = film.write(tmp_path / f"in{suffix}")
    run(idle, source, tmp_path / f"out{suffix}", Wanted())
    run(idle, source, tmp_path / f"part{suffix}", Wanted(), Range(2, 8))

    def chapters(path: Path) -> list[tuple[float, float, str]]:
        with av.open(str(path)) as found:
            assert found.metadata["title"] == "A title"
            return [
                (
                    float(c["start"] * c["time_base"]),
                    float(c["end"] * c["time_base"]),
                    c["metadata"]["title"],
                )
                for c in found.chapters()
            ]

    assert chapters(tmp_path / f"out{suffix}") == chapters(source)
    assert len(chapters(source)) == 2
    part = chapters(tmp_path / f"part{suffix}")
    assert [c[2] for c in part] == ["first", "second"]
    assert part[0][:2] == pytest.approx((0, 0.12))
    assert part[1][:2] == pytest.approx((0.12, 0.24))


# ------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("start", "end"), [(0, 5), (5, 6), (3, 17), (6, None), (13, 20), (19, None)]
)
def test_a_part_has_the_frames_of_the_whole(
    engine: Deblurrer, tmp_path: Path, start: int, end: int | None
) -> None:
    source = Film(frames=20, audio="flac").write(tmp_path / "in.mkv")
    run(engine, source, tmp_path / "out.mkv", frames=Range(start, end), chunk=4)
    expected = deblurred(engine, source)[start:end]
    assert_same(expected, list(films.raw_frames(tmp_path / "out.mkv")))
    times = films.times(source)[start:end]
    shift = times[0] if start else Fraction(0)
    assert films.times(tmp_path / "out.mkv") == [t - shift for t in times]
    over = Fraction(min(end or 20, 20), 25)
    kept = [
        (p.time - shift, p.data)
        for p in films.packets(source, "audio")
        if p.time is not None and p.time >= shift and (end in (None, 20) or p.time < over)
    ]
    got = [(p.time, p.data) for p in films.packets(tmp_path / "out.mkv", "audio")]
    assert [d for _, d in got] == [d for _, d in kept]
    assert all(
        abs(a - (b or 0)) <= Fraction(1, 1000) for (a, _), (b, _) in zip(kept, got, strict=True)
    )


def test_a_part_beyond_the_end_is_an_error(idle: Deblurrer, tmp_path: Path) -> None:
    source = Film(frames=5).write(tmp_path / "in.mkv")
    with pytest.raises(InputError, match="no frame 5"):
        run(idle, source, tmp_path / "out.mkv", frames=Range(5, 9))
    assert [p.name for p in tmp_path.iterdir()] == ["in.mkv"]


@pytest.mark.parametrize("codec", ["ffv1", "libx264"])
def test_an_end_beyond_the_clip_is_an_error_that_loses_nothing(tmp_path: Path, codec: str) -> None:
    source = Film(codec, frames=10).write(tmp_path / "in.mkv")
    target = tmp_path / "out.mkv"
    options = ("--strength", 0, "--lossless")
    failed = command(source, target, *options, "--end", 10)
    assert failed.code == 3
    assert "the clip ended before frame 10 (--end)" in str(failed.error)
    assert "out.mkv.part keeps what is done: add --resume to go on with it" in failed.err
    assert not target.exists()
    assert isinstance(failed.error, InputError)
    hint = str(failed.error.hint).split()[:3]
    assert hint == ["--end", "9", "--resume"]
    again = command(source, target, *options, *hint)
    assert again.code == 0, again.error
    assert "going on after 10 frames" in again.err
    assert_same(list(films.raw_frames(source)), list(films.raw_frames(target)))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_sound_after_the_last_frame_of_the_clip_stays(
    idle: Deblurrer, tmp_path: Path, suffix: str
) -> None:
    film = Film("libx264", frames=10, audio="aac", sound=1.5)
    source = film.write(tmp_path / f"in{suffix}")
    whole, part = tmp_path / f"whole{suffix}", tmp_path / f"part{suffix}"
    run(idle, source, whole, Wanted(), Range(0, 10))
    run(idle, source, part, Wanted(), Range(0, 9))
    sound = films.packets(source, "audio")
    assert films.packets(whole, "audio") == sound
    end = Fraction(9, 25)
    assert [p.data for p in films.packets(part, "audio")] == [
        p.data for p in sound if p.time is not None and p.time < end
    ]


def test_sound_ends_with_the_last_frame_where_the_file_says_no_durations(
    idle: Deblurrer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = VideoReader.timed_frames

    def silent(self: VideoReader, origin: int = 0) -> Iterator[TimedFrame]:
        for frame in honest(self, origin):
            yield replace(frame, duration=0)

    source = Film("libx264", frames=20, audio="aac").write(tmp_path / "in.mkv")
    run(idle, source, tmp_path / "said.mkv", frames=Range(0, 7))
    run(idle, source, tmp_path / "one-said.mkv", frames=Range(4, 5))
    monkeypatch.setattr(VideoReader, "timed_frames", silent)
    run(idle, source, tmp_path / "unsaid.mkv", frames=Range(0, 7))
    run(idle, source, tmp_path / "one-unsaid.mkv", frames=Range(4, 5))
    for one in ("", "one-"):
        said = films.packets(tmp_path / f"{one}said.mkv", "audio")
        assert said
        assert films.packets(tmp_path / f"{one}unsaid.mkv", "audio") == said


@pytest.mark.parametrize(("codec", "container"), [("libx264", "h264"), ("libx264", "matroska")])
def test_whether_a_clip_goes_on(tmp_path: Path, codec: str, container: str) -> None:
    reader = open_video(Film(codec, frames=6).write(tmp_path / "in.bin", container))
    times = [frame.pts for frame in reader.timed_frames()]
    goes_on = [reader.goes_on_after(n, pts) for n, pts in enumerate(times)]
    assert goes_on == [True] * 5 + [False]


def test_one_frame(engine: Deblurrer, tmp_path: Path) -> None:
    source = Film(frames=1).write(tmp_path / "in.mkv")
    assert run(engine, source, tmp_path / "out.mkv") == 1
    assert_same(deblurred(engine, source), list(films.raw_frames(tmp_path / "out.mkv")))


@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_chunks_change_no_frame(engine: Deblurrer, tmp_path: Path, chunk: int) -> None:
    source = Film(frames=13).write(tmp_path / "in.mkv")
    run(engine, source, tmp_path / "out.mp4", chunk=chunk)
    assert_same(deblurred(engine, source), list(films.raw_frames(tmp_path / "out.mp4")))


# ---------------------------------------------------------------------------------------- resuming


class StopAfter:
    """Raises at the so-manieth call."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped(2, 0)


@pytest.mark.parametrize(
    ("suffix", "wanted"),
    [
        (".mp4", Wanted()),
        (".mkv", Wanted(codec="libx265")),
        (".mkv", Wanted(lossless=True)),
        (".webm", Wanted()),
    ],
)
def test_a_run_that_was_stopped_gives_the_same_bytes(
    engine: Deblurrer, tmp_path: Path, suffix: str, wanted: Wanted
) -> None:
    # A run asks whether to stop at each frame, and often while it waits for one.
    source = Film("libx264", frames=26, audio="libopus").write(tmp_path / "in.mkv")
    run(engine, source, tmp_path / f"whole{suffix}", wanted)
    target = tmp_path / f"out{suffix}"
    stops = 0
    for calls in (40, 60, 10**9):
        try:
            run(engine, source, target, wanted, resume=True, check=StopAfter(calls))
        except Stopped:
            stops += 1
            assert not target.exists()
            assert (tmp_path / f"out{suffix}.part").stat().st_size > 0
    assert stops >= 1
    assert target.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert listing(tmp_path) == sorted(["in.mkv", f"out{suffix}", f"whole{suffix}"])


def test_a_run_that_was_ended_is_destroyed_only_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Film(frames=10).write(tmp_path / "in.mkv")
    target, part = tmp_path / "out.mkv", tmp_path / "out.mkv.part"
    options = ("--strength", 0, "--lossless", "--chunk", 4)
    assert command(source, target, *options, "--end", 10).code == 3
    kept = part.read_bytes()
    with monkeypatch.context() as patch:
        _no_model(patch)
        refused = command(source, target, *options)
    assert refused.code == 2
    assert "use --resume to go on or --overwrite to start anew" in str(refused.error)
    assert part.read_bytes() == kept
    assert not target.exists()
    anew = command(source, target, *options, "--overwrite")
    assert anew.code == 0, anew.error
    assert "going on" not in anew.err
    assert listing(tmp_path) == ["in.mkv", "out.mkv"]


def test_whole_chunks_are_not_computed_again(engine: Deblurrer, tmp_path: Path) -> None:
    source = Film(frames=26).write(tmp_path / "in.mkv")
    target = tmp_path / "out.mkv"
    done: list[int] = []

    def go(until: int | None) -> None:
        job = prepare(source, target, SETTINGS, Wanted(lossless=True), Range(), chunk=6)

        def progress(frames: int, _new: int) -> None:
            done.append(frames)
            if until is not None and frames >= until:
                raise Stopped(15, frames)

        with OutputFile(target, keep_part=True) as output:
            job.run(engine, SETTINGS, output, resume=True, progress=progress)

    with pytest.raises(Stopped):
        go(14)
    done.clear()
    go(None)
    assert min(done) >= 12
    assert_same(deblurred(engine, source), list(films.raw_frames(target)))


def test_a_shorter_or_longer_part_goes_on_with_the_same_chunks(
    engine: Deblurrer, tmp_path: Path
) -> None:
    source = Film(frames=26).write(tmp_path / "in.mkv")
    target = tmp_path / "out.mkv"
    whole = deblurred(engine, source)
    with pytest.raises(Stopped):
        run(
            engine,
            source,
            target,
            resume=True,
            check=_late(target),
        )
    run(engine, source, target, frames=Range(0, 8), resume=True)
    assert_same(whole[:8], list(films.raw_frames(target)))


def _late(target: Path) -> Callable[[], None]:
    """Stops when the journal has two chunks."""

    part = target.with_name(target.name + ".part")

    def check() -> None:
        found = journal.read(part) if part.exists() else None
        if found is not None and len(found.chunks) >= 2:
            raise Stopped(2, 0)

    return check


def test_resuming_with_other_settings_is_refused_by_name(
    engine: Deblurrer, idle: Deblurrer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Film(frames=26).write(tmp_path / "in.mkv")
    target = tmp_path / "out.mkv"
    with pytest.raises(Stopped):
        run(engine, source, target, resume=True, check=_late(target))
    with pytest.raises(UsageError, match="strength"):
        run(idle, source, target, resume=True)
    with pytest.raises(UsageError, match="encoder"):
        run(engine, source, target, Wanted(crf=3), resume=True)
    with pytest.raises(UsageError, match="start"):
        run(engine, source, target, frames=Range(2), resume=True)
    with monkeypatch.context() as patch:
        patch.setattr("torch.get_num_threads", lambda: 63)
        with pytest.raises(UsageError, match=r"another threads \(\d+, now 63\)"):
            run(engine, source, target, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "tile_for", lambda height, width: 32)
        with pytest.raises(UsageError, match="another tile"):
            run(engine, source, target, resume=True)
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
        with pytest.raises(UsageError, match="another environment"):
            run(engine, source, target, resume=True)
    source.write_bytes(source.read_bytes() + b"more")
    with pytest.raises(UsageError, match="input"):
        run(engine, source, target, resume=True)


@pytest.mark.parametrize("options", [(), ("--resume",)])
@pytest.mark.parametrize("content", [b"something else" * 100, b"x", journal.MAGIC[:-1] + b"?"])
def test_a_part_file_of_somebody_else_is_not_destroyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, options: tuple[str, ...]
) -> None:
    source = Film().write(tmp_path / "in.mkv")
    part = tmp_path / "out.mkv.part"
    part.write_bytes(content)
    with monkeypatch.context() as patch:
        _no_model(patch)
        refused = command(source, tmp_path / "out.mkv", *options)
    assert refused.code == 2
    assert "not one of ours (" in str(refused.error)
    assert str(refused.error).endswith("--overwrite without --resume" if options else "--overwrite")
    assert part.read_bytes() == content
    anew = command(source, tmp_path / "out.mkv", *options, "--overwrite", "--strength", 0)
    assert anew.code == (2 if options else 0)


def test_a_damaged_part_file_is_told_and_not_destroyed(tmp_path: Path) -> None:
    """Bytes changed in the first, and in the second of its chunks."""
    source = Film(frames=10).write(tmp_path / "in.mkv")
    target, part = tmp_path / "out.mkv", tmp_path / "out.mkv.part"
    options = ("--strength", 0, "--lossless", "--chunk", 4)
    assert command(source, target, *options, "--end", 10).code == 3
    kept = part.read_bytes()
    found = journal.read(part)
    assert found is not None
    assert not found.is_damaged
    for frames, place in ((0, found.chunks[0][1] - 200), (4, found.chunks[1][1] - 200)):
        data = bytearray(kept)
        data[place] ^= 0x20
        part.write_bytes(data)
        refused = command(source, target, *options)
        assert refused.code == 2
        assert "keeps a run that was ended" in str(refused.error)
        assert part.read_bytes() == data
        again = command(source, target, *options, "--resume")
        assert again.code == 0, again.error
        assert f"is damaged after frame {frames}: what follows is made anew" in again.err
        assert len(list(films.raw_frames(target))) == 10
        target.unlink()


def test_a_clip_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    """A copy, with another time of change, is the same clip."""
    source = Film(frames=10).write(tmp_path / "in.mkv")
    target = tmp_path / "out.mkv"
    options = ("--strength", 0, "--lossless", "--chunk", 4)
    assert command(source, target, *options, "--end", 10).code == 3
    os.utime(source, (1, 1))
    again = command(source, target, *options, "--resume")
    assert again.code == 0, again.error
    assert "going on after 8 frames" in again.err
    assert "done: 10 frames" in again.err


def test_a_first_frame_beyond_the_clip_is_refused_before_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Film("libx264", frames=10).write(tmp_path / "in.mp4")
    _no_model(monkeypatch)
    refused = command(source, tmp_path / "out.mkv", "--start", 10)
    assert refused.code == 3
    assert "there is no frame 10: the clip has 10" in str(refused.error)


def test_an_mp4_without_its_index_is_called_cut_off(tmp_path: Path) -> None:
    source = Film("libx264", frames=10).write(tmp_path / "in.mp4")
    source.write_bytes(source.read_bytes()[:-300])
    refused = command(source, tmp_path / "out.mkv")
    assert refused.code == 3
    assert "the file is cut off" in str(refused.error)


# ------------------------------------------------------------------------------------ faults: input


def _refused(*arguments: object) -> Result:
    result = command(*arguments, "--strength", 0)
    assert result.error is not None
    return result


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "cannot be read as a video"),
        (bytes(range(256)) * 40, "cannot be read as a video"),
        (None, "no such file"),
    ],
    ids=["empty", "garbage", "missing"],
)
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes | None, what: str) -> None:
    source = tmp_path / "in.mkv"
    if content is not None:
        source.write_bytes(content)
    result = _refused(source, tmp_path / "out.mkv")
    assert result.code == 3
    assert what in str(result.error)
    assert not (tmp_path / "out.mkv").exists()
    assert not (tmp_path / "out.mkv.part").exists()


def test_a_folder_and_a_file_without_video_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        open_video(tmp_path)
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as output:
        stream: Any = output.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="stereo", samples=800)
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(InputError, match="no video"):
        open_video(sound)


LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile other.mkv\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mkv\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>'
    '<AdaptationSet mimeType="video/webm"><Representation id="1" bandwidth="1"><BaseURL>other.mkv'
    "</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("name", ["clip.mkv", "clip.m3u8", "clip.mpd", "clip.sdp"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_other_files_are_not_followed(tmp_path: Path, kind: str, name: str) -> None:
    Film().write(tmp_path / "other.mkv")
    (tmp_path / name).write_text(LISTS[kind])
    with pytest.raises(InputError, match=r"of a kind that is read|cannot be read as a video"):
        open_video(tmp_path / name)


def test_a_name_is_a_name(tmp_path: Path) -> None:
    """Not a protocol of FFmpeg's, nor a pattern for other names."""
    for wide, name in ((64, "a:b.mkv"), (32, "concat:a|b.mkv"), (16, "file:x.mkv")):
        source = Film(width=wide).write(tmp_path / "made.mkv")
        source.rename(tmp_path / name)
        assert open_video(tmp_path / name).info.width == wide
    for n in (0, 1):
        Image.new("RGB", (8 + n, 8)).save(tmp_path / f"a00{n}.png")
    (tmp_path / "a001.png").rename(tmp_path / "a%03d.png")
    assert open_video(tmp_path / "a%03d.png").info.width == 9


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx264", ".mkv"),
        ("ffv1", ".mkv"),
        ("libx264", ".mp4"),
        ("libx265", ".mov"),
        ("ffv1", ".avi"),
    ],
)
def test_a_file_cut_anywhere_is_an_error_after_its_good_frames(
    tmp_path: Path, codec: str, suffix: str
) -> None:
    film = Film(codec, frames=12, options=_options(codec))
    whole = film.write(tmp_path / f"in{suffix}")
    if suffix in (".mp4", ".mov"):  # the index at the beginning, as files for the web have it
        whole = _index_first(whole, tmp_path / f"first{suffix}")
    data = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    expected = list(films.raw_frames(whole))
    most = 0
    for size in range(0, len(data), len(data) // 40):
        cut.write_bytes(data[:size])
        got: list[list[films.Plane]] = []
        with pytest.raises(InputError):
            got.extend(open_video(cut).frames())
        assert len(got) <= len(expected)
        most = max(most, len(got))
    assert most >= 6


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize(
    "after", [b"TAG" + b"A title".ljust(125, b"\0"), b"<!-- saved -->\n", b"\0" * 30, b"abc"]
)
def test_bytes_after_the_last_box_are_not_a_fault(
    tmp_path: Path, suffix: str, after: bytes
) -> None:
    source = Film("libx264").write(tmp_path / f"in{suffix}")
    source.write_bytes(source.read_bytes() + after)
    assert len(list(open_video(source).frames())) == 8


_TS_PACKET = 188


def _damaged(source: Path, target: Path, kind: str) -> Path:
    """A transport stream whose middle packet of one kind of stream has its error bit set."""
    with av.open(str(source)) as found:
        pid = next(s for s in found.streams if s.type == kind).id
    data = bytearray(source.read_bytes())
    places = [
        i
        for i in range(0, len(data), _TS_PACKET)
        if int.from_bytes(data[i + 1 : i + 3], "big") & 0x1FFF == pid
    ]
    data[places[len(places) // 2] + 1] |= 0x80
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(("kind", "warnings"), [("audio", 0), ("video", 1)])
def test_damage_that_costs_no_frame_is_a_warning_at_most(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, warnings: int
) -> None:
    film = Film("libx264", frames=20, audio="aac", colour=(1, 1, 1, 1, 1))
    whole = film.write(tmp_path / "in.ts", "mpegts")
    damaged = _damaged(whole, tmp_path / "damaged.ts", kind)
    with av.open(str(damaged)) as found:
        assert [p.stream.type for p in found.demux() if p.size and p.is_corrupt] == [kind]
    assert_same(list(films.raw_frames(whole)), list(films.raw_frames(damaged)))
    assert [r.getMessage().count("is damaged near frame") for r in caplog.records] == [1] * warnings


def _index_first(source: Path, target: Path) -> Path:
    options = {"movflags": "faststart"}
    with av.open(str(source)) as found, av.open(str(target), "w", options=options) as output:
        copy = output.add_stream_from_template(found.streams.video[0], opaque=True)
        for packet in found.demux(found.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                output.mux(packet)
    return target


def test_a_cut_file_is_an_error_by_frame_number_and_end_keeps_what_is_there(
    engine: Deblurrer, tmp_path: Path
) -> None:
    whole = Film(frames=20).write(tmp_path / "in.mkv")
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    target = tmp_path / "out.mkv"
    options = ("--lossless", "--device", "cpu", "--precision", "fp32", *SEGMENTS)
    failed = command(cut, target, *options)
    assert failed.code == 3
    assert not target.exists()
    good: list[list[films.Plane]] = []
    with pytest.raises(InputError):
        good.extend(open_video(cut).frames())
    assert 6 <= len(good) < 20
    assert isinstance(failed.error, InputError)
    hint = str(failed.error.hint).split()
    assert hint[:2] == ["--end", str(len(good) - 1)]
    again = command(cut, target, *options, *hint[:2])
    assert again.code == 0, again.error
    got = list(films.raw_frames(target))
    assert len(got) == len(good)
    # All but the last, whose window has no next frame now, are those of the whole clip.
    assert_same(deblurred(engine, whole)[: len(good) - 1], got[:-1])
    ends_there = deblur_frames(engine, good, open_video(whole).info.fmt)
    assert_same([o.value.planes for o in ends_there], got)


def test_an_avi_of_several_parts_is_whole_up_to_the_last(tmp_path: Path) -> None:
    """OpenDML: beyond a gigabyte an AVI goes on in further RIFF chunks."""

    def riff(kind: bytes, size: int) -> bytes:
        return b"RIFF" + (4 + size).to_bytes(4, "little") + kind + bytes(size) + bytes(size % 2)

    path = tmp_path / "a.avi"
    whole = riff(b"AVI ", 301) + riff(b"AVIX", 200) + riff(b"AVIX", 101)
    for cut, is_cut in ((0, False), (2, True), (60, True), (120, True), (340, True)):
        path.write_bytes(whole[: len(whole) - cut])
        assert is_cut_off(path) == is_cut
    path.write_bytes(whole + b"some tag after it")
    assert not is_cut_off(path)


def test_a_new_size_in_the_middle_is_an_error_by_frame_number(tmp_path: Path) -> None:
    for name, size in (("a", (64, 48)), ("b", (80, 48))):
        film = Film("libx264", "yuv420p", *size, frames=5, options=(("bf", "0"),))
        film.write(tmp_path / name, "h264")
    both = tmp_path / "both.h264"
    both.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    frames = open_video(both).frames()
    assert len(list(itertools.islice(frames, 5))) == 5
    with pytest.raises(InputError, match="frame 5 is 80x48"):
        next(frames)


def test_interlaced_frames_are_refused_unless_allowed(idle: Deblurrer, tmp_path: Path) -> None:
    film = Film("libx264", frames=4, interlaced=True, options=(("x264-params", "tff=1"),))
    source = film.write(tmp_path / "in.mkv")
    result = _refused(source, tmp_path / "out.mkv")
    assert result.code == 3
    assert "interlaced" in str(result.error)
    assert "deinterlace first" in str(result.error)
    assert run(idle, source, tmp_path / "out.mkv", interlaced=True) == 4


# ----------------------------------------------------------------------------------- faults: output


def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on loading a model is a failure of the test."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(ModelSettings, "deblurrer", fail)


def test_outputs_that_cannot_be_are_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_model(monkeypatch)
    source = Film(frames=2).write(tmp_path / "in.mkv")
    (tmp_path / "folder.mkv").mkdir()
    (tmp_path / "there.mkv").write_bytes(b"x")
    (tmp_path / "link.mkv").symlink_to(source)
    (tmp_path / "device.mkv").symlink_to("/dev/full")
    before = listing(tmp_path)
    cases: list[tuple[list[object], int, str]] = [
        ([tmp_path / "absent" / "out.mkv"], 4, "no such folder"),
        ([source / "out.mkv"], 4, ""),
        ([tmp_path / "folder.mkv"], 4, "folder"),
        ([tmp_path / "device.mkv"], 4, "not a file"),
        ([source], 2, "output is the input"),
        ([tmp_path / "link.mkv", "--overwrite"], 2, "output is the input"),
        ([tmp_path / "there.mkv"], 2, "--overwrite"),
        ([tmp_path / "out.xyz"], 2, "must end in"),
        ([tmp_path / "out"], 2, "must end in"),
        ([tmp_path / "out.mkv", "--codec", "nonsense"], 2, "nonsense"),
        ([tmp_path / "out.mkv", "--codec", "aac"], 2, "not a video codec"),
        ([tmp_path / "out.mkv", "--codec", "ffv1", "--crf", 3], 2, "ffv1 has no crf"),
        ([tmp_path / "out.mkv", "--crf", 99], 2, "crf must be 0..51 for libx264, got 99"),
        ([tmp_path / "out.webm", "--crf", 64], 2, "crf must be 0..63 for libvpx-vp9, got 64"),
        ([tmp_path / "out.mkv", "--lossless", "--crf", 3], 2, "exclude"),
        ([tmp_path / "out.mkv", "--codec", "mpeg4", "--lossless"], 2, "lossless"),
        ([tmp_path / "out.mkv", "--preset", "nonsense"], 2, "has no preset 'nonsense'"),
        ([tmp_path / "out.mkv", "--start", 3, "--end", 2], 2, "--end"),
    ]
    for arguments, code, what in cases:
        result = command(source, *arguments)
        assert (result.code, what in str(result.error)) == (code, True), (arguments, result.error)
    assert listing(tmp_path) == before


def test_overwrite_replaces_at_the_end(tmp_path: Path) -> None:
    source = Film(frames=3).write(tmp_path / "in.mkv")
    (tmp_path / "out.mkv").write_bytes(b"old")
    result = command(source, tmp_path / "out.mkv", "--overwrite", "--strength", 0, "--lossless")
    assert result.code == 0, result.error
    assert len(films.times(tmp_path / "out.mkv")) == 3
    assert listing(tmp_path) == ["in.mkv", "out.mkv"]


def test_the_command_says_what_runs_and_where(tmp_path: Path) -> None:
    source = Film(frames=3).write(tmp_path / "in.mkv")
    result = command(source, tmp_path / "out.mkv", "--device", "cpu", "--precision", "fp32")
    assert result.code == 0, result.error
    assert result.out == ""
    first, second = result.err.splitlines()[:2]
    assert "on cpu" in first or "does not state" in first
    assert "on cpu" in second or "libx264 yuv420p crf 17" in second
    assert "done: 3 frames" in result.err


def test_a_full_disk_at_the_beginning(
    idle: Deblurrer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Film().write(tmp_path / "in.mkv")
    monkeypatch.setattr(OutputFile, "_make_part", lambda file: file.part.symlink_to("/dev/full"))
    monkeypatch.setattr(OutputFile, "_take", lambda _: None)  # it refuses what is no file
    with pytest.raises(OutputError, match="No space left on device at frame 0"):
        run(idle, source, tmp_path / "out.mkv")


def test_a_full_disk_in_the_middle_keeps_the_part_file(
    engine: Deblurrer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vs_deblur.journal import Journal

    source = Film(frames=20).write(tmp_path / "in.mkv")
    target = tmp_path / "out.mkv"
    honest = Journal.frame

    def full(self: Journal, time: int, duration: int) -> None:
        if time >= 560:  # frame 14
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(self, time, duration)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "frame", full)
        with pytest.raises(OutputError, match="No space left on device at frame 14"):
            run(engine, source, target)
    assert not target.exists()
    assert (tmp_path / "out.mkv.part").exists()
    run(engine, source, target, resume=True)
    assert_same(deblurred(engine, source), list(films.raw_frames(target)))


def test_a_full_disk_while_the_file_is_put_together(
    idle: Deblurrer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vs_deblur import remux

    source = Film(frames=20).write(tmp_path / "in.mkv")
    target = tmp_path / "out.mkv"

    class Full(remux._Sink):
        def write(self, data: Any) -> int:
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.error

    with monkeypatch.context() as patch:
        patch.setattr(remux, "_Sink", Full)
        with pytest.raises(OutputError, match="No space left"):
            run(idle, source, target)
    assert listing(tmp_path) == ["in.mkv", "out.mkv.part"]
    run(idle, source, target, resume=True)
    assert_same(list(films.raw_frames(source)), list(films.raw_frames(target)))
