"""The ``.part`` file of a running video encode: packets of whole chunks, safe against being killed.

A chunk is a run of frames encoded on its own, so that a run that was ended, by whatever means, can
go on after the last whole chunk and give the same packets as a run without a break. Layout::

    magic, then records:  kind (1 byte)  size (4)  CRC-32 of both and the payload (4)  payload
    H  settings of the run, JSON      F  time and duration of a frame
    P  a packet                       E  end of a chunk, with its number of frames

Only records up to the last ``E`` count. Nothing here knows a codec or FFmpeg.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

MAGIC = b"vs-deblur journal 1\n"
_HEAD = struct.Struct("<cII")
_FRAME = struct.Struct("<qq")
_PACKET = struct.Struct("<qB")
_END = struct.Struct("<I")
_LEAST = {b"F": _FRAME.size, b"P": _PACKET.size, b"E": _END.size}  # bytes of a payload


@dataclass(frozen=True)
class Entry:
    """A packet in the order of decoding.

    Attributes:
        frame: which frame of the output it shows, from 0.
        keyframe: whether decoding can begin with it.
        data: its bytes.
    """

    frame: int
    keyframe: bool
    data: bytes


@dataclass
class Contents:
    """What a journal holds, up to its last whole chunk.

    Attributes:
        settings: of the run that wrote it.
        times: (time, duration) of each frame, in the source's unit.
        order: the frame that each packet shows, in the order of decoding.
        chunks: for each chunk its number of frames, and where it ends: bytes, frames, packets.
        size: bytes that count.
        is_damaged: whether what follows them was changed, not only cut off.
    """

    settings: dict[str, object]
    times: list[tuple[int, int]]
    order: list[int]
    chunks: list[tuple[int, int, int, int]]
    size: int
    is_damaged: bool = False

    def drop_last(self) -> None:
        """Forget the last chunk."""
        self.chunks.pop()
        begin = len(MAGIC) + _HEAD.size + len(_dump(self.settings))
        self.size, frames, packets = self.chunks[-1][1:] if self.chunks else (begin, 0, 0)
        del self.times[frames:], self.order[packets:]


def _dump(settings: dict[str, object]) -> bytes:
    return json.dumps(settings, sort_keys=True).encode()


def _checksum(kind: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(kind + len(payload).to_bytes(4, "little")))


def _records(file: BinaryIO, *, payloads: bool) -> Iterator[tuple[bytes, bytes, int]]:
    """Kind, payload (only its fixed head where ``payloads`` is false) and the end's position.

    Stops before the first record that is cut off, damaged or not as we write them.
    """
    if file.read(len(MAGIC)) != MAGIC:
        return
    position, end = len(MAGIC), os.fstat(file.fileno()).st_size
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        kind, size, crc = _HEAD.unpack(head)
        if size > end - position - _HEAD.size:  # before memory is taken for it
            return
        payload = file.read(size)
        if len(payload) < size or _checksum(kind, payload) != crc:
            return
        if size < _LEAST.get(kind, 0) or (kind in (b"F", b"E") and size > _LEAST[kind]):
            return
        position += _HEAD.size + size
        yield kind, payload if payloads or kind != b"P" else payload[: _PACKET.size], position


def is_one(path: Path) -> bool:
    """Whether a file is a journal, or the beginning of one."""
    with path.open("rb") as file:
        head = file.read(len(MAGIC))
    return head == MAGIC[: len(head)]


def _is_changed(file: BinaryIO, position: int) -> bool:
    """Whether what follows the last good record is more than a record that was cut off.

    Zeros are what a loss of power may leave of what was not yet on the disk.
    """
    rest = os.fstat(file.fileno()).st_size - position
    file.seek(position)
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not any(head):
        return False
    kind, size, _ = _HEAD.unpack(head)
    return kind not in b"HFPE" or size <= rest - _HEAD.size


def read(path: Path) -> Contents | None:
    """What is in a journal; None if the file is none or has not even its settings."""
    with path.open("rb") as file:
        records = _records(file, payloads=False)
        first = next(records, None)
        if first is None or first[0] != b"H":
            return None
        try:
            settings = json.loads(first[1])
        except (ValueError, RecursionError):
            return None
        if not isinstance(settings, dict) or _dump(settings) != first[1]:
            return None
        found = Contents(settings, [], [], [], first[2])
        end = first[2]
        for kind, payload, position in records:
            end = position
            if kind == b"F":
                found.times.append(_FRAME.unpack(payload))
            elif kind == b"P":
                found.order.append(_PACKET.unpack(payload)[0])
            elif kind == b"E":
                frames, packets = len(found.times), len(found.order)
                found.chunks.append((_END.unpack(payload)[0], position, frames, packets))
                found.size = position
        found.is_damaged = _is_changed(file, end)
    frames, packets = found.chunks[-1][2:] if found.chunks else (0, 0)
    del found.times[frames:], found.order[packets:]
    return found


def packets(path: Path) -> Iterator[Entry]:
    """The packets of a journal, in order; those after the last whole chunk too."""
    with path.open("rb") as file:
        for kind, payload, _ in _records(file, payloads=True):
            if kind == b"P":
                frame, keyframe = _PACKET.unpack_from(payload)
                yield Entry(frame, bool(keyframe), payload[_PACKET.size :])


class Journal:
    """Writes a journal. Every method raises OSError as the system does.

    Args:
        path: the file; made anew, unless ``contents`` says what of it is to be kept.
        settings: what the run depends on; JSON values.
        contents: of the file as it is, to go on after its last whole chunk.
    """

    def __init__(
        self, path: Path, settings: dict[str, object], contents: Contents | None = None
    ) -> None:
        self.path = path
        # Unbuffered: an error belongs to the frame that caused it, and a kill loses nothing.
        self._file = path.open("wb" if contents is None else "r+b", buffering=0)
        try:
            if contents is None:
                self._write(MAGIC)
                self._put(b"H", _dump(settings))
            else:
                self._file.truncate(contents.size)
                self._file.seek(contents.size)
        except OSError:
            self._file.close()
            raise

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]

    def _put(self, kind: bytes, payload: bytes) -> None:
        self._write(_HEAD.pack(kind, len(payload), _checksum(kind, payload)) + payload)

    def frame(self, time: int, duration: int) -> None:
        """The next frame's time and duration."""
        self._put(b"F", _FRAME.pack(time, duration))

    def packet(self, entry: Entry) -> None:
        """The next packet."""
        self._put(b"P", _PACKET.pack(entry.frame, entry.keyframe) + entry.data)

    def end_chunk(self, frames: int) -> None:
        """All packets of a chunk are written; brings them to the disk, against a loss of power."""
        self._put(b"E", _END.pack(frames))
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Bring everything to the disk."""
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
