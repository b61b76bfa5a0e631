"""Several requests at once, each in a thread of its own, of which one at a time runs: whose turn it is says
`core.lockstep`. At a turn the binder, the sharing and torch's random numbers become those of that request.

It knows no message and no process: what a request does is its caller's. Threads that wait when the process ends are
left behind.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from hermes_mp.core.cluster.stretches import Stretch
from hermes_mp.core.lockstep import Await, Begin, Finish, Lockstep, Run, Send
from hermes_mp.models.binding import Binder, Holding
from hermes_mp.models.sharing import Hop, Noted, Sharing


@dataclass
class _Member:
    """`thrown` is raised where it waits; `error` is what ended it."""

    number: int
    noted: Noted
    random: torch.Tensor
    thread: threading.Thread = field(default_factory=threading.Thread)
    holding: Holding = field(default_factory=Holding)
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    thrown: BaseException | None = None
    error: BaseException | None = None
    has_ended: bool = False
    joins: tuple[bool, int | None, tuple[int, int]] = (True, None, (1, 1))
    hop: tuple[str, Hop] | None = None
    given: torch.Tensor | None = None
    part_of: _Parts | None = None


@dataclass
class _Parts:
    """Of a request that waits for parts of it: how many there are still, and what ended the first that failed."""

    owner: int
    members: list[int]
    error: BaseException | None = None


@dataclass(frozen=True)
class Ended:
    """Request `member` has ended, by `error` or as it should."""

    member: int
    error: BaseException | None


class Turns:
    """`start` requests and `advance` them, from one thread; the other methods are for theirs."""

    def __init__(
        self,
        binder: Binder,
        sharing: Sharing | None = None,
        at_most: int = 1,
        unit_of: Callable[[int], int] = lambda layer: layer,
    ) -> None:
        """Takes both over. At most so many requests will be in flight, of numbers below that.

        `unit_of` a layer is the number of its first unit.
        """
        self._binder, self._sharing, self._unit_of = binder, sharing, unit_of
        self._parts = itertools.count(at_most)  # members that are parts of requests
        self._sent: dict[str, int] = {}  # by board who waits for it
        self._in_parts = 0  # requests that wait for parts
        binder.turns, binder.lock = self, nullcontext()
        if sharing is not None:
            sharing.away, sharing.in_flight = self, at_most
        self._mind = Lockstep()
        self._members: dict[int, _Member] = {}
        self._ended: list[Ended] = []
        self._back = threading.Semaphore(0)
        self._running: _Member | None = None
        self._breaks_off: BaseException | None = None
        self._threads = torch.get_num_threads()

    def __len__(self) -> int:
        """Requests in flight."""
        return sum(one.part_of is None for one in self._members.values())

    def __contains__(self, member: int) -> bool:
        return member in self._members

    # --- for the thread that owns it

    def start(self, member: int, work: Callable[[], None]) -> None:
        """From the next `advance` on; `work` may call the model and is run in a thread of its own."""
        one = _Member(member, Noted(member), torch.get_rng_state())
        one.thread = threading.Thread(target=self._work, args=(one, work), daemon=True, name=f"request {member}")
        one.thread.start()
        self._mind.come(member)
        self._members[member] = one

    def advance(self) -> list[Ended]:
        """One pass of all; who has ended until the next one could begin. Raises what is wrong with the supply."""
        self._until_boundary()
        if len(self._mind):
            self._step()
            self._until_boundary()
        ended, self._ended = self._ended, []
        return ended

    def break_off(self, error: BaseException) -> None:
        """`error` ends all requests, wherever they are."""
        was_under_way = self._mind.is_under_way
        self._breaks_off = error
        self._mind.break_off()
        while len(self._mind):
            self._step()
        self._breaks_off, self._ended = None, []
        self._sent, self._in_parts = {}, 0
        self._binder.release_unused()
        if was_under_way:
            self._binder.supply.pass_ended(False)

    def _until_boundary(self) -> None:
        while not self._mind.at_boundary:
            self._step()

    def _step(self) -> None:
        if self._sent:
            self._receive(wait=False)
        step = self._mind.next()
        if isinstance(step, Run):
            if step.moved:
                self._binder.release_unused()
            self._let_run(step.member)
        elif isinstance(step, Begin):
            self._begin([self._members[one] for one in step.members])
        elif isinstance(step, Send) and step.apart:
            self._send_apart(step.members[0], step.more)
        elif isinstance(step, Await):
            self._receive(wait=True)
        elif isinstance(step, Send):
            self._binder.release_unused()
            self._send([self._members[one] for one in step.members])
        elif isinstance(step, Finish):
            self._binder.release_unused()
            self._finish([self._members[one] for one in step.members])

    def _begin(self, members: Sequence[_Member]) -> None:
        """Another pass is expected if any of them does one; rows are those of all."""
        told = [one.joins for one in members]
        ends = [end for _, end, _ in told if end is not None]
        end = None if not ends else 0 if 0 in ends else max(ends)
        if self._sharing is not None:
            number = self._sharing.number()
            for one in members:
                one.noted.number = number
        try:
            self._binder.supply.forecast(any(more for more, _, _ in told), end)
            rows, tokens = sum(extent[0] for _, _, extent in told), max(extent[1] for _, _, extent in told)
            self._binder.supply.pass_started(rows, tokens)
        except Exception as error:  # each of them raises it
            for one in members:
                one.thrown = error

    def _send(self, members: Sequence[_Member]) -> None:
        hops = [one.hop for one in members if one.hop is not None]
        board, _ = hops[0]
        assert self._sharing is not None
        while board in self._sent:  # for one that has failed meanwhile
            self._receive(wait=True)
        try:
            given = self._sharing.far.run(board, [hop for _, hop in hops])
        except Exception as error:  # each of them raises it
            for one in members:
                one.thrown = error
            return
        for one, states in zip(members, given, strict=True):
            one.given = states

    def _send_apart(self, number: int, more: bool) -> None:
        one = self._members[number]
        assert one.hop is not None
        assert self._sharing is not None
        board, hop = one.hop
        try:
            self._sharing.far.send(board, hop, more)
            self._sent[board] = number
        except Exception as error:  # its own
            one.thrown = error
            self._mind.returned(number, board)

    def _receive(self, wait: bool) -> None:
        """Answers to what was sent apart, also for those who have failed meanwhile: only then is the board free."""
        assert self._sharing is not None
        try:
            arrived = self._sharing.far.arrived(wait)
        except Exception as error:
            sent, self._sent = self._sent, {}
            for board, number in sent.items():
                if number in self._members:
                    self._members[number].thrown = error
                self._mind.returned(number, board)
            return
        for board, found in arrived:
            number = self._sent.pop(board)
            one = self._members.get(number)
            if one is not None and isinstance(found, Exception):
                one.thrown = found
            elif one is not None and not isinstance(found, Exception):
                one.given = found
            self._mind.returned(number, board)

    def _finish(self, members: Sequence[_Member]) -> None:
        try:
            self._binder.supply.pass_ended(bool(members))
        except Exception as error:  # of no request it is known whether its pass was right
            for one in members:
                one.thrown = error

    def _let_run(self, number: int) -> None:
        one = self._members[number]
        self._binder.now, self._running = one.holding, one
        if self._sharing is not None:
            self._sharing.now = one.noted
        torch.set_rng_state(one.random)
        one.go.release()
        self._back.acquire()
        one.random = torch.get_rng_state()
        if one.has_ended:
            one.thread.join()
            self._mind.go(number)
            del self._members[number]
            if one.part_of is None:
                self._ended.append(Ended(number, one.error))
            else:
                self._part_ended(number, one.part_of, one.error)

    def _part_ended(self, number: int, parts: _Parts, error: BaseException | None) -> None:
        """One that fails ends the others: what follows builds upon it."""
        parts.members.remove(number)
        if error is not None and parts.error is None:
            parts.error = error
            for other in parts.members:
                self._members[other].thrown = error
                self._mind.drop(other)
        if not parts.members and self._breaks_off is None:
            self._mind.wake(parts.owner)

    # --- for the request that runs

    def join(self, more: bool, end: int | None, extent: tuple[int, int]) -> None:
        self._current.joins = more, end, extent
        self._wait(self._mind.join)

    def want(self, unit: int) -> None:
        self._wait(self._mind.want, unit)

    def leave(self, complete: bool) -> None:
        if complete:
            self._wait(self._mind.leave)
        elif self._breaks_off is None:
            self._mind.drop(self._current.number)

    def hop(self, stretch: Stretch, hop: Hop) -> torch.Tensor:
        one = self._current
        one.hop = stretch.board, hop
        # One of several layers would be read for each of them, unless the board keeps them all.
        alone = stretch.last == stretch.first + 1 and self._in_parts
        assert self._sharing is not None
        apart = alone or self._sharing.far.keeps_all(stretch.board)
        self._wait(self._mind.hop, self._unit_of(stretch.first), stretch.board if apart else "")
        given, one.hop, one.given = one.given, None, None
        assert given is not None
        return given

    def together(self, works: Sequence[Callable[[], None]]) -> None:
        """Parts of the request, each in a thread of its own, in this order at every unit; returns when all have ended.

        Raises what the first one raised that failed. The passes of all of them count as one.
        """
        one = self._current
        numbers = [next(self._parts) for _ in works]
        parts = _Parts(one.noted.member, list(numbers))
        for chunk, (number, work) in enumerate(zip(numbers, works, strict=True)):
            self.start(number, work)
            part = self._members[number]
            part.part_of, part.noted = parts, Noted(one.noted.member, chunk)
            part.holding.passes_left = one.holding.passes_left
        if one.holding.passes_left:
            one.holding.passes_left -= 1
        self._in_parts += 1
        try:
            self._wait(self._mind.set_aside)
        finally:
            self._in_parts = max(0, self._in_parts - 1)
        if parts.error is not None:
            raise parts.error

    @property
    def in_order(self) -> bool:
        """Chunks of a prompt fill one cache."""
        return self._running is not None and self._running.part_of is not None

    @property
    def _current(self) -> _Member:
        assert self._running is not None
        return self._running

    def _wait(self, say: Callable[..., None], *what: int | str) -> None:
        """Say where the request stands, and let others run until it is its turn again."""
        one = self._current
        if self._breaks_off is not None:
            raise self._breaks_off
        say(one.number, *what)
        self._back.release()
        one.go.acquire()
        thrown, one.thrown = one.thrown or self._breaks_off, None
        if thrown is not None:
            raise thrown

    def _work(self, one: _Member, work: Callable[[], None]) -> None:
        one.go.acquire()
        try:
            torch.set_num_threads(self._threads)  # of OpenMP's, each thread has a number of its own
            if one.thrown is not None:
                raise one.thrown
            if self._breaks_off is None:
                work()
        except BaseException as error:  # whoever owns the turns decides
            one.error = error
        one.has_ended = True
        self._back.release()
