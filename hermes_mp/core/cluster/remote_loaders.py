"""How many remote loaders a board that runs alone should have, and whose: each reads another board's disk for it.

They are taken one after the other, the best first, as long as each pays; where none does it says why. It knows the
forecast of `core.cluster.forecast`, and no socket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hermes_mp.core.cluster.cluster import Cluster, Lending
from hermes_mp.core.cluster.forecast import Way
from hermes_mp.core.cluster.planner import LEAST_GAIN
from hermes_mp.core.cluster.reasons import mb_per_s, per_s
from hermes_mp.core.cluster.search import Search
from hermes_mp.core.planner import LOADER_S, LOADER_SHARE


@dataclass(frozen=True)
class RemoteLoaders:
    """What was decided: `seconds` of a token with the `lendings`, `local_s` without (None: it has no copy of its own).

    `declined`: every board that lends nothing, and why in one line.
    """

    lendings: tuple[Lending, ...]
    seconds: float
    local_s: float | None
    declined: dict[str, str]

    @property
    def loaders(self) -> int:
        return sum(one.loaders for one in self.lendings)

    @property
    def factor(self) -> float:
        """How many times as fast as without."""
        return self.local_s / self.seconds if self.local_s is not None else 1.0


def choose_remote_loaders(cluster: Cluster, lenders: Sequence[str] | None = None) -> RemoteLoaders | None:
    """Of these boards (None: of all) those that shall read for the head, which runs all layers.

    None where the head has no room, or nobody a copy. Raises BadOption for a board that is none of the cluster's.
    """
    search = Search(cluster)
    head = cluster.head
    offered = [board for board, facts in enumerate(cluster.boards) if not facts.is_head]
    if lenders is not None:
        offered = [board for board in map(cluster.number, lenders) if board != head]
    able = [board for board in offered if cluster.boards[board].disk_nbytes_per_s is not None]

    def seconds(lendings: tuple[Lending, ...]) -> float:
        alone = Way((head,) * search.layers, (0,) * len(cluster.boards), lendings)
        return search.consider(search.widen(alone))

    local_s = now_s = seconds(())
    chosen: tuple[Lending, ...] = ()
    declined = {
        cluster.boards[board].name: "it has no copy of the model" for board in offered if board not in able
    }  # fmt: skip
    while able:
        tried = {board: seconds((*chosen, search.lending(board, head))) for board in able}
        best = min(able, key=lambda board: tried[board])
        loaders = search.lending(best, head).loaders
        if not tried[best] * (1 + LOADER_SHARE * loaders) + LOADER_S * loaders < now_s * (1 - LEAST_GAIN):
            if now_s < math.inf:
                declined |= {cluster.boards[one].name: _why(cluster, one, tried[one], now_s) for one in able}
            break
        chosen, now_s = (*chosen, search.lending(best, head)), tried[best]
        able.remove(best)
    if now_s == math.inf:
        return None
    return RemoteLoaders(chosen, now_s, local_s if local_s < math.inf else None, declined)


def _why(cluster: Cluster, board: int, with_s: float, now_s: float) -> str:
    facts, here = cluster.boards[board], cluster.boards[cluster.head]
    if with_s == math.inf:
        return "the memory that a remote loader takes is not left in the budget here"
    gives = min(facts.disk_nbytes_per_s or 0.0, cluster.between(board, cluster.head).nbytes_per_s)
    local = "" if here.disk_nbytes_per_s is None else f", the disk here {mb_per_s(here.disk_nbytes_per_s)}"
    return (
        f"it would make it {per_s(with_s, now_s)} token/s instead of {per_s(now_s, with_s)}: "
        f"over the link it gives {mb_per_s(gives)}{local}"
    )
