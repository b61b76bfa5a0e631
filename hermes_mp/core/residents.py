"""Which units keep their slot for good. It knows sizes and an order, nothing of what is loaded.

A pass uses the units in a fixed cycle. For a cyclic scan any fixed set of residents is optimal and LRU is the worst
there is: it evicts each unit just before its next use.
"""

from __future__ import annotations

from collections.abc import Sequence

from hermes_mp.messages import UnitNo


def window_for(slots: int, loaders: int, window: int | None = None) -> int:
    """How many of `slots` slots streamed units share; by default one per loader and one that compute holds."""
    wanted = loaders + 1 if window is None else window
    return min(slots, max(2, wanted))


def choose_residents(units: Sequence[int], slots: int, window: int) -> frozenset[UnitNo]:
    """The units (sizes in bytes, in predicted order) that are never evicted.

    The order is cut into as many equal stretches as there are residents, so that the reads they save are spread
    evenly and the loaders can keep the same distance everywhere; of each stretch the largest unit stays, because all
    slots are equally large and the largest saves most. Equal ones: the last, which is needed latest when a pass starts.
    """
    count = len(units)
    if slots >= count:
        return frozenset(UnitNo(unit) for unit in range(count))
    stay = max(0, slots - window)
    chosen: list[UnitNo] = []
    for index in range(stay):
        stretch = range(index * count // stay, (index + 1) * count // stay)
        chosen.append(UnitNo(max(stretch, key=lambda unit: (units[unit], unit))))
    return frozenset(chosen)
