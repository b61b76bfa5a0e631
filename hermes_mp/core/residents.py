"""Which units keep their slot for good. It knows sizes and an order, nothing of what is loaded.

A pass uses the units in a fixed cycle. For a cyclic scan any fixed set of residents is optimal and LRU is the worst
there is: it evicts each unit just before its next use.
"""

from __future__ import annotations

from collections.abc import Sequence

from hermes_mp.messages import UnitNo

BITS = 16
SIZES = 8  # classes of size: within one the spread counts, not the last byte


def window_for(slots: int, loaders: int, window: int | None = None) -> int:
    """How many of `slots` slots streamed units share; by default one per loader and one that compute holds."""
    wanted = loaders + 1 if window is None else window
    return min(slots, max(2, wanted))


def choose_residents(units: Sequence[int], slots: int, window: int) -> frozenset[UnitNo]:
    """The units (sizes in bytes, in predicted order) that are never evicted.

    All slots are equally large, so large units save most and come first. Among those of a size every further resident
    lies far from the others: the reads they save are spread evenly, so that the loaders can keep the same distance
    everywhere. One slot more adds one resident and moves none, so that memory can come and go at the price of its size.
    """
    count = len(units)
    if slots >= count:
        return frozenset(UnitNo(unit) for unit in range(count))
    largest = max(units, default=0) or 1
    spread = sorted(_spread(count), key=lambda unit: -(units[unit] * SIZES // largest))
    return frozenset(UnitNo(unit) for unit in spread[: max(0, slots - window)])


def _spread(count: int) -> list[int]:
    """All numbers below `count`; any first few lie evenly, and so do the others. The last comes first: a pass needs
    it latest. By reversed bits, as van der Corput's sequence.
    """
    return sorted(range(count), key=lambda unit: f"{((count - 1 - unit) << BITS) // count:0{BITS}b}"[::-1])
