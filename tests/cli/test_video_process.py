"""``vs-deblur video`` as a process: signals, and going on after being killed."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.cli.conftest import StartRun
from tests.cli.processes import Result, Run, Zygote, children, eventually
from tests.disks import DiskWithPlug, disk
from tests.films import Film, times
from vs_deblur import journal
from vs_deblur.journal import Contents

FRAMES = 96
OPTIONS = ("--device", "cpu", "--precision", "fp32", "--segment", 8, "--warmup", 2, "--chunk", 8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    film = Film("libx264", width=96, height=64, frames=FRAMES, audio="aac")
    return film.write(tmp_path_factory.mktemp("films") / "in.mp4")


@pytest.fixture
def unbroken(zygote: Zygote, source: Path) -> bytes:
    """What a run that nothing happens to gives."""
    target = source.with_name("out.mp4")
    if not target.exists():
        with Run(zygote, ["video", source, target, *OPTIONS]) as process:
            assert process.finish().code == 0
    return target.read_bytes()


def _wait_for_chunks(part: Path, count: int) -> None:
    """Wait until the part file has so many whole chunks."""

    def there() -> bool:
        found = _read(part)
        return found is not None and len(found.chunks) >= count

    eventually(there)


def _read(part: Path) -> Contents | None:
    return journal.read(part) if part.exists() else None


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)],
)
def test_a_signal_leaves_whole_chunks_and_resume_gives_the_same_bytes(
    run: StartRun,
    source: Path,
    unbroken: bytes,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    target, part = tmp_path / "out.mp4", tmp_path / "out.mp4.part"
    process = run("video", source, target, *OPTIONS)
    _wait_for_chunks(part, 2)
    assert children(process.pid) == []  # nobody can be left behind
    process.signal(number)
    result = process.finish()
    assert result.code == code, result.err
    assert not target.exists()
    found = _read(part)
    assert found is not None
    assert 16 <= len(found.times) < FRAMES
    assert len(found.times) % 8 == 0
    if code > 0:
        assert "stopped after" in result.err
        assert "--resume" in result.err
    again = resumed(run, source, target)
    assert "going on after" in again.err
    assert target.read_bytes() == unbroken
    assert len(times(target)) == FRAMES


def resumed(run: StartRun, source: Path, target: Path, *options: str) -> Result:
    """Go on to the end: nothing but the output is left."""
    result = run("video", source, target, *OPTIONS, "--resume", *options).finish()
    assert result.code == 0, result.err
    names = {p.name for p in target.parent.iterdir()} - {"lost+found"}
    assert names == {target.name}
    return result


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_again_and_again_gives_the_same_bytes(
    run: StartRun, source: Path, unbroken: bytes, tmp_path: Path, seed: int
) -> None:
    """Wherever it is when the part file reaches sizes drawn by chance."""
    target, part = tmp_path / "out.mp4", tmp_path / "out.mp4.part"
    rng = random.Random(seed)
    for size in sorted(rng.randrange(len(unbroken) // 2) for _ in range(3)):
        process = run("video", source, target, *OPTIONS, "--resume")
        eventually(lambda size=size: target.exists() or part.stat().st_size >= size)  # type: ignore[misc]
        process.signal(signal.SIGKILL)
        process.finish()
        if target.exists():  # it was named just before
            break
    else:
        resumed(run, source, target)
    assert target.read_bytes() == unbroken


KILL = """
import os, signal
from pathlib import Path
from vs_deblur.cli._output import OutputFile
from vs_deblur.journal import Journal
from vs_deblur.remux import _Sink

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
"""
HALF_A_RECORD = """
honest, written = Journal._write, []

def write(self, data):
    written.append(len(data))
    if sum(written) > 9000:
        honest(self, data[: len(data) // 2])
        kill()
    honest(self, data)

Journal._write = write
"""
THIRD_CHUNK = """
honest, ended = Journal.end_chunk, []

def end_chunk(self, frames):
    honest(self, frames)
    ended.append(frames)
    if len(ended) == 3:
        kill()

Journal.end_chunk = end_chunk
"""
SECOND_PIECE = """
honest, pieces = _Sink.write, []

def write(self, data):
    pieces.append(len(data))
    if len(pieces) == 2:
        kill()
    return honest(self, data)

_Sink.write = write
"""
# When the process dies, and whole chunks that there are then; None: no run to go on with.
MOMENTS: dict[str, tuple[str, int | None]] = {
    "nothing is written yet": ("Journal._write = kill", None),
    "half a record is written": (HALF_A_RECORD, 1),
    "a chunk has just ended": (THIRD_CHUNK, 3),
    "the file is being put together": (SECOND_PIECE, FRAMES // 8),
    "the file is whole": ("OutputFile.commit = kill", FRAMES // 8),
    "the file lacks its name only": ("OutputFile._put_in_place = kill", FRAMES // 8),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_killed_when_it_hurts_most_gives_the_same_bytes(
    run: StartRun, source: Path, unbroken: bytes, tmp_path: Path, moment: str
) -> None:
    target, part = tmp_path / "out.mp4", tmp_path / "out.mp4.part"
    before, chunks = MOMENTS[moment]
    killed = run("video", source, target, *OPTIONS, before=KILL + before).finish()
    assert killed.code == -9, killed.err
    assert not target.exists()
    found = _read(part)
    assert (None if found is None else len(found.chunks)) == chunks
    again = resumed(run, source, target)
    assert ("going on after" in again.err) == (chunks is not None)
    assert target.read_bytes() == unbroken


NAMED = """
honest = OutputFile._put_in_place

def name(self):
    honest(self)
    kill()

OutputFile._put_in_place = name
"""


def test_a_run_that_is_killed_when_its_file_has_just_got_its_name(
    run: StartRun, source: Path, unbroken: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "out.mp4"
    assert run("video", source, target, *OPTIONS, before=KILL + NAMED).finish().code == -9
    assert target.read_bytes() == unbroken
    again = run("video", source, target, *OPTIONS, "--resume").finish()
    assert again.code == 2
    assert "output exists" in again.err
    resumed(run, source, target, "--overwrite")
    assert target.read_bytes() == unbroken


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_cannot_get_its_name_is_not_lost(
    run: StartRun, source: Path, unbroken: bytes, tmp_path: Path, overwrite: bool
) -> None:
    """A folder appears in its place; with --overwrite a file that may not be replaced is there."""
    target, options = tmp_path / "out.mp4", [*OPTIONS, *["--overwrite"] * overwrite]
    appear = "import os\nhonest = os.fsync\n"
    appear += f"def fsync(fd):\n    honest(fd)\n    os.makedirs({str(target)!r}, exist_ok=True)\n"
    failed = run("video", source, target, *options, before=appear + "os.fsync = fsync").finish()
    assert failed.code == 4
    (line,) = failed.errors
    assert "; " in line
    assert "--resume" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "out.mp4.part"]
    target.rmdir()
    again = resumed(run, source, target)
    assert f"going on after {FRAMES} frames" in again.err
    assert target.read_bytes() == unbroken


@pytest.mark.parametrize("moment", ["in the middle", "at the end"])
def test_a_loss_of_power(
    run: StartRun, source: Path, unbroken: bytes, tmp_path: Path, moment: str
) -> None:
    """On a real ext4, of which only that outlasts it which was brought to the disk."""
    with DiskWithPlug(tmp_path) as plug:
        target, part = plug.place / "out.mp4", plug.place / "out.mp4.part"
        process = run("video", source, target, *OPTIONS)
        if moment == "in the middle":
            _wait_for_chunks(part, 3)
            process.signal(signal.SIGKILL)
            process.finish()
            plug.pull()
            found = _read(part)
            assert found is not None
            assert len(found.chunks) >= 2  # the last may have been on its way
            resumed(run, source, target)
        else:
            assert process.finish().code == 0
            plug.pull()
        assert target.read_bytes() == unbroken
        assert not part.exists()


@pytest.mark.parametrize("room", [0.3, 1.0])
def test_a_full_disk_keeps_what_is_done_and_resume_goes_on(
    run: StartRun, source: Path, unbroken: bytes, tmp_path: Path, room: float
) -> None:
    """There is room for some chunks; for all of them, but not for the file beside them."""
    size = 1 << 20
    (tmp_path / "disk").mkdir()
    with disk(tmp_path / "disk", size) as place:
        (place / "filler").write_bytes(bytes(size - int(room * len(unbroken))))
        target, part = place / "out.mp4", place / "out.mp4.part"
        full = run("video", source, target, *OPTIONS).finish()
        assert full.code == 4
        (line,) = full.errors
        assert "No space left on device" in line
        assert "make room and " in line
        assert "--resume" in line
        assert sorted(p.name for p in place.iterdir()) == ["filler", "out.mp4.part"]
        found = _read(part)
        assert found is not None
        if room < 1:
            assert 8 <= len(found.times) < FRAMES
            frame = int(line.partition(" at frame ")[2].split()[0])
            assert 0 <= frame - len(found.times) <= 8
        else:
            assert len(found.times) == FRAMES
        (place / "filler").unlink()
        again = resumed(run, source, target)
        assert f"going on after {len(found.times)} frames" in again.err
        assert target.read_bytes() == unbroken


def test_stop_and_continue(run: StartRun, source: Path, unbroken: bytes, tmp_path: Path) -> None:
    """As a laptop's lid or a batch system does it."""
    target, part = tmp_path / "out.mp4", tmp_path / "out.mp4.part"
    process = run("video", source, target, *OPTIONS)
    _wait_for_chunks(part, 2)
    process.signal(signal.SIGSTOP)
    eventually(lambda: process.state() == "T")
    size = part.stat().st_size
    time.sleep(1.0)
    assert part.stat().st_size == size
    process.signal(signal.SIGCONT)
    assert process.finish().code == 0
    assert target.read_bytes() == unbroken


def test_frames_are_counted_and_the_model_is_named(
    run: StartRun, source: Path, tmp_path: Path
) -> None:
    result = run("video", source, tmp_path / "a.mkv", *OPTIONS, "--end", 8).finish()
    assert result.code == 0
    assert result.out == b""
    assert "on cpu" in result.err
    assert "fp32" in result.err
    assert "done: 9 frames" in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["a.mkv"]


def test_errors_are_one_line_with_their_code(run: StartRun, source: Path, tmp_path: Path) -> None:
    result = run("video", source, tmp_path / "absent" / "a.mkv").finish()
    assert result.code == 4
    lines = result.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("vs-deblur: error: no such folder")


def test_a_clip_that_is_cut_off(run: StartRun, tmp_path: Path) -> None:
    """Its good frames are kept, and put together where that is asked for."""
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    film = Film("ffv1", width=96, height=64, frames=24)
    source.write_bytes(film.write(source).read_bytes()[:-2000])
    result = run("video", source, target, *OPTIONS).finish()
    assert result.code == 3
    (line,) = result.errors
    assert line.startswith("vs-deblur: error: ")
    assert str(source) in line
    assert [p.name for p in tmp_path.iterdir() if p != source] == ["out.mkv.part"]
    found = _read(tmp_path / "out.mkv.part")
    assert found is not None
    assert len(found.times) in (8, 16)
    last = len(found.times) - 1
    result = run("video", source, target, *OPTIONS, "--end", last, "--resume").finish()
    assert result.code == 0, result.err
    assert len(times(target)) == last + 1


def test_a_clip_whose_size_changes(run: StartRun, tmp_path: Path) -> None:
    source, target = tmp_path / "both.h264", tmp_path / "out.mkv"
    for name, size in (("a", (64, 48)), ("b", (80, 48))):
        film = Film("libx264", "yuv420p", *size, frames=10, options=(("bf", "0"),))
        film.write(tmp_path / name, "h264")
    source.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    result = run("video", source, target, *OPTIONS).finish()
    assert result.code == 3
    (line,) = result.errors
    assert "frame 10 is 80x48" in line
    assert not target.exists()
    found = _read(tmp_path / "out.mkv.part")
    assert found is not None
    assert len(found.times) == 8


def test_an_output_that_exists(
    run: StartRun, source: Path, unbroken: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"precious")
    result = run("video", source, target, *OPTIONS).finish()
    assert result.code == 2
    (line,) = result.errors
    assert "output exists" in line
    assert "--overwrite" in line
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"precious"]
    assert run("video", source, target, *OPTIONS, "--overwrite").finish().code == 0
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [unbroken]
