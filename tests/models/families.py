"""Tiny random models of every family that must work, made from configs; each with the inputs its tests use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 331}
ROPE = SMALL | {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 128}


@dataclass(frozen=True)
class Family:
    """`make()` gives (model class, config). `kind` says what goes in: tokens or pixels; and whether it generates."""

    name: str
    make: Callable[[], tuple[Any, Any]]
    generates: bool = False
    pixels: bool = False


def _config(model_class: str, config_class: str, **settings: Any) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        import transformers

        return getattr(transformers, model_class), getattr(transformers, config_class)(**settings)

    return make


BERT = SMALL | {"intermediate_size": 96, "max_position_embeddings": 80}
VIT = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
       "image_size": 32, "patch_size": 8, "num_labels": 7}  # fmt: skip
GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 331,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip

FAMILIES = [
    Family("bert-base", _config("BertModel", "BertConfig", **BERT)),
    Family("bert-mlm", _config("BertForMaskedLM", "BertConfig", **BERT)),
    Family("bert-classify", _config("BertForSequenceClassification", "BertConfig", num_labels=3, **BERT)),
    Family("vit", _config("ViTForImageClassification", "ViTConfig", **VIT), pixels=True),
    Family("vit-base", _config("ViTModel", "ViTConfig", **VIT), pixels=True),
    Family("gpt2", _config("GPT2LMHeadModel", "GPT2Config", **GPT2), generates=True),
    Family(
        "gptj",
        _config("GPTJForCausalLM", "GPTJConfig", rotary_dim=8, tie_word_embeddings=False, **GPT2),
        generates=True,
    ),
    Family("llama-tied", _config("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True, **ROPE), generates=True),
    Family(
        "llama-untied", _config("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=False, **ROPE), generates=True
    ),
    Family("qwen3", _config("Qwen3ForCausalLM", "Qwen3Config", head_dim=12, **ROPE), generates=True),
    Family("mistral", _config("MistralForCausalLM", "MistralConfig", sliding_window=16, **ROPE), generates=True),
    Family("roberta", _config("RobertaForMaskedLM", "RobertaConfig", **BERT)),
    Family(
        "distilbert",
        _config("DistilBertForMaskedLM", "DistilBertConfig", dim=48, n_layers=3, n_heads=4, hidden_dim=96,
                vocab_size=331, max_position_embeddings=80),
    ),  # fmt: skip
    Family("deit", _config("DeiTForImageClassification", "DeiTConfig", **VIT), pixels=True),
    Family(
        "deit-teacher", _config("DeiTForImageClassificationWithTeacher", "DeiTConfig", **VIT), pixels=True
    ),
    Family(
        "opt",
        _config("OPTForCausalLM", "OPTConfig", ffn_dim=96, word_embed_proj_dim=48, max_position_embeddings=128, **SMALL),
        generates=True,
    ),
    Family(
        "gpt-neox",
        _config("GPTNeoXForCausalLM", "GPTNeoXConfig", intermediate_size=96, max_position_embeddings=128, **SMALL),
        generates=True,
    ),
    Family("phi", _config("PhiForCausalLM", "PhiConfig", **ROPE), generates=True),
    Family("gemma", _config("GemmaForCausalLM", "GemmaConfig", head_dim=12, **ROPE), generates=True),
]
