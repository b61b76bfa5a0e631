"""How a run is at this moment, for `hermes-ps`: its agents, slots and memory, as JSON holds them (docs/json.md)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hermes_mp.core.slots import ANNOUNCED, EMPTY, LENT, LOADED, Slot
from hermes_mp.messages import MAX_TEXT_CHARS, StatusTold

if TYPE_CHECKING:
    from hermes_mp.agents.daemon import Daemon

SCHEMA = 1
WORDS = {EMPTY: "empty", LENT: "lent", LOADED: "loaded", ANNOUNCED: "held"}


def of(daemon: Daemon) -> dict[str, Any]:
    """Everything; costs a millisecond, as it measures the processes."""
    by_process, _ = daemon.accounting.sample()
    mind = daemon.mind
    work = {} if mind is None else mind.loaders.at_work()
    slots = [] if mind is None else [mind.slots.all[number] for number in sorted(mind.slots.all)]
    residents = frozenset() if mind is None else mind.residents
    return {
        "schema": SCHEMA,
        "pid": os.getpid(),
        "kind": "load" if daemon.settings.has_caller else "launch",
        "model": str(daemon.settings.checkpoint.directory),
        "up_s": (time.monotonic_ns() - daemon.started_ns) / 1e9,
        "ready": daemon.divided,
        "budget_nbytes": daemon.slots.budget_nbytes,
        "memory_nbytes": {**by_process, "slots": daemon.arena.allocated_nbytes()},
        "compute": {
            "pid": daemon.accounting.compute,
            "state": "caller" if daemon.settings.has_caller else daemon.compute.state,
            "restarts": daemon.compute.peer.epoch - 1,
        },
        "loaders": [
            {
                "number": number, "board": daemon.crew.board(number), "pid": pid, "state": state,
                "restarts": min(daemon.crew.restarts(number), epoch - 1),
                "reads": [slot.unit for slot in work.get((number, epoch), [])],
            }
            for number, epoch, pid, state in daemon.crew.states()
        ],
        "degraded": daemon.crew.degraded(),
        "units": len(daemon.units.units),
        "residents": len(residents),
        "slot_nbytes": daemon.slots.slot_nbytes,
        "slots": [_slot(slot, slot.unit in residents) for slot in slots],
    }  # fmt: skip


def parts(status: dict[str, Any]) -> Iterator[StatusTold]:
    """As messages."""
    text = json.dumps(status)
    pieces = [text[at : at + MAX_TEXT_CHARS] for at in range(0, len(text), MAX_TEXT_CHARS)]
    for number, piece in enumerate(pieces):
        yield StatusTold(number, number == len(pieces) - 1, piece)


def _slot(slot: Slot, resident: bool) -> dict[str, Any]:
    empty = slot.holds is EMPTY
    return {
        "number": slot.number, "state": WORDS[slot.holds], "unit": None if empty else slot.unit,
        "resident": resident and not empty, "late": slot.holds is LENT and slot.late,
    }  # fmt: skip
