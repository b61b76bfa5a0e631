"""How long at least one of many reads was under way, however they overlap. It knows no clock."""

from __future__ import annotations

OPEN_INTERVALS = 64  # reads overlap only their neighbours: older gaps never close again


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
