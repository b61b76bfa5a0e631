"""Layers shared between boards, without processes: every board has a model, units and caches of its own.

What crosses does so as it would between machines: as texts, specs and bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import assert_same
from families import FAMILIES, LAYERS, Family, family
from file_supply import FileSupply

from hermes_mp.core.bundle import place
from hermes_mp.core.cluster.stretches import Stretch, of_board, split_of
from hermes_mp.errors import BadMessage, CannotBeCut
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.host.codec import pack, unpack
from hermes_mp.messages import LayerCalls, RunLayers
from hermes_mp.models.binding import byte_view
from hermes_mp.models.chain import Chain, find_chain
from hermes_mp.models.layer_calls import spec_of
from hermes_mp.models.sharing import Hop, Sharing, share
from hermes_mp.models.skeleton import build_skeleton
from hermes_mp.models.stage import Stage
from hermes_mp.models.streamed import stream
from hermes_mp.models.trace import trace_forward
from hermes_mp.models.units import divide, units_of

DEALS = {
    "contiguous": [("here", 3), ("b", 3)],
    "uneven": [("here", 1), ("b", 4), ("here", 1)],
    "rounds": [("here", 1), ("b", 1), ("c", 1), ("here", 1), ("b", 1), ("c", 1)],
    "none here": [("b", 2), ("c", 2), ("d", 2)],
}


class Board:
    """A model on units of its own, and which of them it was asked for."""

    def __init__(self, directory: Path, room: int | None = None) -> None:
        skeleton = build_skeleton(directory, find_checkpoint(directory))
        trace = trace_forward(skeleton.model, 1, 16)
        self.chain: Chain = find_chain(skeleton, trace)
        self.division = divide(skeleton, trace, room, layers=self.chain.layers)
        self.supply = FileSupply(self.division)
        self.model: Any = stream(skeleton, self.division, self.supply, lambda call: None, lambda *call: None)
        self.asked: set[int] = set()
        acquire = self.supply.acquire
        self.supply.acquire = lambda unit: self.asked.add(unit) or acquire(unit)  # type: ignore[method-assign,func-returns-value]

    def units_of(self, layers: Sequence[int]) -> set[int]:
        return {unit for layer in layers for unit in self.units_of_layer(layer)}

    def units_of_layer(self, layer: int) -> Sequence[int]:
        return units_of(self.division, self.chain.layers[layer])


class Near:
    """Other boards of this process."""

    def __init__(self, directory: Path, deal: Sequence[Stretch], room: int | None = None) -> None:
        self.boards = {name: Board(directory, room) for name in {one.board for one in deal} - {"here"}}
        self.stages = {
            name: Stage(board.model, board.chain, board.units_of_layer, lambda: 0)
            for name, board in self.boards.items()
        }
        self.asks: list[RunLayers] = []
        self.all_kept = False
        self.apart: list[tuple[str, torch.Tensor]] = []
        self.assign(deal)

    def assign(self, deal: Sequence[Stretch]) -> None:
        for name, stage in self.stages.items():
            stage.assign(of_board(deal, name))

    def look(self) -> None: ...

    def keeps_all(self, board: str) -> bool:
        return self.all_kept

    def send(self, board: str, hop: Hop, more: bool) -> None:
        self.apart.append((board, *self.run(board, [hop], more)))

    def arrived(self, wait: bool) -> list[tuple[str, torch.Tensor]]:
        """Late, as from afar: of several boards the last one first."""
        found = self.apart[-1:] if wait else []
        self.apart = self.apart[: len(self.apart) - len(found)]
        return found

    def run(self, board: str, hops: Sequence[Hop], more: bool = False) -> list[torch.Tensor]:
        bundle = [one for hop in hops for one in (*hop.tensors, hop.states)]
        parts = tuple(
            LayerCalls(
                hop.member, hop.chunk, hop.past, hop.rows, hop.calls, tuple(map(spec_of, hop.tensors)),
                spec_of(hop.states),
            )
            for hop in hops
        )  # fmt: skip
        ask = RunLayers(1, hops[0].number, hops[0].index, hops[0].last, more, parts)
        self.asks.append(ask)
        heard = unpack(pack(ask), RunLayers)
        placed = place(heard.bundle)
        memory = memoryview(bytearray(placed[-1].end))
        for one, tensor in zip(placed, bundle, strict=True):
            memory[one.at : one.end] = byte_view(tensor.contiguous())
        given, _, _ = self.stages[board].run(heard, placed, memory)
        given = [one.clone() for one in given]
        memory[:] = bytes(len(memory))  # nothing may refer to it any more
        return given


def shared(directory: Path, deal: Sequence[Stretch], room: int | None = None) -> tuple[Board, Near, Sharing]:
    near = Near(directory, deal, room)
    head = Board(directory, room)
    sharing = share(head.model, head.chain, near, "here")
    sharing.assign(deal)
    return head, near, sharing


def saved(tmp_path: Path, one: Family) -> Any:
    one.save(tmp_path)
    return one.load_plain(tmp_path)


@pytest.mark.parametrize("one", FAMILIES, ids=lambda one: one.name)
def test_every_family_in_rounds(one: Family, tmp_path: Path) -> None:
    plain = saved(tmp_path, one)
    head, near, _ = shared(tmp_path, split_of(DEALS["rounds"]))
    with torch.no_grad():
        for rows in (1, 2):
            inputs = one.inputs(rows=rows)
            assert_same(torch.as_tensor(head.model(**inputs)[0]), plain(**inputs)[0])
        if one.generates:
            prompt = one.inputs(rows=1)
            new = {"max_new_tokens": 12, "do_sample": False}
            assert torch.equal(head.model.generate(**prompt, **new), plain.generate(**prompt, **new))
    assert not head.asked & head.units_of([1, 2, 4, 5])
    assert near.boards["b"].asked == near.boards["b"].units_of([1, 4])


@pytest.mark.parametrize("room", [None, 24 << 10])
@pytest.mark.parametrize("deal", DEALS)
@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama-tied", "qwen3", "bert-classify", "vit"])
def test_every_deal(name: str, deal: str, room: int | None, tmp_path: Path) -> None:
    one = family(name)
    plain = saved(tmp_path, one)
    head, *_ = shared(tmp_path, split_of(DEALS[deal]), room)
    with torch.no_grad():
        inputs = one.inputs()
        assert_same(torch.as_tensor(head.model(**inputs)[0]), plain(**inputs)[0])
        if one.generates:  # sampled, twice: the second request begins with empty caches
            for seed in (1, 2):
                answers = []
                for model in (head.model, plain):
                    torch.manual_seed(seed)
                    answers.append(model.generate(**one.inputs(rows=1), max_new_tokens=9, do_sample=True))
                assert torch.equal(*answers)


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_beams_and_padding(name: str, tmp_path: Path) -> None:
    """Beams change places from pass to pass; a padded batch brings a mask along."""
    one = family(name)
    plain = saved(tmp_path, one)
    head, near, _ = shared(tmp_path, split_of(DEALS["rounds"]))
    inputs = one.inputs(rows=2)
    inputs["attention_mask"][0, :4] = 0
    new = {"max_new_tokens": 20, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        assert torch.equal(head.model.generate(**inputs, **new), plain.generate(**inputs, **new))
    assert any(part.rows for ask in near.asks for part in ask.parts)


def test_a_drafted_answer_crops_caches(tmp_path: Path) -> None:
    one = family("llama-tied")
    plain = saved(tmp_path, one)
    draft = tmp_path / "draft"
    one.save(draft)
    assistant = one.load_plain(draft)
    with torch.no_grad():
        for weight in assistant.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    head, near, _ = shared(tmp_path, split_of(DEALS["uneven"]))
    new = {"max_new_tokens": 16, "do_sample": False}
    prompt = one.inputs(rows=1)
    with torch.no_grad():
        answer = head.model.generate(**prompt, **new, assistant_model=assistant)
        assert torch.equal(answer, plain.generate(**prompt, **new, assistant_model=assistant))
    lengths = [(part.past, part.states.shape[1]) for ask in near.asks for part in ask.parts]
    assert any(0 < after[0] < sum(before) for before, after in pairwise(lengths))


def test_another_deal_in_the_middle(tmp_path: Path) -> None:
    """Between two requests; and a pass that is cut short leaves nothing."""
    one = family("gpt2")
    plain = saved(tmp_path, one)
    head, near, sharing = shared(tmp_path, split_of(DEALS["rounds"]))
    new = {"max_new_tokens": 5, "do_sample": False}
    prompt = one.inputs(rows=1)
    wanted = plain.generate(**prompt, **new)
    with torch.no_grad():
        assert torch.equal(head.model.generate(**prompt, **new), wanted)
        near.run, run = lambda board, hops: run(board, hops) if board != "c" else 1 / 0, near.run  # type: ignore[assignment]
        with pytest.raises(ZeroDivisionError):
            head.model.generate(**prompt, **new)
        near.run = run  # type: ignore[method-assign]
        for deal in (split_of([("b", 3), ("here", 1), ("c", 2)]), split_of([("here", LAYERS)])):
            near.assign(deal)
            sharing.assign(deal)
            assert torch.equal(head.model.generate(**prompt, **new), wanted)


def test_only_what_is_new_crosses(tmp_path: Path) -> None:
    """Positions and masks cross once per pass and board; hidden states with every stretch."""
    one = family("llama-tied")
    saved(tmp_path, one)
    head, near, _ = shared(tmp_path, split_of(DEALS["rounds"]))
    with torch.no_grad():
        head.model(**one.inputs(rows=1))
    assert [bool(part.tensors) for ask in near.asks for part in ask.parts] == [True, True, False, False]
    assert [ask.last for ask in near.asks] == [False, False, True, True]


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    one = family("gpt2")
    saved(tmp_path, one)
    head, *_ = shared(tmp_path, split_of(DEALS["rounds"]))
    with torch.no_grad(), pytest.raises(CannotBeCut, match="StaticCache cannot be shared between boards"):
        head.model.generate(**one.inputs(rows=1), max_new_tokens=3, cache_implementation="static")


def changed(ask: RunLayers, changes: dict[str, Any]) -> RunLayers:
    """With other values, of its one part where they are of that."""
    (part,) = ask.parts
    own = {name: value for name, value in changes.items() if hasattr(part, name)}
    rest = {name: value for name, value in changes.items() if name not in own}
    return replace(ask, parts=(replace(part, **own),), **rest)


def test_a_stage_refuses_what_does_not_go_on(tmp_path: Path) -> None:
    one = family("gpt2")
    saved(tmp_path, one)
    deal = split_of(DEALS["rounds"])
    head, near, _ = shared(tmp_path, deal)
    with torch.no_grad():
        head.model(**one.inputs(rows=1))
    ask = next(ask for ask in near.asks if ask.index == 0)
    placed = place(ask.bundle)
    memory = memoryview(bytearray(placed[-1].end))
    stage = near.stages["b"]
    for changes, words in (
        ({"number": 9, "past": 50}, "goes on behind 50 positions, the caches hold"),
        ({"number": 10, "index": 1}, "stretch 1 of pass 10 was asked for, 0 comes next"),
        ({"number": 11, "calls": "{"}, "is no JSON of ours"),
        ({"number": 12, "calls": "[[[[], {}]], [0, 0]]"}, "2 calls for 1 layers"),
        ({"number": 13, "calls": '[[[[{"tensor": 99}], {}]], [0]]'}, "something that none of ours writes"),
    ):
        with pytest.raises(BadMessage, match=words):
            stage.run(changed(ask, changes), placed, memory)
    with pytest.raises(BadMessage, match="layers 2 to 9 of 6"):
        stage.assign([*of_board(deal, "b")[:1], type(of_board(deal, "b")[0])(2, 9)])
