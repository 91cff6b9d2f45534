"""``vs-deblur video`` as a process: signals, and going on after being killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.cli.conftest import StartRun
from tests.films import Film, times
from vs_deblur import journal
from vs_deblur.journal import Contents

FRAMES = 96
OPTIONS = ("--device", "cpu", "--precision", "fp32", "--segment", 8, "--warmup", 2, "--chunk", 8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    film = Film("libx264", width=96, height=64, frames=FRAMES, audio="aac")
    return film.write(tmp_path_factory.mktemp("films") / "in.mp4")


@pytest.fixture(scope="module")
def unbroken(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole") / "out.mp4"


def _wait_for_chunks(part: Path, count: int) -> None:
    """Wait until the part file has so many whole chunks."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = _read(part)
        if found is not None and len(found.chunks) >= count:
            return
        time.sleep(0.005)
    raise AssertionError("no chunk was written in time")


def _read(part: Path) -> Contents | None:
    return journal.read(part) if part.exists() else None


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)],
)
def test_a_signal_leaves_whole_chunks_and_resume_gives_the_same_bytes(
    run: StartRun,
    source: Path,
    unbroken: Path,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    if not unbroken.exists():
        assert run("video", source, unbroken, *OPTIONS).finish().code == 0
    target, part = tmp_path / "out.mp4", tmp_path / "out.mp4.part"
    process = run("video", source, target, *OPTIONS)
    _wait_for_chunks(part, 2)
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
    again = run("video", source, target, *OPTIONS, "--resume").finish()
    assert again.code == 0, again.err
    assert "going on after" in again.err
    assert target.read_bytes() == unbroken.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    assert len(times(target)) == FRAMES


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
