"""What fuzzing has found, as small as it could be made: each input broke its target once."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable

import pytest

from tests.fuzz.targets import TARGETS, check
from tests.pictures import exif, jpeg, segment, waves
from vs_deblur.journal import MAGIC


def _record(kind: bytes, payload: bytes, size: int | None = None) -> bytes:
    length = (len(payload) if size is None else size).to_bytes(4, "little")
    checksum = zlib.crc32(payload, zlib.crc32(kind + length))
    return kind + length + struct.pack("<I", checksum) + payload


def _turned(place: int, value: int) -> bytes:
    """A JPEG file that is to be turned, with a byte of its EXIF changed."""
    block = bytearray(exif(6, thumbnail=False))
    block[place] = value
    return jpeg(waves(4, 5, 3), segment(0xE1, b"Exif\0\0" + bytes(block)))


def _orientation(kind: int) -> bytes:
    """An EXIF block that says 6, as a value of some type."""
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 274, kind, 1, 6) + bytes(4)


def _manifest(**fields: object) -> bytes:
    entry: dict[str, object] = {
        "name": "a",
        "file": "a.safetensors",
        "network": "cnn",
        "sha256": "0" * 64,
        "licence": "",
        "training_data": "",
        "recipe": "",
        "gain_db": {},
    }
    return json.dumps({"models": [entry | fields]}).encode()


def _tensor(*names: str) -> bytes:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps(dict.fromkeys(names, entry)).encode()


_HEAD = _record(b"H", b"{}")

FOUND: dict[str, tuple[str, Callable[[], bytes]]] = {
    # MemoryError
    "a frame of 1 GB": ("y4m_stream", lambda: b"YUV4MPEG2 Cmono W32768 H32768 X\n"),
    "a record of 4 GB": ("journal", lambda: MAGIC + _HEAD + b"P\xff\xff\xff\xff" + bytes(8)),
    # json.JSONDecodeError, UnicodeDecodeError, RecursionError, AttributeError
    "settings that are none": ("journal", lambda: MAGIC + _record(b"H", b"{")),
    "settings of other bytes": ("journal", lambda: MAGIC + _record(b"H", b'{"a":"\xff"}')),
    "settings that go deep": ("journal", lambda: MAGIC + _record(b"H", b"[" * 100_000)),
    # struct.error
    "half a frame": ("journal", lambda: MAGIC + _HEAD + _record(b"F", bytes(15))),
    "half a packet": ("journal", lambda: MAGIC + _HEAD + _record(b"P", bytes(8))),
    "half an end": ("journal", lambda: MAGIC + _HEAD + _record(b"E", bytes(3))),
    "a rational that is short": ("image", lambda: _turned(150, 0)),
    # ValueError
    "a bitmap of bits that are none": (
        "image",
        lambda: b"BM" + bytes(12) + struct.pack("<IIIHHI", 40, 5, 3, 1, 24, 1) + bytes(20),
    ),
    # TypeError
    "a maker's name of bytes": ("image", lambda: _turned(132, 0)),
    "a maker's name of numbers": ("image", lambda: _turned(134, 3)),
    "a density of text": ("image", lambda: _turned(188, 1)),
    # A terminal would have obeyed, or there was more than a line.
    "a model's name": ("gimp_requests", lambda: b'{"type":"load","model":"/\\u001b[2J"}'),
    "a long model's name": (
        "gimp_requests",
        lambda: b'{"type":"load","model":"/%s"}' % ("é" * 30_000).encode(),
    ),
    "a tensor's name": ("weights_header", lambda: _tensor("a\x1b[2J\r")),
    "long names of tensors": ("weights_header", lambda: _tensor(*(c * 9000 for c in "abcde"))),
    # Turned twice: orientation of another type than usual was heeded, but not reset.
    "an orientation of one signed byte": ("photo_metadata", lambda: b"\0" + _orientation(6)),
    "an orientation of two signed bytes": ("photo_metadata", lambda: b"\0" + _orientation(8)),
    # A file that does not lie beside the manifest was opened.
    "a path upwards": ("manifest", lambda: _manifest(file="../a.safetensors")),
    "a path from the root": ("manifest", lambda: _manifest(file="/etc/passwd")),
    # AttributeError, TypeError, RecursionError
    "gains that are a list": ("manifest", lambda: _manifest(gain_db=[1])),
    "gains of text": ("manifest", lambda: _manifest(gain_db={"a": "1"})),
    "a file that is a number": ("manifest", lambda: _manifest(file=5)),
    "a manifest that goes deep": ("manifest", lambda: b"[" * 100_000),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_holds_now(name: str) -> None:
    target, make = FOUND[name]
    check(TARGETS[target], make())
