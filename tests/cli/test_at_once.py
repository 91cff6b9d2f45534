"""Several runs of the command line at the same time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.clips import clip
from tests.cli.conftest import StartRun
from tests.films import Film, raw_frames
from tests.vapoursynth.conftest import ROOT
from tests.vapoursynth.conftest import run as run_by_itself

LIMIT = 150.0  # seconds; four processes on a busy machine
FRAMES = 20
Video = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    film = Film("libx264", width=96, height=64, frames=FRAMES, audio="aac")
    return film.write(tmp_path_factory.mktemp("films") / "in.mp4")


@pytest.fixture(scope="module")
def video(source: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Video:
    """``vs-deblur video`` on the film; all runs share the weights' folder and the cache."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def call(target: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vs_deblur", "video", str(source), str(target)]
        command += ["--model", str(small_weights), "--segment", "8", "--warmup", "2", *options]
        return run_by_itself(command, LIMIT, VS_DEBLUR_CACHE=cache)

    return call


@pytest.fixture(scope="module")
def lone(video: Video, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a run by itself writes."""
    target = tmp_path_factory.mktemp("lone") / "out.mp4"
    done = video(target)
    assert done.returncode == 0, done.stderr
    return target.read_bytes()


def test_four_runs_at_once_write_what_one_does(
    video: Video, lone: bytes, source: Path, tmp_path: Path
) -> None:
    targets = [tmp_path / f"out{i}.mp4" for i in range(4)]
    with ThreadPoolExecutor(4) as all_at_once:
        runs = list(all_at_once.map(video, targets))
    assert [r.returncode for r in runs] == [0] * 4, [r.stderr for r in runs]
    assert [t.read_bytes() == lone for t in targets] == [True] * 4
    assert sorted(tmp_path.iterdir()) == targets
    assert len(list(raw_frames(targets[0]))) == FRAMES


def test_two_runs_for_one_output(run: StartRun, small_weights: Path, tmp_path: Path) -> None:
    """The second is refused while the first waits for frames, and harms nothing of it."""
    stream = clip(6)
    target, part = tmp_path / "out.y4m", tmp_path / "out.y4m.part"
    command = ["serve", "-", "--quiet", "--device", "cpu", "--model", str(small_weights)]
    wanted = run(*command).finish(stream).out
    first = subprocess.Popen(
        [sys.executable, "-m", "vs_deblur", *command, "-o", str(target)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert first.stdin is not None
        first.stdin.write(stream[:-100])
        first.stdin.flush()
        deadline = time.monotonic() + LIMIT
        while not (part.exists() and part.stat().st_size):
            assert first.poll() is None
            assert time.monotonic() < deadline, "nothing was written in time"
            time.sleep(0.02)
        for options in ((), ("--overwrite",)):
            second = run(*command, "-o", target, *options).finish(stream)
            assert second.code == 4
            (error,) = second.errors
            assert f"another run writes this output ({target}); wait, or" in error
        _, said = first.communicate(stream[-100:], timeout=LIMIT)
        assert first.returncode == 0, said
    finally:
        first.kill()
        first.communicate()
    assert target.read_bytes() == wanted
    assert list(tmp_path.iterdir()) == [target]
