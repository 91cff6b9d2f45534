"""Memory, file handles and threads over a few hundred frames of ``benchmarks.longrun``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("vapoursynth")
if not sys.platform.startswith("linux"):
    pytest.skip("processes are looked at through /proc", allow_module_level=True)

from benchmarks import longrun
from benchmarks.longrun import (
    Sample,
    Size,
    draw_plot,
    filter_command,
    measure,
    read,
    serve_command,
    slope,
    summary,
    watch,
)

SIZE = Size(160, 96)
FRAMES, EVERY = 360, 30
# MiB. The allocators settle in such a short run; what the engine takes in of each frame, kept for
# ever, would be 43 in these 210 frames.
GROWTH = 12.0


@pytest.fixture(scope="module")
def hosts(small_weights: Path) -> dict[str, list[str]]:
    model = str(small_weights)
    return {"serve": serve_command(model), "filter": filter_command(model, SIZE, FRAMES)}


@pytest.fixture(scope="module")
def runs(hosts: dict[str, list[str]]) -> dict[str, list[Sample]]:
    def run(host: str) -> Iterator[Sample]:
        return watch(hosts[host], SIZE, FRAMES, fed=host == "serve", every=EVERY, limit=120)

    return {host: list(run(host)) for host in hosts}


@pytest.mark.parametrize("host", ["serve", "filter"])
def test_memory_files_and_threads_stay(runs: dict[str, list[Sample]], host: str) -> None:
    settled = runs[host][2:]
    assert [s.frame for s in settled] == list(range(90, FRAMES - 31, EVERY))
    assert len({s.files for s in settled}) == 1
    assert len({s.threads for s in settled}) == 1
    assert settled[-1].anonymous_mib - settled[0].anonymous_mib < GROWTH


def test_both_hosts_give_the_same_frames(runs: dict[str, list[Sample]]) -> None:
    serve, filtered = ([(s.frame, s.crc) for s in runs[host]] for host in ("serve", "filter"))
    assert serve == filtered
    assert len({crc for _, crc in serve}) == len(serve)


def test_a_process_that_fails_or_stops_early_is_an_error(hosts: dict[str, list[str]]) -> None:
    with pytest.raises(RuntimeError, match=r"exit code 2 after 0 of 3"):
        list(watch([*hosts["serve"], "--nonsense"], SIZE, 3, fed=True, every=1, limit=60))
    script = "import sys; sys.stdout.buffer.write(b'YUV4MPEG2\\n' + bytes(23046) * 2)"
    with pytest.raises(RuntimeError, match=r"exit code 0 after 2 of 3"):
        list(watch([sys.executable, "-c", script], SIZE, 3, fed=False, every=1, limit=60))
    hangs = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(RuntimeError, match=r"exit code -9"):
        list(watch(hangs, SIZE, 3, fed=False, every=1, limit=1))


BASE = Sample(0, 1.0, 100.0, 90.0, 80.0, 6, 4, "0")


def test_slope_is_per_thousand_frames_after_the_warm_up() -> None:
    growing = [replace(BASE, frame=n, rss_mib=100 + n / 500) for n in range(1000, 5000, 100)]
    early = [replace(BASE, frame=n, rss_mib=n) for n in range(0, 1000, 100)]
    assert slope([*early, *growing], "rss_mib", 1000) == pytest.approx(2.0)
    assert "rss_mib: +2.000 MiB per 1,000" in summary([*early, *growing], 1000)


def test_a_run_is_written_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    copy = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
    monkeypatch.setattr(longrun, "serve_command", lambda model: [sys.executable, "-c", copy])
    table, picture = tmp_path / "a" / "run.csv", tmp_path / "b" / "run.png"
    measure("serve", "small", SIZE, 60, 7, table)
    assert [s.frame for s in read(table)] == [7, 14, 21, 28]
    assert "threads: [" in capsys.readouterr().out
    draw_plot([table], picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
