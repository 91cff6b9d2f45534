"""Frames of the GIMP bridge: a JSON object and a payload of bytes, length first.

The action inside GIMP and its worker talk through a pipe each way, one of them at a time. What
they say is in docs/gimp-bridge.md; this is how it is packed::

    "VSDB"  length of the JSON: u32  length of the payload: u64  JSON (UTF-8)  payload

Numbers are little-endian. The action has a reader and writer of its own: it runs in GIMP's Python,
which knows nothing of this package.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Buffer, Callable
from dataclasses import dataclass
from typing import Any

from vs_deblur.errors import ProtocolError

PROTOCOL = 1
MAGIC = b"VSDB"
HEAD = struct.Struct("<4sIQ")
MAX_JSON = 1 << 16  # bytes
MAX_PAYLOAD = 1 << 28  # bytes: rows come in strips


@dataclass(frozen=True)
class Message:
    """One frame.

    Attributes:
        kind: what it is, the JSON's "type".
        fields: the JSON, "type" among it.
        payload: bytes, mostly samples.
    """

    kind: str
    fields: dict[str, Any]
    payload: bytearray


def pack(kind: str, payload: Buffer = b"", **fields: Any) -> tuple[bytes, memoryview]:
    """Head and JSON of a frame, and its payload as bytes, to be written one after the other."""
    text = json.dumps({"type": kind, **fields}).encode()
    body = memoryview(payload).cast("B")
    return HEAD.pack(MAGIC, len(text), body.nbytes) + text, body


def unpack(read: Callable[[int], bytearray]) -> Message:
    """Read a frame.

    Args:
        read: gives exactly so many bytes, or raises.

    Raises:
        ProtocolError: these bytes are no frame.
    """
    magic, length, size = HEAD.unpack(read(HEAD.size))
    if magic != MAGIC:
        raise ProtocolError("not a frame of the bridge", repr(bytes(magic)))
    if length > MAX_JSON or size > MAX_PAYLOAD:
        raise ProtocolError(f"a frame of {length} + {size} bytes is too large")
    try:
        fields = json.loads(read(length).decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a frame without valid JSON") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise ProtocolError("a frame's JSON must be an object with a type")
    return Message(fields["type"], fields, read(size))
