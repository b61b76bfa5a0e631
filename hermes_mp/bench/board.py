"""Plays a small board on a larger machine: capped disks, memory limits, read-ahead, huge pages; each undone when left.

Root and cgroup v1. `Unavailable` says in one line what is missing; a benchmark then leaves that regime out.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hermes_mp.host.ceilings import Ceilings

CGROUPS = Path("/sys/fs/cgroup")
SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
CPU_SHARES = 262144  # the most there is: 256 times what everything else together has
EMPTY_S = 5.0
GIVE_UP_S = 30.0
READ_CAP = "blkio.throttle.read_bps_device"
PREFIX = "hermes-bench-"
_numbers = itertools.count()


class Unavailable(Exception):
    """This machine cannot play that."""


@dataclass(frozen=True)
class ControlGroup:
    """A group of our own; processes are put in, and what they start stays in."""

    folder: Path

    def enter(self, pid: int) -> None:
        """ProcessLookupError where it is gone."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def read(self, knob: str) -> str:
        return (self.folder / knob).read_text()

    def write(self, knob: str, value: str) -> None:
        """OSError where the kernel does not take it."""
        (self.folder / knob).write_text(value)


@contextlib.contextmanager
def control_group(controller: str, knob: str, value: str) -> Iterator[ControlGroup]:
    """A fresh group of `controller` with `knob` = `value`. What still runs in it at the end is killed."""
    top = CGROUPS / controller
    if not (top / "cgroup.procs").exists():
        raise Unavailable(f"no cgroup v1 {controller} controller at {top}")
    folder = top / f"{PREFIX}{os.getpid()}-{next(_numbers)}"
    _remove_orphans(top)
    try:
        folder.mkdir()
    except OSError:  # EACCES, EROFS
        raise Unavailable(f"not allowed to make a group in {top}: run it as root") from None
    try:
        try:
            (folder / knob).write_text(value)
        except OSError as error:
            raise Unavailable(f"{knob} does not take {value!r}: {error.strerror}") from None
        yield ControlGroup(folder)
    finally:
        remove_group(folder)


@contextlib.contextmanager
def inside(group: ControlGroup, controller: str) -> Iterator[None]:
    """This process, and with it every child it starts in here, in `group`; back where it was afterwards."""
    home = CGROUPS / controller / _own_group(controller).lstrip("/")
    group.enter(os.getpid())
    try:
        yield
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))


def remove_group(folder: Path) -> None:
    """Remove a group once what runs in it has ended; what has not within seconds is killed: it is our own.

    A group that still cannot be removed after `GIVE_UP_S` is left, and said on standard error.
    """
    started = time.monotonic()
    while True:
        try:
            folder.rmdir()
            return
        except FileNotFoundError:  # somebody else was tidy
            return
        except OSError as error:
            waited = time.monotonic() - started
            if waited > GIVE_UP_S:
                print(f"{folder} is left behind: {error.strerror}; try rmdir later", file=sys.stderr, flush=True)
                return
            if waited > EMPTY_S:
                with contextlib.suppress(OSError):
                    for pid in (folder / "cgroup.procs").read_text().split():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)


def _remove_orphans(top: Path) -> None:
    """Groups of benchmarks that were killed before they could remove them; one that somebody is in stays."""
    for folder in top.glob(f"{PREFIX}*"):
        if not Path(f"/proc/{folder.name.removeprefix(PREFIX).partition('-')[0]}").exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


def _own_group(controller: str) -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path
    return "/"


def disk_of(path: Path) -> str:
    """The major:minor number of the disk that holds `path`; a partition is throttled by its disk."""
    number = os.stat(path).st_dev
    disk = f"{os.major(number)}:{os.minor(number)}"
    parent = Path(f"/sys/dev/block/{disk}").resolve().parent / "dev"
    return parent.read_text().strip() if parent.exists() else disk


@contextlib.contextmanager
def read_cap(path: Path, nbytes_per_s: float) -> Iterator[ControlGroup]:
    """A group that reads from the disk of `path` at no more than so many bytes per second."""
    disk = disk_of(path)
    if not Path(f"/sys/dev/block/{disk}").exists():
        raise Unavailable(f"{path} lies on no block device that could be throttled")
    with control_group("blkio", READ_CAP, f"{disk} {round(nbytes_per_s)}") as group:
        yield group


def change_cap(group: ControlGroup, path: Path, nbytes_per_s: float) -> None:
    """Another rate for a group of `read_cap`, from now on."""
    group.write(READ_CAP, f"{disk_of(path)} {round(nbytes_per_s)}")


@contextlib.contextmanager
def capped_disk(directory: Path, mb_per_s: int) -> Iterator[None]:
    """This process and its children read from the disk of `directory` at `mb_per_s` (10^6 bytes) at most; 0: no cap."""
    if not mb_per_s:
        yield
        return
    with read_cap(directory, mb_per_s * 1e6) as group, inside(group, "blkio"):
        yield


@contextlib.contextmanager
def memory_limit(nbytes: int) -> Iterator[ControlGroup]:
    """A memory group of `nbytes`, page cache included. This process stays outside of it."""
    with control_group("memory", "memory.limit_in_bytes", str(nbytes)) as group:
        yield group


def oom_kills(group: ControlGroup) -> int:
    """How many processes of a memory group the kernel has killed."""
    return int(dict(line.split() for line in group.read("memory.oom_control").splitlines())["oom_kill"])


@contextlib.contextmanager
def preferred() -> Iterator[None]:
    """On a machine that others use too: the processor is ours whenever we want it."""
    with control_group("cpu", "cpu.shares", str(CPU_SHARES)) as group, inside(group, "cpu"):
        yield


@contextlib.contextmanager
def setting(knob: Path, value: str) -> Iterator[str]:
    """A setting of the kernel at `value`; yields what it then says. The chosen word of several is what is restored."""
    if not knob.exists():
        raise Unavailable(f"this kernel has no {knob}")
    before = knob.read_text()
    chosen = before.partition("[")[2].partition("]")[0] or before.strip()
    try:
        knob.write_text(value)
    except OSError:
        raise Unavailable(f"not allowed to write {knob}: run it as root") from None
    try:
        yield knob.read_text().strip()
    finally:
        knob.write_text(chosen)


def shmem_huge_pages(word: str) -> contextlib.AbstractContextManager[str]:
    """`shmem_enabled` set to `word`."""
    return setting(SHMEM_ENABLED, word)


def read_ahead_knob(path: Path) -> Path:
    """Where the kernel's read-ahead of the disk of `path` is set, in KiB; it need not exist."""
    return Path(f"/sys/dev/block/{disk_of(path)}/queue/read_ahead_kb")


def undo_when_ended() -> None:
    """Make SIGTERM, SIGINT and SIGHUP exceptions, even in a background job of a shell, so that the contexts are left.

    Only the first is one: another, by an impatient hand, would interrupt the undoing and leave the machine changed.
    """
    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def leave(first: int, frame: FrameType | None) -> None:
        for number in ends:
            signal.signal(number, _ignore)
        raise SystemExit(128 + first)

    for number in ends:
        signal.signal(number, leave)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN not handed down to a process that is started."""


def evict(paths: Sequence[Path]) -> float:
    """Drop these files from the page cache, which needs no privilege; what some process has mapped stays.

    The share of them that is still there.
    """
    for path in paths:
        with open(path, "rb") as file:
            os.fdatasync(file.fileno())  # pages that are dirty stay: a model that was just made
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return statistics.mean(cached_share(path) for path in paths)


def touch_memory(nbytes: int) -> None:
    """Take so much memory, half of what is free at most, and give it back.

    The host of a virtual machine takes memory back that lies free in it, and what it has to give anew costs a process
    that is timed 2.3 s per GB, where zeroing huge pages costs 0.06 (measured on one).
    """
    with Ceilings() as ceilings:
        nbytes = min(nbytes, min(one.free_nbytes for one in ceilings.look()) // 2)
    if nbytes < mmap.PAGESIZE:
        return
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, nbytes, mmap.PAGESIZE):
            memory[at] = 1


def cached_share(path: Path, looks: int = 32) -> float:
    """How much of a file is in the page cache, by asking at some places for what is there without waiting.

    The pages asked for come into the cache, one each: nothing is read ahead for random reads.
    """
    found, nbytes = 0, path.stat().st_size
    buffer = bytearray(1)
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for look in range(looks):
            try:
                found += os.preadv(file.fileno(), [buffer], nbytes * look // looks, os.RWF_NOWAIT) > 0
            except BlockingIOError:
                continue
    return found / looks


def drop_caches() -> None:
    """Empty the whole page cache, as far as we are allowed to."""
    subprocess.run(["sync"], check=True)
    with contextlib.suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
