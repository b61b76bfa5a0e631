"""What of a run goes into its trace: reads, waits, computations, passes, and what the slots are at each moment.

Used by the front of a launch, and as a front by itself behind `hermes_mp.load`. It decides nothing.
"""

from __future__ import annotations

import time

from hermes_mp.agents.front import SilentFront
from hermes_mp.core.slots import ANNOUNCED, EMPTY, LENT, LOADED, Slots
from hermes_mp.host.trace import TraceWriter
from hermes_mp.messages import (
    FromCompute,
    PassEnded,
    PassStarted,
    Progress,
    RowsRead,
    Ticket,
    UnitDone,
    UnitLoaded,
    UnitNo,
)

STATES = {"lent": LENT, "loaded": LOADED, "held": ANNOUNCED, "empty": EMPTY}


class TracingFront(SilentFront):
    """Writes what it is told into `writer`."""

    def __init__(self, writer: TraceWriter) -> None:
        super().__init__()
        self.writer = writer
        self._pass: PassStarted | None = None
        self._occupied: dict[str, int] = {}

    def told(self, message: FromCompute) -> None:
        if isinstance(message, Progress):
            self.writer.instant("compute", message.text, time.monotonic_ns())
        elif isinstance(message, PassStarted):
            self._pass = message
        elif isinstance(message, PassEnded) and self._pass is not None:
            begun, self._pass = self._pass, None
            self.writer.complete(
                "passes", "pass", begun.at_ns, message.at_ns, rows=begun.rows, positions=begun.tokens
            )
        elif isinstance(message, RowsRead):
            self.writer.complete("compute", "read rows", message.started_ns, message.ended_ns, nbytes=message.nbytes)

    def loaded(self, message: UnitLoaded, unit: UnitNo) -> None:
        self.writer.complete(
            f"loader {message.loader}", f"read unit {unit}", message.started_ns, message.ended_ns,
            unit=unit, ticket=message.ticket, nbytes=message.nbytes,
        )  # fmt: skip

    def done(self, message: UnitDone, unit: UnitNo, loaded_by: Ticket) -> None:
        if not message.computed:
            return
        if message.bound_ns > message.asked_ns:
            self.writer.complete("compute", f"wait for unit {unit}", message.asked_ns, message.bound_ns, unit=unit)
        self.writer.complete("compute", f"compute unit {unit}", message.bound_ns, message.done_ns, unit=unit)

    def slots_changed(self, slots: Slots) -> None:
        holds = [slot.holds for slot in slots.all.values()]
        occupied = {name: holds.count(state) for name, state in STATES.items()}
        if occupied != self._occupied:
            self._occupied = occupied
            self.writer.counters("slots", time.monotonic_ns(), occupied)
