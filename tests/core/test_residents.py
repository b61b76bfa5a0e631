"""Which units keep their slot for good, and what is left as the window."""

from __future__ import annotations

import pytest

from hermes_mp.core.residents import choose_residents, window_for
from hermes_mp.messages import UnitNo


@pytest.mark.parametrize(
    ("count", "slots", "window", "residents"),
    [
        (12, 4, 4, []),
        (12, 7, 4, [5, 8, 11]),
        (12, 5, 4, [11]),
        (10, 6, 2, [1, 4, 6, 9]),
        (3, 3, 2, [0, 1, 2]),
        (3, 9, 2, [0, 1, 2]),
        (5, 1, 1, []),
    ],
)
def test_the_last_unit_is_the_first_resident(count: int, slots: int, window: int, residents: list[int]) -> None:
    assert sorted(choose_residents([10] * count, slots, window)) == residents


@pytest.mark.parametrize("count", [3, 7, 24, 30, 155, 600])
def test_residents_are_spread_evenly(count: int) -> None:
    """Nowhere do loaders meet more than four times as many residents in a row, or streamed units, as on average."""
    for stay in range(1, count - 1):
        residents = choose_residents([10] * count, stay + 1, 1)
        assert len(residents) == stay
        order = [unit in residents for unit in (*range(count), *range(count))]
        for kind, each in ((True, stay), (False, count - stay)):
            average = max(1, -(-each // (count - each)))
            runs = [len(run) for run in "".join("x" if one is kind else " " for one in order).split()]
            assert max(runs) <= 4 * average, f"{stay} of {count}: {max(runs)} in a row"


def test_another_slot_moves_no_resident() -> None:
    sizes = [9, 10, 3, 10, 10, 1, 10, 10, 2, 10, 9]
    before: frozenset[UnitNo] = frozenset()
    for slots in range(2, 11):
        residents = choose_residents(sizes, slots, 2)
        assert before <= residents
        before = residents


def test_the_largest_units_stay() -> None:
    assert choose_residents([1, 9, 2, 3, 8, 2], 4, 2) == {1, 4}


def test_the_window_leaves_compute_a_slot_beside_every_loader() -> None:
    assert [window_for(slots, 3) for slots in (1, 2, 3, 4, 5, 9)] == [1, 2, 3, 4, 4, 4]
    assert [window_for(slots, 3, window=1) for slots in (1, 2, 9)] == [1, 2, 2]
    assert window_for(6, 3, window=9) == 6
