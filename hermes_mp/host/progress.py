"""One counter per loader in shared memory, bumped at every piece read: how the daemon sees a hang from outside.

Single writer per counter, one cache line each, 8 bytes written at once: no lock. Knows nothing of clocks.
"""

from __future__ import annotations

import mmap
import os

from hermes_mp.host.arena import sealed_memfd, sealed_nbytes
from hermes_mp.ids import LoaderNo

LOADERS = 192  # 64 that read here, and those that take from other boards
LINE_NBYTES = 64


class ProgressBoard:
    """Create it in the daemon, attach to its `fd` in the loaders."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._cells = memoryview(mmap.mmap(fd, sealed_nbytes(fd))).cast("Q")

    @classmethod
    def create(cls) -> ProgressBoard:
        """A board of `LOADERS` counters, all zero."""
        fd = sealed_memfd("hermes-progress", LOADERS * LINE_NBYTES)
        try:
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int) -> ProgressBoard:
        """The board behind an inherited descriptor."""
        return cls(fd)

    def bump(self, loader: LoaderNo) -> None:
        """Say that loader number `loader` is getting on."""
        self._cells[loader * LINE_NBYTES // 8] += 1

    def read(self, loader: LoaderNo) -> int:
        """How often loader number `loader` has got on."""
        return self._cells[loader * LINE_NBYTES // 8]

    def close(self) -> None:
        """Close the descriptor and the mapping."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._cells.release()
