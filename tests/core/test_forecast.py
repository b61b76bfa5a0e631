"""The simulated pipeline against figures worked out by hand, and against bounds that hold for any pipeline."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hermes_mp.core.forecast import Flow, Pass, _passes, simulate


def flow(units: int = 10, nbytes: float = 100.0, hold_s: float = 1.0, rates: tuple[float, ...] = (0.0, 100.0),
         window: int = 2, read_s: float = 0.0, lead_s: float = 0.0, **more: float) -> Flow:  # fmt: skip
    return Flow([nbytes] * units, [hold_s] * units, [0.0] * units, lead_s, rates, window, read_s, **more)


@pytest.mark.parametrize(
    ("case", "seconds", "stall_s"),
    [
        (flow(hold_s=2.0), 20.0, 0.0),  # compute is slower: reading hides behind it
        (flow(hold_s=0.5), 10.0, 5.0),  # the disk is slower: it never rests
        (flow(window=1), 20.0, 10.0),  # one slot: read, compute, read, compute
        (flow(window=1, read_s=0.5), 25.0, 15.0),
        (flow(hold_s=0.5, read_s=0.5), 10.0, 5.0),  # the next order is there before the read has ended
        (flow(hold_s=0.5, read_s=0.8), 11.5, 6.5),  # unless that takes longer than the read: with two slots
        (flow(hold_s=0.5, read_s=0.8, window=3), 10.0, 5.0),
        (flow(hold_s=0.5, read_s=0.8, window=3, orders=1), 18.0, 13.0),  # it waits for every order
        (flow(hold_s=0.1, rates=(0.0, 100.0, 200.0), window=3), 5.0, 4.0),  # two loaders, each of its own rate
        (flow(hold_s=0.5, lead_s=3.0), 12.0, 4.0),  # in the lead two units are read, then the window is full
        (flow(hold_s=0.5, lead_s=3.0, window=3), 11.0, 3.0),  # nine reads are still to come
        (flow(hold_s=2.0, taken_s=0.2), 22.0, 0.0),  # every read takes 0.2 s of computing
        (flow(hold_s=0.5, taken_s=0.2), 10.0, 5.0),  # none while compute waits: they end then
        (flow(units=0, lead_s=4.0), 4.0, 0.0),
    ],
)
def test_by_hand(case: Flow, seconds: float, stall_s: float) -> None:
    assert simulate(case) == Pass(pytest.approx(seconds, rel=0.01), pytest.approx(stall_s, abs=0.3))


def test_computing_is_slower_beside_a_read() -> None:
    """A read of 1 s beside 2 s of work: in the first second 2/3 s of it are done."""
    assert simulate(flow(hold_s=2.0, slow_compute=1.5)).seconds == pytest.approx(10 * (1 + 2 - 2 / 3), rel=0.01)


def test_reading_is_slower_beside_computing() -> None:
    """Half a second at half the speed, then as it is."""
    assert simulate(flow(hold_s=0.5, slow_reads=2.0)).seconds == pytest.approx(10 * 1.25, rel=0.01)


def test_the_first_pass_begins_with_nothing_loaded() -> None:
    assert simulate(flow(hold_s=2.0), first=True).seconds == pytest.approx(21.0)


def test_residents_give_the_loaders_time() -> None:
    """Of twelve units every fourth is read, for four seconds, while the three beside it compute."""
    spread = Flow([400.0] * 3, [1.0] * 3, [3.0] * 3, 0.0, (0.0, 100.0), 2, 0.0)
    assert simulate(spread) == Pass(pytest.approx(12.0), pytest.approx(0.0, abs=1e-6))


units = st.lists(
    st.tuples(st.floats(1, 1e3), st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=12
)
rates = st.lists(st.floats(1, 1e3), min_size=1, max_size=4).map(lambda found: (0.0, *sorted(found)))


@given(units, rates, st.integers(1, 15), st.floats(0, 1), st.floats(0, 10), st.floats(0, 1))
@example([(1.0, 0.0, 0.0)] * 4, (0.0, 1.0, 1.0, 1.0), 3, 0.0, 0.0, 0.0)  # passes of 6, 3, 3, 6, 3, 3 .. seconds
def test_no_pass_beats_its_bounds_nor_a_serial_one(
    of: list[tuple[float, float, float]], rate: tuple[float, ...], window: int, read_s: float, lead_s: float,
    taken_s: float,
) -> None:  # fmt: skip
    reads, holds, gaps = zip(*of, strict=True)
    found = simulate(Flow(reads, holds, gaps, lead_s, rate, window, read_s, taken_s=taken_s))
    compute_s = lead_s + sum(holds) + sum(gaps)
    serial_s = compute_s + sum(reads) / rate[1] * (len(rate) - 1) + (read_s + taken_s) * len(reads)
    assert found.seconds >= compute_s * 0.999 - 1e-12
    assert found.seconds >= sum(reads) / rate[-1] * 0.999
    assert found.seconds <= serial_s * 1.02 + 1e-3
    assert 0 <= found.stall_s <= found.seconds * (1 + 1e-9)


@given(units, rates, st.integers(1, 15), st.floats(0, 1), st.floats(0, 10))
def test_what_passes_need_is_read_before_they_end(
    of: list[tuple[float, float, float]], rate: tuple[float, ...], window: int, read_s: float, lead_s: float
) -> None:
    """Of the simulation itself: what `simulate` makes of a few passes is never below it anyway."""
    reads, holds, gaps = zip(*of, strict=True)
    passes = list(islice(_passes(Flow(reads, holds, gaps, lead_s, rate, window, read_s)), 7))
    assert sum(one.seconds for one in passes) >= 7 * sum(reads) / rate[-1] * 0.999


@given(units, st.floats(1, 1e3), st.integers(2, 10))
def test_a_wider_window_is_never_slower_for_one_loader(
    of: list[tuple[float, float, float]], rate: float, window: int
) -> None:
    reads, holds, gaps = zip(*of, strict=True)
    narrow = simulate(Flow(reads, holds, gaps, 0.0, (0.0, rate), window, 0.0))
    wide = simulate(Flow(reads, holds, gaps, 0.0, (0.0, rate), window + 1, 0.0))
    assert wide.seconds <= narrow.seconds * 1.01
