"""The layers of a model as a chain that boards can share: a list whose members run in order, each on what the one
before it gave, with nothing in between. Found by the trace, for any architecture; there is no list of names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from hermes_mp.errors import CannotBeCut
from hermes_mp.models.skeleton import Skeleton
from hermes_mp.models.trace import Trace

FEWEST = 2  # layers that are worth a cut


class Absent:
    """What a layer on another board gives beside its hidden states (attentions, mostly): whoever uses it is told."""

    def __getattr__(self, name: str) -> NoReturn:
        raise CannotBeCut(f"{name} of what a layer gives beside its states is used, and stays on the board that ran it")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise CannotBeCut("what a layer gives beside its states is used, and stays on the board that ran it")


@dataclass(frozen=True)
class Chain:
    """`layers` in the order in which they run. `beside`: what each gives in a tuple with its states; None: no tuple."""

    name: str
    layers: tuple[nn.Module, ...]
    beside: tuple[tuple[bool, ...] | None, ...]

    def gives(self, layer: int, states: torch.Tensor) -> Any:
        """The output of that layer, of its hidden states."""
        beside = self.beside[layer]
        return states if beside is None else (states, *(Absent() if one else None for one in beside))


def find_chain(skeleton: Skeleton, trace: Trace) -> Chain:
    """The chain with the most weights. Raises CannotBeCut with the reason where there is none."""
    model = skeleton.model
    kind = type(model).__name__
    if trace.failed:
        raise CannotBeCut(f"the order of {kind}'s layers cannot be traced ({trace.failed})")
    if getattr(model.config.get_text_config(), "num_kv_shared_layers", 0):
        raise CannotBeCut(f"layers of {kind} use each other's keys and values")
    found = [
        (_nbytes(skeleton, part), name, part)
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and _is_chain(part, trace)
    ]
    if not found:
        raise CannotBeCut(f"{kind} has no list of layers in which each runs once, on what the one before it gave")
    _, name, part = max(found, key=lambda one: one[0])
    layers = tuple(part)
    within = {id(parameter) for layer in layers for parameter in layer.parameters()}
    elsewhere = {
        id(parameter)
        for owner in model.modules()
        for parameter in owner._parameters.values()
        if parameter is not None and not any(owner is inner for layer in layers for inner in layer.modules())
    }
    if within & elsewhere:
        raise CannotBeCut(f"layers of {kind} share weights with the rest of it")
    return Chain(name, layers, tuple(call.beside for call in trace.calls[id(part)]))


def _is_chain(part: nn.ModuleList, trace: Trace) -> bool:
    calls = trace.calls.get(id(part), [])
    in_order = [call.member for call in calls] == [id(layer) for layer in part]
    return (
        len(part) >= FEWEST
        and in_order
        and all(call.plain for call in calls)
        and all(call.follows for call in calls[1:])
    )


def _nbytes(skeleton: Skeleton, part: nn.Module) -> int:
    return sum(skeleton.source(parameter).info.nbytes for parameter in part.parameters())
