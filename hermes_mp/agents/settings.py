"""What a daemon is told, and what of that it tells compute."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Any

from hermes_mp.agents.borrowed import Borrowed
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
    in_flight: int = 1  # requests at once
    room: int | None = None  # bytes of a unit where boards share the layers; None: a layer
    boards: dict[str, Any] | None = None  # of a head: what `agents.compute_head` is told of the other boards
    borrowed: Borrowed | None = None  # what other boards lend to this one
    exchange_fd: int = -1  # of a stage: the memory in which bundles come and go

    @property
    def has_caller(self) -> bool:
        return self.caller_death_fd >= 0

    @property
    def is_shared(self) -> bool:
        """Whether other boards run layers of the model: what is remembered of its units is of no use then."""
        return self.boards is not None or self.exchange_fd >= 0

    @property
    def has_copy(self) -> bool:
        """Whether the weights lie here, and not only the headers of another board's."""
        return self.borrowed is None or self.borrowed.has_copy

    @property
    def remote_loaders(self) -> int:
        """How many loaders take from other boards."""
        return 0 if self.borrowed is None else self.borrowed.loaders

    def for_compute(self) -> dict[str, Any]:
        """What every incarnation of our compute is told of these."""
        return {
            "directory": str(self.checkpoint.directory),
            "files": [(str(file.path), *astuple(file.stamp)) for file in self.checkpoint.files if self.has_copy],
            "dtype": self.dtype,
            "context": self.context,
            "batch": self.batch,
            "in_flight": self.in_flight,
            "threads": self.threads,
            "memory": self.memory,
            "loaders": self.loaders if self.has_copy else self.remote_loaders,
            "options": self.options,
            "room": self.room,
            "boards": self.boards,
            "remote_loaders": self.remote_loaders,
            "borrowed": None if self.borrowed is None or self.has_copy else self.borrowed.as_json(),
        }
