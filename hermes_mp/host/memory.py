"""How much memory a process has, and how much is to be had: reads /proc; the limits above us are host/ceilings.py's.

Knows nothing of budgets or agents. Shared memory (the arena) is in none of these figures: it is counted once, by
the arena itself (`Arena.allocated_nbytes`). A process that is gone has no memory, so asking about it gives zeros.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from hermes_mp.errors import SystemCallFailed
from hermes_mp.host import procstat
from hermes_mp.host.ceilings import Ceilings, own_oom_kills
from hermes_mp.host.retrying import retried

SHARED_PATHS = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV", "/anon_hugepage")
QUICK_FIELDS = re.compile(rb"^(RssAnon|RssFile|VmPTE):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Memory:
    """Bytes of one process: anonymous pages, its share of mapped files, page tables."""

    private_nbytes: int
    file_nbytes: int
    tables_nbytes: int

    @property
    def total_nbytes(self) -> int:
        """What counts against the budget."""
        return self.private_nbytes + self.file_nbytes + self.tables_nbytes


def exact(pid: int) -> Memory:
    """By proportional share; walks every page table entry (13 ms per GiB mapped): never in a timed run.

    Kernels before 5.4 do not tell the kinds apart; there this is `quick`, which is never less.
    """
    rollup = _fields(f"/proc/{pid}/smaps_rollup")
    if "Pss_Anon" not in rollup:
        return quick(pid)
    tables = _fields(f"/proc/{pid}/status").get("VmPTE", 0)
    return Memory(rollup["Pss_Anon"], rollup.get("Pss_File", 0), tables)


def quick(pid: int) -> Memory:
    """By the kernel's counters, microseconds; a library that several processes share counts fully in each."""
    try:
        status = retried(os.open, f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return Memory(0, 0, 0)
    try:
        text = os.read(status, 16384)
    except ProcessLookupError:
        return Memory(0, 0, 0)
    finally:
        os.close(status)
    found = {name: int(kib) * 1024 for name, kib in QUICK_FIELDS.findall(text)}
    return Memory(found.get(b"RssAnon", 0), found.get(b"RssFile", 0), found.get(b"VmPTE", 0))


def peak_nbytes(pid: int) -> int:
    """The most that the process has had in memory since it began its program, of everything it maps."""
    return _fields(f"/proc/{pid}/status").get("VmHWM", 0)


def major_faults(pid: int) -> int:
    """How often the process has waited for a page from a disk since it began: of its program, or swapped out."""
    return procstat.look(pid).major_faults


def uss_nbytes(pid: int) -> int:
    """Bytes that would be free if the process ended.

    `smaps_rollup` cannot say: an arena page that only one process has mapped counts there as Private.
    """
    total = 0
    shared = False
    for line in _lines(f"/proc/{pid}/smaps"):
        name, _, rest = line.partition(":")
        if "-" in name:  # the head line of a mapping: 'start-end perms offset device inode path'
            path = line.split(None, 5)[5:]
            shared = bool(path) and path[0].startswith(SHARED_PATHS)
        elif not shared and name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb"):
            total += int(rest.split()[0]) * 1024
    return total


def mapping_nbytes(field: str, start: int) -> int:
    """The smaps figure `field` of the mapping of this process that holds address `start`."""
    inside = False
    for line in _lines("/proc/self/smaps"):
        name, _, rest = line.partition(":")
        if "-" in name:
            low, _, high = line.split(None, 1)[0].partition("-")
            inside = int(low, 16) <= start < int(high, 16)
        elif inside and name == field:
            return int(rest.split()[0]) * 1024
    return 0


def total_nbytes() -> int:
    """The machine's memory."""
    found = _fields("/proc/meminfo").get("MemTotal")
    if found is None:
        raise SystemCallFailed("/proc/meminfo does not say how much memory there is", "mount /proc")
    return found


def available_nbytes() -> int:
    """What may still be taken without swapping or an OOM kill: of the machine, and of every cgroup above us."""
    with Ceilings() as ceilings:
        return max(0, min(ceiling.free_nbytes for ceiling in ceilings.look()))


def oom_kills() -> tuple[int, int]:
    """How many processes the kernel has killed for want of memory: in whatever cgroup since boot, and in ours.

    The latter is 0 where it cannot be told, as of v2's root.
    """
    return _field("/proc/vmstat", "oom_kill"), own_oom_kills()


def _field(path: str, name: str) -> int:
    """Of a file of 'name 123' lines."""
    return next((int(line.split()[1]) for line in _lines(path) if line.startswith(f"{name} ")), 0)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or not ours to see
        return []


def _fields(path: str) -> dict[str, int]:
    """The 'Name:  123 kB' lines of a /proc file, in bytes."""
    found: dict[str, int] = {}
    for line in _lines(path):
        words = line.replace(":", " ").split()
        if len(words) == 3 and words[2] == "kB":
            found[words[0]] = int(words[1]) * 1024
    return found
