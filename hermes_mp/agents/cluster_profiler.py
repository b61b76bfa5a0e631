"""Gathers what a plan for several boards is made of, in a process of its own: it imports torch, who plans does not.

The boards build the model, measure and tell; no weights are read but to measure disks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from hermes_mp.agents.profiler import in_own_process, work_as_told
from hermes_mp.core.cluster.cluster import Cluster, LinkFacts
from hermes_mp.core.cluster.facts import Told, differences, make_cluster, model_from_json, model_to_json

HERE = "head"
STOP_S = 2.0


@dataclass(frozen=True)
class Gathered:
    """The cluster; by board what it has told, in what it differs from the head, and why it could not be asked."""

    cluster: Cluster
    told: Mapping[str, Told]
    differs: Mapping[str, list[str]]
    lost: Mapping[str, str]


def gather_cluster(settings: dict[str, Any], say: Callable[[str], None]) -> Gathered:
    """`settings`: as a head's compute is told them, and `fresh`. Raises what a board or the model is refused with."""
    found = in_own_process("hermes_mp.agents.cluster_profiler", settings, say)
    told = {name: Told(**one) for name, one in found["told"].items()}
    links = {name: LinkFacts(*one) for name, one in found["links"].items()}
    cluster = make_cluster(model_from_json(found["model"]), HERE, told, links)
    return Gathered(cluster, told, found["differs"], found["lost"])


def main(arguments: Sequence[str]) -> int:
    """The process; `arguments`: one JSON text."""
    return work_as_told(arguments, _gather)


def _gather(settings: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    from hermes_mp.agents.board_link import BoardEntry, LostBoard
    from hermes_mp.agents.boards import Boards
    from hermes_mp.agents.greeting import Greeting
    from hermes_mp.host.checkpoint import find_checkpoint
    from hermes_mp.host.fingerprint import fingerprint
    from hermes_mp.host.pairings import Store

    shared, fresh = settings["boards"], bool(settings["fresh"])
    entries = [BoardEntry(*entry) for entry in shared["entries"]]
    own = Store().identity() if any(entry.key for entry in entries) else None
    checkpoint = find_checkpoint(Path(settings["directory"]))
    name = HERE if own is None else own.name
    greeting = Greeting(shared["software"], name, checkpoint.directory.name, fingerprint(checkpoint))
    said: list[str] = []

    def hear(text: str) -> None:
        """What is under way is said over and over."""
        if said[-1:] != [text]:
            said.append(text)
            say(text)

    lost: dict[str, str] = {}
    keys = None if own is None else own.keys
    with closing(Boards(entries, keys, greeting, hear, say, settings["death_fd"])) as boards:
        for entry in entries:
            hear(f"greeting board {entry.name}")
            try:
                boards.greet(entry.name)
                boards.start([entry.name], {**shared["stage"], "fresh": fresh}, 0)
            except LostBoard as error:
                lost[entry.name] = str(error)
        try:
            found = _asked(settings, fresh, checkpoint, boards, lost, hear)
        finally:
            boards.stop(0, STOP_S)
    return {**found, "lost": lost}


def _asked(
    settings: dict[str, Any], fresh: bool, checkpoint: Any, boards: Any, lost: dict[str, str],
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    from hermes_mp.agents.board_link import LostBoard
    from hermes_mp.agents.cluster_planning import ClusterPlanning

    head = _head(settings, fresh, checkpoint, say)
    planning = ClusterPlanning(boards, head, HERE, say, say, lambda message: None)
    while True:
        try:
            boards.await_opened()
            cluster = planning.cluster()
            break
        except LostBoard as error:
            lost[error.board] = str(error)
    return {
        "model": model_to_json(head.model),
        "told": {HERE: head.told.to_json()} | {name: planning.told(name).to_json() for name in boards.there},
        "links": {name: astuple(link) for name, link in cluster.links.items()},
        "differs": {name: differences(head.about, boards.linked[name].facts) for name in boards.there},
    }


def _head(settings: dict[str, Any], fresh: bool, checkpoint: Any, say: Callable[[str], None]) -> Any:
    """What compute would find of itself in a run."""
    from hermes_mp.models.light_imports import import_lightly

    import_lightly()
    from hermes_mp.agents.cluster_planning import head_facts
    from hermes_mp.host.arena import Arena
    from hermes_mp.models.stage_costs import outline

    threads = settings["threads"]
    traced, made, chain, base = outline(
        checkpoint, settings["dtype"], settings["context"], settings["batch"], threads, say
    )
    with Arena.create(1 << 20) as arena:
        granule = {"granule": arena.granule}
    return head_facts(settings | granule, checkpoint, traced, made, chain, base, fresh)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
