"""The planner of several boards: from what was measured of them to who runs which layers, and who reads for whom.

`plan` searches, `contiguous_plan` only among one stretch per board, `given_plan` forecasts what a user has named.
Boards that would not help are left out, and it is said why. What is fast is known to `core.cluster.forecast` alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hermes_mp.core.cluster.all_deals import try_all_deals
from hermes_mp.core.cluster.borrowing import memory_beside, readers_of
from hermes_mp.core.cluster.cluster import BoardPlan, Cluster, ClusterPlan, LeftOut, Lending
from hermes_mp.core.cluster.deals import hops_of, least_budget, owners_of, stretches_of
from hermes_mp.core.cluster.forecast import Load, Pass, Way
from hermes_mp.core.cluster.reasons import why_left_out, why_useless
from hermes_mp.core.cluster.search import Genes, Search
from hermes_mp.core.cluster.stretches import Stretch
from hermes_mp.errors import BadOption, BudgetTooSmall, CannotBeCut

PROMPT_TOKENS = 32
LEAST_GAIN = 0.05  # of a pass, by a lender: forecasts are off by as much, and another board can be lost
CONTIGUOUS_WORK, POLISH_WORK = 300_000, 60_000  # units walked over
FORCED_WORK = 20_000  # to find what a board would make of it that is left out, each
MOST_ROUNDS_OF_REASONS = 3  # where a forced board turns out to help


def plan(cluster: Cluster, prompt_tokens: int = PROMPT_TOKENS) -> ClusterPlan:
    """The fastest way that was found. Raises BudgetTooSmall or CannotBeCut where there is none."""
    search = Search(cluster)
    search.everything()
    contiguous = Search(cluster, most_rounds=1, work=CONTIGUOUS_WORK)  # where rounds lead astray
    contiguous.everything()
    search.better(contiguous.best(), POLISH_WORK)
    try_all_deals(search)
    return _searched(cluster, search, prompt_tokens)


def plan_lending(cluster: Cluster, prompt_tokens: int = PROMPT_TOKENS) -> ClusterPlan:
    """As `plan` without lenders; those that it leaves out may then lend their disks, where that is worth it."""
    found = plan(replace(cluster, lenders=frozenset()), prompt_tokens)
    if not found.left_out:
        return found
    other = plan(replace(cluster, lenders=frozenset(found.left_out)), prompt_tokens)
    return other if other.lendings and other.seconds < found.seconds * (1 - LEAST_GAIN) else found


def contiguous_plan(cluster: Cluster, prompt_tokens: int = PROMPT_TOKENS) -> ClusterPlan:
    """The fastest with at most one stretch for each board. Raises as `plan` does."""
    search = Search(cluster, most_rounds=1)
    search.everything()
    return _searched(cluster, search, prompt_tokens)


def given_plan(
    cluster: Cluster,
    stretches: Sequence[Stretch],
    lendings: Sequence[Lending] = (),
    prompt_tokens: int = PROMPT_TOKENS,
) -> ClusterPlan:
    """This deal, with the windows that suit it best.

    Raises BadOption for a deal that is none, BudgetTooSmall for one that a named board has no room for, CannotBeCut
    for a board that has nothing to read from.
    """
    search = Search(cluster)
    for lending in lendings:
        lender, receiver = cluster.number(lending.lender), cluster.number(lending.receiver)
        if lender == receiver or not 0 < lending.share <= 1 or lending.loaders < 1:
            raise BadOption(f"{lending.lender} cannot lend {lending.share:g} of its disk to {lending.receiver}")
        if sum(one.share for one in lendings if one.lender == lending.lender) > 1:
            raise BadOption(f'the board "{lending.lender}" would lend more than its whole disk')
        if cluster.boards[lender].disk_nbytes_per_s is None:
            raise BadOption(f'the board "{lending.lender}" has no copy of the model to lend')
    way = Way(owners_of(cluster, stretches), (0,) * len(cluster.boards), tuple(lendings))
    if search.forecaster.steady(way) is None:
        raise _does_not_fit(cluster, way)
    return _planned(search, search.widen(way), prompt_tokens, {})


def _searched(cluster: Cluster, search: Search, prompt_tokens: int) -> ClusterPlan:
    search.better(search.best(), POLISH_WORK)
    best = search.best()
    if best is None:
        raise _nothing_fits(cluster)
    forced: dict[int, tuple[float, Way | None]] = {}
    for _ in range(MOST_ROUNDS_OF_REASONS):
        forced = {board: _forced(search, best, board) for board in _unused(cluster, best)}
        better = search.best()
        if better is None or better == best:
            break
        best = better
    found = search.forecaster.steady(best)
    assert found is not None
    left_out: dict[str, LeftOut] = {}
    for board in _unused(cluster, best):
        seconds, way = forced[board] if board in forced else _forced(search, best, board)
        name = cluster.boards[board].name
        if way is None:
            left_out[name] = LeftOut(name, why_useless(cluster, board))
        else:
            left_out[name] = LeftOut(name, why_left_out(cluster, board, way, seconds, found.seconds), seconds)
    return _planned(search, best, prompt_tokens, left_out)


def _unused(cluster: Cluster, way: Way) -> list[int]:
    used = {cluster.head, *way.owners, *(cluster.number(one.lender) for one in way.lendings)}
    return [board for board in range(len(cluster.boards)) if board not in used]


def _forced(search: Search, best: Way, board: int) -> tuple[float, Way | None]:
    """The fastest way in which this board has a layer, and all others may go on as they did."""
    tried: list[tuple[float, Way]] = []
    for layer in range(search.layers):
        if layer in (0, search.layers - 1) or best.owners[layer] != best.owners[layer - 1] or search.layers < 16:
            way = replace(best, owners=(*best.owners[:layer], board, *best.owners[layer + 1 :]))
            if search.most_rounds > 1 or len(stretches_of(search.cluster, way.owners)) == len(set(way.owners)):
                tried.append((search.consider(way), way))
    counts = Counter(best.owners)
    giver = max(counts, key=lambda one: counts[one])
    counts[giver] -= 1
    counts[board] += 1
    order = tuple(dict.fromkeys((search.cluster.head, *best.owners, board)))
    stretches = Counter(stretch.board for stretch in stretches_of(search.cluster, best.owners))
    genes = Genes(
        tuple(counts[one] for one in range(len(search.cluster.boards))),
        max(stretches.values()), order, best.windows, best.lendings,
    )  # fmt: skip
    seconds, genes = search.climb(genes, search.forecaster.steps + FORCED_WORK, must=board)
    tried.append((seconds, genes.way()))
    seconds, way = min(tried, key=lambda one: one[0])
    return (seconds, way) if seconds < math.inf else (math.inf, None)


def _planned(search: Search, way: Way, prompt_tokens: int, left_out: dict[str, LeftOut]) -> ClusterPlan:
    cluster, forecaster = search.cluster, search.forecaster
    found, loads = forecaster.steady(way), forecaster.loads(way)
    first = forecaster.first(way, prompt_tokens)
    assert found is not None
    assert loads is not None
    assert first is not None
    boards = [_board(cluster, way, loads, found, board) for board in range(len(cluster.boards))]
    used = [one for board, one in enumerate(boards) if board not in _unused(cluster, way)]
    head = cluster.boards[cluster.head].name
    alone = search.widen(Way((cluster.head,) * search.layers, (0,) * len(cluster.boards)))
    alone_s = search.consider(alone)
    return ClusterPlan(
        stretches=stretches_of(cluster, way.owners),
        boards=tuple(sorted(used, key=lambda one: one.board != head)),
        lendings=way.lendings,
        seconds=found.seconds,
        first_s=first.seconds,
        prompt_tokens=prompt_tokens,
        alone_s=alone_s if alone_s < math.inf else None,
        left_out=left_out,
    )


def _board(cluster: Cluster, way: Way, loads: Sequence[Load | None], found: Pass, board: int) -> BoardPlan:
    facts, load = cluster.boards[board], loads[board]
    borrowed = _lent(cluster, way, loads)
    remote = sum(nbytes for one, nbytes in borrowed.items() if one.receiver == facts.name)
    lent = sum(nbytes for one, nbytes in borrowed.items() if one.lender == facts.name)
    streamed = load.streamed_nbytes if load else 0
    own_nbytes = streamed - remote + lent
    states = 2 * cluster.model.hidden_nbytes_per_token
    over_link, rate = lent + remote, cluster.receives_nbytes_per_s(board)
    if facts.is_head:
        over_link += hops_of(cluster, way.owners) * states
    else:
        over_link += sum(one.board == facts.name for one in stretches_of(cluster, way.owners)) * states
    peak = load.peak_nbytes if load else memory_beside(cluster, board, 0, way.lendings)
    sizes = load.units if load else ()
    residents = sorted(load.residents) if load else []
    return BoardPlan(
        board=facts.name,
        layers=tuple((s.first, s.last) for s in stretches_of(cluster, way.owners) if s.board == facts.name),
        units=len(sizes),
        slots=load.slots if load else 0,
        window=load.window if load else 0,
        residents=tuple(residents),
        resident_nbytes=sum(sizes[unit] for unit in residents),
        streamed_nbytes=streamed,
        lent_nbytes=lent,
        remote_nbytes=remote,
        disk_share=own_nbytes / facts.disk_nbytes_per_s / found.seconds if facts.disk_nbytes_per_s else 0.0,
        link_share=over_link / rate / found.seconds if rate else 0.0,
        compute_share=load.compute_s / found.seconds if load else 0.0,
        stall_share=found.stalled[board] / found.seconds,
        peak_nbytes=peak - (facts.idle_nbytes if load else 0),
    )


def _lent(cluster: Cluster, way: Way, loads: Sequence[Load | None]) -> dict[Lending, int]:
    """Bytes of a pass that come by each lending: readers that are never idle share them by their rates."""
    found: dict[Lending, int] = {}
    for one in way.lendings:
        board = cluster.number(one.receiver)
        load = loads[board]
        others = tuple(other for other in way.lendings if other != one)
        total = sum(rate for rate, _ in readers_of(cluster, board, way.lendings))
        alone = sum(rate for rate, _ in readers_of(cluster, board, others))
        if load is not None and total:
            found[one] = round(load.streamed_nbytes * max(0.0, total - alone) / total)
    return found


def _nothing_fits(cluster: Cluster) -> BudgetTooSmall | CannotBeCut:
    head, layers = cluster.head, len(cluster.model.layer_nbytes)
    facts = cluster.boards[head]
    if all(board.disk_nbytes_per_s is None for board in cluster.boards):
        return CannotBeCut("no board has a copy of the model", "copy its files to one of them")
    own, alone = least_budget(cluster, head, 0), least_budget(cluster, head, layers)
    if facts.budget_nbytes < own:
        text = f"for the head's own part (embedding and vocabulary head) it is {_mib(own)}"
    else:
        text = "the other boards have too little room for what is left"
    return BudgetTooSmall(
        f'{_mib(facts.budget_nbytes)} on the head "{facts.name}" are too little; the smallest budget to run all '
        f"{layers} layers there is {_mib(alone)}; {text}",
        "raise its --memory, or lower --context or --batch",
    )


def _does_not_fit(cluster: Cluster, way: Way) -> BudgetTooSmall | CannotBeCut:
    for board, facts in enumerate(cluster.boards):
        layers = way.owners.count(board)
        if not layers and board != cluster.head:
            least = memory_beside(cluster, board, 0, way.lendings)
            if facts.budget_nbytes < least:
                return BudgetTooSmall(
                    f'{_mib(facts.budget_nbytes)} on "{facts.name}" are too little to lend its disk; '
                    f"the smallest budget for that is {_mib(least)}",
                    "raise its --memory, or let another board lend",
                )
            continue
        if not readers_of(cluster, board, way.lendings):
            return CannotBeCut(
                f'the board "{facts.name}" has no copy of the model and nobody lends to it', "copy the files there"
            )
        least = least_budget(cluster, board, layers, way.lendings)
        if facts.budget_nbytes < least:
            return BudgetTooSmall(
                f'{_mib(facts.budget_nbytes)} on "{facts.name}" are too little for {layers} layers; '
                f"the smallest budget for them is {_mib(least)}",
                "raise its --memory, or give it fewer layers",
            )
    raise AssertionError("a deal that fits was refused")


def _mib(nbytes: int) -> str:
    return f"{-(-nbytes // (1 << 20))} MiB"
