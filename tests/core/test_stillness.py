"""When compute is taken for one that stands still."""

from __future__ import annotations

import pytest

from hermes_mp.core.stillness import Stillness

S = 1_000_000_000


def test_nothing_moves_for_too_long() -> None:
    still = Stillness(30 * S)
    assert [still.look(True, (5, 2), at * S) for at in (0, 10, 29, 30)] == [False, False, False, True]
    assert not still.look(True, (5, 2), 31 * S)  # what was said is not said again at once


@pytest.mark.parametrize("moved", [(6, 2), (5, 3)])
def test_whatever_moves_counts(moved: tuple[int, int]) -> None:
    still = Stillness(30 * S)
    assert not still.look(True, (5, 2), 0)
    assert not still.look(True, moved, 29 * S)
    assert not still.look(True, moved, 58 * S)
    assert still.look(True, moved, 59 * S)


def test_without_work_it_may_rest() -> None:
    still = Stillness(30 * S)
    assert not still.look(True, (5, 2), 0)
    assert not still.look(False, (5, 2), 29 * S)
    assert not still.look(True, (5, 2), 40 * S)
    assert still.look(True, (5, 2), 70 * S)


def test_without_a_timeout_it_never_does() -> None:
    still = Stillness(None)
    assert not any(still.look(True, (5, 2), at * S) for at in range(0, 10_000, 100))
