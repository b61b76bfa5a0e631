"""The daemon's mind by tables: whose slots are taken for what, and what compute keeps across passes."""

from __future__ import annotations

import pytest
from pipeload_driver import Driver, S, announce, load, recall

from hermes_mp.core.pipeload import (
    Action,
    Announce,
    Load,
    Pipeload,
    Recall,
    Refuse,
    RemoveSlot,
    SlotAdded,
    SlotsWanted,
    Tick,
)
from hermes_mp.core.residents import choose_residents
from hermes_mp.core.slots import Slots
from hermes_mp.errors import InvariantBroken
from hermes_mp.messages import (
    SlotNo,
    UnitNo,
)


def test_nested_units_beyond_the_slots_are_refused_after_some_patience() -> None:
    d = Driver(units=9, slots=1, loaders=1)
    d.ask(0)
    d.start(0)
    d.loaded(0, 1)
    assert d.ask(4) == []
    d.tell(Tick(), at=2.9)
    assert d.mind.wake_ns() == 3 * S
    assert d.tell(Tick(), at=3.0) == [
        Refuse(
            UnitNo(4),
            16,
            "unit 4 is needed while all 1 slots are in use: this model needs at least 2 slots of 10 bytes",
        )
    ]


def resident_mind() -> Driver:
    """Six slots, a window of 2, so 4 residents of 10: 1, 4, 6, 9; all of them loaded, units 2 and 3 in the window."""
    d = Driver(units=10, slots=6, loaders=1, window=2, more=True)
    assert d.mind.residents == {1, 4, 6, 9}
    d.ask(2)
    [first] = d.start(0)
    assert isinstance(first, Load)
    actions: list[Action] = [first]
    order = []
    while actions:
        last = actions[-1]
        if not isinstance(last, Load):
            break
        order.append(last.unit)
        actions = d.loaded(0, last.ticket)
    assert order == [2, 3, 4, 6, 9, 1]
    return d


def test_when_the_window_is_full_residents_further_on_are_loaded() -> None:
    resident_mind()


def test_a_resident_makes_room_only_when_nothing_else_can() -> None:
    d = resident_mind()
    [third] = d.ask(3)
    assert isinstance(third, Announce)
    d.ask(7)  # compute holds both slots of the window in earnest: the resident needed last goes
    assert d.mind.loads_by_unit[7] == 1
    assert set(d.mind.slots.content) == {1, 2, 3, 4, 9}


def test_a_resident_stays_while_a_load_in_flight_will_free_a_slot() -> None:
    d = resident_mind()
    [fifth] = d.done(2)
    assert isinstance(fifth, Load)
    assert fifth.unit == 5
    d.ask(3)
    assert d.start(1) == []
    assert d.ask(7) == []
    [seventh] = d.loaded(0, fifth.ticket)
    assert isinstance(seventh, Load)
    assert (seventh.unit, seventh.slot) == (7, fifth.slot)


def test_a_guess_may_come_back_before_a_resident_must_go() -> None:
    d = resident_mind()
    [third] = d.ask(3, waiting=False)
    assert isinstance(third, Announce)
    assert d.ask(7) == []
    assert d.tell(Tick(), at=0.05) == []
    [seventh] = d.done(third.ticket, computed=False)
    assert isinstance(seventh, Load)
    assert seventh.unit == 7
    assert {1, 4, 6, 9} <= set(d.mind.slots.content)


def test_a_guess_that_does_not_come_back_is_in_use() -> None:
    d = resident_mind()
    d.ask(3, waiting=False)
    assert d.ask(7) == []
    assert d.mind.wake_ns() == S // 10
    [seventh] = d.tell(Tick(), at=0.1)
    assert isinstance(seventh, Load)
    assert seventh.unit == 7


def test_surplus_slots_are_removed_as_they_come_free() -> None:
    d = Driver(units=9, slots=3, loaders=1)
    d.ask(0)
    d.start(0)
    assert d.loaded(0, 1) == [announce(2, 0, 0), load(0, 3, 1, 1)]
    assert d.tell(SlotsWanted(1)) == [RemoveSlot(SlotNo(2))]
    assert d.loaded(0, 3) == [RemoveSlot(SlotNo(1))]
    assert d.done(2) == [load(0, 4, 1, 0)]
    assert d.tell(SlotsWanted(0)) == []  # the last one stays
    assert d.tell(SlotsWanted(2)) == []
    assert d.tell(SlotAdded(SlotNo(2))) == []
    assert d.tell(SlotAdded(SlotNo(2))) == []
    assert d.loaded(0, 4) == [load(0, 5, 2, 2)]
    assert d.mind.bytes_unused == 20  # unit 1: read, removed, read again


# --- what compute keeps


def kept_mind() -> Driver:
    """Six units in six slots, all resident, all kept by compute since its second pass: unit u by ticket 13 + u."""
    d = Driver(units=6, slots=6, loaders=1, more=True)
    actions = d.start(0)
    for unit in range(6):
        [last] = actions
        assert isinstance(last, Load)
        assert last.unit == unit
        actions = d.loaded(0, last.ticket)
    assert actions == []
    for unit in range(6):
        assert d.ask(unit) == [announce(7 + unit, unit, unit)], "the first time it comes back"
        assert d.done(7 + unit) == []
    for unit in range(6):
        assert d.ask(unit) == [announce(13 + unit, unit, unit, keep=True)]
    return d


def test_a_resident_is_kept_from_its_second_use_on() -> None:
    d = kept_mind()
    assert d.mind.bytes_unused == 0
    assert d.mind.wake_ns() is None


def test_what_is_kept_is_recalled_when_slots_become_fewer() -> None:
    d = kept_mind()
    went = d.tell(SlotsWanted(4))
    stay = choose_residents([10] * 6, 4, 2)
    assert went == [recall(13 + unit, unit) for unit in range(6) if unit not in stay]
    assert d.tell(SlotsWanted(4)) == [], "once is enough"
    gone = []
    for one in went:
        assert isinstance(one, Recall)
        gone += [action.slot for action in d.done(one.ticket) if isinstance(action, RemoveSlot)]
    assert len(gone) == 2
    assert len(d.mind.slots.all) == 4
    assert stay <= set(d.mind.slots.content)


def test_what_is_kept_stays_when_slots_come_back_in_time() -> None:
    d = kept_mind()
    [first, *_] = d.tell(SlotsWanted(4))
    assert isinstance(first, Recall)
    d.tell(SlotsWanted(6))
    assert d.done(first.ticket) == []
    assert len(d.mind.slots.content) == 6
    assert d.ask(first.unit)[0] == announce(19, first.unit, first.unit, keep=True)


def test_a_demand_has_kept_units_recalled_one_by_one() -> None:
    """Where compute uses all slots of the window at once and wants yet another unit."""
    d = Driver(units=5, slots=4, loaders=1, window=2, more=True)
    resident = sorted(d.mind.residents)
    flying = d.start(0)
    while flying and isinstance(flying[-1], Load):
        flying = d.loaded(0, flying[-1].ticket)
    streamed = sorted(set(range(5)) - set(resident))
    tickets = {}
    for _ in range(2):
        for unit in resident:
            announced = d.ask(unit)
            assert isinstance(announced[0], Announce)
            tickets[unit] = announced[0].ticket
            if not announced[0].keep:
                d.done(announced[0].ticket)
    for unit in streamed[:2]:
        found = [one for one in d.ask(unit) if isinstance(one, Announce)]
        if not found:
            [lent] = d.mind.slots.lent
            found = [one for one in d.loaded(0, lent) if isinstance(one, Announce)]
        assert found[0].unit == unit
    d.now += S
    [asked] = d.ask(streamed[2])
    assert isinstance(asked, Recall)
    assert asked.ticket == tickets[asked.unit]
    assert d.tell(Tick()) == []
    d.now = d.mind.wake_ns() or 0
    [other] = d.tell(Tick())
    assert isinstance(other, Recall)
    assert other.unit != asked.unit
    [lend] = d.done(other.ticket)
    assert isinstance(lend, Load)
    assert lend.unit == streamed[2]


def test_a_unit_must_fit_a_slot() -> None:
    with pytest.raises(InvariantBroken, match="I1"):
        Pipeload([10, 11], 10, 1)


def test_a_slot_is_never_taken_from_its_owner() -> None:
    slots = Slots()
    slots.add(SlotNo(0))
    slot = slots.all[SlotNo(0)]
    slots.lend(slot, UnitNo(0))
    for wrong in (lambda: slots.lend(slot, UnitNo(1)), lambda: slots.evict(slot), lambda: slots.remove(slot)):
        with pytest.raises(InvariantBroken, match="I2"):
            wrong()
    slots.fill(slot, 10)
    slots.announce(slot, guess=False)
    for wrong in (lambda: slots.evict(slot), lambda: slots.remove(slot), lambda: slots.announce(slot, guess=False)):
        with pytest.raises(InvariantBroken, match="I2"):
            wrong()
