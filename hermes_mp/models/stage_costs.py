"""What planning for several boards must know of a model and of this board: bytes by layers, and what they cost.

Costs are estimated by one product of matrices where the user's cache knows none; runs correct them. It knows no board.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

import torch

from hermes_mp.core.budget import slot_shape
from hermes_mp.core.cluster.cluster import ClusterModel
from hermes_mp.core.cluster.layer_costs import LayerCosts
from hermes_mp.host import profilecache
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.models.chain import Chain, find_chain
from hermes_mp.models.choose_plan import ESTIMATED_TOKENS, ROUNDED_NBYTES, TO_COME_NBYTES, seconds_per_byte
from hermes_mp.models.prepare import Prepared, Traced, trace_model
from hermes_mp.models.settle import settle
from hermes_mp.models.units import units_of


def outline(
    checkpoint: Checkpoint, dtype: str, context: int | None, batch: int, threads: int | None,
    say: Callable[[str], None],
) -> tuple[Traced, Prepared, Chain, int]:  # fmt: skip
    """The model without weights, cut as for a run with other boards, and about the bytes of compute before it binds."""
    if threads:
        torch.set_num_threads(threads)
    traced = trace_model(checkpoint, dtype, context, batch, say)
    chain = find_chain(traced.skeleton, traced.trace)
    made = traced.divide(None, layers=chain.layers)
    pinned = sum({bound.source: bound.source.info.nbytes for bound in made.division.pinned}.values())
    base = settle(traced.skeleton.dtype) + TO_COME_NBYTES + pinned
    return traced, made, chain, -(-base // ROUNDED_NBYTES) * ROUNDED_NBYTES


def cluster_model(traced: Traced, made: Prepared, chain: Chain) -> ClusterModel:
    """Units before the first layer's are the head's before all layers, the rest that is no layer's after them."""
    units = made.division.list.units
    own = [units_of(made.division, layer) for layer in chain.layers]
    inside = {unit for part in own for unit in part}
    first = min(inside, default=0)
    outside = [unit for unit in range(len(units)) if unit not in inside]
    slot, _ = slot_shape(made.division.list.slot_nbytes, mmap.PAGESIZE, mmap.PAGESIZE)
    widths = [shape[-1] for shape in traced.trace.layers] or [0]
    count = len(chain.layers)
    rows = traced.batch * traced.in_flight
    kv = traced.kv_nbytes(range(count)) * rows * traced.positions / max(1, count)
    return ClusterModel(
        layer_nbytes=tuple(sum(units[unit].read_nbytes for unit in part) for part in own),
        head_nbytes=sum(units[unit].read_nbytes for unit in outside if unit > first),
        hidden_nbytes_per_token=max(widths) * rows * traced.skeleton.dtype.itemsize,
        slot_nbytes=max(slot, mmap.PAGESIZE),
        kv_nbytes_per_layer=round(kv),
        before_nbytes=sum(units[unit].read_nbytes for unit in outside if unit < first),
    )


def rounding_nbytes(made: Prepared, granule: int) -> int:
    """What all slots together may take more, for the last huge page."""
    return slot_shape(made.division.list.slot_nbytes, granule, mmap.PAGESIZE)[1]


def states_nbytes(traced: Traced) -> int:
    """Hidden states of all reserved positions, in and out of a stage."""
    widest = max((shape.numel() for shape in traced.trace.layers), default=0)
    return 2 * traced.in_flight * widest * traced.skeleton.dtype.itemsize


def recall_costs(
    traced: Traced, checkpoint: Checkpoint, dtype: str, threads: int | None, role: str, fresh: bool = False
) -> LayerCosts:
    """As runs have shown them, else as estimated now; kept. `role`: "head" or "stage"."""
    path = profilecache.costs_path(checkpoint.digest, dtype, traced.batch, threads, role)
    known = None if fresh else profilecache.recall_costs(path)
    if known is not None:
        return known
    token = seconds_per_byte(traced.skeleton.dtype, traced.batch)
    prompt = seconds_per_byte(traced.skeleton.dtype, traced.batch * ESTIMATED_TOKENS)
    found = LayerCosts(token, max(0.0, prompt - token) / (ESTIMATED_TOKENS - 1))
    profilecache.remember(path, found)
    return found


def keep_costs(
    found: LayerCosts, checkpoint: Checkpoint, dtype: str, batch: int, threads: int | None, role: str
) -> None:
    """What a run has shown; where it cannot be kept the next one plans with less."""
    profilecache.remember(profilecache.costs_path(checkpoint.digest, dtype, batch, threads, role), found)
