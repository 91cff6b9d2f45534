"""The part file of a running encode, cut off and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vs_deblur import journal
from vs_deblur.journal import Entry, Journal

SETTINGS: dict[str, object] = {"crf": 17, "list": [1, "a"]}


def _fill(book: Journal, first: int, chunk: int) -> None:
    for n in range(first, first + chunk):
        book.frame(n * 100, 100)
        book.packet(Entry(n, n == first, bytes([n]) * (n + 1)))
    book.end_chunk(chunk)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("journal") / "a.part"
    with Journal(path, SETTINGS) as book:
        for first in (0, 4, 8):
            _fill(book, first, 4)
    return path.read_bytes()


def test_what_was_written_is_read(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.part"
    path.write_bytes(whole)
    found = journal.read(path)
    assert found is not None
    assert found.settings == SETTINGS
    assert found.times == [(n * 100, 100) for n in range(12)]
    assert found.order == list(range(12))
    assert [c[0] for c in found.chunks] == [4, 4, 4]
    assert found.size == len(whole)
    entries = list(journal.packets(path))
    assert entries == [Entry(n, n % 4 == 0, bytes([n]) * (n + 1)) for n in range(12)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_gives_whole_chunks_and_can_be_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.part"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    found = journal.read(path)
    done = 0 if found is None else len(found.times)
    assert done in (0, 4, 8, 12)
    with Journal(path, SETTINGS, found) as book:
        for first in range(done, 12, 4):
            _fill(book, first, 4)
    assert path.read_bytes() == whole


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_byte_never_gives_a_damaged_packet(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("bad") / "a.part"
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    found = journal.read(path)
    if found is None:
        return
    good = [Entry(n, n % 4 == 0, bytes([n]) * (n + 1)) for n in range(12)]
    assert list(journal.packets(path))[: len(found.order)] == good[: len(found.order)]


def test_the_last_chunk_can_be_dropped(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.part"
    path.write_bytes(whole)
    found = journal.read(path)
    assert found is not None
    for left in (8, 4, 0):
        found.drop_last()
        assert (len(found.times), len(found.order)) == (left, left)
    with Journal(path, SETTINGS, found) as book:
        for first in (0, 4, 8):
            _fill(book, first, 4)
    assert path.read_bytes() == whole


def test_a_full_disk_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="No space left"):
        Journal(Path("/dev/full"), SETTINGS)
