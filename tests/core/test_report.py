"""The ledger: what the figures of a report mean, by small hand-made runs; and that docs/json.md names every key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hermes_mp.core.ledger import RECENT, Ledger
from hermes_mp.core.report import render_report
from hermes_mp.core.squeeze import Change
from hermes_mp.messages import Epoch, LoaderNo, PassEnded, PassStarted, RowsRead, Ticket, UnitDone, UnitLoaded

MS = 10**6
LOADED_BY = {Ticket(11): Ticket(1)}  # ticket 11 lends what ticket 1 had loaded: unit 1 is resident
DOCS = Path(__file__).parents[2] / "docs/json.md"


def loaded(ticket: int, nbytes: int, started_ms: int, ended_ms: int, direct: bool = True) -> UnitLoaded:
    return UnitLoaded(LoaderNo(0), Epoch(1), Ticket(ticket), nbytes, direct, started_ms * MS, ended_ms * MS)


def done(ticket: int, asked_ms: int, bound_ms: int, done_ms: int, computed: bool = True) -> UnitDone:
    return UnitDone(Ticket(ticket), computed, asked_ms * MS, bound_ms * MS, done_ms * MS)


def a_pass(ledger: Ledger, start_ms: int, end_ms: int, tokens: int, *units: UnitDone, complete: bool = True) -> None:
    ledger.pass_started(PassStarted(start_ms * MS, 1, tokens))
    for unit in units:
        ledger.unit_done(unit, LOADED_BY.get(unit.ticket, unit.ticket))
    ledger.pass_ended(PassEnded(end_ms * MS, complete))


def test_a_run_that_lives_for_weeks_keeps_no_more_than_its_last_passes() -> None:
    """The daemon took a KiB more with every request, which the soak campaign found."""
    ledger = Ledger(1, None, started_ns=0)
    for number in range(3 * RECENT):
        ledger.unit_loaded(loaded(number, 1000, 0, 1))
        a_pass(ledger, 10 * number, 10 * number + (1 if number < 2 * RECENT else 3), 1)
    report = ledger.report()
    assert report.passes is not None
    assert (report.passes.median_s, report.passes.count) == (0.003, 3 * RECENT)
    assert report.read_nbytes_unused == 3 * RECENT * 1000
    assert len(ledger._seconds._last) == len(ledger._read_per_pass._last) == len(ledger._unused) == RECENT


def test_a_run_that_generates() -> None:
    ledger = Ledger(3, 10 << 30, started_ns=0)
    ledger.divided(10 << 30, 4, 1 << 20, 1)
    for ticket, start in ((1, 100), (2, 150), (3, 1000), (4, 2000)):
        ledger.unit_loaded(loaded(ticket, 1000, start, start + 100))
    ledger.rows_read(RowsRead(24, 180 * MS, 190 * MS))
    a_pass(ledger, 200, 600, 7, done(1, 200, 250, 300), done(2, 300, 350, 500))  # prefill, 100 ms of it stalled
    a_pass(ledger, 700, 900, 1, done(1, 700, 700, 800), done(3, 800, 800, 900))  # unit 1 is resident
    a_pass(ledger, 1000, 1300, 1, done(11, 1000, 1000, 1100), done(4, 1100, 1100, 1200))
    ledger.memory_sampled({"daemon": 10, "compute": 300}, exact=True)
    ledger.memory_sampled({"daemon": 20, "compute": 200}, exact=True)
    report = ledger.report()
    assert report.passes is not None
    assert (report.passes.median_s, report.passes.count) == (0.3, 3)
    assert report.tokens is not None
    assert (report.tokens.median_s, report.tokens.count) == (0.35, 2), "from end to end: 300 and 400 ms"
    assert report.prefills is not None
    assert (report.prefills.median_s, report.prefills.count) == (0.4, 1)
    assert report.read_nbytes == 4024
    assert report.read_nbytes_per_pass == 1000, "the first pass needed 2024, the others one unit each"
    assert report.read_nbytes_unused == 0
    assert report.first_read_s == 0.1
    assert report.read_rate_nbytes_per_s == 4024 / 0.35, "100-250, 1000-1100 and 2000-2100 ms"
    assert report.read_mode == "direct"
    assert report.stall_percent == 100 * 100 / 900
    assert report.memory.peak_nbytes == 310, "of one moment, not the sum of the peaks"
    assert report.memory.peak_by_process == {"daemon": 20, "compute": 300}


def test_many_loaders_are_summed_up() -> None:
    ledger = Ledger(1, None, started_ns=0)
    a_pass(ledger, 0, 100, 7)
    loaders = {f"loader {number}": (8 + number) << 20 for number in range(64)}
    ledger.memory_sampled({"daemon": 20 << 20, **loaders}, exact=True)
    assert "\n          daemon 20 MiB, 64 loaders 8 MiB to 71 MiB each\n" in render_report(ledger.report())


def test_an_encoder_has_passes_but_no_tokens() -> None:
    ledger = Ledger(1, None, started_ns=0)
    a_pass(ledger, 0, 100, 7)
    a_pass(ledger, 200, 400, 9)
    report = ledger.report()
    assert (report.tokens, report.prefills) == (None, None)
    assert report.passes is not None
    assert report.passes.median_s == 0.15000000000000002


def test_a_new_request_makes_no_token_of_the_time_before_it() -> None:
    ledger = Ledger(1, None, started_ns=0)
    a_pass(ledger, 0, 100, 1)
    ledger.request_started()
    a_pass(ledger, 9000, 9100, 1)
    assert ledger.report().tokens is None
    a_pass(ledger, 9200, 9300, 1)
    tokens = ledger.report().tokens
    assert tokens is not None
    assert tokens.median_s == 0.2


def test_what_was_read_in_vain() -> None:
    ledger = Ledger(2, None, started_ns=0)
    ledger.unit_loaded(loaded(1, 100, 0, 10))
    ledger.unit_loaded(loaded(2, 200, 0, 10, direct=False))
    ledger.unit_loaded(loaded(3, 400, 0, 10))
    a_pass(ledger, 0, 50, 5, done(1, 0, 0, 10), done(2, 10, 10, 20, computed=False))
    report = ledger.report()
    assert (report.read_nbytes, report.read_nbytes_unused, report.read_mode) == (700, 600, "mixed")


def test_a_pass_cut_short_counts_for_nothing() -> None:
    ledger = Ledger(2, None, started_ns=0)
    ledger.unit_loaded(loaded(1, 100, 0, 10))
    a_pass(ledger, 0, 50, 5, done(1, 0, 40, 45), complete=False)
    report = ledger.report()
    assert (report.passes, report.stall_percent, report.read_nbytes_per_pass) == (None, None, None)
    a_pass(ledger, 100, 200, 5, done(1, 100, 110, 120))
    report = ledger.report()
    assert (report.stall_percent, report.read_nbytes_per_pass) == (10, 0)


def keys_of(value: Any) -> set[str]:
    return {
        key for key, inner in value.items() for key in {key} | (keys_of(inner) if isinstance(inner, dict) else set())
    }


def test_the_docs_name_every_key_of_the_report() -> None:
    ledger = Ledger(1, None, started_ns=0)
    a_pass(ledger, 0, 100, 7)
    a_pass(ledger, 100, 200, 1)
    whole = json.loads(json.dumps(ledger.report().as_json()))
    text = DOCS.read_text(encoding="utf-8")
    missing = {key for key in keys_of(whole) if f"`{key}`" not in text}
    assert not missing


def test_the_text_is_short_and_says_what_matters() -> None:
    ledger = Ledger(3, 700 << 20, started_ns=0)
    ledger.divided(700 << 20, 4, 50 << 20, 2)
    ledger.pages = "huge"
    ledger.unit_loaded(loaded(1, 10 << 20, 10, 20))
    a_pass(ledger, 20, 120, 7, done(1, 20, 30, 40))
    a_pass(ledger, 120, 220, 1, done(1, 120, 120, 140))
    ledger.memory_sampled({"daemon": 30 << 20, "arena": 200 << 20}, exact=False)
    text = render_report(ledger.report())
    assert len(text.splitlines()) <= 10
    for words in ("0.1 s", "5 % of it waiting", "MB/s (direct)", "230 MiB at most", "of 700 MiB allowed", "estimated",
                  "daemon 30 MiB", "arena 200 MiB", "4 slots of 50 MiB", "2 units resident", "huge pages"):  # fmt: skip
        assert words in text, words
    assert "no limit was set" in render_report(Ledger(3, None, started_ns=0).report())


def test_what_the_machine_could_spare_and_how_often_it_could_not() -> None:
    ledger = Ledger(3, None, started_ns=0, auto=True)
    a_pass(ledger, 20, 120, 7)
    ledger.divided(900 << 20, 20, 50 << 20, 16)
    ledger.reserve_nbytes = 64 << 20
    ledger.memory_sampled({"daemon": 30 << 20}, exact=False)
    for slots, returns, turned in ((18, False, True), (15, False, False), (20, True, True), (16, False, True)):
        ledger.squeezed(Change(slots, returns, turned))
    text = render_report(ledger.report())
    assert "30 MiB at most, estimated, of 900 MiB that the machine could spare beyond a reserve of 64 MiB" in text
    assert "residents left 2 times for want of memory, 15 slots were left" in text
    memory = ledger.report().memory
    assert (memory.auto, memory.squeezes, memory.least_slots) == (True, 2, 15)
