"""A disk that stops answering, for real: a FUSE file system that shows a directory, and keeps requests when it is told.

What waits for it is in state D, and once the request was taken not even SIGKILL ends it, as with a dead network file
system. It ends with its process: then the kernel fails all that still waits (ENOTCONN).
`python tests/hanging_disk.py DIRECTORY MOUNT_POINT` serves; it says "ready". SIGUSR1: answer no more; SIGUSR2: go on.
The protocol: linux/fuse.h, version 7.31.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MS_RDONLY, MNT_DETACH = 1, 2
LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, RELEASE, FLUSH = 1, 2, 3, 5, 14, 15, 18, 25
INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 26, 27, 28, 29, 36, 42
SILENT = (FORGET, INTERRUPT, BATCH_FORGET)  # wait for no answer
HEAD = struct.Struct("=IIQQIII4x")  # length, operation, number, node, uid, gid, pid
MOST_NBYTES = 1 << 20


class HangingDisk:
    """Read only, and nothing is cached: every look at a file asks us."""

    def __init__(self, directory: Path, mount_point: Path) -> None:
        self._paths = {1: directory}
        self._nodes = {directory: 1}
        self._waiting: list[bytes] | None = None
        self._fd = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"hanging", os.fsencode(mount_point), b"fuse", MS_RDONLY, options):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        signal.signal(signal.SIGUSR1, self._hang)
        signal.signal(signal.SIGUSR2, self._go_on)

    def serve(self) -> None:
        """Until it is unmounted."""
        while True:
            try:
                request = os.read(self._fd, MOST_NBYTES + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno != errno.ENOENT:  # it was interrupted before we had it
                    raise
                continue
            if self._waiting is None:
                self._answer(request)
            else:
                self._waiting.append(request)

    def _hang(self, *_: Any) -> None:
        self._waiting = []

    def _go_on(self, *_: Any) -> None:
        waiting, self._waiting = self._waiting or [], None
        for request in waiting:
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        _, operation, number, node, *_ = HEAD.unpack_from(request)
        if operation in SILENT:
            return
        error, body = 0, b""
        try:
            body = self._perform(operation, node, request[HEAD.size :])
        except OSError as failure:
            error = failure.errno or errno.EIO
        with contextlib.suppress(FileNotFoundError):  # who asked is gone
            os.write(self._fd, struct.pack("=IiQ", 16 + len(body), -error, number) + body)

    def _perform(self, operation: int, node: int, words: bytes) -> bytes:
        if operation == INIT:
            return struct.pack("=IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 0, 0, 0)
        path = self._paths[node]
        if operation == LOOKUP:
            below = path / os.fsdecode(words.rstrip(b"\0"))
            attributes = _attributes(below)
            found = self._nodes.setdefault(below, len(self._nodes) + 1)
            self._paths[found] = below
            return struct.pack("=QQQQII", found, 0, 0, 0, 0, 0) + attributes
        if operation == GETATTR:
            return struct.pack("=QII", 0, 0, 0) + _attributes(path)
        if operation == READLINK:
            return os.fsencode(os.readlink(path))
        if operation == OPEN:
            return struct.pack("=QII", os.open(path, os.O_RDONLY), 0, 0)
        if operation == OPENDIR:
            return struct.pack("=QII", 0, 0, 0)
        if operation in (READ, READDIR):
            fd, offset, size = struct.unpack_from("=QQI", words)
            return os.pread(fd, size, offset) if operation == READ else _entries(path, offset, size)
        if operation == RELEASE:
            os.close(struct.unpack_from("=Q", words)[0])
        elif operation not in (FLUSH, RELEASEDIR):
            raise OSError(errno.ENOSYS, "")
        return b""


def _attributes(path: Path) -> bytes:
    found = os.lstat(path)
    seconds = [int(at) for at in (found.st_atime, found.st_mtime, found.st_ctime)]
    parts = [at % 10**9 for at in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
    return struct.pack(
        "=QQQQQQIIIIIIIIII", found.st_ino, found.st_size, found.st_blocks, *seconds, *parts, found.st_mode,
        found.st_nlink, found.st_uid, found.st_gid, 0, found.st_blksize, 0,
    )  # fmt: skip


def _entries(path: Path, offset: int, size: int) -> bytes:
    text = b""
    for at, name in list(enumerate(sorted(os.listdir(path)), 1))[offset:]:
        raw = os.fsencode(name)
        entry = struct.pack("=QQII", at, at, len(raw), 0) + raw + bytes(-len(raw) % 8)
        if len(text) + len(entry) > size:
            break
        text += entry
    return text


class Served:
    """Such a disk in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hang(self) -> None:
        """What is asked from now on waits."""
        self._process.send_signal(signal.SIGUSR1)

    def go_on(self) -> None:
        """Answer what waits, and all that follows."""
        self._process.send_signal(signal.SIGUSR2)


@contextmanager
def hanging_disk(directory: Path, mount_point: Path) -> Iterator[Served | None]:
    """`directory` is seen at `mount_point`; None where we may not mount."""
    words = [sys.executable, "-S", "-E", __file__, str(directory), str(mount_point)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Served(process) if process.stdout.readline() == "ready\n" else None
        finally:
            process.kill()  # whoever waits goes on with an error
            process.wait()
            ctypes.CDLL(None).umount2(os.fsencode(mount_point), MNT_DETACH)


if __name__ == "__main__":
    disk = HangingDisk(Path(sys.argv[1]), Path(sys.argv[2]))
    print("ready", flush=True)
    disk.serve()
