"""`load(..., memory=)`: too little is refused with the number that will do; a call that needs more, before it reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers
from models.families import family

from hermes_mp import load
from hermes_mp.core.budget import RUNS_DIFFER_NBYTES
from hermes_mp.errors import BadOption, BudgetTooSmall, CallTooLarge, ContextTooLong
from hermes_mp.host import memory

NEW = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


pytestmark = pytest.mark.usefixtures("quiet_and_alone")


def smallest(directory: Path, **settings: Any) -> int:
    """The budget in MiB that the refusal of a far too small one names."""
    with pytest.raises(BudgetTooSmall) as refused:
        load(directory, memory="1MiB", **settings)
    found = re.search(r"--memory 1 MiB is too small; the smallest budget .* is (\d+) MiB", refused.value.line())
    assert found, refused.value.line()
    return int(found[1])


@pytest.mark.parametrize(("loaders", "context", "batch"), [(1, 16, 1), (3, 128, 8)])
def test_the_named_budget_is_the_smallest(loaders: int, context: int, batch: int, gpt2: Path) -> None:
    settings: dict[str, Any] = {"loaders": loaders, "context": context, "batch": batch, "count_caller": False}
    least = smallest(gpt2, **settings)
    with pytest.raises(BudgetTooSmall):
        load(gpt2, memory=f"{least - (RUNS_DIFFER_NBYTES >> 20) - 4}MiB", **settings)
    inputs = family("gpt2").inputs(rows=batch, tokens=8)
    expected = family("gpt2").load_plain(gpt2).generate(**inputs, **NEW, max_new_tokens=8)
    with load(gpt2, memory=f"{least}MiB", **settings) as model:
        assert model._hermes_binder.supply.divided.slots >= 2
        assert torch.equal(model.generate(**inputs, **NEW, max_new_tokens=8), expected)
        (daemon,) = psutil.Process().children()
        used = sum(memory.exact(process.pid).total_nbytes for process in (daemon, *daemon.children()))
        assert used < least << 20


def test_what_is_reserved_shows_in_the_smallest_budget(gpt2: Path) -> None:
    least = smallest(gpt2, loaders=1, count_caller=False)
    assert smallest(gpt2, loaders=2, count_caller=False) >= least + 12  # both are rounded
    assert smallest(gpt2, loaders=1, count_caller=False, batch=64) > least
    caller = memory.quick(psutil.Process().pid).total_nbytes >> 20
    assert abs(smallest(gpt2, loaders=1) - least - caller) < 16


class Listening:
    """A supply that notes what is read, and passes everything on."""

    def __init__(self, supply: Any) -> None:
        self._supply = supply
        self.read: list[object] = []

    def acquire(self, unit: int) -> int:
        self.read.append(unit)
        return int(self._supply.acquire(unit))

    def read_rows(self, file: int, ranges: Any, into: memoryview) -> None:
        self.read.append(ranges)
        self._supply.read_rows(file, ranges, into)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._supply, name)


TOO_LARGE: dict[str, dict[str, Any]] = {
    "rows": {"rows": 2, "max_new_tokens": 8},
    "prompt": {"tokens": 40, "max_new_tokens": 1},
    "answer": {"max_new_tokens": 25},
    "length": {"max_length": 40},
    "beams": {"num_beams": 2, "max_new_tokens": 8},
    "answers": {"num_return_sequences": 3, "do_sample": True, "max_new_tokens": 8},
    "by position": {"by position": transformers.GenerationConfig(max_new_tokens=100)},
}


def test_a_call_that_needs_more_is_refused_before_it_reads(gpt2: Path) -> None:
    plain = family("gpt2").load_plain(gpt2)
    with load(gpt2, loaders=1, memory="200MiB", context=32, count_caller=False) as model:
        supply = model._hermes_binder.supply = Listening(model._hermes_binder.supply)
        for what, call in TOO_LARGE.items():
            settings = NEW | call
            ids = family("gpt2").inputs(rows=settings.pop("rows", 1), tokens=settings.pop("tokens", 8))["input_ids"]
            with pytest.raises(CallTooLarge) as refused:
                model.generate(ids, settings.pop("by position", None), **settings)
            line = refused.value.line()
            need, reserved = map(float, re.findall(r"(\d+\.\d) MiB", line))
            assert need >= reserved, what
            assert "for 1 of 32" in line, what
            assert "\n" not in line
        with pytest.raises(CallTooLarge, match="logits of"):
            model(**family("gpt2").inputs(rows=4, tokens=32))
        whole = family("gpt2").inputs(rows=1, tokens=32)
        for kept in ("output_hidden_states", "output_attentions"):
            with pytest.raises(CallTooLarge, match="hidden states or attentions"):
                model(**whole, logits_to_keep=1, **{kept: True})
        assert supply.read == []
        model(**whole, logits_to_keep=1)
        assert supply.read
        supply.read.clear()
        inputs = family("gpt2").inputs(rows=1, tokens=8)
        answer = model.generate(**inputs, **NEW, max_new_tokens=24)
        assert torch.equal(answer, plain.generate(**inputs, **NEW, max_new_tokens=24))
        assert supply.read


def test_a_cache_that_grows_is_counted(gpt2: Path) -> None:
    """Whoever calls the model token by token is refused when the cache is full, not at the first call."""
    with load(gpt2, loaders=1, memory="200MiB", context=16, count_caller=False) as model, torch.no_grad():
        cache = transformers.DynamicCache(config=model.config)
        for _ in range(16):
            model(torch.tensor([[7]]), past_key_values=cache)
        with pytest.raises(CallTooLarge, match="1 sequences of 17 positions"):
            model(torch.tensor([[7]]), past_key_values=cache)


def test_more_context_than_the_model_has(gpt2: Path) -> None:
    with pytest.raises(ContextTooLong, match="129 is more than the 128"):
        load(gpt2, context=129)


@pytest.mark.parametrize("size", ["3G", "-1", "lots", 0, 1.5, "0MiB", True])
def test_sizes_that_are_none(size: Any, gpt2: Path) -> None:
    with pytest.raises(BadOption) as refused:
        load(gpt2, memory=size)
    assert repr(size) in refused.value.line()
