"""A worker of the GIMP action in this process: bytes in, answers out."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vs_deblur.bridge import PROTOCOL, Message, pack, unpack
from vs_deblur.hosts.photo import deblur
from vs_deblur.hosts.worker import Worker
from vs_deblur.photofile import Picture

HELLO = b"".join(pack("hello", protocol=PROTOCOL))
BYE = b"".join(pack("bye"))


@dataclass
class Outcome:
    """What a worker did with bytes: its answers, its exit code (None: it left at once)."""

    answers: list[Message]
    code: int | None

    @property
    def kinds(self) -> list[str]:
        return [a.kind for a in self.answers]


def parse(stream: bytes) -> list[Message]:
    """All frames of a stream; there must be nothing else in it."""
    rest = bytearray(stream)

    def read(count: int) -> bytearray:
        assert len(rest) >= count, "half a frame"
        found = rest[:count]
        del rest[:count]
        return found

    found = []
    while rest:
        found.append(unpack(read))
    return found


def feed(stream: bytes, work: Any = deblur, *, end: bool = True) -> Outcome:
    """Give bytes to a worker in this process; if the pipe does not end, they must end it."""
    requests_read, requests_write = os.pipe()
    answers_read, answers_write = os.pipe()
    found = bytearray()

    def listen() -> None:
        while chunk := os.read(answers_read, 1 << 16):
            found.extend(chunk)

    def speak() -> None:
        rest = memoryview(stream)
        while rest:
            rest = rest[os.write(requests_write, rest) :]
        if end:
            os.close(requests_write)

    left = threading.Event()
    threads = [threading.Thread(target=listen), threading.Thread(target=speak)]
    for thread in threads:
        thread.start()
    try:
        # The pump calls this in its own thread; work that goes on is none that is answered.
        code: int | None = Worker(requests_read, answers_write, work, left.set).run()
    finally:
        os.close(answers_write)
        for thread in threads:
            thread.join(30)
        if not end:
            os.close(requests_write)
        os.close(answers_read)
        for thread in threading.enumerate():
            if thread.name == "vs-deblur bridge":  # the worker's own, at the end of the requests
                thread.join(30)
        os.close(requests_read)
    return Outcome(parse(bytes(found)), None if left.is_set() else code)


def job(samples: NDArray[Any], **fields: Any) -> bytes:
    """A request to deblur, and its rows in two pieces."""
    height, width, count = samples.shape
    names = {1: "y", 2: "ya", 3: "rgb", 4: "rgba"}
    types = {"u1": "u8", "u2": "u16", "f2": "f16", "f4": "f32"}
    given = {"model": "auto", "strength": 1.0, "width": width, "height": height}
    given |= {"channels": names[count], "sample": types[samples.dtype.str[1:]]} | fields
    half = height // 2
    parts = [pack("deblur", **given)]
    parts += [pack("rows", np.ascontiguousarray(s)) for s in (samples[:half], samples[half:])]
    return b"".join(bytes(x) for part in parts for x in part)


def echo(picture: Picture, _engine: Any, progress: Any) -> Picture:
    progress(1, 1)
    return picture


class NoEngine:
    """Stands in where it is about frames: nothing is loaded."""

    model, device, precision, strength = "none", "cpu", "fp32", 1.0
    spec = SimpleNamespace(receptive_field=1, multiple_of=1)

    def describe(self) -> str:
        return "none"
