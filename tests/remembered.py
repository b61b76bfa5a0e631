"""What is remembered of a model between runs, and how a test has it say something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def entry_of(cache: Path) -> Path:
    (entry,) = (cache / "hermes-mp/units").iterdir()
    return entry


def change(entry: Path, how: Callable[[Any], Any]) -> None:
    """Let `how` change the list of units that an entry holds."""
    document = json.loads(entry.read_text())
    units = json.loads(document["units"])
    units["units"] = how(units["units"])
    entry.write_text(json.dumps(document | {"units": json.dumps(units)}))
