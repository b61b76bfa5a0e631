"""What boards tell of themselves, and what is learned of their layers: round trips, nonsense, corrections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from cluster_cases import GIGABIT, MIB, decoder
from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.core.budget import slot_cost
from hermes_mp.core.cluster import all_deals
from hermes_mp.core.cluster.facts import (
    MEASURED,
    Told,
    board_facts,
    differences,
    make_cluster,
    model_from_json,
    model_to_json,
    read_told,
)
from hermes_mp.core.cluster.layer_costs import ENOUGH, LayerCosts, Learning
from hermes_mp.core.cluster.planner import plan, plan_lending
from hermes_mp.core.cluster.report import BoardPart, board_lines
from hermes_mp.core.cluster.search import Search
from hermes_mp.errors import BadMessage

TOLD = Told(400 * MIB, 200 * MIB, 10 * MIB, 2, 45e6, 0.01, 0.001, 0.02, 5 * MIB, MEASURED)
COSTS = LayerCosts(1e-10, 1e-11)


def test_what_is_told_comes_back() -> None:
    assert read_told("pi2", TOLD.to_json()) == TOLD
    model = decoder(5, 7 * MIB)
    assert model_from_json(model_to_json(model)) == model
    assert LayerCosts.from_json(COSTS.to_json()) == COSTS


@pytest.mark.parametrize("name", ["budget_nbytes", "base_nbytes", "reserve_nbytes", "loaders", "layer_s"])
@pytest.mark.parametrize("value", [-1, "12", [], 1e300, float("nan"), True])
def test_nonsense_is_named(name: str, value: Any) -> None:
    with pytest.raises(BadMessage, match=f"board pi2 says of itself that {name} is"):
        read_told("pi2", TOLD.to_json() | {name: value})


@given(st.dictionaries(st.sampled_from(list(TOLD.to_json())), st.none() | st.integers() | st.floats() | st.text()))
def test_a_stranger_may_say_what_he_likes(facts: dict[str, Any]) -> None:
    try:
        told = read_told("pi2", TOLD.to_json() | facts)
    except BadMessage:
        return
    assert told.base_nbytes >= 0
    assert told.loaders >= 1


@pytest.mark.parametrize("document", [None, {}, [1], COSTS.to_json() | {"token_factor": 1e9}])
def test_a_damaged_cache_is_no_costs(document: Any) -> None:
    with pytest.raises(BadMessage):
        LayerCosts.from_json(document)


def test_a_board_without_a_limit_has_one_slot_more_than_loaders() -> None:
    model = decoder(8)
    facts = board_facts("pi2", Told(None, MIB, MIB, 2, 45e6, 0.01, 0.0), model)
    assert facts.room_nbytes // slot_cost(model.slot_nbytes, 1) == 3


def test_a_plan_of_what_was_told_lends_no_disk() -> None:
    told = dict.fromkeys(("head", "pi2", "pi3"), TOLD)
    found = plan(make_cluster(decoder(48), "head", told, {"pi2": GIGABIT, "pi3": GIGABIT}))
    assert not found.lendings
    assert set(found.stages) == {"head", "pi2", "pi3"}
    for one in found.boards:
        assert one.peak_nbytes <= 395 * MIB  # the idle part of what is set aside is not taken


def test_who_has_no_room_for_a_layer_lends_to_a_head_with_a_slower_disk() -> None:
    small = replace(TOLD, budget_nbytes=120 * MIB, disk_nbytes_per_s=100e6)
    told = {"head": TOLD, "nas": small, "shelf": replace(small, disk_nbytes_per_s=None)}
    made = make_cluster(decoder(48), "head", told, {"nas": GIGABIT, "shelf": GIGABIT})
    found = plan_lending(made)
    assert [(one.lender, one.receiver) for one in found.lendings] == [("nas", "head")]
    assert found.alone_s is not None
    assert found.alone_s / found.seconds > 2.5
    assert set(found.left_out) == {"shelf"}


def test_of_many_small_boards_not_all_sets_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are 2^30 of them."""
    tried = 0

    def counted(search: Search) -> Iterator[Any]:
        nonlocal tried
        for one in sets(search):
            tried += 1
            assert tried < 10_000
            yield one

    sets = all_deals._sets
    monkeypatch.setattr(all_deals, "_sets", counted)
    names = [f"pi{number}" for number in range(30)]
    told = {"head": replace(TOLD, budget_nbytes=290 * MIB)}
    told |= dict.fromkeys(names, replace(TOLD, budget_nbytes=120 * MIB))
    found = plan_lending(make_cluster(decoder(8), "head", told, dict.fromkeys(names, GIGABIT)))
    assert found.lendings
    assert tried


def test_it_does_not_lend_to_a_head_with_a_much_faster_disk() -> None:
    small = replace(TOLD, budget_nbytes=120 * MIB)
    fast = replace(TOLD, disk_nbytes_per_s=1e9)
    made = make_cluster(decoder(48), "head", {"head": fast, "nas": small}, {"nas": GIGABIT})
    assert not plan_lending(made).lendings


def test_a_board_that_computes_slowly_lends_its_disk_instead() -> None:
    slow = replace(TOLD, layer_s=3.0, disk_nbytes_per_s=100e6)
    made = make_cluster(decoder(48), "head", {"head": TOLD, "old": slow}, {"old": GIGABIT})
    assert [(one.lender, one.receiver) for one in plan_lending(made).lendings] == [("old", "head")]
    assert not plan(made).lendings


def test_boards_that_are_alike_differ_in_nothing() -> None:
    here = {"versions": ["torch-2.8.0.dist-info", "transformers-5.1.0.dist-info"], "processor": "a", "threads": 4}
    assert differences(here, dict(here)) == []
    other = here | {"versions": ["torch-2.7.1.dist-info", "transformers-5.1.0.dist-info"], "threads": 2}
    assert differences(here, other) == ["torch 2.7.1 instead of 2.8.0", "2 threads instead of 4"]
    assert differences(here, {"versions": 5, "processor": [], "threads": {}})


def test_a_run_corrects_the_estimate() -> None:
    learning = Learning(COSTS)
    layer = COSTS.layer_s(MIB)
    for number in range(ENOUGH):
        assert learning.learned() == COSTS, number
        learning.passed(1, 4 * layer * 2.5, 4, MIB)
    learned = learning.learned()
    assert learned.measured
    assert learned.layer_s(MIB) == pytest.approx(2.5 * layer)


def test_what_was_learned_before_is_not_corrected_twice() -> None:
    first = Learning(COSTS)
    for _ in range(ENOUGH):
        first.passed(1, 4 * COSTS.layer_s(MIB) * 3, 4, MIB)
    second = Learning(first.learned())
    for _ in range(ENOUGH):
        second.passed(1, 4 * COSTS.layer_s(MIB) * 3, 4, MIB)
    assert second.learned() == first.learned()


def test_the_lines_of_a_report() -> None:
    lines = board_lines([
        BoardPart("head", (0, 1)),
        BoardPart("pi2", (2, 3, 5), 0.05, away_s=0.06, stalled_s=0.01, link_s=0.002, slots=3, residents=1, units=3,
                  read_nbytes_per_token=2 * MIB, peak_nbytes=300 * MIB, budget_nbytes=400 * MIB,
                  differs=("4 threads instead of 2",)),
        BoardPart("pi3", left_out="its disk is slow"),
    ])  # fmt: skip
    assert lines == [
        "boards    head: layers 0-1",
        "          pi2: layers 2-3, 5; 60 ms of a token (50 ms forecast); 10 ms of it waiting for weights, 2 ms on the "
        "way; 3 slots, 1 of 3 units resident; reads 2 MiB a token; 300 MiB at most of 400 MiB",
        "          pi3: left out: its disk is slow",
        "          same model, bits not promised: pi2 has 4 threads instead of 2",
    ]
