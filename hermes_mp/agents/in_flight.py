"""Several requests of the daemon at once, in compute: takes them as they come, and answers each as it would alone.

Whose turn it is `models.turns` knows. What ends a request to be asked once more (a board that was lost, mostly) ends
all of them, and all are asked once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hermes_mp.agents.supplying import LinkedSupply
from hermes_mp.errors import HermesError, InvariantBroken, RequestAgain
from hermes_mp.messages import RunRequest, StopCompute

if TYPE_CHECKING:
    from hermes_mp.agents.compute_head import Head
    from hermes_mp.models.turns import Turns

Whole = dict[str, Any]


class _Again(HermesError, RequestAgain):
    """All requests are asked once more."""

    def __init__(self, why: str) -> None:
        super().__init__(why, "")


class InFlight:
    """At most `at_most` requests at once. `read` makes a request of its parts, None until the last one has come."""

    def __init__(
        self,
        supply: LinkedSupply,
        turns: Turns,
        at_most: int,
        boards: Head | None,
        read: Callable[[RunRequest], Whole | None],
        answer: Callable[[RunRequest, Whole], None],
    ) -> None:
        """`answer` is run in a thread of the request's."""
        self._supply, self._turns, self._at_most, self._boards = supply, turns, at_most, boards
        self._read, self._answer = read, answer
        self._requests: dict[int, int] = {}  # by the member that it is, the number of the request

    def run(self) -> None:
        """Until the daemon ends it. Raises what no request can be answered after."""
        while self._take():
            again: HermesError | None = None
            for one in self._turns.advance():
                if isinstance(one.error, HermesError) and isinstance(one.error, RequestAgain):
                    again = again or one.error  # still among the requests
                    continue
                if one.error is not None:
                    raise one.error
                del self._requests[one.member]
            if again is not None:
                self._ask_again(again)

    def _take(self) -> bool:
        """What has come, as far as there are places; waits for the first one. False at the end."""
        self._supply.hear()
        while len(self._turns) < self._at_most and (self._supply.is_asked or not len(self._turns)):
            asked = self._supply.next_request()
            if isinstance(asked, StopCompute):
                return False
            if not isinstance(asked, RunRequest):
                raise InvariantBroken(f"{type(asked).__name__} is for a board's stage")
            whole = self._read(asked)
            if whole is not None:
                self._start(asked, whole)
        return True

    def _start(self, request: RunRequest, whole: Whole) -> None:
        member = next(one for one in range(self._at_most) if one not in self._turns)
        self._requests[member] = request.request
        why = "" if self._boards is None else self._boards.come_back(request.request)
        if why:
            self._ask_again(_Again(why))
            return
        self._turns.start(member, lambda: self._answer(request, whole))

    def _ask_again(self, error: HermesError) -> None:
        self._turns.break_off(error)
        requests, self._requests = sorted(self._requests.values()), {}
        if self._boards is None:
            raise error
        self._boards.ask_again(requests, error)
