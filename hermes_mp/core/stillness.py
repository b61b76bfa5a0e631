"""Whether compute stands still: it has work, it is not waiting for us, and nothing of it moves. It has no clock.

A pass may take minutes on a small board, so silence is no sign: what counts is processor time and words.
"""

from __future__ import annotations

LONGEST_LOOK_NS = 1_000_000_000


class Stillness:
    """Judges from looks at it; `timeout_ns` None: it never stands still."""

    def __init__(self, timeout_ns: int | None) -> None:
        self._timeout_ns = timeout_ns
        self._mark: tuple[int, int] | None = None
        self._seen_ns = self._still_ns = 0

    def look(self, has_work: bool, mark: tuple[int, int], now_ns: int) -> bool:
        """`mark` is another one whenever it moved. Whether it has stood still for too long; from then on anew."""
        if self._timeout_ns is None or not has_work:
            self._mark = None
            return False
        if mark != self._mark:
            self._mark, self._seen_ns, self._still_ns = mark, now_ns, 0
            return False
        # Between two looks that lie further apart we were paused ourselves, and it maybe with us.
        self._still_ns += min(now_ns - self._seen_ns, LONGEST_LOOK_NS)
        self._seen_ns = now_ns
        if self._still_ns < self._timeout_ns:
            return False
        self._mark = None
        return True
