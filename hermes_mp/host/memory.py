"""How much memory a process has, and how much is to be had: reads /proc and the memory cgroup, v1 and v2.

Knows nothing of budgets or agents. Shared memory (the arena) is in none of these figures: it is counted once, by
the arena itself (`Arena.allocated_nbytes`). A process that is gone has no memory, so asking about it gives zeros.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

SHARED_PATHS = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV", "/anon_hugepage")
QUICK_FIELDS = re.compile(rb"^(RssAnon|RssFile|VmPTE):\s+(\d+) kB$", re.MULTILINE)
UNLIMITED = 1 << 60  # cgroup v1 says "no limit" by a number just below 2**63


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
        status = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
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
    return _fields("/proc/meminfo")["MemTotal"]


def available_nbytes() -> int:
    """What may still be taken without swapping or an OOM kill: of the machine, and of every cgroup above us."""
    free = _fields("/proc/meminfo")
    least = free.get("MemAvailable", free.get("MemFree", 0))
    for folder, version in _cgroups():
        room = _cgroup_room(folder, version)
        if room is not None:
            least = min(least, room)
    return max(0, least)


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since boot, in whatever cgroup."""
    for line in _lines("/proc/vmstat"):
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def _cgroup_room(folder: str, version: int) -> int | None:
    """Bytes left below the limit of one cgroup; None without a limit. Unmapped page cache can be had back."""
    limit = _number(f"{folder}/memory.{'max' if version == 2 else 'limit_in_bytes'}")
    usage = _number(f"{folder}/memory.{'current' if version == 2 else 'usage_in_bytes'}")
    if limit is None or usage is None or limit >= UNLIMITED:
        return None
    stat: dict[str, int] = {}
    for line in _lines(f"{folder}/memory.stat"):
        name, _, value = line.partition(" ")
        stat[name] = int(value)
    prefix = "" if version == 2 else "total_"  # v1 tells a cgroup's own pages and those of its children apart
    inactive, active = stat.get(f"{prefix}inactive_file", 0), stat.get(f"{prefix}active_file", 0)
    mapped = stat.get("file_mapped" if version == 2 else "total_mapped_file", 0)
    return limit - usage + max(inactive, inactive + active - mapped)


def _cgroups() -> Iterator[tuple[str, int]]:
    """(folder, version) of our memory cgroup and of every one above it that can be seen from here."""
    paths: dict[str, str] = {}  # controllers -> path, as this process is named in the hierarchy
    for line in _lines("/proc/self/cgroup"):
        _, controllers, place = line.split(":", 2)
        paths[controllers or "cgroup2"] = place
    for line in _lines("/proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = right.split(None, 2)
        path: str | None
        if kind == "cgroup2":
            path, version = paths.get("cgroup2"), 2
        elif kind == "cgroup" and "memory" in options.split(","):
            path, version = next((at for names, at in paths.items() if "memory" in names.split(",")), None), 1
        else:
            continue
        if path is None:
            continue
        inner = os.path.relpath(path, root) if path.startswith(root) else "."
        folder = os.path.normpath(os.path.join(mount, inner))
        while folder.startswith(mount):
            yield folder, version
            folder = os.path.dirname(folder)


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


def _number(path: str) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None
