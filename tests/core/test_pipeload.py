"""The daemon's mind by tables: exact lists of actions, and the steady state it must reach."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pipeload_driver import LIMITS, Driver, S, announce, load

from hermes_mp.core.pipeload import (
    Action,
    Announce,
    ComputeGone,
    Kill,
    Load,
    Pipeload,
    ProgressSeen,
    Refuse,
    SlotAdded,
    Tick,
)
from hermes_mp.core.residents import choose_residents
from hermes_mp.messages import (
    AskUnit,
    Epoch,
    LoaderNo,
    LoaderStarted,
    PassForecast,
    PassStarted,
    SlotNo,
    Ticket,
    UnitLoaded,
    UnitNo,
)

# --- one unit


def test_a_unit_is_read_ahead_announced_and_kept() -> None:
    d = Driver(units=3, slots=1, loaders=1)
    assert d.start(0) == [load(0, 1, 0, 0)]
    assert d.loaded(0, 1) == []
    assert d.ask(0) == [announce(2, 0, 0)]
    assert d.done(2) == [load(0, 3, 1, 0)]
    assert d.mind.bytes_read == 10
    assert d.mind.bytes_unused == 0
    assert d.mind.computes_by_unit == [1, 0, 0]


@pytest.mark.parametrize("first", [AskUnit(UnitNo(0), True), PassStarted(0, 1, 32)])
def test_a_mind_that_is_not_eager_reads_nothing_before_the_first_pass(first: AskUnit | PassStarted) -> None:
    """It does not wait until compute asks: first of all that reads the rows of its embedding."""
    mind = Pipeload([10] * 3, 10, 2, more=True, limits=LIMITS, eager=False)
    for event in (SlotAdded(SlotNo(0)), SlotAdded(SlotNo(1)), LoaderStarted(LoaderNo(0), Epoch(1), 100)):
        assert mind.handle(event, 0) == []
    assert mind.handle(LoaderStarted(LoaderNo(1), Epoch(1), 101), 0) == []
    assert mind.handle(first, 0) == [load(0, 1, 0, 0), load(1, 2, 1, 1)]
    mind.check()


def test_a_waiting_ask_comes_before_every_prediction() -> None:
    d = Driver(units=9, slots=3, loaders=1)
    assert d.ask(5) == []
    assert d.start(0) == [load(0, 1, 5, 0)]
    assert d.loaded(0, 1) == [announce(2, 5, 0), load(0, 3, 6, 1)]
    assert d.loaded(0, 3) == [load(0, 4, 8, 2)]  # the window of 2 is full: next is the resident


def test_a_repeated_unit_costs_no_read() -> None:
    d = Driver(units=1, slots=2, loaders=1)
    d.start(0)
    d.loaded(0, 1)
    d.ask(0)
    assert d.done(2) == []
    assert d.ask(0) == [announce(3, 0, 0, keep=True)]
    assert d.done(2) == []  # news of the first lease does not end the second
    d.done(3)
    assert d.mind.loads_by_unit == [1]
    assert d.mind.computes_by_unit == [2]


def test_an_ask_for_what_is_announced_is_answered_with_the_same_ticket() -> None:
    d = Driver(units=3, slots=2, loaders=1)
    d.ask(0)
    d.start(0)
    assert d.loaded(0, 1) == [announce(2, 0, 0), load(0, 3, 1, 1)]
    assert d.ask(0) == [announce(2, 0, 0)]


def test_a_guess_is_announced_when_it_is_loaded() -> None:
    d = Driver(units=3, slots=3, loaders=1)
    d.ask(0)
    d.start(0)
    d.loaded(0, 1)
    assert d.ask(1, waiting=False) == []
    assert d.loaded(0, 3) == [announce(4, 1, 1), load(0, 5, 2, 2)]


def test_a_return_may_bring_the_next_guess() -> None:
    d = Driver(units=3, slots=3, loaders=1)
    d.ask(0)
    d.start(0)
    d.loaded(0, 1)
    d.ask(1, waiting=False)
    assert d.loaded(0, 3) == [announce(4, 1, 1), load(0, 5, 2, 2)]
    assert d.done(2, ahead=(2,)) == []
    assert d.loaded(0, 5) == [announce(6, 2, 2)]
    assert d.done(2, ahead=(9,)) == [Refuse(UnitNo(9), 40, "unit 9 of 3 was asked for")], "old news of a return"


def test_a_waiting_ask_supersedes_an_unanswered_guess() -> None:
    d = Driver(units=9, slots=3, loaders=1)
    d.ask(0)
    d.start(0)
    d.loaded(0, 1)
    d.ask(1, waiting=False)
    assert d.done(2) == []
    d.ask(5)
    assert d.loaded(0, 3) == [load(0, 4, 5, 1)]  # nobody wants unit 1 any more, and it is needed later than unit 0
    assert d.loaded(0, 4) == [announce(5, 5, 1), load(0, 6, 6, 0)]


def test_a_wrong_guess_comes_back_unused() -> None:
    d = Driver(units=9, slots=2, loaders=1)
    d.ask(0)
    d.start(0)
    d.loaded(0, 1)
    d.ask(1, waiting=False)
    assert d.loaded(0, 3) == [announce(4, 1, 1)]
    assert d.done(2) == [load(0, 5, 2, 0)]
    d.done(4, computed=False)
    assert d.ask(7) == []
    assert d.loaded(0, 5) == [load(0, 6, 7, 0)]
    assert d.mind.computes_by_unit[1] == 0
    assert d.mind.bytes_unused == 20


def test_an_ask_for_a_unit_that_is_not_there_is_refused() -> None:
    d = Driver(units=3, slots=1, loaders=1)
    assert d.ask(3) == [Refuse(UnitNo(3), 40, "unit 3 of 3 was asked for")]


# --- the next order, given while the loader still reads


def test_a_loader_has_its_next_order_before_it_has_ended_the_first() -> None:
    d = Driver(units=9, slots=2, loaders=1, orders=2)
    assert d.start(0) == [load(0, 1, 0, 0), load(0, 2, 1, 1)]
    assert d.ask(0) == []
    assert d.loaded(0, 1) == [announce(3, 0, 0)]
    assert d.done(3) == [load(0, 4, 2, 0)]  # while it reads unit 1
    assert d.done(3) == []
    assert d.ask(1) == []
    assert d.loaded(0, 2) == [announce(5, 1, 1)]


def test_idle_loaders_come_first_then_the_one_that_began_first() -> None:
    d = Driver(units=9, slots=0, loaders=2, window=5, orders=2)
    d.start(1)
    d.start(0)
    given = [d.tell(SlotAdded(SlotNo(slot))) for slot in range(5)]
    assert given == [[load(1, 1, 0, 0)], [load(0, 2, 1, 1)], [load(1, 3, 2, 2)], [load(0, 4, 3, 3)], []]
    assert d.loaded(1, 1) == [load(1, 5, 4, 4)]


def test_a_waiting_ask_is_ordered_of_a_loader_that_reads() -> None:
    d = Driver(units=9, slots=3, loaders=1, window=3, orders=2)
    d.ask(0)
    assert d.start(0) == [load(0, 1, 0, 0), load(0, 2, 1, 1)]
    assert d.ask(7) == []  # it has two orders
    assert d.loaded(0, 1) == [announce(3, 0, 0), load(0, 4, 7, 2)]  # before any prediction


def test_a_loader_that_is_gone_had_two_units() -> None:
    d = Driver(units=2, slots=2, loaders=1, orders=2)
    assert d.start(0) == [load(0, 1, 0, 0), load(0, 2, 1, 1)]
    assert d.start(1) == []
    assert d.gone(0) == [load(1, 3, 0, 0), load(1, 4, 1, 1)]


def test_a_late_loader_gets_no_further_order() -> None:
    d = Driver(units=9, slots=1, loaders=1, orders=2)
    d.ask(0)
    assert d.start(0) == [load(0, 1, 0, 0)]
    assert d.tell(Tick(), at=2.0) == []
    assert d.tell(SlotAdded(SlotNo(1))) == []
    assert d.tell(ProgressSeen(LoaderNo(0), Epoch(1), 1)) == [load(0, 2, 1, 1)]


def test_both_units_of_a_late_loader_are_read_by_another() -> None:
    d = Driver(units=2, slots=4, loaders=1, window=4, orders=2)
    assert d.start(0) == [load(0, 1, 0, 0), load(0, 2, 1, 1)]
    assert d.start(1) == []
    assert d.tell(Tick(), at=2.0) == [load(1, 3, 0, 2), load(1, 4, 1, 3)]
    assert d.tell(Tick(), at=20.0)[0] == Kill(LoaderNo(0), Epoch(1), "no progress for 20.0 s while loading unit 0")


def test_a_killed_loader_gets_no_further_order() -> None:
    d = Driver(units=9, slots=1, loaders=1, orders=2)
    d.start(0)
    d.tell(Tick(), at=20.0)
    assert d.tell(SlotAdded(SlotNo(1))) == []
    assert d.tell(ProgressSeen(LoaderNo(0), Epoch(1), 1)) == []


def test_the_next_unit_of_a_loader_that_was_late_is_not_late() -> None:
    d = Driver(units=9, slots=2, loaders=1, orders=2)
    d.start(0)
    d.tell(Tick(), at=2.0)
    d.tell(UnitLoaded(LoaderNo(0), Epoch(1), Ticket(1), 10, True, 0, 0), at=2.1)
    assert d.mind.wake_ns() == pytest.approx(4.1 * S)
    assert d.start(1) == []  # unit 1 is on its way


def test_a_later_unit_that_comes_does_not_hide_that_an_older_one_hangs() -> None:
    d = Driver(units=2, slots=3, loaders=1, window=3, orders=2)
    assert d.start(0) == [load(0, 1, 0, 0), load(0, 2, 1, 1)]
    d.tell(UnitLoaded(LoaderNo(0), Epoch(1), Ticket(2), 10, True, 0, 0), at=1.9)
    assert d.mind.wake_ns() == 2 * S
    assert d.start(1) == []
    assert d.tell(Tick(), at=2.0) == [load(1, 3, 0, 2)]


def test_while_a_loader_starts_the_others_get_no_order_that_it_could_have() -> None:
    d = Driver(units=9, slots=3, loaders=2, window=3, orders=2)
    assert d.start(0) == [load(0, 1, 0, 0)]
    assert d.start(1) == [load(1, 2, 1, 1), load(0, 3, 2, 2)]


def test_the_next_order_goes_to_the_loader_with_the_least_to_read() -> None:
    mind = Pipeload([90, 10, 10, 90], 90, 2, 4, limits=replace(LIMITS, orders=2))
    for number in (0, 1):
        mind.handle(LoaderStarted(LoaderNo(number), Epoch(1), 1), 0)
    given = [action for slot in range(4) for action in mind.handle(SlotAdded(SlotNo(slot)), 0)]
    assert [(one.loader, one.unit) for one in given if isinstance(one, Load)] == [(0, 0), (1, 1), (1, 2), (0, 3)]


def test_the_clock_of_the_next_unit_starts_when_the_first_is_there() -> None:
    d = Driver(units=9, slots=2, loaders=1, orders=2)
    d.start(0)
    d.tell(UnitLoaded(LoaderNo(0), Epoch(1), Ticket(1), 10, True, 0, 0), at=1.5)
    assert d.mind.wake_ns() == int(3.5 * S)


# --- the end of a pass


def test_without_a_forecast_nothing_beyond_the_last_unit_is_read() -> None:
    d = Driver(units=3, slots=2, loaders=2)
    d.ask(0)
    d.start(0)
    d.start(1)
    assert d.loaded(0, 1) == [announce(3, 0, 0)]
    assert d.done(3) == [load(0, 4, 2, 0)]
    d.loaded(1, 2)
    d.loaded(0, 4)
    assert d.ask(1) == [announce(5, 1, 1)]
    assert d.done(5) == []
    assert d.ask(2) == [announce(6, 2, 0)]
    assert d.done(6) == []
    assert d.tell(PassForecast(more=True)) == [load(1, 7, 0, 0)]


def test_with_a_forecast_reading_wraps_around() -> None:
    d = Driver(units=3, slots=2, loaders=2, more=True)
    d.ask(2)
    d.start(0)
    assert d.loaded(0, 1) == [announce(2, 2, 0), load(0, 3, 0, 1)]


def test_a_pass_is_read_as_far_as_it_should_go_and_further_once_it_does() -> None:
    d = Driver(units=4, slots=2, loaders=1, more=True)
    assert d.tell(PassForecast(more=True, units=2)) == []
    assert d.start(0) == [load(0, 1, 0, 0)]
    d.ask(0)
    assert d.loaded(0, 1) == [announce(2, 0, 0), load(0, 3, 1, 1)]
    assert d.done(2) == []
    d.ask(1)
    assert d.loaded(0, 3) == [announce(4, 1, 1)], "the next pass begins with unit 0, which is here"
    assert d.done(4) == []
    assert d.ask(2) == [load(0, 5, 2, 1)]
    assert d.loaded(0, 5) == [announce(6, 2, 1), load(0, 7, 3, 0)], "it goes further than it should"
    assert d.done(6) == []
    assert d.ask(3) == []
    assert d.loaded(0, 7) == [announce(8, 3, 0), load(0, 9, 0, 1)], "and then begins anew"


def test_residents_are_spread_over_the_longest_pass_that_was_expected() -> None:
    """A model and its base model called in turns would otherwise drive each other's residents out."""
    d = Driver(units=20, slots=7, loaders=1)
    whole, half = choose_residents([10] * 20, 7, 2), choose_residents([10] * 10, 7, 2)
    assert d.mind.residents == whole
    d.tell(PassForecast(more=True, units=10))
    assert d.mind.residents == half
    d.tell(PassForecast(more=True))
    assert d.mind.residents == whole
    d.tell(PassForecast(more=True, units=10))
    assert d.mind.residents == whole
    d.tell(ComputeGone())
    d.tell(PassForecast(more=True, units=10))
    assert d.mind.residents == half


# --- the steady state


@pytest.mark.parametrize("slots", range(1, 13))
@pytest.mark.parametrize(("units", "loaders", "window"), [(12, 3, None), (12, 1, 2), (7, 2, None), (5, 6, 3)])
def test_in_the_steady_state_only_streamed_units_are_read(
    units: int, loaders: int, window: int | None, slots: int
) -> None:
    """Endless passes; compute is always faster than the disk: all loaders must be reading while it waits."""
    d = Driver(units, slots, loaders, window, more=True)
    flying: list[Load] = []

    def carry(actions: list[Action]) -> list[Announce]:
        flying.extend(action for action in actions if isinstance(action, Load))
        return [action for action in actions if isinstance(action, Announce)]

    for loader in range(loaders):
        carry(d.start(loader))
    streamed = units - len(d.mind.residents)
    passes: list[int] = []
    for _ in range(6):
        before = list(d.mind.loads_by_unit)
        for unit in range(units):
            announced = carry(d.ask(unit))
            while not announced:
                if len(passes) > 1:  # at first residents are read in between
                    assert len(flying) == min(loaders, d.mind.window, streamed), (unit, flying)
                job = flying.pop(0)
                announced = carry(d.loaded(job.loader, job.ticket))
            [lease] = announced
            assert lease.unit == unit
            carry(d.done(lease.ticket))
        passes.append(sum(d.mind.loads_by_unit) - sum(before))
    assert passes[2:] == [streamed] * 4  # (the residents are read in the first, and its end reads for the second)
    assert all(d.mind.loads_by_unit[unit] == 1 for unit in d.mind.residents)
    assert d.mind.computes_by_unit == [6] * units
