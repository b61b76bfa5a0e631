"""What boards say of themselves, as JSON objects, and the cluster that they make together.

Nothing of a stranger is relied on: a figure that is none, or out of range, is a BadMessage that names it. It knows no
socket; who measured what is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hermes_mp.core.budget import MIN_SLOTS, slot_cost
from hermes_mp.core.cluster.cluster import BoardFacts, Cluster, ClusterModel, LinkFacts
from hermes_mp.errors import BadMessage

MOST_NBYTES, MOST_S = 1 << 50, 1e5
MEASURED, ESTIMATED = "measured", "estimated"


@dataclass(frozen=True)
class Told:
    """What a board tells once its compute has the model.

    `base_nbytes`: all its processes before there are slots, and what is kept free; `reserve_nbytes`: activations.
    `budget_nbytes` None: no limit. `layer_s`, `prefill_s_per_token`, `head_s`, `idle_nbytes`: see `cluster.BoardFacts`;
    `source` says whether they were MEASURED in an earlier run or are ESTIMATED.
    """

    budget_nbytes: int | None
    base_nbytes: int
    reserve_nbytes: int
    loaders: int
    disk_nbytes_per_s: float | None
    layer_s: float
    prefill_s_per_token: float
    head_s: float = 0.0
    idle_nbytes: int = 0
    source: str = ESTIMATED

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_told(board: str, facts: Mapping[str, Any]) -> Told:
    """Raises BadMessage for what `to_json` did not write."""

    def number(name: str, most: float, kinds: tuple[type, ...] = (int, float), none: bool = False) -> Any:
        value: Any = facts.get(name)
        if (value is None and none) or (type(value) in kinds and 0 <= value <= most):
            return value
        raise BadMessage(f"board {board} says of itself that {name} is {str(value)[:40]!r}")

    whole = (int,)
    source = facts.get("source")
    return Told(
        number("budget_nbytes", MOST_NBYTES, whole, none=True),
        number("base_nbytes", MOST_NBYTES, whole),
        number("reserve_nbytes", MOST_NBYTES, whole),
        max(1, number("loaders", 64, whole)),
        number("disk_nbytes_per_s", 1e14, none=True) or None,
        number("layer_s", MOST_S),
        number("prefill_s_per_token", MOST_S),
        number("head_s", MOST_S) if "head_s" in facts else 0.0,
        number("idle_nbytes", MOST_NBYTES, whole) if "idle_nbytes" in facts else 0,
        MEASURED if source == MEASURED else ESTIMATED,
    )


def board_facts(name: str, told: Told, model: ClusterModel, is_head: bool = False) -> BoardFacts:
    """Where there is no limit, the slots are those that a daemon takes then: one more than loaders."""
    budget = told.budget_nbytes
    layers = len(model.layer_nbytes)
    if budget is None:
        slots = max(told.loaders + 1, MIN_SLOTS)
        budget = told.base_nbytes + told.reserve_nbytes + model.kv_nbytes_per_layer * layers
        budget += slots * slot_cost(model.slot_nbytes, 1)
    # The planner counts one loader's page tables with every slot.
    return BoardFacts(
        name, budget, told.disk_nbytes_per_s, told.layer_s, told.prefill_s_per_token, told.base_nbytes,
        told.reserve_nbytes, is_head, told.head_s, told.idle_nbytes,
    )  # fmt: skip


def make_cluster(
    model: ClusterModel, head: str, told: Mapping[str, Told], links: Mapping[str, LinkFacts]
) -> Cluster:
    """Of all boards that have told something, in their order; the head among them. Nobody lends, as yet."""
    boards = tuple(board_facts(name, one, model, name == head) for name, one in told.items())
    return Cluster(model, boards, dict(links), only_head_borrows=True, lenders=frozenset())


def model_to_json(model: ClusterModel) -> dict[str, Any]:
    return asdict(model)


def model_from_json(document: Mapping[str, Any]) -> ClusterModel:
    """What `model_to_json` gave, from a process of ours."""
    return ClusterModel(**{**document, "layer_nbytes": tuple(document["layer_nbytes"])})


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """In what two boards differ that makes other bits: software, processor, threads; each as a few words."""
    found = []
    for package in ("torch", "transformers"):
        ours, theirs = (_version(one.get("versions"), package) for one in (here, there))
        if ours != theirs:
            found.append(f"{package} {theirs or '?'} instead of {ours or '?'}")
    if here.get("processor") != there.get("processor"):
        found.append("another processor")
    if here.get("threads") != there.get("threads"):
        found.append(f"{str(there.get('threads'))[:8]} threads instead of {here.get('threads')}")
    return found


def _version(folders: Any, package: str) -> str:
    """Of `torch-2.8.0.dist-info`."""
    for folder in folders if isinstance(folders, list) else []:
        if isinstance(folder, str) and folder.startswith(f"{package}-"):
            return folder.removeprefix(f"{package}-").rpartition(".")[0][:30]
    return ""
