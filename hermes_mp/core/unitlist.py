"""The unit list: what the loaders must read, in the predicted order, and what compute needs besides.

Compute finds it (tracing needs torch), the daemon runs on it, and the user's cache keeps it so that the next start
need not wait for torch. It knows no module and no tensor: only files, ranges and bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from hermes_mp.errors import BadMessage
from hermes_mp.messages import Range


@dataclass(frozen=True)
class UnitFile:
    path: str
    nbytes: int


@dataclass(frozen=True)
class UnitSpec:
    """`nbytes` of a slot, filled by `ranges`."""

    nbytes: int
    ranges: tuple[Range, ...]

    @property
    def read_nbytes(self) -> int:
        return sum(part.nbytes for part in self.ranges)


@dataclass(frozen=True)
class UnitList:
    files: tuple[UnitFile, ...]
    units: tuple[UnitSpec, ...]

    @property
    def slot_nbytes(self) -> int:
        """A slot must hold any unit."""
        return max((unit.nbytes for unit in self.units), default=0)

    @property
    def read_nbytes(self) -> int:
        return sum(unit.read_nbytes for unit in self.units)

    def digest(self) -> str:
        """Names the list: equal digests mean the same bytes in the same places."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:32]

    def to_json(self) -> str:
        units = [[unit.nbytes, [[r.file, r.offset, r.nbytes, r.at] for r in unit.ranges]] for unit in self.units]
        return json.dumps({"files": [asdict(file) for file in self.files], "units": units}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> UnitList:
        """Raises BadMessage for anything that `to_json` did not write, or that points outside of its files."""
        try:
            document: Any = json.loads(text)
            files = tuple(UnitFile(str(file["path"]), int(file["nbytes"])) for file in document["files"])
            units = tuple(
                UnitSpec(int(nbytes), tuple(Range(*(int(value) for value in part)) for part in ranges))
                for nbytes, ranges in document["units"]
            )
        except (ValueError, TypeError, KeyError) as error:
            raise BadMessage(f"this is no unit list: {error}") from error
        found = cls(files, units)
        found.check()
        return found

    def check(self) -> None:
        """Every range lies inside of its file and of its unit. Raises BadMessage naming the first that does not."""
        for number, unit in enumerate(self.units):
            for part in unit.ranges:
                inside = part.offset >= 0 and part.nbytes > 0 and part.at >= 0
                if not inside or not 0 <= part.file < len(self.files):
                    raise BadMessage(f"unit {number}: {part} is no range")
                if part.offset + part.nbytes > self.files[part.file].nbytes or part.at + part.nbytes > unit.nbytes:
                    raise BadMessage(f"unit {number}: {part} ends outside")
