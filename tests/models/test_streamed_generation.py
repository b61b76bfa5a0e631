"""`generate` of a streamed model, in the ways programs call it: what comes out is what the plain model gives."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from comparison import assert_same, both
from families import family

from hermes_mp import load

Folder = Callable[[str], Path]

NEW: dict[str, Any] = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
WAYS: dict[str, dict[str, Any]] = {
    "sampled": {"do_sample": True, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beams sampled": {"num_beams": 2, "do_sample": True},
    "scores": {"output_scores": True, "return_dict_in_generate": True, "output_hidden_states": True},
    "without cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
    "prompt look-up": {"prompt_lookup_num_tokens": 3},
    "chunked prefill": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("name", ["gpt2", "llama-untied"])
def test_every_way_of_generating(name: str, folder: Folder) -> None:
    with both(family(name), folder(name)) as (streamed, plain):
        for way, settings in WAYS.items():
            inputs = family(name).inputs(rows=1 if way == "prompt look-up" else 2)
            answers = []
            for model in (streamed, plain):
                torch.manual_seed(7)
                answers.append(model.generate(**inputs, **NEW, **settings))
            assert_same(*answers, way)


@pytest.mark.parametrize("streamed_assistant", [True, False])
def test_assisted_decoding(streamed_assistant: bool, folder: Folder) -> None:
    small = family("llama-of-base")
    inputs = family("llama-tied").inputs(rows=1)
    with (
        both(family("llama-tied"), folder("llama-tied")) as (streamed, plain),
        both(small, folder("llama-of-base"), loaders=1) as (assistant, plain_assistant),
    ):
        expected = plain.generate(**inputs, **NEW, do_sample=False, assistant_model=plain_assistant)
        chosen = assistant if streamed_assistant else plain_assistant
        answer = streamed.generate(**inputs, **NEW, do_sample=False, assistant_model=chosen)
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


def test_a_streamer_gets_the_tokens_one_by_one(folder: Folder) -> None:
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain):
        inputs = family("gpt2").inputs(rows=1)
        streamer = Collecting()
        answer = streamed.generate(**inputs, **NEW, streamer=streamer)
        assert torch.equal(answer, plain.generate(**inputs, **NEW))
        assert [len(piece) for piece in streamer.pieces] == [9] + [1] * 12
        assert list(itertools.chain(*streamer.pieces)) == answer[0].tolist()
        assert streamer.ended


def test_a_text_streamer_in_a_thread(folder: Folder) -> None:
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder("gpt2"))
        inputs = dict(tokenizer("w17 w23 w5", return_tensors="pt"))
        streamer = transformers.TextIteratorStreamer(tokenizer, timeout=60, skip_prompt=True)
        thread = threading.Thread(target=streamed.generate, kwargs=inputs | NEW | {"streamer": streamer})
        thread.start()
        text = "".join(streamer)
        thread.join()
        assert text == tokenizer.decode(plain.generate(**inputs, **NEW)[0, 3:])


def test_after_an_exception_in_a_streamer_the_next_call_is_right(folder: Folder) -> None:
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain):
        inputs = family("gpt2").inputs(rows=1)
        for limit in (1, 2, 5):
            with pytest.raises(KeyError, match="the reader has left"):
                streamed.generate(**inputs, **NEW, streamer=Collecting(limit))
            assert torch.equal(streamed.generate(**inputs, **NEW), plain.generate(**inputs, **NEW))


def test_a_left_padded_batch(folder: Folder) -> None:
    with both(family("llama-tied"), folder("llama-tied")) as (streamed, plain):
        inputs = family("llama-tied").inputs(rows=3)
        inputs["attention_mask"][0, :4] = 0
        inputs["attention_mask"][2, :7] = 0
        assert_same(streamed(**inputs), plain(**inputs))
        assert_same(streamed.generate(**inputs, **NEW), plain.generate(**inputs, **NEW))


@pytest.mark.parametrize("static", [True, False])
def test_a_cache_of_the_caller(static: bool, folder: Folder) -> None:
    with both(family("llama-untied"), folder("llama-untied")) as (streamed, plain):
        ids = family("llama-untied").inputs(tokens=12)["input_ids"]
        caches = [
            transformers.StaticCache(config=model.config, max_cache_len=20)
            if static
            else transformers.DynamicCache(config=model.config)
            for model in (streamed, plain)
        ]
        for part in (ids[:, :7], ids[:, 7:11], ids[:, 11:]):
            assert_same(streamed(part, past_key_values=caches[0]), plain(part, past_key_values=caches[1]))


PIPELINES = {
    "text-generation": "gpt2",
    "fill-mask": "bert-mlm",
    "text-classification": "bert-classify",
    "feature-extraction": "bert",
}


@pytest.mark.parametrize("task", PIPELINES)
def test_pipelines(task: str, folder: Folder) -> None:
    name = PIPELINES[task]
    with both(family(name), folder(name)) as (streamed, plain):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder(name))
        text = "w40 [MASK] w7 w300"
        options = {"max_new_tokens": 8, "do_sample": False} if task == "text-generation" else {}
        answers = [
            transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")([text, "w9 [MASK]"], **options)
            for model in (streamed, plain)
        ]
        assert answers[0] == answers[1]


def test_an_assistant_of_the_same_file(folder: Folder) -> None:
    """Two models of one checkpoint share nothing but the page cache."""
    with load(folder("gpt2"), loaders=1) as assistant, both(family("gpt2"), folder("gpt2")) as (streamed, plain):
        inputs = family("gpt2").inputs(rows=1)
        answer = streamed.generate(**inputs, **NEW, do_sample=False, assistant_model=assistant)
        assert torch.equal(answer, plain.generate(**inputs, **NEW, do_sample=False))
