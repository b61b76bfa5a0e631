"""The shapes of well-known models, by name: which class, which configuration, how it is stored. It imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hermes_mp.errors import ModelNotFound


@dataclass(frozen=True)
class Shape:
    """Names of a model class and a configuration class of transformers, what differs from its defaults, and a dtype.

    `nbytes`: about what the checkpoint takes.
    """

    model: str
    config: str
    dtype: str
    nbytes: int
    settings: dict[str, Any] = field(default_factory=dict)
    shard: str = "50GB"


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def _gpt2(width: int, layers: int, heads: int, nbytes: int) -> Shape:
    settings = {"n_embd": width, "n_layer": layers, "n_head": heads}
    return Shape("GPT2LMHeadModel", "GPT2Config", "float32", nbytes, settings)


SHAPES = {
    "bert-base": Shape("BertForMaskedLM", "BertConfig", "float32", 440 * 10**6),
    "bert-large": Shape("BertForMaskedLM", "BertConfig", "float32", 1345 * 10**6, _LARGE),
    "vit-base": Shape("ViTForImageClassification", "ViTConfig", "float32", 347 * 10**6, {"num_labels": 1000}),
    "vit-large": Shape(
        "ViTForImageClassification", "ViTConfig", "float32", 1218 * 10**6, _LARGE | {"num_labels": 1000}
    ),
    "gpt2": _gpt2(768, 12, 12, 498 * 10**6),
    "gpt2-medium": _gpt2(1024, 24, 16, 1420 * 10**6),
    "gpt2-large": _gpt2(1280, 36, 20, 3097 * 10**6),
    "gpt2-xl": _gpt2(1600, 48, 25, 6231 * 10**6),
    "llama-3.2-1b": Shape(
        "LlamaForCausalLM", "LlamaConfig", "bfloat16", 2472 * 10**6,
        {
            "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 131072,
            "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "bos_token_id": 128000, "eos_token_id": 128001,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "high_freq_factor": 4.0,
                "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            },
        },
    ),
    "gpt-j-6b": Shape(
        "GPTJForCausalLM", "GPTJConfig", "bfloat16", 12102 * 10**6, {"tie_word_embeddings": False}, shard="5GB"
    ),
}  # fmt: skip


def shape_named(name: str) -> Shape:
    """Raises ModelNotFound naming those there are."""
    if name not in SHAPES:
        raise ModelNotFound(f"there is no shape {name!r}", f"the shapes are {', '.join(SHAPES)}")
    return SHAPES[name]
