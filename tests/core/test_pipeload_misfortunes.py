"""The daemon's mind by tables: old news, late, dead and failing loaders, and a compute that is gone."""

from __future__ import annotations

from pipeload_driver import Driver, S, announce, load

from hermes_mp.core.pipeload import (
    ComputeGone,
    Kill,
    LoadersLeft,
    LoaderStuck,
    NoLoadersLeft,
    ProgressSeen,
    Refuse,
    Tick,
)
from hermes_mp.messages import (
    Epoch,
    LoaderNo,
    SlotNo,
    Ticket,
    UnitLoaded,
    UnitNo,
)


def test_repeated_and_old_news_change_nothing() -> None:
    d = Driver(units=3, slots=2, loaders=1)
    assert d.start(0, epoch=4) == [load(0, 1, 0, 0, epoch=4)]
    assert d.start(0, epoch=4) == []
    assert d.start(0, epoch=3) == []
    assert d.loaded(0, 1, epoch=3) == []
    assert d.gone(0, epoch=3) == []
    assert d.loaded(0, 9, epoch=4) == []
    assert d.loaded(1, 1, epoch=4) == []
    assert d.loaded(0, 1, epoch=4) == [load(0, 2, 1, 1, epoch=4)]
    assert d.loaded(0, 1, epoch=4) == []
    assert d.done(1) == []
    assert d.mind.bytes_read == 10


def test_the_slot_of_a_dead_loader_waits_for_the_kernel() -> None:
    d = Driver(units=3, slots=1, loaders=1)
    d.start(0)
    assert d.start(0, epoch=2) == []  # its elder may still be writing
    assert d.ask(0) == []
    assert d.loaded(0, 1) == []  # old epoch
    assert d.gone(0) == [load(0, 2, 0, 0, epoch=2)]
    assert d.gone(0) == []


def test_the_start_of_a_loader_that_is_gone_is_old_news() -> None:
    d = Driver(units=3, slots=1, loaders=1)
    d.gone(0, epoch=2)
    assert d.start(0, epoch=2) == []
    assert d.start(0, epoch=3) == [load(0, 1, 0, 0, epoch=3)]


def test_past_the_soft_deadline_another_loader_reads_the_unit_too() -> None:
    d = Driver(units=9, slots=3, loaders=2)
    d.ask(0)
    d.start(0)
    assert d.tell(Tick(), at=1.9) == []
    assert d.mind.wake_ns() == 2 * S
    assert d.start(1) == [load(1, 2, 1, 1)]
    assert d.loaded(1, 2) == [load(1, 3, 2, 2)]
    assert d.tell(Tick(), at=2.0) == []
    assert d.loaded(1, 3) == [load(1, 4, 0, 2)]  # takes the place of unit 2, needed last
    assert d.loaded(1, 4) == [announce(5, 0, 2)]  # the first one wins
    assert d.loaded(0, 1) == [load(1, 6, 2, 0)]  # the other was for nothing, its slot is free
    assert d.mind.bytes_unused == 40  # unit 2 and one copy of 0 are dropped, 1 and 0 not computed yet


def test_progress_defers_the_deadlines() -> None:
    d = Driver(units=9, slots=2, loaders=2)
    d.ask(0)
    d.start(0)
    d.tell(ProgressSeen(LoaderNo(0), Epoch(1), 1), at=1.5)
    d.tell(ProgressSeen(LoaderNo(0), Epoch(1), 1), at=3.0)
    d.tell(ProgressSeen(LoaderNo(0), Epoch(0), 2), at=3.0)
    d.tell(Tick())
    assert d.mind.wake_ns() == int(3.5 * S)
    d.tell(Tick(), at=3.5)
    assert d.start(1) == [load(1, 2, 0, 1)]
    assert d.mind.wake_ns() == int(5.5 * S)


def test_past_the_hard_deadline_it_is_killed_once_and_its_slot_waits() -> None:
    d = Driver(units=9, slots=1, loaders=2)
    d.ask(0)
    d.start(0)
    d.tell(Tick(), at=2.0)
    assert d.start(1) == []
    assert d.mind.wake_ns() == 20 * S
    why = "no progress for 20.0 s while loading unit 0"
    assert d.tell(Tick(), at=20.0) == [Kill(LoaderNo(0), Epoch(1), why)]
    assert d.tell(Tick(), at=21.0) == []
    assert d.mind.wake_ns() is None
    assert d.gone(0) == [load(1, 2, 0, 0)]


STUCK = LoaderStuck(LoaderNo(0), Epoch(1), "loader 0, which waits for /dev/sda")


def test_the_slots_of_a_loader_that_cannot_be_killed_are_done_without_until_it_is_gone() -> None:
    d = Driver(units=9, slots=3, loaders=1)
    d.ask(0)
    d.start(0)
    d.tell(Tick(), at=20.0)
    assert d.tell(STUCK, at=25.0) == []
    assert d.tell(STUCK) == []
    assert d.start(0, epoch=2) == [load(0, 2, 0, 1, epoch=2)]
    d.tell(ProgressSeen(LoaderNo(0), Epoch(1), 7))  # the counter is its successor's by now
    assert d.mind.slots.all[SlotNo(0)].late
    assert d.loaded(0, 2, epoch=2) == [announce(3, 0, 1), load(0, 4, 1, 2, epoch=2)]
    assert d.loaded(0, 1) == []  # its late word: the slot stays lent
    d.loaded(0, 4, epoch=2)
    d.done(3)
    assert {slot.number for slot in d.mind.slots.lent.values()} == {0, 1}  # unit 2, in the slot of unit 0
    d.gone(0)
    assert d.mind.loaders.slots_stuck == 0
    assert SlotNo(0) not in [slot.number for slot in d.mind.slots.lent.values() if slot.late]


def test_a_loader_that_cannot_be_killed_before_its_deadline_is_not_waited_for() -> None:
    """Killed for another reason: its load was not late."""
    d = Driver(units=9, slots=3, loaders=2)
    d.ask(0)
    d.start(0)
    d.start(1)
    assert d.loaded(1, 2) == [load(1, 3, 2, 2)]
    assert d.tell(STUCK) == []
    assert d.loaded(1, 3) == [load(1, 4, 0, 2)]  # where unit 2 was, as nothing else can be read before it


def test_where_no_slot_is_left_the_unit_is_refused_with_what_it_waits_for() -> None:
    d = Driver(units=9, slots=1, loaders=1)
    d.ask(0)
    d.start(0)
    d.tell(Tick(), at=20.0)
    held = "1 of 1 slots are held by loaders that cannot be killed: loader 0, which waits for /dev/sda"
    refusal = Refuse(UnitNo(0), 31, f"unit 0 cannot be read: {held}")
    assert d.tell(STUCK, at=25.0) == [refusal]
    assert d.start(0, epoch=2) == []
    assert d.ask(0) == []
    d.tell(Tick(), at=27.9)
    assert d.mind.wake_ns() == 28 * S
    assert d.tell(Tick(), at=28.0) == [refusal]
    d.ask(0)
    assert d.gone(0) == [load(0, 2, 0, 0, epoch=2)]


def test_a_slot_that_compute_keeps_is_recalled_where_the_others_are_lost() -> None:
    d = Driver(units=2, slots=2, loaders=1, more=True)
    d.start(0)
    d.ask(0)
    d.loaded(0, 1)
    d.done(2)
    d.ask(1)
    d.tell(Tick(), at=20.0)
    d.tell(STUCK)
    assert d.start(0, epoch=2) == [load(0, 4, 1, 0, epoch=2)]


def test_the_soft_deadline_follows_what_reads_take() -> None:
    d = Driver(units=9, slots=4, loaders=1)
    d.start(0)
    for ticket in range(1, 4):
        d.tell(UnitLoaded(LoaderNo(0), Epoch(1), Ticket(ticket), 10, True, 0, 0, S), at=ticket)
    assert d.mind.wake_ns() == 7 * S
    d.tell(UnitLoaded(LoaderNo(0), Epoch(1), Ticket(4), 10, True, 0, 0, S), at=4)
    d.ask(5)
    d.tell(Tick(), at=7.9)
    assert not any(slot.late for slot in d.mind.slots.lent.values())
    d.tell(Tick(), at=8.0)
    assert all(slot.late for slot in d.mind.slots.lent.values())


def test_a_killed_loader_that_finished_gets_no_more_work() -> None:
    d = Driver(units=9, slots=2, loaders=1)
    d.ask(0)
    d.start(0)
    d.tell(Tick(), at=20.0)
    assert d.loaded(0, 1) == [announce(2, 0, 0)]
    assert d.start(0, epoch=2) == [load(0, 3, 1, 1, epoch=2)]


def test_a_demanded_unit_is_tried_twice_by_another_loader_if_there_is_one() -> None:
    d = Driver(units=1, slots=1, loaders=2)
    d.ask(0)
    assert d.start(0) == [load(0, 1, 0, 0)]
    d.start(1)
    assert d.failed(0, 1) == [load(1, 2, 0, 0)]
    assert d.failed(1, 2, "checksum") == [Refuse(UnitNo(0), 31, "checksum")]
    assert d.ask(0) == [load(0, 3, 0, 0)]  # a new wait is a new chance
    assert d.loaded(0, 3) == [announce(4, 0, 0)]


def test_a_predicted_unit_that_failed_is_not_read_again_until_demanded() -> None:
    d = Driver(units=2, slots=2, loaders=1)
    d.start(0)
    assert d.failed(0, 1) == [load(0, 2, 1, 1)]
    assert d.loaded(0, 2) == []
    assert d.ask(0) == [load(0, 3, 0, 0)]


def test_without_loaders_every_demand_is_refused_but_what_is_here_is_served() -> None:
    d = Driver(units=2, slots=2, loaders=1)
    d.start(0)
    d.loaded(0, 1)
    d.ask(1)
    d.gone(0)
    refusal = Refuse(UnitNo(1), 43, "loader 0 was the last one")
    assert d.tell(NoLoadersLeft(43, "loader 0 was the last one")) == [refusal]
    assert d.ask(0) == [announce(3, 0, 0)]
    assert d.ask(1) == [refusal]
    assert d.start(0, epoch=2) == [load(0, 4, 1, 1, epoch=2)]


def test_compute_gone_frees_what_it_held() -> None:
    d = Driver(units=3, slots=1, loaders=1, more=True)
    d.ask(0)
    d.start(0)
    assert d.loaded(0, 1) == [announce(2, 0, 0)]
    d.ask(2)
    assert d.tell(ComputeGone()) == []
    assert d.done(2) == []
    assert d.ask(0) == [announce(3, 0, 0)]


def test_who_is_left_gets_the_orders_of_one_that_was_given_up() -> None:
    """Once it got one at a time for the rest of the run, as the other might have come up idle."""
    d = Driver(units=9, slots=4, loaders=2, window=4, orders=2)
    assert d.start(0) == [load(0, 1, 0, 0)]
    assert d.tell(LoadersLeft(1)) == [load(0, 2, 1, 1)]
