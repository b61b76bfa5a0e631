"""The slots of a run: how many the budget leaves, where each lies in the arena, and their memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable

from hermes_mp.core.budget import MIN_SLOTS, Needs, Spare, auto_budget, share_out, slot_cost, slot_shape
from hermes_mp.core.unitlist import UnitList
from hermes_mp.errors import BudgetTooSmall
from hermes_mp.host.arena import Arena
from hermes_mp.messages import SlotNo

AHEAD_SPARE_NBYTES = 256 << 20  # of a budget: more than compute has been seen to take one day and not the other


class Allotment:
    """`bases` says where the allocated slots begin; `missing` more are planned. All are `slot_nbytes` long.

    `loaders`: how many there are to be. `reserve_nbytes`: what the budget leaves for what compute does.
    `budget_nbytes`: what `--memory` came to; with "auto" there may be `most` slots once the machine can spare more.
    """

    def __init__(self, arena: Arena, memory: int | str | None, loaders: int, fixed: int | None) -> None:
        """`memory`: a number of bytes, "auto" or None. `fixed`: so many slots, whatever the budget says; for tests."""
        self.bases: dict[SlotNo, int] = {}
        self.slot_nbytes = self.reserve_nbytes = 0
        self.missing = 0
        self.most = 0
        self.loaders = loaders
        self.budget_nbytes = memory if isinstance(memory, int) else None
        self._auto = memory == "auto"
        self._within = 0  # so many slots are in that
        self._arena, self._fixed = arena, fixed
        self._pages = _SharedPages(arena, mmap.PAGESIZE)

    @property
    def planned(self) -> int:
        return len(self.bases) + self.missing

    def divide(self, units: UnitList, needs: Needs, spare: Spare, remembered: bool) -> int:
        """Plan the slots for these units; how many there shall be. Raises BudgetTooSmall.

        `spare`: what the machine has for us at this moment.

        What is `remembered` of compute may be less than it takes today (another tokenizer, a library that another
        process had mapped): then one slot less than there would be room for, and more than a window's worth only
        where `AHEAD_SPARE_NBYTES` of the budget stay free beside them.
        """
        nbytes, rounding = slot_shape(units.slot_nbytes, self._arena.granule, mmap.PAGESIZE)
        granule = rounding + mmap.PAGESIZE
        if self._auto:
            self.budget_nbytes = auto_budget(spare, needs, len(units.units), nbytes, self.loaders, rounding)
        share = share_out(self.budget_nbytes, needs, len(units.units), nbytes, self.loaders, rounding, self._auto)
        count = share.slots if self._fixed is None else min(self._fixed, len(units.units))
        if remembered and self.budget_nbytes is not None:
            cost = slot_cost(nbytes, self.loaders)
            roomy = (self.budget_nbytes - needs.total - rounding - AHEAD_SPARE_NBYTES) // max(1, cost)
            count = max(min(count, MIN_SLOTS), min(count - 1, self.loaders + 1), min(count, roomy))
        if nbytes:
            count = min(count, self._arena.nbytes // nbytes)
        grows = self._auto and self._fixed is None and not remembered
        self.most = min(len(units.units), self._arena.nbytes // max(1, nbytes)) if grows else count
        if not self.bases:
            self._pages = _SharedPages(self._arena, granule)
        self.slot_nbytes, self.reserve_nbytes, self._within = nbytes, share.reserve, count
        self.want(count)
        return count

    def has_room(self, units: UnitList, needs: Needs, spare: Spare, loaders: int) -> bool:
        """Whether the budget would hold the narrowest window of these units, with so many loaders."""
        nbytes, rounding = slot_shape(units.slot_nbytes, self._arena.granule, mmap.PAGESIZE)
        count, budget = len(units.units), self.budget_nbytes
        if self._auto:
            budget = auto_budget(spare, needs, count, nbytes, loaders, rounding)
        try:
            share_out(budget, needs, count, nbytes, loaders, rounding, self._auto)
        except BudgetTooSmall:
            return False
        return True

    def want(self, count: int) -> None:
        """So many there shall be from now on; whoever has surplus ones will `remove` them."""
        self.missing = max(0, count - len(self.bases))
        if self._auto and self.budget_nbytes is not None and count > self._within:
            self.budget_nbytes += (count - self._within) * self.slot_nbytes  # the machine can spare more by now
            self._within = count

    def add(self) -> SlotNo:
        """Give the next missing slot its memory. Raises OutOfMemory; then no more are missing."""
        slot = next(SlotNo(number) for number in range(len(self.bases) + 1) if SlotNo(number) not in self.bases)
        wanted, self.missing = self.missing, 0
        self._pages.take(slot * self.slot_nbytes, self.slot_nbytes)
        self.missing = wanted - 1
        self.bases[slot] = slot * self.slot_nbytes
        return slot

    def remove(self, slot: SlotNo) -> None:
        """Take the slot's memory back; nothing may refer to it any more."""
        self._pages.give_back(self.bases.pop(slot), self.slot_nbytes)

    def clear(self) -> None:
        for slot in list(self.bases):
            self.remove(slot)
        self.missing = 0


class _SharedPages:
    """Slots lie side by side, so neighbours may share a huge page: it is taken with the first, freed with the last."""

    def __init__(self, arena: Arena, granule: int) -> None:
        self._arena, self._granule = arena, granule
        self._slots: dict[int, int] = {}  # page -> how many slots lie on it

    def take(self, base: int, nbytes: int) -> None:
        """Raises OutOfMemory, having taken nothing."""
        pages = self._pages(base, nbytes)
        self._each(self._arena.allocate, [page for page in pages if page not in self._slots])
        for page in pages:
            self._slots[page] = self._slots.get(page, 0) + 1

    def give_back(self, base: int, nbytes: int) -> None:
        pages = self._pages(base, nbytes)
        for page in pages:
            self._slots[page] -= 1
        free = [page for page in pages if not self._slots[page]]
        for page in free:
            del self._slots[page]
        self._each(self._arena.free, free)

    def _pages(self, base: int, nbytes: int) -> range:
        return range(base // self._granule, -(-(base + nbytes) // self._granule))

    def _each(self, act: Callable[[int, int], None], pages: list[int]) -> None:
        if pages:  # side by side: only the first and the last page of a slot can belong to a neighbour too
            base = pages[0] * self._granule
            act(base, min((pages[-1] + 1) * self._granule, self._arena.nbytes) - base)
