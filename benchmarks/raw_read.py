"""The raw rate of a model's file: the best that direct reads reach into memory of the same kind as the arena.

    python benchmarks/raw_read.py bench-models/bert-large [--huge off]

1 to 4 readers share the file's chunks, each reading into a piece of an arena as large as four slots, chunks of 1, 4, 8
and 16 MiB: MB/s (10^6) of each, median of three, and the best. Nothing of the page cache takes part.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from hermes_mp.host.arena import Arena

ARENA_NBYTES = 200 << 20
READERS = (1, 2, 3, 4)
CHUNKS_MIB = (1, 4, 8, 16)


@dataclass(frozen=True)
class Rate:
    """What `readers` readers of `chunk_mib` reached, in bytes per second."""

    readers: int
    chunk_mib: int
    nbytes_per_s: float


class RawReader:
    """One file and memory to read it into; the memory stays allocated, as slots do.

    By default memory of its own, else the first `room` bytes of `arena`: how fast small pages are read into depends on
    how many of them happen to lie side by side, and in another arena that is another number.
    """

    def __init__(self, path: Path, arena: Arena | None = None, room: int = ARENA_NBYTES) -> None:
        self.nbytes = path.stat().st_size
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._room = room
        self._start = 0
        if arena is None:
            arena = Arena.create(room)
            arena.allocate(0, room)
        self._arena = arena

    @property
    def pages(self) -> str:
        return self._arena.pages

    def read(self, readers: int, chunk_mib: int, nbytes: int) -> float:
        """Seconds that `readers` threads take for `nbytes` of the file; the next call goes on where this one ended."""
        chunk = chunk_mib << 20
        whole = self.nbytes // chunk
        first, count = self._start // chunk, max(1, nbytes // chunk)
        self._start = (first + count) % whole * chunk
        numbers = itertools.count()  # of the chunk that is read next; taking one is atomic
        room = self._room // readers // chunk * chunk

        def work(reader: int) -> None:
            at = 0
            while (number := next(numbers)) < count:
                with self._arena.view(reader * room + at, chunk) as buffer:
                    done = 0
                    while done < chunk:
                        done += os.preadv(self._fd, [buffer[done:]], (first + number) % whole * chunk + done)
                at = (at + chunk) % room

        threads = [threading.Thread(target=work, args=(reader,)) for reader in range(readers)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - started) * nbytes / (count * chunk)

    def rate(self, readers: int, chunk_mib: int, nbytes: int) -> Rate:
        return Rate(readers, chunk_mib, nbytes / self.read(readers, chunk_mib, nbytes))

    def close(self) -> None:
        self._arena.close()
        os.close(self._fd)


def largest_file(directory: Path) -> Path:
    """The largest weights file of a model directory."""
    return max(directory.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--huge", choices=("auto", "off"), default="auto")
    parser.add_argument("--mb", type=int, default=1000, help="read per measurement, in MB")
    options = parser.parse_args()
    os.environ["HERMES_HUGE_PAGES"] = options.huge
    path = largest_file(options.directory)
    reader = RawReader(path)
    print(f"{path} ({reader.nbytes / 1e6:.0f} MB), {options.mb} MB each, arena pages: {reader.pages}")
    print("MB/s       " + "".join(f"{chunk:>6} MiB" for chunk in CHUNKS_MIB))
    found = []
    for readers in READERS:
        row = []
        for chunk in CHUNKS_MIB:
            rates = [reader.rate(readers, chunk, options.mb * 10**6).nbytes_per_s for _ in range(3)]
            row.append(statistics.median(rates))
            found.append(Rate(readers, chunk, row[-1]))
        print(f"{readers} reader(s)" + "".join(f"{rate / 1e6:>10.0f}" for rate in row))
    best = max(found, key=lambda rate: rate.nbytes_per_s)
    print(f"best: {best.nbytes_per_s / 1e6:.0f} MB/s, {best.readers} reader(s) of {best.chunk_mib} MiB")
    reader.close()


if __name__ == "__main__":
    main()
