"""TIFF directories: the structure of TIFF files and of EXIF blocks. No pixels.

Values stay the bytes that they are in the file, in its byte order. Positions are counted from the
start of the block that is passed.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}  # BigTIFF
#: The struct codes of the types that are whole numbers.
CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 3, 4, 5, 7, 16

EXIF, GPS, INTEROPERABILITY = 0x8769, 0x8825, 0xA005
_SUBDIRECTORIES = (EXIF, GPS, INTEROPERABILITY)

type Tree = dict[int, Entry | Tree]
"""A directory: values by tag; the EXIF, GPS and interoperability tags are directories."""


class BadDirectory(ValueError):
    """What should be a TIFF structure is none."""


@dataclass(frozen=True)
class Entry:
    """A tag's value.

    Attributes:
        kind: TIFF's number of the type.
        count: number of values.
        data: the bytes.
        position: where they are in the block they were read from.
    """

    kind: int
    count: int
    data: bytes
    position: int = -1

    def numbers(self, order: str) -> tuple[int, ...]:
        """The values, if they are whole numbers.

        Raises:
            BadDirectory: they are not.
        """
        if self.kind not in CODES:
            raise BadDirectory(f"type {self.kind} is no whole number")
        return struct.unpack(f"{order}{self.count}{CODES[self.kind]}", self.data)


@dataclass(frozen=True)
class Layout:
    """How a block is written: byte order ``<`` or ``>``, and whether it is BigTIFF."""

    order: str
    big: bool = False

    @property
    def header(self) -> int:
        """Length of the file header."""
        return 16 if self.big else 8

    @property
    def word(self) -> str:
        """The struct code of an offset."""
        return self.order + ("Q" if self.big else "I")

    @property
    def count(self) -> str:
        """The struct code of the number of entries."""
        return self.order + ("Q" if self.big else "H")

    @property
    def inline(self) -> int:
        """Bytes of a value that have room in its entry."""
        return 8 if self.big else 4


@dataclass(frozen=True)
class Directory:
    """One directory as it is in the block.

    Attributes:
        entries: by tag; the first of a tag that is there twice.
        next_at: position of the pointer to the next directory.
        next: that pointer, 0 for none.
    """

    entries: dict[int, Entry]
    next_at: int
    next: int


def read_header(data: bytes) -> tuple[Layout, int]:
    """Layout and position of the first directory.

    Raises:
        BadDirectory: not the head of a TIFF structure.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        raise BadDirectory("no TIFF header")
    version = struct.unpack_from(order + "H", data, 2)[0]
    if version == 42:
        return Layout(order), struct.unpack_from(order + "I", data, 4)[0]
    if version == 43 and len(data) >= 16 and data[4:8] in (b"\x08\0\0\0", b"\0\x08\0\0"):
        return Layout(order, big=True), struct.unpack_from(order + "Q", data, 8)[0]
    raise BadDirectory(f"unknown version {version}")


def read_directory(
    data: bytes, at: int, layout: Layout, only: Container[int] | None = None
) -> Directory:
    """The directory at a position. Entries that make no sense are left out.

    So are values that lie over each other: together they have no more bytes than the block.

    Args:
        data: the block.
        at: where the directory is in it.
        layout: of the block.
        only: tags that are read; None for all.

    Raises:
        BadDirectory: it does not fit in the block.
    """
    try:
        (count,) = struct.unpack_from(layout.count, data, at)
        first = at + struct.calcsize(layout.count)
        size = 20 if layout.big else 12
        next_at = first + count * size
        (following,) = struct.unpack_from(layout.word, data, next_at)
    except (struct.error, OverflowError):
        raise BadDirectory("a directory lies beyond the end") from None
    entries: dict[int, Entry] = {}
    left = len(data)
    for position in range(first, next_at, size):
        tag, kind = struct.unpack_from(layout.order + "HH", data, position)
        if tag in entries or (only is not None and tag not in only):
            continue
        entry = _read_entry(data, position, kind, layout, left)
        if entry is not None:
            entries[tag] = entry
            left -= len(entry.data)
    return Directory(entries, next_at, following)


def _read_entry(data: bytes, at: int, kind: int, layout: Layout, most: int) -> Entry | None:
    (count,) = struct.unpack_from(layout.word, data, at + 4)
    where = at + 4 + layout.inline
    length = count * SIZES.get(kind, 0)
    if length > layout.inline:
        (where,) = struct.unpack_from(layout.word, data, where)
    if not 0 < length <= most or where + length > len(data):
        return None
    return Entry(kind, count, data[where : where + length], where)


def directories(data: bytes, at: int, layout: Layout, rest: Container[int]) -> Iterator[Directory]:
    """The chain of directories from a position on; it ends where it would go round in a circle.

    Args:
        data: the block.
        at: where the first is.
        layout: of the block.
        rest: tags that are read of those after the first.

    Raises:
        BadDirectory: one does not fit in the block, or they lie over each other.
    """
    seen: set[int] = set()
    left = len(data)
    while at and at not in seen:
        directory = read_directory(data, at, layout, rest if seen else None)
        left -= directory.next_at - at
        if left < 0:
            raise BadDirectory("directories lie over each other")
        yield directory
        seen.add(at)
        at = directory.next


def tree(data: bytes, directory: Directory, layout: Layout, depth: int = 0) -> Tree:
    """A directory with those below it. Ones that cannot be read are left out."""
    result: Tree = {}
    for tag, entry in directory.entries.items():
        if tag not in _SUBDIRECTORIES:
            result[tag] = entry
        elif depth < 2 and entry.kind in (LONG, 13, LONG8, 18):
            try:
                below = read_directory(data, entry.numbers(layout.order)[0], layout)
            except BadDirectory:
                continue
            result[tag] = tree(data, below, layout, depth + 1)
    return result


def write(tags: Tree, layout: Layout, at: int) -> bytes:
    """A directory with all that belongs to it, as bytes for position ``at`` of a block.

    Args:
        tags: values in the layout's byte order.
        layout: how to write.
        at: an even position.
    """
    table = struct.calcsize(layout.count) + len(tags) * (20 if layout.big else 12) + layout.inline
    entries, behind = bytearray(), bytearray()
    for tag in sorted(tags):
        value = tags[tag]
        position = at + table + len(behind)
        if isinstance(value, dict):
            kind, count = (LONG8 if layout.big else LONG), 1
            field = struct.pack(layout.word, position)
            behind += write(value, layout, position)
        else:
            kind, count, field = value.kind, value.count, value.data.ljust(layout.inline, b"\0")
            if len(field) > layout.inline:
                behind += field
                field = struct.pack(layout.word, position)
        behind += b"\0" * (len(behind) % 2)
        entries += struct.pack(layout.order + "HH", tag, kind)
        entries += struct.pack(layout.word, count) + field
    head = struct.pack(layout.count, len(tags))
    return head + entries + struct.pack(layout.word, 0) + behind


def write_block(tags: Tree, layout: Layout) -> bytes:
    """A whole TIFF structure of one directory: an EXIF block."""
    mark = b"II" if layout.order == "<" else b"MM"
    head = mark + struct.pack(layout.order + "HI", 42, 8)
    return head + write(tags, Layout(layout.order), 8)


def read_block(data: bytes) -> tuple[Layout, Tree]:
    """Layout and tags of the first directory of an EXIF block.

    Raises:
        BadDirectory: it cannot be read.
    """
    layout, at = read_header(data)
    return layout, tree(data, read_directory(data, at, layout), layout)
