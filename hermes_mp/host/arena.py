"""The arena: one sealed memfd whose length is fixed, whose memory is taken and given back piece by piece.

Its pages are huge where the kernel lets us have them. `MADV_COLLAPSE` (Linux 6.1) does so whatever `shmem_enabled`
says short of `deny`, and a full memory is an error there; before 6.1 `MADV_HUGEPAGE` and a touch, where
`shmem_enabled` is advise; else small pages from `fallocate`. No name: nothing can be left behind.
Knows nothing of slots, units or who owns what.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from hermes_mp.errors import InvariantBroken, OutOfMemory
from hermes_mp.host import memory

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
STEP_NBYTES = 32 << 20  # free memory is read again after so many bytes
SPARE_NBYTES = 4 << 20  # left over by every step: the kernel charges memory in batches per CPU
MOST_SIGNALS = 100  # that come between, in one call
ALIGN_NBYTES = 2 << 20  # of the mapping: what a huge page needs with 4 KiB pages
MAX_GRANULE = 4 << 20  # with 16 KiB pages a huge page is 32 MiB: rounding slots up to it costs more than it brings
HUGE_PAGES_VARIABLE = "HERMES_HUGE_PAGES"  # "off": small pages, for comparison
MAP_SHARED, MAP_FIXED, MAP_NORESERVE = 0x01, 0x10, 0x4000
MADV_HUGEPAGE, MADV_POPULATE_WRITE, MADV_COLLAPSE = 14, 23, 25
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 0x01, 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def sealed_memfd(name: str, nbytes: int) -> int:
    """A memfd of exactly `nbytes` bytes, sparse, whose length nobody can change any more."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def sealed_nbytes(fd: int) -> int:
    """The length of a memfd from `sealed_memfd`; refuses one that could still shrink under a mapping (SIGBUS)."""
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS:
        raise InvariantBroken(f"file descriptor {fd} is not a sealed memfd")
    return os.fstat(fd).st_size


class Arena:
    """Create it in the daemon, attach to its `fd` in the children; whoever holds it may view any piece.

    `granule` is what pieces should be aligned to: a huge page where those are to be had, else a page.
    """

    def __init__(self, fd: int, granule: int) -> None:
        self.fd = fd
        self.nbytes = sealed_nbytes(fd)
        self.granule = granule
        # Python's mmap cannot be told an address, and unaligned memory cannot be mapped by huge pages. So one mmap
        # object reserves the range, and keeps it alive as long as any view of it; the memfd is laid over its middle.
        align = max(granule, ALIGN_NBYTES)
        self._range = mmap.mmap(
            -1, self.nbytes + align, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        )
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._range))
        self._address = -(-start // align) * align
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        if _libc.mmap(self._address, self.nbytes, protection, MAP_SHARED | MAP_FIXED, fd, 0) != self._address:
            raise OutOfMemory(f"cannot map {_mib(self.nbytes)}: {os.strerror(ctypes.get_errno())}")
        skip = self._address - start
        self._view = memoryview(self._range)[skip : skip + self.nbytes]
        self._ways: list[Callable[[int, int], bool]] = [self._collapse, self._populate, self._small]
        if granule == mmap.PAGESIZE:
            self._ways = [self._small]

    @classmethod
    def create(cls, nbytes: int, huge: Literal["auto", "off"] = "auto") -> Arena:
        """An arena of at least `nbytes` bytes, none of them allocated yet."""
        wanted = huge == "auto" and os.environ.get(HUGE_PAGES_VARIABLE) != "off"
        granule = _granule() if wanted else mmap.PAGESIZE
        fd = sealed_memfd("hermes-arena", -(-nbytes // granule) * granule)
        try:
            return cls(fd, granule)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int) -> Arena:
        """The arena behind an inherited descriptor."""
        return cls(fd, mmap.PAGESIZE)

    def view(self, base: int, nbytes: int) -> memoryview:
        """The bytes themselves, writable; the mapping lives as long as the view does."""
        if base < 0 or nbytes < 0 or base + nbytes > self.nbytes:
            raise InvariantBroken(f"{nbytes} bytes at {base} are outside an arena of {self.nbytes}")
        return self._view[base : base + nbytes]

    def allocate(self, base: int, nbytes: int) -> None:
        """Take memory for these bytes, whole pages that had none; raises OutOfMemory, having taken nothing.

        Whatever the system gives as its reason.
        """
        self._check(base, nbytes)
        end = base + nbytes
        for at in range(base, end, STEP_NBYTES):
            free = memory.available_nbytes()
            reason = f"{_mib(free)} available"
            if free >= end - at + SPARE_NBYTES:
                try:
                    while not self._ways[0](at, min(STEP_NBYTES, end - at)):
                        self._ways.pop(0)  # this kernel does not do that: it will not next time either
                    continue
                except OSError as error:
                    reason = os.strerror(error.errno or errno.ENOMEM)
            self.free(base, min(at + STEP_NBYTES, end) - base)
            raise OutOfMemory(f"no memory for {_mib(nbytes)} of weights: {_mib(at - base)} taken, then {reason}")

    def free(self, base: int, nbytes: int) -> None:
        """Give the memory of these bytes back to the machine; they read as zeros until allocated again."""
        self._check(base, nbytes)
        for _ in range(MOST_SIGNALS):
            if not _libc.fallocate(self.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, base, nbytes):
                return
            if ctypes.get_errno() != errno.EINTR:
                break
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def allocated_nbytes(self) -> int:
        """Bytes of memory the arena takes at this moment, of all processes together."""
        return os.fstat(self.fd).st_blocks * 512

    @property
    def pages(self) -> str:
        """What the allocated pages turned out to be, for the report: 'huge', '75% huge' or 'small (4 KiB)'."""
        allocated = self.allocated_nbytes()
        huge = memory.mapping_nbytes("ShmemPmdMapped", self._address)
        if not huge:
            return f"small ({mmap.PAGESIZE >> 10} KiB)" if allocated else "none yet"
        return "huge" if huge >= allocated else f"{100 * huge // allocated}% huge"

    def close(self) -> None:
        """Close the descriptor; the mapping ends with the last view."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._view.release()

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, base: int, nbytes: int) -> None:
        if base % mmap.PAGESIZE or nbytes % mmap.PAGESIZE or base < 0 or nbytes <= 0 or base + nbytes > self.nbytes:
            raise InvariantBroken(f"{nbytes} bytes at {base} are not whole pages of an arena of {self.nbytes}")

    def _collapse(self, base: int, nbytes: int) -> bool:
        """Huge pages now: one page in each of their places, then have the kernel make each place one page.

        16 GB/s on memory the machine already had, more than `fallocate` of small pages (4.5 GB/s).
        """
        first, last = -(-base // self.granule) * self.granule, (base + nbytes) // self.granule * self.granule
        for at in range(first, last, self.granule):
            os.posix_fallocate(self.fd, at, mmap.PAGESIZE)
        failed = last > first and _libc.madvise(self._address + first, last - first, MADV_COLLAPSE)
        if failed and ctypes.get_errno() == errno.EINVAL:
            return False  # not this kernel; any other error: no contiguous memory this time, or none at all
        return self._small(base, nbytes)

    def _populate(self, base: int, nbytes: int) -> bool:
        """Huge pages by touching memory that was advised so; `fallocate` first would make them small."""
        if _shmem_enabled() not in ("advise", "always", "within_size", "force"):
            return False
        if _libc.madvise(self._address + base, nbytes, MADV_HUGEPAGE):
            return False
        self.free(base, nbytes)  # what `_collapse` left
        if _libc.madvise(self._address + base, nbytes, MADV_POPULATE_WRITE):
            if ctypes.get_errno() == errno.EINVAL:
                return False  # before Linux 5.14
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return True

    def _small(self, base: int, nbytes: int) -> bool:
        os.posix_fallocate(self.fd, base, nbytes)
        return True


def _granule() -> int:
    huge = int(_sysfs("hpage_pmd_size") or 0)
    return huge if 0 < huge <= MAX_GRANULE and _shmem_enabled() != "deny" else mmap.PAGESIZE


def _shmem_enabled() -> str:
    """The chosen word of 'always within_size advise [never] deny force'."""
    return _sysfs("shmem_enabled").partition("[")[2].partition("]")[0]


def _sysfs(name: str) -> str:
    try:
        with open(f"/sys/kernel/mm/transparent_hugepage/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # a kernel without huge pages, mostly
        return ""


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"
