"""Deals of layers to boards: contiguous, in rounds, and how many layers each board should have for all to end together.

The ideal is a bound, too: it lets every disk read all the time and counts one hop per board. It knows no simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hermes_mp.core.budget import MIN_SLOTS, slot_cost
from hermes_mp.core.cluster.borrowing import memory_beside, readers_of
from hermes_mp.core.cluster.cluster import Cluster, Lending
from hermes_mp.core.cluster.stretches import Stretch
from hermes_mp.errors import BadOption

HALVINGS = 40  # of the time within which all boards can hold or read all layers


@dataclass(frozen=True)
class Ideal:
    """No deal to these boards takes less than `seconds`, were all layers alike. `cheap` fills those first that compute
    fastest, `even` gives each the same part of what it could do; of `held` all stays resident that can, the fastest
    disk has the rest.
    """

    seconds: float
    cheap: tuple[int, ...]
    even: tuple[int, ...]
    held: tuple[int, ...]


@dataclass(frozen=True)
class _Capacity:
    """How many layers a board can do in some seconds: those it holds, and those it reads meanwhile."""

    most: int  # that its budget leaves KV cache for
    held: float  # were all its units resident
    at_once: float  # with the narrowest window, of a pass that takes no time
    per_s: float
    layer_s: float
    hop_s: float

    def within(self, seconds: float) -> float:
        return max(0.0, min(self.most, max(self.held, self.at_once + self.per_s * seconds)))


def in_rounds(counts: Sequence[int], rounds: int, order: Sequence[int]) -> tuple[int, ...]:
    """The board of every layer: each board's count in so many stretches, as far as it has layers, spread evenly.

    With 1 round the deal is contiguous, in this `order` of boards.
    """
    places: list[tuple[float, int, int]] = []
    for rank, board in enumerate(order):
        stretches = min(rounds, counts[board])
        for number in range(stretches):
            length = counts[board] * (number + 1) // stretches - counts[board] * number // stretches
            places.append(((number + (rank + 0.5) / len(order)) / stretches if rounds > 1 else rank, board, length))
    return tuple(board for _, board, length in sorted(places) for _ in range(length))


def stretches_of(cluster: Cluster, owners: Sequence[int]) -> tuple[Stretch, ...]:
    """The runs of layers of one board."""
    found: list[Stretch] = []
    first = 0
    for layer in range(1, len(owners) + 1):
        if layer == len(owners) or owners[layer] != owners[first]:
            found.append(Stretch(cluster.boards[owners[first]].name, first, layer))
            first = layer
    return tuple(found)


def owners_of(cluster: Cluster, stretches: Sequence[Stretch]) -> tuple[int, ...]:
    """The board of every layer. Raises BadOption where stretches leave a layer out or name one twice."""
    owners: list[int] = []
    for one in stretches:
        if one.first != len(owners) or one.last <= one.first:
            raise BadOption(
                f"layers {one.first} to {one.last - 1} on {one.board}: the next layer to be dealt is {len(owners)}",
                "name all layers once, in order",
            )
        owners += [cluster.number(one.board)] * (one.last - one.first)
    if len(owners) != len(cluster.model.layer_nbytes):
        raise BadOption(
            f"{len(owners)} layers are dealt, the model has {len(cluster.model.layer_nbytes)}",
            "name all layers once, in order",
        )
    return tuple(owners)


def hops_of(cluster: Cluster, owners: Sequence[int]) -> int:
    """Changes from the head to a board and back."""
    head = cluster.head
    return sum(
        board != head and (layer == 0 or owners[layer - 1] != board) for layer, board in enumerate(owners)
    )  # fmt: skip


def least_budget(cluster: Cluster, board: int, layers: int, lendings: Sequence[Lending] = ()) -> int:
    """The smallest budget with which the board can run so many layers, streaming through the narrowest window.

    Nothing is added for runs that differ: `base_nbytes` is to be what a run takes at most.
    """
    model, facts = cluster.model, cluster.boards[board]
    readers = len(readers_of(cluster, board, lendings)) or 1
    own = facts.is_head and model.head_nbytes + model.before_nbytes > 0
    slots = MIN_SLOTS if layers or own else 0
    return memory_beside(cluster, board, layers, lendings) + slots * slot_cost(model.slot_nbytes, readers)


def ideal(cluster: Cluster, boards: Sequence[int], lendings: Sequence[Lending]) -> Ideal | None:
    """What these boards could do at best; None where they cannot hold the KV cache of all layers."""
    layers = len(cluster.model.layer_nbytes)
    able: dict[int, _Capacity] = {}
    for board in boards:
        one = _capacity(cluster, board, lendings)
        if one is None:
            return None
        able[board] = one
    if sum(one.most for one in able.values()) < layers:
        return None
    head_s = cluster.boards[cluster.head].head_s

    def computing(seconds: float) -> float:
        """Of a pass whose layers are where they are computed fastest, as far as each board can have them ready."""
        left, taken = float(layers), head_s
        for one in sorted(able.values(), key=lambda one: one.layer_s):
            own = min(left, one.within(seconds))
            taken += own * one.layer_s + (one.hop_s if own else 0.0)
            left -= own
        return taken if left <= 1e-9 else float("inf")

    low = cluster_reads_s(cluster, lendings)
    high = max(1e-3, low)
    while computing(high) > high and high < 1e9:
        high *= 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if computing(middle) <= middle else (middle, high)
    cheap = [0.0] * len(cluster.boards)
    even = [0.0] * len(cluster.boards)
    left, together = float(layers), sum(one.within(high) for one in able.values())
    for board, one in sorted(able.items(), key=lambda item: item[1].layer_s):
        even[board] = one.within(high) * layers / together
        cheap[board] = min(left, one.within(high))
        left -= cheap[board]
    held, rest = [0.0] * len(cluster.boards), layers
    for board, one in sorted(able.items(), key=lambda item: item[1].layer_s):
        held[board] = max(0, min(rest, int(one.held), one.most))
        rest -= int(held[board])
    held[max(able, key=lambda board: able[board].per_s)] += rest
    most = [able[board].most if board in able else 0 for board in range(len(cluster.boards))]
    return Ideal(high, whole(cheap, layers, most), whole(even, layers, most), whole(held, layers, most))


def whole(wished: Sequence[float], layers: int, most: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers near these, that come to `layers`, none above its `most` (which come to as many at least)."""
    found = [min(int(wish + 1e-9), top) for wish, top in zip(wished, most, strict=True)]
    while sum(found) < layers:
        room = [board for board in range(len(found)) if found[board] < most[board]]
        found[max(room, key=lambda board: (wished[board] > 0, wished[board] - found[board]))] += 1
    return tuple(found)


def cluster_reads_s(cluster: Cluster, lendings: Sequence[Lending]) -> float:
    """What the head's own units take to read, beyond what it could keep: no pass is shorter."""
    head = cluster.head
    model = cluster.model
    room = cluster.boards[head].budget_nbytes - memory_beside(cluster, head, 0, lendings)
    held = max(0, room // slot_cost(model.slot_nbytes, 1)) * model.slot_nbytes
    rate = sum(rate for rate, _ in readers_of(cluster, head, lendings))
    return max(0, model.before_nbytes + model.head_nbytes - held) / rate if rate else 0.0


def _capacity(cluster: Cluster, board: int, lendings: Sequence[Lending]) -> _Capacity | None:
    """Of equal layers, and of slots in parts: never too little. None where not even two slots fit."""
    model, facts = cluster.model, cluster.boards[board]
    readers = readers_of(cluster, board, lendings)
    own = model.head_nbytes + model.before_nbytes if facts.is_head else 0
    own_units = len(model.units_of(model.before_nbytes)) + len(model.units_of(model.head_nbytes)) if own else 0
    cost = slot_cost(model.slot_nbytes, len(readers) or 1)
    # One layer at least is meant where the board is not the head; its KV cache is in `per`.
    room = facts.budget_nbytes - memory_beside(cluster, board, 1, lendings) + model.kv_nbytes_per_layer
    if room < (MIN_SLOTS * cost if own or not facts.is_head else 0) or (not readers and (own or not facts.is_head)):
        return None
    layers, kv = len(model.layer_nbytes), model.kv_nbytes_per_layer
    spare = room - MIN_SLOTS * cost
    most = 0 if spare < 0 or not readers else layers if not kv else min(layers, spare // kv)
    units = sum(len(model.units_of(nbytes)) for nbytes in model.layer_nbytes) / layers
    unit_nbytes = model.mean_layer_nbytes / units
    per_layer = model.mean_layer_nbytes + kv / cost * unit_nbytes  # what one more must read, with the slots it costs
    rate = sum(rate for rate, _ in readers)
    return _Capacity(
        most=most,
        held=(room / cost - own_units) / (units + kv / cost),
        at_once=((room / cost - MIN_SLOTS) * unit_nbytes - own) / per_layer,
        per_s=rate / per_layer,
        layer_s=facts.layer_s,
        hop_s=cluster.hop_s(board),
    )
