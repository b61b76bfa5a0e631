"""A prompt in chunks: the bits of transformers' own chunked prefill, in one pass over the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import family
from test_sharing import DEALS, saved
from test_turns import on

from hermes_mp.core.cluster.stretches import split_of
from hermes_mp.errors import WrongInput

SIZE = 5


def asked(model: Any, seed: int, size: int | None = SIZE) -> torch.Tensor:
    """A sampled answer to a prompt of several chunks, the last one ragged, after the logits of its tokens."""
    torch.manual_seed(seed)
    prompt = torch.randint(3, 60, (1, 17 + seed))
    with torch.no_grad():
        found: torch.Tensor = model.generate(
            prompt, max_new_tokens=6, do_sample=True, pad_token_id=0, prefill_chunk_size=size,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return torch.cat([torch.stack(found.logits).flatten(), found.sequences.flatten()])  # type: ignore[attr-defined]


@pytest.mark.parametrize("room", [None, 24 << 10])
@pytest.mark.parametrize("deal", [None, *DEALS])
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "mistral"])
def test_the_bits_of_transformers_own_chunks(name: str, deal: str | None, room: int | None, tmp_path: Path) -> None:
    plain = saved(tmp_path, family(name))
    head, near, turns = on(tmp_path, None if deal is None else split_of(DEALS[deal]), room)
    found: dict[int, torch.Tensor] = {}
    for seed in (1, 2):
        turns.start(seed, lambda seed=seed: found.update({seed: asked(head.model, seed)}))  # type: ignore[misc]
    while len(turns):
        for one in turns.advance():
            assert one.error is None, one.error
    for seed in (1, 2):
        assert torch.equal(found[seed], asked(plain, seed))
    assert not head.supply.held
    began = [one for one in head.supply.passes if one != "complete"]
    assert began[0] == "8x5"  # of two prompts four chunks each, in one pass
    assert len(began) == 6
    if room is None:
        for board in (head, *(near.boards.values() if near is not None else ())):
            assert {board.supply.acquired.count(unit) for unit in board.supply.acquired} == {6}


def test_a_short_prompt_is_none_of_its_business(tmp_path: Path) -> None:
    plain = saved(tmp_path, family("gpt2"))
    head, _, turns = on(tmp_path, None)
    found: list[torch.Tensor] = []
    turns.start(0, lambda: found.append(asked(head.model, 1, 99)))
    while len(turns):
        turns.advance()
    assert torch.equal(found[0], asked(plain, 1, None))


@pytest.mark.parametrize("deal", [None, "rounds"])
def test_a_chunk_that_fails_ends_its_request_only(deal: str | None, tmp_path: Path) -> None:
    plain = saved(tmp_path, family("gpt2"))
    head, _, turns = on(tmp_path, None if deal is None else split_of(DEALS[deal]))
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ZeroDivisionError

    head.chain.layers[3].register_forward_pre_hook(fail)
    found: dict[int, torch.Tensor] = {}
    for seed in (1, 2):
        turns.start(seed, lambda seed=seed: found.update({seed: asked(head.model, seed)}))  # type: ignore[misc]
    ended = {}
    while len(turns):
        ended |= {one.member: one.error for one in turns.advance()}
    assert isinstance(ended[1], ZeroDivisionError)
    assert not head.supply.held
    assert torch.equal(found[2], asked(plain, 2))


@pytest.mark.parametrize("deal", ["rounds", "contiguous"])
def test_broken_off_among_chunks(deal: str, tmp_path: Path) -> None:
    plain = saved(tmp_path, family("gpt2"))
    head, near, turns = on(tmp_path, split_of(DEALS[deal]))
    assert near is not None
    near.run, run = lambda *_: 1 / 0, near.run  # type: ignore[assignment,method-assign]
    found: list[torch.Tensor] = []
    turns.start(0, lambda: found.append(asked(head.model, 1)))
    (ended,) = turns.advance()
    assert isinstance(ended.error, ZeroDivisionError)
    near.run = run  # type: ignore[method-assign]
    turns.start(0, lambda: found.append(asked(head.model, 1)))
    turns.break_off(KeyError("a board"))
    turns.start(0, lambda: found.append(asked(head.model, 1)))
    while len(turns):
        turns.advance()
    assert torch.equal(found[0], asked(plain, 1))


@pytest.mark.parametrize("deal", [None, "rounds"])
def test_no_chunk_overtakes_another_on_units_that_stay_from_now_on(deal: str | None, tmp_path: Path) -> None:
    """What stays is not asked for: a later chunk found the next unit there, and an earlier one waited for it."""
    plain = saved(tmp_path, family("gpt2"))
    head, _, turns = on(tmp_path, None if deal is None else split_of(DEALS[deal]))
    seen: set[int] = set()

    def keeps(unit: int) -> bool:
        """Each unit stays from the second look on."""
        stays = unit in seen
        seen.add(unit)
        return stays

    head.supply.keeps = keeps  # type: ignore[method-assign]
    found: list[torch.Tensor] = []
    for seed in (1, 2, 3):
        turns.start(0, lambda seed=seed: found.append(asked(head.model, seed)))  # type: ignore[misc]
        while len(turns):
            for one in turns.advance():
                assert one.error is None, one.error
    assert all(torch.equal(answer, asked(plain, seed)) for seed, answer in zip((1, 2, 3), found, strict=True))


def test_many_chunks_are_made_larger_ones(tmp_path: Path) -> None:
    saved(tmp_path, family("gpt2"))
    head, _, turns = on(tmp_path, None)
    turns.start(0, lambda: head.model.generate(torch.ones(1, 65, dtype=torch.long), max_new_tokens=1, pad_token_id=0,
                                               prefill_chunk_size=1))  # fmt: skip
    while len(turns):
        for one in turns.advance():
            assert one.error is None, one.error
    began = [one for one in head.supply.passes if one != "complete"]
    assert began == ["22x3"]  # 65 tokens in 22 chunks of 3


def test_a_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, family("gpt2"))
    head, _, turns = on(tmp_path, None)
    head.model.generation_config.use_cache = False
    turns.start(0, lambda: asked(head.model, 1))
    (ended,) = turns.advance()
    assert isinstance(ended.error, WrongInput)
