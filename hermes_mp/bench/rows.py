"""The rows that measurements come to: one per backend and test, as llama-bench has them, and more columns.

Pure: medians over the rounds, limits, speed-ups.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hermes_mp.bench.journal import Journal, ModelFacts, PeakSample, Sample
from hermes_mp.bench.limits import Limit, cold_limit, steady_limit
from hermes_mp.bench.plan import Group, Subject

FIRST, STEADY = "first", "steady"


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
    pipeline_s: float | None  # that `pipeline` computes, where that sets the rate of a reader
    limit_s: float | None
    limit_by: str
    over_limit: float | None
    speedup: float | None
    saving: float | None
    possible_speedup: float | None
    is_first: bool
    failed: str
    note: str


def rows_of(group: Group, facts: ModelFacts, journal: Journal, tokens: int, batch: int) -> list[Row]:
    """The group's rows as far as they are measured, `first` and `steady` of each subject one after the other."""
    by_subject: dict[Subject, list[Sample]] = {}
    for subject in group.subjects:
        key = (group.label, subject.label)
        found = [sample for (g, s, _), sample in journal.samples.items() if (g, s) == key]
        if found:
            by_subject[subject] = found
    rows = []
    base: dict[int, Sample] = {}  # `pipeline`, by round
    for subject, samples in by_subject.items():
        if subject.backend == "pipeline":
            base = {sample.round: sample for sample in samples if not sample.failed}
    for subject, samples in by_subject.items():
        peak = journal.peaks.get((group.label, subject.label))
        good = [sample for sample in samples if not sample.failed]
        if not good:
            rows.append(_failed(group, facts, subject, samples[0]))
            continue
        for test in (FIRST, STEADY):
            rows.append(_row(group, facts, subject, good, base, peak, test, tokens, batch))
    return rows


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
    group: Group, facts: ModelFacts, subject: Subject, samples: list[Sample], base: dict[int, Sample],
    peak: PeakSample | None, test: str, tokens: int, batch: int,
) -> Row:  # fmt: skip
    def median(of: Callable[[Sample], float | None]) -> float | None:
        return _median([value for sample in samples if (value := of(sample)) is not None])

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

    def time(sample: Sample) -> float:
        return sample.first_s if is_first else sample.steady_s

    together = list(zip(limits, samples, strict=True))
    ratios = [ratio for one, sample in together if (ratio := one.times(time(sample))) is not None]
    # Of the same round: what changes from one to the next, the machine's speed, is in both.
    speedups = [time(base[sample.round]) / time(sample) for sample in samples if sample.round in base]
    possible = [time(base[sample.round]) / one.seconds for one, sample in together
                if sample.round in base and one.seconds]  # fmt: skip
    weights_of_base = _median([sample.weight_nbytes for sample in base.values()])
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
        pipeline_s=median(lambda s: s.pipeline_s),
        limit_s=limit,
        limit_by=_commonest(one.by for one in limits),
        over_limit=_median(ratios),
        speedup=_median(speedups),
        saving=1 - weight / weights_of_base if weight and weights_of_base else None,
        possible_speedup=_median(possible),
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


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def test_name(kind: str, is_first: bool, tokens: int) -> str:
    """What a row's time is of."""
    if kind == "tokens":
        return f"first token of {tokens}, cold" if is_first else "further token"
    thing = "image" if kind == "image" else f"{tokens} tokens"
    return f"{thing}, cold" if is_first else f"{thing}, again"


def _commonest(words: Iterable[str]) -> str:
    found = list(words)
    return max(found, key=found.count) if found else ""
