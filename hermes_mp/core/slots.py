"""Who owns which slot: empty, lent to a loader, loaded, or announced to compute. It knows no loaders and no policy.

Every change of owner takes a new ticket, a load as well as a lease to compute. So news about an earlier tenure of a
slot can never be taken for news about the present one, even where the same unit stays in the same slot for many
passes. (Slot reuse without such numbers corrupts weights silently.)
"""

from __future__ import annotations

from enum import Enum

from hermes_mp.errors import InvariantBroken
from hermes_mp.messages import SlotNo, Ticket, UnitNo


class Holds(Enum):
    """What a slot is."""

    EMPTY = "empty"
    LENT = "lent to a loader"
    LOADED = "loaded"
    ANNOUNCED = "announced to compute"


EMPTY, LENT, LOADED, ANNOUNCED = Holds.EMPTY, Holds.LENT, Holds.LOADED, Holds.ANNOUNCED
NO_UNIT = UnitNo(-1)
NO_TICKET = Ticket(0)


class Slot:
    """One slot; changed by `Slots` only, but for `late` and `guess`, which are the policy's notes on a tenure."""

    __slots__ = (
        "computed", "guess", "holds", "kept", "late", "loaded_by", "nbytes", "number", "recalled", "ticket", "unit",
    )  # fmt: skip

    def __init__(self, number: SlotNo) -> None:
        self.number = number
        self.holds = EMPTY
        self.unit = NO_UNIT
        self.ticket = NO_TICKET  # of the present tenure
        self.loaded_by = NO_TICKET  # the load that completed this content
        self.nbytes = 0  # read for this content
        self.computed = False  # this content was computed with at least once
        self.late = False  # its loader makes no progress
        self.guess = False  # announced on a guess: compute may still return it unused
        self.kept = False  # announced for good: compute returns it when it is recalled
        self.recalled = False

    def __repr__(self) -> str:
        return f"slot {self.number}: {self.holds.value}, unit {self.unit}, ticket {self.ticket}"


class Slots:
    """All slots, found by number, by ticket and by unit."""

    def __init__(self) -> None:
        self.all: dict[SlotNo, Slot] = {}
        self.empty: dict[SlotNo, Slot] = {}
        self.loaded: dict[UnitNo, Slot] = {}  # complete, and not announced
        self.lent: dict[Ticket, Slot] = {}
        self.announced: dict[Ticket, Slot] = {}
        self.content: dict[UnitNo, Slot] = {}  # complete units, loaded or announced: at most one slot each
        self.loading: dict[UnitNo, list[Slot]] = {}
        self.bytes_read = 0
        self._bytes_wasted = 0
        self._last_ticket = 0

    def bytes_unused(self) -> int:
        """Bytes read that were never computed with: dropped so, or still lying there."""
        return self._bytes_wasted + sum(slot.nbytes for slot in self.content.values() if not slot.computed)

    def add(self, number: SlotNo) -> None:
        self.all[number] = self.empty[number] = Slot(number)

    def remove(self, slot: Slot) -> None:
        self._expect(slot, EMPTY)
        del self.all[slot.number], self.empty[slot.number]

    def lend(self, slot: Slot, unit: UnitNo) -> Ticket:
        self._expect(slot, EMPTY)
        slot.holds, slot.unit, slot.ticket, slot.late = LENT, unit, self._new_ticket(), False
        del self.empty[slot.number]
        self.lent[slot.ticket] = slot
        self.loading.setdefault(unit, []).append(slot)
        return slot.ticket

    def fill(self, slot: Slot, nbytes: int) -> None:
        """The load is complete. If another load of the same unit won, this one was for nothing."""
        self._end_load(slot)
        self.bytes_read += nbytes
        if slot.unit in self.content:
            self._bytes_wasted += nbytes
            self._clear(slot)
            return
        slot.holds, slot.loaded_by, slot.nbytes, slot.computed = LOADED, slot.ticket, nbytes, False
        self.content[slot.unit] = self.loaded[slot.unit] = slot

    def drop(self, slot: Slot) -> None:
        """The load failed, or its loader is gone."""
        self._end_load(slot)
        self._clear(slot)

    def announce(self, slot: Slot, guess: bool, keep: bool = False) -> Ticket:
        self._expect(slot, LOADED)
        del self.loaded[slot.unit]
        slot.holds, slot.ticket, slot.guess, slot.kept = ANNOUNCED, self._new_ticket(), guess, keep
        self.announced[slot.ticket] = slot
        return slot.ticket

    def give_back(self, slot: Slot, computed: bool) -> None:
        """Compute is done with it; the content stays, so that a repeated unit costs no read."""
        self._expect(slot, ANNOUNCED)
        del self.announced[slot.ticket]
        self.loaded[slot.unit] = slot
        slot.holds, slot.guess, slot.kept, slot.recalled = LOADED, False, False, False
        slot.computed = slot.computed or computed

    def evict(self, slot: Slot) -> None:
        self._expect(slot, LOADED)
        del self.content[slot.unit], self.loaded[slot.unit]
        if not slot.computed:
            self._bytes_wasted += slot.nbytes
        self._clear(slot)

    def _end_load(self, slot: Slot) -> None:
        self._expect(slot, LENT)
        del self.lent[slot.ticket]
        loads = self.loading[slot.unit]
        loads.remove(slot)
        if not loads:
            del self.loading[slot.unit]

    def _clear(self, slot: Slot) -> None:
        slot.holds, slot.unit, slot.ticket, slot.loaded_by = EMPTY, NO_UNIT, NO_TICKET, NO_TICKET
        slot.nbytes, slot.computed, slot.late = 0, False, False
        self.empty[slot.number] = slot

    def _new_ticket(self) -> Ticket:
        self._last_ticket += 1
        return Ticket(self._last_ticket)

    def _expect(self, slot: Slot, holds: Holds) -> None:
        if slot.holds is not holds or self.all.get(slot.number) is not slot:
            raise InvariantBroken(f"I2 a slot has one owner: {slot} was taken as {holds.value}")

    def check(self) -> None:
        """I2 a slot has one owner, I3 bound implies allocated and loaded, I4 tickets are unique."""
        seen: set[Ticket] = set()
        owned = 0
        for slot in self.all.values():
            holds, unit, ticket = slot.holds, slot.unit, slot.ticket
            as_lent = self.lent.get(ticket) is slot and slot in self.loading.get(unit, ())
            as_content = self.content.get(unit) is slot
            as_announced = self.announced.get(ticket) is slot
            as_empty, as_loaded = self.empty.get(slot.number) is slot, self.loaded.get(unit) is slot
            if (as_lent, as_content, as_announced) != _INDEXED[holds] or (as_empty, as_loaded) != (
                holds is EMPTY,
                holds is LOADED,
            ):
                raise InvariantBroken(f"I2 a slot has one owner: {slot} is indexed otherwise")
            if holds is ANNOUNCED and not NO_TICKET < slot.loaded_by < ticket:
                raise InvariantBroken(f"I3 bound implies allocated and loaded: {slot}")
            if holds is not EMPTY:
                owned += 1
                if ticket in seen or not NO_TICKET < ticket <= self._last_ticket:
                    raise InvariantBroken(f"I4 tickets are unique: {slot}")
                seen.add(ticket)
        if len(self.announced) + len(self.lent) > owned or any(
            self.all.get(slot.number) is not slot for slot in (*self.announced.values(), *self.lent.values())
        ):
            raise InvariantBroken("I3 bound implies allocated: a ticket refers to a slot that is not there")


_INDEXED = {
    EMPTY: (False, False, False),
    LENT: (True, False, False),
    LOADED: (False, True, False),
    ANNOUNCED: (False, True, True),
}
