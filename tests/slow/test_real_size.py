"""Real shapes: streamed models answer with the very bits of plain transformers. Random weights, several GB of disk.

HERMES_BENCH_MODELS names a directory of models, called as their shapes; without it they are made, and removed again.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hermes_mp import load
from hermes_mp.bench.models import make_model
from hermes_mp.host.memory import available_nbytes

pytestmark = pytest.mark.slow

GPT_J_NBYTES = 14 << 30  # plain transformers holds all of its weights
PROMPT_TOKENS = 16


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("HERMES_BENCH_MODELS")
    return Path(given) if given else tmp_path_factory.mktemp("models")


@pytest.fixture
def directory(models: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The model that the test names; removed afterwards where it was made for it, as together they take 18 GB."""
    made = not (models / request.param).exists()
    if made:
        make_model(request.param, models / request.param)
    yield models / request.param
    if made:
        for path in (models / request.param).iterdir():
            path.unlink()
        (models / request.param).rmdir()


def plain(directory: Path) -> Any:
    name = json.loads((directory / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(directory, dtype="auto").eval()


def call(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        if model.main_input_name == "pixel_values":
            return model(pixel_values=torch.randn(1, 3, 224, 224, generator=generator)).logits
        return model(input_ids=torch.randint(1000, model.config.vocab_size, (1, 128), generator=generator)).logits


def generate(model: Any, tokens: int) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens, and the logits of every step: with random weights equal tokens alone would prove little."""
    prompt = torch.randint(
        1000, model.config.vocab_size, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(4)
    )
    made = model.generate(
        prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return made.sequences[0].tolist(), torch.stack(made.logits)


@pytest.mark.parametrize(
    ("directory", "loaders", "memory", "room"),
    [
        ("bert-large", 3, None, None),
        ("bert-large", 1, "1GiB", None),
        ("bert-large", 3, None, 5 << 20),  # bytes of a unit: blocks of matrices
        ("vit-large", 3, None, None),
        ("vit-large", 2, "600MiB", 9 << 20),
        ("gpt2", 6, None, None),
        ("gpt2", 3, None, 3 << 20),
        ("llama-3.2-1b", 3, None, None),
        ("llama-3.2-1b", 2, "2GiB", None),
        ("llama-3.2-1b", 3, "1GiB", 5 << 20),
        ("llama-3.2-1b", 3, None, 33 << 20),
    ],
    indirect=["directory"],
)
def test_logits_are_bit_equal(directory: Path, loaders: int, memory: str | None, room: int | None) -> None:
    model = plain(directory)
    expected = call(model)
    del model
    gc.collect()
    with load(directory, loaders=loaders, memory=memory, count_caller=False, _room=room) as streamed:
        for _ in range(3):  # the second and third find the window warm
            assert torch.equal(call(streamed), expected)
    assert expected.isfinite().all()
    assert expected.float().std() > 0


@pytest.mark.parametrize(
    ("directory", "tokens", "memory"),
    [
        ("gpt2", 64, None),
        ("gpt2", 64, "auto"),
        ("llama-3.2-1b", 64, "2GiB"),
        ("llama-3.2-1b", 32, "auto"),
        ("gpt-j-6b", 8, "1GiB"),
    ],
    indirect=["directory"],
)
def test_greedy_tokens_are_identical(directory: Path, tokens: int, memory: str | None) -> None:
    if directory.name == "gpt-j-6b" and available_nbytes() < GPT_J_NBYTES:
        pytest.skip("plain transformers needs 14 GiB for GPT-J-6B")
    model = plain(directory)
    expected_tokens, expected_logits = generate(model, tokens)
    del model
    gc.collect()
    with load(directory, memory=memory, context=128, count_caller=False) as streamed:
        made_tokens, made_logits = generate(streamed, tokens)
    assert made_tokens == expected_tokens
    assert torch.equal(made_logits, expected_logits)
