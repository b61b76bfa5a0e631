"""Binding gives back what it takes, and a model computes as plain transformers do; without a process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_same
from families import FAMILIES, Family, family
from file_supply import ROOMS, divided, streamed

Folder = Callable[[str], Path]


@pytest.mark.parametrize("room", [None, *ROOMS])
@pytest.mark.parametrize("one", FAMILIES, ids=lambda one: one.name)
def test_no_weight_is_used_outside_its_lease(one: Family, room: int | None, tmp_path: Path) -> None:
    """A slot is spoilt as soon as it is given back, so what still pointed into it would answer NaN."""
    one.save(tmp_path)
    model, supply = streamed(tmp_path, room)
    plain = one.load_plain(tmp_path)
    with torch.no_grad():
        for _ in range(2):
            inputs = one.inputs()
            assert_same(model(**inputs), plain(**inputs))
            assert supply.held == []
    assert supply.passes == ["2x1" if one.pixels else "2x9", "complete"] * 2


def test_a_matrix_looked_up_only_can_still_be_multiplied(folder: Folder) -> None:
    """Whatever the trace foresaw: here the base model, and a caller that ties a head to it by hand."""
    for name in ("gpt2-base", "bert"):
        model, supply = streamed(folder(name))
        plain = family(name).load_plain(folder(name))
        hidden = torch.randn(3, 4, 48)
        with torch.no_grad():
            answer = F.linear(hidden, model.get_input_embeddings().weight)
            assert torch.equal(answer, F.linear(hidden, plain.get_input_embeddings().weight))
        assert supply.rows_nbytes >= plain.get_input_embeddings().weight.nbytes


@pytest.mark.parametrize("unit", [0, 3, 6, 8])
def test_ctrl_c_while_waiting_leaves_nothing_held(unit: int, folder: Folder) -> None:
    model, supply = streamed(folder("llama-untied"))
    plain = family("llama-untied").load_plain(folder("llama-untied"))
    inputs = family("llama-untied").inputs()
    with torch.no_grad():
        supply.interrupt = unit
        with pytest.raises(KeyboardInterrupt):
            model(**inputs)
        assert supply.held == []
        assert supply.passes == ["2x9", "cut short"]
        supply.interrupt = None
        assert_same(model(**inputs), plain(**inputs))


def test_a_base_model_alone_is_a_pass_without_the_head(folder: Folder) -> None:
    model, supply = streamed(folder("llama-untied"))
    taken: list[int] = []
    acquire = supply.acquire
    supply.acquire = lambda unit: (taken.append(unit), acquire(unit))[1]  # type: ignore[method-assign]
    model.model(**family("llama-untied").inputs())
    assert taken == list(range(max(taken) + 1))
    assert max(taken) < len(supply.division.layouts) - 1
    assert supply.passes == ["2x9", "complete"]


@pytest.mark.parametrize("room", [None, ROOMS[0]])
def test_a_weight_is_one_object_wherever_its_unit_lies(folder: Folder, room: int | None) -> None:
    """A weight made in a pass would lie between activations for as long as it lives, and their places be lost."""
    model, supply = streamed(folder("gpt2"), room)
    binder = model._hermes_binder
    seen: dict[int, list[tuple[int, int]]] = {}
    point = binder.weight

    def weight(key: object, *words: Any) -> torch.nn.Parameter:
        found: torch.nn.Parameter = point(key, *words)
        seen.setdefault(id(key), []).append((id(found), found.data_ptr()))
        return found

    binder.weight = weight
    made = {key: id(weight) for key, (_, weight) in binder._weights.items()}
    model.eval()
    inputs = family("gpt2").inputs()
    expected = family("gpt2").load_plain(folder("gpt2"))(**inputs).logits
    for supply.shift in (0, 1, 1, 2):
        assert torch.equal(model(**inputs).logits, expected)
    assert set(seen) == set(made)
    for key, each in seen.items():
        assert [weight for weight, _ in each] == [made[key]] * 4
        first, moved, stayed, again = (place for _, place in each)
        assert len({first, moved, again}) == 3
        assert moved == stayed


class Pair(NamedTuple):
    ours: torch.Tensor
    other: torch.Tensor


@dataclass(frozen=True)
class Record:
    inner: dict[str, list[Pair]]


def test_an_output_that_lies_in_a_slot_is_copied_wherever_it_is(folder: Folder) -> None:
    """What a layer hands out must outlive the slot: alone, in containers, in named tuples and in objects."""
    model, supply = streamed(folder("gpt2"))
    ours = torch.frombuffer(supply.buffer, dtype=torch.float32, count=4, offset=64)
    other = torch.zeros(4)
    owned = model._hermes_binder.own([Record({"a": [Pair(ours, other)]}), (ours[1:2],), Pair(other, ours)])
    record, (view,), pair = owned
    found = record.inner["a"][0]
    assert isinstance(found, Pair)
    assert isinstance(pair, Pair)
    assert found.other is other is pair.ours
    low, high = ours.data_ptr(), ours.data_ptr() + len(supply.buffer)
    assert not [one for one in (found.ours, view, pair.other) if low <= one.data_ptr() < high]


def test_where_a_pass_should_end(folder: Folder) -> None:
    """The whole model's ends behind the last block of its head, the base model's before the first one."""
    skeleton, division = divided(folder("llama-untied"))
    (head,) = [matrix for matrix in division.matrices if matrix.blocks]
    model = skeleton.model
    assert division.ends == {id(model): len(division.layouts), id(model.base_model): head.blocks[0].unit}


def test_dropping_the_model_drops_all_of_it(folder: Folder) -> None:
    """No cycle through the hooks keeps it: what is behind it ends when the last reference does."""
    import gc
    import weakref

    model, _ = streamed(folder("gpt2"))
    model(**family("gpt2").inputs())
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
