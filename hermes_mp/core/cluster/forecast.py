"""Forecasts passes over several boards: whose turn it is, what every disk reads meanwhile, as times in order.

Computing is one chain, through stretch after stretch. Each board reads the units of its own layers ahead, in a cycle,
as far as its window goes: a read begins when a slot is free and a reader idle, whoever's turn it is. So every time
follows from earlier ones, and a pass is one walk over the units (as `core.forecast`, without what slows one another).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hermes_mp.core.budget import MIN_SLOTS, slot_cost
from hermes_mp.core.cluster.borrowing import memory_beside, readers_of
from hermes_mp.core.cluster.cluster import Cluster, Lending
from hermes_mp.core.planner import ORDER_S, READ_S, UNIT_S
from hermes_mp.core.residents import choose_residents

MOST_PASSES = 10
KEPT = 500  # loads, and passes, that are remembered: all of a search would be tens of megabytes of the head's budget
AGREE = 0.0005  # passes after which nothing has moved by more, as a share of a pass, are the steady state

# The units of one layer on its board: seconds compute holds each, bytes to read once it is released (None: a resident).
Piece = tuple[tuple[float, float | None], ...]


@dataclass(frozen=True)
class Way:
    """A way to run: the board of every layer, the window of every board (0: the narrowest), and who lends to whom."""

    owners: tuple[int, ...]
    windows: tuple[int, ...]
    lendings: tuple[Lending, ...] = ()


@dataclass(frozen=True)
class Load:
    """What one board has to do in a pass of a way. `readers`: see `readers_of`."""

    board: int
    layers: int
    units: tuple[int, ...]
    slots: int
    window: int
    residents: frozenset[int]
    readers: tuple[tuple[float, float], ...]
    ahead: tuple[int, ...]  # the first units to read, as far as the window goes
    before: Piece
    pieces: tuple[Piece, ...]
    after: Piece
    compute_s: float
    streamed_nbytes: int
    peak_nbytes: int

    @property
    def reading_s(self) -> float:
        """Of all readers, busy all the time: no pass is shorter."""
        streamed = len(self.units) - len(self.residents)
        rate = sum(rate for rate, _ in self.readers)
        return self.streamed_nbytes / rate + READ_S * streamed / len(self.readers) if streamed else 0.0


@dataclass(frozen=True)
class Pass:
    """Seconds of a pass, and how many of them each board's units were waited for."""

    seconds: float
    stalled: tuple[float, ...]


class Forecaster:
    """Forecasts ways over one cluster. `steps` counts the work that was done, in units walked over."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.steps = 0
        self._head = cluster.head
        self._hops: dict[int, list[float]] = {}
        self._passes: dict[Way, Pass | None] = {}
        self._loads: dict[tuple[int, tuple[int, ...], int, tuple[Lending, ...], int], Load | None] = {}

    def steady(self, way: Way) -> Pass | None:
        """A token in the steady state; None where the way fits no budget, or a board has nothing to read from."""
        if way not in self._passes:
            loads = self.loads(way)
            _make_room(self._passes)
            self._passes[way] = None if loads is None else self._walk(way, loads, tokens=0)
        return self._passes[way]

    def first(self, way: Way, tokens: int) -> Pass | None:
        """The pass over a prompt, from nothing loaded on any board."""
        loads = self.loads(way, max(1, tokens))
        return None if loads is None else self._walk(way, loads, max(1, tokens))

    def loads(self, way: Way, first_tokens: int = 0) -> list[Load | None] | None:
        """What each board has to do, None for one without a part; None for all where one cannot."""
        layers: list[list[int]] = [[] for _ in self.cluster.boards]
        for layer, board in enumerate(way.owners):
            layers[board].append(layer)
        found: list[Load | None] = []
        for board, own in enumerate(layers):
            name = self.cluster.boards[board].name if way.lendings else ""
            if not own and board != self._head:
                facts = self.cluster.boards[board]
                if name and memory_beside(self.cluster, board, 0, way.lendings) > facts.budget_nbytes:
                    return None
                found.append(None)
                continue
            lendings = tuple(one for one in way.lendings if name in (one.lender, one.receiver))
            key = (board, tuple(own), way.windows[board], lendings, first_tokens)
            if key not in self._loads:
                _make_room(self._loads)
                self._loads[key] = self._load(*key)
                self.steps += 4 * len(own) + 20
            load = self._loads[key]
            if load is None:
                return None
            found.append(load)
        return found

    def _load(
        self, board: int, layers: tuple[int, ...], window: int, lendings: tuple[Lending, ...], first_tokens: int
    ) -> Load | None:
        model, facts = self.cluster.model, self.cluster.boards[board]
        parts = [model.units_of(model.layer_nbytes[layer]) for layer in layers]
        before = model.units_of(model.before_nbytes) if facts.is_head else ()
        after = model.units_of(model.head_nbytes) if facts.is_head else ()
        units = (*before, *(unit for part in parts for unit in part), *after)
        readers = readers_of(self.cluster, board, lendings)
        beside = memory_beside(self.cluster, board, len(layers), lendings)
        # A daemon's slots are as large as its own largest unit: those of a head without layers may be smaller.
        cost = slot_cost(min(model.slot_nbytes, max(units, default=model.slot_nbytes)), len(readers) or 1)
        slots = (facts.budget_nbytes - beside) // cost
        if slots < (MIN_SLOTS if units else 0) or (units and not readers):
            return None
        slots = min(slots, len(units))
        window = min(slots, max(window, MIN_SLOTS, len(readers) + 1))
        residents = frozenset[int](choose_residents(units, slots, window))
        peak = beside + slots * cost
        if first_tokens:
            window, residents = slots, frozenset()  # residents are read as well, and every slot may be read into
        streamed = [unit for number, unit in enumerate(units) if number not in residents]
        if not streamed:
            window = 0
        number = nth = 0

        def piece(sizes: Sequence[int], seconds: float) -> Piece:
            nonlocal number, nth
            steps: list[tuple[float, float | None]] = []
            for _ in sizes:
                read = None
                if number not in residents:
                    ahead = nth + window
                    read = 0.0 if first_tokens and ahead >= len(streamed) else streamed[ahead % len(streamed)]
                    nth += 1
                steps.append((seconds / len(sizes) + (0.0 if read is None else UNIT_S), read))
                number += 1
            return tuple(steps)

        layer_s = (facts.layer_s + max(0, first_tokens - 1) * facts.prefill_s_per_token) / model.mean_layer_nbytes
        # Python evaluates these in the order of the pass, which is the order of the units.
        found_before = piece(before, 0.0)
        pieces = tuple(
            piece(part, layer_s * model.layer_nbytes[layer]) for layer, part in zip(layers, parts, strict=True)
        )
        found_after = piece(after, facts.head_s) if after else ((facts.head_s, None),) if facts.is_head else ()
        compute_s = sum(hold for one in (found_before, *pieces, found_after) for hold, _ in one)
        return Load(
            board, len(layers), units, slots, window, residents, readers, tuple(streamed[:window]), found_before,
            pieces, found_after, compute_s, sum(streamed), peak,
        )  # fmt: skip

    def _walk(self, way: Way, loads: Sequence[Load | None], tokens: int) -> Pass:
        steps, tail_s = self._chain(way, loads, max(1, tokens))
        readers = [_Readers(load) for load in loads if load is not None]
        mine = {one.board: one for one in readers}
        order = [(lead_s, mine[board], hold_s, nbytes) for board, lead_s, hold_s, nbytes in steps]
        now, passes, places, before = 0.0, 0, [0.0] * len(readers), 0.0
        lengths: list[float] = []
        while True:
            began = now
            for lead_s, own, hold_s, nbytes in order:
                now += lead_s
                ready = own.ready.popleft()
                if ready > now:
                    own.stalled += ready - now
                    now = ready
                now += hold_s
                own.order(now, nbytes)
            now += tail_s
            passes += 1
            self.steps += len(order) + 10
            lengths.append(now - began)
            if tokens:
                break
            moved = max((abs(one.last - now - place) for one, place in zip(readers, places, strict=True)), default=0.0)
            settled = passes > 1 and max(moved, abs(lengths[-1] - before)) <= AGREE * lengths[-1]
            if settled or passes == MOST_PASSES:
                break
            places, before = [one.last - now for one in readers], lengths[-1]
            for one in readers:
                one.stalled = 0.0
        seconds = lengths[-1]
        if passes == MOST_PASSES:  # it swings
            seconds = sum(lengths[-4:]) / 4
        least = 0.0 if tokens else max((load.reading_s for load in loads if load is not None), default=0.0)
        stalled = [mine[board].stalled if board in mine else 0.0 for board in range(len(loads))]
        if least > seconds:  # a disk that is a little too slow takes many passes to fall behind
            stalled[max(mine, key=lambda board: _reading_s(loads[board]))] += least - seconds
            seconds = least
        return Pass(seconds, tuple(stalled))

    def _chain(
        self, way: Way, loads: Sequence[Load | None], tokens: int
    ) -> tuple[list[tuple[int, float, float, float]], float]:
        """Streamed units in the order of a pass: board, seconds before it is wanted, seconds held, bytes to read then;
        and the seconds after the last.
        """
        if tokens not in self._hops:
            self._hops[tokens] = [self.cluster.hop_s(board, tokens) / 2 for board in range(len(loads))]
        halves = self._hops[tokens]
        head = self._head
        chain: list[tuple[int, float, float, float]] = []
        lead_s = 0.0
        taken = [0] * len(loads)
        turns = [(head, None), *((board, layer) for layer, board in enumerate(way.owners)), (head, None)]
        previous = head
        for at, (board, layer) in enumerate(turns):
            load = loads[board]
            assert load is not None
            if board != previous:
                lead_s += halves[previous] + halves[board]
                previous = board
            if layer is None:
                piece = load.before if at == 0 else load.after
            else:
                piece = load.pieces[taken[board]]
                taken[board] += 1
            for hold_s, nbytes in piece:
                if nbytes is None:
                    lead_s += hold_s
                else:
                    chain.append((board, lead_s, hold_s, nbytes))
                    lead_s = 0.0
        return chain, lead_s


class _Readers:
    """The local disk of a board and its remote loaders: each next unit is taken by the one that is idle first."""

    __slots__ = ("_free", "_rates", "board", "last", "ready", "stalled")

    def __init__(self, load: Load) -> None:
        self.board, self.stalled, self.last = load.board, 0.0, 0.0
        self.ready: deque[float] = deque()
        self._rates = [(1 / rate, ORDER_S + delay_s) for rate, delay_s in load.readers]
        self._free = [0.0] * len(self._rates)
        for nbytes in load.ahead:
            self.order(0.0, nbytes)

    def order(self, now: float, nbytes: float) -> None:
        """A slot is free now: the next unit goes there."""
        free = self._free
        which = 0
        if len(free) > 1:
            which = min(range(len(free)), key=lambda one: max(free[one], now))
        s_per_byte, order_s = self._rates[which]
        begins = now + order_s
        if free[which] > begins:
            begins = free[which]
        free[which] = self.last = begins + nbytes * s_per_byte + READ_S
        self.ready.append(self.last)


def _make_room(remembered: dict[Any, Any]) -> None:
    """The older half is forgotten once there are too many: a search goes on from what it has just seen."""
    if len(remembered) >= KEPT:
        for key in list(itertools.islice(remembered, KEPT // 2)):
            del remembered[key]


def _reading_s(load: Load | None) -> float:
    return 0.0 if load is None else load.reading_s
