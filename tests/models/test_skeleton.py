"""The model without its weights against the one transformers loads: names, dtypes, ties, buffers; and refusals by name.

No process runs here. What a skeleton says about a weight is checked by reading those bytes from the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import DTYPES, FAMILIES, ROPE, WIDE, Family, edit_config, family
from safetensors.torch import load_file, save_file
from torch import nn

from hermes_mp.errors import (
    CheckpointBroken,
    HermesError,
    MissingWeights,
    UnsupportedCheckpoint,
    UnsupportedDtype,
)
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.models.skeleton import Skeleton, Source, build_skeleton, load_buffers, make_buffers_real


def skeleton_of(directory: Path, dtype: str = "auto") -> Skeleton:
    return build_skeleton(directory, find_checkpoint(directory), dtype)


def read(skeleton: Skeleton, source: Source) -> torch.Tensor:
    """The bytes the skeleton points at, as the dtype it wants them in."""
    with open(skeleton.checkpoint.files[source.file].path, "rb") as file:
        raw = bytearray(os.pread(file.fileno(), source.info.nbytes, source.info.begin))
    if not raw:
        return torch.empty(source.info.shape, dtype=source.dtype)
    return torch.frombuffer(raw, dtype=source.file_dtype).view(source.info.shape).to(source.dtype)


def assert_is(skeleton: Skeleton, plain: Any) -> None:
    """Every parameter and buffer of the skeleton is that of the plain model."""
    make_buffers_real(skeleton)
    load_buffers(skeleton, {name: read(skeleton, source) for name, source in skeleton.buffers.items()})
    expected = dict(plain.named_parameters(remove_duplicate=False))
    found = dict(skeleton.model.named_parameters(remove_duplicate=False))
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        loaded = read(skeleton, skeleton.source(parameter))
        assert loaded.dtype == expected[name].dtype, name
        assert torch.equal(loaded, expected[name]), name
    buffers = dict(plain.named_buffers())
    assert dict(skeleton.model.named_buffers()).keys() == buffers.keys()
    for name, buffer in skeleton.model.named_buffers():
        assert buffer.dtype == buffers[name].dtype, name
        assert torch.equal(buffer, buffers[name]), name


def change(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Edit the tensors of a single-file checkpoint in place."""
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    family("bert-mlm").save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("one", FAMILIES, ids=lambda one: one.name)
def test_every_weight_is_where_it_says(one: Family, tmp_path: Path) -> None:
    dtype = DTYPES[FAMILIES.index(one) % 3]
    one.save(tmp_path, dtype, sharded=FAMILIES.index(one) % 2 == 0)
    skeleton, plain = skeleton_of(tmp_path), one.load_plain(tmp_path)
    assert type(skeleton.model) is type(plain)
    assert skeleton.dtype == dtype
    assert not skeleton.model.training
    assert_is(skeleton, plain)
    shared = {
        (one_name, other_name)
        for one_name, parameter in plain.named_parameters(remove_duplicate=False)
        for other_name, other in plain.named_parameters(remove_duplicate=False)
        if parameter is other
    }
    for one_name, other_name in shared:
        assert skeleton.model.get_parameter(one_name) is skeleton.model.get_parameter(other_name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_dtype_named(stored: torch.dtype, dtype: str, tmp_path: Path) -> None:
    family("llama-tied").save(tmp_path, stored)
    skeleton = skeleton_of(tmp_path, dtype)
    assert skeleton.dtype == getattr(torch, dtype)
    assert_is(skeleton, family("llama-tied").load_plain(tmp_path, dtype=getattr(torch, dtype)))


@pytest.mark.parametrize("dtype", ["auto", "float16", "bfloat16"])
def test_modules_that_stay_in_float32(dtype: str, tmp_path: Path) -> None:
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=101, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    plain = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    if dtype == "float16":
        assert plain.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    assert_is(skeleton_of(tmp_path, dtype), plain)


def test_auto_is_what_the_config_says_where_it_says(tmp_path: Path) -> None:
    family("bert").save(tmp_path, torch.float32)
    edit_config(tmp_path, dtype="float16")
    assert skeleton_of(tmp_path).dtype == torch.float16
    assert_is(skeleton_of(tmp_path), family("bert").load_plain(tmp_path, dtype="auto"))


def test_a_file_of_mixed_dtypes(bert: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for number, name in enumerate(sorted(tensors)):
            tensors[name] = tensors[name].to(DTYPES[number % 3])

    change(bert, edit)
    assert_is(skeleton_of(bert, "float32"), family("bert-mlm").load_plain(bert, dtype=torch.float32))


def test_old_names(bert: Path) -> None:
    """The original BERT checkpoints call a norm's weight gamma and its bias beta."""
    expected = family("bert-mlm").load_plain(bert)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "LayerNorm." in name]:
            renamed = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[renamed] = tensors.pop(name)

    change(bert, edit)
    assert_is(skeleton_of(bert), expected)


@pytest.mark.parametrize("same", [True, False])
def test_both_of_a_tie_in_the_file(same: bool, tmp_path: Path) -> None:
    """Whether they are tied is then for their values to say."""
    one = family("llama-tied")
    one.save(tmp_path)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone() * (1 if same else 2)

    change(tmp_path, edit)
    assert_is(skeleton_of(tmp_path), one.load_plain(tmp_path))


def test_the_tie_by_its_other_name(tmp_path: Path) -> None:
    one = family("llama-tied")
    one.save(tmp_path)
    change(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    assert_is(skeleton_of(tmp_path), one.load_plain(tmp_path))


def test_integer_buffers_that_the_model_uses(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    plain = transformers.ResNetForImageClassification(config).eval()
    for name, buffer in plain.named_buffers():
        nn.init.uniform_(buffer, 1, 2) if buffer.is_floating_point() else buffer.fill_(len(name))
    plain.save_pretrained(tmp_path)
    skeleton = skeleton_of(tmp_path)
    assert any(source.file_dtype == torch.int64 for source in skeleton.buffers.values())
    assert_is(skeleton, plain)


def test_generation_settings_are_read(tmp_path: Path) -> None:
    family("gpt2").save(tmp_path)
    transformers.GenerationConfig(temperature=0.25, do_sample=True, eos_token_id=[5, 6]).save_pretrained(tmp_path)
    found = skeleton_of(tmp_path).model.generation_config
    assert found.to_dict() == family("gpt2").load_plain(tmp_path).generation_config.to_dict()
    assert found.temperature == 0.25


def test_without_architectures_it_is_the_base_model(bert: Path) -> None:
    edit_config(bert, architectures=None)
    assert type(skeleton_of(bert).model) is transformers.BertModel


# --- what is skipped


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.float64, torch.float8_e4m3fn, torch.bool, torch.int64, torch.float32], ids=str
)
def test_a_tensor_the_model_does_not_use_is_skipped(dtype: torch.dtype, bert: Path) -> None:
    plain = family("bert-mlm").load_plain(bert)
    change(bert, lambda tensors: tensors.update({"bert.encoder.layer.0.extra": torch.ones(70, 70).to(dtype)}))
    skeleton = skeleton_of(bert)
    assert "extra" not in "".join(source.info.name for source in skeleton.parameters.values())
    assert_is(skeleton, plain)


def test_masks_of_old_gpt2_checkpoints_are_skipped(tmp_path: Path) -> None:
    family("gpt2").save(tmp_path)
    plain = family("gpt2").load_plain(tmp_path)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(6):
            tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 128, 128, dtype=torch.uint8)
            tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    change(tmp_path, edit)
    assert_is(skeleton_of(tmp_path), plain)


# --- refusals


def refusal(error: type[HermesError], directory: Path, dtype: str = "auto") -> str:
    with pytest.raises(error) as refused:
        skeleton_of(directory, dtype)
    line = refused.value.line()
    assert "\n" not in line
    return line


def test_missing_weights_by_name(bert: Path) -> None:
    change(bert, lambda tensors: tensors.pop("bert.encoder.layer.3.output.dense.weight"))
    assert "bert.encoder.layer.3.output.dense.weight" in refusal(MissingWeights, bert)
    change(bert, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layer.1." in name])
    line = refusal(MissingWeights, bert)
    assert "BertForMaskedLM" in line
    assert "and 12 more" in line


def test_a_head_the_file_lacks_is_never_made_up(tmp_path: Path) -> None:
    family("bert").save(tmp_path)
    edit_config(tmp_path, architectures=["BertForSequenceClassification"])
    assert "classifier.weight" in refusal(MissingWeights, tmp_path)


def test_a_tie_the_file_lacks_altogether(tmp_path: Path) -> None:
    family("llama-tied").save(tmp_path)
    change(tmp_path, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert "model.embed_tokens.weight" in refusal(MissingWeights, tmp_path)


def test_an_untied_head_the_file_lacks(tmp_path: Path) -> None:
    family("llama-untied").save(tmp_path)
    change(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lm_head.weight" in refusal(MissingWeights, tmp_path)


@pytest.mark.parametrize(
    ("model_class", "config_class"),
    [("MixtralForCausalLM", "MixtralConfig"), ("Qwen2MoeForCausalLM", "Qwen2MoeConfig")],
)
def test_experts_that_would_be_merged_are_named(model_class: str, config_class: str, tmp_path: Path) -> None:
    """transformers 5 stacks the experts while loading, and still writes them one by one."""
    experts = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = getattr(transformers, config_class)(**ROPE | experts)
    getattr(transformers, model_class)(config).save_pretrained(tmp_path)
    line = refusal(UnsupportedCheckpoint, tmp_path)
    assert "layers.0" in line
    assert "experts.0." in line


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int8, "I8"), (torch.float64, "F64"), (torch.float8_e4m3fn, "F8_E4M3")], ids=str
)
def test_a_parameter_of_another_dtype_is_named(dtype: torch.dtype, name: str, bert: Path) -> None:
    key = "bert.encoder.layer.2.attention.self.query.weight"
    change(bert, lambda tensors: tensors.update({key: tensors[key].to(dtype)}))
    line = refusal(UnsupportedDtype, bert)
    assert key in line
    assert name in line


def test_a_wrong_shape_is_named(bert: Path) -> None:
    change(bert, lambda tensors: tensors.update({"bert.embeddings.LayerNorm.bias": torch.zeros(49)}))
    line = refusal(CheckpointBroken, bert)
    assert "bert.embeddings.LayerNorm.bias" in line
    assert "[49]" in line
    assert "[48]" in line


def test_a_config_of_another_size(tmp_path: Path) -> None:
    family("llama-untied").save(tmp_path)
    edit_config(tmp_path, vocab_size=WIDE["vocab_size"] + 1)
    assert "config.json" in refusal(CheckpointBroken, tmp_path)


def test_fewer_layers_than_the_file_has_are_unused_weights(bert: Path) -> None:
    edit_config(bert, num_hidden_layers=2)
    assert_is(skeleton_of(bert), family("bert-mlm").load_plain(bert))


def test_unknown_architecture(bert: Path) -> None:
    edit_config(bert, architectures=["BertForDreaming"])
    assert "BertForDreaming" in refusal(UnsupportedCheckpoint, bert)


def test_unknown_model_type(bert: Path) -> None:
    edit_config(bert, model_type="dreamer")
    assert "dreamer" in refusal(UnsupportedCheckpoint, bert)


def test_code_in_the_checkpoint_is_not_run(bert: Path) -> None:
    (bert / "evil.py").write_text("raise SystemExit('this must never run')")
    edit_config(bert, model_type="dreamer", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    refusal(UnsupportedCheckpoint, bert)


def test_quantised(bert: Path) -> None:
    edit_config(bert, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "gptq" in refusal(UnsupportedDtype, bert)
