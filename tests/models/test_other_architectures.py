"""Architectures beyond the required ones, each for something odd: shared layers, two stacks, counters, no trace.

Nothing in the code knows their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from comparison import assert_same
from torch import nn

from hermes_mp import load
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.models.skeleton import build_skeleton
from hermes_mp.models.trace import trace_forward

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "vocab_size": 401,
      "decoder_start_token_id": 0}  # fmt: skip
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 401,
        "max_position_embeddings": 64, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 2, "forced_eos_token_id": None}  # fmt: skip
ALBERT = {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4,
          "intermediate_size": 64, "vocab_size": 401, "num_hidden_groups": 2, "inner_group_num": 2}  # fmt: skip
LONGFORMER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
              "vocab_size": 401, "max_position_embeddings": 66, "attention_window": 8, "pad_token_id": 1}  # fmt: skip
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [2, 2, 2], "layer_type": "basic", "num_labels": 3}


SIGLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
          "image_size": 32, "patch_size": 8}  # fmt: skip


def save(directory: Path, model_class: str, config_class: str, **settings: Any) -> Any:
    """A random model, in training's float32, as transformers loads it back."""
    torch.manual_seed(0)
    made = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for buffer in made.buffers():
            if buffer.is_floating_point() and buffer.dim():
                nn.init.uniform_(buffer, 1, 2)
    made.save_pretrained(directory)
    return getattr(transformers, model_class).from_pretrained(directory).eval()


def ids(rows: int = 2, tokens: int = 9) -> torch.Tensor:
    return torch.randint(3, 400, (rows, tokens))


@pytest.mark.parametrize("slots", [2, 3, 5])
def test_layers_that_several_places_share(slots: int, tmp_path: Path) -> None:
    plain = save(tmp_path, "AlbertForMaskedLM", "AlbertConfig", **ALBERT)
    with load(tmp_path, loaders=2, _slots=slots) as streamed, torch.no_grad():
        for _ in range(3):
            inputs = ids()
            assert_same(streamed(inputs), plain(inputs))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("T5", T5), ("T5", T5 | {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}), ("Bart", BART)],
    ids=["t5", "t5-untied", "bart"],
)
def test_encoder_and_decoder(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    plain = save(tmp_path, f"{name}ForConditionalGeneration", f"{name}Config", **settings)
    with load(tmp_path, loaders=2, _slots=3) as streamed, torch.no_grad():
        inputs = {"input_ids": ids(), "decoder_input_ids": ids(tokens=4)}
        assert_same(streamed(**inputs), plain(**inputs))
        new = {"max_new_tokens": 8, "do_sample": False, "num_beams": 2}
        assert_same(streamed.generate(inputs["input_ids"], **new), plain.generate(inputs["input_ids"], **new))


def test_batch_norm_with_its_counters(tmp_path: Path) -> None:
    plain = save(tmp_path, "ResNetForImageClassification", "ResNetConfig", **RESNET)
    with load(tmp_path, loaders=2, _slots=3) as streamed, torch.no_grad():
        pixels = torch.randn(2, 3, 64, 64)
        assert_same(streamed(pixels), plain(pixels))
        assert_same(dict(streamed.named_buffers()), dict(plain.named_buffers()))


def test_a_model_that_looks_at_values_has_no_trace_and_still_works(tmp_path: Path) -> None:
    plain = save(tmp_path, "LongformerForMaskedLM", "LongformerConfig", **LONGFORMER)
    skeleton = build_skeleton(tmp_path, find_checkpoint(tmp_path))
    assert trace_forward(skeleton.model, 1, 16).failed
    with load(tmp_path, loaders=2, _slots=3) as streamed, torch.no_grad():
        for tokens in (16, 11):
            inputs = ids(tokens=tokens)
            assert_same(streamed(inputs), plain(inputs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_of_torch_itself(dtype: str, tmp_path: Path) -> None:
    """`nn.MultiheadAttention` multiplies transposed inputs by its weights, by a way torch chooses by requires_grad."""
    save(tmp_path, "SiglipVisionModel", "SiglipVisionConfig", **SIGLIP)
    plain = transformers.SiglipVisionModel.from_pretrained(tmp_path, dtype=dtype)
    with load(tmp_path, loaders=2, _slots=3, dtype=dtype) as streamed, torch.no_grad():
        pixels = torch.randn(3, 3, 32, 32, dtype=plain.dtype)
        assert_same(streamed(pixels), plain(pixels))
