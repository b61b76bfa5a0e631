"""Reading a weights file into memory that the caller owns: large direct reads for units, small ones for embedding rows.

O_DIRECT where the file system takes it, found out by trying once per device; else buffered reads whose pages are
dropped again, so that the page cache never holds the model a second time. Never mmap: a truncated file or a failing
card is then a `ReadFailed` naming file and offset, not a SIGBUS. It knows nothing of tensors, slots or messages.
Source: open(2) "O_DIRECT", posix_fadvise(2).
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hermes_mp.core.layout import ALIGN
from hermes_mp.errors import ReadFailed
from hermes_mp.host.retrying import retried

_NO_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)

SHORT_NBYTES = 64 << 10
ROW_READERS, ROWS_EACH = 4, 16  # threads side by side; one for each so many rows
LEAST_BLOCK_NBYTES = 512

_direct_by_device: dict[int, bool] = {}


class _Row(NamedTuple):
    """`nbytes` from `offset` of the file, wanted from byte `at` of the memory on."""

    offset: int
    nbytes: int
    at: int


class FileReader:
    """One file, open for reading until `close`; `direct` says whether reads bypass the page cache."""

    def __init__(self, path: str | os.PathLike[str], nbytes: int, direct: bool = True) -> None:
        """Open `path`, which must be `nbytes` long: its header was read when it was. `direct`: O_DIRECT, if it can."""
        self.path = path
        self.nbytes = nbytes
        self._direct_fd = -1
        self._refused = False
        self._block_nbytes = LEAST_BLOCK_NBYTES  # what offset and length of a row's direct read are multiples of
        with self._failing_at(0):
            self._fd = _open(path, 0)
        try:
            with self._failing_at(0):
                status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise ReadFailed(f"{path} is not a file")
            if status.st_size != nbytes:
                raise ReadFailed(f"{path} has {status.st_size} bytes, it had {nbytes}: it was changed")
            with self._failing_at(0):
                # RANDOM keeps the kernel from reading ahead past a range: those pages nobody would drop
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
                if direct:
                    self._try_direct(status.st_dev)
        except BaseException:
            self.close()
            raise

    @property
    def direct(self) -> bool:
        """Whether `read_into` bypasses the page cache; may turn false once, when the device refuses after all."""
        return self._direct_fd >= 0 and not self._refused

    def read_into(self, buffer: memoryview, offset: int, nbytes: int) -> None:
        """Read `nbytes` bytes from `offset` to the start of `buffer`; several threads may do so at once.

        Direct reads need offset, length and address to be multiples of ALIGN; what is not is read buffered, but for
        the file's last block: where `buffer` has room for all of it, its bytes past the file's end are undefined.
        """
        done = 0
        while done < nbytes:
            wanted, at = nbytes - done, offset + done
            with self._failing_at(at):
                asked = self._direct_length(at, wanted, len(buffer) - done)
                got = self._read_direct(buffer, done, asked, at) if asked else None
                if got is None:
                    got = self._read_buffered(buffer, done, wanted, at)
            if got == 0:
                raise self._ended_at(at)
            done += min(got, wanted)

    def read_rows(self, rows: Sequence[tuple[int, int]], into: memoryview) -> int:
        """Gather (offset, nbytes) pieces one after the other into `into`; the number of bytes.

        Short ones are read directly, several side by side, by blocks of the device and not by pages: for 1,960 rows of
        3 KiB that is 7 MB instead of 14, which counts on a slow disk (on one of 3 GB/s they take 45 ms, buffered 30).
        All others are asked for before the first of them is read.
        """
        short: list[_Row] = []
        long: list[_Row] = []
        done = 0
        for offset, nbytes in rows:
            if nbytes:
                is_short = self.direct and nbytes <= SHORT_NBYTES
                (short if is_short else long).append(_Row(offset, nbytes, done))
            done += nbytes
        self._gather_side_by_side(short, into)
        self._gather_buffered(long, into)
        return done

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        fds, self._fd, self._direct_fd = (self._fd, self._direct_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _try_direct(self, device: int) -> None:
        if not _direct_by_device.get(device, True):
            return
        try:
            self._direct_fd = _open(self.path, os.O_DIRECT)
            if device not in _direct_by_device:
                with mmap.mmap(-1, ALIGN) as page, memoryview(page) as aligned:
                    retried(os.preadv, self._direct_fd, [aligned], 0)
        except OSError as error:
            if error.errno not in _NO_DIRECT:
                raise
            self._refused = True
        _direct_by_device[device] = self.direct

    def _direct_length(self, at: int, wanted: int, room: int) -> int:
        """How many bytes a direct read at `at` may ask for; 0 if none can be."""
        if not self.direct or at % ALIGN:
            return 0
        if at + wanted >= self.nbytes and -(-wanted // ALIGN) * ALIGN <= room:
            return -(-wanted // ALIGN) * ALIGN
        return wanted // ALIGN * ALIGN

    def _read_direct(self, buffer: memoryview, begin: int, asked: int, at: int) -> int | None:
        """Bytes read, or None where the device refused: from then on this file is read buffered."""
        try:
            with buffer[begin : begin + asked] as part:
                return retried(os.preadv, self._direct_fd, [part], at)
        except OSError as error:
            if error.errno not in _NO_DIRECT:
                raise
            self._refused = True  # the descriptor stays: another thread may be about to read by it
            return None

    def _gather_side_by_side(self, rows: Sequence[_Row], into: memoryview) -> None:
        """By this thread and a few more, where the system gives any."""
        count = max(1, min(ROW_READERS, -(-len(rows) // ROWS_EACH)))
        failures: list[BaseException] = []

        def gather(first: int) -> None:
            try:
                self._gather(rows[first::count], into)
            except BaseException as failure:
                failures.append(failure)

        threads, mine = [], [0]
        for first in range(1, count):
            thread = threading.Thread(target=gather, args=(first,))
            try:
                thread.start()
                threads.append(thread)
            except RuntimeError:  # too many, or the interpreter is ending
                mine.append(first)
        for first in mine:
            gather(first)
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _gather(self, rows: Sequence[_Row], into: memoryview) -> None:
        """Read each row directly, with what surrounds it in its blocks, by way of memory of our own."""
        if not rows:
            return
        left: list[_Row] = []
        with (
            self._failing_at(rows[0].offset),
            mmap.mmap(-1, SHORT_NBYTES + 2 * ALIGN) as memory,
            memoryview(memory) as bounce,
        ):
            for row in rows:
                with self._failing_at(row.offset):
                    if not self._read_blocks(row, bounce, into):
                        left.append(row)
        for row in rows:
            self._drop(row.offset, row.nbytes)  # btrfs and f2fs take blocks smaller than theirs buffered
        self._gather_buffered(left, into)

    def _read_blocks(self, row: _Row, bounce: memoryview, into: memoryview) -> bool:
        """Whether all of it came so; first in blocks of 512 bytes, then of ALIGN."""
        while self.direct:
            block = self._block_nbytes
            begin, end = row.offset // block * block, -(-(row.offset + row.nbytes) // block) * block
            try:
                with bounce[: end - begin] as part:
                    got = retried(os.preadv, self._direct_fd, [part], begin)
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
                if block >= ALIGN:
                    self._refused = True
                self._block_nbytes = ALIGN
                continue
            skip = row.offset - begin
            if got < skip + row.nbytes:
                return False  # who reads on by the page cache says what is wrong, if something is
            with into[row.at : row.at + row.nbytes] as place, bounce[skip : skip + row.nbytes] as wanted:
                place[:] = wanted
            return True
        return False

    def _gather_buffered(self, rows: Sequence[_Row], into: memoryview) -> None:
        with self._failing_at(rows[0].offset if rows else 0):
            for row in rows:
                os.posix_fadvise(self._fd, row.offset, row.nbytes, os.POSIX_FADV_WILLNEED)
        for row in rows:
            done = 0
            while done < row.nbytes:
                at = row.offset + done
                with self._failing_at(at), into[row.at + done : row.at + row.nbytes] as part:
                    got = retried(os.preadv, self._fd, [part], at)
                if got == 0:
                    raise self._ended_at(at)
                done += got
        for row in rows:  # only now: rows may share a page
            self._drop(row.offset, row.nbytes)

    def _read_buffered(self, buffer: memoryview, begin: int, wanted: int, at: int) -> int:
        with buffer[begin : begin + wanted] as part:
            got = retried(os.preadv, self._fd, [part], at)
        self._drop(at, got)
        return got

    def _drop(self, offset: int, nbytes: int) -> None:
        """Give the page cache's copy back: whole pages, as partial ones would be kept."""
        begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
        end = -(-(offset + nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        os.posix_fadvise(self._fd, begin, end - begin, os.POSIX_FADV_DONTNEED)

    @contextlib.contextmanager
    def _failing_at(self, offset: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = f"{self.path} cannot be read at byte {offset}: {error.strerror}"
            raise ReadFailed(why, offset=offset) from error

    def _ended_at(self, offset: int) -> ReadFailed:
        return ReadFailed(f"{self.path} ends at byte {offset}, it was {self.nbytes} bytes long", offset=offset)


def _open(path: str | os.PathLike[str], flags: int) -> int:
    """Leave no trace: no access time either, where we may ask for that (only a file's owner may)."""
    flags |= os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # NONBLOCK: opening a FIFO must not hang
    try:
        return retried(os.open, path, flags | os.O_NOATIME)
    except PermissionError:
        return retried(os.open, path, flags)
