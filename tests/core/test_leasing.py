"""Compute's mind: what it asks, holds and returns."""

from __future__ import annotations

import pytest

from hermes_mp.core.leasing import GiveUp, Leasing, Send
from hermes_mp.errors import BudgetTooSmall, InvariantBroken
from hermes_mp.messages import AskUnit, PassForecast, RecallUnit, Ticket, UnitDone, UnitFailed, UnitNo, UnitReady


def ready(ticket: int, unit: int, keep: bool = False) -> UnitReady:
    return UnitReady(Ticket(ticket), UnitNo(unit), 4096 * unit, keep)


def ask(unit: int, waiting: bool = True) -> Send:
    return Send(AskUnit(UnitNo(unit), waiting))


def done(ticket: int, asked_ns: int, bound_ns: int, done_ns: int, computed: bool = True, ahead: int = -1) -> Send:
    guesses = () if ahead < 0 else (UnitNo(ahead),)
    return Send(UnitDone(Ticket(ticket), computed, asked_ns, bound_ns, done_ns, guesses))


def unused(ticket: int, now_ns: int) -> Send:
    return done(ticket, now_ns, now_ns, now_ns, computed=False)


def want(mind: Leasing, unit: int, now_ns: int) -> list[object]:
    return list(mind.want(UnitNo(unit), now_ns))


def hold(mind: Leasing, unit: int, ticket: int, now_ns: int = 0) -> None:
    mind.want(UnitNo(unit), now_ns)
    mind.handle(ready(ticket, unit), now_ns)
    mind.begin(UnitNo(unit), now_ns)


def test_a_unit_is_asked_bound_and_returned_with_its_times() -> None:
    mind = Leasing(3)
    assert want(mind, 0, 10) == [ask(0)]
    assert mind.held(UnitNo(0)) is None
    assert mind.handle(ready(1, 0), 25) == []
    assert mind.held(UnitNo(0)) == ready(1, 0)
    assert mind.begin(UnitNo(0), 30) == [ask(1, waiting=False)]
    assert mind.done(UnitNo(0), 90) == [done(1, 10, 30, 90)]
    assert mind.held(UnitNo(0)) is None


def test_a_right_guess_costs_no_message_and_no_stall() -> None:
    mind = Leasing(3)
    hold(mind, 0, 1)
    mind.handle(ready(2, 1), 40)
    assert mind.done(UnitNo(0), 90) == [done(1, 0, 0, 90, ahead=2)], "the next guess goes with the return"
    assert want(mind, 1, 100) == []
    assert mind.begin(UnitNo(1), 101) == []
    mind.handle(ready(3, 2), 120)
    assert mind.done(UnitNo(1), 150) == [done(2, 100, 101, 150)]
    assert want(mind, 2, 160) == []


def test_a_guess_that_went_with_a_return_may_come_before_the_present_unit_is_bound() -> None:
    mind = Leasing(4)
    hold(mind, 0, 1)
    mind.handle(ready(2, 1), 40)
    mind.done(UnitNo(0), 90)
    mind.handle(ready(3, 2), 95)
    assert want(mind, 1, 100) == []
    assert mind.begin(UnitNo(1), 101) == []
    assert mind.done(UnitNo(1), 150) == [done(2, 100, 101, 150, ahead=3)]


def test_what_was_guessed_with_a_return_goes_back_where_another_unit_is_wanted() -> None:
    mind = Leasing(9)
    hold(mind, 0, 1)
    mind.handle(ready(2, 1), 40)
    assert mind.done(UnitNo(0), 90) == [done(1, 0, 0, 90, ahead=2)]
    assert want(mind, 5, 100) == [unused(2, 100), ask(5)]
    assert mind.handle(ready(3, 2), 110) == [unused(3, 110)]
    mind.handle(ready(4, 5), 120)
    assert mind.begin(UnitNo(5), 130) == [ask(6, waiting=False)]


def test_whoever_waits_holds_no_guess() -> None:
    """With two slots both would be held, and nothing could come."""
    mind = Leasing(9)
    hold(mind, 0, 1)
    mind.handle(ready(2, 1), 40)
    mind.done(UnitNo(0), 90)
    mind.handle(ready(3, 2), 95)
    assert want(mind, 6, 100) == [unused(2, 100), unused(3, 100), ask(6)]


def test_a_return_does_not_ask_for_what_it_returns() -> None:
    mind = keeping(3, (1, 2))  # so that unit 0 follows itself
    mind.want(UnitNo(0), 10)
    mind.handle(ready(20, 0), 10)
    mind.begin(UnitNo(0), 10)
    assert mind.done(UnitNo(0), 30) == [done(20, 10, 10, 30)]


def test_a_return_after_an_exception_asks_for_nothing() -> None:
    mind = Leasing(9)
    hold(mind, 0, 1)
    mind.handle(ready(2, 1), 40)
    assert mind.done(UnitNo(0), 90, computed=False) == [done(1, 0, 0, 90, computed=False)]


def test_a_guess_that_is_late_is_waited_for() -> None:
    mind = Leasing(3)
    hold(mind, 0, 1)
    mind.done(UnitNo(0), 90)
    assert want(mind, 1, 100) == [], "it was asked for"
    assert mind.remind() == [ask(1)]
    assert mind.remind() == []
    assert mind.handle(ready(2, 1), 140) == []
    assert mind.handle(ready(2, 1), 141) == []  # the daemon answered guess and ask
    assert mind.remind() == [], "nobody waits"
    assert mind.begin(UnitNo(1), 150) == [ask(2, waiting=False)]
    assert mind.done(UnitNo(1), 160) == [done(2, 100, 150, 160)]


def test_a_wrong_guess_is_returned_before_the_next_ask() -> None:
    mind = Leasing(9)
    hold(mind, 0, 1)
    mind.handle(ready(2, 1), 40)
    mind.done(UnitNo(0), 90)
    assert want(mind, 5, 100) == [unused(2, 100), ask(5)]


def test_a_wrong_guess_under_way_is_returned_on_arrival() -> None:
    mind = Leasing(9)
    hold(mind, 0, 1)
    mind.done(UnitNo(0), 90)
    assert want(mind, 5, 100) == [ask(5)]
    assert mind.handle(ready(2, 1), 110) == [unused(2, 110)]
    assert mind.handle(ready(3, 5), 120) == []
    assert mind.held(UnitNo(5)) == ready(3, 5)


def test_what_arrives_after_a_wait_was_given_up_is_returned() -> None:
    mind = Leasing(9)
    want(mind, 3, 0)
    want(mind, 0, 5)
    assert mind.handle(ready(1, 3), 10) == [unused(1, 10)]
    assert mind.handle(UnitFailed(UnitNo(3), 31, "input/output error"), 11) == []
    mind.handle(ready(2, 0), 12)
    assert mind.held(UnitNo(0)) == ready(2, 0)


def test_an_abandoned_wait_is_over() -> None:
    """Simulator seed 105178: the refusal came when compute did something else."""
    mind = Leasing(9)
    want(mind, 3, 0)
    mind.abandon()
    assert mind.handle(UnitFailed(UnitNo(3), 31, "input/output error"), 5) == []
    assert mind.handle(ready(1, 3), 10) == [unused(1, 10)]


def test_old_news_never_binds_a_slot_again() -> None:
    mind = Leasing(9)
    hold(mind, 0, 1)
    mind.done(UnitNo(0), 90)
    want(mind, 0, 100)
    assert mind.handle(ready(1, 0), 110) == [unused(1, 110), ask(0)]
    assert mind.held(UnitNo(0)) is None
    mind.handle(ready(4, 0), 120)
    assert mind.held(UnitNo(0)) == ready(4, 0)


def test_an_answer_that_was_overtaken_is_asked_for_again() -> None:
    """Simulator seed 506689: ticket 27 came before 26, which was what compute waited for."""
    mind = Leasing(9)
    want(mind, 3, 0)
    assert mind.handle(ready(27, 0), 5) == [unused(27, 5)]
    assert mind.handle(ready(26, 3), 6) == [unused(26, 6), ask(3)]
    assert mind.handle(ready(28, 3), 7) == []
    assert mind.held(UnitNo(3)) == ready(28, 3)


def test_a_second_lease_of_a_held_unit_is_returned_and_the_first_kept() -> None:
    mind = Leasing(9)
    hold(mind, 0, 1)
    assert mind.handle(ready(2, 0), 5) == [unused(2, 5)]
    assert mind.held(UnitNo(0)) == ready(1, 0)


def test_the_guess_wraps_only_if_more_is_forecast() -> None:
    mind = Leasing(2)
    hold(mind, 1, 1)
    mind.done(UnitNo(1), 5)
    assert mind.forecast(False, None) == []
    assert mind.forecast(True, None) == [Send(PassForecast(True))]
    want(mind, 1, 10)
    mind.handle(ready(2, 1), 11)
    assert mind.begin(UnitNo(1), 12) == [ask(0, waiting=False)]
    only = Leasing(1, more=True)
    only.want(UnitNo(0), 0)
    only.handle(ready(1, 0), 0)
    assert only.begin(UnitNo(0), 0) == []


def test_without_a_forecast_the_last_unit_asks_nothing() -> None:
    mind = Leasing(2)
    want(mind, 1, 0)
    mind.handle(ready(1, 1), 0)
    assert mind.begin(UnitNo(1), 0) == []


def test_the_guess_wraps_where_a_pass_should_end_and_goes_on_where_it_does_not() -> None:
    mind = Leasing(5, more=True)
    assert mind.forecast(True, 3) == [Send(PassForecast(True, 3))]
    assert mind.forecast(True, None) == []
    for ticket, (unit, guess) in enumerate([(1, 2), (2, 0), (3, 4), (4, 0)], start=1):
        want(mind, unit, 0)
        mind.handle(ready(ticket, unit), 0)
        assert mind.begin(UnitNo(unit), 0) == [ask(guess, waiting=False)], unit
        mind.done(UnitNo(unit), 0)
    assert mind.forecast(True, 0) == [Send(PassForecast(True, 0))]
    assert mind.forecast(True, 5) == []


def test_nested_units_are_held_together() -> None:
    mind = Leasing(9)
    hold(mind, 0, 1)
    mind.handle(ready(2, 1), 1)
    assert want(mind, 7, 10) == [unused(2, 10), ask(7)]
    mind.handle(ready(3, 7), 20)
    assert mind.begin(UnitNo(7), 21) == [ask(8, waiting=False)]
    assert mind.held(UnitNo(0)) == ready(1, 0)
    assert mind.done(UnitNo(7), 30) == [done(3, 10, 21, 30)]
    assert mind.done(UnitNo(0), 40) == [done(1, 0, 0, 40)]


def test_a_unit_used_within_itself_is_returned_by_the_outermost_use() -> None:
    mind = Leasing(9)
    want(mind, 4, 1)
    mind.handle(ready(1, 4), 2)
    mind.begin(UnitNo(4), 3)
    assert want(mind, 4, 4) == []
    mind.begin(UnitNo(4), 5)
    assert mind.done(UnitNo(4), 6) == []
    assert mind.held(UnitNo(4)) == ready(1, 4)
    assert mind.done(UnitNo(4), 7) == [done(1, 1, 3, 7)]


def test_a_refusal_of_the_awaited_unit_ends_the_wait() -> None:
    mind = Leasing(9)
    want(mind, 4, 0)
    assert mind.handle(UnitFailed(UnitNo(4), 31, "input/output error"), 5) == [
        GiveUp(UnitNo(4), 31, "input/output error")
    ]
    assert mind.handle(UnitFailed(UnitNo(4), 31, "input/output error"), 6) == []
    assert want(mind, 4, 7) == [ask(4)]


def test_a_refusal_for_lack_of_slots_is_doubted_once() -> None:
    """Simulator seed 8900: it was said of an earlier wait, and compute had returned its slots meanwhile."""
    mind = Leasing(9)
    want(mind, 4, 0)
    refusal = UnitFailed(UnitNo(4), BudgetTooSmall.exit_code, "all 1 slots are in use")
    assert mind.handle(refusal, 5) == [ask(4)]
    assert mind.handle(refusal, 6) == [GiveUp(UnitNo(4), 16, "all 1 slots are in use")]
    assert want(mind, 4, 7) == [ask(4)]
    assert mind.handle(refusal, 8) == [ask(4)]


def test_an_exception_before_the_unit_is_used_returns_it_with_the_next_ask() -> None:
    mind = Leasing(9)
    want(mind, 4, 0)
    mind.handle(ready(1, 4), 1)
    assert want(mind, 0, 9) == [done(1, 0, 9, 9, computed=False), ask(0)]


def test_an_exception_in_compute_returns_it_as_not_computed() -> None:
    mind = Leasing(9)
    want(mind, 4, 1)
    mind.handle(ready(1, 4), 2)
    mind.begin(UnitNo(4), 3)
    assert mind.done(UnitNo(4), 8, computed=False) == [done(1, 1, 3, 8, computed=False)]


def test_binding_what_is_not_held_is_a_bug() -> None:
    with pytest.raises(InvariantBroken, match="unit 2 is not held"):
        Leasing(3).begin(UnitNo(2), 0)
    with pytest.raises(InvariantBroken, match="unit 2 is not held"):
        Leasing(3).done(UnitNo(2), 0)


# --- units that compute keeps


def keeping(units: int, kept: tuple[int, ...]) -> Leasing:
    """Compute in its second pass: it has used and keeps the units `kept`, by ticket 10 + unit."""
    mind = Leasing(units, more=True)
    for unit in kept:
        mind.want(UnitNo(unit), 0)
        mind.handle(ready(10 + unit, unit, keep=True), 0)
        mind.begin(UnitNo(unit), 0)
        assert mind.done(UnitNo(unit), 5) == []
    return mind


def test_a_kept_unit_costs_no_message() -> None:
    mind = keeping(3, (0, 1, 2))
    for unit in (0, 1, 2, 0):
        assert mind.keeps(UnitNo(unit))
        assert mind.begin(UnitNo(unit), 10) == []
        assert mind.done(UnitNo(unit), 20) == []


def test_the_next_unit_that_is_not_kept_is_guessed() -> None:
    mind = keeping(5, (1, 2, 4))
    mind.want(UnitNo(0), 10)
    mind.handle(ready(20, 0), 10)
    assert mind.begin(UnitNo(0), 10) == [ask(3, waiting=False)]
    mind.done(UnitNo(0), 30)
    for unit in (1, 2):
        assert mind.begin(UnitNo(unit), 40) == []
        assert mind.done(UnitNo(unit), 50) == []
    mind.handle(ready(21, 3), 55)
    assert want(mind, 3, 60) == []
    assert mind.begin(UnitNo(3), 60) == [ask(0, waiting=False)], "of the next pass"


def test_a_kept_unit_is_no_wrong_guess() -> None:
    mind = keeping(4, (1,))
    assert want(mind, 2, 10) == [], "it is the guess that was made last"
    assert mind.keeps(UnitNo(1))


def test_a_recalled_unit_goes_at_once_or_when_it_is_done() -> None:
    mind = keeping(3, (0, 1))
    assert mind.handle(RecallUnit(Ticket(10), UnitNo(0)), 50) == [done(10, 50, 50, 50)]
    assert not mind.keeps(UnitNo(0))
    assert mind.held(UnitNo(0)) is None
    mind.begin(UnitNo(1), 60)
    assert mind.handle(RecallUnit(Ticket(11), UnitNo(1)), 70) == []
    assert mind.held(UnitNo(1)) is not None
    assert mind.done(UnitNo(1), 80) == [done(11, 60, 60, 80)]
    assert mind.handle(RecallUnit(Ticket(11), UnitNo(1)), 90) == [], "it has been returned"


def test_a_kept_unit_that_was_never_used_is_returned_so() -> None:
    mind = Leasing(3, more=True)
    hold(mind, 0, 1)
    mind.handle(ready(2, 1, keep=True), 10)  # a guess
    assert mind.handle(RecallUnit(Ticket(2), UnitNo(1)), 20) == [unused(2, 20)]
