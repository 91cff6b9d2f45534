"""How ``serve`` ends: bad input, output that cannot be written, signals, slow and closed pipes."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.clips import WITH_PROPS, clip, make_video, script, split
from tests.cli.conftest import StartRun
from tests.cli.processes import LIMIT, Result, Run, eventually
from vs_deblur.cli.serve import _destination

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="looks into /proc and sets limits of processes"
)

NO_MODEL = ("--model", "/nowhere/no.safetensors")  # an error as soon as the model is loaded
THROUGH = ("--strength", 0)
BIG = (320, 240)  # a frame is more than a pipe holds


def open_for_test(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    yield fd
    os.close(fd)


@pytest.fixture
def full() -> Iterator[int]:
    yield from open_for_test("/dev/full", os.O_WRONLY)


# ---------------------------------------------------------------------------- input


LINE = "YUV4MPEG2 {}\n"


def refused(result: Result, message: str) -> None:
    """Bad input: one line, and nothing was put out."""
    assert (result.code, result.out) == (3, b"")
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("vs-deblur: error: ")
    assert message in result.err
    assert len(result.err) < 600
    assert result.err.removesuffix("\n").isprintable()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(range(256)) * 40, r"expected YUV4MPEG2, got '\x00\x01\x02"),
        (b"YUV4MPEG2 W48" + b" " * 5000, "header too long"),
        ("H32", "the y4m header has no width (W)"),
        ("W48", "the y4m header has no height (H)"),
        ("W0 H32", "width (W) must be 1..32768, got 0"),
        ("W48 H-3", "height (H) must be 1..32768, got -3"),
        ("W4x8 H32", "width (W) must be 1..32768, got '4x8'"),
        ("W999999999 H32", "width (W) must be 1..32768, got 999999999"),
        ("W48 H32 C999", "colour space '999' is not supported (stdin); supported: 420jpeg,"),
        ("W48 W48 H32", "tag W is twice"),
        ("W48 H32 It", "interlaced (It) (stdin); deinterlace first, or --allow-interlaced"),
        ("W48 H32 Ib", "interlaced (Ib)"),
        ("W48 H32 Im", "interlaced (Im)"),
    ],
)
def test_streams_that_are_no_y4m_are_refused_before_the_model_is_loaded(
    run: StartRun, data: bytes | str, message: str
) -> None:
    """By what is there: more might come, for stdin stays open."""
    process = run("serve", "-", *NO_MODEL)
    process.write(LINE.format(data).encode() if isinstance(data, str) else data)
    refused(process.finish_open(), message)


@pytest.mark.parametrize("length", range(len(clip(0))))
def test_streams_that_end_in_their_header_are_refused(run: StartRun, length: int) -> None:
    """At every byte of it."""
    message = "the stream ends in its header" if length >= 9 else "expected YUV4MPEG2"
    if not length:
        message = "input is empty: expected YUV4MPEG2 (stdin)"
    refused(run("serve", "-", *NO_MODEL).finish(clip(0)[:length]), message)


def test_a_damaged_stream_gives_the_frames_before_the_damage(run: StartRun) -> None:
    data = clip(9)
    size = (len(clip(9)) - len(clip(0))) // 9
    at = len(clip(0)) + 7 * size
    result = run("serve", "-").finish(data[:at] + b"FRAMF" + data[at + 5 :])
    assert result.code == 3
    assert len(split(result.out)[1]) == 7
    assert result.errors == ["vs-deblur: error: frame 7: expected FRAME, got 'FRAMF\\n' (stdin)"]


def test_a_last_frame_that_is_cut_off_is_an_error_after_the_others(run: StartRun) -> None:
    data = clip(9)
    result = run("serve", "-").finish(data[:-100])
    assert result.code == 3
    # The clip ends there: the frames are those of a stream of eight.
    assert result.out == run("serve", "-").finish(data[: len(clip(8))]).out
    assert len(split(result.out)[1]) == 8
    assert result.errors == ["vs-deblur: error: frame 8 is cut off: 2204 of 2304 bytes (stdin)"]


def test_what_a_frame_line_says_is_ignored(run: StartRun) -> None:
    data = clip(4)
    said = data.replace(b"FRAME\n", b"FRAME Ixyz Xq\n")
    assert run("serve", "-", *THROUGH).finish(said).out == data
    plain, result = run("serve", "-").finish(data), run("serve", "-").finish(said)
    assert (result.code, result.out) == (0, plain.out)


def test_a_stream_cut_after_the_last_frame_wanted_is_no_fault(run: StartRun) -> None:
    size = len(clip(1)) - len(clip(0))
    cut = clip(9)[: len(clip(0)) + 5 * size + size // 2]
    assert run("serve", "-").finish(cut).code == 3
    result = run("serve", "-", "-e", 4).finish(cut)
    assert result.code == 0, result.err
    assert result.errors == []
    # The clip ends there: the frames are those of a stream of five.
    assert (
        split(result.out)[1]
        == split(run("serve", "-").finish(clip(9)[: len(clip(0)) + 5 * size]).out)[1]
    )
    beyond = run("serve", "-", "-e", 5).finish(cut)
    assert beyond.code == 3
    assert "frame 5 is cut off" in beyond.err
    assert len(split(beyond.out)[1]) == 5


@given(cut=st.integers(0, len(clip(3))))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_prefix_of_a_stream_ends_well_or_as_bad_input(run: StartRun, cut: int) -> None:
    data = clip(3)
    size = (len(data) - len(clip(0))) // 3
    with run("serve", "-", *THROUGH) as process:
        result = process.finish(data[:cut])
    whole, rest = divmod(cut - len(clip(0)), size)
    assert result.code == (0 if whole >= 0 and rest == 0 else 3)
    if whole >= 0:
        assert len(split(result.out)[1]) == whole
    else:
        assert result.out == b""


@pytest.mark.parametrize(
    ("name", "message"), [("nothing.y4m", "no such file"), (".", "input is a folder")]
)
def test_input_files_that_are_none(run: StartRun, tmp_path: Path, name: str, message: str) -> None:
    result = run("serve", tmp_path / name, *NO_MODEL).finish()
    assert (result.code, result.out) == (3, b"")
    assert message in result.errors[0]


def test_a_producer_that_stalls_is_waited_for_without_work(run: StartRun) -> None:
    data = clip(6)
    process = run("serve", "-", *THROUGH)
    half = len(data) // 2
    process.write(data[:half])
    head = process.read(len(clip(2)))
    before = _processor_time(process)
    time.sleep(1.0)
    assert _processor_time(process) - before < 0.3
    result = process.finish(data[half:])
    assert result.code == 0
    assert head + result.out == data


def _processor_time(process: Run) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------------------- output files


def test_output_is_looked_at_before_input_and_model(run: StartRun, tmp_path: Path) -> None:
    """Nothing is read from stdin, no model is asked for, nothing is left behind."""
    existing = tmp_path / "a.y4m"
    existing.write_bytes(clip(1))
    beyond = tmp_path / "missing" / "b.y4m"
    cases: list[tuple[Path | str, int, str]] = [
        (beyond, 4, f"no such folder ({beyond.parent}); create it first"),
        (existing / "b.y4m", 4, "vs-deblur: error: "),
        (tmp_path, 4, f"output is a folder ({tmp_path})"),
        (existing, 2, f"output exists ({existing}); use --overwrite"),
    ]
    for path, code, message in cases:
        result = run("serve", "-", "-o", path, *NO_MODEL).finish(b"garbage")
        assert (result.code, result.out) == (code, b""), result.err
        assert len(result.err.splitlines()) == 1
        assert message in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["a.y4m"]
    assert existing.read_bytes() == clip(1)


def test_the_input_is_never_the_output(run: StartRun, tmp_path: Path) -> None:
    path, other = tmp_path / "a.y4m", tmp_path / "link.y4m"
    path.write_bytes(clip(2))
    other.symlink_to(path)
    for output in (path, other):
        result = run("serve", path, "-o", output, "--overwrite", *NO_MODEL).finish()
        assert (result.code, result.errors) == (
            2,
            [f"vs-deblur: error: output is the input ({output}); give another name"],
        )
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    result = run("serve", path, *NO_MODEL, stdout=fd).finish()
    os.close(fd)
    assert result.code == 2
    assert "output is the input" in result.errors[0]
    assert path.read_bytes() == clip(2)


def test_an_existing_file_is_replaced_only_when_all_went_well(
    run: StartRun, tmp_path: Path
) -> None:
    path = tmp_path / "a.y4m"
    path.write_bytes(b"precious")
    options = ("serve", "-", "-o", path, "--overwrite", *THROUGH)
    failed = run(*options).finish(clip(3)[:-1])
    assert failed.code == 3
    assert path.read_bytes() == b"precious"
    assert len(split(path.with_name("a.y4m.part").read_bytes())[1]) == 2
    assert run(*options).finish(clip(3)).code == 0
    assert path.read_bytes() == clip(3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.y4m"]


def test_a_fault_of_something_else_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    strange = OSError(errno.EMFILE, "Too many open files", "libcuda.so")
    path = str(tmp_path / "a.y4m")
    with pytest.raises(OSError, match="libcuda") as caught, _destination(path, "-", False):
        raise strange
    assert caught.value is strange
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full(run: StartRun, full: int) -> None:
    to_stdout = run("serve", "-", *THROUGH, stdout=full).finish(clip(3))
    by_name = run("serve", "-", *THROUGH, "-o", "/dev/full").finish(clip(3))
    for result, name in ((to_stdout, "stdout"), (by_name, "/dev/full")):
        assert result.code == 4
        assert result.errors == [f"vs-deblur: error: No space left on device at frame 0 ({name})"]


def test_a_disk_that_fills_up_leaves_whole_frames(run: StartRun, tmp_path: Path) -> None:
    path = tmp_path / "a.y4m"
    process = run("serve", "-", *THROUGH, "-o", path)
    limit = len(clip(4)) - 100
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    data = clip(9)
    result = process.finish(data)
    part = path.with_name("a.y4m.part")
    assert result.code == 4
    assert result.errors == [f"vs-deblur: error: File too large at frame 3 ({path})"]
    assert part.read_bytes() == data[: len(clip(3))]
    assert not path.exists()


def test_a_disk_without_room_left(run: StartRun, small_disk: Path) -> None:
    path, data = small_disk / "a.y4m", clip(150)
    result = run("serve", "-", *THROUGH, "-o", path).finish(data)
    part = path.with_name("a.y4m.part").read_bytes()
    frames = len(split(part)[1])
    assert 100 < frames < 150
    assert result.code == 4
    assert result.errors == [
        f"vs-deblur: error: No space left on device at frame {frames} ({path})"
    ]
    assert data.startswith(part)
    assert [p.name for p in small_disk.iterdir()] == ["a.y4m.part"]


def test_a_device_is_written_as_it_is(run: StartRun) -> None:
    assert run("serve", "-", *THROUGH, "-o", "/dev/null").finish(clip(3)).code == 0
    assert Path("/dev/null").is_char_device()


# ---------------------------------------------------------------------------- readers


LONG = WITH_PROPS + "clip = clip.std.Loop(20).resize.Point(320, 240)\n"


@pytest.fixture(params=["stdin", "y4m", "script", "deblurred script", "video"])
def long_source(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Hundreds of frames, of every kind."""
    if request.param == "stdin":
        return "-"
    if request.param.endswith("script"):
        rest = LONG
        if request.param.startswith("deblurred"):
            rest += "from vs_deblur import deblur; clip = deblur(clip, device='cpu')\n"
        return script(tmp_path, rest)
    path = tmp_path / "clip"
    if request.param == "y4m":
        path.write_bytes(clip(100, *BIG))
    else:
        path = path.with_suffix(".mkv")
        make_video(path, clip(100, *BIG))
    return path


def test_a_reader_that_closes_early_ends_it_in_silence(
    run: StartRun, long_source: Path | str
) -> None:
    options = ("serve", long_source, "--quiet", "--matrix", "601")
    process = run(*options)
    if long_source == "-":
        process.write(clip(8))
    process.read(1000)
    process.close("stdout")
    result = process.finish(clip(200)[len(clip(0)) :] if long_source == "-" else b"")
    assert result.code == 141
    # Which model it is was said before, and what is to be said of the source: no more.
    short = run(*options, "--end", 0).finish(clip(1) if long_source == "-" else b"")
    assert (short.code, short.err) == (0, result.err)
    assert len(result.err.splitlines()) <= 2


def test_a_reader_that_closes_is_noticed_while_the_producer_stalls(run: StartRun) -> None:
    process = run("serve", "-", *THROUGH)
    process.write(clip(2))
    process.read(len(clip(2)))
    process.close("stdout")
    assert process.wait() == 141


def _offer(process: Run, data: bytes, patience: float) -> int:
    """Write to stdin until nothing is taken for a while; bytes that were taken."""
    assert process.stdin is not None
    os.set_blocking(process.stdin, False)
    taken = 0
    while taken < len(data) and select.select([], [process.stdin], [], patience)[1]:
        taken += os.write(process.stdin, data[taken : taken + 65536])
    os.set_blocking(process.stdin, True)
    return taken


def _stalled(run: StartRun) -> tuple[Run, bytes]:
    """A server that has put out 10 bytes which were read, and the clip it was offered."""
    data = clip(12, *BIG)
    process = run("serve", "-", *THROUGH)
    process.write(data[:1000])
    process.read(10)
    _offer(process, data[1000:], 1.0)
    return process, data


def test_memory_is_bounded_while_the_reader_stalls(run: StartRun) -> None:
    data = clip(60, *BIG)
    process = run("serve", "-", *THROUGH)
    process.write(data[:1000])
    process.read(10)  # it runs
    taken = _offer(process, data[1000:], 1.0) + 1000
    # 4 read ahead and 4 written behind, one in each of five hands.
    assert taken < len(data) * 16 / 60
    rest = process.finish(data[taken:])
    assert rest.code == 0
    assert data[:10] + rest.out == data


def test_frames_of_a_script_are_not_asked_for_while_the_reader_stalls(
    run: StartRun, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    count = f"""
def count(n, f):
    with open({str(asked)!r}, "a") as file:
        file.write("x")
    return f

clip = clip.std.ModifyFrame(clip, count)
"""
    process = run("serve", script(tmp_path, LONG + count), *THROUGH, "--requests", 2)
    head = process.read(10)
    before = -1
    while asked.stat().st_size > before:  # until it asks no more
        before = asked.stat().st_size
        time.sleep(1.0)
    # 4 read ahead and 4 written behind, 2 asked for and as many kept, and one in each hand.
    assert before <= 20
    result = process.finish()
    assert result.code == 0
    assert len(split(head + result.out)[1]) == 320
    assert asked.stat().st_size >= 320


# ---------------------------------------------------------------------------- signals

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_the_producer_stalls(run: StartRun, number: int, code: int) -> None:
    process = run("serve", "-")
    process.write(clip(5))
    out = process.read(len(clip(4)))  # the fifth waits for the one after it
    process.signal(number)
    result = process.finish_open()
    assert result.code == code
    assert result.out == b""
    assert len(split(out)[1]) == 4
    assert result.err.splitlines()[-1] == "vs-deblur: stopped after 4 frames"
    assert "Traceback" not in result.err


def test_a_signal_to_the_whole_group_while_frames_flow_to_a_file(
    run: StartRun, tmp_path: Path
) -> None:
    path = tmp_path / "a.y4m"
    process = run("serve", "-", "-o", path)
    process.write(clip(20))
    part = path.with_name("a.y4m.part")
    eventually(lambda: part.stat().st_size > len(clip(3)))
    os.killpg(process.pid, signal.SIGINT)
    result = process.finish_open()
    assert result.code == 130
    frames = split(part.read_bytes())[1]
    assert 3 <= len(frames) <= 20
    last = result.err.splitlines()[-1]
    assert last == f"vs-deblur: stopped after {len(frames)} frames (in {part})"
    assert not path.exists()


def test_a_signal_while_the_reader_is_slow_lets_the_frame_be_finished(run: StartRun) -> None:
    process, data = _stalled(run)
    process.signal(signal.SIGTERM)
    time.sleep(0.3)
    result = process.finish_open()
    assert result.code == 143
    frames = split(data[:10] + result.out)[1]
    assert len(frames) < 12
    assert result.err.splitlines()[-1] == f"vs-deblur: stopped after {len(frames)} frames"


def test_a_signal_while_the_reader_takes_no_more(run: StartRun) -> None:
    process, _ = _stalled(run)
    process.signal(signal.SIGINT)
    assert process.wait() == 130  # though nobody read
    result = process.finish_open()
    assert "stopped after 0 frames; the reader takes no more" in result.err


def test_a_second_signal_ends_it_at_once(run: StartRun) -> None:
    process, _ = _stalled(run)
    process.signal(signal.SIGINT)
    time.sleep(0.3)
    process.signal(signal.SIGTERM)
    assert process.wait() == 143
    result = process.finish_open()
    assert "stopped at once" in result.err
    assert "stopped after" not in result.err


def test_a_signal_before_anything_came(run: StartRun) -> None:
    process = run("serve", "-")
    eventually(lambda: _sleeps(process))
    process.signal(signal.SIGTERM)
    result = process.finish_open()
    assert (result.code, result.out) == (143, b"")
    assert result.err == "vs-deblur: stopped after 0 frames\n"


def _sleeps(process: Run) -> bool:
    """Whether the signal thread is there and the main thread waits for input."""
    tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
    states = [(t / "stat").read_text().rpartition(")")[2].split()[0] for t in tasks]
    return len(tasks) == 2 and states == ["S", "S"]


def test_stop_and_continue(run: StartRun) -> None:
    data = clip(8)
    process = run("serve", "-", *THROUGH)
    process.write(data[: len(data) // 2])
    head = process.read(100)
    process.signal(signal.SIGSTOP)
    time.sleep(0.5)
    process.signal(signal.SIGCONT)
    result = process.finish(data[len(data) // 2 :])
    assert result.code == 0
    assert head + result.out == data


# ---------------------------------------------------------------------------- a bare process


def bare(line: str) -> tuple[int, bytes, str]:
    """A shell line with the real command; "vs-deblur" in it is this Python's."""
    line = line.replace("vs-deblur", f"{sys.executable} -m vs_deblur")
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=LIMIT * 2, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


def test_a_whole_process_from_start_to_end(tmp_path: Path) -> None:
    """As users start it: interpreter, imports, threads, and the end of it all."""
    path = tmp_path / "a.y4m"
    path.write_bytes(clip(60))
    code, out, err = bare(f"OMP_NUM_THREADS=1 vs-deblur serve {path} --end 4")
    assert (code, len(split(out)[1])) == (0, 5)
    assert err.splitlines()[-1].startswith("Output 5 frames in ")
    closes = "vs-deblur serve - --strength 0 --matrix 601"
    _, out, err = bare(f"{closes} < {path} | head -c 10; echo ${{PIPESTATUS[0]}} >&2")
    assert out == b"YUV4MPEG2 "
    assert len(err.splitlines()) == 2  # which model, and the exit code: nothing else is said
    assert err.splitlines()[-1] == "141"


def test_a_whole_process_ends_though_a_thread_is_stuck_in_reading() -> None:
    command = [sys.executable, "-m", "vs_deblur", "serve", "-", "--quiet"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write(clip(4))
            process.stdin.flush()
            assert len(split(process.stdout.read(len(clip(3))))[1]) == 3
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT) == 130
            last = process.stderr.read().decode().splitlines()[-1]
            assert last == "vs-deblur: stopped after 3 frames"
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("vs-deblur serve - <&-", 3, "standard input is closed"),
        ("vs-deblur serve - < /dev/null >&-", 4, "standard output is closed"),
        ("vs-deblur serve - < /dev/null", 3, "input is empty"),
        ("vs-deblur serve - < /dev/null 2>&-", 3, ""),
    ],
)
def test_standard_descriptors_that_are_closed(line: str, code: int, message: str) -> None:
    got, out, err = bare(line)
    assert (got, out) == (code, b"")
    assert message in err
    assert len(err.splitlines()) == (1 if message else 0)
