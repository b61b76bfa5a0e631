"""How much memory may still be taken: of the machine, and of every memory cgroup above us, v1 and v2.

Its files stay open and are read in place, so that one look costs tens of microseconds and can be had ten times a
second. It knows no budget and no process. `root`: where /proc and the cgroup mounts are looked for, for a tree other
than this machine's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from hermes_mp.host.mounts import plain
from hermes_mp.host.retrying import retried

UNLIMITED = 1 << 60  # cgroup v1 says "no limit" by a number just below 2**63
LOOK_NBYTES = 16384  # longer than any of these files
MACHINE = re.compile(rb"^(MemTotal|MemAvailable|MemFree): +(\d+)", re.MULTILINE)
# v1 tells the pages of a group alone from those with the groups inside, v2 gives the latter only.
GROUP = {
    1: re.compile(rb"^total_(inactive_file|active_file|shmem|mapped_file) (\d+)", re.MULTILINE),
    2: re.compile(rb"^(inactive_file|active_file|shmem|file_mapped) (\d+)", re.MULTILINE),
}


@dataclass(frozen=True)
class Ceiling:
    """One limit above us at one moment, in bytes.

    `free_nbytes` may be taken without swapping or an OOM kill; below 0 where the kernel is already taking memory
    back. `mapped_nbytes`: pages of files that processes have mapped (code, mostly) and that count as taken here.
    """

    name: str
    limit_nbytes: int
    free_nbytes: int
    mapped_nbytes: int


class Ceilings:
    """The limits that hold for this process; its children share them. Where it is moved elsewhere, make a new one."""

    def __init__(self, root: str = "") -> None:
        self._meminfo = _File(f"{root}/proc/meminfo")
        self._groups = [_Group(folder, version) for folder, version in _cgroups(root)]

    def look(self) -> list[Ceiling]:
        """All of them, the machine first. A cgroup without a limit is none."""
        found = [self._machine()]
        for group in self._groups:
            ceiling = group.look()
            if ceiling is not None:
                found.append(ceiling)
        return found

    def close(self) -> None:
        """Close the files; harmless when repeated."""
        self._meminfo.close()
        for group in self._groups:
            group.close()

    def __enter__(self) -> Ceilings:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _machine(self) -> Ceiling:
        found = self._meminfo.fields(MACHINE)
        free = found.get(b"MemAvailable", found.get(b"MemFree", 0))  # counts mapped files as free
        return Ceiling("machine", found.get(b"MemTotal", 0) * 1024, free * 1024, 0)


class _Group:
    """One memory cgroup."""

    def __init__(self, folder: str, version: int) -> None:
        self.folder = folder
        self._pattern = GROUP[version]
        names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        self._limits = [_File(f"{folder}/{name}") for name in names]
        self._usage = _File(f"{folder}/memory.{'current' if version == 2 else 'usage_in_bytes'}")
        self._stat = _File(f"{folder}/memory.stat")

    def look(self) -> Ceiling | None:
        # Above memory.high nothing is killed, but everything is slowed down until it is below again.
        limits = [number for file in self._limits if (number := file.number()) is not None and number < UNLIMITED]
        usage = self._usage.number() if limits else None
        if usage is None:
            return None
        stat = self._stat.fields(self._pattern)
        cache = stat.get(b"inactive_file", 0) + stat.get(b"active_file", 0)
        # The mapped pages that are not shared memory are code and data in use: taking them back means reading them
        # again at once. Shared memory (the arena) is counted as mapped as well, but it is no page cache.
        mapped = stat.get(b"file_mapped", stat.get(b"mapped_file", 0)) - stat.get(b"shmem", 0)
        mapped = min(cache, max(0, mapped))
        limit = min(limits)
        return Ceiling(self.folder, limit, limit - usage + cache - mapped, mapped)

    def close(self) -> None:
        for file in (*self._limits, self._usage, self._stat):
            file.close()


class _File:
    """A file of the kernel's, open; one that is not there has no content."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = retried(os.open, path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            self._fd = -1

    def text(self) -> bytes:
        if self._fd < 0:
            return b""
        try:
            return os.pread(self._fd, LOOK_NBYTES, 0)
        except OSError:  # the cgroup was removed: we are in another one
            return b""

    def number(self) -> int | None:
        """Its one number; None where it says 'max', or nothing."""
        text = self.text().strip()
        return int(text) if text.isdigit() else None

    def fields(self, pattern: re.Pattern[bytes]) -> dict[bytes, int]:
        """What `pattern` finds: a name and its number."""
        return {name: int(number) for name, number in pattern.findall(self.text())}

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def own_oom_kills(root: str = "") -> int:
    """How many processes of our own memory cgroup the kernel has killed for want of memory; v2 adds those below it."""
    for folder, version in _cgroups(root):
        name = "memory.events" if version == 2 else "memory.oom_control"
        found = re.search(r"^oom_kill (\d+)$", "\n".join(_lines(f"{folder}/{name}")), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def _cgroups(root: str) -> Iterator[tuple[str, int]]:
    """(folder, version) of our memory cgroup and of every one above it that can be seen from here."""
    paths: dict[str, str] = {}  # controllers -> path, as this process is named in the hierarchy
    for line in _lines(f"{root}/proc/self/cgroup"):
        _, controllers, place = line.split(":", 2)
        paths[controllers or "cgroup2"] = place
    for line in _lines(f"{root}/proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        top, mount = left.split()[3:5]
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
        top, mount = plain(top), plain(mount)
        inner = os.path.relpath(path, top) if _is_inside(path, top) else "."
        folder = os.path.normpath(os.path.join(mount, inner))
        while _is_inside(folder, mount):
            yield root + folder, version
            if folder == mount:
                break
            folder = os.path.dirname(folder)


def _is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath((path, folder)) == folder


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except (FileNotFoundError, PermissionError):
        return []
