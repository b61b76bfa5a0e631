"""Sees to it that units are what they were, as `--verify` says. That files are, `host.watched` does where one computes.

What an embedding's rows hold, which compute reads itself, goes by the files alone.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from hermes_mp.core.integrity import Integrity
from hermes_mp.core.report import Verified
from hermes_mp.core.unitlist import UnitList
from hermes_mp.errors import WeightsChanged
from hermes_mp.host import checksums
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.messages import LoadFailed, UnitLoaded, UnitNo, clip

KEEP_S = 2.0  # the end of a run waits for no longer


class Guard:
    """`mode`: what `--verify` was given."""

    def __init__(self, checkpoint: Checkpoint, mode: str) -> None:
        self._checkpoint = checkpoint
        self._mode = mode
        self._index = checksums.recall(checkpoint)
        self._integrity = Integrity(mode, self._index.units)
        self._units = UnitList((), ())
        self._kept = 0  # of the news
        self._keeper: threading.Thread | None = None
        self.failure = ""  # why the index could not be kept

    def adopt(self, units: UnitList) -> None:
        """These are the units from now on."""
        self._units = units
        self._integrity.adopt(units)

    def wants(self, unit: UnitNo) -> bool:
        """Whether the next load of this unit is to be checked."""
        return self._integrity.wants(unit)

    def judge(self, loaded: UnitLoaded, unit: UnitNo) -> UnitLoaded | LoadFailed:
        """The news, or, where what was read is not what it was, news that it failed."""
        before = self._integrity.judge(unit, loaded.checksum)
        if before is None:
            if self._integrity.complete:
                self._keep()
            return loaded
        first = self._units.units[unit].ranges[0]
        path = self._checkpoint.files[first.file].path
        end = max(part.offset + part.nbytes for part in self._units.units[unit].ranges if part.file == first.file)
        where = f"bytes {first.offset} to {end}{self._names(first.file, first.offset, end, unit)}"
        text = f"{path}: what was read of {where} has the checksum {loaded.checksum:08x}, it had {before:08x}"
        return LoadFailed(loaded.loader, loaded.epoch, loaded.ticket, WeightsChanged.exit_code, text)

    def explain(self, failed: LoadFailed, unit: UnitNo) -> LoadFailed:
        """The same, with the tensor named: a loader knows none."""
        if len(failed.where) != 2 or not 0 <= failed.where[0] < len(self._checkpoint.files):
            return failed
        file, offset = failed.where
        return replace(failed, text=clip(failed.text + self._names(file, offset, offset + 1, unit)))

    def report(self) -> Verified:
        proven = all(file.path.name in self._index.sha256 for file in self._checkpoint.files)
        return Verified(self._mode, self._integrity.compared, self._integrity.news, proven)

    def close(self) -> None:
        """Keep what is new, unless the disk does not answer."""
        self._keep()
        if self._keeper is not None:
            self._keeper.join(KEEP_S)

    def _keep(self) -> None:
        """In a thread of its own: a slow card takes its time, and the loaders wait for orders."""
        if self._integrity.news == self._kept or (self._keeper is not None and self._keeper.is_alive()):
            return
        self._kept = self._integrity.news
        index = replace(self._index, units=dict(self._integrity.known))

        def keep() -> None:
            self.failure = index.keep()

        self._keeper = threading.Thread(target=keep, daemon=True)
        self._keeper.start()

    def _names(self, file: int, begin: int, end: int, unit: UnitNo) -> str:
        names = self._checkpoint.tensors_in(file, begin, end)
        what = " to ".join(dict.fromkeys((names[0], names[-1]))) + ", of " if names else ""
        return f" (in {what}unit {unit})"
