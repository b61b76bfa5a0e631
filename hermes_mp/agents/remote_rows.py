"""Rows of an embedding, and weights that stay bound, from another board: for a compute that has no copy of its own.

A link of its own, opened at the first read and again where it was lost, as the lender may be back. One thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from hermes_mp.agents.borrowed import Borrowed
from hermes_mp.agents.greeting import said_by
from hermes_mp.agents.lenders import greet
from hermes_mp.board_messages import GrantCredit, LendFailed, LendUnit, Refused, UnitLent, UnitPart
from hermes_mp.core.borrowing import Borrowing
from hermes_mp.core.budget import WINDOW_NBYTES
from hermes_mp.errors import BadMessage, BoardLost, HermesError
from hermes_mp.host.lan import LanLink
from hermes_mp.host.wire import Poller
from hermes_mp.messages import Range

RANGES = 512  # of one order: half of what a message may hold
SILENCE_S = 30.0  # of a lender whose disk is slow; one that is gone is noticed within 6
COME_BACK_S = 10.0
AGAIN_S = 0.2


class RemoteRows:
    """Of the first of the lenders that answers."""

    def __init__(self, borrowed: Borrowed, death_fd: int) -> None:
        self._borrowed, self._death_fd = borrowed, death_fd
        self._link: LanLink | None = None
        self._board = ""
        self._borrowing = Borrowing()
        self._orders = 0

    def reader(self, file: int) -> RemoteFile:
        """File number `file`, read as `host.reading.FileReader` reads one here."""
        return RemoteFile(self, file)

    def read(self, file: int, rows: Sequence[tuple[int, int]], into: memoryview) -> int:
        """As `FileReader.read_rows`. Raises BoardLost, or what the lender says that it could not read."""
        done = 0
        for ranges in _orders(file, rows):
            nbytes = sum(one.nbytes for one in ranges)
            with into[done : done + nbytes] as place:
                self._order(ranges, place)
            done += nbytes
        return done

    def close(self) -> None:
        """Harmless when repeated."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _order(self, ranges: tuple[Range, ...], into: memoryview) -> None:
        until_s = time.monotonic() + COME_BACK_S
        while True:
            try:
                return self._try(ranges, into)
            except BoardLost:
                self.close()
                if time.monotonic() >= until_s:
                    raise
            except HermesError:
                self.close()  # what was asked for on it may still come
                raise
            _rest(self._death_fd)

    def _try(self, ranges: tuple[Range, ...], into: memoryview) -> None:
        link = self._link or self._reach()
        self._orders += 1
        number = self._orders
        self._borrowing.order(number, ranges)
        link.send(LendUnit(number, ranges))
        while True:
            said = link.receive(SILENCE_S)
            if said is None:
                raise BoardLost(f"board {self._board} did not answer for {SILENCE_S:g} s")
            if isinstance(said, UnitPart):
                at = self._borrowing.place(said)
                with into[at : at + said.nbytes] as place:
                    link.payload_into(place)
            elif isinstance(said, UnitLent):
                self._borrowing.complete(said)
            elif isinstance(said, LendFailed) and self._borrowing.failed(said.order):
                self._grant(link)
                raise said_by(self._board, said.exit_code, said.text)
            elif isinstance(said, Refused):
                raise said_by(self._board, said.exit_code, said.text)
            else:
                raise BadMessage(f"board {self._board} says {type(said).__name__}, and was not asked for it")
            self._grant(link)
            if isinstance(said, UnitLent):
                return

    def _grant(self, link: LanLink) -> None:
        nbytes = self._borrowing.grant()
        if nbytes:
            link.send(GrantCredit(nbytes))

    def _reach(self) -> LanLink:
        lost: BoardLost | None = None
        for lender in self._borrowed.lenders:
            try:
                link, _ = greet(
                    lender, self._borrowed.model, self._borrowed.fingerprint, death_fd=self._death_fd
                )
            except BoardLost as error:
                lost = lost or error
                continue
            link.send(GrantCredit(WINDOW_NBYTES))
            self._link, self._board, self._borrowing, self._orders = link, lender.name, Borrowing(), 0
            return link
        raise lost or BoardLost("no board lends the model")


class RemoteFile:
    """One file of the lender's copy."""

    def __init__(self, rows: RemoteRows, file: int) -> None:
        self._rows, self._file = rows, file

    def read_rows(self, rows: Sequence[tuple[int, int]], into: memoryview) -> int:
        """Gather (offset, nbytes) pieces one after the other into `into`; the number of bytes."""
        return self._rows.read(self._file, rows, into)

    def close(self) -> None:
        """The link of all files."""
        self._rows.close()


def _orders(file: int, rows: Sequence[tuple[int, int]]) -> Iterator[tuple[Range, ...]]:
    for first in range(0, len(rows), RANGES):
        at, ranges = 0, []
        for offset, nbytes in rows[first : first + RANGES]:
            ranges.append(Range(file, offset, nbytes, at))
            at += nbytes
        yield tuple(ranges)


def _rest(death_fd: int) -> None:
    """Before another try; the link's own wait says that the daemon is gone."""
    poller = Poller()
    poller.watch(death_fd)
    poller.wait(AGAIN_S)
