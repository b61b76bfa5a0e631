"""What a layer is given beside the hidden states, as text and tensors that another board can call it with.

Masks, positions and the like go as they are: the board that runs a layer computes none of them again, and needs to know
nothing of the architecture. A cache goes as a word: every board has one of its own. Knows no board and no message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache, EncoderDecoderCache

from hermes_mp.errors import BadMessage, CannotBeCut
from hermes_mp.messages import MAX_TEXT_CHARS, TensorSpec

STATES, CACHE, TENSOR, TUPLE, LIST, DICT = "states", "cache", "tensor", "tuple", "list", "dict"
MAX_DEPTH = 6
Call = tuple[tuple[Any, ...], dict[str, Any]]  # the arguments of a layer


class PassTensors:
    """The tensors that one board has been given during a pass: each crosses once, however many layers are given it."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []  # so that no other gets its id
        self._sent = 0

    def number(self, tensor: torch.Tensor) -> int:
        """The place of this tensor among those of the pass."""
        found = self._numbers.get(id(tensor))
        if found is None:
            found = self._numbers[id(tensor)] = len(self._kept)
            self._kept.append(tensor)
        return found

    def unsent(self) -> list[torch.Tensor]:
        """Those that no earlier message of the pass has brought; from now on they count as sent."""
        new, self._sent = self._kept[self._sent :], len(self._kept)
        return new


def encode(
    calls: Sequence[Call], states: Sequence[torch.Tensor], tensors: PassTensors, most: int = MAX_TEXT_CHARS
) -> str:
    """The calls of a stretch's layers as JSON of at most so many characters.

    `states[i]` are the hidden states that the i-th was given. Raises CannotBeCut for an argument that cannot cross.
    """
    texts = [
        json.dumps([_written(list(args), own, tensors, 0), _written(kwargs, own, tensors, 0)])
        for (args, kwargs), own in zip(calls, states, strict=True)
    ]
    kinds = list(dict.fromkeys(texts))  # most layers are given the same
    text = json.dumps([[json.loads(kind) for kind in kinds], [kinds.index(one) for one in texts]])
    if len(text) > most:
        raise CannotBeCut(f"what {len(calls)} layers are given makes {len(text)} characters, more than a message holds")
    return text


def decode(text: str, layers: int, tensors: Sequence[torch.Tensor], cache: Any) -> list[Callable[[torch.Tensor], Call]]:
    """For each of the stretch's layers what makes its arguments of the hidden states. Raises BadMessage."""
    try:
        kinds, which = json.loads(text)
        chosen = [kinds[one] for one in which]
    except (ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
        raise BadMessage(f"what layers are given is no JSON of ours: {type(error).__name__}") from None
    if len(chosen) != layers or not all(isinstance(one, list) and len(one) == 2 for one in chosen):
        raise BadMessage(f"{len(chosen)} calls for {layers} layers")
    return [_caller(one, tensors, cache) for one in chosen]


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def _caller(kind: list[Any], tensors: Sequence[torch.Tensor], cache: Any) -> Callable[[torch.Tensor], Call]:
    def call(states: torch.Tensor) -> Call:
        args, kwargs = (_read(one, states, tensors, cache, 0) for one in kind)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise BadMessage("a layer is called with a list and a dict")
        return tuple(args), kwargs

    return call


def _written(value: Any, states: torch.Tensor, tensors: PassTensors, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise CannotBeCut("a layer is given something nested too deeply")
    if value is states:
        return {STATES: 0}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return {TENSOR: tensors.number(value)}
    if isinstance(value, Cache) and not isinstance(value, EncoderDecoderCache):
        return {CACHE: 0}
    if type(value) in (tuple, list):
        inner = [_written(one, states, tensors, depth + 1) for one in value]
        return {TUPLE if type(value) is tuple else LIST: inner} if depth or type(value) is tuple else inner
    if type(value) is dict and all(isinstance(name, str) for name in value):
        inner_dict = {name: _written(one, states, tensors, depth + 1) for name, one in value.items()}
        return {DICT: inner_dict} if depth else inner_dict
    raise CannotBeCut(f"a layer is given a {type(value).__name__}, which cannot cross between boards")


def _read(value: Any, states: torch.Tensor, tensors: Sequence[torch.Tensor], cache: Any, depth: int) -> Any:
    if depth > 2 * MAX_DEPTH:
        raise BadMessage("what a layer is given is nested too deeply")
    if depth == 0 and isinstance(value, list):
        return [_read(one, states, tensors, cache, depth + 1) for one in value]
    if depth == 0 and isinstance(value, dict):
        return {name: _read(one, states, tensors, cache, depth + 1) for name, one in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict) and len(value) == 1:
        ((what, inner),) = value.items()
        if what == STATES:
            return states
        if what == CACHE:
            return cache
        if what == TENSOR and type(inner) is int and 0 <= inner < len(tensors):
            return tensors[inner]
        if what in (TUPLE, LIST) and isinstance(inner, list):
            made = [_read(one, states, tensors, cache, depth + 1) for one in inner]
            return tuple(made) if what == TUPLE else made
        if what == DICT and isinstance(inner, dict):
            return {name: _read(one, states, tensors, cache, depth + 1) for name, one in inner.items()}
    raise BadMessage("what a layer is given holds something that none of ours writes")
