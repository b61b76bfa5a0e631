"""The arithmetic of what physics allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.bench.limits import Limit, cold_limit, reader_rate, roofline, steady_limit


def test_a_cold_pass_reads_everything() -> None:
    assert cold_limit(0.5, 1e9, 1e9).seconds == 1.0
    assert cold_limit(2.0, 1e9, 1e9).seconds == 2.0
    assert cold_limit(None, 1e9, 5e8).seconds == 2.0
    assert cold_limit(None, 1e9, None).seconds is None


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [(None, 1.0), (300, 1.0), (400, 1.0), (650, 0.75), (900, 0.5), (1400, 0.2), (9999, 0.2)],
)
def test_spare_memory_need_not_be_read_again(budget: int | None, seconds: float) -> None:
    """1000 bytes at 1000 a second, 400 beside the weights, computing takes 0.2 s."""
    assert steady_limit(0.2, 1000, 1000, budget, 400).seconds == pytest.approx(seconds)


def test_without_a_measured_footprint_no_memory_is_spare() -> None:
    assert steady_limit(0.2, 1000, 1000, 900, None).seconds == 1.0


@pytest.mark.parametrize(
    ("compute", "storage", "by"),
    [(1.0, 2.0, "storage"), (2.0, 1.0, "compute"), (1.0, 1.1, "both"), (1.0, 0.9, "both"), (None, 1.0, "?")],
)
def test_who_decides(compute: float | None, storage: float, by: str) -> None:
    assert Limit(compute, storage).by == by


def test_times_the_limit() -> None:
    assert Limit(1.0, 2.0).times(2.5) == 1.25
    assert Limit(None, None).times(2.5) is None


def test_a_reader_at_its_rate_takes_so_many_times_the_computing_time() -> None:
    assert 1200 / reader_rate(1200, 0.5, 6) == pytest.approx(6 * 0.5)


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=20))
def test_the_roofline_is_the_limit_at_every_budget_and_never_rises(budgets: list[float]) -> None:
    budgets = sorted(round(budget) for budget in budgets)
    times = roofline(0.3, 2000, 1000, 500, budgets)
    assert times == [steady_limit(0.3, 2000, 1000, int(budget), 500).seconds for budget in budgets]
    assert times == sorted(times, reverse=True)
    assert min(times) >= 0.3
