"""Adapts a run to the machine's free memory: what `--memory auto` comes to, and how many slots there shall be now.

The decisions are `core.budget`'s and `core.squeeze`'s, the figures `host.ceilings`'s. It knows no unit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hermes_mp.agents.front import Front
from hermes_mp.core.budget import LAST_NBYTES, MIN_SLOTS, Spare
from hermes_mp.core.squeeze import Squeeze, reserve_nbytes
from hermes_mp.host.ceilings import Ceiling, Ceilings

# Between two looks; each costs 0.1 ms. The kernel's pressure stall information would not be sooner: it speaks once
# memory is being taken back, and where there is nothing to take back the next thing is an OOM kill.
LOOK_NS = 100_000_000
SHORT_NBYTES = 64 << 20  # with more than this free the kernel takes no program's pages away
FAULTS = 2  # waits for such pages between two looks: few where each waits behind a loader's large read


class Adapting:
    """`budget_nbytes`: what `--memory` named; None where it named no number."""

    def __init__(self, budget_nbytes: int | None, front: Front) -> None:
        self._budget_nbytes, self._front = budget_nbytes, front
        self._ceilings = Ceilings()
        self._squeeze = Squeeze(MIN_SLOTS)
        self._next_ns = self._counted_ns = 0
        self._faulting = False

    def spare(self, own_nbytes: int, file_nbytes: int) -> Spare:
        """What we may have in all, where `own_nbytes` and mapped files of `file_nbytes` are ours already."""
        had = [
            (one.free_nbytes + own_nbytes + min(file_nbytes, one.mapped_nbytes), reserve_nbytes(one.limit_nbytes, None))
            for one in self._ceilings.look()
        ]
        return Spare(min(nbytes - reserve for nbytes, reserve in had), min(nbytes for nbytes, _ in had) - LAST_NBYTES)

    def plan(self, slots: int, slot_nbytes: int, most: int) -> None:
        """The budget is divided, into so many slots; as far as memory goes there may be `most`."""
        self._squeeze.plan(slots, slot_nbytes, most)
        self._next_ns = 0

    def tightest(self) -> Ceiling:
        """The limit that would be met first."""
        return min(self._ceilings.look(), key=lambda one: one.free_nbytes)

    def refused(self, slots: int) -> None:
        """There was no memory for more than so many."""
        self._squeeze.refused(slots, time.monotonic_ns())

    def look(
        self, slots: int, promised_nbytes: int, allocating: bool, starved: bool, faults: Callable[[], int]
    ) -> int | None:
        """How many slots there shall be from now on, where that changes; `slots` have their memory now.

        `allocating`: more are about to get it, so it is looked at once. `faults` since last asked. The others: see
        `Squeeze.handle`.
        """
        now_ns = time.monotonic_ns()
        if now_ns < self._next_ns and not allocating:
            return None
        self._next_ns = now_ns + LOOK_NS
        free, reserve = min(
            ((one.free_nbytes, reserve_nbytes(one.limit_nbytes, self._budget_nbytes)) for one in self._ceilings.look()),
            key=lambda pair: pair[0] - pair[1],
        )
        change = self._squeeze.handle(
            free - reserve, slots, now_ns, promised_nbytes, starved, self._is_faulting(free, now_ns, faults)
        )
        self._front.looked(free, reserve, slots)
        if change is None:
            return None
        self._front.squeezed(change, free)
        return change.slots

    def _is_faulting(self, free_nbytes: int, now_ns: int, faults: Callable[[], int]) -> bool:
        """As it was at the last full look, where another comes sooner."""
        if now_ns - self._counted_ns >= LOOK_NS:
            self._counted_ns = now_ns
            self._faulting = faults() >= FAULTS and free_nbytes < SHORT_NBYTES
        return self._faulting

    def close(self) -> None:
        """Nothing is looked at any more."""
        self._ceilings.close()
