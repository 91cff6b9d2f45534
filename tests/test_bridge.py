"""The worker of the GIMP action, by its pipes: what it answers, and that nothing confuses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.bridging import BYE, HELLO, NoEngine, echo, feed, job, parse
from tests.pictures import waves
from vs_deblur.bridge import HEAD, MAGIC, MAX_JSON, MAX_PAYLOAD, PROTOCOL, Message, pack, unpack
from vs_deblur.engine import Deblurrer
from vs_deblur.errors import DeviceError, InputError
from vs_deblur.hosts.photo import deblur
from vs_deblur.hosts.worker import Worker
from vs_deblur.photofile import Picture

WORKER = [sys.executable, "-m", "vs_deblur", "gimp", "worker"]


def result(answers: list[Message], samples: NDArray[Any]) -> NDArray[Any]:
    data = b"".join(bytes(a.payload) for a in answers if a.kind == "rows")
    return np.frombuffer(data, samples.dtype)


# ---------------------------------------------------------------------------- the whole process


@contextmanager
def process(*, expected: int | None = 0) -> Iterator[subprocess.Popen[bytes]]:
    worker = subprocess.Popen(
        WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    watchdog = threading.Timer(120, worker.kill)
    watchdog.start()
    try:
        yield worker
        worker.wait()
    finally:
        watchdog.cancel()
        worker.kill()
        worker.communicate()
    assert expected is None or worker.returncode == expected


def ask(worker: subprocess.Popen[bytes], *parts: Any) -> Message:
    assert worker.stdin is not None
    assert worker.stdout is not None
    for part in parts:
        worker.stdin.write(part)
    worker.stdin.flush()
    stdout = worker.stdout
    return unpack(lambda count: bytearray(stdout.read(count)))


def test_a_session() -> None:
    samples = waves(64, 96, 4)
    with process() as worker:
        hello = ask(worker, *pack("hello", protocol=PROTOCOL, version="0"))
        assert hello.kind == "hello"
        assert hello.fields["protocol"] == PROTOCOL
        loaded = ask(worker, *pack("load", model="auto", device="cpu"))
        assert loaded.kind == "loaded"
        assert loaded.fields["device"] == "cpu"
        assert loaded.fields["margin"] > 0
        answers = [ask(worker, job(samples, device="cpu", box=[10, 4, 50, 40]))]
        while answers[-1].kind != "done":
            answers.append(ask(worker))
        assert {a.kind for a in answers} == {"progress", "rows", "done"}
        # After an error the next request is answered.
        assert ask(worker, *pack("load", model="nonsense")).fields["code"] == 5
        assert ask(worker, *pack("hello", protocol=PROTOCOL)).kind == "hello"
        assert worker.stdin is not None
        worker.stdin.write(BYE)
        worker.stdin.flush()
    expected = deblur(Picture(samples, 3, "straight"), Deblurrer(kind="photo", device="cpu"), None)
    box = expected.samples[4:44, 10:60]
    assert np.array_equal(result(answers, samples), box.reshape(-1))


def test_the_end_of_requests_ends_it_in_the_middle_of_work() -> None:
    slow = (
        "import time; from vs_deblur.cli import main; from vs_deblur.hosts import photo;"
        "photo.deblur = lambda *_: time.sleep(600); main(['gimp', 'worker'])"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", slow], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert worker.stdin is not None
        assert ask(worker, HELLO).kind == "hello"
        assert ask(worker, *pack("load", device="cpu")).kind == "loaded"
        worker.stdin.write(job(waves(32, 32, 3), device="cpu"))
        worker.stdin.flush()
        time.sleep(0.5)
        assert worker.poll() is None
        worker.stdin.close()
        assert worker.wait(timeout=60) == 0
    finally:
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()


def test_a_reader_that_goes_away_ends_it() -> None:
    with process() as worker:
        assert worker.stdout is not None
        worker.stdout.close()
        assert worker.stdin is not None
        worker.stdin.write(HELLO)
        worker.stdin.flush()


def test_nothing_but_frames_reaches_the_pipe() -> None:
    noisy = (
        "import os; from vs_deblur.cli import main; from vs_deblur.hosts import worker;"
        "hello = worker.Worker._hello\n"
        "def loud(self, message):\n"
        "    print('a library prints'); os.write(1, b'C code prints'); hello(self, message)\n"
        "worker.Worker._hello = loud; main(['gimp', 'worker'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", noisy], input=HELLO, capture_output=True, timeout=120, check=True
    )
    assert [a.kind for a in parse(done.stdout)] == ["hello"]
    assert b"a library prints" in done.stderr
    assert b"C code prints" in done.stderr


def test_a_terminal_is_told_what_it_is() -> None:
    pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    master, slave = pty.openpty()
    try:
        done = subprocess.run(WORKER, stdin=slave, capture_output=True, timeout=120, check=False)
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == InputError.exit_code
    assert b"vs-deblur: error: the worker is started by GIMP" in done.stderr
    assert done.stdout == b""


# ---------------------------------------------------------------------------- answers


def test_another_protocol_is_refused() -> None:
    found = feed(b"".join(pack("hello", protocol=PROTOCOL + 1)))
    assert found.kinds == ["error"]
    assert found.answers[0].fields["last"]
    assert "vs-deblur gimp install" in found.answers[0].fields["message"]
    assert found.code == 3


@pytest.mark.parametrize(
    ("kind", "count"),
    [(np.uint8, 3), (np.uint16, 4), (np.float16, 1), (np.float32, 2), (np.float32, 4)],
)
def test_samples_of_every_type_come_back(kind: Any, count: int) -> None:
    samples = waves(40, 60, count, kind)
    found = feed(job(samples, strength=0) + BYE, end=False)
    assert found.kinds[-1] == "done"
    assert np.array_equal(result(found.answers, samples), samples.reshape(-1))


BAD: dict[str, list[Any]] = {
    "strength": [1.5, -1, "1", None, True, float("nan")],
    "width": [0, -1, 1 << 20, "8", None],
    "channels": ["cmyk", 3, None],
    "sample": ["f64", None, 8],
    "box": [[0, 0, 0, 5], [0, 0, 61, 40], [-1, 0, 5, 5], [1, 2, 3], "all", [0.5, 0, 5, 5]],
    "model": [3, None, ["auto"]],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_fields_that_cannot_be(name: str, value: Any) -> None:
    whole = job(waves(40, 60, 3), **{name: value})
    # A model is asked for when the rows are there: the next request is answered.
    found = feed(whole + (HELLO + BYE if name == "model" else b""), end=False)
    if name == "model":
        assert found.kinds == ["error", "hello"]
        assert found.code == 0
    else:
        assert found.kinds == ["error"]
        assert found.code == 2
    assert found.answers[0].fields["last"] == (name != "model")
    assert found.answers[0].fields["code"] == 2
    assert name in found.answers[0].fields["message"]


def test_running_out_of_memory_is_an_error_and_no_end() -> None:
    def work(*_: Any) -> Picture:
        raise MemoryError

    found = feed(job(waves(8, 8, 3)) + HELLO + BYE, work, end=False)
    assert found.kinds[:2] == ["error", "hello"]
    assert found.answers[0].fields["code"] == DeviceError.exit_code


def test_a_fault_of_ours_is_an_error_and_no_end(caplog: pytest.LogCaptureFixture) -> None:
    def work(*_: Any) -> Picture:
        raise RuntimeError("a fault")

    found = feed(job(waves(8, 8, 3)) + HELLO + BYE, work, end=False)
    assert found.kinds[:2] == ["error", "hello"]
    assert "RuntimeError: a fault" in found.answers[0].fields["message"]
    assert "a fault" in caplog.text


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not a frame"),
        (HEAD.pack(MAGIC, MAX_JSON + 1, 0), "too large"),
        (HEAD.pack(MAGIC, 2, MAX_PAYLOAD + 1) + b"{}", "too large"),
        (HEAD.pack(MAGIC, 2, 0) + b"{}", "an object with a type"),
        (HEAD.pack(MAGIC, 2, 0) + b"[]", "an object with a type"),
        (HEAD.pack(MAGIC, 3, 0) + b"\xff{}", "valid JSON"),
        (HEAD.pack(MAGIC, 60000, 0) + b"[" * 60000, "valid JSON"),
        (b"".join(pack("dance")), "no such request"),
        (b"".join(pack("rows", b"abc")), "no such request"),
        (job(waves(8, 8, 3))[:-128] + HELLO, "rows of the picture"),
    ],
)
def test_what_is_no_request_has_a_last_answer(stream: bytes, words: str) -> None:
    found = feed(stream, end=False)
    assert found.kinds[-1] == "error"
    assert found.answers[-1].fields["last"]
    assert words in found.answers[-1].fields["message"]
    assert found.code == 3 or found.code is None


VALID = HELLO + job(waves(6, 5, 3)) + HELLO + job(waves(3, 9, 2, np.float32), strength=0.5)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_have_answers_or_an_end(data: st.DataObject) -> None:
    stream = data.draw(
        st.one_of(
            st.binary(max_size=200),
            # A stream that is right up to a place, then cut off, changed or repeated.
            st.builds(
                lambda at, with_, skip: VALID[:at] + with_ + VALID[at + skip :],
                st.integers(0, len(VALID)),
                st.binary(max_size=8),
                st.integers(0, 40),
            ),
            st.builds(
                lambda fields, size: b"".join(pack("deblur", bytes(size), **fields)) + VALID,
                st.dictionaries(
                    st.sampled_from([*sorted(BAD), "height", "device"]),
                    st.none() | st.integers() | st.text(max_size=5) | st.floats() | st.booleans(),
                ),
                st.integers(0, 20),
            ),
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "_engine", lambda *_: NoEngine())
        found = feed(stream, echo)
    assert set(found.kinds) <= {"hello", "loaded", "progress", "rows", "done", "error"}
    assert found.code in (0, 2, 3, 6, None)
    for answer in found.answers:
        json.dumps(answer.fields)
        if answer.kind == "error":
            assert answer.fields["message"]
            assert "Traceback" not in answer.fields["message"]


def test_the_action_has_the_same_frames() -> None:
    """The action cannot import the packing: it has its own, of the same numbers."""
    text = Path(__file__).parents[1] / "gimp_plugin" / "vs-deblur" / "vs-deblur.py"
    if not text.is_file():
        from vs_deblur.gimp import action_source

        text = action_source()
    source = text.read_text(encoding="utf-8")
    assert f"PROTOCOL = {PROTOCOL}\n" in source
    assert f'HEAD = struct.Struct("{HEAD.format}")' in source
    assert f"MAGIC = {MAGIC!r}".replace("'", '"') in source
    for name, value in (("MAX_JSON", MAX_JSON), ("MAX_PAYLOAD", MAX_PAYLOAD)):
        assert f"{name} = 1 << {value.bit_length() - 1}\n" in source
