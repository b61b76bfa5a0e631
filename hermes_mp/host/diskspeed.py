"""How fast a device gives weights: raw rates by number of readers, size of reads, and O_DIRECT against buffered.

Threads read the user's own file through the loaders' read path into an arena of the loaders' kind of pages; `preadv`
leaves the interpreter to the others. Nothing is written. What the page cache held of the file is dropped before a
buffered read; where it stays, only direct reads are measured. It takes the seconds it is given: what a slow disk
leaves no time for is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import mmap
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hermes_mp.core.profile import DeviceProfile, ReadRate
from hermes_mp.errors import OutOfMemory
from hermes_mp.host.arena import Arena
from hermes_mp.host.reading import FileReader

Way = tuple[int, int, bool]  # readers, bytes of a read, O_DIRECT

READERS = (1, 2, 3, 4, 6)
CHUNKS = (16 << 20, 4 << 20, 1 << 20)
BUFFERED_READERS, BUFFERED_CHUNK = (1, 3), 16 << 20
FEW_READERS = 3  # as many as are tried with every size of reads before more are
ROOM_NBYTES = 96 << 20  # that all readers together read into
BURST_NBYTES = 64 << 20  # read first, and not counted: after a pause a capped disk grants more than its cap
BURST_CHUNK, BURST_SHARE = 4 << 20, 0.15  # a slow disk is read for no longer than so much of the time
PROBES = 64  # pages of the file that are looked for in the page cache
LEAST_NBYTES = 64 << 20  # of a file; a smaller one tells nothing about the device
SURVEY_SHARE = 0.6  # of the time goes to every way once, the rest to the best ones again
AGAIN = 4
LONG = 3.0  # times what one try may take
MORE_HELPS = 1.03
UNREST = 0.08  # two tries of one way differ by so much
# Large reads by few readers first: with a slow disk there is no time for more, and no use.
WAYS: tuple[Way, ...] = (
    *((readers, CHUNKS[0], True) for readers in READERS if readers <= FEW_READERS),
    (BUFFERED_READERS[0], BUFFERED_CHUNK, False),
    *((readers, chunk, True) for chunk in CHUNKS[1:] for readers in READERS if readers <= FEW_READERS),
    *((readers, BUFFERED_CHUNK, False) for readers in BUFFERED_READERS[1:]),
    *((readers, chunk, True) for chunk in CHUNKS for readers in READERS if readers > FEW_READERS),
)


def measure_device(
    path: Path, seconds: float = 2.5, room_nbytes: int = ROOM_NBYTES, buffered: bool = True
) -> DeviceProfile | None:
    """Read the file at `path` for about `seconds`; None where it is too small to tell, or there is no memory.

    At 45 MB/s one read of 16 MiB takes 0.4 s: of the ways that are tried with a fast disk most are left out there.
    All readers together read into `room_nbytes`: what does not fit that is not tried. Without `buffered` no way goes
    through the page cache, unless there is no other: in a memory group that is all but full that would evict code.

    Raises ReadFailed where it cannot be read.
    """
    nbytes = path.stat().st_size
    if nbytes < LEAST_NBYTES:
        return None
    with contextlib.ExitStack() as stack:
        arena = stack.enter_context(Arena.create(room_nbytes))
        try:
            arena.allocate(0, room_nbytes)
        except OutOfMemory:
            return None
        return _Survey(path, nbytes, arena, room_nbytes, stack).run(seconds, buffered)


class _Survey:
    def __init__(self, path: Path, nbytes: int, arena: Arena, room: int, stack: contextlib.ExitStack) -> None:
        self._nbytes, self._arena, self._room = nbytes, arena, room
        self._direct = [stack.enter_context(FileReader(path, nbytes)) for _ in range(max(READERS))]
        buffered = range(max(BUFFERED_READERS))
        self._buffered = [stack.enter_context(FileReader(path, nbytes, direct=False)) for _ in buffered]
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, self._fd)
        self._at = 0
        self._done: dict[bool, tuple[int, float]] = {}  # bytes and seconds since `_pace` asked, by O_DIRECT or not

    def run(self, seconds: float, buffered: bool) -> DeviceProfile:
        """The first way is measured whatever it takes, and of the others what there is time for.

        A cap is kept over a second, not over the 80 ms that a way is tried for: one way gets more than the cap, and
        the next less. So no rate is above what all direct ways together reached, or all others, when each was tried
        or when the best were tried again; see `settled`.
        """
        began = time.perf_counter()
        deadline = began + seconds
        direct = self._direct[0].direct
        rate = self._read(1, BURST_CHUNK, direct, BURST_NBYTES, began + seconds * BURST_SHARE)
        self._pace()
        buffered = not direct or (buffered and not stays_cached(self._fd, self._nbytes))
        ways = [way for way in WAYS if way[0] * way[1] <= self._room and (direct if way[2] else buffered)]
        found: dict[Way, list[float]] = {}
        each_s = seconds * SURVEY_SHARE / len(ways)
        for way in ways:
            if worth_trying(way, found) and (not found or self._is_time(way, rate, deadline)):
                found[way] = [self._rate(way, rate, each_s, deadline)]
                rate = max(found[way][0], *(tried[0] for tried in found.values()))
        best = sorted(found, key=lambda way: -found[way][0])[:AGAIN]
        each_s = (deadline - time.perf_counter()) / len(best)
        survey = self._pace()
        for way in best:
            if self._is_time(way, rate, deadline):
                found[way].append(self._rate(way, rate, each_s, deadline))
        again = self._pace()
        rates = []
        for mode in (True, False):
            sustained = max(survey.get(mode, 0.0), again.get(mode, 0.0))
            tried = {way: tries for way, tries in found.items() if way[2] == mode}
            rates += [ReadRate(*way, rate) for way, rate in settled(tried, sustained).items()]
        return DeviceProfile(tuple(rates), self._read_s(rates))

    def _pace(self) -> dict[bool, float]:
        """Bytes per second since the last call, of all direct reads (True) and of all others."""
        done, self._done = self._done, {}
        return {mode: nbytes / seconds for mode, (nbytes, seconds) in done.items()}

    def _is_time(self, way: Way, rate: float, deadline: float) -> bool:
        """Whether one read of every reader is likely to end before the deadline, at `rate`."""
        return time.perf_counter() + way[0] * way[1] / rate <= deadline

    def _rate(self, way: Way, rate: float, seconds: float, deadline: float) -> float:
        """Bytes per second, by what `seconds` give at `rate`; by two reads of every reader, unless that takes long."""
        readers, chunk, direct = way
        once = readers * chunk
        wanted = max(rate * seconds, 2 * once if 2 * once <= LONG * rate * seconds else once)
        until = min(deadline, time.perf_counter() + LONG * seconds)
        return self._read(readers, chunk, direct, int(wanted), until)

    def _read_s(self, rates: Sequence[ReadRate]) -> float:
        """What a read of one small piece takes beyond its bytes: the median of several."""
        small = 64 << 10
        times = sorted(small / self._read(1, small, self._direct[0].direct, small, 0.0) for _ in range(9))
        one = max(rate.nbytes_per_s for rate in rates if rate.readers == 1)
        return max(0.0001, times[len(times) // 2] - small / one)

    def _read(self, readers: int, chunk: int, direct: bool, nbytes: int, until: float) -> float:
        """Bytes per second of `readers` threads, for `nbytes` from where the last call ended, in whole chunks.

        After `until` (of `time.perf_counter`) no further read begins, but for the first one of every reader.
        """
        whole = max(self._nbytes // chunk, 1)
        first, count = self._at // chunk, max(1, nbytes // chunk)
        self._at = (first + count) % whole * chunk
        room = self._room // readers // 4096 * 4096
        size = min(chunk, room)
        numbers = itertools.count()  # taking one is atomic
        done = [0] * readers
        failed: list[BaseException] = []
        if not direct:
            for number in range(count):
                os.posix_fadvise(self._fd, (first + number) % whole * chunk, chunk, os.POSIX_FADV_DONTNEED)

        def work(reader: int) -> None:
            file, at = (self._direct if direct else self._buffered)[reader], 0
            try:
                while (not done[reader] or time.perf_counter() < until) and (number := next(numbers)) < count:
                    offset = (first + number) % whole * chunk
                    with self._arena.view(reader * room + at, size) as buffer:
                        file.read_into(buffer, offset, min(size, self._nbytes - offset))
                    done[reader] += size
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
        seconds = time.perf_counter() - started
        nbytes_before, seconds_before = self._done.get(direct, (0, 0.0))
        self._done[direct] = nbytes_before + sum(done), seconds_before + seconds
        return sum(done) / seconds


def settled(tried: Mapping[Way, Sequence[float]], sustained: float) -> dict[Way, float]:
    """The mean of each way's tries, at most what the device sustains.

    Where one way got more than that there is a cap, and what another got a little less is as much.
    """
    means = {way: sum(tries) / len(tries) for way, tries in tried.items()}
    capped = any(rate > (1 + UNREST) * sustained for rate in means.values())
    least = (1 - UNREST) * sustained if capped else sustained
    return {way: sustained if rate >= least else rate for way, rate in means.items()}


def stays_cached(fd: int, nbytes: int) -> bool:
    """Whether the page cache keeps some of the file, as it does while a process maps it.

    Buffered reads would then tell how fast memory is copied: 6.5 GB/s, of a disk that gives 2.4.
    """
    step = max(mmap.PAGESIZE, nbytes // PROBES // mmap.PAGESIZE * mmap.PAGESIZE)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        return any(_is_cached(fd, offset) for offset in range(0, nbytes, step))
    finally:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # a look at a page has it read


def _is_cached(fd: int, offset: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) > 0
    except OSError:  # it is not, or the file system cannot tell
        return False


def worth_trying(way: Way, found: Mapping[Way, Sequence[float]]) -> bool:
    """Not with more readers, once two more of them read the same chunks by less than 3 % faster."""
    readers, chunk, direct = way
    rates = {one: tried[0] for (one, *rest), tried in found.items() if rest == [chunk, direct] and one < readers}
    return not any(rates[more] < MORE_HELPS * rates[more - 2] for more in rates if more - 2 in rates)


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
