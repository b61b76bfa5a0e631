"""The user's cache of unit lists: what lets the second run of a model read before torch is imported.

Keyed by the checkpoint's digest, the software versions and what was reserved. A wrong, stale or damaged entry costs
reads, never an answer: compute describes the units anew in every run. Nothing is ever written near the model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hermes_mp.core.unitlist import UnitList
from hermes_mp.errors import BadMessage
from hermes_mp.host.cachedir import cache_directory, keep, versions


@dataclass(frozen=True)
class Remembered:
    """A unit list, and what compute needed beside its slots (bytes)."""

    units: UnitList
    base_nbytes: int
    reserve_nbytes: int


def entry_path(checkpoint_digest: str, dtype: str, context: int | None, batch: int) -> Path:
    """Where the entry for these settings lies, whether it exists or not."""
    key = json.dumps([checkpoint_digest, dtype, context, batch, versions()])
    return cache_directory() / "units" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def recall(path: Path) -> Remembered | None:
    """What is remembered there; None where there is nothing of use."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        units = UnitList.from_json(document["units"])
        return Remembered(units, int(document["base_nbytes"]), int(document["reserve_nbytes"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, BadMessage):
        return None


def remember(path: Path, entry: Remembered) -> None:
    """Keep the entry; where the cache cannot be written the next start is merely slower."""
    if recall(path) == entry:
        return  # flash wears
    text = json.dumps(
        {
            "units": entry.units.to_json(),
            "base_nbytes": entry.base_nbytes,
            "reserve_nbytes": entry.reserve_nbytes,
        }
    )
    keep(path, text)
