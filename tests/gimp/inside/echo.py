"""A worker that speaks the protocol and changes nothing, or inverts, or does what it must not.

Its arguments are the manner, if any, and a file that takes a line when it starts and one for each
picture.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

HEAD = struct.Struct("<4sIQ")
BYTES = {"u8": 1, "u16": 2, "f16": 2, "f32": 4}

manner = sys.argv[1] if len(sys.argv) > 1 else ""
diary = Path(sys.argv[2]) if len(sys.argv) > 2 else None
if manner == "silent":
    time.sleep(600)
INVERTED = bytes(range(255, -1, -1))


def read(count: int) -> bytes:
    found = sys.stdin.buffer.read(count)
    if len(found) < count:
        sys.exit(0)
    return found


def listen() -> tuple[dict[str, Any], bytes]:
    _, length, size = HEAD.unpack(read(HEAD.size))
    return json.loads(read(length)), read(size)


def say(kind: str, payload: bytes | memoryview = b"", **fields: object) -> None:
    text = json.dumps({"type": kind, **fields}).encode()
    sys.stdout.buffer.write(HEAD.pack(b"VSDB", len(text), len(payload)) + text)
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()


def note(text: str) -> None:
    if diary is not None:
        with diary.open("a") as file:
            file.write(text + "\n")


def inverted(samples: bytes, channels: str) -> bytes:
    """The negative of 8-bit samples, alpha as it is."""
    result = bytearray(samples.translate(INVERTED))
    if channels.endswith("a"):
        count = len(channels)
        result[count - 1 :: count] = samples[count - 1 :: count]
    return bytes(result)


def watch(path: Path) -> None:
    """Keep note of the most memory that GIMP's process for the action had so far, kB."""
    while True:
        status = Path(f"/proc/{os.getppid()}/status").read_text()
        peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        part = path.with_suffix(".part")
        part.write_text(peak)
        part.replace(path)
        time.sleep(0.02)


def deblur(fields: dict[str, Any]) -> None:
    width, height = fields["width"], fields["height"]
    row = width * len(fields["channels"]) * BYTES[fields["sample"]]
    samples = bytearray()
    while len(samples) < row * height:
        samples += listen()[1]
        if manner == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    left, top, inner, rows = fields["box"]
    pixel = row // width
    if manner == "short":
        rows //= 2
    say("progress", done=1, total=1)
    for first in range(top, top + rows, 256):
        lines = range(first, min(first + 256, top + rows))
        parts = (samples[y * row + left * pixel : y * row + (left + inner) * pixel] for y in lines)
        strip = b"".join(parts)
        if manner == "uneven":
            strip = strip[:-1]
        if manner == "invert":
            strip = inverted(strip, fields["channels"])
        say("rows", strip)
    note("done")
    say("done", model="echo", device="cpu", precision="fp32", tiles=1, seconds=0)


note("started")
if diary is not None and manner == "watch":
    threading.Thread(target=watch, args=(diary.with_suffix(".peak"),), daemon=True).start()
if manner == "rubbish":
    print("Hello! I am not what you are looking for.")
    sys.stdout.flush()
    time.sleep(600)
while True:
    fields, _ = listen()
    if fields["type"] == "hello":
        say("hello", protocol=99 if manner == "version" else 1, version="9.9")
    elif fields["type"] == "load" and manner == "error":
        say("error", message="no such weights (somewhere); get them", code=5, last=False)
    elif fields["type"] == "load":
        say("loaded", model="echo", device="cpu", precision="fp32", margin=40, align=16)
    elif fields["type"] == "deblur":
        deblur(fields)
