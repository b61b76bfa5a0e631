"""How fast a device gives weights: raw rates by number of readers, size of reads, and O_DIRECT against buffered.

Threads read the user's own file through the loaders' read path into an arena of the loaders' kind of pages; `preadv`
leaves the interpreter to the others. Nothing is written, and what the page cache held of the file before is dropped
before a buffered read. Two or three seconds; it knows no model.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import threading
import time
from pathlib import Path

from hermes_mp.core.profile import DeviceProfile, ReadRate
from hermes_mp.errors import OutOfMemory
from hermes_mp.host.arena import Arena
from hermes_mp.host.reading import FileReader

READERS = (1, 2, 3, 4, 6)
CHUNKS = (16 << 20, 4 << 20, 1 << 20)
BUFFERED_READERS, BUFFERED_CHUNK = (1, 3), 16 << 20
ROOM_NBYTES = 96 << 20  # that all readers together read into
BURST_NBYTES = 64 << 20  # read untimed first: after a pause a capped disk grants more than its cap
LEAST_NBYTES = 64 << 20  # of a file; a smaller one tells nothing about the device
SURVEY_SHARE = 0.6  # of the time goes to every way once, the rest to the best ones again
AGAIN = 4


def measure_device(path: Path, seconds: float = 2.5) -> DeviceProfile | None:
    """Read the file at `path` for about `seconds`; None where it is too small to tell, or there is no memory.

    Raises ReadFailed where it cannot be read.
    """
    nbytes = path.stat().st_size
    if nbytes < LEAST_NBYTES:
        return None
    with contextlib.ExitStack() as stack:
        arena = stack.enter_context(Arena.create(ROOM_NBYTES))
        try:
            arena.allocate(0, ROOM_NBYTES)
        except OutOfMemory:
            return None
        return _Survey(path, nbytes, arena, stack).run(seconds)


class _Survey:
    def __init__(self, path: Path, nbytes: int, arena: Arena, stack: contextlib.ExitStack) -> None:
        self._nbytes, self._arena = nbytes, arena
        self._direct = [stack.enter_context(FileReader(path, nbytes)) for _ in range(max(READERS))]
        buffered = range(max(BUFFERED_READERS))
        self._buffered = [stack.enter_context(FileReader(path, nbytes, direct=False)) for _ in buffered]
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, self._fd)
        self._at = 0

    def run(self, seconds: float) -> DeviceProfile:
        rate = BURST_NBYTES / self._read(1, CHUNKS[0], True, BURST_NBYTES)
        ways = list(itertools.product(READERS, CHUNKS, (True,))) if self._direct[0].direct else []
        ways += [(readers, BUFFERED_CHUNK, False) for readers in BUFFERED_READERS]
        found: dict[tuple[int, int, bool], list[float]] = {way: [] for way in ways}
        each_s = seconds * SURVEY_SHARE / len(ways)
        for way in ways:
            found[way].append(self._rate(way, rate * each_s))
            rate = max(rate, found[way][0])
        best = sorted(ways, key=lambda way: -found[way][0])[:AGAIN]
        for way in best:
            found[way].append(self._rate(way, rate * seconds * (1 - SURVEY_SHARE) / len(best)))
        rates = tuple(ReadRate(*way, sum(found[way]) / len(found[way])) for way in ways)
        return DeviceProfile(rates, self._read_s(rates))

    def _rate(self, way: tuple[int, int, bool], nbytes: float) -> float:
        """Bytes per second; at least two reads of every reader are timed."""
        readers, chunk, direct = way
        wanted = max(int(nbytes), 2 * readers * chunk)
        wanted = min(wanted, max(self._nbytes // chunk, 1) * chunk)
        return wanted / self._read(readers, chunk, direct, wanted)

    def _read_s(self, rates: tuple[ReadRate, ...]) -> float:
        """What a read of one small piece takes beyond its bytes: the median of several."""
        times = sorted(self._read(1, 64 << 10, self._direct[0].direct, 64 << 10) for _ in range(9))
        one = max(rate.nbytes_per_s for rate in rates if rate.readers == 1)
        return max(0.0001, times[len(times) // 2] - (64 << 10) / one)

    def _read(self, readers: int, chunk: int, direct: bool, nbytes: int) -> float:
        """Seconds that `readers` threads take for `nbytes` from where the last call ended, scaled to whole chunks."""
        whole = max(self._nbytes // chunk, 1)
        first, count = self._at // chunk, max(1, nbytes // chunk)
        self._at = (first + count) % whole * chunk
        room = ROOM_NBYTES // readers // 4096 * 4096
        size = min(chunk, room)
        numbers = itertools.count()  # taking one is atomic
        failed: list[BaseException] = []
        if not direct:
            for number in range(count):
                os.posix_fadvise(self._fd, (first + number) % whole * chunk, chunk, os.POSIX_FADV_DONTNEED)

        def work(reader: int) -> None:
            file, at = (self._direct if direct else self._buffered)[reader], 0
            try:
                while (number := next(numbers)) < count:
                    offset = (first + number) % whole * chunk
                    with self._arena.view(reader * room + at, size) as buffer:
                        file.read_into(buffer, offset, min(size, self._nbytes - offset), chunk)
                    at = at + size if at + 2 * size <= room else 0
            except BaseException as error:  # re-raised by the thread that waits
                failed.append(error)

        threads = [threading.Thread(target=work, args=(reader,)) for reader in range(1, readers)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        work(0)
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return (time.perf_counter() - started) * nbytes / (count * size)


def device_name(path: Path) -> str:
    """What tells the device of `path` from others, across restarts, and what its speed depends on besides.

    A digest of: the disk's model, serial number, size and rotation, the file system, the kernel, and its huge pages.
    """
    number = os.stat(path).st_dev
    folder = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    disk = folder if (folder / "queue").exists() else folder.parent
    names = ("device/model", "device/serial", "device/wwid", "wwid", "queue/rotational")
    facts = [_said(disk / name) for name in names]
    facts += [_said(folder / "size"), disk.name if disk.exists() else f"{number}", _file_system(path)]
    facts += [os.uname().release, _said(Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled"))]
    facts.append(os.environ.get("HERMES_HUGE_PAGES", ""))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _file_system(path: Path) -> str:
    number = os.stat(path).st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for line in _said(Path("/proc/self/mountinfo")).splitlines():
        words, _, right = line.partition(" - ")
        if words.split()[2] == wanted:
            return right.split()[0]
    return ""


def _said(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
