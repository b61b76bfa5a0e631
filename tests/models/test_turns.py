"""Several requests on one stream of units, in threads that take turns: each answer as it is alone, units read once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family
from test_sharing import DEALS, Board, Near, saved, shared

from hermes_mp.core.cluster.stretches import Stretch, split_of
from hermes_mp.models.sharing import Sharing
from hermes_mp.models.turns import Turns

SEEDS = (1, 2, 3)


def asked(model: Any, seed: int) -> torch.Tensor:
    """A sampled answer whose prompt and length differ by the seed."""
    torch.manual_seed(seed)
    prompt = torch.randint(3, 60, (1, 3 + 2 * seed))
    with torch.no_grad():
        found: torch.Tensor = model.generate(prompt, max_new_tokens=4 + 3 * seed, do_sample=True, pad_token_id=0)
    return found


def at_once(turns: Turns, model: Any, seeds: Sequence[int] = SEEDS) -> dict[int, torch.Tensor]:
    """Their answers, all in flight from the beginning."""
    found: dict[int, torch.Tensor] = {}

    def work(seed: int) -> None:
        found[seed] = asked(model, seed)

    for number, seed in enumerate(seeds):
        turns.start(number, lambda seed=seed: work(seed))  # type: ignore[misc]
    while len(turns):
        for one in turns.advance():
            if one.error is not None:
                raise one.error
    return found


def on(directory: Path, deal: Sequence[Stretch] | None, room: int | None = None) -> tuple[Board, Near | None, Turns]:
    """A head that shares its layers by `deal`, or has them all, and three requests' turns."""
    near: Near | None = None
    sharing: Sharing | None = None
    if deal is None:
        head = Board(directory, room)
    else:
        head, near, sharing = shared(directory, deal, room)
    turns = Turns(head.model._hermes_binder, sharing, 3, lambda layer: head.units_of_layer(layer)[0])
    return head, near, turns


@pytest.mark.parametrize("room", [None, 24 << 10])
@pytest.mark.parametrize("deal", [None, *DEALS])
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "qwen3"])
def test_each_answer_as_alone(name: str, deal: str | None, room: int | None, tmp_path: Path) -> None:
    plain = saved(tmp_path, family(name))
    head, _, turns = on(tmp_path, None if deal is None else split_of(DEALS[deal]), room)
    for _ in range(2):  # the second time with what the first has left
        found = at_once(turns, head.model)
        for seed in SEEDS:
            assert torch.equal(found[seed], asked(plain, seed)), seed
    assert not head.supply.held


@pytest.mark.parametrize("deal", list(DEALS))
def test_boards_that_keep_their_layers_work_at_the_same_time(deal: str, tmp_path: Path) -> None:
    """Each request is sent to them by itself, and they answer late."""
    plain = saved(tmp_path, family("llama-tied"))
    head, near, turns = on(tmp_path, split_of(DEALS[deal]))
    assert near is not None
    near.all_kept = True
    for _ in range(2):
        found = at_once(turns, head.model)
        assert all(torch.equal(found[seed], asked(plain, seed)) for seed in SEEDS)
    assert {len(ask.parts) for ask in near.asks} == {1}
    assert any(ask.more for ask in near.asks)


@pytest.mark.parametrize("deal", [None, "rounds"])
def test_units_are_read_once_for_all(deal: str | None, tmp_path: Path) -> None:
    """As many passes as the longest answer takes, and each unit once in each of them: also on the other boards."""
    saved(tmp_path, family("llama-tied"))
    head, near, turns = on(tmp_path, None if deal is None else split_of(DEALS[deal]))
    found = at_once(turns, head.model)
    passes = max(answer.shape[1] - (3 + 2 * seed) for seed, answer in found.items())
    boards = [head, *(near.boards.values() if near is not None else ())]
    for board in boards:
        read = board.supply.acquired
        assert read
        assert {read.count(unit) for unit in read} == {passes}
    began = [one for one in head.supply.passes if one != "complete"]
    assert len(began) == passes
    assert began[0] == "3x9"  # rows of all, positions of the longest
    if near is not None:
        assert {len(ask.parts) for ask in near.asks} <= {1, 2, 3}


def test_residents_need_no_turns(tmp_path: Path) -> None:
    plain = saved(tmp_path, family("gpt2"))
    head, _, turns = on(tmp_path, None)
    head.supply.residents = frozenset(range(0, len(head.division.list.units), 2))
    found = at_once(turns, head.model)
    assert all(torch.equal(found[seed], asked(plain, seed)) for seed in SEEDS)


def test_who_comes_later_joins_the_next_pass(tmp_path: Path) -> None:
    plain = saved(tmp_path, family("gpt2"))
    head, _, turns = on(tmp_path, None)
    found: dict[int, torch.Tensor] = {}
    for seed in SEEDS:
        turns.start(seed - 1, lambda seed=seed: found.update({seed: asked(head.model, seed)}))  # type: ignore[misc]
        turns.advance()
        turns.advance()
    while len(turns):
        turns.advance()
    assert all(torch.equal(found[seed], asked(plain, seed)) for seed in SEEDS)
    assert any(one.startswith("2x") for one in head.supply.passes)


@pytest.mark.parametrize("deal", [None, "rounds"])
def test_one_that_fails_does_not_disturb_the_others(deal: str | None, tmp_path: Path) -> None:
    plain = saved(tmp_path, family("gpt2"))
    head, _, turns = on(tmp_path, None if deal is None else split_of(DEALS[deal]))
    found: dict[int, torch.Tensor] = {}
    layer = head.chain.layers[3]
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise ZeroDivisionError

    layer.register_forward_pre_hook(fail)
    for number, seed in enumerate(SEEDS):
        turns.start(number, lambda seed=seed: found.update({seed: asked(head.model, seed)}))  # type: ignore[misc]
    ended = {}
    while len(turns):
        ended |= {one.member: one.error for one in turns.advance()}
    failed = [member for member, error in ended.items() if error is not None]
    assert len(failed) == 1
    assert isinstance(ended[failed[0]], ZeroDivisionError)
    assert sorted(found) == [seed for seed in SEEDS if seed - 1 != failed[0]]
    assert all(torch.equal(answer, asked(plain, seed)) for seed, answer in found.items())
    assert not head.supply.held


@pytest.mark.parametrize("after", [0, 1, 4])
def test_broken_off_and_asked_again(after: int, tmp_path: Path) -> None:
    plain = saved(tmp_path, family("gpt2"))
    head, _, turns = on(tmp_path, split_of(DEALS["rounds"]))
    for number, seed in enumerate(SEEDS):
        turns.start(number, lambda seed=seed: asked(head.model, seed))  # type: ignore[misc]
    for _ in range(after):
        turns.advance()
    turns.break_off(KeyError("a board"))
    assert not len(turns)
    assert not head.supply.held
    found = at_once(turns, head.model)
    assert all(torch.equal(found[seed], asked(plain, seed)) for seed in SEEDS)


def test_a_board_that_is_lost_ends_all_that_asked_it(tmp_path: Path) -> None:
    saved(tmp_path, family("gpt2"))
    head, near, turns = on(tmp_path, split_of(DEALS["rounds"]))
    assert near is not None
    near.run = lambda board, hops: 1 / 0  # type: ignore[assignment,method-assign]
    for number, seed in enumerate(SEEDS):
        turns.start(number, lambda seed=seed: asked(head.model, seed))  # type: ignore[misc]
    ended = turns.advance()
    assert [type(one.error) for one in ended] == [ZeroDivisionError] * 3


def test_a_supply_that_fails_tells_each(tmp_path: Path) -> None:
    saved(tmp_path, family("gpt2"))
    head, _, turns = on(tmp_path, None)

    def refuse(rows: int, tokens: int) -> None:
        raise ValueError("no more passes")

    head.supply.pass_started = refuse  # type: ignore[method-assign]
    for number, seed in enumerate(SEEDS):
        turns.start(number, lambda seed=seed: asked(head.model, seed))  # type: ignore[misc]
    ended = turns.advance()
    assert [str(one.error) for one in ended] == ["no more passes"] * 3
