"""The raw rate of the disk as a group of rows meets it: readers in the same control groups, round by round."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from hermes_mp.bench.board import ControlGroup, Unavailable
from hermes_mp.bench.models import Model
from hermes_mp.bench.process import WorkerLost, WorkerProcess
from hermes_mp.bench.raw_read import CHUNK_NBYTES

ROUND_S = 0.6  # of reading, about, in every round
SURVEY_S = 0.15  # of reading each way, to find the fastest
SURVEYED = tuple((readers, chunk) for readers in (1, 2, 4) for chunk in (4 << 20, 16 << 20))
CANDIDATES = 2  # of them are measured in every round, and the better one counts
ROOM = 128 << 20  # memory that is read into
READER_ROOM = 32 << 20  # of each of several readers
GUESSED_RATE = 1.5e9  # of a disk, before it is measured


class Raw:
    """Reads the model's largest file and does nothing else. Raises Unavailable where a reader of it ends.

    `readers`: a control group for each reader where each has a rate of its own, `rate`; else all are in `disk`.
    """

    def __init__(
        self, model: Model, disk: list[ControlGroup], readers: list[ControlGroup], rate: float | None
    ) -> None:
        file = max(model.files, key=lambda path: path.stat().st_size)
        self._reader_rate = rate
        self._rates: dict[int, float] = {}
        self._processes: list[WorkerProcess] = []
        self._ways: list[tuple[int, int]] = [(1, CHUNK_NBYTES)]
        words = [sys.executable, "-m", "hermes_mp.bench.raw_read", str(file), str(READER_ROOM if readers else ROOM)]
        with contextlib.ExitStack() as stack:
            with _or_unavailable():
                for groups in [[group] for group in readers] or [disk]:
                    self._processes.append(stack.enter_context(WorkerProcess(words, groups)))
                self._said = [process.receive() for process in self._processes]
            if rate is None:
                guess = GUESSED_RATE
                surveyed: dict[tuple[int, int], float] = {}
                for way in SURVEYED:
                    guess = surveyed[way] = self._read(1, way, guess * SURVEY_S)
                self._ways = sorted(surveyed, key=lambda way: -surveyed[way])[:CANDIDATES]
            self._stack = stack.pop_all()
        self._estimate = max(surveyed.values()) if rate is None else rate

    @property
    def text(self) -> str:
        how = "direct reads" if self._said[0]["direct"] else "buffered reads (this file system takes no direct ones)"
        if self._reader_rate is not None:
            return f"as many readers as the row has loaders, {how}"
        ways = " or ".join(f"{readers} x {chunk >> 20} MiB" for readers, chunk in self._ways)
        return f"the better of {ways}, {how} into {self._said[0]['pages']} pages"

    def measure(self, loaders: list[int], cap: float | None) -> None:
        """The rate of this round, for each number of loaders; none above `cap`, of all reads or of each reader.

        The kernel lets a reader begin with some milliseconds' worth: a twelfth of what is read here, nothing of a run.
        """
        for count in {1, *loaders} - {0} if self._reader_rate is not None else {1}:
            nbytes = self._estimate * ROUND_S * count
            measured = max(self._read(count, way, nbytes) for way in self._ways)
            self._rates[count] = min(measured, count * cap) if cap else measured

    def rate(self, loaders: int) -> float:
        """Bytes per second that a row of so many loaders could read at; 0: a backend that reads by itself."""
        return self._rates[max(1, loaders) if self._reader_rate is not None else 1]

    def _read(self, processes: int, way: tuple[int, int], nbytes: float) -> float:
        share = max(1 << 20, round(nbytes / processes))
        used = self._processes[:processes]
        for process in used:
            process.send({"readers": way[0], "chunk_nbytes": way[1], "nbytes": share})
        with _or_unavailable():
            return float(share * len(used) / max(process.receive()["seconds"] for process in used))

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _or_unavailable() -> Iterator[None]:
    """Killed by somebody, or without memory to read into."""
    try:
        yield
    except WorkerLost as error:
        raise Unavailable(f"the raw rate of the disk is not known, as its reader was lost: {error}") from None
