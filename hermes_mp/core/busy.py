"""How long at least one of many reads was under way, however they overlap, and how fast. It knows no clock."""

from __future__ import annotations

OPEN_INTERVALS = 64  # reads overlap only their neighbours: older gaps never close again
PAUSE_NS = 20_000_000  # a disk that was left alone for longer gives more at first: caches, credit of a rate limit
FIRST_NS = 200_000_000  # for so long
LASTING_NBYTES = 32 << 20  # read after that, that say something


class Busy:
    """The time in which at least one read was under way: intervals, merged where they touch."""

    def __init__(self) -> None:
        self._open: list[tuple[int, int]] = []
        self._closed_ns = 0

    def add(self, started_ns: int, ended_ns: int) -> None:
        kept = []
        for start, end in self._open:
            if end < started_ns or start > ended_ns:
                kept.append((start, end))
            else:
                started_ns, ended_ns = min(start, started_ns), max(end, ended_ns)
        kept.append((started_ns, ended_ns))
        kept.sort()
        if len(kept) > OPEN_INTERVALS:
            start, end = kept.pop(0)
            self._closed_ns += end - start
        self._open = kept

    def total_ns(self) -> int:
        return self._closed_ns + sum(end - start for start, end in self._open)


class Reading:
    """Reads of one disk, in about the order in which they began: bytes, and bytes per second while it reads."""

    def __init__(self) -> None:
        self.nbytes = self._lasting_nbytes = 0
        self._busy, self._lasting = Busy(), Busy()
        self._since_ns = self._until_ns = 0

    def add(self, nbytes: int, started_ns: int, ended_ns: int) -> None:
        self.nbytes += nbytes
        self._busy.add(started_ns, ended_ns)
        if not self._until_ns or started_ns > self._until_ns + PAUSE_NS:
            self._since_ns = started_ns
        self._until_ns = max(self._until_ns, ended_ns)
        if started_ns - self._since_ns >= FIRST_NS:
            self._lasting_nbytes += nbytes
            self._lasting.add(started_ns, ended_ns)

    def rate(self) -> float | None:
        """Of everything; None before there was anything."""
        return _rate(self.nbytes, self._busy)

    def lasting_rate(self) -> float | None:
        """What it keeps up; None where it was never read from for long."""
        return _rate(self._lasting_nbytes, self._lasting) if self._lasting_nbytes >= LASTING_NBYTES else None


def _rate(nbytes: int, busy: Busy) -> float | None:
    busy_ns = busy.total_ns()
    return nbytes / (busy_ns / 1e9) if busy_ns else None
