"""What binding needs from the processes behind it: units on demand, rows of a file, and someone to tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from hermes_mp.errors import ReadFailed


class Supply(Protocol):
    """Blocking calls of one thread at a time. Every one of them may raise DaemonLost or ReadFailed."""

    buffer: Any  # the arena, as anything torch.frombuffer takes

    def acquire(self, unit: int) -> int:
        """Wait until the unit is loaded; the byte of `buffer` where its slot begins. It stays until `release`."""

    def release(self, unit: int, computed: bool) -> None:
        """The unit's slot may be used for something else."""

    def keeps(self, unit: int) -> bool:
        """Whether the unit is there without being asked for: a resident that was used before."""

    def read_rows(self, file: int, ranges: Sequence[tuple[int, int]], into: memoryview) -> None:
        """Read the (offset, nbytes) ranges of file number `file`, one after the other, into `into`."""

    def forecast(self, more: bool, units: int | None) -> None:
        """Whether another pass is expected after this; both need the first `units` units (0: all; None: as before)."""

    def pass_started(self, rows: int, tokens: int) -> None: ...

    def pass_ended(self, complete: bool) -> None: ...


@contextmanager
def reading(tensor: str) -> Iterator[None]:
    """Where the bytes of this tensor are read: a ReadFailed then says so."""
    try:
        yield
    except ReadFailed as error:
        raise ReadFailed(f"{error} (in {tensor})", offset=error.offset) from error
