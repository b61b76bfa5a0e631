"""`hermes-plan` for several boards: has them measured, plans, and shows who would run which layers. Without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hermes_mp.agents.cluster_profiler import HERE, Gathered, gather_cluster
from hermes_mp.agents.quarters import LOADERS
from hermes_mp.cli import cluster_text, embedded
from hermes_mp.cli.boards_file import shared_with
from hermes_mp.config import PlanConfig
from hermes_mp.core.cluster.cluster import ClusterPlan
from hermes_mp.core.cluster.planner import given_plan, plan_lending
from hermes_mp.core.cluster.stretches import check_stretches, split_of
from hermes_mp.host import hub
from hermes_mp.host.checkpoint import find_checkpoint


def plan_boards(config: PlanConfig, say: Callable[[str], None]) -> str:
    """What is printed. Raises what the boards are refused with, and what the planner raises."""
    directory = embedded.embedded_model() if config.model is None else Path(hub.resolve(config.model, say))
    checkpoint = find_checkpoint(directory.resolve())
    shared = shared_with(config)
    assert shared is not None
    found = gather_cluster(
        {
            "directory": str(checkpoint.directory), "dtype": config.dtype, "context": config.context,
            "batch": config.batch, "threads": config.threads, "loaders": config.loaders, "crew": LOADERS,
            "memory": "auto" if config.memory is None else config.memory, "boards": shared, "fresh": config.fresh,
        },
        say,
    )  # fmt: skip
    say("planning who runs which layers")
    tokens = min(config.tokens, config.context or config.tokens)
    if shared["split"] is None:
        planned = plan_lending(found.cluster, tokens)
    else:
        stretches = split_of(shared["split"])
        check_stretches(stretches, len(found.cluster.model.layer_nbytes))
        planned = given_plan(found.cluster, stretches, prompt_tokens=tokens)
    name = config.model or "all-MiniLM-L6-v2"
    return json.dumps(_as_object(name, found, planned)) if config.json else "\n".join(_lines(found, planned))


def _as_object(model: str, found: Gathered, planned: ClusterPlan) -> dict[str, Any]:
    facts = {name: one.to_json() for name, one in found.told.items()}
    for name, link in found.cluster.links.items():
        facts[name] |= {"link_nbytes_per_s": link.nbytes_per_s, "round_trip_s": link.round_trip_s}
        facts[name] |= {"differs": found.differs.get(name, [])}
    return cluster_text.as_object(planned) | {"model": model, "facts": facts, "lost": dict(found.lost), "error": None}


def _lines(found: Gathered, planned: ClusterPlan) -> list[str]:
    lines = cluster_text.as_lines(planned)
    lines += ["", *(_facts(name, found) for name in found.told)]
    differs = [f"{name} has {', '.join(what)}" for name, what in found.differs.items() if what]
    if differs:
        lines.append(f"same model, bits not promised: {'; '.join(differs)}")
    return lines + [f'"{name}" could not be asked: {why}' for name, why in found.lost.items()]


def _facts(name: str, found: Gathered) -> str:
    one = found.told[name]
    memory = "no limit" if one.budget_nbytes is None else f"{one.budget_nbytes / 2**20:.0f} MiB"
    disk = "" if one.disk_nbytes_per_s is None else f", disk {one.disk_nbytes_per_s / 1e6:.0f} MB/s"
    link = ""
    if name != HERE:
        facts = found.cluster.links[name]
        link = f", link {facts.nbytes_per_s / 1e6:.0f} MB/s and {facts.round_trip_s * 1000:.1f} ms"
    return f"{name}: {memory}{disk}, {one.layer_s * 1000:.3g} ms a layer ({one.source}){link}"
