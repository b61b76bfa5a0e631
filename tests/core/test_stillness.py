"""When compute is taken for one that stands still."""

from __future__ import annotations

import pytest

from hermes_mp.core.stillness import Stillness

S = 1_000_000_000


def looks(still: Stillness, mark: tuple[int, int], seconds: range, has_work: bool = True) -> list[bool]:
    return [still.look(has_work, mark, at * S) for at in seconds]


def test_nothing_moves_for_too_long() -> None:
    still = Stillness(30 * S)
    assert looks(still, (5, 2), range(0, 31)) == [False] * 30 + [True]
    assert not still.look(True, (5, 2), 31 * S)  # what was said is not said again at once


@pytest.mark.parametrize("moved", [(6, 2), (5, 3)])
def test_whatever_moves_counts(moved: tuple[int, int]) -> None:
    still = Stillness(30 * S)
    assert not any(looks(still, (5, 2), range(0, 30)))
    assert looks(still, moved, range(30, 61)) == [False] * 30 + [True]


def test_without_work_it_may_rest() -> None:
    still = Stillness(30 * S)
    assert not any(looks(still, (5, 2), range(0, 30)))
    assert not still.look(False, (5, 2), 30 * S)
    assert looks(still, (5, 2), range(31, 62)) == [False] * 30 + [True]


def test_a_pause_of_our_own_is_none_of_its() -> None:
    """A frozen cgroup, a virtual machine that was halted: both slept."""
    still = Stillness(30 * S)
    assert not still.look(True, (5, 2), 0)
    assert not still.look(True, (5, 2), 3600 * S)
    assert looks(still, (5, 2), range(3601, 3630)) == [False] * 28 + [True]


def test_without_a_timeout_it_never_does() -> None:
    still = Stillness(None)
    assert not any(looks(still, (5, 2), range(0, 10_000)))
