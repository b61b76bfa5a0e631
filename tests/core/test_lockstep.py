"""Several requests in lock step: each unit once for all of them, whoever comes, fails or ends meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.core.lockstep import Await, Begin, Finish, Lockstep, Run, Send, Step
from hermes_mp.errors import InvariantBroken

AWAY = 100  # of a script: from here on it is a place, and no unit
PLACES = (AWAY + 3, AWAY + 6)
CUT, GONE = -1, -2  # its pass is cut short; the member ends at once


def come(*members: int) -> Lockstep:
    """Members that have all joined."""
    mind = Lockstep()
    for member in members:
        mind.come(member)
        assert mind.next() == Run(member)
        mind.join(member)
    return mind


def test_a_round_of_two() -> None:
    mind = come(1, 2)
    assert mind.at_boundary
    assert mind.next() == Begin((1, 2))
    for member in (1, 2):
        assert mind.next() == Run(member)
        mind.want(member, 0)
    assert mind.next() == Run(1, moved=True)
    mind.want(1, 1)
    assert mind.next() == Run(2)  # the unit still lies there
    mind.want(2, 1)
    assert mind.next() == Run(1, moved=True)
    mind.leave(1)
    assert mind.next() == Run(2)
    mind.leave(2)
    assert mind.next() == Finish((1, 2))
    assert not mind.at_boundary  # both go on


def test_who_comes_in_a_round_waits_for_the_next() -> None:
    mind = come(1)
    assert mind.next() == Begin((1,))
    assert mind.next() == Run(1)
    mind.want(1, 0)
    mind.come(2)
    assert mind.next() == Run(2)
    mind.join(2)
    assert mind.next() == Run(1, moved=True)
    mind.leave(1)
    assert mind.next() == Finish((1,))
    assert mind.next() == Run(1)
    mind.join(1)
    assert mind.next() == Begin((1, 2))


def test_layers_of_another_board_are_asked_for_once() -> None:
    mind = come(1, 2, 3)
    mind.next()
    for member in (1, 2, 3):
        assert mind.next() == Run(member)
        mind.want(member, 0) if member == 3 else mind.hop(member, 4)
    assert mind.next() == Run(3, moved=True)  # it is not as far
    mind.hop(3, 4)
    assert mind.next() == Send((1, 2, 3), 4)
    assert mind.next() == Run(1)


@pytest.mark.parametrize("how", ["go", "drop"])
def test_nobody_waits_for_one_whose_pass_ends_early(how: str) -> None:
    mind = come(1, 2)
    mind.next()
    mind.next()
    getattr(mind, how)(1)
    if how == "drop":
        assert mind.next() == Run(1)
        mind.join(1)
    assert mind.next() == Run(2)
    mind.want(2, 0)
    assert mind.next() == Run(2, moved=True)
    mind.leave(2)
    assert mind.next() == Finish((2,))


def test_broken_off() -> None:
    mind = come(1, 2)
    mind.next()
    mind.next()
    mind.want(1, 0)
    mind.break_off()
    for member in (1, 2):
        assert mind.next() == Run(member)
        mind.go(member)
    assert mind.next() is None
    assert mind.at_boundary
    assert not len(mind)


def test_a_member_comes_once() -> None:
    mind = come(1)
    with pytest.raises(InvariantBroken, match="member 1 of a lock step comes twice"):
        mind.come(1)


@dataclass
class Member:
    """What it wants in each of its passes, until it ends."""

    passes: list[list[int]]
    comes: int  # with the so-manieth step
    now: Iterator[int] | None = None
    seen: list[list[int]] = field(default_factory=list)


def one_pass(units: list[int], end: list[int], at: int) -> list[int]:
    """Units and places in the order of the model; all passes come by all places, unless they end before."""
    wants = sorted([*units, *PLACES], key=lambda one: (one % AWAY, one))
    return wants[: at % (len(wants) + 1)] + end if end else wants


ends = st.sampled_from([[]] * 6 + [[CUT], [GONE]])
passes = st.builds(one_pass, st.lists(st.integers(0, 9), unique=True, max_size=6), ends, st.integers(0, 9))
members = st.lists(st.builds(Member, st.lists(passes, max_size=4), st.integers(0, 12)), min_size=1, max_size=5)


@given(members)
def test_all_get_what_they_want_and_units_come_once(members: list[Member]) -> None:
    """Each member's passes are what they are alone, and of a round no unit is read twice."""
    mind = Lockstep()
    waiting = dict(enumerate(members))
    own: dict[int, Member] = {}
    lying: set[int] = set()
    read: list[int] = []
    steps = 0
    while True:
        for number in [number for number, one in waiting.items() if one.comes <= steps]:
            own[number] = waiting.pop(number)
            mind.come(number)
        step = mind.next()
        if step is None and not waiting:
            break
        steps += 1
        assert steps < 5000
        if isinstance(step, Begin):
            read = []
        if isinstance(step, Send | Finish) or (isinstance(step, Run) and step.moved):
            lying = set()
        if isinstance(step, Run):
            wanted = _go_on(mind, step, own[step.member])
            if wanted is not None and wanted not in lying:
                lying.add(wanted)
                read.append(wanted)
                assert len(read) == len(set(read)), read
    for one in members:
        kept = next((n for n, wants in enumerate(one.passes) if wants[-1:] == [GONE]), len(one.passes) - 1)
        wanted = [[unit for unit in wants if unit >= 0] for wants in one.passes[: kept + 1]]
        assert one.seen == wanted


def _go_on(mind: Lockstep, step: Step, one: Member) -> int | None:
    """The member goes on; the unit that it had waited for, if it had."""
    assert isinstance(step, Run)
    had: int | None = None
    if one.now is None:
        if len(one.seen) == len(one.passes):
            mind.go(step.member)
        else:
            one.now = iter(one.passes[len(one.seen)])
            one.seen.append([])
            mind.join(step.member)
        return None
    if one.seen[-1] and one.seen[-1][-1] < AWAY:
        had = one.seen[-1][-1]
    wants = next(one.now, None)
    if wants is None:
        one.now = None
        mind.leave(step.member)
    elif wants == CUT:
        one.now = None
        mind.drop(step.member)
    elif wants == GONE:
        mind.go(step.member)
    else:
        one.seen[-1].append(wants)
        mind.want(step.member, wants) if wants < AWAY else mind.hop(step.member, wants % AWAY)
    return had


def chunks(places: list[int]) -> Lockstep:
    """Members 1 to 3, which have come as far as these places of board b."""
    mind = come(1, 2, 3)
    mind.next()
    for member, place in zip((1, 2, 3), places, strict=True):
        mind.hop(member, place, "b")
    return mind


def test_chunks_go_to_a_board_one_by_one_while_others_run_here() -> None:
    mind = come(1, 2)
    mind.next()
    for member in (1, 2):
        assert mind.next() == Run(member)
        mind.want(member, 0)
    assert mind.next() == Run(1, moved=True)
    mind.hop(1, 1, "b")
    assert mind.next() == Send((1,), 1, more=True, apart=True)
    assert mind.next() == Run(2)  # meanwhile, on the unit that lies here
    mind.hop(2, 1, "b")
    assert mind.next() == Await()  # the board is at the first one
    mind.returned(1, "b")
    assert mind.next() == Send((2,), 1, more=False, apart=True)
    assert mind.next() == Run(1)
    mind.want(1, 2)
    assert mind.next() == Run(1, moved=True)  # nobody is to come by unit 0
    mind.want(1, 4)
    assert mind.next() == Await()  # member 2 is to come by unit 2, which lies here until then
    mind.returned(2, "b")
    assert mind.next() == Run(2)
    mind.want(2, 2)
    assert mind.next() == Run(2)


def test_a_board_is_not_asked_for_what_comes_later_before_all_have_come_by() -> None:
    mind = chunks([1, 1, 1])
    assert mind.next() == Send((1,), 1, more=True, apart=True)
    for member, more in ((1, True), (2, False)):
        mind.returned(member, "b")
        assert mind.next() == Send((member + 1,), 1, more, apart=True)  # before anybody goes on here
        assert mind.next() == Run(member)
        mind.hop(member, 3, "b")
        assert mind.next() == Await()
    mind.returned(3, "b")
    assert mind.next() == Send((1,), 3, more=True, apart=True)
    assert mind.next() == Run(3)


def test_a_board_works_while_others_run_here() -> None:
    """Of weights that stay nobody waits for anybody."""
    mind = come(1, 2)
    mind.next()
    assert mind.next() == Run(1)
    mind.hop(1, 1, "b")
    assert mind.next() == Send((1,), 1, more=True, apart=True)
    assert mind.next() == Run(2)
    mind.hop(2, 1, "b")
    assert mind.next() == Await()


def test_an_answer_for_one_that_has_ended_is_no_news() -> None:
    mind = chunks([1, 1, 1])
    assert mind.next() == Send((1,), 1, more=True, apart=True)
    mind.go(1)
    mind.returned(1, "b")
    assert mind.next() == Send((2,), 1, more=True, apart=True)


def test_who_waits_for_parts_of_itself_holds_nobody_up() -> None:
    mind = come(1)
    mind.next()
    mind.next()
    mind.come(2)
    mind.set_aside(1)
    assert mind.next() == Run(2)
    mind.join(2)
    assert mind.next() == Finish(())
    assert mind.next() == Begin((2,))
    assert mind.next() == Run(2)
    mind.go(2)
    mind.wake(1)
    assert mind.next() == Run(1)


def test_a_board_is_busy_until_it_has_answered_whoever_still_waits() -> None:
    mind = chunks([1, 1, 1])
    assert mind.next() == Send((1,), 1, more=True, apart=True)
    mind.drop(1)
    assert mind.next() == Run(1)
    mind.go(1)
    assert mind.next() == Await()
    mind.returned(1, "b")
    assert mind.next() == Send((2,), 1, more=True, apart=True)


def test_an_answer_of_one_board_frees_nobody_who_waits_for_another() -> None:
    """A number may be another request's by now."""
    mind = chunks([1, 1, 1])
    assert mind.next() == Send((1,), 1, more=True, apart=True)
    mind.returned(1, "c")
    assert mind.next() == Await()
