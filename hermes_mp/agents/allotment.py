"""The slots of a run: how many the budget leaves, where each lies in the arena, and their memory."""

from __future__ import annotations

import mmap

from hermes_mp.core.budget import MIN_SLOTS, Needs, share_out, slot_size
from hermes_mp.core.unitlist import UnitList
from hermes_mp.host.arena import Arena
from hermes_mp.messages import SlotNo


class Allotment:
    """`bases` says where the allocated slots begin; `missing` more are planned. All are `slot_nbytes` long.

    `reserve_nbytes`: what the budget leaves for what compute does.
    """

    def __init__(self, arena: Arena, budget: int | None, loaders: int, fixed: int | None) -> None:
        """`fixed`: so many slots, whatever the budget says; for tests."""
        self.bases: dict[SlotNo, int] = {}
        self.slot_nbytes = self.reserve_nbytes = 0
        self.missing = 0
        self._arena, self._budget, self._loaders, self._fixed = arena, budget, loaders, fixed

    @property
    def planned(self) -> int:
        return len(self.bases) + self.missing

    def divide(self, units: UnitList, needs: Needs, remembered: bool) -> int:
        """Plan the slots for these units; how many there shall be. Raises BudgetTooSmall.

        What is `remembered` of compute may be less than it takes today (another tokenizer, a library that another
        process had mapped): then a window's worth at most, and one slot less than there would be room for.
        """
        nbytes = slot_size(units.slot_nbytes, self._arena.granule, mmap.PAGESIZE)
        share = share_out(self._budget, needs, len(units.units), nbytes, self._loaders)
        count = share.slots if self._fixed is None else min(self._fixed, len(units.units))
        if remembered and self._budget is not None:
            count = max(min(count, MIN_SLOTS), min(count - 1, self._loaders + 1))
        if nbytes:
            count = min(count, self._arena.nbytes // nbytes)
        self.slot_nbytes, self.reserve_nbytes = nbytes, share.reserve
        self.missing = max(0, count - len(self.bases))
        return count

    def add(self) -> SlotNo:
        """Give the next missing slot its memory. Raises OutOfMemory; then no more are missing."""
        slot = next(SlotNo(number) for number in range(len(self.bases) + 1) if SlotNo(number) not in self.bases)
        wanted, self.missing = self.missing, 0
        self._arena.allocate(slot * self.slot_nbytes, self.slot_nbytes)
        self.missing = wanted - 1
        self.bases[slot] = slot * self.slot_nbytes
        return slot

    def remove(self, slot: SlotNo) -> None:
        """Take the slot's memory back; nothing may refer to it any more."""
        self._arena.free(self.bases.pop(slot), self.slot_nbytes)

    def clear(self) -> None:
        for slot in list(self.bases):
            self.remove(slot)
        self.missing = 0
