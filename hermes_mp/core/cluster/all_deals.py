"""Every deal of a few layers to a few boards, with every window, where its own bound does not rule it out.

It goes on from what `core.cluster.search` has found, which makes most bounds too high to be tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from hermes_mp.core.cluster.cluster import Cluster, Lending
from hermes_mp.core.cluster.forecast import Way
from hermes_mp.core.cluster.search import TOLERANCE, Search

MOST_DEALS = 5000  # of all sets of boards together
MOST_WORK = 1_500_000  # units walked over: with many slots there are more windows than anybody would wait for


def try_all_deals(search: Search) -> None:
    """Considers them all, unless they are too many or were to be contiguous."""
    layers, cluster, forecaster = search.layers, search.cluster, search.forecaster
    if search.most_rounds < layers:
        return
    sets, deals = [], 0
    for boards, lendings in _sets(search):
        deals += len(boards) ** layers
        if deals > MOST_DEALS:
            return
        sets.append((boards, lendings))
    most_work = forecaster.steps + MOST_WORK
    bounds: list[tuple[float, float, Way]] = []
    for boards, lendings in sets:
        for owners in itertools.product(boards, repeat=layers):
            way = Way(owners, (0,) * len(cluster.boards), lendings)
            loads = [load for load in forecaster.loads(way) or () if load is not None]
            if loads:
                computing = sum(load.compute_s for load in loads) + _hops_s(cluster, owners)
                bounds.append((max(computing, *(load.reading_s for load in loads)), computing, way))
    for bound_s, computing, way in sorted(bounds, key=lambda one: one[0]):
        if bound_s > search.least_s * (1 + TOLERANCE) or forecaster.steps > most_work:
            return
        slots = [load.slots if load and load.window else 0 for load in forecaster.loads(way) or ()]
        for windows in itertools.product(*(range(2, most + 1) if most else (0,) for most in slots)):
            wide = replace(way, windows=windows)
            read_s = max(load.reading_s for load in forecaster.loads(wide) or () if load is not None)
            if max(read_s, computing) <= search.least_s * (1 + TOLERANCE):
                search.consider(wide)


def _hops_s(cluster: Cluster, owners: tuple[int, ...]) -> float:
    return sum(cluster.hop_s(board) for at, board in enumerate(owners) if not at or owners[at - 1] != board)


def _sets(search: Search) -> Iterator[tuple[tuple[int, ...], tuple[Lending, ...]]]:
    """The boards that may run layers, all others with a copy lending their disks: none of them, any, all."""
    cluster, head = search.cluster, search.cluster.head
    copies = [number for number, board in enumerate(cluster.boards) if board.disk_nbytes_per_s is not None]
    may = [board for board in copies if board != head and cluster.may_lend(board)]
    for count in range(len(may) + 1):
        for lenders in itertools.combinations(may, count):
            runs = [board for board in range(len(cluster.boards)) if board not in lenders]
            for receivers in itertools.product([head] if cluster.only_head_borrows else runs, repeat=count):
                fed = {*receivers, *copies}
                if head in fed:
                    lendings = tuple(search.lending(*pair) for pair in zip(lenders, receivers, strict=True))
                    yield tuple(board for board in runs if board in fed), lendings
