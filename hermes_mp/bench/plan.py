"""Which rows a benchmark has: models x storage regimes x memory cgroups make the groups, modes and peers their rows.

A group is what can be compared: one model, one disk, one memory limit, all its rows measured in turns. Knows no
process, file or clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MODES = ("resident", "sequential", "pipeline", "pipeload")
PEERS = ("accelerate", "llama.cpp")
OURS = ("sequential", "pipeline", "pipeload")  # through the loaders; the others read by themselves
MODE_HELP = {
    "resident": "plain transformers, the whole model loaded, then computed",
    "sequential": "the paper's non-pipeline: all units are loaded, then computed",
    "pipeline": "PipeSwitch: one loader, computed layer by layer as they come, nothing is freed",
    "pipeload": "several loaders, memory freed after use",
}

UNITS, LEAST_UNIT, MOST_UNIT = 96, 4, 64  # how many make a model; how large one is, in MiB


@dataclass(frozen=True)
class Regime:
    """What the disk is made to be. Rates in bytes per second, None: as it is.

    `total` caps all reads together; `per_reader` caps each loader by itself, as do network storage and decoding.
    `factor` stands for a per-reader rate at which one reader takes so many times the time that `pipeline` computes.
    """

    total: float | None = None
    per_reader: float | None = None
    factor: float | None = None
    read_ahead_kib: int | None = None

    @property
    def is_per_reader(self) -> bool:
        return self.per_reader is not None or self.factor is not None

    @property
    def label(self) -> str:
        if self.factor is not None:
            text = f"each reader takes {self.factor:g}x the computing time"
        elif self.per_reader is not None:
            text = f"{self.per_reader / 1e6:g} MB/s per reader"
        elif self.total is not None:
            text = f"disk capped at {self.total / 1e6:g} MB/s"
        else:
            text = "disk as it is"
        return text if self.read_ahead_kib is None else f"{text}, read-ahead {self.read_ahead_kib} KiB"

    @property
    def word(self) -> str:
        """The label, short enough for the name of a file."""
        if self.read_ahead_kib is not None:
            return f"readahead-{self.read_ahead_kib}"
        if self.factor is not None:
            return f"{self.factor:g}x-per-reader"
        if self.per_reader is not None:
            return f"{self.per_reader / 1e6:g}MBps-per-reader"
        return "as-is" if self.total is None else f"{self.total / 1e6:g}MBps"


@dataclass(frozen=True)
class Subject:
    """What a row is about: a mode or a peer, its loaders (0: none of ours), its budget in bytes (None: no limit)."""

    backend: str
    loaders: int = 0
    memory: int | None = None

    @property
    def label(self) -> str:
        loaders = f"-{self.loaders}" if self.backend in OURS else ""
        return self.backend + loaders + ("" if self.memory is None else f" {self.memory / 2**20:.0f} MiB")

    @property
    def word(self) -> str:
        return self.label.replace(" ", "-")


@dataclass(frozen=True)
class Group:
    """Rows that are measured in turns. `cgroup`: bytes of the memory group each row runs in, page cache counted."""

    model: str
    regime: Regime
    cgroup: int | None
    subjects: tuple[Subject, ...]

    @property
    def label(self) -> str:
        limit = "" if self.cgroup is None else f", each row in a memory cgroup of {self.cgroup / 2**20:.0f} MiB"
        return f"{self.name}, {self.regime.label}{limit}"

    @property
    def name(self) -> str:
        """Of the model, without the folder."""
        return self.model.rstrip("/").rpartition("/")[2]

    @property
    def word(self) -> str:
        """The label, short enough for the name of a file."""
        return f"{self.name}-{self.regime.word}" + ("" if self.cgroup is None else f"-{self.cgroup >> 20}MiB")


@dataclass(frozen=True)
class Wanted:
    """What the user asked for; sizes in bytes, rates in bytes per second."""

    models: tuple[str, ...]
    modes: tuple[str, ...] = MODES
    loaders: tuple[int, ...] = (1, 2, 4)
    memory: tuple[int | None, ...] = (None,)
    disks: tuple[float | None, ...] = (None,)
    per_reader: tuple[Regime, ...] = ()
    read_ahead_kib: int | None = None
    cgroups: tuple[int | None, ...] = (None,)
    peers: tuple[str, ...] = ()
    rounds: int = 3
    tokens: int = 32
    new_tokens: int = 8
    batch: int = 1
    threads: int | None = None
    dtype: str = "auto"
    slot: int | None = None
    slots: int | None = None  # of pipeload, which streams through all of them

    def regimes(self) -> Iterator[Regime]:
        for total in self.disks:
            yield Regime(total=total)
        yield from self.per_reader
        if self.read_ahead_kib is not None:
            yield Regime(read_ahead_kib=self.read_ahead_kib)

    def groups(self) -> Iterator[Group]:
        """In the order they are measured."""
        for model in self.models:
            for regime in self.regimes():
                for cgroup in self.cgroups:
                    yield Group(model, regime, cgroup, tuple(self.subjects(cgroup)))

    def subjects(self, cgroup: int | None) -> Iterator[Subject]:
        """The paper's baselines read with one loader and know no budget; pipeload has one row for each of both.

        In a memory cgroup it is given the cgroup's size as its budget, unless the user named budgets.
        """
        budgets = self.memory
        if cgroup is not None and budgets == (None,):
            budgets = (cgroup,)
        for mode in self.modes:
            if mode == "pipeload":
                for memory in budgets:
                    yield from (Subject(mode, loaders, memory) for loaders in self.loaders)
            else:
                yield Subject(mode, 1 if mode in OURS else 0)
        yield from (Subject(peer) for peer in self.peers)


def unit_nbytes(mode: str, regime: Regime, slot: int | None, model_nbytes: int) -> int | None:
    """How large units of one of our modes are, 0: a layer each; None: as the planner says.

    The paper's baselines go layer by layer. Readers with a rate of their own get it after the planning, which would
    take the disk for one that is not theirs: there pipeload has units of a 96th of the model, of 4 to 64 MiB.
    """
    if slot is not None:
        return slot
    if mode != "pipeload":
        return 0
    return min(max(round(model_nbytes / UNITS / 2**20), LEAST_UNIT), MOST_UNIT) << 20 if regime.is_per_reader else None


def in_turn(subjects: tuple[Subject, ...], number: int) -> list[Subject]:
    """The order of round `number`: each begins with another row, so that none always runs after the same one."""
    start = number % max(1, len(subjects))
    return [*subjects[start:], *subjects[:start]]
