"""Measurements kept as they are made, gone on with, and what they come to as rows and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hermes_mp.bench.journal import GroupNote, Journal, ModelFacts, PeakSample, Sample
from hermes_mp.bench.plan import Group, Regime, Subject, Wanted
from hermes_mp.bench.report import Report
from hermes_mp.bench.rows import Row, rows_of
from hermes_mp.bench.table import COLUMNS, group_text
from hermes_mp.errors import BadOption, WriteFailed

PIPELINE, PIPELOAD = Subject("pipeline", 1), Subject("pipeload", 4, 300_000_000)
GROUP = Group("m", Regime(total=1e9), None, (PIPELINE, PIPELOAD, Subject("resident")))
FACTS = ModelFacts("m", 1_000_000_000, 250_000_000, "F32")
HEADER = {"models": ["m"], "memory": [None]}


def sample(subject: Subject, number: int, first_s: float, steady_s: float, **facts: object) -> Sample:
    made = Sample(
        GROUP.label, subject.label, number, kind="text", first_s=first_s, first_stalled_s=first_s / 2,
        first_nbytes=1_000_000_000, steady_s=steady_s, weight_nbytes=1_000_000_000, raw=1e9, compute_first_s=0.25,
        compute_steady_s=0.25, threads=2, slots=10, slot_nbytes=100_000_000, needed_nbytes=1_000_000_000,
    )  # fmt: skip
    return replace(made, **facts)  # type: ignore[arg-type]


def measured(journal: Journal) -> None:
    journal.keep(GroupNote(GROUP.label, "raw rate of 1 x 16 MiB"))
    for number, noise in enumerate((1.0, 1.5, 0.9)):
        journal.keep(sample(PIPELINE, number, 2.0 * noise, 0.3 * noise))
        journal.keep(
            sample(PIPELOAD, number, 1.0 * noise, 1.1 * noise, steady_nbytes=900_000_000.0, weight_nbytes=100_000_000)
        )
    journal.keep(PeakSample(GROUP.label, PIPELOAD.label, total_nbytes=290_000_000, beside_nbytes=200_000_000))
    journal.keep(Sample(GROUP.label, "resident", 0, failed="killed by SIGKILL (by the kernel)"))


def rows(journal: Journal) -> list[Row]:
    return rows_of(GROUP, FACTS, journal, tokens=32, batch=2)


def test_rows_are_medians_against_pipeline_and_against_the_limit() -> None:
    journal = Journal(None, HEADER)
    measured(journal)
    pipeline, pipeline_again, first, again, failed = rows(journal)
    assert (pipeline.seconds, pipeline.speedup, pipeline.rounds) == (2.0, 1.0, 3)
    assert pipeline_again.note == "everything is loaded by now"
    assert (first.seconds, first.speedup, first.test) == (1.0, 2.0, "32 tokens, cold")
    assert first.per_s == 64.0
    assert first.saving == pytest.approx(0.9)
    assert (first.limit_s, first.limit_by, first.over_limit, first.possible_speedup) == (1.0, "storage", 1.0, 2.0)
    assert (first.stall_share, first.weight_share) == (0.5, 0.1)
    assert again.limit_s == pytest.approx(0.9), "a budget of 300 MB of which 200 are taken leaves 100 for weights"
    assert again.over_limit == pytest.approx(1.1 / 0.9)
    assert again.resident_share == pytest.approx(0.1)
    assert (failed.failed, failed.seconds) == ("killed by SIGKILL (by the kernel)", None)


def test_each_rounds_own_raw_rate_makes_its_limit() -> None:
    journal = Journal(None, HEADER)
    for number, slow in enumerate((1, 2, 4)):
        journal.keep(sample(PIPELINE, number, 1.2 * slow, 0.3, raw=1e9 / slow))
    assert rows(journal)[0].over_limit == pytest.approx(1.2)


def test_a_speed_up_is_that_of_a_round_and_not_between_rounds() -> None:
    """The machine is twice as slow in the second round, and pipeload's third is lost: what is left is 2x and 2.2x."""
    journal = Journal(None, HEADER)
    for number, (slow, ratio) in enumerate(((1.0, 2.0), (2.0, 2.2), (1.0, 9.0))):
        journal.keep(sample(PIPELINE, number, 2.0 * slow, 0.3))
        made = sample(PIPELOAD, number, 2.0 * slow / ratio, 0.3)
        journal.keep(replace(made, failed="killed") if ratio > 3 else made)
    first = next(row for row in rows(journal) if row.backend == "pipeload")
    assert first.speedup == pytest.approx(2.1)
    assert first.possible_speedup == pytest.approx(3.0), "1 s to read everything, against 2 and 4"


def test_a_table_says_what_was_measured_and_what_was_not() -> None:
    journal = Journal(None, HEADER)
    measured(journal)
    text = group_text(GROUP.label, journal.notes[GROUP.label], rows(journal))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert len({line.count("|") for line in lines}) == 1, "every line has all columns"
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert set(head) <= set(COLUMNS)
    cells = dict(zip(head, (cell.strip() for cell in lines[4].strip("|").split("|")), strict=True))
    assert (cells["backend"], cells["loaders"], cells["s"], cells["vs pipeline"]) == ("pipeload", "4", "1.000", "2.00x")
    assert (cells["saved"], cells["of model"], cells["limit s"]) == ("90.0 %", "10.0 %", "1.000 (storage)")
    assert "**failed**" in lines[-1]
    assert "killed by SIGKILL (by the kernel)" in lines[-1]
    assert "pipeload-4 286 MiB 1.00x" in text
    assert "2.00x as fast (physics allows 2.00x) with 90.0 % less weight memory" in text


def test_a_group_that_was_left_out_says_why() -> None:
    text = group_text("m, at 45 MB/s", GroupNote("m, at 45 MB/s", "left out: run it as root", True), [])
    assert "left out: run it as root" in text
    assert "|" not in text


def test_a_journal_is_gone_on_with_even_if_its_last_line_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    journal = Journal(path, HEADER)
    measured(journal)
    with open(path, "a") as file:
        file.write('{"what": "Sample", "gro')
    again = Journal(path, HEADER, resume=True)
    assert again.samples == journal.samples
    assert again.peaks == journal.peaks
    assert again.notes == journal.notes
    again.keep(sample(PIPELINE, 3, 1.0, 1.0))
    third = Journal(path, HEADER, resume=True)
    assert len(third.samples) == len(journal.samples) + 1
    assert all(json.loads(line)["what"] for line in path.read_text().splitlines())


def test_other_measurements_are_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    Journal(path, HEADER)
    with pytest.raises(BadOption, match="holds other measurements"):
        Journal(path, HEADER | {"models": ["n"]}, resume=True)
    assert Journal(path, HEADER | {"models": ["n"]}).kept_as is None, "there was nothing to lose"
    assert len(path.read_text().splitlines()) == 1


def test_what_was_measured_before_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    measured(Journal(path, HEADER))
    before = path.read_text()
    for number in (1, 2):
        again = Journal(path, HEADER)
        assert again.kept_as == tmp_path / f"measurements.jsonl.{number}"
        assert len(path.read_text().splitlines()) == 1
        assert not again.samples
        measured(again)
    assert (tmp_path / "measurements.jsonl.1").read_text() == before


@pytest.mark.parametrize(
    "line",
    [
        b"no json", b"[]", b"7", b'{"what": "Sample", "group": "g"}', b'{"what": []}', b"\xff",
        b'{"what": "Sample", "group": "g", "subject": "pipeline-1", "round": 0, "first_s": "long"}',
        b'{"what": "GroupNote", "group": "g", "text": null}',
    ],
)  # fmt: skip
def test_a_damaged_line_is_said(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "measurements.jsonl"
    measured(Journal(path, HEADER))
    whole = path.read_bytes() + line + b"\n"
    path.write_bytes(whole)
    with pytest.raises(BadOption, match=r"is damaged|cannot be read"):
        Journal(path, HEADER, resume=True)
    assert path.read_bytes() == whole


def test_a_file_that_lost_its_header_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    path.write_text('{"what": "hea')
    measured(Journal(path, HEADER, resume=True))
    assert len(Journal(path, HEADER, resume=True).samples) == 7


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(WriteFailed, match="No space left on device"):
        Journal(path, HEADER)
    with pytest.raises(WriteFailed, match=r"measurements\.jsonl cannot be written: No such file"):
        Journal(tmp_path / "none" / "measurements.jsonl", HEADER)
    report = Report(Wanted(("m",)), Journal(None, HEADER), tmp_path, "hermes-bench")
    (tmp_path / ".results.jsonl").symlink_to("/dev/full/none")
    with pytest.raises(WriteFailed, match=r"results\.jsonl cannot be written"):
        report.write(False, print)


def test_rows_are_plain_json() -> None:
    journal = Journal(None, HEADER)
    measured(journal)
    for row in rows(journal):
        assert Row(**json.loads(json.dumps(asdict(row)))) == row
