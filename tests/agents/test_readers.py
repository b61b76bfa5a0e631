"""A loader's threads: whole loads, in pieces, into real memory; what fails; what ends when."""

from __future__ import annotations

import os
import select
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hermes_mp.core.layout import ALIGN
from hermes_mp.core.loading import LoadBroken, LoadRead
from hermes_mp.errors import ReadFailed
from hermes_mp.host.arena import Arena
from hermes_mp.host.readers import LEAST_PIECE_NBYTES, MOST_PIECE_NBYTES, OpenedFile, Piece, Readers, cut
from hermes_mp.host.reading import FileReader
from hermes_mp.messages import NOT_CHECKED, Epoch, LoadUnit, Range, Ticket, UnitNo

MIB = 1 << 20
DEADLINE_S = 20.0
CONTENT = os.urandom(9 * MIB + 100)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def file(weights: Path) -> Iterator[FileReader]:
    with FileReader(weights, len(CONTENT)) as opened:
        yield opened


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena.create(64 * MIB) as made:
        made.allocate(0, 64 * MIB)
        yield made


class Reading:
    """Readers, and what came of their loads."""

    def __init__(self, arena: Arena) -> None:
        self.pieces = 0
        self.readers = Readers(arena, self._piece)

    def _piece(self) -> None:
        self.pieces += 1

    def ended(self, count: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            assert select.select([self.readers.fd], [], [], DEADLINE_S)[0], "nothing ended"
            found += self.readers.ended()
        return found


@pytest.fixture
def reading(arena: Arena, file: FileReader) -> Iterator[Reading]:
    made = Reading(arena)
    yield made
    made.readers.close()


def load(ticket: int, *ranges: Range, base: int = 0, room: int = 16 * MIB) -> LoadUnit:
    return LoadUnit(Epoch(1), Ticket(ticket), UnitNo(0), base, room, ranges)


def test_many_loads_arrive_whole(reading: Reading, arena: Arena, file: FileReader) -> None:
    files = {0: OpenedFile(file, MIB)}
    sizes = [4 * MIB, ALIGN, 3 * MIB + 5 * ALIGN, MIB]
    for ticket in range(1, 13):
        nbytes = sizes[ticket % 4]
        reading.readers.read(load(ticket, Range(0, MIB, nbytes, 0), base=4 * ticket * MIB, room=4 * MIB), files)
    ended = reading.ended(12)
    assert {one.ticket for one in ended} == set(range(1, 13))
    assert all(isinstance(one, LoadRead) and one.started_ns > 0 for one in ended)
    for ticket in range(1, 13):
        nbytes = sizes[ticket % 4]
        with arena.view(4 * ticket * MIB, nbytes) as slot:
            assert slot == CONTENT[MIB : MIB + nbytes]
    assert reading.readers.ended() == []


def test_what_was_read_is_summed_up(reading: Reading, file: FileReader) -> None:
    """Of the ranges alone, in their order, however they were cut and whatever lies between them."""
    parts = (Range(0, MIB, 3 * MIB + ALIGN, 0), Range(0, 6 * MIB, MIB, 4 * MIB))
    for ticket, chunk_nbytes in ((1, MIB), (2, 16 * MIB)):
        wanted = replace(load(ticket, *parts, base=16 * (ticket - 1) * MIB), checked=True)
        reading.readers.read(wanted, {0: OpenedFile(file, chunk_nbytes)})
    checksum = zlib.crc32(CONTENT[MIB : 4 * MIB + ALIGN] + CONTENT[6 * MIB : 7 * MIB])
    assert {(one.ticket, one.checksum) for one in reading.ended(2)} == {(Ticket(1), checksum), (Ticket(2), checksum)}
    reading.readers.read(load(3, *parts), {0: OpenedFile(file, MIB)})
    assert [one.checksum for one in reading.ended(1)] == [NOT_CHECKED]


def test_a_checked_load_with_nothing_to_read(reading: Reading) -> None:
    reading.readers.read(replace(load(1), checked=True), {})
    assert [one.checksum for one in reading.ended(1)] == [0]


def test_a_checked_load_that_cannot_be_read(reading: Reading, weights: Path, file: FileReader) -> None:
    os.truncate(weights, 2 * MIB)
    files = {0: OpenedFile(file, MIB)}
    reading.readers.read(replace(load(1, Range(0, MIB, 7 * MIB, 0)), checked=True), files)
    reading.readers.read(replace(load(2, Range(0, 0, MIB, 0), base=16 * MIB), checked=True), files)
    ended = {one.ticket: one for one in reading.ended(2)}
    assert isinstance(ended[Ticket(1)], LoadBroken)
    assert ended[Ticket(2)].checksum == zlib.crc32(CONTENT[:MIB])
    reading.readers.settle()


def test_a_load_with_nothing_to_read_ends(reading: Reading) -> None:
    reading.readers.read(load(1), {})
    (ended,) = reading.ended(1)
    assert isinstance(ended, LoadRead)


def test_two_pieces_are_on_their_way_at_once(
    reading: Reading, file: FileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of two loads: of the second while the last of the first is not there yet."""
    both = threading.Barrier(2)
    read = file.read_into

    def together(buffer: memoryview, offset: int, nbytes: int) -> None:
        both.wait(DEADLINE_S)
        read(buffer, offset, nbytes)

    monkeypatch.setattr(file, "read_into", together)
    files = {0: OpenedFile(file, MIB)}
    reading.readers.read(load(1, Range(0, 0, 3 * MIB, 0)), files)
    reading.readers.read(load(2, Range(0, 0, 3 * MIB, 0), base=16 * MIB), files)
    assert [type(one) for one in reading.ended(2)] == [LoadRead, LoadRead]


def test_what_cannot_be_read_is_told_and_the_rest_of_it_left(reading: Reading, weights: Path, file: FileReader) -> None:
    os.truncate(weights, 2 * MIB)
    files = {0: OpenedFile(file, ALIGN * 256)}
    reading.readers.read(load(1, Range(0, MIB, 7 * MIB, 0)), files)
    reading.readers.read(load(2, Range(0, 0, MIB, 0), base=16 * MIB), files)
    ended = {one.ticket: one for one in reading.ended(2)}
    broken = ended[Ticket(1)]
    assert isinstance(broken, LoadBroken)
    assert broken.exit_code == ReadFailed.exit_code
    assert f"ends at byte {2 * MIB}" in broken.text
    assert broken.where == (0, 2 * MIB)
    assert isinstance(ended[Ticket(2)], LoadRead)
    assert reading.pieces < 7


def hold(file: FileReader, offset: int, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Reads at `offset` set the first event, and wait for the second."""
    begun, may_end = threading.Event(), threading.Event()
    read = file.read_into

    def held(buffer: memoryview, at: int, nbytes: int) -> None:
        if at == offset:
            begun.set()
            assert may_end.wait(DEADLINE_S)
        read(buffer, at, nbytes)

    monkeypatch.setattr(file, "read_into", held)
    return begun, may_end


def test_a_load_is_broken_only_once_nothing_writes_to_its_slot(
    reading: Reading, weights: Path, file: FileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = hold(file, 0, monkeypatch)
    os.truncate(weights, MIB)
    reading.readers.read(load(1, Range(0, 0, 3 * MIB, 0)), {0: OpenedFile(file, MIB)})
    reading.readers.read(load(2, Range(0, ALIGN, MIB // 2, 0), base=16 * MIB), {0: OpenedFile(file, MIB)})
    assert begun.wait(DEADLINE_S)
    (first,) = reading.ended(1)
    assert first.ticket == 2, "the other thread has met the file's end, and has gone on"
    assert isinstance(first, LoadRead)
    may_end.set()
    (second,) = reading.ended(1)
    assert isinstance(second, LoadBroken)
    assert second.ticket == 1


def test_a_piece_that_hangs_is_not_hidden_by_later_loads(
    reading: Reading, file: FileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = hold(file, 0, monkeypatch)
    files = {0: OpenedFile(file, MIB)}
    reading.readers.read(load(1, Range(0, 0, MIB // 2, 0)), files)
    for ticket in (2, 3, 4):
        reading.readers.read(load(ticket, Range(0, MIB, 2 * MIB, 0), base=ticket * 4 * MIB), files)
    assert begun.wait(DEADLINE_S)
    assert {one.ticket for one in reading.ended(3)} == {2, 3, 4}
    assert reading.pieces == 0, "nothing that the daemon would take for progress"
    may_end.set()
    assert [one.ticket for one in reading.ended(1)] == [1]
    assert reading.pieces == 1


def test_a_bug_in_a_thread_is_raised_where_its_owner_asks(
    reading: Reading, file: FileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "read_into", lambda *_: 1 / 0)
    reading.readers.read(load(1, Range(0, 0, MIB, 0)), {0: OpenedFile(file, MIB)})
    with pytest.raises(ZeroDivisionError):
        reading.ended(1)
    reading.readers.settle()


def test_settled_means_that_nothing_is_read(reading: Reading, file: FileReader) -> None:
    for ticket in range(1, 9):
        reading.readers.read(load(ticket, Range(0, 0, 8 * MIB, 0)), {0: OpenedFile(file, MIB)})
    reading.readers.settle()
    assert len(reading.readers.ended()) == 8


def test_a_load_is_cut_into_several_pieces_of_a_chunk_at_most(file: FileReader) -> None:
    def sizes(nbytes: int, chunk_nbytes: int) -> list[int]:
        return [one.nbytes for one in cut(load(1, Range(0, 0, nbytes, 0)), {0: OpenedFile(file, chunk_nbytes)})]

    assert sizes(9 * MIB, 16 * MIB) == [3 * MIB] * 3
    assert sizes(8 * MIB, 2 * MIB) == [2 * MIB] * 4
    assert sizes(9 * MIB + 1, 16 * MIB) == [3 * MIB + ALIGN, 3 * MIB + ALIGN, 3 * MIB - 2 * ALIGN + 1]
    assert sizes(LEAST_PIECE_NBYTES + ALIGN, 16 * MIB) == [MIB // 2 + ALIGN, MIB // 2], "none is tiny"
    assert sizes(60 * MIB, 64 * MIB) == [60 * MIB // 8 // ALIGN * ALIGN] * 8
    assert max(sizes(60 * MIB, 64 * MIB)) <= MOST_PIECE_NBYTES
    assert sizes(100, 16 * MIB) == [100]
    assert sizes(3 * ALIGN, ALIGN + 5) == [ALIGN] * 3
    assert sizes(2 * ALIGN, 1) == [ALIGN] * 2


def test_only_the_last_piece_of_a_range_has_room_for_the_rest_of_its_block(file: FileReader) -> None:
    files = {0: OpenedFile(file, 16 * MIB)}
    one, two = Range(0, 0, 2 * MIB, 0), Range(0, 8 * MIB, MIB + 100, 2 * MIB)
    pieces = cut(load(1, one, two, base=ALIGN, room=4 * MIB), files)
    assert sum(piece.nbytes for piece in pieces) == 3 * MIB + 100
    assert all(piece.room == piece.nbytes for piece in pieces[:-1])
    end = ALIGN + 2 * MIB + MIB + ALIGN
    assert pieces[-1].at + pieces[-1].room == end
    tight = cut(load(1, Range(0, 8 * MIB, MIB + 100, 0), room=MIB + 200), files)
    half = MIB // 2 + ALIGN
    assert tight[-1] == Piece(0, file, 8 * MIB + half, MIB + 100 - half, half, MIB + 200 - half)
