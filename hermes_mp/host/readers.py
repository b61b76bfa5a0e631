"""A loader's threads, which read: of the loads that they are given, in that order, each takes the next piece.

Once all of a load is there, the thread that brought its last piece sums it up, where that is asked for, before it is
said to be read; the other one reads on.

While one piece is on its way another is asked for already, of the same load or of the next: the disk does not rest
while a thread that was woken up waits for a core. `preadv` leaves the interpreter to the others.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hermes_mp.core.layout import ALIGN, aligned_up
from hermes_mp.core.loading import READERS, LoadBroken, LoadRead
from hermes_mp.core.pace import MOST_CHUNK_NBYTES, Pace
from hermes_mp.errors import MachineError, ReadFailed
from hermes_mp.host.arena import Arena
from hermes_mp.host.reading import FileReader
from hermes_mp.messages import NOT_CHECKED, LoadUnit

PIECES = 3  # of a load, where it is large enough: of two both threads would end at once, and the disk would rest
LEAST_PIECE_NBYTES = 1 << 20  # where the disk is fast enough for that


@dataclass(frozen=True)
class OpenedFile:
    """`chunk_nbytes`: at most so much is asked for at once."""

    reader: FileReader
    chunk_nbytes: int


@dataclass(frozen=True)
class Piece:
    """`nbytes` from `offset` of the file go to byte `at` of the arena, where `room` bytes may be written."""

    file_number: int
    file: FileReader
    offset: int
    nbytes: int
    at: int
    room: int
    number: int = 0  # the file's


@dataclass
class _Reading:
    load: LoadUnit
    waiting: deque[Piece]
    left: int  # pieces that are not read; the sum that is asked for counts as one
    direct: bool = True
    started_ns: int = 0
    slowest_ns: int = 0  # of its pieces
    checksum: int = NOT_CHECKED
    failure: LoadBroken | None = None


@dataclass(frozen=True)
class _Done:
    """What a thread did: it read this piece, which may have failed, or (None) summed up."""

    load: _Reading
    piece: Piece | None
    took_ns: int
    error: MachineError | None


class Readers:
    """`fd` is readable when loads have ended; `on_piece` hears of every piece of the oldest load, one call at a time.

    Of that one only, so that a piece that hangs is noticed while the other thread goes on with later loads.

    The threads end with the process, if not closed before: a read that hangs must not keep it.
    """

    def __init__(self, arena: Arena, on_piece: Callable[[], None]) -> None:
        self._arena = arena
        self._on_piece = on_piece
        lock = threading.Lock()  # of all that follows
        self._work = threading.Condition(lock)
        self._idle = threading.Condition(lock)
        self._loads: deque[_Reading] = deque()  # those with pieces that wait, the oldest first
        self._under_way: deque[_Reading] = deque()  # from the oldest load that has not ended on
        self._ended: list[LoadRead | LoadBroken] = []
        self._pace = Pace()
        self._bug: BaseException | None = None
        self._closed = False
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(READERS)]
        for thread in self._threads:
            thread.start()

    def read(self, load: LoadUnit, files: dict[int, OpenedFile]) -> None:
        """Read `load`, whose ranges lie in its room and in `files`, after all others."""
        with self._work:
            pieces = cut(load, files, self._pace.chunk_nbytes())
            reading = _Reading(load, deque(pieces), len(pieces) + load.checked)
            self._under_way.append(reading)
            if pieces:
                self._loads.append(reading)
                self._work.notify_all()
            else:
                reading.started_ns = time.monotonic_ns()
                reading.left, reading.checksum = 0, 0 if load.checked else NOT_CHECKED
                self._end(reading)

    def ended(self) -> list[LoadRead | LoadBroken]:
        """The loads that have ended since this was asked last. Raises what a thread met that is a bug."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return []
        with self._idle:
            if self._bug is not None:
                raise self._bug
            ended, self._ended = self._ended, []
            return ended

    def settle(self) -> None:
        """Wait until nothing is read."""
        with self._idle:
            self._idle.wait_for(lambda: not self._under_way or self._bug)

    def close(self) -> None:
        """Once all has ended: end the threads and close `fd`."""
        self.settle()
        with self._work:
            self._closed = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join()
        os.close(self.fd)

    def _run(self) -> None:
        done: _Done | None = None
        try:
            while (following := self._next(done)) is not None:
                load, piece = following
                began_ns = time.monotonic_ns()
                error = None
                if piece is None:
                    load.checksum = self._sum(load.load)
                else:
                    error = self._read(piece)
                done = _Done(load, piece, time.monotonic_ns() - began_ns, error)
        except BaseException as error:
            with self._idle:
                self._bug = error
                self._idle.notify_all()
                os.eventfd_write(self.fd, 1)

    def _next(self, done: _Done | None) -> tuple[_Reading, Piece | None] | None:
        """Put down what was done; the next piece, once there is one, or (None) a load to be summed up. None: closed."""
        with self._work:
            if done is not None and self._put_down(done):
                return done.load, None
            self._work.wait_for(lambda: self._loads or self._closed)
            if not self._loads:
                return None
            load = self._loads[0]
            load.started_ns = load.started_ns or time.monotonic_ns()
            piece = load.waiting.popleft()
            if not load.waiting:
                self._loads.popleft()
            return load, piece

    def _put_down(self, done: _Done) -> bool:
        """Whether its load is now to be summed up."""
        load, piece = done.load, done.piece
        if load is self._under_way[0]:
            self._on_piece()
        load.left -= 1
        if piece is not None:
            load.slowest_ns = max(load.slowest_ns, done.took_ns)
            load.direct = load.direct and piece.file.direct
            if done.error is None:
                self._pace.took(piece.nbytes, done.took_ns)
            else:
                self._fail(load, piece, done.error)
        if not load.left:
            self._end(load)
        return piece is not None and load.left == 1 and load.load.checked and load.failure is None

    def _fail(self, load: _Reading, piece: Piece, error: MachineError) -> None:
        """Nobody needs the rest of it, nor its sum."""
        if load.failure is None:
            load.left -= load.load.checked
            where = (piece.file_number, error.offset) if isinstance(error, ReadFailed) and error.offset >= 0 else ()
            load.failure = LoadBroken(load.load.ticket, error.exit_code, str(error), where)
        if load.waiting:
            load.left -= len(load.waiting)
            load.waiting.clear()
            self._loads.remove(load)

    def _end(self, load: _Reading) -> None:
        read = LoadRead(load.load.ticket, load.direct, load.started_ns, load.slowest_ns, load.checksum)
        self._ended.append(load.failure or read)
        while self._under_way and not self._under_way[0].left:
            self._under_way.popleft()
        self._idle.notify_all()
        os.eventfd_write(self.fd, 1)

    def _read(self, piece: Piece) -> MachineError | None:
        with self._arena.view(piece.at, piece.room) as buffer:
            try:
                piece.file.read_into(buffer, piece.offset, piece.nbytes)
            except MachineError as error:
                return error
        return None

    def _sum(self, load: LoadUnit) -> int:
        """CRC-32 over its ranges, in their order."""
        checksum = 0
        for one in load.ranges:
            with self._arena.view(load.base + one.at, one.nbytes) as buffer:
                checksum = zlib.crc32(buffer, checksum)
        return checksum


def cut(load: LoadUnit, files: dict[int, OpenedFile], most_nbytes: int = MOST_CHUNK_NBYTES) -> Sequence[Piece]:
    """The load's ranges in pieces, as large as its files' chunks at most, so small that there are several, and alike.

    None is larger than `most_nbytes`: two at once are as much as the daemon expects news of.

    The read of a file's last block may write past its range, up to the next multiple of ALIGN: never further.
    """
    share = -(-sum(one.nbytes for one in load.ranges) // PIECES)
    several = min(max(LEAST_PIECE_NBYTES, aligned_up(share)), most_nbytes)
    pieces = []
    for one in load.ranges:
        file = files[one.file]
        most = max(ALIGN, min(several, file.chunk_nbytes) // ALIGN * ALIGN)
        each = aligned_up(-(-one.nbytes // max(1, -(-one.nbytes // most)))) or ALIGN
        end = min(aligned_up(one.at + one.nbytes), load.room)
        for done in range(0, one.nbytes, each):
            nbytes = min(each, one.nbytes - done)
            at = one.at + done
            room = end - at if done + nbytes == one.nbytes else nbytes
            pieces.append(Piece(one.file, file.reader, one.offset + done, nbytes, load.base + at, room))
    return pieces
