"""A board's part of a model: runs stretches of its layers on hidden states that come from the head, with caches of its
own. The model is the whole one on streamed weights; of the others' layers nothing is ever loaded.

It knows no socket: bundles come and go through memory that its caller names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from hermes_mp.core.bundle import Placed
from hermes_mp.errors import BadMessage
from hermes_mp.messages import MAX_IN_FLIGHT, LayerCalls, LayerRange, RunLayers
from hermes_mp.models import layer_calls
from hermes_mp.models.chain import Chain


@dataclass
class _Member:
    """Of one of the head's requests: caches of `length` positions, `new` more of the present pass, and its tensors."""

    cache: Any = None
    length: int = 0
    new: int = 0
    tensors: list[torch.Tensor] = field(default_factory=list)


class Stage:
    """One pass at a time, of one or several requests; `run` its stretches in order."""

    def __init__(self, model: Any, chain: Chain, units: Callable[[int], Sequence[int]], stalled_ns: Callable[[], int]):
        """`units` of a layer; `stalled_ns`: how long units were waited for, so far."""
        self._model, self._chain, self._units, self._stalled_ns = model, chain, units, stalled_ns
        self._stretches: tuple[LayerRange, ...] = ()
        self._members: dict[int, _Member] = {}
        self._present: dict[int, _Member] = {}  # in the present pass
        self._number: int | None = None  # of the present pass
        self._next = 0
        self._open = False

    def assign(self, stretches: Sequence[LayerRange]) -> None:
        """These from now on, with empty caches. Raises BadMessage where there are no such layers."""
        self.abandon()
        at = 0
        for one in stretches:
            if not at <= one.first < one.last <= len(self._chain.layers):
                raise BadMessage(f"layers {one.first} to {one.last} of {len(self._chain.layers)}, after layer {at}")
            at = one.last
        self._stretches = tuple(stretches)
        self._members, self._number = {}, None

    def abandon(self) -> None:
        """A pass that is under way will not go on."""
        if self._open:
            self._open = False
            for number in self._present:  # some layers hold the positions of this pass, and others do not
                del self._members[number]
            self._model._hermes_binder.end(False)
        self._present = {}

    def run(
        self, ask: RunLayers, placed: Sequence[Placed], memory: memoryview
    ) -> tuple[list[torch.Tensor], int, int]:
        """The stretch's hidden states by part, and the nanoseconds that they took and that units were waited for.

        `placed` says where in `memory` the tensors of the bundle lie. Raises BadMessage where what is asked does not go
        on from what was.
        """
        began, stalled = time.monotonic_ns(), self._stalled_ns()
        found = [_tensor(memory, one) for one in placed]
        states: list[torch.Tensor] = []
        for part in ask.parts:
            states.append(found[len(part.tensors)])
            found = found[len(part.tensors) + 1 :]
        if ask.number != self._number:
            self._begin(ask, states)
        if not self._open or ask.index != self._next or ask.index >= len(self._stretches):
            raise BadMessage(f"stretch {ask.index} of pass {ask.number} was asked for, {self._next} comes next")
        self._keep_tensors(ask, placed, memory)
        complete = False
        try:
            with torch.no_grad():
                given = self._run_layers(self._stretches[ask.index], ask.parts, states)
            complete = True
        finally:
            if not complete:
                self.abandon()
        self._next += 1
        if ask.last:
            for one in self._present.values():
                one.length += one.new
                one.tensors = []
            self._open, self._present = False, {}
            self._model._hermes_binder.end(True)
        return given, time.monotonic_ns() - began, self._stalled_ns() - stalled

    def _keep_tensors(self, ask: RunLayers, placed: Sequence[Placed], memory: memoryview) -> None:
        """The next bundle will lie there."""
        at = 0
        for part in ask.parts:
            one = self._present.get(part.member)
            if one is None:
                raise BadMessage(f"request {part.member} is in the middle of a pass that it has not begun")
            one.tensors += [_tensor(memory, place).clone() for place in placed[at : at + len(part.tensors)]]
            at += len(part.tensors) + 1

    def _run_layers(
        self, stretch: LayerRange, parts: Sequence[LayerCalls], states: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Of each layer all requests' calls, one after the other: its unit is read once for all of them."""
        count = stretch.last - stretch.first
        members = [self._present[part.member] for part in parts]
        calls = [
            layer_calls.decode(part.calls, count, one.tensors, one.cache)
            for part, one in zip(parts, members, strict=True)
        ]
        for number in range(count):
            layer = self._chain.layers[stretch.first + number]
            with self._bound(stretch.first + number, len(parts)):
                for place, own in enumerate(calls):
                    args, kwargs = own[number](states[place])
                    output = layer(*args, **kwargs)
                    states[place] = output[0] if isinstance(output, tuple) else output
        return states

    @contextmanager
    def _bound(self, layer: int, calls: int) -> Iterator[None]:
        """Inside, the unit of the layer lies there; one of several units reads each of them for every call."""
        units = self._units(layer)
        if calls == 1 or len(units) != 1:
            yield
            return
        binder = self._model._hermes_binder
        binder.hold(units[0])
        try:
            yield
        finally:
            binder.drop(units[0], True)

    def _begin(self, ask: RunLayers, states: Sequence[torch.Tensor]) -> None:
        self.abandon()
        present: dict[int, _Member] = {}
        for part, own in zip(ask.parts, states, strict=True):
            if own.dim() < 2:
                raise BadMessage(f"hidden states of {own.dim()} dimensions")
            if part.member in present or part.member >= MAX_IN_FLIGHT:
                raise BadMessage(f"request {part.member} of a pass is named twice, or beyond {MAX_IN_FLIGHT}")
            present[part.member] = self._go_on(part)
            present[part.member].new, present[part.member].tensors = own.shape[1], []
        self._number, self._next = ask.number, 0
        binder = self._model._hermes_binder
        calls = [
            {"hidden_states": own, "past_key_values": one.cache}
            for own, one in zip(states, present.values(), strict=True)
        ]
        for call in calls[1:]:
            binder.check_call(call)
        self._members |= present
        binder.open(lambda: calls[0], None)
        self._open, self._present = True, present

    def _go_on(self, part: LayerCalls) -> _Member:
        """The request with caches as it wants them."""
        if part.past == 0:
            return _Member(DynamicCache(config=self._model.config))
        one = self._members.get(part.member, _Member())
        if part.past > one.length:
            raise BadMessage(f"a pass goes on behind {part.past} positions, the caches hold {one.length}")
        if part.past < one.length:
            one.cache.crop(part.past - one.length)
            one.length = part.past
        if part.rows:
            one.cache.reorder_cache(torch.tensor(part.rows))
        return one


def _tensor(memory: memoryview, one: Placed) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, one.spec.dtype)
    if not one.nbytes:
        return torch.empty(one.spec.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=torch.uint8, count=one.nbytes, offset=one.at).view(dtype).view(one.spec.shape)
