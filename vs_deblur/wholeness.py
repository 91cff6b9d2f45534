"""Whether a file is as long as its own structure says: FFmpeg reads one that is cut off in silence.

Sure where it says yes. Containers that do not state their length (streams, raw video) cannot be
judged, and count as whole.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_BOXES = (*_FIRST_BOXES, b"moof", b"mfra", b"sidx", b"ssix", b"styp", b"meta", b"uuid", b"udta")


def is_cut_off(path: Path) -> bool:
    """Whether the file ends before its last element does. Pipes and devices count as whole.

    Args:
        path: a file of any kind.
    """
    if not path.is_file():
        return False
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _FIRST_BOXES:
            return _boxes_end(file, size) > size
        if head[:4] == _EBML:
            return (_segment_end(file) or 0) > size
        if head[:4] == b"RIFF" and len(head) == 12:
            return _riffs_end(file, size) > size
    return False


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last box of an ISO base media file (MP4, QuickTime) ends.

    What comes after the boxes (an ID3v1 tag, a line of HTML) is not taken for one that is cut off.
    """
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            large = file.read(8)
            length = int.from_bytes(large, "big") if len(large) == 8 else size
        if length < 8:  # to the end of the file, or not a box at all
            return size
        position += length
        if position > size and kind not in _BOXES:
            return size
    return position


def _riffs_end(file: BinaryIO, size: int) -> int:
    """Where the last chunk of an AVI ends: a large one (OpenDML) is several in a row."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        kind, length = file.read(4), int.from_bytes(file.read(4), "little")
        if kind != b"RIFF":  # what comes after them is not taken for one that is cut off
            return size
        position += 8 + length
        if position > size:
            return position
        position += length % 2
    return size


def _segment_end(file: BinaryIO) -> int | None:
    """Where the segment of a Matroska file ends; None where it does not say."""
    file.seek(len(_EBML))
    header = _length(file)
    if header is None:
        return None
    file.seek(header, 1)
    if file.read(len(_SEGMENT)) != _SEGMENT:
        return None
    length = _length(file)
    return None if length is None else file.tell() + length


def _length(file: BinaryIO) -> int | None:
    """An EBML length: the leading zeros of its first byte count the bytes that follow."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    rest = file.read(more)
    mask = (1 << (7 * (more + 1))) - 1
    value = int.from_bytes(first + rest, "big") & mask
    return None if len(rest) < more or value == mask else value  # all ones: not known
