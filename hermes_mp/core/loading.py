"""A loader's mind: which read comes next, and what to tell the daemon. It knows no file, no memory and no disk.

One load at a time and one range at a time; a second `LoadUnit` queues. Nothing is written outside of the room that
the daemon lent: a range that does not fit is refused before the first byte of its unit is read.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from hermes_mp.errors import BadMessage, CheckpointBroken
from hermes_mp.messages import Epoch, LoaderNo, LoadFailed, LoadUnit, OpenFile, Range, StopLoader, Ticket, UnitLoaded

# --- events of the shell


@dataclass(frozen=True)
class OpenFailed:
    """The file cannot be opened, or has another length than announced."""

    file: int
    exit_code: int
    text: str


@dataclass(frozen=True)
class RangeRead:
    """The range of the last `ReadRange` is in its place."""

    ticket: Ticket
    nbytes: int
    direct: bool


@dataclass(frozen=True)
class RangeFailed:
    """The range of the last `ReadRange` could not be read."""

    ticket: Ticket
    exit_code: int
    text: str


Event = OpenFile | LoadUnit | StopLoader | OpenFailed | RangeRead | RangeFailed

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
class ReadRange:
    """Read `range` to `base + range.at` of the arena, writing nowhere outside `[base, base + room)`."""

    ticket: Ticket
    range: Range
    base: int
    room: int


@dataclass(frozen=True)
class Send:
    """To the daemon."""

    message: UnitLoaded | LoadFailed


@dataclass(frozen=True)
class Exit:
    """Leave: all work is finished."""


Action = Open | ReadRange | Send | Exit


class Loading:
    """The loader `loader` in its incarnation `epoch`, writing to an arena of at most `arena_nbytes`."""

    def __init__(self, loader: LoaderNo, epoch: Epoch, arena_nbytes: int) -> None:
        self._loader = loader
        self._epoch = epoch
        self._arena_nbytes = arena_nbytes
        self._files: dict[int, OpenFile] = {}
        self._bad_files: dict[int, OpenFailed] = {}
        self._last_ticket = Ticket(0)
        self._load: LoadUnit | None = None
        self._queue: deque[LoadUnit] = deque()
        self._stopping = False
        self._next_range = 0
        self._nbytes = 0
        self._direct = True
        self._started_ns = 0

    def handle(self, event: Event, now_ns: int) -> list[Action]:
        if isinstance(event, RangeRead):
            if self._load is None or event.ticket != self._load.ticket:
                return []
            self._next_range += 1
            self._nbytes += event.nbytes
            self._direct = self._direct and event.direct
            return self._go_on(self._load, now_ns)
        if isinstance(event, LoadUnit):
            # Tickets only grow; a repeated order would write into a slot that may be bound by now.
            if event.epoch != self._epoch or event.ticket <= self._last_ticket or self._stopping:
                return []
            self._last_ticket = event.ticket
            self._queue.append(event)
            return self._start_next(now_ns) if self._load is None else []
        if isinstance(event, RangeFailed):
            if self._load is None or event.ticket != self._load.ticket:
                return []
            return self._failed(event.ticket, event.exit_code, event.text, now_ns)
        if isinstance(event, OpenFile):
            self._files[event.file] = event
            self._bad_files.pop(event.file, None)
            return [Open(event.file, event.path, event.nbytes, event.chunk_nbytes, event.direct)]
        if isinstance(event, OpenFailed):
            self._bad_files[event.file] = event
            return []
        self._stopping = True
        self._queue.clear()
        return [Exit()] if self._load is None else []

    def _start_next(self, now_ns: int) -> list[Action]:
        if self._stopping:
            return [Exit()]
        if not self._queue:
            return []
        load = self._load = self._queue.popleft()
        self._next_range, self._nbytes, self._direct, self._started_ns = 0, 0, True, now_ns
        refusal = self._why_not(load)
        return self._go_on(load, now_ns) if refusal is None else self._failed(load.ticket, *refusal, now_ns)

    def _go_on(self, load: LoadUnit, now_ns: int) -> list[Action]:
        if self._next_range < len(load.ranges):
            return [ReadRange(load.ticket, load.ranges[self._next_range], load.base, load.room)]
        loaded = UnitLoaded(
            self._loader, self._epoch, load.ticket, self._nbytes, self._direct, self._started_ns, now_ns
        )
        self._load = None
        return [Send(loaded), *self._start_next(now_ns)]

    def _failed(self, ticket: Ticket, exit_code: int, text: str, now_ns: int) -> list[Action]:
        self._load = None
        return [Send(LoadFailed(self._loader, self._epoch, ticket, exit_code, text)), *self._start_next(now_ns)]

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
