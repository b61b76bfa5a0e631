"""What a group's regime makes of this machine while it is measured: caps, memory limits, read-ahead; and in words."""

from __future__ import annotations

import contextlib

from hermes_mp.bench import board
from hermes_mp.bench.board import ControlGroup
from hermes_mp.bench.limits import reader_rate
from hermes_mp.bench.models import Model
from hermes_mp.bench.plan import Group, Subject, Wanted, unit_nbytes
from hermes_mp.bench.process import WorkerLost, WorkerProcess
from hermes_mp.bench.reference import pipeline_s


class Conditions:
    """`disk`: the groups that a row is put in. `readers`: one for each loader, where each has a `rate` of its own.

    Everything is undone when `stack` is left.
    """

    def __init__(
        self, group: Group, model: Model, wanted: Wanted, stack: contextlib.ExitStack
    ) -> None:
        """Raises Unavailable where this machine cannot play it."""
        self.disk: list[ControlGroup] = []
        self.readers: list[ControlGroup] = []
        self.rate = group.regime.per_reader
        self._next_s: float | None = None  # measured, and for the round that is to come
        self._regime, self._model, self._wanted = group.regime, model, wanted
        self._cgroup = group.cgroup
        self._limits: dict[Subject, ControlGroup] = {}
        self._stack = stack
        regime, directory = group.regime, model.directory
        texts = []
        if regime.factor is not None:
            self._next_s = pipeline_s(wanted, model)
            self.rate = reader_rate(model.facts.nbytes, self._next_s, regime.factor)
            texts.append(
                f"each reader (a loader; or a backend that reads by itself, all its threads together) is capped at the "
                f"rate at which the model takes it {regime.factor:g} times as long as pipeline computes once "
                "everything is loaded, measured in every round"
            )
        elif self.rate is not None:
            texts.append(f"each reader is capped at {self.rate / 1e6:.0f} MB/s")
        if self.rate is not None:
            count = max([1, *(subject.loaders for subject in group.subjects)])
            self.readers = [stack.enter_context(board.read_cap(directory, self.rate)) for _ in range(count)]
            self.disk = [stack.enter_context(board.read_cap(directory, self.rate))]
        elif regime.total is not None:
            self.disk = [stack.enter_context(board.read_cap(directory, regime.total))]
            texts.append(f"all reads together are capped at {regime.total / 1e6:.0f} MB/s")
        else:
            texts.append("the disk as it is")
        if wanted.slot is not None:
            texts.append(f"units of at most {wanted.slot / 2**20:.4g} MiB rather than layers")
        elif unit := unit_nbytes("pipeload", regime, None, model.facts.nbytes):
            texts.append(f"units of pipeload of at most {unit >> 20} MiB, as no planner knows what these readers reach")
        if wanted.slots is not None:
            texts.append(f"pipeload streams through {wanted.slots} slots")
        knob = board.read_ahead_knob(directory)
        if regime.read_ahead_kib is not None:
            stack.enter_context(board.setting(knob, str(regime.read_ahead_kib)))
        if knob.exists():
            texts.append(f"kernel read-ahead {knob.read_text().strip()} KiB")
        texts.append("before a cold run files are evicted, the machine rests, and memory is at hand")
        for subject in group.subjects:
            self.renew(subject)
        self.text = "; ".join(texts)

    def new_round(self, known_s: float | None = None) -> float | None:
        """Where the readers' rate is made of what `pipeline` computes for: the rate so, and seconds of that.

        `known_s`: so many, measured in this round before; None: measure them now.
        """
        if self._regime.factor is None:
            return None
        compute_s, self._next_s = known_s or self._next_s or pipeline_s(self._wanted, self._model), None
        self.rate = reader_rate(self._model.facts.nbytes, compute_s, self._regime.factor)
        for group in [*self.readers, *self.disk]:
            board.change_cap(group, self._model.directory, self.rate)
        return compute_s

    def renew(self, subject: Subject) -> None:
        """A fresh memory group for this row, whose counters begin at nothing."""
        if self._cgroup is not None:
            self._limits[subject] = self._stack.enter_context(board.memory_limit(self._cgroup))

    def groups(self, subject: Subject) -> list[ControlGroup]:
        """What the process of this row runs in."""
        limit = self._limits.get(subject)
        return self.disk if limit is None else [*self.disk, limit]

    def place_loaders(self, running: WorkerProcess) -> None:
        """Each loader among those who read at a rate of their own. Raises WorkerLost where one ended meanwhile."""
        if self.readers:
            for group, pid in zip(self.readers, running.loaders(), strict=False):
                try:
                    group.enter(pid)
                except OSError as error:
                    raise WorkerLost(f"a loader could not be put in its group: {error.strerror}") from None

    def why_killed(self, subject: Subject) -> str:
        """Of a row that failed, in words; empty where the kernel did not end it for its memory."""
        limit = self._limits.get(subject)
        if limit is None or not board.oom_kills(limit):
            return ""
        return f" (by the kernel: more memory than the cgroup's {(self._cgroup or 0) >> 20} MiB)"

    def charged(self, subject: Subject) -> tuple[int | None, int]:
        """Bytes that the memory group counted at most, and how many processes it cost; None without one."""
        limit = self._limits.get(subject)
        if limit is None:
            return None, 0
        return int(limit.read("memory.max_usage_in_bytes")), board.oom_kills(limit)
