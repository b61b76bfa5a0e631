"""What was measured, and the rows it comes to: one per backend and test, as llama-bench has them, and more columns.

A `Journal` keeps every measurement in a file of JSON lines as it is made, so that an interrupted run loses nothing and
can be gone on with. `rows_of` is pure: medians over the rounds, limits, speed-ups.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hermes_mp.bench.limits import Limit, cold_limit, steady_limit
from hermes_mp.bench.plan import Group, Subject
from hermes_mp.errors import BadOption

FIRST, STEADY = "first", "steady"


@dataclass(frozen=True)
class ModelFacts:
    """A model by its headers: what its checkpoint holds, in bytes and numbers."""

    name: str
    nbytes: int
    parameters: int
    dtype: str


@dataclass(frozen=True)
class Sample:
    """One row in one round, or why there is none (`failed`). Seconds, bytes, bytes per second.

    `first`: from cold, with `load_s` of it spent before anything was computed. `steady`: each token or pass after it.
    `compute`: the same with all weights in memory, measured in this round. `raw`: of the disk, in this round.
    """

    group: str
    subject: str
    round: int
    failed: str = ""
    kind: str = ""  # tokens, text, image
    first_s: float = 0.0
    load_s: float = 0.0
    first_stalled_s: float = 0.0
    first_nbytes: int = 0
    steady_s: float = 0.0
    steady_stalled: float = 0.0  # the share of it
    steady_nbytes: float = 0.0
    weight_nbytes: int = 0
    raw: float | None = None
    compute_first_s: float | None = None
    compute_steady_s: float | None = None
    threads: int = 0
    slots: int = 0
    slot_nbytes: int = 0
    needed_nbytes: int = 0
    note: str = ""


@dataclass(frozen=True)
class PeakSample:
    """Memory of one row, of a run by itself that was not timed. Bytes; `beside`: all but the arena.

    `charged`: what the memory cgroup counted, page cache with it.
    """

    group: str
    subject: str
    total_nbytes: int = 0
    beside_nbytes: int = 0
    charged_nbytes: int | None = None
    oom_kills: int = 0
    failed: str = ""


@dataclass(frozen=True)
class GroupNote:
    """What held for a whole group: its raw rate in words, the rate of each reader, or why it was left out."""

    group: str
    text: str
    left_out: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table. Bytes, seconds; None: does not apply or is not known."""

    model: str
    size_nbytes: int
    parameters: int
    dtype: str
    regime: str
    cgroup_nbytes: int | None
    backend: str
    loaders: int
    budget_nbytes: int | None
    threads: int
    test: str
    seconds: float | None
    per_s: float | None
    rounds: int
    load_s: float | None
    slots: int
    slot_nbytes: int
    resident_share: float | None
    weight_nbytes: int | None
    weight_share: float | None
    peak_nbytes: int | None
    beside_nbytes: int | None
    charged_nbytes: int | None
    read_nbytes: float | None
    read_rate: float | None
    raw_rate: float | None
    stall_share: float | None
    compute_s: float | None
    limit_s: float | None
    limit_by: str
    over_limit: float | None
    speedup: float | None
    saving: float | None
    possible_speedup: float | None
    is_first: bool
    failed: str
    note: str


class Journal:
    """Measurements in a file, each written when it is made. `path` None: in memory only."""

    def __init__(self, path: Path | None, header: dict[str, Any], resume: bool = False) -> None:
        """`header` says what is measured: a file of other measurements is not gone on with (BadOption)."""
        self.samples: dict[tuple[str, str, int], Sample] = {}
        self.peaks: dict[tuple[str, str], PeakSample] = {}
        self.notes: dict[str, GroupNote] = {}
        self._path = path
        header = json.loads(json.dumps(header))
        if path is None:
            return
        if resume and path.exists():
            self._recall(path, header)
        else:
            path.write_text("")
            self._write("header", header)

    def keep(self, measured: Sample | PeakSample | GroupNote) -> None:
        self._remember(measured)
        self._write(type(measured).__name__, asdict(measured))

    def failed(self, group: str, subject: str) -> str:
        """Why this row is not measured any more; empty where it is."""
        return next((s.failed for (g, u, _), s in self.samples.items() if (g, u) == (group, subject) and s.failed), "")

    def _remember(self, measured: Sample | PeakSample | GroupNote) -> None:
        if isinstance(measured, Sample):
            self.samples[measured.group, measured.subject, measured.round] = measured
        elif isinstance(measured, PeakSample):
            self.peaks[measured.group, measured.subject] = measured
        else:
            self.notes[measured.group] = measured

    def _write(self, what: str, values: dict[str, Any]) -> None:
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"what": what, **values}) + "\n")

    def _recall(self, path: Path, header: dict[str, Any]) -> None:
        kinds = {kind.__name__: kind for kind in (Sample, PeakSample, GroupNote)}
        whole = path.read_text(encoding="utf-8")
        kept = whole[: whole.rfind("\n") + 1]  # a run that was killed may have left half a line
        for number, line in enumerate(kept.splitlines()):
            values: dict[str, Any] = json.loads(line)
            what = values.pop("what", None)
            if number == 0:
                if what != "header" or values != header:
                    raise BadOption(
                        f"{path} holds other measurements than these", "name another --report, or leave --resume out"
                    )
                continue
            kind: Any = kinds.get(what or "")
            if kind is not None:
                known = {one.name for one in fields(kind)}
                self._remember(kind(**{name: value for name, value in values.items() if name in known}))
        path.write_text(kept, encoding="utf-8")


def rows_of(group: Group, facts: ModelFacts, journal: Journal, tokens: int, batch: int) -> list[Row]:
    """The group's rows as far as they are measured, `first` and `steady` of each subject one after the other."""
    by_subject: dict[Subject, list[Sample]] = {}
    for subject in group.subjects:
        key = (group.label, subject.label)
        found = [sample for (g, s, _), sample in journal.samples.items() if (g, s) == key]
        if found:
            by_subject[subject] = found
    rows = []
    for subject, samples in by_subject.items():
        peak = journal.peaks.get((group.label, subject.label))
        good = [sample for sample in samples if not sample.failed]
        if not good:
            rows.append(_failed(group, facts, subject, samples[0]))
            continue
        for test in (FIRST, STEADY):
            rows.append(_row(group, facts, subject, good, peak, test, tokens, batch))
    return [_against_pipeline(row, rows) for row in rows]


def _failed(group: Group, facts: ModelFacts, subject: Subject, sample: Sample) -> Row:
    return _empty(group, facts, subject, "", True, failed=sample.failed)


def _empty(
    group: Group, facts: ModelFacts, subject: Subject, test: str, is_first: bool, **values: Any
) -> Row:
    nothing: dict[str, Any] = {one.name: None for one in fields(Row)}
    nothing |= {
        "model": facts.name, "size_nbytes": facts.nbytes, "parameters": facts.parameters, "dtype": facts.dtype,
        "regime": group.regime.label, "cgroup_nbytes": group.cgroup, "backend": subject.backend,
        "loaders": subject.loaders, "budget_nbytes": subject.memory, "threads": 0, "test": test, "rounds": 0,
        "slots": 0, "slot_nbytes": 0, "limit_by": "", "is_first": is_first, "failed": "", "note": "",
    }  # fmt: skip
    return Row(**nothing | values)


def _row(
    group: Group, facts: ModelFacts, subject: Subject, samples: list[Sample], peak: PeakSample | None,
    test: str, tokens: int, batch: int,
) -> Row:  # fmt: skip
    def median(of: Callable[[Sample], float | None]) -> float | None:
        found = [value for sample in samples if (value := of(sample)) is not None]
        return statistics.median(found) if found else None

    last, is_first = samples[-1], test == FIRST
    seconds = median(lambda s: s.first_s if is_first else s.steady_s)
    read = median(lambda s: s.first_nbytes if is_first else s.steady_nbytes)
    stall = median(lambda s: s.first_stalled_s / s.first_s if is_first else s.steady_stalled)
    weight = median(lambda s: s.weight_nbytes)
    assert seconds is not None
    assert read is not None
    ours = subject.loaders > 0
    limits = [_limit(group, facts, subject, sample, peak, is_first) for sample in samples]
    limit = statistics.median([one.seconds for one in limits if one.seconds is not None] or [0.0]) or None
    ratios = [
        ratio
        for one, sample in zip(limits, samples, strict=True)
        if (ratio := one.times(sample.first_s if is_first else sample.steady_s)) is not None
    ]
    needed = last.needed_nbytes or facts.nbytes
    one_token = last.kind == "tokens" and not is_first
    per_pass = batch if one_token or last.kind == "image" else batch * tokens
    return _empty(
        group, facts, subject, test_name(last.kind, is_first, tokens), is_first,
        threads=last.threads,
        seconds=seconds,
        per_s=per_pass / seconds,
        rounds=len(samples),
        load_s=median(lambda s: s.load_s) if is_first and subject.backend in ("resident", "sequential") else None,
        slots=last.slots,
        slot_nbytes=last.slot_nbytes,
        resident_share=None if is_first or not ours else max(0.0, 1 - read / needed),
        weight_nbytes=None if weight is None or not weight else round(weight),
        weight_share=None if weight is None or not weight else weight / facts.nbytes,
        peak_nbytes=peak.total_nbytes or None if peak is not None else None,
        beside_nbytes=peak.beside_nbytes or None if peak is not None and ours else None,
        charged_nbytes=None if peak is None else peak.charged_nbytes,
        read_nbytes=read,
        read_rate=read / seconds,
        raw_rate=median(lambda s: s.raw),
        stall_share=stall if ours else None,
        compute_s=median(lambda s: s.compute_first_s if is_first else s.compute_steady_s),
        limit_s=limit,
        limit_by=_commonest(one.by for one in limits),
        over_limit=statistics.median(ratios) if ratios else None,
        note=_note(subject, samples, peak, is_first),
    )  # fmt: skip


def _limit(
    group: Group, facts: ModelFacts, subject: Subject, sample: Sample, peak: PeakSample | None, is_first: bool
) -> Limit:
    needed = sample.needed_nbytes or facts.nbytes
    if is_first:
        return cold_limit(sample.compute_first_s, needed, sample.raw)
    if subject.memory is None and group.cgroup is None:
        return steady_limit(sample.compute_steady_s, sample.steady_nbytes, sample.raw, None, None)
    budget = subject.memory if subject.memory is not None else group.cgroup
    beside = None if peak is None else peak.beside_nbytes
    return steady_limit(sample.compute_steady_s, needed, sample.raw, budget, beside)


def _note(subject: Subject, samples: list[Sample], peak: PeakSample | None, is_first: bool) -> str:
    notes = [samples[-1].note] if is_first and samples[-1].note else []
    if subject.backend in ("pipeline", "sequential") and not is_first:
        notes.append("everything is loaded by now")
    if is_first and subject.backend == "resident":
        notes.append("from_pretrained, then the pass")
    if peak is not None and peak.oom_kills and is_first:
        notes.append(f"{peak.oom_kills} OOM kills")
    if peak is not None and peak.failed and is_first:
        notes.append(f"memory run: {peak.failed}")
    return "; ".join(notes)


def _against_pipeline(row: Row, rows: list[Row]) -> Row:
    base = next(
        (one for one in rows if one.backend == "pipeline" and one.is_first == row.is_first and not one.failed), None
    )
    if base is None or row.seconds is None or base.seconds is None:
        return row
    saving = None
    if row.weight_nbytes is not None and base.weight_nbytes:
        saving = 1 - row.weight_nbytes / base.weight_nbytes
    possible = base.seconds / row.limit_s if row.limit_s else None
    values = asdict(row) | {"speedup": base.seconds / row.seconds, "saving": saving, "possible_speedup": possible}
    return Row(**values)


def test_name(kind: str, is_first: bool, tokens: int) -> str:
    """What a row's time is of."""
    if kind == "tokens":
        return f"first token of {tokens}, cold" if is_first else "further token"
    thing = "image" if kind == "image" else f"{tokens} tokens"
    return f"{thing}, cold" if is_first else f"{thing}, again"


def _commonest(words: Iterable[str]) -> str:
    found = list(words)
    return max(found, key=found.count) if found else ""
