"""What a board reads from, its own disk and those of lenders, and the memory it takes besides slots.

It knows nothing of deals, nor of time but rates.
"""

from __future__ import annotations

from collections.abc import Sequence

from hermes_mp.core.budget import LOADER_NBYTES, WINDOW_NBYTES
from hermes_mp.core.cluster.cluster import LENDER_NBYTES, Cluster, Lending


def readers_of(cluster: Cluster, board: int, lendings: Sequence[Lending]) -> tuple[tuple[float, float], ...]:
    """Bytes per second, and seconds to the first byte, of the local disk and every lender; the fastest first.

    A disk that is lent gives the rest to its own board; lenders share what the receiver's port can take.
    """
    facts = cluster.boards[board]
    local = facts.disk_nbytes_per_s
    if local is not None:
        local *= 1 - sum(one.share for one in lendings if one.lender == facts.name)
    remote = []
    for one in lendings:
        if one.receiver == facts.name:
            lender = cluster.number(one.lender)
            link = cluster.between(lender, board)
            disk = cluster.boards[lender].disk_nbytes_per_s or 0.0
            windowed = one.loaders * WINDOW_NBYTES / max(link.round_trip_s, 1e-9)
            remote.append((min(disk * one.share, link.nbytes_per_s, windowed), link.round_trip_s))
    together = sum(rate for rate, _ in remote)
    fits = min(1.0, cluster.receives_nbytes_per_s(board) / together) if together else 1.0
    found = [(local, 0.0)] if local else []
    return tuple(sorted((*found, *((rate * fits, delay) for rate, delay in remote if rate)), key=lambda one: -one[0]))


def memory_beside(cluster: Cluster, board: int, layers: int, lendings: Sequence[Lending]) -> int:
    """Bytes a board needs besides slots: for so many layers, for what it borrows, and for what it lends."""
    facts = cluster.boards[board]
    each = LOADER_NBYTES + WINDOW_NBYTES
    borrowed = sum(one.loaders for one in lendings if one.receiver == facts.name)
    lent = sum(one.loaders for one in lendings if one.lender == facts.name)
    runs = facts.is_head or layers > 0
    if not runs:
        return LENDER_NBYTES + (lent - 1) * each if lent else 0
    kv = cluster.model.kv_nbytes_per_layer * layers
    return facts.base_nbytes + facts.reserve_nbytes + kv + (borrowed + lent) * each
