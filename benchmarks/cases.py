"""What the benchmarks run: for each case a model, its input, and one pass of it. Used by the other scripts.

Plain and streamed models go through the same code; random but fixed inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Case:
    """A model of make_models.py and how much it is given: tokens of one text, one image, or decoding."""

    model: str
    tokens: int = 0
    decodes: bool = False


CASES = {
    "bert-large-32": Case("bert-large", 32),
    "bert-large-128": Case("bert-large", 128),
    "vit-large": Case("vit-large"),
    "llama-3.2-1b-decode": Case("llama-3.2-1b", PROMPT_TOKENS, decodes=True),
    "gpt2-decode": Case("gpt2", PROMPT_TOKENS, decodes=True),
    "gpt-j-6b-decode": Case("gpt-j-6b", PROMPT_TOKENS, decodes=True),
}


def plain_model(directory: Path) -> Any:
    """The model as plain transformers loads it, in the dtype of its file."""
    import json

    import transformers

    name = json.loads((directory / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(directory, dtype="auto").eval()


def inputs(case: Case, model: Any) -> dict[str, Any]:
    """The case's input."""
    import torch

    generator = torch.Generator().manual_seed(1)
    if not case.tokens:
        return {"pixel_values": torch.randn(1, 3, 224, 224, generator=generator)}
    return {"input_ids": torch.randint(1000, model.config.vocab_size, (1, case.tokens), generator=generator)}


def passes(case: Case, model: Any) -> Callable[[], Any]:
    """A function that runs one pass and returns its logits; of a decoding case it is one more token every time."""
    given = inputs(case, model)
    if not case.decodes:
        return lambda: model(**given).logits
    state = model(**given, use_cache=True)

    def decode() -> Any:
        nonlocal state
        token = state.logits[:, -1:].argmax(-1)
        state = model(input_ids=token, past_key_values=state.past_key_values, use_cache=True)
        return state.logits

    return decode
