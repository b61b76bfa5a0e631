"""The trace file: whole JSON of the Trace Event Format, readable even where the run was cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hermes_mp.errors import BadOption
from hermes_mp.host.trace import BOARD, TraceWriter


def write_some(trace: TraceWriter) -> None:
    trace.instant("daemon", "command started", 1_000_000)
    trace.complete("loader 1", "read", 2_000_000, 5_500_000, unit=3, ticket=9, nbytes=4096)
    trace.counters("slots", 3_000_000, {"lent": 1, "empty": 2})
    trace.complete("compute", "unit 3", 5_600_000, 7_000_000, note='a "quoted"\nword')


def test_every_event_has_what_the_format_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with TraceWriter(str(path), 1_000_000) as trace:
        write_some(trace)
    assert trace.failure is None
    events: list[dict[str, Any]] = json.loads(path.read_text())
    for event in events:
        assert {"name", "ph", "pid", "tid"} <= set(event)
        assert event["pid"] == BOARD
        if event["ph"] != "M":
            assert event["ts"] >= 0
    rows = {event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"}
    assert sorted(rows) == ["compute", "daemon", "loader 1"]
    assert len(set(rows.values())) == 3
    (read,) = (event for event in events if event["name"] == "read")
    assert (read["ph"], read["ts"], read["dur"], read["tid"]) == ("X", 1000.0, 3500.0, rows["loader 1"])
    assert read["args"] == {"unit": 3, "ticket": 9, "nbytes": 4096}
    (slots,) = (event for event in events if event["ph"] == "C")
    assert (slots["ts"], slots["args"]) == (2000.0, {"lent": 1, "empty": 2})
    (start,) = (event for event in events if event["ph"] == "i")
    assert (start["ts"], start["s"]) == (0.0, "t")


def test_a_trace_without_its_end_lacks_only_the_bracket(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = TraceWriter(str(path), 0)
    write_some(trace)
    trace._file.flush()
    assert len(json.loads(path.read_text() + "]")) > 3
    trace.close()
    trace.close()
    assert len(json.loads(path.read_text())) > 3
    write_some(trace)  # late news after the end are not an error


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing/trace.json"):
        with pytest.raises(BadOption, match=r"trace .* cannot be written"):
            TraceWriter(str(path), 0)


def test_a_full_disk_costs_the_trace_but_not_the_run() -> None:
    with TraceWriter("/dev/full", 0) as trace:
        for _ in range(1000):
            write_some(trace)
    assert trace.failure is not None
    assert "No space left" in trace.failure
