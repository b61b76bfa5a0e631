"""The search for the fastest way over several boards: a few good deals, bettered step by step.

Boards are tried in sets, the most promising first, until the ideal of the next is no better than what was found. The
work is counted, not timed, so that the same question has the same answer. It knows no words and no plan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hermes_mp.core.budget import WINDOW_NBYTES
from hermes_mp.core.cluster.cluster import Cluster, Lending
from hermes_mp.core.cluster.deals import hops_of, ideal, in_rounds
from hermes_mp.core.cluster.forecast import Forecaster, Way

TOLERANCE = 0.01  # a way that is better by less is no better: then fewer boards, fewer hops, longer stretches win
WORK = 300_000  # units walked over in all: about 0.2 s on one core of a server
MANY_BOARDS = 8  # of more not all sets are looked at
FEW_LAYERS = 24  # a step moves one layer; of more, four come first
MOST_CLIMBS = 12
FEW_MOVES, FEW_STRETCHES = 200, 10  # up to which a step may lead anywhere
ANY_SLOTS = 1 << 20  # a window of as many slots as there are
SHARES = (0.25, 0.5, 0.75)  # of the disk of a board that both lends and runs layers
MOST_LOADERS = 4


@dataclass(frozen=True)
class Genes:
    """A way in few words: how many layers each board has, dealt in so many rounds, in this order of boards."""

    counts: tuple[int, ...]
    rounds: int
    order: tuple[int, ...]
    windows: tuple[int, ...]
    lendings: tuple[Lending, ...]

    def way(self) -> Way:
        return Way(in_rounds(self.counts, self.rounds, self.order), self.windows, self.lendings)


class Search:
    """Ways that were tried over one cluster. `most_rounds`: 1 for contiguous deals only."""

    def __init__(self, cluster: Cluster, most_rounds: int | None = None, work: int = WORK) -> None:
        self.cluster = cluster
        self.forecaster = Forecaster(cluster)
        self.layers = len(cluster.model.layer_nbytes)
        self.most_rounds = most_rounds or self.layers
        self.work = work
        self.least_s = math.inf
        self._kept: dict[tuple[int, int], tuple[float, Way]] = {}  # the best by number of boards and of hops

    def consider(self, way: Way) -> float:
        """Seconds of a token; infinite where it cannot be."""
        found = self.forecaster.steady(way)
        if found is None:
            return math.inf
        self.least_s = min(self.least_s, found.seconds)
        boards = len({self.cluster.head, *way.owners}) + _lending_only(self.cluster, way)
        key = (boards, hops_of(self.cluster, way.owners))
        if found.seconds < self._kept.get(key, (math.inf,))[0] * (1 - 1e-9):
            self._kept[key] = (found.seconds, way)
        return found.seconds

    def best(self) -> Way | None:
        """Of those that are as fast as any, the one with the fewest boards, then hops."""
        good = [item for item in self._kept.items() if item[1][0] <= self.least_s * (1 + TOLERANCE)]
        return min(good)[1][1] if good else None

    def everything(self) -> None:
        """All sets of boards, then lenders, then each step that betters the best; at last all deals, where few."""
        kept: list[tuple[float, Genes]] = []
        nbytes = self.cluster.model.layer_nbytes
        equal = min(nbytes) / max(nbytes)  # the ideal is that of equal layers: no bound where they are not
        for bound_s, boards, lendings in self._sets():
            if bound_s * equal > self.least_s * (1 + TOLERANCE) or self.forecaster.steps > self.work * 0.4:
                break
            kept += self.seeds(boards, lendings)
        kept.sort(key=lambda item: item[0])
        climbed: list[tuple[float, Genes]] = []
        for _, genes in kept[:MOST_CLIMBS]:
            climbed.append(self.climb(genes, self.work * 0.6))
        if climbed:
            self._lend(*min(climbed, key=lambda item: item[0]))
        for _, genes in sorted(climbed, key=lambda item: item[0])[1:]:
            self.polish(genes.way(), self.forecaster.steps + self.work * 0.05)
        best = self.best()
        if best is not None:
            self.polish(best, self.work)

    def seeds(self, boards: Sequence[int], lendings: tuple[Lending, ...]) -> list[tuple[float, Genes]]:
        """What the ideal deal to these boards comes to, in several numbers of rounds; the best of them."""
        wished = ideal(self.cluster, boards, lendings)
        if wished is None:
            return []
        order = tuple(sorted(boards, key=lambda board: board != self.cluster.head))
        found = []
        for counts in dict.fromkeys((wished.cheap, wished.even, wished.held)):
            for rounds in self._rounds(counts):
                for window in (0, -(-max(counts) // rounds) + 1, ANY_SLOTS):
                    genes = Genes(counts, rounds, order, (window,) * len(self.cluster.boards), lendings)
                    found.append((self.consider(genes.way()), genes))
        return sorted((one for one in found if one[0] < math.inf), key=lambda one: one[0])[:1]

    def climb(self, genes: Genes, work: float, must: int | None = None) -> tuple[float, Genes]:
        """Step by step to what no single step betters; the board `must` keeps a layer."""
        seconds = self.consider(genes.way())
        step = 4 if self.layers > FEW_LAYERS else 1
        while self.forecaster.steps < work:
            for near in self._near(genes, step):
                if must is not None and not near.counts[must]:
                    continue
                found = self.consider(near.way())
                if found < seconds * (1 - 1e-4):
                    seconds, genes = found, near
                    break
                if self.forecaster.steps >= work:
                    break
            else:
                if step == 1:
                    break
                step = 1
        return seconds, genes

    def polish(self, way: Way, work: float) -> Way:
        """Moves single ends of stretches, and windows, as long as that betters it."""
        seconds, bettered = self.consider(way), True
        while bettered and self.forecaster.steps < work:
            bettered = False
            for near in itertools.chain(self._ends(way), self._windows(way)):
                found = self.consider(near)
                if found < seconds * (1 - 1e-4):
                    seconds, way, bettered = found, near, True
                    break
                if self.forecaster.steps >= work:
                    break
        return way

    def better(self, way: Way | None, work: float) -> None:
        """What another search has found, polished and with the best windows."""
        if way is not None:
            self.widen(self.polish(way, self.forecaster.steps + work))

    def widen(self, way: Way) -> Way:
        """The same deal with the best windows."""
        seconds, bettered = self.consider(way), True
        for window in (2, 4, 8, ANY_SLOTS):
            near = replace(way, windows=(window,) * len(self.cluster.boards))
            if (found := self.consider(near)) < seconds * (1 - 1e-4):
                seconds, way = found, near
        while bettered:
            bettered = False
            for near in self._windows(way):
                if (found := self.consider(near)) < seconds * (1 - 1e-4):
                    seconds, way, bettered = found, near, True
                    break
        return way

    def _sets(self) -> list[tuple[float, tuple[int, ...], tuple[Lending, ...]]]:
        """Sets of boards, with what the head must borrow, by what no deal to them can be below."""
        head, others = self.cluster.head, [n for n, board in enumerate(self.cluster.boards) if not board.is_head]
        usable = [board for board in others if self.cluster.boards[board].disk_nbytes_per_s is not None]
        chosen: list[tuple[int, ...]] = []
        if len(usable) < MANY_BOARDS:
            for count in range(len(usable) + 1):
                chosen += itertools.combinations(usable, count)
        else:  # those first that alone help the head most
            alone = {board: ideal(self.cluster, (head, board), ()) for board in usable}
            usable.sort(key=lambda board: one.seconds if (one := alone[board]) else math.inf)
            chosen = [tuple(usable[:count]) for count in range(len(usable) + 1)]
        found = []
        for boards in chosen:
            for lendings in self._head_borrows(boards):
                limit = ideal(self.cluster, (head, *boards), lendings)
                if limit is not None:
                    found.append((limit.seconds, (head, *boards), lendings))
        return sorted(found, key=lambda one: (one[0], len(one[1])))

    def _head_borrows(self, boards: Sequence[int]) -> Iterator[tuple[Lending, ...]]:
        """Nothing, or, where it has no copy of its own, from any one board."""
        if self.cluster.boards[self.cluster.head].disk_nbytes_per_s is not None:
            yield ()
            return
        for lender in range(len(self.cluster.boards)):
            if self.cluster.may_lend(lender):
                for share in SHARES if lender in boards else (1.0,):
                    yield (self.lending(lender, self.cluster.head, share),)

    def lending(self, lender: int, receiver: int, share: float = 1.0) -> Lending:
        """As many remote loaders as keep the link full."""
        link = self.cluster.between(lender, receiver)
        rate = min(link.nbytes_per_s, (self.cluster.boards[lender].disk_nbytes_per_s or 0.0) * share)
        loaders = min(MOST_LOADERS, max(1, math.ceil(rate * link.round_trip_s / WINDOW_NBYTES)))
        names = self.cluster.boards[lender].name, self.cluster.boards[receiver].name
        return Lending(*names, share, loaders)

    def _lend(self, seconds: float, genes: Genes) -> None:
        """Boards without layers lend their disks, one after the other, where that pays; also to boards without one."""
        while self.forecaster.steps < self.work * 0.85:
            stages = {self.cluster.head, *(board for board, count in enumerate(genes.counts) if count)}
            busy = {one.lender for one in genes.lendings}
            best: tuple[float, Genes] | None = None
            for lending in self._offers(stages, busy):
                receiver = self.cluster.number(lending.receiver)
                lendings = (*genes.lendings, lending)
                found = self.seeds(sorted(stages | {receiver}), lendings)
                kept = replace(genes, lendings=lendings)
                found.append((self.consider(kept.way()), kept))
                first = min(found, key=lambda one: one[0])
                if first[0] < seconds * (1 - TOLERANCE) and (best is None or first[0] < best[0]):
                    best = first
                if self.forecaster.steps > self.work * 0.85:
                    break
            if best is None:
                return
            seconds, genes = self.climb(best[1], self.work * 0.85)

    def _offers(self, stages: set[int], busy: set[str]) -> Iterator[Lending]:
        """A board without layers to one with layers; to one without a copy any board, with a part of its disk."""
        for lender, facts in enumerate(self.cluster.boards):
            if facts.name in busy or not self.cluster.may_lend(lender):
                continue
            for receiver, takes in enumerate(self.cluster.boards):
                fed = takes.disk_nbytes_per_s is not None
                if lender == receiver or (self.cluster.only_head_borrows and not takes.is_head):
                    continue
                if lender in stages:
                    if not fed and receiver not in stages:
                        yield from (self.lending(lender, receiver, share) for share in SHARES)
                elif receiver in stages or not fed:
                    yield self.lending(lender, receiver)

    def _rounds(self, counts: Sequence[int]) -> list[int]:
        most = min(max(counts), self.most_rounds)
        return [rounds for rounds in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48) if rounds < most] + [max(1, most)]

    def _near(self, genes: Genes, step: int) -> Iterator[Genes]:
        """One step away: layers that move, one round more or less, other windows, another order."""
        found = self.forecaster.steady(genes.way())
        stalled = found.stalled if found is not None else (0.0,) * len(genes.counts)
        waited = sorted(genes.order, key=lambda board: -stalled[board])
        for giver in waited:
            for taker in reversed(waited):
                moved = min(step, genes.counts[giver])
                if giver != taker and moved:
                    counts = list(genes.counts)
                    counts[giver] -= moved
                    counts[taker] += moved
                    yield replace(genes, counts=tuple(counts))
        for rounds in (genes.rounds - 1, genes.rounds + 1, genes.rounds * 2):
            if 1 <= rounds <= min(self.most_rounds, max(genes.counts)) and rounds != genes.rounds:
                yield replace(genes, rounds=rounds)
        for way in self._windows(genes.way()):
            yield replace(genes, windows=way.windows)
        for at in range(len(genes.order) - 1):
            order = list(genes.order)
            order[at], order[at + 1] = order[at + 1], order[at]
            yield replace(genes, order=tuple(order))

    def _ends(self, way: Way) -> Iterator[Way]:
        """A layer goes to a stretch beside it, or, where there are few, to any board; a stretch goes elsewhere."""
        owners, runs = way.owners, sorted({self.cluster.head, *way.owners})
        few = self.most_rounds > 1 and len(owners) * len(runs) <= FEW_MOVES
        for layer, owner in enumerate(owners):
            beside = {owners[max(0, layer - 1)], owners[min(layer + 1, len(owners) - 1)]}
            for board in runs if few else sorted(beside):
                if board != owner:
                    yield replace(way, owners=(*owners[:layer], board, *owners[layer + 1 :]))
        stretches = [tuple(run) for _, run in itertools.groupby(owners)]
        if len(stretches) <= FEW_STRETCHES or not few:
            for at, run in enumerate(stretches):
                others = stretches[:at] + stretches[at + 1 :]
                places = range(len(stretches)) if len(stretches) <= FEW_STRETCHES else (at + 1,)
                for place in places:
                    if place != at:
                        yield replace(way, owners=tuple(itertools.chain(*others[:place], run, *others[place:])))

    def _windows(self, way: Way) -> Iterator[Way]:
        """Of one board each: narrower, wider, and twice as wide."""
        for load in self.forecaster.loads(way) or ():
            if load is not None and load.window:
                for window in (load.window - 1, load.window + 1, load.window * 2):
                    if 2 <= window <= load.slots:
                        yield replace(way, windows=_with(way.windows, load.board, window))


def _with(windows: tuple[int, ...], board: int, window: int) -> tuple[int, ...]:
    return (*windows[:board], window, *windows[board + 1 :])


def _lending_only(cluster: Cluster, way: Way) -> int:
    runs = {cluster.boards[board].name for board in (cluster.head, *way.owners)}
    return len({one.lender for one in way.lendings} - runs)
