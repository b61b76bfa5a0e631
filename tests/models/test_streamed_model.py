"""Forwards of a streamed model, whole, in parts, cut short and from many threads: always what the plain model gives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import assert_same, both
from families import DTYPES, family
from torch import nn

from hermes_mp.host.checkpoint import find_checkpoint

Folder = Callable[[str], Path]


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 80), (17, 3), (5, 64)])
def test_any_batch_where_there_is_no_budget(rows: int, tokens: int, folder: Folder) -> None:
    with both(family("bert-mlm-wide"), folder("bert-mlm-wide")) as (streamed, plain):
        inputs = family("bert-mlm-wide").inputs(rows=rows, tokens=tokens)
        assert_same(streamed(**inputs), plain(**inputs))


@pytest.mark.parametrize("name", ["bert-mlm-wide", "llama-tied", "gpt2", "vit"])
def test_autocast(name: str, folder: Folder) -> None:
    """Twice, as autocast would keep the casts of weights that require grad: of a slot that holds others by then."""
    with both(family(name), folder(name)) as (streamed, plain), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            inputs = family(name).inputs()
            assert_same(streamed(**inputs), plain(**inputs))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_grad_modes(mode: Any, folder: Folder) -> None:
    with both(family("bert-mlm"), folder("bert-mlm")) as (streamed, plain):
        inputs = family("bert-mlm").inputs()
        with mode():
            found, expected = streamed(**inputs).logits, plain(**inputs).logits
        assert torch.equal(found, expected)
        assert not found.requires_grad
        assert torch.equal(streamed(**inputs).logits, expected)


def test_losses(folder: Folder) -> None:
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain):
        inputs = family("gpt2").inputs()
        assert_same(streamed(**inputs, labels=inputs["input_ids"]), plain(**inputs, labels=inputs["input_ids"]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bert-mlm", "llama-tied", "gpt2", "vit"])
def test_hidden_states_and_attentions(name: str, attention: str, folder: Folder) -> None:
    with both(family(name), folder(name)) as (streamed, plain):
        for model in (streamed, plain):
            model.set_attn_implementation(attention)
        inputs = family(name).inputs() | {"output_hidden_states": True, "output_attentions": attention == "eager"}
        found, expected = streamed(**inputs), plain(**inputs)
        assert len(found.hidden_states) == 7
        assert attention == "sdpa" or len(found.attentions) == 6
        assert_same(found, expected)


def test_arguments_by_position_and_tuples(folder: Folder) -> None:
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain):
        ids = family("gpt2").inputs()["input_ids"]
        assert_same(streamed(ids, return_dict=False), plain(ids, return_dict=False))


def test_inputs_embeds(folder: Folder) -> None:
    with both(family("llama-tied"), folder("llama-tied")) as (streamed, plain):
        ids = family("llama-tied").inputs()["input_ids"]
        embedded = streamed.get_input_embeddings()(ids)
        assert torch.equal(embedded, plain.get_input_embeddings()(ids))
        assert_same(streamed(inputs_embeds=embedded), plain(inputs_embeds=embedded))


def test_token_ids_outside_the_vocabulary_raise_as_they_do_in_torch(folder: Folder) -> None:
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain):
        for wrong in (-1, 1213):
            for model in (streamed, plain):
                with pytest.raises(IndexError, match="index out of range in self"):
                    model(torch.tensor([[5, wrong]]))
        inputs = family("gpt2").inputs()
        assert_same(streamed(**inputs), plain(**inputs))


# --- parts of it


def test_parts_called_alone(folder: Folder) -> None:
    with both(family("llama-tied"), folder("llama-tied")) as (streamed, plain):
        inputs = family("llama-tied").inputs()
        assert_same(streamed.model(**inputs), plain.model(**inputs))
        hidden = torch.randn(2, 5, 48)
        tables = plain.model.rotary_emb(hidden, torch.arange(5)[None])
        assert_same(streamed.model.rotary_emb(hidden, torch.arange(5)[None]), tables)
        for number in (4, 1, 1, 5, 0):
            layers = [model.model.layers[number](hidden, position_embeddings=tables) for model in (streamed, plain)]
            assert_same(*layers)
        assert_same(streamed.model.norm(hidden), plain.model.norm(hidden))
        for states in (hidden, hidden[:, -1:], hidden[:, ::2], hidden[0], hidden[0, 0], hidden[:0]):
            assert_same(streamed.lm_head(states), plain.lm_head(states))
        assert_same(streamed(**inputs), plain(**inputs))


def test_parts_of_an_encoder_called_alone(folder: Folder) -> None:
    with both(family("bert-mlm"), folder("bert-mlm")) as (streamed, plain):
        inputs = family("bert-mlm").inputs()
        assert_same(streamed.bert(**inputs), plain.bert(**inputs))
        hidden = torch.randn(2, 5, 48)
        assert_same(streamed.bert.encoder.layer[2](hidden), plain.bert.encoder.layer[2](hidden))
        assert_same(streamed.cls(hidden), plain.cls(hidden))
        assert_same(streamed(**inputs), plain(**inputs))


class LeftEarlyError(Exception):
    pass


def test_leaving_early(folder: Folder) -> None:
    def leave(*_: Any) -> None:
        raise LeftEarlyError

    with both(family("llama-untied"), folder("llama-untied")) as (streamed, plain):
        inputs = family("llama-untied").inputs()
        for number in (0, 3, 5):
            for register in ("register_forward_hook", "register_forward_pre_hook"):
                handle = getattr(streamed.model.layers[number], register)(leave)
                for _ in range(2):
                    with pytest.raises(LeftEarlyError):
                        streamed(**inputs)
                handle.remove()
            assert_same(streamed(**inputs), plain(**inputs))


def test_an_error_inside_a_layer(folder: Folder) -> None:
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain):
        for _ in range(3):
            with pytest.raises(RuntimeError, match="shape"):
                streamed.transformer.h[2](torch.randn(1, 4, 47))
        inputs = family("gpt2").inputs()
        assert_same(streamed(**inputs), plain(**inputs))


def test_a_layer_skipped_and_one_repeated(folder: Folder) -> None:
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain):
        for model in (streamed, plain):
            blocks = list(model.transformer.h)
            model.transformer.h = nn.ModuleList([blocks[0], blocks[3], blocks[3], blocks[1], blocks[5]])
        inputs = family("gpt2").inputs()
        for _ in range(2):
            assert_same(streamed(**inputs, use_cache=False), plain(**inputs, use_cache=False))


def test_bound_weights_are_as_the_file_holds_them(folder: Folder) -> None:
    """Same values, same residue of the address modulo 64; and that they require grad leaves nothing behind."""
    tensors = find_checkpoint(folder("gpt2")).tensors
    grads, autocast = torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=True)
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain), grads, autocast:
        seen: list[str] = []

        def look(layer: str, *_: Any) -> None:
            for name, parameter in streamed.get_submodule(layer).named_parameters(prefix=layer):
                assert torch.equal(parameter, plain.get_parameter(name)), name
                assert parameter.requires_grad == plain.get_parameter(name).requires_grad
                assert not torch.is_grad_enabled()
                assert not torch.is_autocast_cache_enabled()
                assert parameter.data_ptr() % 64 == tensors[name][1].begin % 64
                seen.append(name)

        for number, block in enumerate(streamed.transformer.h):
            block.ln_2.register_forward_hook(partial(look, f"transformer.h.{number}"))
        output = streamed(**family("gpt2").inputs(), output_hidden_states=True)
        assert len(seen) == len(set(seen)) == 6 * 12
        assert not any(tensor.requires_grad for tensor in (output.logits, *output.hidden_states))
        assert torch.is_grad_enabled()
        assert torch.is_autocast_cache_enabled()


# --- many at once


def test_threads(folder: Folder) -> None:
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain):
        jobs = [family("gpt2").inputs(rows=1, tokens=3 + number) for number in range(8)]
        new = {"max_new_tokens": 5, "pad_token_id": 0, "do_sample": False}
        expected = [(plain(**job).logits, plain.generate(**job, **new)) for job in jobs]
        start = threading.Barrier(4)

        def run(number: int) -> tuple[torch.Tensor, torch.Tensor]:
            if number < 4:
                start.wait(30)
            with torch.no_grad():
                return streamed(**jobs[number]).logits, streamed.generate(**jobs[number], **new)

        with ThreadPoolExecutor(4) as pool:
            assert_same(list(pool.map(run, range(8))), expected)


# --- casts


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_dtype_named(stored: torch.dtype, dtype: str, tmp_path: Path) -> None:
    llama = family("llama-tied")
    llama.save(tmp_path, stored)
    with both(llama, tmp_path, dtype=dtype) as (streamed, _):
        plain = llama.load_plain(tmp_path, dtype=getattr(torch, dtype))
        assert streamed.dtype == plain.dtype == getattr(torch, dtype)
        inputs = llama.inputs()
        assert_same(streamed(**inputs), plain(**inputs))
        assert_same(streamed.generate(**inputs, max_new_tokens=4), plain.generate(**inputs, max_new_tokens=4))


# --- order


class Listening:
    """A supply that notes which units compute acquires, and passes everything on."""

    def __init__(self, supply: Any) -> None:
        self._supply = supply
        self.acquired: list[int] = []

    def acquire(self, unit: int) -> int:
        self.acquired.append(unit)
        return int(self._supply.acquire(unit))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._supply, name)


@pytest.mark.parametrize("name", ["bert-classify", "vit", "gpt2", "gptj", "llama-tied", "opt", "gpt-neox", "phi"])
def test_a_complete_pass_takes_every_unit_once_and_in_order(name: str, folder: Folder) -> None:
    with both(family(name), folder(name)) as (streamed, _):
        units = len(streamed._hermes_binder.supply._list.units)
        supply = streamed._hermes_binder.supply = Listening(streamed._hermes_binder.supply)
        streamed(**family(name).inputs())
        assert supply.acquired == list(range(units))
        if family(name).generates:
            supply.acquired.clear()
            streamed.generate(**family(name).inputs(), max_new_tokens=3, eos_token_id=None, pad_token_id=0)
            assert supply.acquired == 3 * list(range(units))
