"""Every family of `families`, streamed, against plain transformers: the same logits, bit for bit, for 64 tokens.

A family runs five times: with each number of slots from 2 to 6, every number of loaders, every dtype, one file and
several, units of a layer and finer. Which goes with which moves on from family to family, so that all pairs of
loaders and slots are met over the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from families import DTYPES, FAMILIES, Family

from hermes_mp import load

LOADERS = (1, 2, 3, 6)
SLOTS = (2, 3, 4, 5, 6)
ROOMS = (None, 24 << 10, 40 << 10)  # bytes of a unit: a layer, a matrix, between the two
NEW_TOKENS = 64
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "eos_token_id": None,  # all 64, whatever comes
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}


@dataclass(frozen=True)
class Case:
    family: Family
    dtype: torch.dtype
    sharded: bool
    loaders: int
    slots: int
    room: int | None

    def __str__(self) -> str:
        files = "shards" if self.sharded else "file"
        agents = f"{self.loaders}loaders-{self.slots}slots-{self.room or 'layers'}"
        return f"{self.family.name}-{str(self.dtype)[6:]}-{files}-{agents}"


CASES = [
    Case(
        family,
        dtype=DTYPES[(number + at) % len(DTYPES)],
        sharded=(number + at) % 2 == 1,
        loaders=LOADERS[(number + at) % len(LOADERS)],
        slots=slots,
        room=ROOMS[(number + at) % len(ROOMS)],
    )
    for number, family in enumerate(FAMILIES)
    for at, slots in enumerate(SLOTS)
]


def test_the_matrix_is_what_it_says() -> None:
    for family in FAMILIES:
        mine = [case for case in CASES if case.family is family]
        assert {case.slots for case in mine} == set(SLOTS)
        assert {case.loaders for case in mine} == set(LOADERS)
        assert {case.dtype for case in mine} == set(DTYPES)
        assert {case.sharded for case in mine} == {True, False}
        assert {case.room for case in mine} == set(ROOMS)
    assert {(case.loaders, case.slots) for case in CASES} == set(product(LOADERS, SLOTS))
    assert {(case.dtype, case.sharded) for case in CASES} == set(product(DTYPES, (False, True)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_streamed_is_plain(case: Case, tmp_path: Path) -> None:
    family = case.family
    family.save(tmp_path, case.dtype, case.sharded)
    plain = family.load_plain(tmp_path)
    inputs = family.inputs(case.dtype)
    with load(tmp_path, loaders=case.loaders, _slots=case.slots, _room=case.room) as model, torch.no_grad():
        assert type(model).__name__ == type(plain).__name__
        assert model.dtype == plain.dtype == case.dtype
        units = len(model._hermes_binder.supply._list.units)
        assert units >= 6
        assert model._hermes_binder.supply.divided.slots == min(case.slots, units)
        assert_equal(model(**inputs), plain(**inputs))
        if family.generates:
            prompt = family.inputs(rows=2)
            settings = GREEDY | {"max_new_tokens": NEW_TOKENS}
            answer, expected = model.generate(**prompt, **settings), plain.generate(**prompt, **settings)
            assert answer.sequences.shape == (2, prompt["input_ids"].shape[1] + NEW_TOKENS)
            assert torch.equal(answer.sequences, expected.sequences)
            assert torch.equal(torch.stack(answer.logits), torch.stack(expected.logits))


def assert_equal(streamed: Any, plain: Any) -> None:
    """Every tensor of the outputs, bit for bit."""
    assert type(streamed) is type(plain)
    found = 0
    for name, expected in plain.items():
        if isinstance(expected, torch.Tensor):
            assert torch.equal(streamed[name], expected), name
            found += 1
    assert found
