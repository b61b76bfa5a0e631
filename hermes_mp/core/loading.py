"""A loader's mind: which loads are fit to be read, and what to tell the daemon. It knows no file, memory or disk.

Loads are read in the order in which they come. Nothing is written outside of the room that the daemon lent: a range
that does not fit is refused before the first byte of its unit is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_mp.errors import BadMessage, CheckpointBroken
from hermes_mp.messages import (
    NOT_CHECKED,
    Epoch,
    LoaderNo,
    LoadFailed,
    LoadUnit,
    OpenFile,
    StopLoader,
    Ticket,
    UnitLoaded,
)

READERS = 2  # of a loader: it asks for the next bytes before the last ones have come

# --- events of the shell


@dataclass(frozen=True)
class OpenFailed:
    """The file cannot be opened, or has another length than announced."""

    file: int
    exit_code: int
    text: str


@dataclass(frozen=True)
class LoadRead:
    """All ranges of a load are in their places; its first byte was asked for at `started_ns`.

    Of the pieces that it was read in one took `slowest_ns`, and none longer.
    """

    ticket: Ticket
    direct: bool
    started_ns: int
    slowest_ns: int = 0
    checksum: int = NOT_CHECKED


@dataclass(frozen=True)
class LoadBroken:
    """A load could not be read, and nothing writes to its slot any more. See `LoadFailed` for where."""

    ticket: Ticket
    exit_code: int
    text: str
    where: tuple[int, ...] = ()


Event = OpenFile | LoadUnit | StopLoader | OpenFailed | LoadRead | LoadBroken

# --- actions


@dataclass(frozen=True)
class Open:
    """Open the file; say `OpenFailed` if that fails, nothing if it succeeds. See `OpenFile` for how to read it."""

    file: int
    path: str
    nbytes: int
    chunk_nbytes: int = 0
    direct: bool = True


@dataclass(frozen=True)
class Read:
    """Read all ranges of `load`, after those of earlier ones, writing nowhere outside of its room."""

    load: LoadUnit


@dataclass(frozen=True)
class Send:
    """To the daemon."""

    message: UnitLoaded | LoadFailed


@dataclass(frozen=True)
class Exit:
    """Leave: all work is finished."""


Action = Open | Read | Send | Exit


class Loading:
    """The loader `loader` in its incarnation `epoch`, writing to an arena of at most `arena_nbytes`."""

    def __init__(self, loader: LoaderNo, epoch: Epoch, arena_nbytes: int) -> None:
        self._loader = loader
        self._epoch = epoch
        self._arena_nbytes = arena_nbytes
        self._files: dict[int, OpenFile] = {}
        self._bad_files: dict[int, OpenFailed] = {}
        self._last_ticket = Ticket(0)
        self._under_way: dict[Ticket, LoadUnit] = {}
        self._stopping = False
        self._ended_ns = 0  # the last load that was read

    def handle(self, event: Event, now_ns: int) -> list[Action]:
        if isinstance(event, LoadRead):
            load = self._under_way.pop(event.ticket, None)
            return [] if load is None else [Send(self._loaded(load, event, now_ns)), *self._leave()]
        if isinstance(event, LoadUnit):
            # Tickets only grow; a repeated order would write into a slot that may be bound by now.
            if event.epoch != self._epoch or event.ticket <= self._last_ticket or self._stopping:
                return []
            self._last_ticket = event.ticket
            refusal = self._why_not(event)
            if refusal is not None:
                return [self._failed(event.ticket, *refusal), *self._open_again(event)]
            self._under_way[event.ticket] = event
            return [Read(event)]
        if isinstance(event, LoadBroken):
            if self._under_way.pop(event.ticket, None) is None:
                return []
            return [self._failed(event.ticket, event.exit_code, event.text, event.where), *self._leave()]
        if isinstance(event, OpenFile):
            self._files[event.file] = event
            return [self._open(event)]
        if isinstance(event, OpenFailed):
            self._bad_files[event.file] = event
            return []
        self._stopping = True
        return self._leave()

    def _open(self, file: OpenFile) -> Open:
        self._bad_files.pop(file.file, None)
        return Open(file.file, file.path, file.nbytes, file.chunk_nbytes, file.direct)

    def _open_again(self, load: LoadUnit) -> list[Action]:
        """Those of its files that could not be opened: it may have passed by the next order."""
        return [self._open(self._files[file]) for file in {one.file for one in load.ranges} & set(self._bad_files)]

    def _leave(self) -> list[Action]:
        """Once told to, and what was ordered before is read: its slots can be lent again without waiting for us."""
        return [Exit()] if self._stopping and not self._under_way else []

    def _loaded(self, load: LoadUnit, read: LoadRead, now_ns: int) -> UnitLoaded:
        """Begun when the load before it had ended, as reads of two overlap: a loader's times add up to its work."""
        nbytes = sum(piece.nbytes for piece in load.ranges)
        started_ns, self._ended_ns = max(read.started_ns, self._ended_ns), now_ns
        times = started_ns, now_ns, read.slowest_ns
        return UnitLoaded(self._loader, self._epoch, load.ticket, nbytes, read.direct, *times, read.checksum)

    def _failed(self, ticket: Ticket, exit_code: int, text: str, where: tuple[int, ...] = ()) -> Send:
        return Send(LoadFailed(self._loader, self._epoch, ticket, exit_code, text, where))

    def _why_not(self, load: LoadUnit) -> tuple[int, str] | None:
        """(exit code, text) of what is wrong with this order, before any byte of it is read."""
        if load.base < 0 or load.room < 0 or load.base + load.room > self._arena_nbytes:
            return BadMessage.exit_code, f"unit {load.unit}: its slot lies outside of the arena"
        for piece in load.ranges:
            file = self._files.get(piece.file)
            bad = self._bad_files.get(piece.file)
            if file is None:
                return BadMessage.exit_code, f"unit {load.unit}: file {piece.file} was never named"
            if bad is not None:
                return bad.exit_code, bad.text
            if min(piece.offset, piece.nbytes, piece.at) < 0 or piece.at + piece.nbytes > load.room:
                return BadMessage.exit_code, f"unit {load.unit}: a range lies outside of its slot"
            if piece.offset + piece.nbytes > file.nbytes:
                return CheckpointBroken.exit_code, f"{file.path}: unit {load.unit} lies past the end of the file"
        return None
