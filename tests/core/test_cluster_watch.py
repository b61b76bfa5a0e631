"""Boards that do not do what was forecast: who is named, what for, and what is then planned with."""

from __future__ import annotations

import pytest
from cluster_cases import board, cluster, decoder

from hermes_mp.core.cluster.cluster import Cluster, ClusterPlan
from hermes_mp.core.cluster.planner import plan
from hermes_mp.core.cluster.watch import (
    DISK,
    LINK,
    PASSES,
    PROCESSOR,
    Slow,
    Turn,
    Watch,
    corrected,
    expected,
    when_to_change,
)

FORECAST = Turn(2, 0.1, 0.09, 0.01)
NOW, NEXT, NEVER = "now", "next", "never"


def found(turn: Turn, passes: int = PASSES) -> Slow | None:
    watch = Watch({"pi2": FORECAST})
    for _ in range(passes - 1):
        assert watch.look({"pi2": turn}, 0.5) is None
    return watch.look({"pi2": turn}, 0.5)


@pytest.mark.parametrize(
    ("turn", "what"),
    [
        (Turn(2, 0.30, 0.29, 0.21), DISK),
        (Turn(2, 0.30, 0.29, 0.01), PROCESSOR),
        (Turn(2, 0.30, 0.09, 0.01), LINK),
    ],
)
def test_a_slow_board_is_named_with_what_it_waits_on(turn: Turn, what: str) -> None:
    slow = found(turn)
    assert slow is not None
    assert slow.what == what
    assert slow.text().startswith('board "pi2" takes 300 ms of a token instead of 100 ms, mostly for ')


def test_a_board_a_little_slower_than_forecast_is_none_of_ours() -> None:
    assert found(Turn(2, 0.19, 0.18, 0.02)) is None


def test_nor_is_one_that_was_disturbed_a_few_times() -> None:
    assert found(Turn(2, 0.3, 0.29, 0.2), PASSES - 1) is None
    watch = Watch({"pi2": FORECAST})
    for number in range(10 * PASSES):
        turn = FORECAST if number % PASSES == 0 else Turn(2, 0.9, 0.89, 0.8)
        assert watch.look({"pi2": turn}, 0.5) is None


def test_it_is_named_once() -> None:
    watch = Watch({"pi2": FORECAST})
    named = [watch.look({"pi2": Turn(2, 0.3, 0.29, 0.2)}, 0.5) for _ in range(5 * PASSES)]
    assert sum(one is not None for one in named) == 1


@pytest.fixture
def planned() -> tuple[Cluster, ClusterPlan]:
    one = cluster(decoder(12), [board(name, 3) for name in ("head", "pi2", "pi3")])
    return one, plan(one)


def slow_of(one: Cluster, by: ClusterPlan, what: str, pass_s: float) -> Slow:
    forecast = expected(one, by)["pi2"]
    hops, away, took, stalled = forecast.hops, forecast.away_s, forecast.took_s, forecast.stalled_s
    turn = {
        DISK: Turn(hops, away + 1, took + 1, stalled + 1),
        PROCESSOR: Turn(hops, away + 5, took + 5, stalled),
        LINK: Turn(hops, away + 1, took, stalled),
    }[what]
    return Slow("pi2", what, turn.away_s, away, turn, pass_s)


@pytest.mark.parametrize("what", [DISK, PROCESSOR, LINK])
def test_with_the_figure_as_measured_the_board_is_given_less(planned: tuple[Cluster, ClusterPlan], what: str) -> None:
    one, by = planned
    worse = corrected(one, by, slow_of(one, by, what, by.seconds + 5))
    before, after = (
        sum(s.last - s.first for s in deal.stretches if s.board == "pi2") for deal in (by, plan(worse))
    )  # fmt: skip
    assert after < before
    assert [facts for facts in worse.boards if facts.name != "pi2"] == [b for b in one.boards if b.name != "pi2"]


def test_a_disk_found_slow_is_never_planned_faster(planned: tuple[Cluster, ClusterPlan]) -> None:
    one, by = planned
    worse = corrected(one, by, slow_of(one, by, DISK, 0.001))
    before, after = (facts.boards[facts.number("pi2")].disk_nbytes_per_s for facts in (one, worse))
    assert before is not None
    assert after is not None
    assert after <= before


@pytest.mark.parametrize(
    ("now_s", "then_s", "first_s", "made", "when"),
    [
        (1.0, 0.95, 1.0, 8, NEVER),  # no more than forecasts are off by
        (1.0, 0.5, 1.0, 8, NOW),
        (1.0, 0.5, 1.0, 80, NEXT),  # 40 s to make them once more
        (1.0, 0.5, 30.0, 8, NEXT),  # a long prompt
        (9.0, 0.5, 30.0, 80, NOW),
    ],
)
def test_what_was_made_is_made_again_where_a_few_tokens_make_up_for_it(
    now_s: float, then_s: float, first_s: float, made: int, when: str
) -> None:
    assert when_to_change(now_s, then_s, first_s, made) == when
