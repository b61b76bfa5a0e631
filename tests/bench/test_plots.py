"""Pictures: drawn of rows and of a trace, as PNG and SVG, with what they should show in them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from bench.test_rows import GROUP, HEADER, measured, rows

from hermes_mp.bench import plots
from hermes_mp.bench.journal import Journal
from hermes_mp.bench.rows import Row

MIB = 1 << 20


@pytest.fixture(scope="module")
def pyplot() -> Any:
    """It keeps the fonts open that it has drawn with, so it draws once before anything is counted."""
    pyplot = plots.load_pyplot()
    figure, axes = pyplot.subplots()
    axes.set_title("a")
    figure.savefig(io.BytesIO())
    pyplot.close(figure)
    return pyplot


def shown(made: list[Path]) -> str:
    """The text of the SVG; the PNG must be a picture of some size."""
    png, svg = made
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.stat().st_size > 10_000
    return svg.read_text()


def test_latency_and_memory_by_mode(pyplot: Any, tmp_path: Path) -> None:
    journal = Journal(None, HEADER)
    measured(journal)
    text = shown(plots.by_mode(pyplot, GROUP.label, rows(journal), tmp_path / "modes"))
    for word in ("pipeline", "pipeload, 4 loaders", "in 286 MiB", "2.0x as fast", "peak memory"):
        assert word in text


def test_speed_against_budget_has_the_roofline_in_it(pyplot: Any, tmp_path: Path) -> None:
    journal = Journal(None, HEADER)
    measured(journal)
    one = next(row for row in rows(journal) if row.backend == "pipeload" and not row.is_first)
    many = [Row(**{**vars(one), "budget_nbytes": budget * MIB}) for budget in (300, 600, 900)]
    beside = [Row(**{**vars(row), "is_first": True, "beside_nbytes": 200 * MIB}) for row in many]
    text = shown(plots.against_budget(pyplot, "m", [*many, *beside], tmp_path / "budget"))
    assert "limit (roofline)" in text
    assert "pipeload, 4 loaders" in text
    assert plots.against_budget(pyplot, "m", many[:1], tmp_path / "one") == [], "one budget is no line"


def test_a_timeline_of_a_trace_that_was_cut_off(pyplot: Any, tmp_path: Path) -> None:
    where = {"pid": 1, "ts": 0.0}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "tid": tid, "args": {"name": name}, **where}
        for tid, name in enumerate(("passes", "compute", "loader 0"))
    ]
    events += [
        {"ph": "X", "name": name, "tid": tid, "pid": 1, "ts": start, "dur": duration, "args": {}}
        for name, tid, start, duration in (
            ("pass", 0, 0, 9e5), ("read unit 0", 2, 0, 3e5), ("wait for unit 0", 1, 0, 3e5),
            ("compute unit 0", 1, 3e5, 5e5), ("compute unit 1", 1, 2e6, 5e5),
        )
    ]  # fmt: skip
    slots = {"lent": 1, "loaded": 0, "held": 0, "empty": 2}
    events.append({"ph": "C", "name": "slots", "tid": 0, "args": slots, **where})
    trace = tmp_path / "t.json"
    trace.write_text("[\n" + ",\n".join(json.dumps(event) for event in events))
    text = shown(plots.timeline(pyplot, "pipeload-1", trace, tmp_path / "timeline"))
    for word in ("loader 0", "waiting for weights", "being read", "computing"):
        assert word in text


def test_a_trace_without_a_pass_is_no_picture(pyplot: Any, tmp_path: Path) -> None:
    trace = tmp_path / "t.json"
    trace.write_text("[\n")
    assert plots.timeline(pyplot, "t", trace, tmp_path / "timeline") == []
