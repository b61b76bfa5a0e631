"""A child's table, and the restarts of loaders and compute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.core.lifecycle import (
    KILL_NS,
    TABLE,
    Abandon,
    Again,
    AllLost,
    Child,
    Crew,
    Happened,
    Over,
    Solo,
    Spawn,
    State,
)
from hermes_mp.errors import InvariantBroken
from hermes_mp.messages import Epoch, LoaderNo

S = 1_000_000_000
ENDS = (State.GONE, State.UNFIT, State.ENDED)


def die(crew: Crew, loader: int, epoch: int, now_ns: int) -> list[object]:
    return list(crew.handle(LoaderNo(loader), Epoch(epoch), Happened.EXITED, now_ns))


@pytest.mark.parametrize(
    ("happened", "state"),
    [
        ([], State.SPAWNING),
        ([Happened.STARTED], State.UP),
        ([Happened.STARTED, Happened.EXITED], State.GONE),
        ([Happened.STARTED, Happened.STOP_ASKED, Happened.EXITED], State.ENDED),
        ([Happened.STARTED, Happened.KILL_SENT, Happened.EXITED], State.GONE),
        ([Happened.KILL_SENT, Happened.STOP_ASKED, Happened.EXITED], State.ENDED),
        ([Happened.SAID_FAILED, Happened.EXITED], State.UNFIT),
        ([Happened.STARTED, Happened.KILL_SENT, Happened.OUTLIVED], State.UNKILLABLE),
        ([Happened.KILL_SENT, Happened.OUTLIVED, Happened.STOP_ASKED, Happened.EXITED], State.ENDED),
        ([Happened.STOP_ASKED, Happened.SAID_FAILED, Happened.KILL_SENT, Happened.EXITED], State.ENDED),
    ],
)
def test_a_life(happened: list[Happened], state: State) -> None:
    child = Child("loader 0, epoch 1")
    for event in happened:
        child.handle(event)
    assert child.state is state


def test_every_living_state_takes_every_event_and_no_other_any() -> None:
    for state in State:
        for happened in Happened:
            killed = state in (State.KILLED, State.STOPPING, State.FAILED)  # perhaps: else there is no kill to outlive
            listed = killed if happened is Happened.OUTLIVED else state not in ENDS
            assert ((state, happened) in TABLE) is listed, (state, happened)


def test_every_state_is_reached_and_only_the_kernel_ends_a_life() -> None:
    assert set(TABLE.values()) == set(State) - {State.SPAWNING}
    for (state, happened), after in TABLE.items():
        if after in ENDS and state not in ENDS:
            assert happened is Happened.EXITED


def test_an_unlisted_pair_tells_the_story() -> None:
    child = Child("loader 2, epoch 7")
    child.handle(Happened.STARTED)
    child.handle(Happened.EXITED)
    with pytest.raises(InvariantBroken, match="loader 2, epoch 7: spawning -> up -> gone, then 'kill sent'"):
        child.handle(Happened.KILL_SENT)


def test_a_crew_starts_and_restarts_with_a_new_epoch() -> None:
    crew = Crew(2)
    assert crew.start() == [Spawn(LoaderNo(0), Epoch(1)), Spawn(LoaderNo(1), Epoch(1))]
    assert die(crew, 1, 1, 5) == [Spawn(LoaderNo(1), Epoch(2))]
    assert die(crew, 1, 1, 6) == []  # repeated news of the old epoch
    assert die(crew, 1, 2, 7) == [Spawn(LoaderNo(1), Epoch(3))]


def test_the_sixth_death_in_30_s_costs_the_loader_its_place() -> None:
    crew = Crew(2)
    crew.start()
    for epoch in range(1, 6):
        assert die(crew, 0, epoch, epoch * S) == [Spawn(LoaderNo(0), Epoch(epoch + 1))]
    assert die(crew, 0, 6, 6 * S) == [Abandon(LoaderNo(0), "it died 6 times within 30 s", 1)]
    assert die(crew, 1, 1, 6 * S) == [Spawn(LoaderNo(1), Epoch(2))]  # its restarts are its own
    assert crew.handle(LoaderNo(0), Epoch(6), Happened.STARTED, 7 * S) == []


def test_the_window_moves() -> None:
    crew = Crew(1)
    crew.start()
    for epoch in range(1, 6):
        die(crew, 0, epoch, epoch)
    assert die(crew, 0, 6, 30 * S) == [
        Abandon(LoaderNo(0), "it died 6 times within 30 s", 0),
        AllLost("loader 0 was the last one: it died 6 times within 30 s"),
    ]
    crew = Crew(1)
    crew.start()
    for epoch in range(1, 6):
        die(crew, 0, epoch, epoch)
    assert die(crew, 0, 6, 30 * S + 1) == [Spawn(LoaderNo(0), Epoch(7))]


def test_who_said_that_it_failed_is_not_restarted() -> None:
    crew = Crew(2)
    crew.start()
    crew.handle(LoaderNo(0), Epoch(1), Happened.SAID_FAILED, 1)
    assert die(crew, 0, 1, 2) == [Abandon(LoaderNo(0), "its start-up failed", 1)]
    crew.handle(LoaderNo(1), Epoch(1), Happened.SAID_FAILED, 3)
    assert die(crew, 1, 1, 4) == [
        Abandon(LoaderNo(1), "its start-up failed", 0),
        AllLost("loader 1 was the last one: its start-up failed"),
    ]


def test_who_was_asked_to_leave_is_neither_restarted_nor_missed() -> None:
    crew = Crew(1)
    crew.start()
    crew.handle(LoaderNo(0), Epoch(1), Happened.STOP_ASKED, 1)
    assert die(crew, 0, 1, 2) == []
    assert crew.handle(LoaderNo(0), Epoch(1), Happened.STARTED, 3) == []  # late words


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10 * S)), max_size=60))
def test_never_more_than_five_restarts_of_a_loader_in_30_s(deaths: list[tuple[int, int]]) -> None:
    crew = Crew(3)
    crew.start()
    now_ns, spawned = 0, {0: [], 1: [], 2: []}  # type: ignore[var-annotated]
    for number, passed_ns in deaths:
        now_ns += passed_ns
        member = crew.members.get(LoaderNo(number))
        if member is not None:
            actions = crew.handle(LoaderNo(number), member[0], Happened.EXITED, now_ns)
            spawned[number] += [now_ns for action in actions if isinstance(action, Spawn)]
    for times in spawned.values():
        assert all(later - first >= 30 * S for first, later in zip(times, times[5:], strict=False))


def test_a_crew_of_another_size() -> None:
    crew = Crew(3)
    crew.start()
    actions, retired = crew.resize(1)
    assert (actions, retired) == ([], [(LoaderNo(1), Epoch(1)), (LoaderNo(2), Epoch(1))])
    assert crew.handle(LoaderNo(2), Epoch(1), Happened.EXITED, 0) == []  # it left as asked, and is not replaced
    assert crew.resize(1) == ([], [])
    assert crew.resize(3)[0] == [Spawn(LoaderNo(1), Epoch(2)), Spawn(LoaderNo(2), Epoch(2))]
    assert crew.handle(LoaderNo(1), Epoch(1), Happened.EXITED, 0) == []  # late news of the one that left
    assert crew.handle(LoaderNo(0), Epoch(1), Happened.EXITED, 0) == [Spawn(LoaderNo(0), Epoch(2))]


def test_a_smaller_crew_is_of_those_who_are_left() -> None:
    """Once it kept number 0 only, which had been given up: nobody read any more, and compute waited for ever."""
    crew = Crew(3)
    crew.start()
    crew.handle(LoaderNo(0), Epoch(1), Happened.SAID_FAILED, 1)
    die(crew, 0, 1, 2)
    assert crew.resize(1) == ([], [(LoaderNo(2), Epoch(1))])
    assert set(crew.members) == {1}
    assert crew.resize(3) == ([Spawn(LoaderNo(2), Epoch(2))], [])
    assert set(crew.members) == {1, 2}


def test_one_that_outlives_its_kill_is_replaced_and_its_end_changes_nothing() -> None:
    crew = Crew(2)
    crew.start()
    crew.handle(LoaderNo(0), Epoch(1), Happened.STARTED, 0)
    assert crew.handle(LoaderNo(0), Epoch(1), Happened.KILL_SENT, 10 * S) == []
    assert crew.handle(LoaderNo(0), Epoch(1), Happened.KILL_SENT, 12 * S) == []
    assert crew.outlived(10 * S + KILL_NS - 1) == []
    assert crew.outlived(10 * S + KILL_NS) == [(LoaderNo(0), Epoch(1))]
    now_ns = 10 * S + KILL_NS
    assert crew.handle(LoaderNo(0), Epoch(1), Happened.OUTLIVED, now_ns) == [Spawn(LoaderNo(0), Epoch(2))]
    assert crew.outlived(now_ns + S) == []
    assert crew.is_unkillable((LoaderNo(0), Epoch(1)))
    assert crew.degraded() == ["without what loader 0, epoch 1, holds: it cannot be killed"]
    assert crew.handle(LoaderNo(0), Epoch(2), Happened.STARTED, now_ns) == []
    assert die(crew, 0, 1, now_ns + S) == []  # at last
    assert (crew.degraded(), crew.members[LoaderNo(0)][0]) == ([], 2)


def test_one_that_was_asked_to_leave_and_cannot_be_killed_is_not_replaced() -> None:
    crew = Crew(2)
    crew.start()
    crew.resize(1)
    crew.handle(LoaderNo(1), Epoch(1), Happened.KILL_SENT, 0)
    (key,) = crew.outlived(KILL_NS)
    assert crew.handle(*key, Happened.OUTLIVED, KILL_NS) == []
    assert crew.is_unkillable(key)
    assert die(crew, 1, 1, 9 * S) == []
    assert crew.degraded() == []


def test_one_that_is_killed_for_no_fault_of_its_own_is_replaced_without_a_count() -> None:
    crew = Crew(1)
    crew.start()
    for epoch in range(1, 20):
        assert crew.renew(LoaderNo(0), Epoch(epoch)) == [Spawn(LoaderNo(0), Epoch(epoch + 1))]
        assert crew.renew(LoaderNo(0), Epoch(epoch)) == []
        crew.handle(LoaderNo(0), Epoch(epoch), Happened.KILL_SENT, S)
        assert die(crew, 0, epoch, S) == []
    assert crew.former == {}
    assert crew.abandoned == {}


def test_one_that_died_of_its_kill_has_not_outlived_it() -> None:
    crew = Crew(1)
    crew.start()
    crew.handle(LoaderNo(0), Epoch(1), Happened.KILL_SENT, 0)
    die(crew, 0, 1, S)
    assert crew.outlived(9 * S) == []


def test_without_a_loader_for_good_the_run_is_degraded() -> None:
    crew = Crew(3)
    crew.start()
    crew.handle(LoaderNo(1), Epoch(1), Happened.SAID_FAILED, 1)
    die(crew, 1, 1, 2)
    assert crew.degraded() == ["without loader 1: its start-up failed"]
    crew.resize(1)
    crew.resize(3)  # it gets another chance
    assert crew.degraded() == []


def end(solo: Solo, epoch: int, now_ns: int) -> object:
    return solo.handle(Epoch(epoch), Happened.EXITED, now_ns)


def test_compute_is_restarted_three_times_in_a_minute() -> None:
    solo = Solo()
    for epoch in (1, 2, 3):
        assert solo.handle(Epoch(epoch), Happened.STARTED, epoch * S) is None
        assert end(solo, epoch, epoch * S) == Again(Epoch(epoch + 1))
    assert end(solo, 4, 60 * S) == Over("it died 4 times within 60 s")
    late = Solo()
    assert [end(late, 1, S), end(late, 2, 2 * S), end(late, 3, 3 * S)] == [Again(Epoch(one)) for one in (2, 3, 4)]
    late.came_further()
    assert end(late, 4, 61 * S) == Again(Epoch(5))  # the first one is a minute ago


def test_compute_that_comes_no_further_is_given_up_however_long_it_takes() -> None:
    solo = Solo()
    assert [end(solo, epoch, 100 * epoch * S) for epoch in (1, 2, 3)] == [Again(Epoch(one)) for one in (2, 3, 4)]
    assert end(solo, 4, 400 * S) == Over("it died 4 times without coming further")
    other = Solo()
    for epoch in range(1, 20):
        assert end(other, epoch, 100 * epoch * S) == Again(Epoch(epoch + 1))
        other.came_further()


def test_compute_that_said_why_it_cannot_go_on_is_not_restarted() -> None:
    solo = Solo()
    solo.handle(Epoch(1), Happened.SAID_FAILED, S)
    assert end(solo, 1, S) == Over("")


def test_compute_that_was_asked_to_leave_or_is_long_gone() -> None:
    solo = Solo()
    assert end(solo, 1, S) == Again(Epoch(2))
    assert end(solo, 1, S) is None  # repeated news
    solo.handle(Epoch(2), Happened.STOP_ASKED, S)
    assert end(solo, 2, S) is None


def test_loaders_that_were_added_keep_their_numbers_whatever_the_others_do() -> None:
    """Those that take from other boards."""
    crew = Crew(2)
    crew.start()
    assert crew.add(2) == [Spawn(LoaderNo(2), Epoch(1)), Spawn(LoaderNo(3), Epoch(1))]
    assert crew.resize(4) == ([Spawn(LoaderNo(4), Epoch(1)), Spawn(LoaderNo(5), Epoch(1))], [])
    actions, retired = crew.resize(1)
    assert actions == []
    assert [number for number, _ in retired] == [1, 4, 5]
    assert sorted(crew.members) == [0, 2, 3]
    assert crew.resize(2)[0] == [Spawn(LoaderNo(1), Epoch(2))]
    crew.resize(0)
    assert sorted(crew.members) == [2, 3]
    assert crew.handle(LoaderNo(3), Epoch(1), Happened.EXITED, 0) == [Spawn(LoaderNo(3), Epoch(2))]
