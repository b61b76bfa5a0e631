"""Clusters for the tests: boards of so many slots, drawn by a seed, and every way there is to run on them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hermes_mp.core.budget import slot_cost
from hermes_mp.core.cluster.cluster import BoardFacts, Cluster, ClusterModel, LinkFacts
from hermes_mp.core.cluster.forecast import Forecaster, Way

MIB = 1 << 20
LAYER_NBYTES = 20 * MIB
GIGABIT = LinkFacts(112e6, 0.0003)


def decoder(layers: int, head_nbytes: int = 0, **more: Any) -> ClusterModel:
    return ClusterModel((LAYER_NBYTES,) * layers, head_nbytes, 4096, LAYER_NBYTES, **more)


def board(name: str, slots: float, disk_nbytes_per_s: float | None = 45e6, layer_s: float = 0.0005,
          **more: Any) -> BoardFacts:  # fmt: skip
    """Of so many slots and no other memory; the head is called `head`."""
    budget = int(slots * slot_cost(LAYER_NBYTES, 1))
    return BoardFacts(name, budget, disk_nbytes_per_s, layer_s, is_head=name == "head", **more)


def cluster(
    model: ClusterModel, boards: Sequence[BoardFacts], links: Mapping[str, LinkFacts] | None = None, **more: Any
) -> Cluster:
    usual = {one.name: GIGABIT for one in boards if not one.is_head}
    return Cluster(model, tuple(boards), usual | dict(links or {}), **more)


def four_boards(layers: int, slots: float = 2) -> Cluster:
    return cluster(decoder(layers), [board(name, slots) for name in ("head", "pi1", "pi2", "pi3")])


def drawn(seed: int) -> Cluster:
    """Up to six layers on up to three boards, of all kinds; some have no copy, some layers are of other sizes."""
    chance = random.Random(seed)
    count = chance.randint(1, 6)
    alike = (LAYER_NBYTES,) * count
    unlike = tuple(chance.choice((20, 20, 14, 39)) * MIB for _ in range(count))
    model = ClusterModel(
        alike if chance.random() < 0.7 else unlike,
        chance.choice((0, 20, 50)) * MIB,
        chance.choice((4096, 1 << 16)),
        LAYER_NBYTES,
        chance.choice((0, MIB, 4 * MIB)),
    )
    names = ("head", "pi1", "pi2")[: chance.randint(1, 3)]
    boards = []
    for name in names:
        disk = chance.choice((20e6, 45e6, 90e6, 400e6, 2e9))
        fed = name == "head" or chance.random() < 0.8
        slots, layer_s = chance.choice((1.5, 2.3, 3.2, 4.2, 5.5)), chance.choice((0.0005, 0.01, 0.05, 0.2))
        boards.append(board(name, slots, disk if fed else None, layer_s, head_s=0.01 * (name == "head")))
    links = {name: LinkFacts(chance.choice((5e6, 112e6)), chance.choice((0.0003, 0.02))) for name in names[1:]}
    return cluster(model, boards, links)


def every_way(one: Cluster) -> Iterator[tuple[float, Way]]:
    """All deals with all windows that fit, and their seconds; nobody lends."""
    forecaster = Forecaster(one)
    none = (0,) * len(one.boards)
    for owners in itertools.product(range(len(one.boards)), repeat=len(one.model.layer_nbytes)):
        loads = forecaster.loads(Way(owners, none))
        if loads is None:
            continue
        windows = [range(2, load.slots + 1) if load and load.window else (0,) for load in loads]
        for chosen in itertools.product(*windows):
            found = forecaster.steady(Way(owners, chosen))
            assert found is not None
            yield found.seconds, Way(owners, chosen)
