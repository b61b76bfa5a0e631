"""The weights files of a run, looked at by who computes with them: a disk that no longer answers stops nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from hermes_mp.errors import WeightsChanged
from hermes_mp.host.checkpoint import CheckpointFile

BRIEFLY_S = 1.0


class WatchedFiles:
    """As they were when their headers were read."""

    def __init__(self, files: Iterable[CheckpointFile]) -> None:
        self._files = tuple(files)

    def look(self) -> None:
        """Raises WeightsChanged where one of them is not what it was."""
        for file in self._files:
            how = file.change()
            if how is not None:
                raise WeightsChanged(f"{file.path} {how} while it was in use")

    def explain(self, error: Exception) -> Exception:
        """The error, or that a file has changed, which may be why. A disk that does not answer soon tells nothing."""
        found: list[WeightsChanged] = []

        def look() -> None:
            try:
                self.look()
            except WeightsChanged as change:
                found.append(change)

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        looking.join(BRIEFLY_S)
        return found[0] if found else error
