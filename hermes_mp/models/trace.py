"""One forward on the meta device: which weights are used, in which order, inside which modules, and the peak memory.

Works for any architecture: it watches torch's functions, not module names. What it returns is a guess about later
calls (a prediction of the order, an estimate of bytes), never something an answer depends on.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

UseKind = Literal["rows", "matrix", "other"]


@dataclass(frozen=True)
class Use:
    """One use of a parameter: as the matrix of an embedding, as that of a linear map, or in any other way."""

    parameter: int
    kind: UseKind
    inside: tuple[int, ...]  # ids of the modules whose forward was running, outermost first


@dataclass
class Trace:
    """What one meta forward of `rows` sequences of `tokens` positions showed; `failed` says why it ended early."""

    uses: list[Use] = field(default_factory=list)
    peak_nbytes: int = 0
    logits_nbytes_per_position: int = 0  # where the caller may choose how many positions get logits
    layers: list[torch.Size] = field(default_factory=list)  # of the hidden states that each layer gave
    calls: dict[int, list[ListCall]] = field(default_factory=dict)  # of the members of each list, by the list's id
    kv_nbytes: list[int] = field(default_factory=list)  # of each layer's keys and values, where the call kept them
    failed: str = ""


@dataclass(frozen=True)
class ListCall:
    """A member of a list of modules was called. `follows`: on the very tensor that the member before it gave.

    `plain`: it gave a tensor, or a tuple that begins with one; then `beside` says of each of the rest whether it is
    something.
    """

    member: int
    follows: bool
    plain: bool
    beside: tuple[bool, ...] | None


class _Uses(TorchFunctionMode):
    """Notes every parameter that reaches a torch function; attention costs what the CPU's fused kernel costs."""

    def __init__(self, trace: Trace, stack: list[int]) -> None:
        super().__init__()
        self.trace, self.stack = trace, stack

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in ("__get__", "__set__"):
            for position, value in enumerate((*args, *kwargs.values())):
                for tensor in value if isinstance(value, (tuple, list)) else (value,):
                    if isinstance(tensor, nn.Parameter):
                        kind: UseKind = "other"
                        if position == 1 and func is F.embedding:
                            kind = "rows"
                        elif position == 1 and func is F.linear:
                            kind = "matrix"
                        self.trace.uses.append(Use(id(tensor), kind, tuple(self.stack)))
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _fused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any
) -> torch.Tensor:
    # On meta torch takes the unfused path, whose (tokens x tokens) matrices the CPU never makes.
    mask = attn_mask.to(query.dtype) if attn_mask is not None and attn_mask.dtype == torch.bool else None
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    del mask
    return out


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own base is untyped
    """Sums the storages that are alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen:
            return
        nbytes = storage.nbytes()
        self.seen.add(key)
        self.live += nbytes
        self.peak = max(self.peak, self.live)

        def freed() -> None:
            self.seen.discard(key)
            self.live -= nbytes

        weakref.finalize(storage, freed)


@contextmanager
def _module_stack(model: nn.Module, trace: Trace, stack: list[int]) -> Iterator[None]:
    lists = {id(one): id(part) for part in model.modules() if isinstance(part, nn.ModuleList) for one in part}
    given: dict[int, Any] = {}  # by list, what its last member gave: kept weakly, for the peak

    def push(module: nn.Module, args: Any) -> None:
        stack.append(id(module))

    def pop(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        stack.pop()
        if id(module) not in lists:
            return
        beside = tuple(one is not None for one in output[1:]) if type(output) is tuple else None
        states = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(states, torch.Tensor) and states.dim() == 3:
            trace.layers.append(states.shape)
        part = lists[id(module)]
        before, taken = given.get(part, lambda: None)(), args[0] if args else kwargs.get("hidden_states")
        plain = isinstance(states, torch.Tensor) and (states is output or beside is not None)
        follows = before is not None and before is taken
        trace.calls.setdefault(part, []).append(ListCall(id(module), follows, plain, beside))
        given[part] = weakref.ref(states) if isinstance(states, torch.Tensor) else lambda: None

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(push))
        handles.append(module.register_forward_hook(pop, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace_forward(model: Any, rows: int, tokens: int) -> Trace:
    """Run `model` (all on meta) once on `rows` sequences of `tokens` positions, or `rows` images."""
    trace = Trace()
    stack: list[int] = []
    peak = _Peak()
    for parameter in model.parameters():
        peak.seen.add(parameter.untyped_storage()._cdata)
    try:
        inputs = example_inputs(model, rows, tokens)
        with torch.no_grad(), _module_stack(model, trace, stack), _Uses(trace, stack), peak:
            output = model(**inputs)
        trace.kv_nbytes = _kv_nbytes(getattr(output, "past_key_values", None))
        logits = getattr(output, "logits", None)
        if isinstance(logits, torch.Tensor) and "logits_to_keep" in inputs:
            trace.logits_nbytes_per_position = logits.shape[-1] * logits.element_size()
    except Exception as error:
        # Any architecture may do on meta what meta cannot (look at a value): the order is then that of definition.
        trace.failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    trace.peak_nbytes = peak.peak
    return trace


def _kv_nbytes(cache: Any) -> list[int]:
    found = []
    for layer in getattr(cache, "layers", ()):
        kept = [getattr(layer, name, None) for name in ("keys", "values")]
        found.append(sum(one.nbytes for one in kept if isinstance(one, torch.Tensor)))
    return found


def example_inputs(model: Any, rows: int, tokens: int) -> dict[str, Any]:
    """Inputs on meta for the model's main input; a generator also keeps its cache and only the last logits."""
    parameters = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {}
    if model.main_input_name == "pixel_values":
        config = model.config
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        channels = getattr(config, "num_channels", 3)
        inputs["pixel_values"] = torch.empty(rows, channels, height, width, device="meta")
    else:
        ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
        inputs[model.main_input_name] = ids
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
    if model.can_generate() and "use_cache" in parameters:
        inputs["use_cache"] = True
    if "logits_to_keep" in parameters:
        inputs["logits_to_keep"] = 1
    return inputs
