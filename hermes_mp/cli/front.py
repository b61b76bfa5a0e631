"""The front of a launch: joins the daemon to console, ledger, trace and the source of requests.

It hands compute as many requests at a time as may be in flight, shows their answers in order, and knows when no other
can follow. It decides nothing about units or slots.
"""

from __future__ import annotations

import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from hermes_mp.agents.tracing import TracingFront
from hermes_mp.cli.asked import Asked
from hermes_mp.cli.console import Console
from hermes_mp.cli.lines import LineSource
from hermes_mp.core.ledger import Ledger
from hermes_mp.core.report import counted
from hermes_mp.core.slots import Slots
from hermes_mp.core.squeeze import Change
from hermes_mp.core.unitlist import UnitList
from hermes_mp.errors import HermesError
from hermes_mp.host.wire import Key
from hermes_mp.messages import (
    BoardGone,
    BoardTold,
    FromCompute,
    Note,
    PassEnded,
    PassStarted,
    Progress,
    RequestAnswered,
    RequestFailed,
    RequestRepeated,
    RowsRead,
    TextStreamed,
    Ticket,
    UnitDone,
    UnitLoaded,
    UnitNo,
)

if TYPE_CHECKING:
    from hermes_mp.agents.daemon import Daemon

MAX_QUEUED = 64  # requests of a pipe that wait in memory


class LaunchFront:
    """`requests` are those of the command line, `lines` where others come from (None: from nowhere)."""

    def __init__(
        self,
        console: Console,
        ledger: Ledger,
        trace: TracingFront | None,
        requests: list[dict[str, Any]],
        lines: LineSource | None,
        line_request: dict[str, Any],
        wakeup_fd: int,
        in_flight: int = 1,
    ) -> None:
        self.fds = [wakeup_fd] + ([lines.fileno()] if lines is not None else [])
        self.daemon: Daemon | None = None
        self.exit_code = 0
        self._console, self._ledger, self._trace = console, ledger, trace
        self._requests = deque(requests)
        self._lines, self._line_request = lines, line_request
        self._several = len(requests) > 1
        self._in_flight = in_flight
        self._asked = 0
        self._active: dict[int, Asked] = {}  # what compute was asked, in order; until it is shown
        self._paused = False
        self._ready = False
        self._units = UnitList((), ())
        self._pass: PassStarted | None = None
        self._done = 0
        self._read_nbytes = 0

    @property
    def busy(self) -> bool:
        return any(not one.is_over for one in self._active.values())

    @property
    def hurry_s(self) -> float | None:
        return None

    # --- what the daemon tells

    def ready(self, units: UnitList) -> None:
        assert self.daemon is not None
        self._units, self._ready = units, True
        residents = len(self.daemon.mind.residents) if self.daemon.mind is not None else 0
        slots = self.daemon.slots
        self._ledger.divided(slots.budget_nbytes, slots.planned, slots.slot_nbytes, residents)
        for one in self._active.values():
            if not one.is_over:
                self._ask(one)
        self._fill()

    def told(self, message: FromCompute) -> None:
        if self._trace is not None:
            self._trace.told(message)
        if isinstance(message, Progress):
            self._console.phase(message.text)
        elif isinstance(message, Note):
            self._console.note(message.text)
        elif isinstance(message, BoardTold):
            self._ledger.board_told(message.board, json.loads(message.facts))
        elif isinstance(message, BoardGone):
            if message.text:
                self._console.note(f"{message.text}; going on without it")
        elif isinstance(message, RequestRepeated):
            self._console.note(message.why)
            self._begin_again()
        elif isinstance(message, TextStreamed):
            self._stream(message)
        elif isinstance(message, PassStarted):
            self._pass, self._done, self._read_nbytes = message, 0, 0
            self._ledger.pass_started(message)
            self._console.units(0, len(self._units.units), 0)
        elif isinstance(message, PassEnded):
            self._pass_ended(message)
        elif isinstance(message, RowsRead):
            self._ledger.rows_read(message)
        elif isinstance(message, RequestAnswered):
            self._answered(message)
        elif isinstance(message, RequestFailed):
            one = self._active.get(message.request)
            if one is not None and not one.is_over:
                one.failure = message.exit_code, message.text
                self._came_further()
                self._show()

    def loaded(self, message: UnitLoaded, unit: UnitNo) -> None:
        self._ledger.unit_loaded(message)
        self._read_nbytes += message.nbytes
        if self._trace is not None:
            self._trace.loaded(message, unit)

    def done(self, message: UnitDone, unit: UnitNo, loaded_by: Ticket) -> None:
        self._ledger.unit_done(message, loaded_by)
        if message.computed and self._pass is not None:
            self._done += 1
            self._console.units(self._done, len(self._units.units), self._read_nbytes)
        if self._trace is not None:
            self._trace.done(message, unit, loaded_by)

    def slots_changed(self, slots: Slots) -> None:
        if self._trace is not None:
            self._trace.slots_changed(slots)

    def say(self, text: str) -> None:
        self._console.note(text)

    def heard(self, data: bytes) -> None:
        self._console.child_wrote(data.decode("utf-8", "replace"))

    def restarted(self) -> None:
        self._ledger.loader_restarted()

    def compute_restarted(self) -> None:
        self._begin_again()
        chosen = sum(len(one.chosen) for one in self._active.values() if not one.is_over)
        if chosen:
            goes_on = f"it goes on behind {counted(chosen, 'token')}"
            self._console.note(f"{goes_on}: what follows may differ from what it would have said")
        self._ledger.compute_restarted()
        if self._trace is not None:
            self._trace.writer.instant("daemon", "compute is started again", time.monotonic_ns())

    def _begin_again(self) -> None:
        """The requests that are under way will be asked once more, as soon as compute is `ready`."""
        self._ready, self._pass = False, None
        for one in self._active.values():
            if not one.is_over:
                one.begin_again()

    def sampled(self, by_process: dict[str, int], arena_nbytes: int, exact: bool) -> None:
        self._ledger.memory_sampled({**by_process, "slots": arena_nbytes}, exact)

    def looked(self, free_nbytes: int, reserve_nbytes: int, slots: int) -> None:
        self._ledger.reserve_nbytes = reserve_nbytes
        if self._trace is not None:
            now_ns = time.monotonic_ns()
            self._trace.writer.counters("free memory", now_ns, {"MiB": free_nbytes / 2**20})

    def squeezed(self, change: Change, free_nbytes: int) -> None:
        self._ledger.squeezed(change)
        back = "residents return" if self._ledger.squeezes else "residents come"  # into what others have left
        what = back if change.returns else "residents leave"
        if self._trace is not None:
            self._trace.writer.instant("daemon", what, time.monotonic_ns(), slots=change.slots, free_nbytes=free_nbytes)
        if change.turned:
            why = "memory is free again" if change.returns else "memory is short"
            self._console.note(f"{why} ({max(0, free_nbytes) >> 20} MiB free): {what}")

    def readable(self, key: Key) -> None:
        if self._lines is None or key != self._lines.fileno():
            return  # the wake-up of a signal, whose handler has run by now
        try:
            self._requests.extend(self._line_request | {self._line_key: line} for line in self._lines.read_lines())
        except HermesError as error:
            self._console.failed(error.line(), error.exit_code)
            self.exit_code = error.exit_code
        if self._lines.ended or len(self._requests) >= MAX_QUEUED:
            assert self.daemon is not None
            self.daemon.forget(key)  # in the second case for now: a pipe may hold millions of lines
            self._paused = not self._lines.ended
        self._fill()

    def tick(self) -> None:
        self._console.tick(time.monotonic())
        if self._console.reader_gone and self.daemon is not None:
            self.daemon.end()

    # ---

    @property
    def _line_key(self) -> str:
        return "text" if self._line_request else "line"

    def _fill(self) -> None:
        """Hand out requests while there are places; without one wait for a line, or end where none can come."""
        assert self.daemon is not None
        if not self._ready:
            return
        while self._requests and len(self._active) < self._in_flight:
            request = self._requests.popleft()
            if self._paused and self._lines is not None and len(self._requests) < MAX_QUEUED // 2:
                self._paused = False
                self.daemon.watch(self._lines.fileno())
            places = self._in_flight - len(self._active) - 1
            final = len(self._requests) <= places and not self._more_may_come
            one = Asked(self._asked, request, final, label_of(request) if self._several else None)
            self._active[one.number] = one
            self._asked += 1
            self._ask(one)
        if self._active:
            return
        if self._more_may_come:
            self._console.prompt()
        else:
            self.daemon.end()

    @property
    def _more_may_come(self) -> bool:
        return self._lines is not None and not self._lines.ended

    def _ask(self, one: Asked) -> None:
        assert self.daemon is not None
        self._ledger.request_started()
        self._console.phase("preparing the request")
        self.daemon.request(one.number, one.asked_again(), one.final)

    def _stream(self, message: TextStreamed) -> None:
        assert self.daemon is not None
        one = self._active.get(message.request)
        if one is None or one.is_over:
            return
        one.chosen += message.token_ids
        try:
            new = one.told.tell(message.text)
        except HermesError as error:
            self.daemon.end(error)
            return
        if new:
            self._came_further()
            one.held += new
            self._show()

    def _answered(self, message: RequestAnswered) -> None:
        assert self.daemon is not None
        one = self._active.get(message.request)
        if one is None or one.is_over:
            return
        one.parts += message.text
        if not message.last:
            return
        try:
            one.told.end()
        except HermesError as error:
            self.daemon.end(error)
            return
        one.answer = json.loads(one.parts)
        self._came_further()
        self._show()

    def _show(self) -> None:
        """What may be shown by now: of the first one what is there; once it is over, of the next one."""
        while self._active:
            one = next(iter(self._active.values()))
            text = one.take_held()
            if text:
                self._console.stream(text, one.label)
            if not one.is_over:
                break
            del self._active[one.number]
            if one.failure is not None:
                self.exit_code, line = one.failure
                self._console.failed(line, self.exit_code)
            elif one.answer is not None:
                self._console.answer(one.answer, one.label)
        self._fill()

    def _came_further(self) -> None:
        assert self.daemon is not None
        self.daemon.compute.came_further()

    def _pass_ended(self, message: PassEnded) -> None:
        self._pass = None
        self._ledger.pass_ended(message)
        self._console.phase("working on the answer")


def label_of(request: dict[str, Any]) -> str:
    """What tells the answer to this request from others: its input, as it was written."""
    given = next(iter(request.values()))
    return ",".join(map(str, given)) if isinstance(given, list) else str(given)
