"""What every process of a run takes: sampled for the report, and measured for the division of the budget."""

from __future__ import annotations

import os
import time

from hermes_mp.agents.crew import LoaderCrew
from hermes_mp.core.budget import DAEMON_NBYTES, LOADER_NBYTES, Needs
from hermes_mp.host import memory

QUICK_S, EXACT_S = 0.25, 0.05  # between two samples; a quick one of five processes costs 1 ms of processor


class Accounting:
    """`compute` is the process id of compute, 0 while it has none, and `compute_name` what a report calls it."""

    def __init__(self, crew: LoaderCrew, compute_name: str, exactly: bool) -> None:
        self.compute = 0
        self._crew, self._compute_name, self._exactly = crew, compute_name, exactly
        self._file_shares: dict[int, float] = {}
        self._faults: dict[int, int] = {}
        self.largest: dict[str, int] = {}  # the sample whose total was most, since compute's present process began
        self._taken_nbytes = self._base_nbytes = self._reserve_nbytes = 0
        self._next_s = 0.0

    def due(self) -> bool:
        """Whether it is time for another sample."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + (EXACT_S if self._exactly else QUICK_S)
        return True

    def sample(self, exactly: bool = False) -> tuple[dict[str, int], bool]:
        """Bytes by process, and whether they are exact (page tables walked) or by the kernel's counters.

        The counters give a library that several processes share in full to each; the share of the last exact look is
        applied to them.
        """
        exactly = exactly or self._exactly
        pids = {"daemon": os.getpid(), **self._crew.pids()}
        if self.compute:
            pids[self._compute_name] = self.compute
        found: dict[str, int] = {}
        for name, pid in pids.items():
            quick = memory.quick(pid)
            if exactly or pid not in self._file_shares:
                exact = memory.exact(pid)
                # At most all: a process that has just begun its program may have had none of it a moment before.
                self._file_shares[pid] = min(1.0, exact.file_nbytes / max(1, quick.file_nbytes))
            found[name] = quick.private_nbytes + int(self._file_shares[pid] * quick.file_nbytes) + quick.tables_nbytes
        self._taken_nbytes = found.get(self._compute_name, 0)
        if sum(found.values()) > sum(self.largest.values()):
            self.largest = found
        return found, exactly

    def compute_began(self, pid: int) -> None:
        """This process computes from now on."""
        self.compute, self.largest = pid, {}

    def faults(self) -> int:
        """How often our processes have waited for a page from a disk since this was last asked."""
        before = self._faults
        pids = [os.getpid(), *self._crew.pids().values(), *([self.compute] if self.compute else [])]
        self._faults = {pid: memory.major_faults(pid) for pid in pids}
        return sum(max(0, count - before.get(pid, count)) for pid, count in self._faults.items())

    @property
    def promised_nbytes(self) -> int:
        """What was set aside for compute's KV cache and activations and was not taken at the last sample."""
        return max(0, self._reserve_nbytes - max(0, self._taken_nbytes - self._base_nbytes))

    def needs(self, loaders: int, compute_nbytes: int, reserve_nbytes: int, wish_nbytes: int = 0) -> Needs:
        """What must be left beside the slots, by what our processes take now."""
        each = max([LOADER_NBYTES, *(memory.exact(pid).total_nbytes for pid in self._crew.pids().values())])
        own = max(DAEMON_NBYTES, memory.exact(os.getpid()).total_nbytes)
        # A caller's past is its own.
        start = memory.peak_nbytes(self.compute) if self.compute and self._compute_name == "compute" else 0
        self._base_nbytes, self._reserve_nbytes = self._taken_nbytes, reserve_nbytes
        return Needs(own, each * loaders, compute_nbytes, reserve_nbytes, wish_nbytes, start)

    def held(self, needs: Needs) -> tuple[int, int]:
        """What our processes have taken already of what `needs` sets aside, in bytes: their own, and of mapped files.

        A caller that is not to be counted needs nothing, so nothing it has is ours.
        """
        crew = [memory.quick(pid) for pid in self._crew.pids().values()]
        parts = [([memory.quick(os.getpid())], needs.daemon), (crew, needs.loaders)]
        if self.compute:
            parts.append(([memory.quick(self.compute)], needs.compute))
        own = files = 0
        for found, limit in parts:
            private = min(limit, sum(one.private_nbytes + one.tables_nbytes for one in found))
            own += private
            files += min(limit - private, sum(one.file_nbytes for one in found))
        return own, files
