"""Tiny random models of every family that must work: how each is made and saved, and what its tests feed it.

Seven units or so each, so that two to six slots make a difference; some vocabularies are larger than a layer and
stream in several blocks of rows. Weights are random throughout: transformers starts biases at 0 and norms at 1,
where a weight bound in the wrong place would not show.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYERS = 6
SMALL = {"hidden_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": 331}
ROPE = SMALL | {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 128}
WIDE = {"vocab_size": 1213}  # a head of several blocks, the last of them shorter and no multiple of 64 rows
BERT = SMALL | {"intermediate_size": 96, "max_position_embeddings": 80}
VIT = {"hidden_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 96,
       "image_size": 32, "patch_size": 8, "num_labels": 7}  # fmt: skip
GPT2 = {"n_embd": 48, "n_layer": LAYERS, "n_head": 4, "n_positions": 128, "vocab_size": 331,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """`make()` gives (model class, config); the weights were saved by `saved_by`, another class, where one is named.

    `generates` and `pixels` say what it is for; `plain` is what `from_pretrained` must be told for the same model.
    """

    name: str
    make: Callable[[], tuple[Any, Any]]
    generates: bool = False
    pixels: bool = False
    saved_by: str = ""
    plain: tuple[tuple[str, Any], ...] = ()

    def save(self, directory: Path, dtype: torch.dtype = torch.float32, sharded: bool = False) -> None:
        """Write a checkpoint with random weights; `sharded`: in files of at most 100 kB."""
        model_class, config = self.make()
        torch.manual_seed(0)
        model = getattr(transformers, self.saved_by)(config) if self.saved_by else model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.to(dtype).save_pretrained(directory, max_shard_size="100KB" if sharded else "1GB")
        assert sharded == (directory / "model.safetensors.index.json").exists()
        if self.saved_by:
            edit_config(directory, architectures=[model_class.__name__])

    def load_plain(self, directory: Path, **settings: Any) -> Any:
        """The model as transformers itself loads it."""
        model_class, _ = self.make()
        return model_class.from_pretrained(directory, **dict(self.plain), **settings).eval()

    def inputs(self, dtype: torch.dtype = torch.float32, rows: int = 2, tokens: int = 9) -> dict[str, torch.Tensor]:
        """What a forward takes: other values with every seed set before."""
        if self.pixels:
            return {"pixel_values": torch.randn(rows, 3, 32, 32, dtype=dtype)}
        ids = torch.randint(3, SMALL["vocab_size"], (rows, tokens))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def edit_config(directory: Path, **changes: Any) -> None:
    """Change keys of a config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_tokenizer(directory: Path) -> None:
    """A word for every token id below 331."""
    special = {"mask_token": "[MASK]", "unk_token": "[UNK]", "eos_token": "[END]", "pad_token": "[PAD]"}
    words = [*special.values(), *(f"w{number}" for number in range(len(special), SMALL["vocab_size"]))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)


def family(name: str) -> Family:
    return next(one for one in FAMILIES if one.name == name)


def _config(model_class: str, config_class: str, **settings: Any) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        return getattr(transformers, model_class), getattr(transformers, config_class)(**settings)

    return make


NO_POOLER = (("add_pooling_layer", False),)
LLAMA_TIED = ROPE | WIDE | {"tie_word_embeddings": True}
LLAMA_UNTIED = ROPE | WIDE | {"tie_word_embeddings": False}

FAMILIES = [
    Family("bert", _config("BertModel", "BertConfig", **BERT)),
    Family("bert-of-mlm", _config("BertModel", "BertConfig", **BERT), saved_by="BertForMaskedLM", plain=NO_POOLER),
    Family("bert-of-classifier", _config("BertModel", "BertConfig", **BERT), saved_by="BertForSequenceClassification"),
    Family("bert-mlm", _config("BertForMaskedLM", "BertConfig", **BERT)),
    Family("bert-mlm-wide", _config("BertForMaskedLM", "BertConfig", **BERT | WIDE)),
    Family("bert-classify", _config("BertForSequenceClassification", "BertConfig", num_labels=3, **BERT)),
    Family("vit", _config("ViTForImageClassification", "ViTConfig", **VIT), pixels=True),
    Family("vit-base", _config("ViTModel", "ViTConfig", **VIT), pixels=True),
    Family(
        "vit-of-classifier",
        _config("ViTModel", "ViTConfig", **VIT),
        pixels=True,
        saved_by="ViTForImageClassification",
        plain=NO_POOLER,
    ),
    Family("deit", _config("DeiTForImageClassification", "DeiTConfig", **VIT), pixels=True),
    Family("deit-teacher", _config("DeiTForImageClassificationWithTeacher", "DeiTConfig", **VIT), pixels=True),
    Family("roberta", _config("RobertaForMaskedLM", "RobertaConfig", **BERT)),
    Family(
        "distilbert",
        _config(
            "DistilBertForMaskedLM",
            "DistilBertConfig",
            dim=48,
            n_layers=LAYERS,
            n_heads=4,
            hidden_dim=96,
            vocab_size=331,
            max_position_embeddings=80,
        ),
    ),
    Family("gpt2", _config("GPT2LMHeadModel", "GPT2Config", **GPT2 | WIDE), generates=True),
    Family("gpt2-of-base", _config("GPT2LMHeadModel", "GPT2Config", **GPT2), generates=True, saved_by="GPT2Model"),
    Family("gpt2-base", _config("GPT2Model", "GPT2Config", **GPT2), saved_by="GPT2LMHeadModel"),
    Family(
        "gptj",
        _config("GPTJForCausalLM", "GPTJConfig", rotary_dim=8, tie_word_embeddings=False, **GPT2 | WIDE),
        generates=True,
    ),
    Family("llama-tied", _config("LlamaForCausalLM", "LlamaConfig", **LLAMA_TIED), generates=True),
    Family("llama-untied", _config("LlamaForCausalLM", "LlamaConfig", **LLAMA_UNTIED), generates=True),
    Family("llama-of-base", _config("LlamaForCausalLM", "LlamaConfig", **LLAMA_TIED), True, saved_by="LlamaModel"),
    Family("llama-base", _config("LlamaModel", "LlamaConfig", **LLAMA_UNTIED), saved_by="LlamaForCausalLM"),
    Family("qwen3", _config("Qwen3ForCausalLM", "Qwen3Config", head_dim=12, **ROPE), generates=True),
    Family("mistral", _config("MistralForCausalLM", "MistralConfig", sliding_window=16, **ROPE), generates=True),
    Family(
        "opt",
        _config(
            "OPTForCausalLM", "OPTConfig", ffn_dim=96, word_embed_proj_dim=48, max_position_embeddings=128, **SMALL
        ),
        generates=True,
    ),
    Family(
        "gpt-neox",
        _config("GPTNeoXForCausalLM", "GPTNeoXConfig", intermediate_size=96, max_position_embeddings=128, **SMALL),
        generates=True,
    ),
    Family("phi", _config("PhiForCausalLM", "PhiConfig", **ROPE | WIDE), generates=True),
    Family("gemma", _config("GemmaForCausalLM", "GemmaConfig", head_dim=12, **ROPE | WIDE), generates=True),
]
