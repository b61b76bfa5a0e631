"""How many slots there shall be while the machine's free memory comes and goes: fewer at once when it gets tight,
more again, a few at a time, when it has been free for a while. It knows no clock, no file and no slot.

All it is told is the spare memory (free less the reserve, in bytes) and how many slots there are at that moment. What
a decision of its own will bring or take and has not yet is in its reckoning, so that one shortage is answered once.
"""

from __future__ import annotations

from dataclasses import dataclass

RESERVE_NBYTES = 64 << 20  # of any limit above us this much stays free, or
RESERVE_PARTS = 20  # a twentieth of it, where that is more
LEAST_RESERVE_NBYTES = 8 << 20  # where a budget was named that leaves less: twice what one step of the arena spares
ROOM_NBYTES = 16 << 20  # spare memory beyond the slots that return: else the next small need drives them out again
CALM_NS = 2_000_000_000  # so long must memory have been spare before slots return
MAX_CALM_NS = 32_000_000_000  # the wait doubles where what returned had to leave again, at most to this
STARVED_NS = 300_000_000  # so long compute holds all slots and waits for another before it gets one
SOON_NS = 60_000_000_000  # and is short again where what returned could stay for so long
FAULTS_NS = 1_000_000_000  # so long our processes must have waited for pages of their programs, at every look
FAULTS_NBYTES = 16 << 20  # then leave at once: torch's hot code is two or three times that
RETURN_PARTS = 8  # at most one in so many of all slots returns at once: reading them delays nobody for long


def reserve_nbytes(limit_nbytes: int, budget_nbytes: int | None) -> int:
    """Bytes of a limit above us that we leave free. A budget that was named may leave less, never nothing."""
    usual = max(RESERVE_NBYTES, limit_nbytes // RESERVE_PARTS)
    if budget_nbytes is None:
        return usual
    return min(usual, max(LEAST_RESERVE_NBYTES, limit_nbytes - budget_nbytes))


@dataclass(frozen=True)
class Change:
    """There shall be `slots` slots. `turned`: those before were about the other direction, or there were none."""

    slots: int
    returns: bool
    turned: bool


class Squeeze:
    """`wanted` is between `least` and `most`; it begins as the plan has it."""

    def __init__(self, least: int) -> None:
        self.least = least
        self.most = self.wanted = 0
        self._slot_nbytes = 0
        self._returning = True  # the direction of the last change; the plan itself counts as a return
        self._calm_since_ns: int | None = None
        self._calm_ns = CALM_NS
        self._returned_ns: int | None = None
        self._starved_since_ns: int | None = None
        self._faulting_since_ns: int | None = None

    def plan(self, slots: int, slot_nbytes: int, most: int) -> None:
        """The budget is divided, into so many slots; with a budget that follows the machine there may be `most`."""
        self.wanted, self.most = slots, max(slots, most)
        self._slot_nbytes = slot_nbytes
        self._calm_since_ns = self._faulting_since_ns = None

    def refused(self, slots: int, now_ns: int) -> None:
        """There was no memory for more than `slots` of those wanted."""
        self.wanted = min(self.wanted, slots)
        self._leave(now_ns)

    def handle(
        self, spare_nbytes: int, slots: int, now_ns: int, promised_nbytes: int = 0, starved: bool = False,
        faulting: bool = False,
    ) -> Change | None:
        """A look at the memory, `slots` being those that have theirs now; None: nothing changes.

        `promised_nbytes` of what is spare are set aside and not taken yet: they make no slot leave, but none returns
        for them. `starved`: compute holds all slots and waits for another, as a model does whose units are nested: if
        that lasts, it needs more than the least to go on at all. `faulting`: our processes wait for pages of their
        programs, which the kernel has taken away and counts as spare: if that lasts, residents leave for them.
        """
        if not self._slot_nbytes:
            return None
        if not starved:
            self._starved_since_ns = None
        elif slots == self.wanted < self.most:
            if self._starved_since_ns is None:
                self._starved_since_ns = now_ns
            if now_ns - self._starved_since_ns >= STARVED_NS:
                self._starved_since_ns, self._calm_since_ns = None, None
                self.least = self.wanted = slots + 1
                return self._change(returns=True)
        expected_nbytes = spare_nbytes + (slots - self.wanted) * self._slot_nbytes
        if not faulting or slots != self.wanted:  # what leaves has not helped yet
            self._faulting_since_ns = None
        elif self._faulting_since_ns is None:
            self._faulting_since_ns = now_ns
        elif now_ns - self._faulting_since_ns >= FAULTS_NS:
            self._faulting_since_ns = None
            return self._tight(min(expected_nbytes, -FAULTS_NBYTES), now_ns)
        if faulting:
            self._calm_since_ns = None
        if expected_nbytes < 0:
            return self._tight(expected_nbytes, now_ns)
        room = (expected_nbytes - promised_nbytes - ROOM_NBYTES) // self._slot_nbytes
        if self.wanted >= self.most or room < 1:
            self._calm_since_ns = None
            return None
        if self._calm_since_ns is None:
            self._calm_since_ns = now_ns
        if now_ns - self._calm_since_ns < self._calm_ns:
            return None
        self._calm_since_ns, self._returned_ns = now_ns, now_ns
        self.wanted += min(room, self.most - self.wanted, max(1, self.most // RETURN_PARTS))
        return self._change(returns=True)

    def _tight(self, expected_nbytes: int, now_ns: int) -> Change | None:
        self._calm_since_ns = None
        slots = max(min(self.least, self.wanted), self.wanted + expected_nbytes // self._slot_nbytes)
        if slots == self.wanted:
            return None
        self.wanted = slots
        self._leave(now_ns)
        return self._change(returns=False)

    def _leave(self, now_ns: int) -> None:
        self._calm_since_ns = None
        if self._returned_ns is not None:
            soon = now_ns - self._returned_ns < SOON_NS
            self._calm_ns = min(2 * self._calm_ns, MAX_CALM_NS) if soon else CALM_NS
            self._returned_ns = None

    def _change(self, returns: bool) -> Change:
        turned, self._returning = returns != self._returning, returns
        return Change(self.wanted, returns, turned)
