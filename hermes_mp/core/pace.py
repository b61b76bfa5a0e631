"""How long a chunk takes: how much a loader should ask for at once, and for how long its silence is nothing unusual.

A progress counter moves once per chunk. So a chunk must be small enough to be heard of in time on a card of 5 MB/s,
and the deadline long enough for a disk on which, among others, one takes seconds now and then.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from hermes_mp.core.layout import ALIGN

CHUNK_NS = 200_000_000
LEAST_CHUNK_NBYTES, MOST_CHUNK_NBYTES = 256 << 10, 8 << 20
FIRST_CHUNK_NBYTES = 1 << 20  # before one was timed: six of them at once take 1.2 s at 5 MB/s
RATES, TIMES = 9, 400  # the last ones count
PATIENCE = 4  # times the 99th percentile
OUTLIERS = 2  # that are left out while there are few: a loader that was stopped is late with two loads


class Pace:
    """Of one loader, by what its last chunks took; each alone, while others are on their way beside it."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=RATES)

    def took(self, nbytes: int, ns: int) -> None:
        """A chunk of so many bytes has come; small ones say nothing of the disk's rate."""
        if nbytes >= LEAST_CHUNK_NBYTES:
            self._rates.append(nbytes / max(1, ns))

    def chunk_nbytes(self) -> int:
        """About what comes in 0.2 s. By the median, as one that stood still for a while says nothing of the next."""
        if not self._rates:
            return FIRST_CHUNK_NBYTES
        rate = sorted(self._rates)[len(self._rates) // 2]
        return min(max(LEAST_CHUNK_NBYTES, int(rate * CHUNK_NS) // ALIGN * ALIGN), MOST_CHUNK_NBYTES)


class ChunkTimes:
    """The longest chunk of each of the last loads, of all loaders."""

    def __init__(self) -> None:
        self._last: deque[int] = deque()
        self._sorted: list[int] = []

    def took(self, ns: int) -> None:
        """The longest chunk of a load took so long."""
        if len(self._last) == TIMES:
            del self._sorted[bisect_left(self._sorted, self._last.popleft())]
        self._last.append(ns)
        insort(self._sorted, ns)

    def unusual_ns(self) -> int:
        """Four times the 99th percentile; 0 where nothing is known."""
        count = len(self._sorted)
        return PATIENCE * self._sorted[max(0, count - 1 - max(OUTLIERS, count // 100))] if count else 0
