"""What stands in for a weight: it answers as the loaded one would, and never hands out bytes that are not there."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hermes_mp.errors import NeedsAllWeights
from hermes_mp.models.placeholder import Placeholder

SHAPE = torch.Size((130, 8))


class HeldMatrix:
    """The two ways of use, on a whole matrix."""

    def __init__(self) -> None:
        self.whole = torch.randn(SHAPE)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        return self.whole[indices]

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(inputs, self.whole, bias)


@pytest.fixture
def placeholder() -> Placeholder:
    return Placeholder.of("layer.weight", SHAPE, torch.bfloat16)


def test_it_is_a_parameter_of_the_right_shape(placeholder: Placeholder) -> None:
    module = nn.Linear(8, 130, bias=False)
    module._parameters["weight"] = placeholder  # type: ignore[assignment]
    loaded = nn.Parameter(torch.empty(SHAPE, dtype=torch.bfloat16), requires_grad=False)
    assert isinstance(placeholder, nn.Parameter)
    assert list(module.parameters()) == [placeholder]
    assert "layer.weight" in repr(placeholder)
    for ask in ASKED:
        assert ask(placeholder) == ask(loaded)
    assert len({placeholder, placeholder}) == 1
    assert placeholder.requires_grad_(False) is placeholder


ASKED: list[Callable[[torch.Tensor], object]] = [
    lambda weight: weight.shape,
    lambda weight: weight.size(),
    lambda weight: weight.size(0),
    lambda weight: weight.dtype,
    lambda weight: weight.device,
    lambda weight: weight.dim(),
    lambda weight: weight.ndim,
    lambda weight: weight.numel(),
    lambda weight: weight.nelement() * weight.element_size(),
    lambda weight: weight.nbytes,
    lambda weight: weight.itemsize,
    lambda weight: len(weight),
    lambda weight: weight.is_floating_point(),
    lambda weight: weight.requires_grad,
    lambda weight: weight.is_leaf,
    lambda weight: weight.grad,
    lambda weight: weight.is_cuda,
    lambda weight: weight.is_meta,
    lambda weight: weight.type(),
]


def test_it_takes_no_memory() -> None:
    huge = Placeholder.of("head", torch.Size((1 << 20, 1 << 12)), torch.float32)
    with torch._C.DisableTorchFunctionSubclass():
        assert huge.untyped_storage().nbytes() == 4


GIVES_BYTES: dict[str, Callable[[Any], object]] = {
    "add": lambda weight: weight + 1,
    "radd": lambda weight: torch.ones(8) + weight,
    "matmul": lambda weight: torch.ones(2, 130) @ weight,
    "linear": lambda weight: F.linear(torch.ones(2, 8), weight),
    "linear by name": lambda weight: F.linear(input=torch.ones(2, 8), weight=weight),
    "linear bias": lambda weight: F.linear(torch.ones(2, 8), torch.ones(8, 8), weight),
    "embedding": lambda weight: F.embedding(torch.tensor([1]), weight),
    "in a list": lambda weight: torch.cat([torch.ones(1, 8), weight]),
    "index": lambda weight: weight[0],
    "assign": lambda weight: weight.__setitem__(0, 1.0),
    "iterate": lambda weight: list(weight),
    "data": lambda weight: weight.data,
    "transpose": lambda weight: weight.T,
    "detach": lambda weight: weight.detach(),
    "clone": lambda weight: weight.clone(),
    "to": lambda weight: weight.to(torch.float32),
    "type": lambda weight: weight.type(torch.float32),
    "float": lambda weight: weight.float(),
    "cpu": lambda weight: weight.cpu(),
    "numpy": lambda weight: weight.float().numpy(),
    "tolist": lambda weight: weight.tolist(),
    "sum": lambda weight: weight.sum(),
    "copy_": lambda weight: torch.empty(SHAPE).copy_(weight),
    "data_ptr": lambda weight: weight.data_ptr(),
    "storage": lambda weight: weight.untyped_storage(),
    "requires_grad_": lambda weight: weight.requires_grad_(True),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": pickle.dumps,
    "save": lambda weight: torch.save(weight, io.BytesIO()),
    "initialise": lambda weight: nn.init.zeros_(weight),
}


@pytest.mark.parametrize("name", GIVES_BYTES)
def test_what_needs_the_bytes_is_refused(placeholder: Placeholder, name: str) -> None:
    with pytest.raises(NeedsAllWeights) as refused:
        GIVES_BYTES[name](placeholder)
    assert "\n" not in refused.value.line()
    if name != "in a list":
        assert "layer.weight" in str(refused.value)


def test_a_streamed_matrix_is_looked_up_and_multiplied() -> None:
    matrix = HeldMatrix()
    placeholder = Placeholder.of("wte", SHAPE, torch.float32, matrix)
    ids = torch.tensor([[1, 129], [0, 1]])
    assert torch.equal(F.embedding(ids, placeholder, 0), matrix.whole[ids])
    hidden, bias = torch.randn(2, 3, 8), torch.randn(130)
    assert torch.equal(F.linear(hidden, placeholder), F.linear(hidden, matrix.whole))
    assert torch.equal(F.linear(hidden, weight=placeholder, bias=bias), F.linear(hidden, matrix.whole, bias))
    with pytest.raises(NeedsAllWeights, match="wte"):
        hidden @ placeholder.T
    with pytest.raises(NeedsAllWeights, match="max_norm"):
        F.embedding(ids, placeholder, max_norm=1.0)
