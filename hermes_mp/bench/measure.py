"""The rounds: in each, the raw rate of the disk, computing with all weights, and every row of a group in turn.

What differs between rows is the backend alone: same disk, same memory group, same input, nothing of the model's files
in the page cache before each. Memory is looked at afterwards, in runs that are not timed.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from hermes_mp.bench import board, peers
from hermes_mp.bench import worker as worker_module
from hermes_mp.bench.board import Unavailable
from hermes_mp.bench.conditions import Conditions
from hermes_mp.bench.journal import GroupNote, Journal, PeakSample, Sample
from hermes_mp.bench.models import Model
from hermes_mp.bench.plan import OURS, Group, Subject, Wanted, in_turn
from hermes_mp.bench.process import Peak, WorkerLost, WorkerProcess, sampling, worker_settings, worker_words
from hermes_mp.bench.raw import Raw
from hermes_mp.bench.reference import AGAIN, Reference
from hermes_mp.host import environment

BESIDE_ACCELERATE = 550 * 10**6  # of a limit: 270 MB for its process, the rest for the page cache, or it collapses
PEER_S = 600.0  # with too little page cache it does not end, rather than being killed
YIELDING = 0.6  # after a kill the peer is given so much less memory for weights, and may try again
TRIES = 4
BESIDE_NBYTES = 1 << 30  # that a run takes beside weights, about: interpreter, libraries, activations
TAKEN_BACK, REST_S = 400e6, 30.0  # bytes per second that the host of a virtual machine takes back; so long at most
WARM = 0.05  # a file of which more is in the page cache is not cold


@dataclass
class Peers:
    """What the user named of them."""

    accelerate_python: Path | None = None
    llama_bench: Path | None = None
    gguf: Path | None = None


class Bench:
    """Measures groups into a journal. `say` tells the person what is going on; `traces` is where timelines go."""

    def __init__(
        self, wanted: Wanted, journal: Journal, others: Peers, say: Callable[[str], None], traces: Path | None
    ) -> None:
        self._wanted, self._journal, self._others, self._say, self._traces = wanted, journal, others, say, traces

    def run(self, group: Group, model: Model) -> None:
        """Measure what the journal lacks of this group. A regime that this machine cannot play is noted as left out."""
        try:
            with contextlib.ExitStack() as stack:
                _GroupRun(self._wanted, self._journal, self._others, self._say, group, model, stack).run(self._traces)
        except (Unavailable, WorkerLost) as error:
            measured = any(label == group.label for label, _, _ in self._journal.samples)
            text = f"not measured to the end, --resume goes on: {error}" if measured else f"left out: {error}"
            self._journal.keep(GroupNote(group.label, text, left_out=True))


class _GroupRun:
    def __init__(
        self, wanted: Wanted, journal: Journal, others: Peers, say: Callable[[str], None], group: Group,
        model: Model, stack: contextlib.ExitStack,
    ) -> None:  # fmt: skip
        self._wanted, self._journal, self._others, self._say = wanted, journal, others, say
        self._group, self._model, self._stack = group, model, stack
        self._workers: dict[Subject, WorkerProcess] = {}
        self._cpu_nbytes: dict[Subject, float] = {}
        self._cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="hermes-bench-"))
        self._conditions: Conditions

    def run(self, traces: Path | None) -> None:
        todo = [
            (number, subject)
            for number in range(self._wanted.rounds)
            for subject in in_turn(self._group.subjects, number)
            if (self._group.label, subject.label, number) not in self._journal.samples
        ]
        peaks = [one for one in self._group.subjects if (self._group.label, one.label) not in self._journal.peaks]
        if not todo and not peaks:
            return
        reference = self._stack.enter_context(Reference(self._wanted, self._model))
        conditions = Conditions(self._group, self._model, self._wanted, self._stack)
        self._conditions = conditions
        self._stack.push(self._leave)
        raw = self._stack.enter_context(Raw(self._model, conditions.disk, conditions.readers, conditions.rate))
        self._journal.keep(GroupNote(self._group.label, f"{conditions.text}; raw rate of {raw.text}"))
        before: tuple[int, tuple[float | None, float | None], float | None] = (-1, (None, None), None)
        for number, subject in todo:
            if self._journal.failed(self._group.label, subject.label):
                continue
            if before[0] != number:
                known = self._journal.pipeline_s(self._group.label, number)  # of a round that was broken off
                before = (number, reference.measure(), conditions.new_round(known))
                cap = conditions.rate or self._group.regime.total
                raw.measure([one.loaders for one in self._group.subjects], cap)
            self._say(f"{self._group.label}: round {number + 1} of {self._wanted.rounds}, {subject.label}")
            _, compute, pipeline_s = before
            sample = replace(
                self._measure(subject, number), raw=raw.rate(subject.loaders), compute_first_s=compute[0],
                compute_steady_s=compute[1], pipeline_s=pipeline_s,
            )  # fmt: skip
            self._journal.keep(sample)
        raw.close()
        reference.close()
        self._leave()
        for subject in peaks:
            if subject.backend == "llama.cpp" or self._journal.failed(self._group.label, subject.label):
                continue
            self._say(f"{self._group.label}: memory of {subject.label}")
            self._journal.keep(self._peak(subject))
        if traces is not None:
            for subject in timeline_subjects(self._group):
                path = traces / f"{self._group.word}-{subject.word}.trace.json"
                if not path.exists() and not self._journal.failed(self._group.label, subject.label):
                    self._say(f"{self._group.label}: timeline of {subject.label}")
                    self._trace(subject, path)

    # --- one row

    def _measure(self, subject: Subject, number: int) -> Sample:
        sample = Sample(self._group.label, subject.label, number)
        if subject.backend == "llama.cpp":
            return self._measure_llama(subject, sample)
        for _ in range(TRIES):
            try:
                done = self._measure_worker(subject, sample)
                return replace(done, failed=done.failed + self._conditions.why_killed(subject)) if done.failed else done
            except WorkerLost as error:
                if subject in self._workers:  # it may not have come so far
                    self._workers.pop(subject).__exit__(None, None, None)
                text = str(error) + self._conditions.why_killed(subject)
            if subject.backend != "accelerate" or number or not self._cpu_nbytes.get(subject):
                break
            self._cpu_nbytes[subject] *= YIELDING
        return replace(sample, failed=text)

    def _measure_worker(self, subject: Subject, sample: Sample) -> Sample:
        if subject not in self._workers:
            self._workers[subject] = self._start(subject)
        running = self._workers[subject]
        running.timeout_s = PEER_S if subject.backend == "accelerate" else None
        opened = running.ask("open", self._has_room())
        if "failed" in opened:
            return replace(sample, failed=opened["failed"])
        self._conditions.place_loaders(running)
        cached = self._chill(subject)
        first = running.ask("first")
        if "failed" in first:
            return replace(sample, failed=first["failed"])
        count = self._wanted.new_tokens if first["kind"] == "tokens" else AGAIN
        again = running.ask("steady", count)
        if "failed" in again:
            return replace(sample, failed=again["failed"])
        closed = running.ask("close")
        if "failed" in closed:
            return replace(sample, failed=closed["failed"])
        note = f"{100 * cached:.0f} % of its files could not be evicted" if cached > WARM else ""
        if subject.backend == "accelerate":
            note = f"accelerate {opened['version']}, {self._cpu_nbytes[subject] / 1e6:.0f} MB kept, the rest on disk"
        return replace(
            sample, note=note, kind=first["kind"], first_s=first["seconds"], load_s=first["load_s"],
            first_stalled_s=first["stalled_s"] if subject.backend != "sequential" else first["load_s"],
            first_nbytes=first["nbytes"], steady_s=statistics.median(again["each"]),
            steady_stalled=again["stalled_s"] / again["seconds"], steady_nbytes=again["nbytes"] / count,
            weight_nbytes=max(first["weight_nbytes"], again["weight_nbytes"]), threads=opened["threads"],
            slots=opened.get("slots", 0), slot_nbytes=opened.get("slot_nbytes", 0),
            needed_nbytes=opened.get("needed_nbytes", 0),
        )  # fmt: skip

    def _measure_llama(self, subject: Subject, sample: Sample) -> Sample:
        binary, gguf, wanted = self._others.llama_bench, self._others.gguf, self._wanted
        if binary is None or gguf is None:
            return replace(sample, failed="needs --llama-bench and --gguf")
        self._chill(subject, gguf)
        try:
            words = peers.llama_command(binary, gguf, wanted.tokens, wanted.new_tokens, wanted.threads)
            found = peers.run_llama(words, self._conditions.groups(subject))
        except peers.PeerFailed as error:
            return replace(sample, failed=f"{error}{self._conditions.why_killed(subject)}")
        return replace(
            sample, kind="tokens", first_s=found.first_s, steady_s=found.token_s, threads=found.threads,
            needed_nbytes=found.nbytes, note=f"llama.cpp {found.build}, from the start of its process",
        )  # fmt: skip

    def _has_room(self) -> bool:
        """Whether no row of the group is to keep a budget: all of ours begin alike."""
        return self._group.cgroup is None and all(one.memory is None for one in self._group.subjects)

    def _chill(self, subject: Subject, *others: Path) -> float:
        """Before a cold run: files out of the page cache, but memory at hand, and what the run before it freed is taken
        back. The share of the files still cached."""
        cached = board.evict([*self._model.files, *others])
        time.sleep(min(REST_S, self._model.facts.nbytes / TAKEN_BACK))
        if subject.backend not in OURS:
            board.touch_memory(self._model.facts.nbytes + BESIDE_NBYTES)
        elif not self._has_room():  # else arena and heap have their memory
            board.touch_memory(BESIDE_NBYTES)
        return cached

    def _start(self, subject: Subject, trace: Path | None = None) -> WorkerProcess:
        settings = worker_settings(self._wanted, self._model, subject, self._group.regime)
        if trace is not None:
            settings["trace"] = str(trace)
        if subject.backend == "accelerate":
            limit = self._group.cgroup or next((one for one in self._wanted.memory if one is not None), None)
            whole = 2 * self._model.facts.nbytes
            default = whole if limit is None else max(1 << 20, limit - BESIDE_ACCELERATE)
            settings["cpu_nbytes"] = self._cpu_nbytes.setdefault(subject, default)
            python = self._others.accelerate_python
            if python is not None:
                words = [str(python), str(Path(worker_module.__file__)), json.dumps(settings)]
                return WorkerProcess(words, self._conditions.groups(subject), {"PYTHONPATH": None})
        # What is remembered of a disk that is capped, and units at another size, are no business of the user's cache.
        variables = {"XDG_CACHE_HOME": self._cache}
        if subject.backend in OURS:  # as the compute process of a launch has it
            variables = environment.for_computing() | variables
        return WorkerProcess(worker_words(settings), self._conditions.groups(subject), variables)

    def _leave(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:  # fmt: skip
        for running in self._workers.values():
            running.__exit__(kind, error, trace)
        self._workers.clear()

    def _peak(self, subject: Subject) -> PeakSample:
        """A run of its own, in a fresh process and a fresh memory group, with its memory sampled."""
        nothing = PeakSample(self._group.label, subject.label)
        self._conditions.renew(subject)
        peak = Peak()
        failed = ""
        try:
            with self._start(subject) as running:
                running.timeout_s = PEER_S if subject.backend == "accelerate" else None
                with sampling(running) as peak:
                    for order in ("open", "first", "steady"):
                        answer = running.ask(order, *([AGAIN] if order == "steady" else []))
                        if "failed" in answer:
                            failed = answer["failed"]
                            break
                        board.evict(self._model.files)
        except WorkerLost as error:
            failed = str(error)
        charged, kills = self._conditions.charged(subject)
        return replace(
            nothing, total_nbytes=peak.total_nbytes, beside_nbytes=peak.beside_nbytes, charged_nbytes=charged,
            oom_kills=kills, failed=failed,
        )  # fmt: skip

    def _trace(self, subject: Subject, path: Path) -> None:
        with contextlib.suppress(WorkerLost), self._start(subject, path) as running:
            if "failed" in running.ask("open", self._has_room()):
                return
            self._conditions.place_loaders(running)
            self._chill(subject)
            running.ask("first")
            running.ask("steady", 1)
            running.ask("close")


def timeline_subjects(group: Group) -> list[Subject]:
    """Those a timeline is drawn of: pipeline, and pipeload with the most loaders and the smallest budget."""
    found = [subject for subject in group.subjects if subject.backend == "pipeline"]
    streamed = [subject for subject in group.subjects if subject.backend == "pipeload"]
    if streamed:
        found.append(max(streamed, key=lambda subject: (subject.loaders, -(subject.memory or 2**60))))
    return [subject for subject in found if subject.backend in OURS]
