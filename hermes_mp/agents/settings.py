"""What a daemon is told, and what of that it tells compute."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Any

from hermes_mp.config import FIRST
from hermes_mp.host.checkpoint import Checkpoint


@dataclass(frozen=True)
class DaemonSettings:
    """`caller_death_fd` hangs up when the caller behind `load` is gone; -1 in a launch."""

    checkpoint: Checkpoint
    loaders: int | None  # None: as many as compute's plan says
    memory: int | str | None  # bytes, "auto" or None: no limit
    context: int | None
    batch: int
    dtype: str
    threads: int | None
    options: dict[str, Any] = field(default_factory=dict)
    caller_death_fd: int = -1
    sample_exactly: bool = False
    slots: int | None = None  # so many, whatever the budget says; for tests and benchmarks
    eager: bool = True  # read before the first pass begins
    timeout_s: float | None = None  # compute may stand still for so long
    verify: str = FIRST
    soft_s: float = 2.0  # a load without progress for so long is also read into another slot
    hard_s: float = 30.0  # then its loader is killed

    @property
    def has_caller(self) -> bool:
        return self.caller_death_fd >= 0

    def for_compute(self) -> dict[str, Any]:
        """What every incarnation of our compute is told of these."""
        return {
            "directory": str(self.checkpoint.directory),
            "files": [(str(file.path), *astuple(file.stamp)) for file in self.checkpoint.files],
            "dtype": self.dtype,
            "context": self.context,
            "batch": self.batch,
            "threads": self.threads,
            "memory": self.memory,
            "loaders": self.loaders,
            "options": self.options,
        }
