"""What stands in a module while its weight is not in memory: right shape, dtype and device, no bytes.

Asked for a property it answers as the loaded weight would; used in a computation it raises, unless it is one of the
big two (an embedding matrix, a vocabulary head) and the function is the one that can be streamed. It knows neither
files nor slots: a `StreamedMatrix` does.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F

from hermes_mp.errors import NeedsAllWeights


class StreamedMatrix(Protocol):
    """A matrix that is used in pieces. Both calls give what torch gives for the whole matrix, bit for bit."""

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """`matrix[indices]`: shape `(*indices.shape, columns)`."""

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`inputs @ matrix.T + bias`: shape `(*inputs.shape[:-1], rows)`."""


# Properties are read through their getters; these give the weight itself away, so they are no properties to us.
_GIVES_VALUES = {getattr(torch.Tensor, name).__get__ for name in ("data", "T", "mT", "H", "mH", "real", "imag")}
_METHODS = {
    torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.nelement, torch.Tensor.element_size,
    torch.Tensor.stride, torch.Tensor.is_floating_point, torch.Tensor.is_complex, torch.Tensor.ndimension,
    torch.Tensor.is_contiguous, torch.Tensor.__len__, torch.is_floating_point, torch.is_complex, torch.numel,
    torch.Tensor.get_device, torch.Tensor.__hash__,
}  # fmt: skip


class Placeholder(torch.Tensor):
    """A parameter whose bytes are elsewhere."""

    _is_param = True  # isinstance(placeholder, nn.Parameter)
    weight_name: str
    matrix: StreamedMatrix | None

    @staticmethod
    def of(name: str, shape: torch.Size, dtype: torch.dtype, matrix: StreamedMatrix | None = None) -> Placeholder:
        empty = torch.zeros((), dtype=dtype).expand(shape)  # strides of 0: one element of memory
        made: Placeholder = torch.Tensor._make_subclass(Placeholder, empty, False)
        made.weight_name = name
        made.matrix = matrix
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding and _streamed(args, kwargs):
            return _embedding(*args, **kwargs)
        if func is F.linear and _streamed(args, kwargs):
            return _linear(*args, **kwargs)
        is_getter = getattr(func, "__name__", "") == "__get__" and func not in _GIVES_VALUES
        is_asked_type = func is torch.Tensor.type and len(args) == 1 and not kwargs  # with an argument it casts
        if is_getter or is_asked_type or func in _METHODS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func is torch.Tensor.requires_grad_ and args[1:] in ((False,),):
            return args[0]
        found = (value.weight_name for value in (*args, *kwargs.values()) if isinstance(value, Placeholder))
        name = next(found, "a weight")
        what = getattr(func, "__name__", str(func))
        raise NeedsAllWeights(f"{name} is not in memory outside its layer's forward, so {what}() cannot use it")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch leaves it untyped
        return f"Placeholder({self.weight_name}, {tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: Any) -> Any:
        raise NeedsAllWeights(f"{self.weight_name} cannot be copied: it is not in memory")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NeedsAllWeights(f"{self.weight_name} cannot be pickled: it is not in memory")


def _streamed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    return isinstance(weight, Placeholder) and weight.matrix is not None


def _embedding(
    input: torch.Tensor,
    weight: Placeholder,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> torch.Tensor:
    if max_norm is not None:
        raise NeedsAllWeights(f"{weight.weight_name} is renormalised while it is used (max_norm)")
    assert weight.matrix is not None
    return weight.matrix.rows(input)


def _linear(input: torch.Tensor, weight: Placeholder, bias: torch.Tensor | None = None) -> torch.Tensor:
    assert weight.matrix is not None
    return weight.matrix.linear(input, bias)
