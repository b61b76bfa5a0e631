"""Plays a small board on a larger machine: a capped disk, a memory limit, huge pages; each is undone when left.

Used by the other scripts. Root and cgroup v1; `Unavailable` says in one line what is missing. A context moves this
process, and with it every child it starts inside, into a control group of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

CGROUPS = Path("/sys/fs/cgroup")
SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
CPU_SHARES = 262144  # the most there is: 256 times what everything else together has
EMPTY_S = 5.0


class Unavailable(Exception):
    """This machine cannot play that."""


@contextlib.contextmanager
def _group(controller: str, knob: str, value: str) -> Iterator[Path]:
    """This process in a fresh group of `controller` with `knob` = `value`; back where it was afterwards."""
    top = CGROUPS / controller
    if not (top / "cgroup.procs").exists():
        raise Unavailable(f"no cgroup v1 {controller} controller at {top}")
    home = top / _own_group(controller).lstrip("/")
    folder = top / f"hermes-bench-{os.getpid()}"
    try:
        folder.mkdir()
    except PermissionError:
        raise Unavailable(f"not allowed to make a group in {top}: run it as root") from None
    try:
        (folder / knob).write_text(value)
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        yield folder
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
        remove_group(folder)


def remove_group(folder: Path) -> None:
    """Remove a group once what runs in it has ended; what has not within seconds is killed: it is our own."""
    deadline = time.monotonic() + EMPTY_S
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                for pid in (folder / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)


def _own_group(controller: str) -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path
    return "/"


@contextlib.contextmanager
def capped_disk(directory: Path, mb_per_s: int) -> Iterator[None]:
    """Reads from the disk that holds `directory` are throttled to `mb_per_s` (10^6 bytes); 0: the disk as it is."""
    if not mb_per_s:
        yield
        return
    number = os.stat(directory).st_dev
    disk = f"{os.major(number)}:{os.minor(number)}"
    parent = Path(f"/sys/dev/block/{disk}").resolve().parent / "dev"
    if parent.exists():  # a partition is throttled by its disk
        disk = parent.read_text().strip()
    with _group("blkio", "blkio.throttle.read_bps_device", f"{disk} {mb_per_s * 10**6}"):
        yield


@contextlib.contextmanager
def preferred() -> Iterator[None]:
    """On a machine that others use too: the processor is ours whenever we want it."""
    with _group("cpu", "cpu.shares", str(CPU_SHARES)):
        yield


@contextlib.contextmanager
def shmem_huge_pages(word: str) -> Iterator[str]:
    """`shmem_enabled` set to `word`; yields what it then says."""
    if not SHMEM_ENABLED.exists():
        raise Unavailable("this kernel has no huge pages for shared memory")
    before = SHMEM_ENABLED.read_text().partition("[")[2].partition("]")[0]
    try:
        SHMEM_ENABLED.write_text(word)
    except PermissionError:
        raise Unavailable(f"not allowed to write {SHMEM_ENABLED}: run it as root") from None
    try:
        yield SHMEM_ENABLED.read_text().strip()
    finally:
        SHMEM_ENABLED.write_text(before)


@contextlib.contextmanager
def memory_limit(nbytes: int) -> Iterator[Path]:
    """A memory group of `nbytes`, page cache included; yields its folder. This process stays outside of it."""
    top = CGROUPS / "memory"
    if not (top / "cgroup.procs").exists():
        raise Unavailable(f"no cgroup v1 memory controller at {top}")
    folder = top / f"hermes-bench-{os.getpid()}"
    try:
        folder.mkdir()
    except PermissionError:
        raise Unavailable(f"not allowed to make a group in {top}: run it as root") from None
    try:
        (folder / "memory.limit_in_bytes").write_text(str(nbytes))
        yield folder
    finally:
        remove_group(folder)


def undo_when_ended() -> None:
    """Make SIGTERM and SIGINT exceptions, even in a background job of a shell, so that the contexts are left."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, leave)


def drop_caches() -> None:
    """Empty the page cache, as far as we are allowed to."""
    subprocess.run(["sync"], check=True)
    with contextlib.suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
