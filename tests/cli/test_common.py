"""What commands share: the lazy group, errors as one line, signals, progress, output files."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vs_deblur import errors
from vs_deblur.cli import COMMANDS, _common, _progress, _signals, group
from vs_deblur.cli._output import OutputFile, _belongs_to_another
from vs_deblur.cli._progress import Progress
from vs_deblur.errors import DeblurError, OutputError, ReaderClosed, Stopped, UsageError, exit_code

LIMIT = 60


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


# ---------------------------------------------------------------------------- the group


def test_help_lists_every_command_and_imports_none() -> None:
    code = """
import atexit, sys
heavy = {"torch", "numpy", "av", "vapoursynth", "vs_deblur.cli.serve", "vs_deblur.cli.video"}
atexit.register(lambda: print("loaded:", sorted(heavy & set(sys.modules))))
from vs_deblur.cli import main
main(["--help"])
"""
    done = python(code)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "loaded: []"
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert text in done.stdout


def test_help_of_serve_loads_nothing_heavy() -> None:
    code = """
import atexit, sys
atexit.register(lambda: print("loaded:", sorted({"torch", "av", "vapoursynth"} & set(sys.modules))))
from vs_deblur.cli import main
main(["serve", "--help"])
"""
    done = python(code)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_and_can_be_verbose(name: str) -> None:
    result = CliRunner().invoke(group, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert result.output.count("--verbose") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vidoe"], "no such command 'vidoe'. did you mean video?; see vs-deblur --help"),
        (["nothing"], "no such command 'nothing'; see vs-deblur --help"),
        (["--nothing"], "no such option '--nothing'"),
        (["serve"], "missing argument 'IN'; see vs-deblur serve --help"),
        (["serve", "-", "--strength", "2"], "2.0 is not in the range"),
        (["serve", "-", "--precision", "fp8"], "'fp8' is not one of"),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments: Sequence[str], message: str) -> None:
    code = "import sys; from vs_deblur.cli import main; main(sys.argv[1:])"
    done = python(code, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("vs-deblur: error: ")
    assert message in done.stderr


# ---------------------------------------------------------------------------- errors


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> _signals.Stop:
    """A state of signals of the test's own."""
    fresh = _signals.Stop()
    monkeypatch.setattr(_signals, "_stop", fresh)
    monkeypatch.setattr(_common, "_verbose", False)
    return fresh


ERRORS = [
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, DeblurError) and not issubclass(error, Stopped)
]


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_of_ours_are_one_line(
    kind: type[DeblurError], capsys: pytest.CaptureFixture[str], stop: _signals.Stop
) -> None:
    error = kind("what\nhappened", "where", "do this")
    assert _common.report(error) == kind.exit_code == exit_code(error)
    expected = "vs-deblur: error: what happened (where); do this\n"
    assert capsys.readouterr() == ("", expected)


def test_errors_of_others_are_one_line_too(
    capsys: pytest.CaptureFixture[str], stop: _signals.Stop
) -> None:
    assert _common.report(RuntimeError("two\nlines")) == 1
    expected = "vs-deblur: error: RuntimeError: two lines; -v shows the traceback\n"
    assert capsys.readouterr().err == expected
    assert _common.report(click.UsageError("Such a thing.")) == 2
    assert capsys.readouterr().err == "vs-deblur: error: such a thing\n"
    assert _common.report(click.ClickException("No.")) == 2
    capsys.readouterr()


def test_verbose_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], stop: _signals.Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_common, "_verbose", True)
    with pytest.raises(OutputError) as caught:
        raise OutputError("disk full")
    assert _common.report(caught.value) == 4
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("vs-deblur: error: disk full\n")


@pytest.mark.parametrize("error", [ReaderClosed(3), BrokenPipeError()])
def test_a_reader_that_went_is_not_mentioned(
    error: BaseException, capsys: pytest.CaptureFixture[str], stop: _signals.Stop
) -> None:
    assert _common.report(error) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [Stopped(15, 2), _signals.Interrupted(), ImportError("interrupted import")]
)
def test_a_signal_is_the_reason_whatever_it_raised(
    error: BaseException, capsys: pytest.CaptureFixture[str], stop: _signals.Stop
) -> None:
    stop.signum, stop.frames, stop.remark = 15, 7, " (in a.part)"
    assert _common.report(error) == 143
    assert capsys.readouterr().err == "vs-deblur: stopped after 7 frames (in a.part)\n"


def test_prints_to_a_reader_that_went_end_with_141() -> None:
    code = "from vs_deblur.cli import main; main(['--help'])"
    line = f'{sys.executable} -c "{code}" | true; echo ${{PIPESTATUS[0]}}'
    # The reader may go before or after the text is written: 0 or 141, and never a complaint.
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""


# ---------------------------------------------------------------------------- signals

LOOP = """
import os, sys, time
from vs_deblur.cli import _common, _signals
import click

@click.command()
def command():
    {body}

_common.run(click.Group("test", {{"x": command}}), ["x"])
"""
READY = "os.write(1, b'r')"


def _signalled(
    body: str, *numbers: int, ignored: int | None = None, again: float | None = None
) -> tuple[int, str]:
    """Exit code and stderr of a command that is sent signals, each when it says that it is ready.

    With ``again`` the last one is sent again every so many seconds until the command ends.
    """

    def ignore() -> None:
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-c", LOOP.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        preexec_fn=ignore,
    )
    with process:
        try:
            assert process.stdout is not None
            for number in numbers:
                assert process.stdout.read(1) == b"r"
                process.send_signal(number)
            end = time.monotonic() + LIMIT
            while again and time.monotonic() < end:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(again)
                    break
                process.send_signal(number)
            _, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    return process.returncode, err.decode()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_what_needs_no_finishing(number: int, code: int) -> None:
    got = _signalled(f"{READY}; time.sleep({LIMIT})", number)
    assert got == (code, "vs-deblur: stopped after 0 frames\n")


def test_gracefully_the_work_in_hand_is_finished() -> None:
    body = f"""
    with _signals.graceful() as stop:
        for n in range(1000):
            if n == 3:
                {READY}
                while stop.signum is None:
                    time.sleep(0.01)
            stop.frames += 1
            stop.check()
"""
    assert _signalled(body, signal.SIGTERM) == (143, "vs-deblur: stopped after 4 frames\n")


def test_a_second_signal_ends_even_a_computation_that_runs_no_python() -> None:
    body = f"""
    import hashlib
    with _signals.graceful():
        {READY}
        hashlib.pbkdf2_hmac("sha256", b"many", b"minutes", 10**9)
"""
    code, said = _signalled(body, signal.SIGINT, again=0.5)
    assert code == 130
    assert said.strip() == "vs-deblur: stopped at once"


def test_signals_that_were_ignored_stay_ignored() -> None:
    body = f"""
    {READY}
    time.sleep(0.5)
"""
    assert _signalled(body, signal.SIGHUP, ignored=signal.SIGHUP) == (0, "")


# ---------------------------------------------------------------------------- progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    yield clock
    monkeypatch.setattr(_progress, "_live", False)


def _work(progress: Progress, clock: Clock, frames: int) -> None:
    for n in range(1, frames + 1):
        clock.now += 0.5
        progress.update(n)
    progress.finish()


def test_lines_every_few_seconds_where_stderr_is_no_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    _work(Progress(25, vspipe=True), clock, 25)
    assert capsys.readouterr().err.splitlines() == [
        "Frame: 10/25 (2.00 fps)",
        "Frame: 20/25 (2.00 fps)",
        "Output 25 frames in 12.50 seconds (2.00 fps)",
    ]
    _work(Progress(25), clock, 25)
    assert capsys.readouterr().err.splitlines() == [
        "10/25 frames, 2.00 fps, 0:08 left",
        "20/25 frames, 2.00 fps, 0:02 left",
        "done: 25 frames in 12.50 seconds (2.00 fps)",
    ]


def test_one_line_is_rewritten_on_a_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "is_terminal", lambda: True)
    progress = Progress(None, vspipe=True)
    clock.now += 1
    progress.update(1)
    _progress.warn("look")
    progress.finish()
    clear = "\r\x1b[K"
    said = capsys.readouterr().err.replace(clear + clear, clear)
    assert said == (
        f"{clear}Frame: 1 (1.00 fps){clear}vs-deblur: warning: look\n"
        "Output 1 frames in 1.00 seconds (1.00 fps)\n"
    )


def test_nothing_is_said_to_a_stderr_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    progress = Progress(3)
    progress.update(1)
    progress.finish()
    _progress.note("hello")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        _progress.note("hello")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # what is left in its buffer may go


# ---------------------------------------------------------------------------- errors


def test_what_a_file_says_is_no_command_to_a_terminal() -> None:
    error = errors.InputError("no \x1b[2J\r\n\u202e\x85 é 東\u00a0京", "a\udcff", "b\x07")
    assert str(error) == r"no \x1b[2J\r \u202e\x85 é 東\u00a0京 (a\udcff); b\x07".replace(
        r"\u00a0", "\u00a0"
    )


def test_what_a_file_says_at_length_is_shortened() -> None:
    text = str(errors.InputError("a" * 10_000, "b" * 10_000, "c" * 10_000))
    assert len(text) < 2000
    assert text.startswith("aaa")
    assert text.endswith("ccc")
    assert text.count("…") == 3


def test_notes_are_no_commands_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _progress.note("a\x1b[2J")
    _progress.warn("b\x1b[2J")
    assert "\x1b" not in capsys.readouterr().err


# ---------------------------------------------------------------------------- output files


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.y4m"
    with OutputFile(path) as output:
        assert output.part == tmp_path / "out.y4m.part"
        output.part.write_bytes(b"frames")
        assert not path.exists()
    assert path.read_bytes() == b"frames"
    assert not output.part.exists()


def test_a_failure_leaves_the_part_and_nothing_where_there_was_nothing(tmp_path: Path) -> None:
    def fail(data: bytes) -> None:
        with OutputFile(tmp_path / "out.y4m") as output:
            output.part.write_bytes(data)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail(b"")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        fail(b"some")
    assert [p.name for p in tmp_path.iterdir()] == ["out.y4m.part"]


def test_an_old_part_is_written_anew_if_that_is_asked_for(tmp_path: Path) -> None:
    part = tmp_path / "out.y4m.part"
    part.write_bytes(b"90,000 frames of an earlier run")
    with pytest.raises(UsageError, match=r"the part file of another run is there .*--overwrite"):
        OutputFile(tmp_path / "out.y4m")
    assert part.read_bytes() == b"90,000 frames of an earlier run"
    with OutputFile(tmp_path / "out.y4m", overwrite=True) as output:
        assert output.part.read_bytes() == b""
    (tmp_path / "out.y4m").unlink()
    part.write_bytes(b"")
    with OutputFile(tmp_path / "out.y4m"):  # what a run that wrote nothing left
        pass


def test_a_link_in_the_place_of_the_part_is_not_followed(tmp_path: Path) -> None:
    """Its name can be guessed: whoever may write to the folder could have us write elsewhere."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    part = tmp_path / "out.mkv.part"
    for make in (part.symlink_to, part.hardlink_to):
        make(precious)
        with OutputFile(tmp_path / "out.mkv", overwrite=True) as output:
            output.part.write_bytes(b"frames")
        make(precious)
        with pytest.raises(OutputError, match=r"somebody else, or is a link .*out\.mkv\.part"):
            OutputFile(tmp_path / "out.mkv", overwrite=True, keep_part=True)
        part.unlink()
    assert precious.read_bytes() == b"precious"
    assert (tmp_path / "out.mkv").read_bytes() == b"frames"


@pytest.mark.skipif(os.name != "posix", reason="owners and modes of files")
def test_a_part_of_somebody_else_in_a_folder_of_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "out.mkv.part"
    part.write_bytes(b"frames of ours")
    own = os.geteuid()
    for mode, user, is_taken in (
        (0o1777, own, True),
        (0o1777, own + 1, False),
        (0o755, own + 1, True),  # a share may make up owners
    ):
        tmp_path.chmod(mode)
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        taken = contextlib.nullcontext() if is_taken else pytest.raises(OutputError, match="else")
        with taken:
            OutputFile(tmp_path / "out.mkv", keep_part=True)
    assert part.read_bytes() == b"frames of ours"


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize("private", [False, True])
def test_who_may_read_the_part_is_up_to_the_umask(tmp_path: Path, private: bool) -> None:
    before = os.umask(0o077)
    try:
        with OutputFile(tmp_path / "out.y4m", private=private) as output:
            assert output.part.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_second_run_for_the_same_output_is_refused(tmp_path: Path) -> None:
    """And harms nothing of the first, which may have it when the first is done or failed."""
    path = tmp_path / "out.y4m"

    def second(*, overwrite: bool = False, keep_part: bool = False) -> None:
        with OutputFile(path, overwrite=overwrite, keep_part=keep_part) as output:
            output.part.write_bytes(b"of the second")

    with OutputFile(path) as output:
        output.part.write_bytes(b"of the first")
        for resumes in (False, True):
            with pytest.raises(OutputError, match="another run writes this output") as caught:
                second(keep_part=resumes)
            assert caught.value.exit_code == 4
        assert output.part.read_bytes() == b"of the first"
        second_name = OutputFile(path, private=True)  # is of its own
        assert second_name.part != output.part
        second_name.part.unlink()
    assert path.read_bytes() == b"of the first"
    with pytest.raises(KeyboardInterrupt), OutputFile(path, overwrite=True):
        raise KeyboardInterrupt
    second(overwrite=True)
    assert path.read_bytes() == b"of the second"


def test_a_part_that_gets_its_name_while_its_lock_is_awaited_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path = tmp_path / "out.y4m"
    late = OutputFile(path)
    late.part.write_bytes(b"of the first")

    def flock(fd: int, how: int) -> None:
        late.part.rename(path)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OutputError, match="another run"), late:
        pass
    assert path.read_bytes() == b"of the first"


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def flock(fd: int, how: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with OutputFile(tmp_path / "out.y4m") as output:
        output.part.write_bytes(b"frames")
    assert (tmp_path / "out.y4m").read_bytes() == b"frames"


@pytest.mark.parametrize("number", ["EACCES", "EROFS", "ENOSPC"])
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    """The system's refusal is made up: these tests may run as a user who may do everything."""

    def refuse(*_: object) -> int:
        value = getattr(errno, number)
        raise OSError(value, os.strerror(value))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError) as caught:
        OutputFile(tmp_path / "out.y4m")
    reason = os.strerror(getattr(errno, number))
    assert str(caught.value) == f"cannot write: {reason} ({tmp_path})"


def test_what_appears_in_the_meantime_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where a file cannot have a second name."""
    path = tmp_path / "out.y4m"

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def make(*, appears: bool) -> None:
        with OutputFile(path) as output:
            output.part.write_bytes(b"of ours")
            if appears:
                path.write_bytes(b"of another program")

    for link in (os.link, no_links):
        monkeypatch.setattr(os, "link", link)
        with pytest.raises(OutputError, match=r"in the meantime .*the result is .*\.y4m\.part"):
            make(appears=True)
        assert path.read_bytes() == b"of another program"
        assert path.with_suffix(".y4m.part").read_bytes() == b"of ours"
        path.unlink()
        path.with_suffix(".y4m.part").unlink()
        make(appears=False)
        assert [p.name for p in tmp_path.iterdir()] == ["out.y4m"]
        path.unlink()


@pytest.mark.parametrize("private", [False, True])
def test_what_fails_at_the_end_is_told_and_cleaned_up_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    """Of what is written in one go nothing is left; that it cannot be removed is not the error."""
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    for breaks_unlink in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", refuse)
            if breaks_unlink:
                patch.setattr(Path, "unlink", refuse)
            with (
                pytest.raises(OutputError, match="in its place: Device or resource busy"),
                OutputFile(path, overwrite=True, private=private) as output,
            ):
                output.part.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert output.part.exists() == (breaks_unlink or not private)


def test_a_file_of_somebody_else_in_a_folder_of_everybody_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be replaced after hours of work, either."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("SKIPPED: only root can give files to others")
    path = tmp_path / "out.y4m"
    path.write_bytes(b"theirs")
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    for mode, file, folder, is_refused in (
        (0o1777, 7, 6, False),
        (0o1777, 5, 7, False),
        (0o777, 5, 6, False),
        (0o1777, 5, 6, True),
    ):
        tmp_path.chmod(mode)
        os.chown(path, file, -1)
        os.chown(tmp_path, folder, -1)
        assert _belongs_to_another(path.stat(), tmp_path) == is_refused
    with pytest.raises(OutputError, match="output is somebody else's"):
        OutputFile(path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out.y4m"]


def test_the_part_must_not_be_the_input_either(tmp_path: Path) -> None:
    source = tmp_path / "out.y4m.part"
    source.write_bytes(b"frames")
    with pytest.raises(UsageError, match="over the input"):
        OutputFile(tmp_path / "out.y4m", inputs=(source,))
    assert source.read_bytes() == b"frames"


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write: File name too long"):
        OutputFile(tmp_path / ("x" * 255))


def _blocks_from_the_system(prelude: str, environment: dict[str, str]) -> int:
    """How many blocks a process takes from the system for eight frames of 12 MB, one by one."""
    code = f"""
import ctypes
{prelude}
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
before = libc.mallinfo2().hblks
blocks = [libc.malloc(ctypes.c_size_t(12 << 20)) for _ in range(8)]
print(libc.mallinfo2().hblks - before)
"""
    return int(
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_frames_are_kept() -> None:
    prelude = "from vs_deblur.cli._allocator import keep_freed_memory; keep_freed_memory()"
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    assert _blocks_from_the_system("", plain) == 8
    assert _blocks_from_the_system(prelude, plain) == 0
    # What the user has set stays.
    own = {**plain, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    assert _blocks_from_the_system(prelude, own) == 8
