"""What a streamed model says of itself is what a loaded one says; what needs all weights is refused in one line."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import assert_same, both
from families import family
from torch import nn

from hermes_mp.errors import NeedsAllWeights

Folder = Callable[[str], Path]

ASKED: dict[str, Callable[[Any], object]] = {
    "device": lambda model: model.device,
    "dtype": lambda model: model.dtype,
    "parameters": lambda model: model.num_parameters(),
    "parameters but embeddings": lambda model: model.num_parameters(exclude_embeddings=True),
    "bytes": lambda model: model.get_memory_footprint(),
    "names": lambda model: [(name, tuple(found.shape), found.dtype) for name, found in model.named_parameters()],
    "all names": lambda model: [name for name, _ in model.named_parameters(remove_duplicate=False)],
    "devices": lambda model: {parameter.device for parameter in model.parameters()},
    "modules": lambda model: [(name, type(module).__name__) for name, module in model.named_modules()],
    "buffers": lambda model: [(name, buffer.dtype, buffer.tolist()) for name, buffer in model.named_buffers()],
    "config": lambda model: model.config.to_dict() | {"_name_or_path": "", "dtype": str(model.config.dtype)},
    "generation": lambda model: model.generation_config.to_dict(),
    "can generate": lambda model: model.can_generate(),
    "main input": lambda model: model.main_input_name,
    "prefix": lambda model: model.base_model_prefix,
    "training": lambda model: model.training,
    "framework": lambda model: model.framework if hasattr(model, "framework") else None,
    "head": lambda model: tuple(model.get_output_embeddings().weight.shape),
    "tied": lambda model: model.get_output_embeddings().weight is model.get_input_embeddings().weight,
    "base": lambda model: type(model.base_model),
    "name": lambda model: (type(model).__name__, type(model).__module__),
    "evaluation": lambda model: model.eval() is model and model.train(False) is model,
    "frozen": lambda model: model.requires_grad_(False) is model,
}


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama-tied", "llama-untied", "opt"])
def test_it_answers_as_if_loaded(name: str, folder: Folder) -> None:
    with both(family(name), folder(name)) as (streamed, plain):
        assert isinstance(streamed, type(plain))
        for what, ask in ASKED.items():
            assert ask(streamed) == ask(plain), what
        assert str(folder(name)) in (streamed.config.name_or_path, streamed.name_or_path)
        assert "Placeholder" not in str(streamed)


REFUSED: dict[str, Callable[[Any], object]] = {
    "state_dict": lambda model: model.state_dict(),
    "state_dict of a part": lambda model: model.transformer.h[0].state_dict(),
    "load_state_dict": lambda model: model.load_state_dict({}),
    "save_pretrained": lambda model: model.save_pretrained("/nonexistent/anywhere"),
    "push_to_hub": lambda model: model.push_to_hub("nobody/nothing"),
    "to": lambda model: model.to("cpu"),
    "to of a part": lambda model: model.transformer.to(torch.float16),
    "half": lambda model: model.half(),
    "float": lambda model: model.float(),
    "double": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "cuda": lambda model: model.cuda(),
    "cpu": lambda model: model.cpu(),
    "train": lambda model: model.train(),
    "requires_grad_": lambda model: model.requires_grad_(),
    "compile": lambda model: model.compile(),
    "torch.compile": torch.compile,
    "share_memory": lambda model: model.share_memory(),
    "deepcopy": copy.deepcopy,
    "deepcopy of a part": lambda model: copy.deepcopy(model.transformer.h[1]),
    "copy": copy.copy,
    "pickle": pickle.dumps,
    "torch.save": lambda model: torch.save(model, io.BytesIO()),
    "resize": lambda model: model.resize_token_embeddings(400),
    "weights": lambda model: model.lm_head.weight + 1,
    "a weight's data": lambda model: model.transformer.h[0].mlp.c_fc.weight.data,
    "a part of a layer": lambda model: model.transformer.h[0].mlp(torch.ones(1, 1, 48)),
    "all of them": lambda model: nn.utils.parameters_to_vector(model.parameters()),
    "gradients": lambda model: model(inputs_embeds=torch.ones(1, 2, 48, requires_grad=True)),
    "gradients of a layer": lambda model: model.transformer.h[0](torch.ones(1, 2, 48, requires_grad=True)),
}


def line_of_refusal(ask: Callable[[Any], object], model: Any) -> str:
    try:
        ask(model)
    except NeedsAllWeights as refused:
        return refused.line()
    return "it was not refused"


def test_what_needs_all_weights_is_refused_in_one_line(folder: Folder) -> None:
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain), torch.enable_grad():
        for what, ask in REFUSED.items():
            line = line_of_refusal(ask, streamed)
            assert "\n" not in line, what
            assert "load the model with transformers itself" in line, what
        inputs = family("gpt2").inputs()
        assert_same(streamed(**inputs).logits, plain(**inputs).logits.detach())


def test_an_input_that_requires_grad_is_fine_without_gradients(folder: Folder) -> None:
    with both(family("gpt2"), folder("gpt2")) as (streamed, plain):
        embedded = torch.randn(1, 2, 48, requires_grad=True)
        assert_same(streamed(inputs_embeds=embedded), plain(inputs_embeds=embedded))
