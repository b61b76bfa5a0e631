"""Slots in the arena: their memory is taken and given back one by one, whole huge pages where neighbours share them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from hermes_mp.agents.allotment import AHEAD_SPARE_NBYTES, Allotment
from hermes_mp.core.budget import Needs, Spare, slot_cost
from hermes_mp.core.unitlist import UnitFile, UnitList, UnitSpec
from hermes_mp.errors import BudgetTooSmall
from hermes_mp.host.arena import Arena
from hermes_mp.messages import Range, SlotNo

NEEDS = Needs(0, 0, 0, 0)
NOTHING = Spare(0, 0)  # of interest to an auto budget only


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(64 << 20)
    yield made
    made.close()


def units(nbytes: int, count: int) -> UnitList:
    specs = [UnitSpec(nbytes, (Range(0, 0, nbytes, 0),)) for _ in range(count)]
    return UnitList((UnitFile("weights", nbytes),), tuple(specs))


@pytest.mark.parametrize("nbytes", [12_000, (2 << 20) + 16384, (4 << 20) + 8192, 6 << 20])
def test_what_the_slots_take_is_rounded_once(arena: Arena, nbytes: int) -> None:
    allotment = Allotment(arena, None, 3, 7)
    assert allotment.divide(units(nbytes, 9), NEEDS, NOTHING, False) == 7
    pitch = allotment.slot_nbytes
    assert nbytes <= pitch < nbytes + mmap.PAGESIZE
    for count in range(1, 8):
        slot = allotment.add()
        with arena.view(allotment.bases[slot], pitch) as view:
            view[0] = view[-1] = count
        assert count * pitch <= arena.allocated_nbytes() < count * pitch + arena.granule
    assert allotment.missing == 0
    for slot in map(SlotNo, (3, 0, 6, 4, 1)):
        allotment.remove(slot)
        for kept, base in allotment.bases.items():
            with arena.view(base, pitch) as view:
                assert view[0] == view[-1] == kept + 1, f"slot {kept} lost its content with slot {slot}"
    assert arena.allocated_nbytes() <= 2 * (pitch + 2 * arena.granule)
    allotment.clear()
    assert arena.allocated_nbytes() == 0


def test_there_is_room_for_what_can_be_divided(arena: Arena) -> None:
    wanted, needs = units(5 << 20, 8), Needs(10 << 20, 30 << 20, 50 << 20, 4 << 20)
    found = []
    for budget in range(80 << 20, 180 << 20, 1 << 20):
        allotment = Allotment(arena, budget, 3, None)
        has_room = allotment.has_room(wanted, needs, NOTHING, 3)
        found.append(has_room)
        if has_room:
            assert allotment.divide(wanted, needs, NOTHING, False) >= 2
        else:
            with pytest.raises(BudgetTooSmall):
                allotment.divide(wanted, needs, NOTHING, False)
    assert not found[0]
    assert found[-1]


def test_without_a_budget_there_is_room(arena: Arena) -> None:
    assert Allotment(arena, None, 3, None).has_room(units(5 << 20, 8), Needs(1 << 50, 0, 0, 0), NOTHING, 3)


def test_auto_has_room_for_what_the_machine_can_spare(arena: Arena) -> None:
    wanted, needs = units(5 << 20, 8), Needs(10 << 20, 30 << 20, 50 << 20, 4 << 20)
    allotment = Allotment(arena, "auto", 3, None)
    assert allotment.has_room(wanted, needs, Spare(200 << 20, 300 << 20), 3)
    assert not allotment.has_room(wanted, needs, Spare(50 << 20, 80 << 20), 3)


def test_the_budget_pays_for_the_last_huge_page(arena: Arena) -> None:
    wanted = units((2 << 20) + 4096, 20)
    for budget in range(34 << 20, 64 << 20, 1 << 20):
        allotment = Allotment(arena, budget, 3, None)
        for _ in range(allotment.divide(wanted, NEEDS, NOTHING, False)):
            allotment.add()
        assert 0 < arena.allocated_nbytes() <= budget
        allotment.clear()


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(
    ("spare_nbytes", "slots", "ahead"),
    [
        (AHEAD_SPARE_NBYTES, 20, 20),
        (AHEAD_SPARE_NBYTES - 1, 20, 19),
        (AHEAD_SPARE_NBYTES, 99, 40),  # there are no more units
        (AHEAD_SPARE_NBYTES // 2, 3, 4),  # a window's worth
        (0, 20, 4),
        (0, 4, 3),
        (0, 2, 2),
    ],
)
def test_what_is_remembered_fills_what_is_surely_there(
    arena: Arena, auto: bool, spare_nbytes: int, slots: int, ahead: int
) -> None:
    """`spare_nbytes` of the budget are left beside `slots` slots."""
    needs = Needs(5 << 20, 3 << 20, 200 << 20, 50 << 20)
    budget = needs.total + slots * slot_cost(1 << 20, 3) + spare_nbytes
    allotment = Allotment(arena, "auto" if auto else budget, 3, None)
    assert allotment.divide(units(1 << 20, 40), needs, Spare(budget, budget), True) == ahead
    most = min(40, slots + spare_nbytes // slot_cost(1 << 20, 3))
    assert allotment.divide(units(1 << 20, 40), needs, Spare(budget, budget), False) == most
