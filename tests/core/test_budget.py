"""How `--memory` is divided, by tables: the least that does, what a wish takes, and what is refused."""

from __future__ import annotations

import pytest

from hermes_mp.core.budget import (
    MARGIN_NBYTES,
    RUNS_DIFFER_NBYTES,
    Needs,
    Share,
    Spare,
    auto_budget,
    share_out,
    slot_cost,
)
from hermes_mp.errors import BudgetTooSmall

MIB = 1 << 20
NEEDS = Needs(daemon=20 * MIB, loaders=30 * MIB, compute=300 * MIB, reserve=10 * MIB)
SLOT = 16 * MIB
COST = slot_cost(SLOT, 3)
LEAST = NEEDS.total + 2 * COST


@pytest.mark.parametrize(
    ("budget", "units", "slots"),
    [
        (None, 20, 4), (None, 3, 3), (None, 1, 1), (None, 0, 0),
        (LEAST, 20, 2), (LEAST + COST - 1, 20, 2), (LEAST + COST, 20, 3), (LEAST + 99 * COST, 20, 20), (LEAST, 1, 1),
    ],
)  # fmt: skip
def test_the_slots_that_a_budget_leaves(budget: int | None, units: int, slots: int) -> None:
    assert share_out(budget, NEEDS, units, SLOT, 3) == Share(slots, SLOT, NEEDS.reserve)


def test_too_small_names_the_least() -> None:
    named, margin = LEAST + RUNS_DIFFER_NBYTES, MARGIN_NBYTES + RUNS_DIFFER_NBYTES
    with pytest.raises(BudgetTooSmall, match=f"is {-(-named // MIB)} MiB .*margin {margin // MIB} MiB"):
        share_out(LEAST - 1, NEEDS, 20, SLOT, 3)


@pytest.mark.parametrize(
    ("spare", "slots", "reserve"),
    [
        (0, 2, 10 * MIB),
        (30 * MIB, 2, 40 * MIB),  # the wish comes before a third slot
        (90 * MIB, 2, 100 * MIB),
        (90 * MIB + COST, 3, 100 * MIB),
    ],
)
def test_a_wish_takes_what_the_least_number_of_slots_leaves(spare: int, slots: int, reserve: int) -> None:
    needs = Needs(NEEDS.daemon, NEEDS.loaders, NEEDS.compute, NEEDS.reserve, wish=100 * MIB)
    assert share_out(LEAST + spare, needs, 20, SLOT, 3) == Share(slots, SLOT, reserve)


@pytest.mark.parametrize(
    ("spare", "last", "budget"),
    [
        (LEAST + 7 * COST, LEAST + 9 * COST, LEAST + 7 * COST),
        (LEAST, LEAST + COST, LEAST),
        (LEAST - 1, LEAST + COST, LEAST),  # into the reserve, as far as it must be
        (LEAST - 2 * COST, LEAST - COST, LEAST - COST),  # and still too small
        (-COST, -MIB, 0),
    ],
)
def test_what_auto_comes_to(spare: int, last: int, budget: int) -> None:
    assert auto_budget(Spare(spare, last), NEEDS, 20, SLOT, 3) == budget


def test_what_no_slot_needs_is_for_compute_where_the_budget_was_found_not_named() -> None:
    over = 40 * MIB
    assert share_out(LEAST + over, NEEDS, 2, SLOT, 3, auto=True) == Share(2, SLOT, NEEDS.reserve + over)
    assert share_out(LEAST + over, NEEDS, 2, SLOT, 3) == Share(2, SLOT, NEEDS.reserve)


def test_too_little_to_be_found_says_so() -> None:
    with pytest.raises(BudgetTooSmall, match=r"--memory auto comes to 100 MiB here, which is too small; the smallest"):
        share_out(100 * MIB, NEEDS, 20, SLOT, 3, auto=True)


def test_a_start_that_takes_more_than_the_run_sets_the_least() -> None:
    """Opening a tokenizer takes memory for a moment; there are no slots yet, and no margin is needed."""
    start = LEAST - NEEDS.daemon - NEEDS.loaders
    for more, least in ((0, LEAST), (-5 * MIB, LEAST), (7 * MIB, LEAST + 7 * MIB)):
        needs = Needs(NEEDS.daemon, NEEDS.loaders, NEEDS.compute, NEEDS.reserve, start=start + more)
        assert share_out(least, needs, 20, SLOT, 3).slots == 2
        with pytest.raises(BudgetTooSmall, match=f"is {-(-(least + RUNS_DIFFER_NBYTES) // MIB)} MiB ") as refused:
            share_out(least - 1, needs, 20, SLOT, 3)
        assert ("while it starts" in str(refused.value)) == (more > 0)
