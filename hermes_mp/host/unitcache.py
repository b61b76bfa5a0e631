"""The user's cache of unit lists: what lets the second run of a model read before torch is imported.

Keyed by the checkpoint's digest, the software versions and what was reserved. A wrong, stale or damaged entry costs
reads, never an answer: compute describes the units anew in every run. Nothing is ever written near the model.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import astuple, dataclass
from pathlib import Path

from hermes_mp.core.unitlist import UnitList
from hermes_mp.errors import BadMessage
from hermes_mp.host.cachedir import FORMAT, cache_directory, keep, versions
from hermes_mp.messages import RunPlan

MOST_LOADERS = 64


@dataclass(frozen=True)
class Remembered:
    """A unit list, what compute needed beside its slots (bytes), and the plan it was made for.

    `start_nbytes`: the most that compute took while it started; 0 where it was a caller's process.
    """

    units: UnitList
    base_nbytes: int
    start_nbytes: int
    reserve_nbytes: int
    plan: RunPlan


def entry_path(
    checkpoint_digest: str, dtype: str, context: int | None, batch: int, memory: object, loaders: int | None,
    in_flight: int = 1,
) -> Path:  # fmt: skip
    """Where the entry for these settings lies, whether it exists or not; `memory` and `loaders` as they were asked for.

    They are what units are planned by, and profiles: where those are made anew a run begins with nothing, too, as
    slots that fill while the disk is measured would take the memory for that.
    """
    settings = [dtype, context, batch, memory, loaders, *([in_flight] if in_flight > 1 else [])]
    key = json.dumps([checkpoint_digest, *settings, versions(), FORMAT])
    return cache_directory() / "units" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def start_path(directory: str) -> Path:
    """Where it is kept how many loaders the last run of this directory had."""
    return cache_directory() / "loaders" / hashlib.sha256(directory.encode()).hexdigest()[:32]


def recall_loaders(model: str | None) -> int | None:
    """How many loaders to start with, as long as nothing else is known of this model."""
    try:
        count = int(start_path(os.path.realpath(os.path.expanduser(model or ""))).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return count if 1 <= count <= MOST_LOADERS else None


def remember_loaders(directory: str, count: int) -> str:
    """For the next run; see `keep`."""
    return "" if recall_loaders(directory) == count else keep(start_path(directory), str(count))


def recall(path: Path) -> Remembered | None:
    """What is remembered there; None where there is nothing of use."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        units = UnitList.from_json(document["units"])
        *numbers, direct, forecast_us, source = document["plan"]
        loaders, window, chunk_nbytes = map(int, numbers)
        plan = RunPlan(loaders, window, chunk_nbytes, bool(direct), int(forecast_us), str(source))
        if not 0 <= plan.loaders <= MOST_LOADERS or min(plan.window, plan.chunk_nbytes) < 0:
            return None
        base, start, reserve = (int(document[name]) for name in ("base_nbytes", "start_nbytes", "reserve_nbytes"))
        return None if min(base, start, reserve) < 0 else Remembered(units, base, start, reserve, plan)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, BadMessage):
        return None


def remember(path: Path, entry: Remembered) -> str:
    """Keep the entry; see `keep`."""
    if recall(path) == entry:
        return ""  # flash wears
    text = json.dumps(
        {
            "units": entry.units.to_json(),
            "base_nbytes": entry.base_nbytes,
            "start_nbytes": entry.start_nbytes,
            "reserve_nbytes": entry.reserve_nbytes,
            "plan": list(astuple(entry.plan)),
        }
    )
    return keep(path, text)
