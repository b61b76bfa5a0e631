"""What a borrower has ordered of a lender, and where each part that comes belongs; parts come in the orders' order.

The lender is another machine: a part that does not continue what came before is a BadMessage, so nothing is written
outside of what was ordered. It knows no socket and no memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from hermes_mp.board_messages import UnitLent, UnitPart
from hermes_mp.core.lending import GRANT_NBYTES, stretches
from hermes_mp.errors import BadMessage
from hermes_mp.messages import Range

LINK_NBYTES_PER_S = 117e6  # of the usual cable, 1 Gbit/s
WORTH = 0.1  # of what is read here: what borrowing should add at least


def why_not_worth_it(board: str, local_nbytes_per_s: float | None, lent_nbytes_per_s: float | None) -> str:
    """A line for whoever borrows next to a fast disk; "" where it pays, or too little is known."""
    lent = min(lent_nbytes_per_s or LINK_NBYTES_PER_S, LINK_NBYTES_PER_S)
    if local_nbytes_per_s is None or lent >= WORTH * local_nbytes_per_s:
        return ""
    return (
        f"the disk here gives {local_nbytes_per_s / 1e6:.0f} MB/s and {board} at most {lent / 1e6:.0f} over a cable of "
        "1 Gbit/s: remote loaders hardly make this run faster"
    )


class _Ordered:
    def __init__(self, number: int, ranges: Sequence[Range]) -> None:
        self.number = number
        self.nbytes = sum(one.nbytes for one in ranges)
        self.left = deque(stretches(ranges))


class Borrowing:
    """Orders that were sent and are not complete."""

    def __init__(self) -> None:
        self._orders: deque[_Ordered] = deque()
        self._due = 0  # bytes that came and are not granted again

    def order(self, number: int, ranges: Sequence[Range]) -> None:
        """It is on its way to the lender."""
        self._orders.append(_Ordered(number, ranges))

    def __contains__(self, number: int) -> bool:
        return any(one.number == number for one in self._orders)

    def place(self, part: UnitPart) -> int:
        """The byte of its order's slot where this part's bytes are to go, and may. Raises BadMessage."""
        order = self._first(part.order)
        at, nbytes = order.left[0] if order.left else (-1, 0)
        if part.at != at or not 0 < part.nbytes <= nbytes:
            came = f"{part.nbytes} bytes for byte {part.at} came"
            raise BadMessage(f"order {part.order}: {came}, {nbytes} for {at} were due")
        order.left.popleft()
        if part.nbytes < nbytes:
            order.left.appendleft((at + part.nbytes, nbytes - part.nbytes))
        self._due += part.nbytes
        return at

    def complete(self, lent: UnitLent) -> None:
        """The lender has sent all of it. Raises BadMessage where it has not."""
        order = self._first(lent.order)
        if order.left or lent.nbytes != order.nbytes:
            lacking = sum(nbytes for _, nbytes in order.left)
            raise BadMessage(f"order {lent.order} is said to be complete, and {lacking} bytes lack")
        self._orders.popleft()

    def failed(self, number: int) -> bool:
        """The lender cannot meet this order; False where there is none such."""
        found = next((one for one in self._orders if one.number == number), None)
        if found is None:
            return False
        self._orders.remove(found)
        return True

    def grant(self) -> int:
        """Bytes to be granted now: in large steps, or all where nothing is on its way."""
        if self._due < GRANT_NBYTES and self._orders:
            return 0
        due, self._due = self._due, 0
        return due

    def _first(self, number: int) -> _Ordered:
        if not self._orders or self._orders[0].number != number:
            raise BadMessage(f"order {number} is not the one whose turn it is")
        return self._orders[0]
