"""How many slots there shall be while free memory comes and goes: by tables, and on a machine that others use too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.core.squeeze import (
    CALM_NS,
    FAULTS_NBYTES,
    FAULTS_NS,
    LEAST_RESERVE_NBYTES,
    MAX_CALM_NS,
    RESERVE_NBYTES,
    ROOM_NBYTES,
    SOON_NS,
    STARVED_NS,
    Change,
    Squeeze,
    reserve_nbytes,
)

MIB = 1 << 20
SLOT = 50 * MIB
LOOK_NS = 100_000_000


def squeeze(planned: int = 10, least: int = 2) -> Squeeze:
    made = Squeeze(least)
    made.plan(planned, SLOT, planned)
    return made


@pytest.mark.parametrize(
    ("limit", "budget", "reserve"),
    [
        (400 * MIB, None, RESERVE_NBYTES),
        (4000 * MIB, None, 200 * MIB),
        (4000 * MIB, 1000 * MIB, 200 * MIB),
        (1000 * MIB, 900 * MIB, RESERVE_NBYTES),
        (1000 * MIB, 960 * MIB, 40 * MIB),  # whoever names a budget has chosen what is left
        (1000 * MIB, 1000 * MIB, LEAST_RESERVE_NBYTES),
        (1000 * MIB, 9000 * MIB, LEAST_RESERVE_NBYTES),
    ],
)
def test_what_stays_free(limit: int, budget: int | None, reserve: int) -> None:
    assert reserve_nbytes(limit, budget) == reserve


@pytest.mark.parametrize(
    ("spare", "wanted"),
    [(0, None), (-1, 9), (-SLOT, 9), (-SLOT - 1, 8), (-8 * SLOT, 2), (-8 * SLOT - 1, 2), (-(1 << 50), 2)],
)
def test_one_look_is_enough_to_make_residents_leave(spare: int, wanted: int | None) -> None:
    change = squeeze().handle(spare, 10, 0)
    assert change == (None if wanted is None else Change(wanted, returns=False, turned=True))


def test_one_shortage_is_answered_once() -> None:
    """What must leave is on its way until compute is done with it; meanwhile there is no more free memory."""
    state = squeeze()
    assert state.handle(-90 * MIB, 10, 0) == Change(8, returns=False, turned=True)
    assert state.handle(-90 * MIB, 10, LOOK_NS) is None
    assert state.handle(-40 * MIB, 9, 2 * LOOK_NS) is None
    assert state.handle(-41 * MIB - SLOT, 9, 2 * LOOK_NS) == Change(7, returns=False, turned=False)


def test_slots_that_are_still_to_come_are_in_the_reckoning() -> None:
    assert squeeze().handle(3 * SLOT, 7, 0) is None
    assert squeeze().handle(3 * SLOT - 1, 7, 0) == Change(9, returns=False, turned=True)


def test_they_return_when_memory_was_spare_for_a_while() -> None:
    state = squeeze(planned=20)
    state.handle(-5 * SLOT, 20, 0)
    much = 9 * SLOT
    assert state.handle(much, 15, LOOK_NS) is None
    assert state.handle(SLOT + ROOM_NBYTES - 1, 15, 5 * LOOK_NS) is None  # a moment without room: from the start
    assert state.handle(much, 15, 6 * LOOK_NS) is None
    assert state.handle(much, 15, 5 * LOOK_NS + CALM_NS) is None
    assert state.handle(much, 15, 6 * LOOK_NS + CALM_NS) == Change(17, returns=True, turned=True)
    assert state.handle(much, 17, 6 * LOOK_NS + 2 * CALM_NS) == Change(19, returns=True, turned=False)
    assert state.handle(much, 19, 6 * LOOK_NS + 3 * CALM_NS) == Change(20, returns=True, turned=False)
    assert state.handle(much, 20, 6 * LOOK_NS + 4 * CALM_NS) is None


def test_only_as_many_return_as_there_is_room_for() -> None:
    state = squeeze(planned=80)
    state.handle(-20 * SLOT, 80, 0)
    state.handle(3 * SLOT + ROOM_NBYTES, 60, 0)
    assert state.handle(3 * SLOT + ROOM_NBYTES, 60, CALM_NS) == Change(63, returns=True, turned=True)


def test_a_plan_may_grow_into_memory_that_others_have_left() -> None:
    """But not into what is set aside for the KV cache, which is free only so far."""
    state = Squeeze(2)
    state.plan(10, SLOT, most=16)
    cache = 100 * MIB
    assert state.handle(cache, 10, 0, promised_nbytes=cache) is None
    assert state.handle(cache + SLOT, 10, CALM_NS, promised_nbytes=cache) is None
    assert state.handle(cache + 9 * SLOT, 10, 2 * CALM_NS, promised_nbytes=cache) is None
    assert state.handle(cache + 9 * SLOT, 10, 3 * CALM_NS, promised_nbytes=cache) == Change(12, True, turned=False)
    assert state.handle(0, 12, 3 * CALM_NS + LOOK_NS, promised_nbytes=cache) is None, "what is promised may be taken"


def test_memory_that_was_not_there_after_all() -> None:
    state = squeeze()
    state.handle(-SLOT, 10, 0)
    assert state.handle(9 * SLOT, 9, CALM_NS) is None
    assert state.handle(9 * SLOT, 9, 2 * CALM_NS) == Change(10, returns=True, turned=True)
    state.refused(9, 2 * CALM_NS)
    assert state.wanted == 9
    at = 2 * CALM_NS + LOOK_NS
    assert state.handle(9 * SLOT, 9, at) is None
    assert state.handle(9 * SLOT, 9, at + CALM_NS) is None  # it waits longer now
    assert state.handle(9 * SLOT, 9, at + 2 * CALM_NS) == Change(10, returns=True, turned=False)


def test_nested_units_get_the_slots_they_need() -> None:
    """Compute holds all that are left and waits for another: with those it would never go on."""
    state = squeeze()
    state.handle(-9 * SLOT, 10, 0)
    assert state.handle(0, 3, LOOK_NS, starved=True) is None  # one is still on its way out
    assert state.handle(0, 2, 2 * LOOK_NS, starved=True) is None
    assert state.handle(0, 2, 3 * LOOK_NS) is None  # it got on
    assert state.handle(0, 2, 4 * LOOK_NS, starved=True) is None
    assert state.handle(0, 2, 4 * LOOK_NS + STARVED_NS, starved=True) == Change(3, returns=True, turned=True)
    assert state.handle(-SLOT, 3, 8 * LOOK_NS) is None, "and keeps them"


def faulting(looks: list[bool], state: Squeeze, spare: int = 20 * MIB) -> list[Change]:
    found = (state.handle(spare, state.wanted, at * LOOK_NS, faulting=one) for at, one in enumerate(looks))
    return [change for change in found if change is not None]


LOOKS = FAULTS_NS // LOOK_NS + 1


def test_residents_leave_for_code_that_the_kernel_takes_away() -> None:
    """Again and again while it does: the spare memory that it counts is none."""
    assert faulting([True] * LOOKS, squeeze()) == [Change(9, returns=False, turned=True)]
    small = Squeeze(2)
    small.plan(30, 6 * MIB, 30)
    assert faulting([True] * LOOKS, small)[0].slots == 30 - -(-FAULTS_NBYTES // (6 * MIB))
    assert [one.slots for one in faulting([True] * 3 * LOOKS, squeeze())] == [9, 8, 7]


@pytest.mark.parametrize("looks", [[True] * (LOOKS - 1) + [False], ([True] * 9 + [False]) * 20])
def test_the_faults_of_a_start_are_no_shortage(looks: list[bool]) -> None:
    assert faulting(looks, squeeze()) == []


def test_what_leaves_for_code_has_time_to_help() -> None:
    state = squeeze()
    (change,) = faulting([True] * LOOKS, state)
    for look in range(LOOKS, 10 * LOOKS):  # it is still being computed with
        assert state.handle(0, change.slots + 1, look * LOOK_NS, faulting=True) is None


def test_code_never_takes_more_than_residents_and_they_return() -> None:
    state = squeeze()
    assert faulting([True] * 1000, state)[-1].slots == 2
    assert faulting([False] * 1000, state, spare=10 * SLOT)[-1].slots == 10


def test_before_the_plan_nothing_happens() -> None:
    assert Squeeze(2).handle(-1, 0, 0) is None


def test_a_plan_below_the_least_stays() -> None:
    assert squeeze(planned=1).handle(-SLOT, 1, 0) is None


class Machine:
    """Memory that others take and give back, and slots that come and go a look later."""

    def __init__(self, others: int, planned: int) -> None:
        self.total = planned * SLOT + others + ROOM_NBYTES  # a plan leaves a margin
        self.state = squeeze(planned)
        self.slots = planned
        self.now_ns = 0
        self.changes: list[tuple[int, Change]] = []

    def look(self, others: int) -> None:
        spare = self.total - others - self.slots * SLOT
        change = self.state.handle(spare, self.slots, self.now_ns)
        if change is not None:
            self.changes.append((self.now_ns, change))
        assert self.state.least <= self.state.wanted <= self.state.most
        if spare < 0:
            expected = self.total - others - self.state.wanted * SLOT
            assert expected >= 0 or self.state.wanted == self.state.least, "one look is enough"
        self.slots = self.state.wanted
        self.now_ns += LOOK_NS


@given(st.lists(st.tuples(st.integers(0, 12 * SLOT), st.integers(1, 60)), min_size=1, max_size=8), st.integers(2, 12))
def test_it_keeps_its_bounds_and_comes_to_rest(others: list[tuple[int, int]], planned: int) -> None:
    machine = Machine(others[0][0], planned)
    for nbytes, looks in others:
        for _ in range(looks):
            machine.look(nbytes)
    last = others[-1][0]
    for _ in range(1 + (planned + 1) * MAX_CALM_NS // LOOK_NS):  # the same from now on
        machine.look(last)
    at_rest = machine.slots
    turns = [change for at, change in machine.changes if at >= LOOK_NS * sum(looks for _, looks in others)]
    assert not any(one.returns != turns[0].returns for one in turns), "no oscillation"
    room = machine.total - last - at_rest * SLOT
    assert room < SLOT + ROOM_NBYTES or at_rest == planned, "spare memory is used"


def test_others_that_come_and_go_are_answered_ever_more_calmly() -> None:
    """Every return costs reads; a neighbour that takes the memory again each time may have it for longer and longer."""
    machine = Machine(0, 10)
    for _ in range(120):
        for _ in range(50):
            machine.look(4 * SLOT)
        for _ in range(50):
            machine.look(0)
    first = sum(change.turned and not change.returns for at, change in machine.changes if at < 60 * 10**9)
    last = sum(change.turned and not change.returns for at, change in machine.changes if at >= 1140 * 10**9)
    assert first >= 2
    assert last <= 2


def test_and_quickly_again_once_what_returned_could_stay() -> None:
    machine = Machine(0, 10)
    for looks, nbytes in ((50, SLOT), (50, 0), (50, SLOT), (100 + SOON_NS // LOOK_NS, 0), (20, SLOT)):
        for _ in range(looks):
            machine.look(nbytes)
    freed_ns = machine.now_ns
    for _ in range(50):
        machine.look(0)
    at, change = machine.changes[-1]
    assert change.returns
    assert at - freed_ns == CALM_NS
