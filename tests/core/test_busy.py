"""How long a disk was read from, and at what rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.core.busy import Busy, Reading

MS = 1_000_000
MB = 1_000_000


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20)), max_size=60))
def test_time_under_way_is_the_union_of_the_reads(reads: list[tuple[int, int]]) -> None:
    busy = Busy()
    for start, length in reads:
        busy.add(start, start + length)
    covered = {at for start, length in reads for at in range(start, start + length)}
    assert busy.total_ns() == len(covered)


def capped(reading: Reading, at_ns: int, units: int, rate: float = 100e6, burst: int = 10 * MB) -> int:
    """Reads of 13 MB one after another on a disk that gives `burst` bytes at once when it was left alone; the end."""
    for number in range(units):
        nbytes = 13 * MB
        took = round((nbytes - (0 if number else burst)) / rate * 1e9)
        reading.add(nbytes, at_ns, at_ns + took)
        at_ns += took
    return at_ns


def test_what_a_disk_gives_after_a_pause_is_not_its_rate() -> None:
    reading, at = Reading(), 0
    for _ in range(4):
        at = capped(reading, at, 7) + 300 * MS
    assert reading.nbytes == 4 * 7 * 13 * MB
    assert reading.rate() == pytest.approx(4 * 91 * MB / 3.24, rel=0.001)  # 112 MB/s
    assert reading.lasting_rate() == pytest.approx(100e6, rel=0.001)


def test_a_short_wait_for_a_slot_is_no_pause() -> None:
    reading, at = Reading(), 0
    for _ in range(20):
        reading.add(13 * MB, at, at + 130 * MS)
        at += 140 * MS
    assert reading.lasting_rate() == pytest.approx(100e6, rel=0.001)


def test_of_a_disk_that_is_never_read_from_for_long_nothing_is_known() -> None:
    reading = Reading()
    assert reading.rate() is None
    assert reading.lasting_rate() is None
    for number in range(40):
        reading.add(13 * MB, number * 500 * MS, (number * 500 + 10) * MS)
    assert reading.rate() == pytest.approx(1300e6)
    assert reading.lasting_rate() is None
