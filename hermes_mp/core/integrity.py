"""Which loads are checked, and whether what was read is what it was. It knows no file and computes no checksum.

A unit goes by its ranges: plans cut models in many ways. What is not known yet is trusted, and known from then on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from hermes_mp.config import ALWAYS, FIRST, NEVER
from hermes_mp.core.unitlist import UnitList, UnitSpec
from hermes_mp.messages import NOT_CHECKED, UnitNo

MOST_KNOWN = 50_000  # checksums that are kept of a model, those of the latest plans


class Integrity:
    """`mode`: what `--verify` was given. `known`: checksums by key, from earlier runs."""

    def __init__(self, mode: str, known: Mapping[str, int]) -> None:
        self._mode = mode
        self._keys: list[str] = []
        self._checked: set[UnitNo] = set()
        self.known = dict(known)
        self.news = 0  # checksums that were not known
        self.compared = 0  # loads that had the checksum that was known

    def adopt(self, units: UnitList) -> None:
        """These are the units from now on."""
        keys = [key_of(unit) for unit in units.units]
        if keys != self._keys:
            self._keys = keys
            self._checked.clear()

    def wants(self, unit: UnitNo) -> bool:
        """Whether the next load of this unit is to be checked."""
        return self._mode == ALWAYS or (self._mode == FIRST and unit not in self._checked)

    @property
    def complete(self) -> bool:
        """Every unit was checked."""
        return len(self._checked) == len(self._keys)

    def judge(self, unit: UnitNo, checksum: int) -> int | None:
        """The checksum that it had, where that is another; None where all is well."""
        if checksum == NOT_CHECKED or self._mode == NEVER:
            return None
        key = self._keys[unit]
        known = self.known.pop(key, None)  # to the end: the latest are kept
        self.known[key] = checksum if known is None else known
        if known is None:
            self.news += 1
            if len(self.known) > MOST_KNOWN:
                del self.known[next(iter(self.known))]
        elif known != checksum:
            return known
        else:
            self.compared += 1
        self._checked.add(unit)
        return None


def key_of(unit: UnitSpec) -> str:
    """Names the bytes of the files that the unit is made of."""
    parts = [[part.file, part.offset, part.nbytes] for part in unit.ranges]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
