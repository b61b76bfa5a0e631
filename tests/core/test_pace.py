"""How large a chunk is asked for, and how long one may take before it is unusual."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.core.layout import ALIGN
from hermes_mp.core.pace import (
    FIRST_CHUNK_NBYTES,
    LEAST_CHUNK_NBYTES,
    MOST_CHUNK_NBYTES,
    OUTLIERS,
    TIMES,
    ChunkTimes,
    Pace,
)

MIB = 1 << 20
S = 1_000_000_000


@pytest.mark.parametrize(
    ("nbytes_per_s", "chunk_nbytes"),
    [(10**5, LEAST_CHUNK_NBYTES), (5 * MIB, MIB), (20 * MIB, 4 * MIB), (10**9, MOST_CHUNK_NBYTES)],
)
def test_a_chunk_takes_a_fifth_of_a_second(nbytes_per_s: int, chunk_nbytes: int) -> None:
    pace = Pace()
    assert pace.chunk_nbytes() == FIRST_CHUNK_NBYTES
    pace.took(MIB, MIB * S // nbytes_per_s)
    assert pace.chunk_nbytes() == pytest.approx(chunk_nbytes, abs=ALIGN)
    assert pace.chunk_nbytes() % ALIGN == 0


def test_one_that_stood_still_and_tiny_ones_do_not_count() -> None:
    pace = Pace()
    for _ in range(5):
        pace.took(MIB, S // 5)
    usual = pace.chunk_nbytes()
    for _ in range(4):
        pace.took(MIB, 30 * S)
    pace.took(ALIGN, 30 * S)
    assert pace.chunk_nbytes() == usual
    pace.took(MIB, 30 * S)
    assert pace.chunk_nbytes() == LEAST_CHUNK_NBYTES


def test_nothing_is_unusual_before_something_is_known() -> None:
    assert ChunkTimes().unusual_ns() == 0


def test_a_loader_that_was_stopped_does_not_make_the_others_wait() -> None:
    times = ChunkTimes()
    for _ in range(3):
        times.took(S // 5)
    for _ in range(OUTLIERS):
        times.took(30 * S)
    assert times.unusual_ns() == 4 * S // 5


@given(st.lists(st.integers(1, 10**6), min_size=300, max_size=1000))
def test_four_times_the_99th_percentile_of_the_last(took: list[int]) -> None:
    times = ChunkTimes()
    for ns in took:
        times.took(ns)
    last = took[-TIMES:]
    found = times.unusual_ns() / 4
    below = sum(ns <= found for ns in last)
    assert found in last
    assert below >= 0.99 * len(last) - 1
    assert sum(ns < found for ns in last) <= 0.99 * len(last)
