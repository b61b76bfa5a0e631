"""What is checked when, and what is known afterwards."""

from __future__ import annotations

import pytest

from hermes_mp.core import integrity
from hermes_mp.core.integrity import Integrity, key_of
from hermes_mp.core.unitlist import UnitFile, UnitList, UnitSpec
from hermes_mp.messages import NOT_CHECKED, Range, UnitNo

SPECS = tuple(UnitSpec(10, (Range(0, 100 * number, 10, 0),)) for number in range(3))
UNITS = UnitList((UnitFile("/a", 1000),), SPECS)
ONE, TWO = UnitNo(1), UnitNo(2)


def made(mode: str, **known: int) -> Integrity:
    found = Integrity(mode, {key_of(SPECS[int(name[1:])]): checksum for name, checksum in known.items()})
    found.adopt(UNITS)
    return found


def test_first_checks_the_first_load_of_each_unit() -> None:
    mind = made("first", u1=7)
    assert mind.wants(ONE)
    assert mind.judge(ONE, 7) is None
    assert not mind.wants(ONE)
    assert mind.wants(TWO)
    assert (mind.compared, mind.news) == (1, 0)


def test_always_checks_every_load() -> None:
    mind = made("always", u1=7)
    assert mind.judge(ONE, 7) is None
    assert mind.wants(ONE)
    assert mind.judge(ONE, 8) == 7


def test_never_checks_nothing() -> None:
    mind = made("never", u1=7)
    assert not mind.wants(ONE)
    assert mind.judge(ONE, 8) is None


def test_what_is_not_known_is_trusted_and_known_from_then_on() -> None:
    mind = made("always")
    assert mind.judge(ONE, 5) is None
    assert (mind.compared, mind.news) == (0, 1)
    assert mind.known == {key_of(SPECS[1]): 5}
    assert mind.judge(ONE, 6) == 5
    assert mind.judge(ONE, 5) is None
    assert (mind.compared, mind.news) == (1, 1)


def test_a_unit_that_differed_is_checked_again() -> None:
    mind = made("first", u1=7)
    assert mind.judge(ONE, 8) == 7
    assert mind.wants(ONE)
    assert mind.judge(ONE, 7) is None
    assert not mind.wants(ONE)


def test_a_load_that_was_not_checked_says_nothing() -> None:
    mind = made("first", u1=7)
    assert mind.judge(ONE, NOT_CHECKED) is None
    assert mind.wants(ONE)


def test_bytes_go_by_where_they_lie_in_the_file() -> None:
    """In another place of the slot, and as another unit, they are the same."""
    mind = made("first", u1=7)
    moved = UnitSpec(20, (Range(0, 100, 10, 8),))
    mind.adopt(UnitList(UNITS.files, (moved, UnitSpec(20, (Range(0, 100, 11, 0),)))))
    assert mind.judge(UnitNo(0), 8) == 7
    assert mind.judge(ONE, 8) is None


def test_units_that_come_again_are_checked_already() -> None:
    mind = made("first", u1=7)
    mind.judge(ONE, 7)
    mind.adopt(UNITS)
    assert not mind.wants(ONE)
    mind.adopt(UnitList(UNITS.files, SPECS[:2]))
    assert mind.wants(ONE)


def test_all_units_were_checked() -> None:
    mind = made("first")
    for unit in range(3):
        assert not mind.complete
        mind.judge(UnitNo(unit), unit)
    assert mind.complete


def test_the_oldest_checksums_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "MOST_KNOWN", 2)
    mind = made("first", u0=1, u1=2)
    mind.judge(UnitNo(0), 1)
    mind.judge(TWO, 3)
    assert mind.known == {key_of(SPECS[0]): 1, key_of(SPECS[2]): 3}
