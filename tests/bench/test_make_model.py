"""Models with random weights: transformers loads what was written, whole; what cannot be made is one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from hermes_mp.bench import make_model, models
from hermes_mp.bench.journal import ModelFacts
from hermes_mp.bench.shapes import SHAPES, Shape
from hermes_mp.errors import BadOption, HermesError, ModelNotFound

SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 300, "n_positions": 64}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_loaded_whole(tmp_path: Path, dtype: str) -> None:
    shape = Shape("GPT2LMHeadModel", "GPT2Config", dtype, 10**6, SMALL, shard="30KB")
    make_model.make(shape, tmp_path / "small")
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 1, "in shards, as asked"
    model, said = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "small", dtype="auto", output_loading_info=True
    )
    assert not any(said.values())
    assert model.dtype == getattr(torch, dtype)
    with torch.inference_mode():
        logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.isfinite().all()
    assert logits.std() > 0
    assert [path.name for path in tmp_path.iterdir()] == ["small"], "nothing is left beside it"
    found = models.open_model(str(tmp_path / "small"), tmp_path, print)
    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    assert found.facts == ModelFacts(
        "small", nbytes, model.num_parameters(), {"float32": "F32", "bfloat16": "BF16"}[dtype]
    )
    assert found.is_of_words
    assert found.generates


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_what_transformers_takes_and_as_large_as_they_say(name: str) -> None:
    shape = SHAPES[name]
    config = getattr(transformers, shape.config)(**shape.settings)
    with torch.device("meta"):
        model = getattr(transformers, shape.model)(config).to(getattr(torch, shape.dtype))
    assert sum(parameter.nbytes for parameter in model.parameters()) == pytest.approx(shape.nbytes, rel=0.01)


def test_what_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match="no shape 'gpt-5'") as caught:
        models.make_model("gpt-5", tmp_path / "new")
    assert "bert-large" in caught.value.line()
    with pytest.raises(BadOption, match="exists"):
        models.make_model("gpt2", tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    with pytest.raises(HermesError, match=r"gpt2 takes 0\.5 GB .* has 0\.1 GB free"):
        models.make_model("gpt2", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_no_model_is_said(tmp_path: Path) -> None:
    for name in (str(tmp_path), "no/such/model", "no-such-shape"):
        with pytest.raises(ModelNotFound):
            models.open_model(name, tmp_path, print)
