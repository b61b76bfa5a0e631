"""Gathers the figures of a run, message by message, from the daemon; `report()` is what they come to.

It has no clock and measures nothing itself. Times are nanoseconds of one clock. Medians, because the first pass also
waits for the disk to wake up; of the last ones, because a run that lives for weeks must not grow with every pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hermes_mp.core.busy import Reading
from hermes_mp.core.cluster.report import BoardPart
from hermes_mp.core.report import Memory, Report, Seconds, Verified
from hermes_mp.core.squeeze import Change
from hermes_mp.messages import PassEnded, PassStarted, RowsRead, RunPlan, Ticket, UnitDone, UnitLoaded

RECENT = 1024  # passes whose figures are kept; each took 100 bytes of the daemon for good


class Ledger:
    """Gathers the facts of one run."""

    def __init__(self, loaders: int, budget_nbytes: int | None, started_ns: int, auto: bool = False) -> None:
        """`auto`: what the budget is says `divided`, once the machine was asked."""
        self.loaders = loaders
        self.budget_nbytes = budget_nbytes
        self.auto = auto
        self.reserve_nbytes: int | None = None  # what is to stay free, of the limit that is nearest
        self.squeezes = 0
        self.least_slots: int | None = None
        self.started_ns = started_ns
        self.slots = 0
        self.slot_nbytes = 0
        self.residents = 0
        self.pages = "small"  # what the arena's pages turned out to be: known at the end
        self.loaders_restarted = 0
        self.compute_restarts = 0
        self.degraded: list[str] = []
        self.remote_loaders: dict[str, int] = {}  # by board
        self.plan = RunPlan()
        self.verified: Verified | None = None
        self.boards: dict[str, BoardPart] = {}
        self._first_read_ns: int | None = None
        self._direct: set[bool] = set()
        self._rows_nbytes = 0
        self._unused: dict[Ticket, int] = {}
        self._never_used_nbytes = 0  # of loads that are no longer among them
        self.reading = Reading()
        self._pass: PassStarted | None = None
        self._pass_stall_ns = 0
        self._pass_read_nbytes = 0
        self._last_end_ns: int | None = None
        self._seconds = _Recent()
        self._token_seconds = _Recent()
        self._prefill_seconds = _Recent()
        self._read_per_pass = _Recent()
        self._stall_ns = 0
        self._pass_ns = 0
        self._peaks: dict[str, int] = {}
        self._peak_nbytes: int | None = None
        self._exact = True

    def divided(self, budget_nbytes: int | None, slots: int, slot_nbytes: int, residents: int) -> None:
        """The budget is divided."""
        self.budget_nbytes = budget_nbytes
        self.slots, self.slot_nbytes, self.residents = slots, slot_nbytes, residents

    def board_told(self, board: str, facts: Mapping[str, Any]) -> None:
        """What a board of the run has done so far; the last word counts."""
        lists = {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
        self.boards[board] = BoardPart(**{**facts, **lists, "board": board})

    def squeezed(self, change: Change) -> None:
        """Residents leave for want of memory, or return; what leaves in several steps left once."""
        if not change.returns:
            self.squeezes += change.turned
            self.least_slots = min(change.slots, self.least_slots or change.slots)

    def loader_restarted(self) -> None:
        """A loader died and was replaced."""
        self.loaders_restarted += 1

    def compute_restarted(self) -> None:
        """Compute died and was replaced; the pass it was in counts for nothing but its bytes."""
        self.compute_restarts += 1
        self._pass, self._pass_read_nbytes, self._last_end_ns = None, 0, None

    def unit_loaded(self, message: UnitLoaded) -> None:
        """Bytes came; whether they are of use is known at their first `UnitDone`."""
        self._read(message.nbytes, message.started_ns, message.ended_ns)
        self._direct.add(message.direct)
        self._unused[message.ticket] = message.nbytes
        if len(self._unused) > RECENT:
            self._never_used_nbytes += self._unused.pop(next(iter(self._unused)))

    def rows_read(self, message: RowsRead) -> None:
        """Bytes of an embedding's rows: always of use."""
        self._read(message.nbytes, message.started_ns, message.ended_ns)
        self._pass_read_nbytes += message.nbytes

    def unit_done(self, message: UnitDone, loaded_by: Ticket) -> None:
        """`loaded_by` is the ticket of the unit's load: a resident comes back every pass, but was read once."""
        if message.computed:
            self._pass_read_nbytes += self._unused.pop(loaded_by, 0)
            self._pass_stall_ns += max(0, message.bound_ns - message.asked_ns)

    def request_started(self) -> None:
        """The next pass is the first of a request: no time since the last one counts as making a token."""
        self._last_end_ns = None

    def pass_started(self, message: PassStarted) -> None:
        """A sweep begins."""
        self._pass = message
        self._pass_stall_ns = 0

    def pass_ended(self, message: PassEnded) -> None:
        """A sweep is over; one cut short counts for nothing but its bytes."""
        begun, self._pass = self._pass, None
        read_nbytes, self._pass_read_nbytes = self._pass_read_nbytes, 0
        if begun is None or not message.complete:
            self._last_end_ns = None
            return
        nanoseconds = message.at_ns - begun.at_ns
        self._seconds.add(nanoseconds / 1e9)
        self._read_per_pass.add(read_nbytes)
        self._pass_ns += nanoseconds
        self._stall_ns += self._pass_stall_ns
        if begun.tokens == 1 and self._last_end_ns is not None:
            # From end to end: choosing the token and the code between the passes are part of its price.
            self._token_seconds.add((message.at_ns - self._last_end_ns) / 1e9)
        elif begun.tokens > 1:
            self._prefill_seconds.add(nanoseconds / 1e9)
        self._last_end_ns = message.at_ns

    def memory_sampled(self, nbytes: Mapping[str, int], exact: bool) -> None:
        """Bytes by process at one moment (the arena counts as one); `exact` where page tables and shares were read."""
        self._exact = self._exact and exact
        for name, value in nbytes.items():
            self._peaks[name] = max(value, self._peaks.get(name, 0))
        self._peak_nbytes = max(sum(nbytes.values()), self._peak_nbytes or 0)

    def report(self) -> Report:
        """The report so far."""
        modes = {frozenset((True,)): "direct", frozenset((False,)): "buffered", frozenset((True, False)): "mixed"}
        per_pass = self._read_per_pass.median()
        return Report(
            passes=self._seconds.told(),
            tokens=self._token_seconds.told(),
            prefills=self._prefill_seconds.told() if self._token_seconds.count else None,
            first_read_s=None if self._first_read_ns is None else (self._first_read_ns - self.started_ns) / 1e9,
            read_nbytes=self.reading.nbytes,
            read_nbytes_per_pass=None if per_pass is None else round(per_pass),
            read_nbytes_unused=self._never_used_nbytes + sum(self._unused.values()),
            read_rate_nbytes_per_s=self.reading.rate(),
            read_mode=modes.get(frozenset(self._direct), "none"),
            stall_percent=100 * self._stall_ns / self._pass_ns if self._pass_ns else None,
            memory=Memory(
                self.budget_nbytes, self._peak_nbytes, dict(self._peaks), self._exact, self.auto, self.reserve_nbytes,
                self.squeezes, self.least_slots,
            ),
            loaders=self.loaders,
            loaders_restarted=self.loaders_restarted,
            compute_restarted=self.compute_restarts,
            slots=self.slots,
            slot_nbytes=self.slot_nbytes,
            residents=self.residents,
            pages=self.pages,
            forecast_s=self.plan.forecast_us / 1e6 if self.plan.source else None,
            planned_by=self.plan.source or None,
            verified=self.verified,
            remote_loaders=dict(self.remote_loaders),
            degraded=tuple(self.degraded),
            boards=tuple(
                replace(one, lends_to=self.remote_loaders.get(name, 0)) for name, one in self.boards.items()
            ),
        )

    def _read(self, nbytes: int, started_ns: int, ended_ns: int) -> None:
        self.reading.add(nbytes, started_ns, ended_ns)
        if self._first_read_ns is None or started_ns < self._first_read_ns:
            self._first_read_ns = started_ns


class _Recent:
    """The last of many figures, and how many there were."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=RECENT)
        self.count = 0

    def add(self, figure: float) -> None:
        self._last.append(figure)
        self.count += 1

    def median(self) -> float | None:
        # The standard library's costs the daemon 3 MB: statistics brings fractions, decimal and random.
        middle = sorted(self._last)[(len(self._last) - 1) // 2 : len(self._last) // 2 + 1]
        return sum(middle) / len(middle) if middle else None

    def told(self) -> Seconds | None:
        median = self.median()
        return None if median is None else Seconds(median, self.count)
