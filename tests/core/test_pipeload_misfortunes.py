"""The daemon's mind by tables: old news, late, dead and failing loaders, and a compute that is gone."""

from __future__ import annotations

from pipeload_driver import Driver, S, announce, load

from hermes_mp.core.pipeload import (
    ComputeGone,
    Kill,
    NoLoadersLeft,
    ProgressSeen,
    Refuse,
    Tick,
)
from hermes_mp.messages import (
    Epoch,
    LoaderNo,
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
