"""Compute's end of the conversation with the daemon: describes the units, waits for them, gives them back.

Leases and guesses are `core.leasing`'s; this is its shell. Used by the compute process of a launch and, in the
caller's own process, by `hermes_mp.load`; it neither knows which nor imports torch.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from hermes_mp.core.leasing import Action, GiveUp, Leasing
from hermes_mp.core.unitlist import UnitList
from hermes_mp.errors import (
    DaemonLost,
    HermesError,
    InvariantBroken,
    SystemCallFailed,
    WeightsChanged,
    revived,
)
from hermes_mp.host.arena import Arena
from hermes_mp.host.checkpoint import CheckpointFile
from hermes_mp.host.reading import FileReader
from hermes_mp.host.watched import WatchedFiles
from hermes_mp.host.wire import Link
from hermes_mp.messages import (
    AssignLayers,
    ComputeStarted,
    FileNamed,
    PassEnded,
    PassStarted,
    Progress,
    RecallUnit,
    RowsRead,
    RunEnded,
    RunLayers,
    RunPlan,
    RunRequest,
    SlotsDivided,
    StopCompute,
    ToCompute,
    UnitDescribed,
    UnitFailed,
    UnitNo,
    UnitReady,
    UnitsDescribed,
)

REMIND_S = 0.01  # of waiting for a guess that is on its way: a unit of 16 MiB at 1.6 GB/s
LOOK_S = 0.05  # a resident that is recalled goes within this time and one unit's
TURN_S = 0.5  # how long one wait for a message lasts; a lost daemon ends it at once

Asked = RunRequest | AssignLayers | RunLayers | StopCompute


def listen(supply: LinkedSupply, lock: threading.RLock, closed: threading.Event) -> None:
    """Hear the daemon while nobody else does, until `closed`: between calls, too, residents are recalled.

    For a thread in the caller's process; whoever holds the lock may use the supply.
    """
    while not closed.wait(TURN_S):
        if lock.acquire(blocking=False):
            try:
                if not closed.is_set():
                    supply.hear()
            except HermesError as error:
                supply.lose(error)
                return
            finally:
                lock.release()


class Rows(Protocol):
    """A file that rows are read from: `host.reading.FileReader`, or another board's."""

    def read_rows(self, rows: Sequence[tuple[int, int]], into: memoryview) -> int: ...

    def close(self) -> None: ...


class LinkedSupply:
    """A `models.supply.Supply` over a `Link`. One thread at a time; the caller holds the binder's lock."""

    def __init__(
        self,
        link: Link[ToCompute],
        arena: Arena,
        pid: int,
        files: Iterable[CheckpointFile] = (),
        rows_of: Callable[[int], Rows] | None = None,
    ) -> None:
        """`files`: what is looked at before and after every pass. `rows_of` gives a file that lies elsewhere."""
        self._rows_of = rows_of
        self.files = WatchedFiles(files)
        self._link = link
        self._arena = arena
        self.buffer = arena.view(0, arena.nbytes)
        self._leasing = Leasing(0)
        self._readers: dict[int, Rows] = {}
        self._whole = self._list = UnitList((), ())
        self._assigned: list[int] | None = None  # the units that are this board's; None: all
        self._reassigned = False  # and the daemon has not answered to that yet
        self._lost: HermesError | None = None
        self._look_s = 0.0
        self.stalled_ns = 0  # how long units were waited for
        self.inbox: deque[Asked] = deque()
        self.divided: SlotsDivided | None = None
        link.send(ComputeStarted(pid))

    # --- before the first pass

    def say(self, text: str) -> None:
        """Tell the person who waits what is going on."""
        self._link.send(Progress(text))

    def use(self, units: UnitList) -> None:
        """These are the units; rows may be read from their files from now on."""
        self._whole = self._list = units
        self._leasing = Leasing(len(units.units), more=True)

    def assign(self, units: Sequence[int]) -> None:
        """Only these units are this board's from now on, in this order; nothing of them may be in use.

        What the daemon announced before it has heard of it in `describe` is dropped there.
        """
        self._assigned = list(units)
        self._list = UnitList(self._whole.files, tuple(self._whole.units[unit] for unit in units))
        self._leasing = Leasing(len(units), more=True)
        self._reassigned, self.divided = self.divided is not None, None

    def describe(
        self, base_nbytes: int, reserve_nbytes: int, wish_nbytes: int = 0, plan: RunPlan | None = None,
        lenders: str = "",
    ) -> SlotsDivided:  # fmt: skip
        """Tell the daemon all units, what compute needs and how to run, and wait for its division of the budget.

        Raises BudgetTooSmall (from the daemon) or whatever else it refuses the run with.
        """
        for number, file in enumerate(self._list.files):
            self._link.send(FileNamed(number, file.path, file.nbytes))
        for unit, spec in enumerate(self._list.units):
            self._link.send(UnitDescribed(UnitNo(unit), spec.nbytes, spec.ranges))
        count, digest = len(self._list.units), self._list.digest()
        plan = plan or RunPlan()
        self._link.send(UnitsDescribed(count, digest, base_nbytes, reserve_nbytes, wish_nbytes, plan, lenders))
        while self.divided is None:
            self._receive()
        return self.divided

    @property
    def room_nbytes(self) -> int:
        """What the budget leaves for what compute does; 0 until it is divided."""
        return 0 if self.divided is None else self.divided.reserve_nbytes

    def next_request(self) -> Asked:
        """The next thing the daemon wants of a compute process of its own."""
        while not self.inbox:
            self._receive()
        return self.inbox.popleft()

    @property
    def is_asked(self) -> bool:
        """Whether the daemon wants something, as far as was heard."""
        return bool(self.inbox)

    # --- Supply

    def acquire(self, unit: int) -> int:
        number = self._numbered(unit)
        if self._lost is not None:
            raise self._lost
        self._look()
        if self._leasing.keeps(number):
            self._act(self._leasing.begin(number, time.monotonic_ns()))
            return self._leased(number)
        self.hear()  # a guess that is already here costs no message
        self._act(self._leasing.want(number, time.monotonic_ns()))
        ready = self._leasing.held(number)
        patience_s = REMIND_S
        asked_ns = time.monotonic_ns()
        try:
            while ready is None:
                if not self._receive(patience_s):
                    self._act(self._leasing.remind())
                    patience_s = TURN_S
                ready = self._leasing.held(number)
        except BaseException:
            self._leasing.abandon()
            raise
        now_ns = time.monotonic_ns()
        self.stalled_ns += now_ns - asked_ns
        self._act(self._leasing.begin(number, now_ns))
        return ready.base

    def keeps(self, unit: int) -> bool:
        return self._leasing.keeps(self._numbered(unit))

    def _numbered(self, unit: int) -> UnitNo:
        """As the daemon knows it: by its place among those that are assigned."""
        if self._assigned is None:
            return UnitNo(unit)
        place = bisect_left(self._assigned, unit)
        if self._assigned[place : place + 1] != [unit]:
            raise InvariantBroken(f"unit {unit} is another board's")
        return UnitNo(place)

    def _leased(self, unit: UnitNo) -> int:
        ready = self._leasing.held(unit)
        assert ready is not None
        return ready.base

    def _look(self) -> None:
        """Hear from time to time what is recalled, where all that compute binds it keeps."""
        now_s = time.monotonic()
        if now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            self.hear()

    def release(self, unit: int, computed: bool) -> None:
        if self._lost is None:
            self._act(self._leasing.done(self._numbered(unit), time.monotonic_ns(), computed))

    def read_rows(self, file: int, ranges: Sequence[tuple[int, int]], into: memoryview) -> None:
        reader = self._readers.get(file)
        if reader is None:
            named = self._list.files[file]
            elsewhere = self._rows_of
            reader = FileReader(named.path, named.nbytes) if elsewhere is None else elsewhere(file)
            self._readers[file] = reader
        started = time.monotonic_ns()
        nbytes = reader.read_rows(ranges, into)
        self._send(RowsRead(nbytes, started, time.monotonic_ns()))

    def forecast(self, more: bool, units: int | None) -> None:
        if units and self._assigned is not None:
            units = bisect_left(self._assigned, units)
        self._act(self._leasing.forecast(more, units))

    def pass_started(self, rows: int, tokens: int) -> None:
        """Raises WeightsChanged, as the end of a pass does."""
        self._look_at_files()
        self._send(PassStarted(time.monotonic_ns(), rows, tokens))

    def pass_ended(self, complete: bool) -> None:
        if self._lost is None:
            if complete:
                self._look_at_files()
            self._send(PassEnded(time.monotonic_ns(), complete))

    def _look_at_files(self) -> None:
        if self._lost is not None:
            raise self._lost
        try:
            self.files.look()
        except WeightsChanged as change:
            self._lost = change
            raise

    def lose(self, error: HermesError) -> None:
        """From now on every call raises this, or what went wrong before."""
        self._lost = self._lost or error

    def close(self) -> None:
        """After this every call raises DaemonLost."""
        if self._lost is None:
            self._lost = DaemonLost("the model was closed")
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._link.close()

    # ---

    def _send(self, message: object) -> None:
        if self._lost is not None:
            raise self._lost
        try:
            self._link.send(message)
        except (DaemonLost, SystemCallFailed) as error:
            if isinstance(error, DaemonLost):
                self.hear()  # it may have said why
            self._lost = error
            raise

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, GiveUp):
                raise revived(action.exit_code, action.text)
            self._send(action.message)

    def hear(self) -> None:
        """Handle what has come, without waiting."""
        while self._receive(0.0):
            pass

    def _receive(self, timeout_s: float = TURN_S) -> bool:
        """Handle the next message; False where none came in time."""
        try:
            message = self._link.receive(timeout_s)
        except (DaemonLost, SystemCallFailed) as error:
            self._lost = error
            raise
        if message is None:
            return False
        if isinstance(message, UnitReady | RecallUnit | UnitFailed):
            if not self._reassigned:  # else it is said of units that were assigned before
                self._act(self._leasing.handle(message, time.monotonic_ns()))
        elif isinstance(message, RunEnded):
            self._lost = revived(message.exit_code, message.text)
            raise self._lost
        elif isinstance(message, SlotsDivided):
            self.divided, self._reassigned = message, False
            # A request is handed out once the units are divided; what was asked before that will be asked anew.
            self.inbox = deque(asked for asked in self.inbox if not isinstance(asked, RunRequest))
        else:
            self.inbox.append(message)
        return True
