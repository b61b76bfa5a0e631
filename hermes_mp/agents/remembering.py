"""What earlier runs of this model knew of its units, and what this run leaves for the next one."""

from __future__ import annotations

from collections.abc import Callable

from hermes_mp.agents.settings import DaemonSettings
from hermes_mp.core.unitlist import UnitFile
from hermes_mp.host import unitcache
from hermes_mp.host.unitcache import Remembered


class Remembering:
    """`say` hears, once, why nothing can be kept."""

    def __init__(self, settings: DaemonSettings, say: Callable[[str], None]) -> None:
        self._settings, self._say = settings, say
        self._path = unitcache.entry_path(
            settings.checkpoint.digest, settings.dtype, settings.context, settings.batch, settings.memory,
            settings.loaders, settings.in_flight,
        )  # fmt: skip
        self._told = False

    def recall(self) -> Remembered | None:
        """What can be begun with, if anything."""
        if self._settings.is_shared or not self._settings.has_copy:
            return None
        known = unitcache.recall(self._path)
        files = tuple(UnitFile(str(file.path), file.nbytes) for file in self._settings.checkpoint.files)
        if known is None or known.units.files != files:
            return None
        ours = known.start_nbytes or self._settings.has_caller  # a caller's base is its own
        return known if ours else None

    def remember(self, entry: Remembered) -> None:
        """For the next run."""
        if self._settings.is_shared or self._settings.borrowed is not None:
            return
        self.failed(unitcache.remember(self._path, entry))
        if self._settings.loaders is None:
            self.failed(unitcache.remember_loaders(str(self._settings.checkpoint.directory), entry.plan.loaders))

    def failed(self, why: str) -> None:
        """Something could not be kept, unless `why` is empty; the run goes on."""
        if why and not self._told:
            self._told = True
            self._say(why)
