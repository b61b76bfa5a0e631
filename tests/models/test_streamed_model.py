"""A streamed model used as programs use transformers models: what comes out is what the plain one gives.

Every test loads its model anew (0.4 s), with fewer slots than units unless it says otherwise.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, WIDE, edit_config, family
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from hermes_mp import load
from hermes_mp.errors import NeedsAllWeights

NEW = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a family's checkpoint, written once per dtype."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def directory(name: str, dtype: torch.dtype = torch.float32) -> Path:
        if (name, dtype) not in made:
            made[name, dtype] = tmp_path_factory.mktemp(name)
            family(name).save(made[name, dtype], dtype)
            add_tokenizer(made[name, dtype])
        return made[name, dtype]

    return directory


def add_tokenizer(directory: Path) -> None:
    words = {f"w{number}": number for number in range(3, 331)} | {"[MASK]": 0, "[UNK]": 1, "[END]": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"mask_token": "[MASK]", "unk_token": "[UNK]", "eos_token": "[END]", "pad_token": "[END]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)


@contextmanager
def both(directory: Path, name: str, **settings: Any) -> Iterator[tuple[Any, Any]]:
    """The streamed model and the plain one."""
    plain = family(name).load_plain(directory)
    with load(directory, loaders=2, _slots=3, **settings) as streamed:
        yield streamed, plain


def assert_same(streamed: Any, plain: Any) -> None:
    """Bit for bit, whatever is nested in what."""
    assert type(streamed) is type(plain)
    if isinstance(plain, torch.Tensor):
        assert torch.equal(streamed, plain)
    elif isinstance(plain, dict):
        assert streamed.keys() == plain.keys()
        for name, value in plain.items():
            assert_same(streamed[name], value)
    elif isinstance(plain, (tuple, list)):
        assert len(streamed) == len(plain)
        for one, other in zip(streamed, plain, strict=True):
            assert_same(one, other)
    elif isinstance(plain, transformers.Cache):
        assert_same([(layer.keys, layer.values) for layer in streamed.layers],
                    [(layer.keys, layer.values) for layer in plain.layers])
    else:
        assert streamed == plain


# --- generate


GENERATIONS: dict[str, dict[str, Any]] = {
    "sampled": {"do_sample": True, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beams sampled": {"num_beams": 2, "do_sample": True},
    "scores": {"output_scores": True, "return_dict_in_generate": True, "output_hidden_states": True},
    "without cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "quantity": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
    "prompt look-up": {"prompt_lookup_num_tokens": 3},
    "chunked prefill": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("way", GENERATIONS)
@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_generate(name: str, way: str, folder: Callable[..., Path]) -> None:
    rows = 1 if way == "prompt look-up" else 2
    with both(folder(name), name) as (streamed, plain):
        inputs = family(name).inputs(rows=rows)
        answers = []
        for model in (streamed, plain):
            torch.manual_seed(7)
            answers.append(model.generate(**inputs, **NEW, **GENERATIONS[way]))
        assert_same(*answers)


@pytest.mark.parametrize("streamed_assistant", [True, False])
def test_assisted_decoding(streamed_assistant: bool, folder: Callable[..., Path]) -> None:
    helper = family("llama-of-base").load_plain(folder("llama-of-base"))
    inputs = family("llama-tied").inputs(rows=1)
    with both(folder("llama-tied"), "llama-tied") as (streamed, plain):
        expected = plain.generate(**inputs, **NEW, do_sample=False, assistant_model=helper)
        if streamed_assistant:
            with load(folder("llama-of-base"), loaders=1) as assistant:
                answer = streamed.generate(**inputs, **NEW, do_sample=False, assistant_model=assistant)
        else:
            answer = streamed.generate(**inputs, **NEW, do_sample=False, assistant_model=helper)
        assert torch.equal(answer, expected)


class Collecting(transformers.generation.streamers.BaseStreamer):
    """Keeps what it is given; raises when it was given `limit` pieces."""

    def __init__(self, limit: int | None = None) -> None:
        self.pieces: list[list[int]] = []
        self.ended = False
        self.limit = limit

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.flatten().tolist())
        if len(self.pieces) == self.limit:
            raise KeyError("the reader has left")

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_the_tokens_one_by_one(folder: Callable[..., Path]) -> None:
    with both(folder("gpt2"), "gpt2") as (streamed, plain):
        inputs = family("gpt2").inputs(rows=1)
        streamer = Collecting()
        answer = streamed.generate(**inputs, **NEW, streamer=streamer)
        assert torch.equal(answer, plain.generate(**inputs, **NEW))
        assert [len(piece) for piece in streamer.pieces] == [9] + [1] * 12
        assert sum(streamer.pieces, []) == answer[0].tolist()
        assert streamer.ended


def test_a_text_streamer_in_a_thread(folder: Callable[..., Path]) -> None:
    with both(folder("gpt2"), "gpt2") as (streamed, plain):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder("gpt2"))
        inputs = tokenizer("w17 w23 w5", return_tensors="pt")
        streamer = transformers.TextIteratorStreamer(tokenizer, timeout=60, skip_prompt=True)
        settings = inputs | NEW | {"streamer": streamer}
        thread = threading.Thread(target=streamed.generate, kwargs=settings)
        thread.start()
        text = "".join(streamer)
        thread.join()
        expected = plain.generate(**inputs, **NEW)[0, 3:]
        assert text == tokenizer.decode(expected)


def test_after_an_exception_in_a_streamer_the_next_call_is_right(folder: Callable[..., Path]) -> None:
    with both(folder("gpt2"), "gpt2") as (streamed, plain):
        inputs = family("gpt2").inputs(rows=1)
        for limit in (1, 2, 5):
            with pytest.raises(KeyError, match="the reader has left"):
                streamed.generate(**inputs, **NEW, streamer=Collecting(limit))
            assert torch.equal(streamed.generate(**inputs, **NEW), plain.generate(**inputs, **NEW))


def test_a_cache_of_the_caller(folder: Callable[..., Path]) -> None:
    with both(folder("llama-untied"), "llama-untied") as (streamed, plain):
        ids = family("llama-untied").inputs(tokens=12)["input_ids"]
        for make in (
            lambda model: transformers.DynamicCache(config=model.config),
            lambda model: transformers.StaticCache(config=model.config, max_cache_len=20),
        ):
            caches = make(streamed), make(plain)
            for part in (ids[:, :7], ids[:, 7:11], ids[:, 11:]):
                outputs = [
                    model(part, past_key_values=cache).logits
                    for model, cache in zip((streamed, plain), caches, strict=True)
                ]
                assert_same(*outputs)


# --- forward


def test_left_padded_batch(folder: Callable[..., Path]) -> None:
    with both(folder("llama-tied"), "llama-tied") as (streamed, plain):
        inputs = family("llama-tied").inputs(rows=3)
        inputs["attention_mask"][0, :4] = 0
        inputs["attention_mask"][2, :7] = 0
        assert_same(streamed(**inputs), plain(**inputs).__class__(**_without_grad(plain, inputs)))
        assert_same(streamed.generate(**inputs, **NEW), plain.generate(**inputs, **NEW))


def _without_grad(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    with torch.no_grad():
        return model(**inputs)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 80), (17, 3), (5, 64)])
def test_any_batch_where_there_is_no_budget(rows: int, tokens: int, folder: Callable[..., Path]) -> None:
    with both(folder("bert-mlm-wide"), "bert-mlm-wide") as (streamed, plain), torch.no_grad():
        inputs = family("bert-mlm-wide").inputs(rows=rows, tokens=tokens)
        assert_same(streamed(**inputs), plain(**inputs))
