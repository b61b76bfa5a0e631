"""Seconds per pass against the hardware's bound: max(resident compute, bytes streamed / raw rate of the disk).

    python benchmarks/pass_time.py --models bench-models              every case, disk and kind of pages (an hour)
    python benchmarks/pass_time.py bert-large-128 --disk 400 --huge on

Every round measures, one after the other: the raw rate (of as many bytes, into the same memory), a first pass, passes
in a row on streamed weights, passes of plain transformers with all weights in memory. Medians over the rounds; each
round's own raw rate makes its bound. Disks are capped by cgroup v1 (root). Memory is not sampled here.
`beside`: plain transformers once more, while a raw reader reads as fast as the streamed passes did. What that takes of
the processor and of the memory's bandwidth no streaming can avoid; it is printed, and not in the bound.

--huge on: shmem_enabled is advise. never: it is never, as on most systems (we get huge pages all the same, where the
kernel is 6.1 or later). off: small pages, as on older kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from board import Unavailable, capped_disk, preferred, shmem_huge_pages, undo_when_ended
from cases import CASES
from raw_read import CHUNKS_MIB, READERS, Rate, RawReader, largest_file

from hermes_mp.host.arena import Arena

DEFAULT = ("bert-large-32", "bert-large-128", "vit-large", "llama-3.2-1b-decode")
SURVEY_S = 0.5  # of reading, to find the best numbers of readers and sizes of chunks
CANDIDATES = 2  # so many of them are measured in every round, the best one counts
BURST_NBYTES = 150 * 10**6  # read untimed first: after a pause a capped disk grants more than its cap


class Worker:
    """A pass_worker.py process."""

    def __init__(self, kind: str, directory: Path, case: str, loaders: int, memory: str) -> None:
        script = Path(__file__).with_name("pass_worker.py")
        words = [sys.executable, str(script), kind, str(directory), case, str(loaders), memory]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.said = self._answer()

    def run(self, count: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with exit code {self._process.wait()}; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True)
class Round:
    """Seconds and bytes of one pass; the raw rate in bytes per second."""

    raw: float
    cold: float
    seconds: float
    stalled: float
    nbytes: float
    resident: float
    beside: float

    @property
    def bound(self) -> float:
        return max(self.resident, self.nbytes / self.raw)

    @property
    def ratio(self) -> float:
        return self.seconds / self.bound


def measure(case: str, directory: Path, disk: int, options: argparse.Namespace) -> tuple[list[Round], str]:
    """All rounds of one case on one disk, and what pages the arena has."""
    count = options.passes
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(Worker("plain", directory, case, options.loaders, options.memory))
        stack.enter_context(capped_disk(directory, disk))
        streamed = stack.enter_context(Worker("streamed", directory, case, options.loaders, options.memory))
        # Into the very slots, which then hold nonsense until the untimed first pass after it has read them anew.
        arena = Arena.attach(os.open(f"/proc/{streamed.pid}/fd/{streamed.said['arena_fd']}", os.O_RDWR))
        reader = RawReader(largest_file(directory), arena, streamed.said["arena_nbytes"])
        stack.callback(reader.close)
        surveyed = [
            reader.rate(readers, mib, int(SURVEY_S * (disk or 2000) * 10**6))
            for mib in CHUNKS_MIB
            for readers in READERS
        ]
        candidates = sorted(surveyed, key=lambda rate: -rate.nbytes_per_s)[:CANDIDATES]
        plain.run(2)
        nbytes = streamed.run(2)["nbytes"] // 2
        rounds = []
        for _ in range(options.rounds):
            reader.read(1, candidates[0].chunk_mib, BURST_NBYTES)
            raw = max(reader.rate(one.readers, one.chunk_mib, nbytes).nbytes_per_s for one in candidates)
            cold = streamed.run(1)["seconds"]
            row = streamed.run(count)
            resident = plain.run(count)["seconds"] / count
            with reading(reader, candidates[0], row["nbytes"] / row["seconds"]):
                beside = plain.run(count)["seconds"] / count
            each = [row[name] / count for name in ("seconds", "stalled", "nbytes")]
            rounds.append(Round(raw, cold, *each, resident, beside))
        return rounds, row["pages"]


@contextlib.contextmanager
def reading(reader: RawReader, how: Rate, rate: float) -> Iterator[None]:
    """Inside, a thread reads the file at `rate` bytes per second, by one reader."""
    ended = threading.Event()

    def read() -> None:
        started, done, chunk = time.perf_counter(), 0, how.chunk_mib << 20
        while not ended.wait(max(0.0, done / rate - (time.perf_counter() - started))):
            reader.read(1, how.chunk_mib, chunk)
            done += chunk

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def line(case: str, disk: int, rounds: list[Round], pages: str) -> str:
    def median(name: str) -> float:
        return statistics.median(getattr(one, name) for one in rounds)

    return (
        f"{case:<20} {disk or 'as is'!s:>5} {pages:<14} {median('seconds'):>7.3f} {median('bound'):>7.3f} "
        f"{median('ratio'):>6.3f} {median('resident'):>9.3f} {median('beside'):>7.3f} "
        f"{median('nbytes') / median('raw'):>7.3f} {median('nbytes') / 1e6:>7.0f} {median('raw') / 1e6:>6.0f} "
        f"{100 * median('stalled') / median('seconds'):>6.1f} {median('cold'):>7.3f}"
    )


def main() -> None:
    undo_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--models", type=Path, default=Path("bench-models"), help="made by make_models.py")
    parser.add_argument("--disk", type=int, action="append", help="cap in MB/s, 0: as it is; may be repeated")
    parser.add_argument("--huge", choices=("on", "never", "off"), action="append", help="huge pages; may be repeated")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--passes", type=int, default=2, help="in a row, per round")
    parser.add_argument("--loaders", type=int, default=3)
    parser.add_argument("--memory", default="none")
    parser.add_argument("--prefer", action="store_true", help="take the processor first where others use it too")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.prefer:
            stack.enter_context(preferred())
        for huge in options.huge or ("on", "never", "off"):
            os.environ["HERMES_HUGE_PAGES"] = "off" if huge == "off" else "auto"
            try:
                with shmem_huge_pages("advise" if huge == "on" else "never") as setting:
                    print(f"shmem_enabled: {setting}; {options.loaders} loaders, memory {options.memory}, medians of "
                          f"{options.rounds} rounds of {options.passes} passes")  # fmt: skip
                    table(options)
            except Unavailable as error:
                print(f"skipped huge pages {huge}: {error}")


def table(options: argparse.Namespace) -> None:
    print(f"{'case':<20} {'MB/s':>5} {'arena pages':<14} {'s/pass':>7} {'bound':>7} {'ratio':>6} {'resident':>9} "
          f"{'beside':>7} {'storage':>7} {'MB/pass':>7} {'raw':>6} {'stall%':>6} {'1st':>7}")  # fmt: skip
    for disk in options.disk or (0, 1000, 400):
        for case in options.cases or DEFAULT:
            try:
                rounds, pages = measure(case, options.models / CASES[case].model, disk, options)
            except Unavailable as error:
                print(f"{case:<20} {disk:>5} skipped: {error}")
                continue
            print(line(case, disk, rounds, pages), flush=True)


if __name__ == "__main__":
    main()
