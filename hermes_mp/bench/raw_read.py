"""The raw rate of a file: what readers reach who do nothing but read, into memory of the same kind as the arena.

A process of its own, so that it can be put where a row is put; told by JSON lines how to read, answers with seconds.
Direct reads where the file system takes them, else buffered ones that leave nothing in the page cache. No torch.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hermes_mp.host.arena import Arena

ARENA_NBYTES = 128 << 20
CHUNK_NBYTES = 16 << 20  # the largest; also the least room a reader has


class RawReader:
    """One file and memory to read it into; the memory stays allocated, as slots do. `direct`: past the page cache."""

    def __init__(self, path: Path, arena: Arena | None = None, room: int = ARENA_NBYTES) -> None:
        """By default memory of its own, else the first `room` bytes of `arena`.

        How fast small pages are read into depends on how many of them happen to lie side by side: in another arena
        that is another number.
        """
        self.nbytes = path.stat().st_size
        self.direct = True
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.direct = False
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._room = room
        self._start = 0
        if arena is None:
            arena = Arena.create(room)
            arena.allocate(0, room)
        self._arena = arena

    @property
    def pages(self) -> str:
        return self._arena.pages

    def read(self, readers: int, chunk_nbytes: int, nbytes: int) -> float:
        """Seconds that `readers` threads take for `nbytes` of the file; the next call goes on where this one ended."""
        chunk = self._chunk(readers, chunk_nbytes)
        count = max(1, nbytes // chunk)
        chunks, seconds = self._read(readers, chunk, lambda number: number < count)
        return seconds * nbytes / (chunks * chunk)

    def read_until(self, ended: threading.Event, readers: int, chunk_nbytes: int) -> float:
        """Bytes per second that `readers` threads read until it has `ended`."""
        chunk = self._chunk(readers, chunk_nbytes)
        chunks, seconds = self._read(readers, chunk, lambda number: not number or not ended.is_set())
        return chunks * chunk / seconds

    def _chunk(self, readers: int, nbytes: int) -> int:
        return max(4096, min(nbytes, self._room // readers, self.nbytes) // 4096 * 4096)

    def _read(self, readers: int, chunk: int, goes_on: Callable[[int], bool]) -> tuple[int, float]:
        """Chunks that were read, while the number of the next one lets it go on; seconds."""
        whole = max(1, self.nbytes // chunk)
        first = self._start // chunk
        numbers = itertools.count()  # of the chunk that is read next; taking one is atomic
        room = self._room // readers // chunk * chunk
        done = [0] * readers

        def work(reader: int) -> None:
            at = 0
            while goes_on(number := next(numbers)):
                with self._arena.view(reader * room + at, chunk) as buffer:
                    self._fill(buffer, (first + number) % whole * chunk)
                at = (at + chunk) % room
                done[reader] += 1

        threads = [threading.Thread(target=work, args=(reader,)) for reader in range(readers)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds, count = time.perf_counter() - started, sum(done)
        self._start = (first + count) % whole * chunk
        return count, seconds

    def close(self) -> None:
        self._arena.close()
        os.close(self._fd)

    def _fill(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:]], offset + done)
            if not got:
                return  # the end of a file that is smaller than a chunk
            done += got
        if not self.direct:
            os.posix_fadvise(self._fd, offset, len(buffer), os.POSIX_FADV_DONTNEED)


def largest_file(directory: Path) -> Path:
    """The largest weights file of a model directory."""
    return max(directory.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def main(arguments: Sequence[str]) -> int:
    """`arguments`: the file, and how many bytes of memory to read into.

    Each line of standard input is {"readers", "chunk_nbytes", "nbytes"}, and is answered with {"seconds"}.
    """
    reader = RawReader(Path(arguments[0]), room=int(arguments[1]))
    print(json.dumps({"direct": reader.direct, "pages": reader.pages}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        seconds = reader.read(order["readers"], order["chunk_nbytes"], order["nbytes"])
        print(json.dumps({"seconds": seconds}), flush=True)
    reader.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
