"""Seconds per pass against the hardware's bound: max(resident compute, bytes a pass must read / raw rate of the disk).

    python benchmarks/pass_time.py --models bench-models              every case, disk and kind of pages (an hour)
    python benchmarks/pass_time.py bert-large-128 --disk 400 --huge on --memory 500MB,700MB,900MB

Under a budget a pass must read what the budget leaves no room for, beside the footprint that was measured; without one
it must read what it did read.

Every round measures, one after the other: the raw rate (of as many bytes, 10^9 at most), a first pass, passes
in a row on streamed weights, passes of plain transformers with all weights in memory. Medians over the rounds; each
round's own raw rate makes its bound. Disks are capped by cgroup v1 (root). The footprint is sampled before, untimed.
`beside`: plain transformers once more, while the raw readers read all that they get (`got`, never more than raw):
reading and computing take processor and memory bandwidth from each other. `reach` is what a pass would take that loses
nothing but that, with this way of reading; `/reach` is our multiple of it. They are printed; the bound does not know
them. What our processes remember of disk and model stays in a cache of each disk, so that no cap is taken for another.

--huge on: shmem_enabled is advise. never: it is never, as on most systems (we get huge pages all the same, where the
kernel is 6.1 or later). off: small pages, as on older kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hermes_mp.bench.board import Unavailable, capped_disk, preferred, shmem_huge_pages, undo_when_ended
from hermes_mp.bench.limits import Limit, steady_limit
from hermes_mp.bench.models import Model, open_model
from hermes_mp.bench.plan import Regime, Subject, Wanted
from hermes_mp.bench.process import WorkerProcess, sampling, worker_settings, worker_words
from hermes_mp.bench.raw_read import RawReader, largest_file
from hermes_mp.config import parse_size
from hermes_mp.host import environment
from hermes_mp.host.arena import Arena

Way = tuple[int, int]  # readers, and bytes of each read

DEFAULT = ("bert-large-32", "bert-large-128", "vit-large", "llama-3.2-1b-decode")
SURVEY_S = 0.5  # of reading, to find the best numbers of readers and sizes of chunks
BEFORE = 2  # passes that are not timed, while memory is sampled
CANDIDATES = 2  # so many of them are measured in every round, the best one counts
WAYS = [(readers, mib << 20) for mib in (1, 4, 8, 16) for readers in (1, 2, 3, 4)]
BURST_NBYTES = 150 * 10**6  # read untimed first: after a pause a capped disk grants more than its cap
RAW_NBYTES = 10**9  # read raw at most, each time


@dataclass(frozen=True)
class Case:
    """A shape, and how many tokens it is given; a model that generates makes one more in every pass."""

    model: str
    tokens: int = 32


CASES = {
    "bert-large-32": Case("bert-large", 32),
    "bert-large-128": Case("bert-large", 128),
    "bert-large-384": Case("bert-large", 384),
    "vit-large": Case("vit-large"),
    "llama-3.2-1b-decode": Case("llama-3.2-1b", 16),
    "gpt2-decode": Case("gpt2", 16),
    "gpt-j-6b-decode": Case("gpt-j-6b", 16),
}


class Worker:
    """A model in a process of its own, as hermes-bench has them, with its weights in memory or streaming."""

    def __init__(
        self, subject: Subject, model: Model, tokens: int, options: argparse.Namespace, **more: object
    ) -> None:
        wanted = Wanted((), tokens=tokens, new_tokens=BEFORE + options.rounds * (2 * options.passes + 1))
        settings = worker_settings(wanted, model, subject, Regime()) | more
        self.process = WorkerProcess(worker_words(settings), environment=environment.for_computing())
        with sampling(self.process) as peak:
            self.opened = self._ask("open")
            self.first = self._ask("first")
            self.before = self.run(BEFORE)
        self.footprint_nbytes = peak.beside_nbytes

    def run(self, count: int) -> dict[str, Any]:
        """`count` passes: seconds, seconds stalled, and bytes read, of all together."""
        return self._ask("steady", count)

    def _ask(self, do: str, *arguments: object) -> dict[str, Any]:
        answer = self.process.ask(do, *arguments)
        if "failed" in answer:
            raise SystemExit(answer["failed"])
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.__exit__(kind, error, trace)


@dataclass(frozen=True)
class Round:
    """Seconds and bytes of one pass, read and needed; the raw rate in bytes per second."""

    raw: float
    cold: float
    seconds: float
    stalled: float
    nbytes: float
    resident: float
    beside: float
    got: float
    needed: float
    limit: Limit

    @property
    def bound(self) -> float:
        return self.limit.seconds or 0.0

    @property
    def storage(self) -> float:
        return self.limit.storage_s or 0.0

    @property
    def ratio(self) -> float:
        return self.seconds / self.bound

    @property
    def reach(self) -> float:
        return reach(self.resident, self.beside, self.raw, self.got, self.needed)

    @property
    def reach_ratio(self) -> float:
        return self.seconds / self.reach


@dataclass(frozen=True)
class Measured:
    """One case: its rounds, the pages of the memory raw reads went to, and the bytes in memory beside the arena."""

    rounds: list[Round]
    pages: str
    footprint_nbytes: int

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in self.rounds))


def measure(case: str, model: Model, disk: int, memory: int | None, options: argparse.Namespace) -> Measured:
    """All rounds of one case on one disk."""
    count, tokens, directory = options.passes, CASES[case].tokens, model.directory
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(Worker(Subject("resident", 0, None), model, tokens, options))
        stack.enter_context(capped_disk(directory, disk))
        streamed = stack.enter_context(Worker(Subject("pipeload", options.loaders, memory), model, tokens, options))
        # Into the very slots, which then hold nonsense until the untimed first pass after it has read them anew; but
        # residents would hold it for good, and nobody computes with that.
        slots: tuple[Arena, int] | tuple[()] = ()
        if memory is None:
            arena = Arena.attach(os.open(f"/proc/{streamed.process.pid}/fd/{streamed.opened['arena_fd']}", os.O_RDWR))
            slots = arena, streamed.opened["slots"] * streamed.opened["slot_nbytes"]
        reader = RawReader(largest_file(directory), *slots)
        stack.callback(reader.close)
        nbytes = int(SURVEY_S * (disk or 2000) * 10**6)
        surveyed = {way: reader.read(*way, nbytes) for way in WAYS}
        candidates = sorted(WAYS, key=lambda way: surveyed[way])[:CANDIDATES]
        nbytes = min(max(streamed.before["nbytes"] // BEFORE, BURST_NBYTES), RAW_NBYTES)
        footprint, needed = streamed.footprint_nbytes, streamed.opened["needed_nbytes"]
        rounds = []
        for _ in range(options.rounds):
            reader.read(1, candidates[0][1], BURST_NBYTES)
            taken = {way: reader.read(*way, nbytes) for way in candidates}
            best = min(taken, key=lambda way: taken[way])
            raw = nbytes / taken[best]
            raw = min(raw, disk * 1e6) if disk else raw  # at first a capped disk grants more than it can keep up
            cold = streamed.run(1)["seconds"]
            row = streamed.run(count)
            resident = plain.run(count)["seconds"] / count
            with reading(reader, best) as rate:
                beside = plain.run(count)["seconds"] / count
            seconds, stalled, read = (row[name] / count for name in ("seconds", "stalled_s", "nbytes"))
            limit = steady_limit(resident, read if memory is None else needed, raw, memory, footprint)
            got, streams = min(raw, rate[0]), (limit.storage_s or 0.0) * raw
            rounds.append(Round(raw, cold, seconds, stalled, read, resident, beside, got, streams, limit))
        return Measured(rounds, reader.pages, footprint)


@contextlib.contextmanager
def reading(reader: RawReader, way: Way) -> Iterator[list[float]]:
    """Inside, threads read the file as fast as they can; afterwards the list holds their bytes per second."""
    ended, rate = threading.Event(), list[float]()
    thread = threading.Thread(target=lambda: rate.append(reader.read_until(ended, *way)))
    thread.start()
    try:
        yield rate
    finally:
        ended.set()
        thread.join()


def reach(resident: float, beside: float, raw: float, got: float, nbytes: float) -> float:
    """Seconds of a pass that reads `nbytes` while it computes and then, if there are more, without computing.

    Computing takes `resident` seconds alone and `beside` while `got` bytes per second are read, `raw` of which the disk
    gives alone; what is read more slowly slows computing in proportion. One after the other, where that is sooner.
    """
    beside = max(beside, resident)
    meanwhile = got * beside
    if nbytes >= meanwhile:
        return min(beside + (nbytes - meanwhile) / raw, resident + nbytes / raw)
    return min(resident + (beside - resident) * nbytes / meanwhile, resident + nbytes / raw)


def line(case: str, disk: int, memory: int | None, found: Measured) -> str:
    median = found.median
    budget = f"{memory / 1e6:.0f}" if memory else "none"
    by = Limit(median("resident"), median("storage")).by
    cold = "-" if memory else f"{median('cold'):.3f}"  # under a budget it is no first pass
    return (
        f"{case:<20} {disk or 'as is'!s:>5} {budget:>6} {found.footprint_nbytes / 1e6:>5.0f} {found.pages:<14} "
        f"{median('seconds'):>7.3f} {median('bound'):>7.3f} {median('ratio'):>6.3f} {by:<8} "
        f"{median('resident'):>8.3f} {median('storage'):>7.3f} "
        f"{median('nbytes') / 1e6:>7.0f} {median('raw') / 1e6:>6.0f} "
        f"{100 * median('stalled') / median('seconds'):>6.1f} {cold:>7} "
        f"{median('beside'):>7.3f} {median('got') / 1e6:>6.0f} {median('reach'):>7.3f} {median('reach_ratio'):>6.3f}"
    )


def main() -> None:
    undo_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--models", type=Path, default=Path("bench-models"), help="where shapes are made")
    parser.add_argument("--disk", type=int, action="append", help="cap in MB/s, 0: as it is; may be repeated")
    parser.add_argument("--huge", choices=("on", "never", "off"), action="append", help="huge pages; may be repeated")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--passes", type=int, default=2, help="in a row, per round")
    parser.add_argument("--loaders", type=int, default=3)
    parser.add_argument("--memory", type=_budgets, default=[None], help="budgets (default: none), by commas")
    parser.add_argument("--prefer", action="store_true", help="take the processor first where others use it too")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.prefer:
            stack.enter_context(preferred())
        for huge in options.huge or ("on", "never", "off"):
            os.environ["HERMES_HUGE_PAGES"] = "off" if huge == "off" else "auto"
            try:
                with shmem_huge_pages("advise" if huge == "on" else "never") as setting:
                    print(f"shmem_enabled: {setting}; {options.loaders} loaders, medians of {options.rounds} rounds of "
                          f"{options.passes} passes")  # fmt: skip
                    table(options)
            except Unavailable as error:
                print(f"skipped huge pages {huge}: {error}")


def _budgets(text: str) -> list[int | None]:
    return [None if word == "none" else parse_size(word) for word in text.split(",")]


def table(options: argparse.Namespace) -> None:
    print(f"{'case':<20} {'MB/s':>5} {'budget':>6} {'foot':>5} {'pages':<14} {'s/pass':>7} {'bound':>7} "
          f"{'ratio':>6} {'by':<8} {'resident':>8} {'storage':>7} {'MB/pass':>7} {'raw':>6} "
          f"{'stall%':>6} {'1st':>7} {'beside':>7} {'got':>6} {'reach':>7} {'/reach':>6}")  # fmt: skip
    for disk in options.disk or (0, 1000, 400):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            for case, memory in itertools.product(options.cases or DEFAULT, options.memory):
                try:
                    model = open_model(CASES[case].model, options.models, print)
                    found = measure(case, model, disk, memory, options)
                except Unavailable as error:
                    print(f"{case:<20} {disk:>5} skipped: {error}")
                    continue
                print(line(case, disk, memory, found), flush=True)


if __name__ == "__main__":
    main()
