"""The daemon's mind by tables: exact lists of actions, and the steady state it must reach."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hermes_mp.core.pipeload import (
    Action,
    Announce,
    ComputeGone,
    Event,
    Kill,
    Limits,
    Load,
    LoaderGone,
    NoLoadersLeft,
    Pipeload,
    ProgressSeen,
    Recall,
    Refuse,
    RemoveSlot,
    SlotAdded,
    SlotsWanted,
    Tick,
)
from hermes_mp.core.residents import choose_residents, window_for
from hermes_mp.core.slots import Slots
from hermes_mp.errors import InvariantBroken
from hermes_mp.messages import (
    AskUnit,
    Epoch,
    LoaderNo,
    LoaderStarted,
    LoadFailed,
    PassForecast,
    PassStarted,
    SlotNo,
    Ticket,
    UnitDone,
    UnitLoaded,
    UnitNo,
)

S = 1_000_000_000
LIMITS = Limits(soft_ns=2 * S, hard_ns=20 * S, doubt_ns=S // 10, patience_ns=3 * S, orders=1)


class Driver:
    """A daemon's mind under check, with words for its events."""

    def __init__(
        self, units: int, slots: int, loaders: int, window: int | None = None, more: bool = False, orders: int = 1
    ) -> None:
        self.mind = Pipeload([10] * units, 10, loaders, window, more, replace(LIMITS, orders=orders))
        self.now = 0
        for slot in range(slots):
            self.tell(SlotAdded(SlotNo(slot)))

    def tell(self, event: Event, at: float | None = None) -> list[Action]:
        if at is not None:
            self.now = int(at * S)
        actions = self.mind.handle(event, self.now)
        self.mind.check()
        return actions

    def start(self, loader: int, epoch: int = 1) -> list[Action]:
        return self.tell(LoaderStarted(LoaderNo(loader), Epoch(epoch), 100 + loader))

    def loaded(self, loader: int, ticket: int, epoch: int = 1) -> list[Action]:
        return self.tell(UnitLoaded(LoaderNo(loader), Epoch(epoch), Ticket(ticket), 10, True, 0, 0))

    def failed(self, loader: int, ticket: int, text: str = "input/output error") -> list[Action]:
        return self.tell(LoadFailed(LoaderNo(loader), Epoch(1), Ticket(ticket), 31, text))

    def gone(self, loader: int, epoch: int = 1) -> list[Action]:
        return self.tell(LoaderGone(LoaderNo(loader), Epoch(epoch)))

    def ask(self, unit: int, waiting: bool = True) -> list[Action]:
        return self.tell(AskUnit(UnitNo(unit), waiting))

    def done(self, ticket: int, computed: bool = True, ahead: tuple[int, ...] = ()) -> list[Action]:
        return self.tell(UnitDone(Ticket(ticket), computed, 0, 0, 0, tuple(map(UnitNo, ahead))))


def load(loader: int, ticket: int, unit: int, slot: int, epoch: int = 1) -> Load:
    return Load(LoaderNo(loader), Epoch(epoch), Ticket(ticket), UnitNo(unit), SlotNo(slot))


def announce(ticket: int, unit: int, slot: int, keep: bool = False) -> Announce:
    return Announce(Ticket(ticket), UnitNo(unit), SlotNo(slot), keep)


def recall(ticket: int, unit: int) -> Recall:
    return Recall(Ticket(ticket), UnitNo(unit))


# --- residents


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


# --- misfortunes


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


# --- slots


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
