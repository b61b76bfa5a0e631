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
    """Of one of the head's requests: caches of `length` positions, and `new` more of the present pass."""

    cache: Any = None
    length: int = 0
    new: int = 0


@dataclass
class _Part:
    """What a request, or a chunk of its prompt, has brought to the present pass."""

    of: _Member
    at: int = -1  # the stretch it has been through
    tensors: list[torch.Tensor] = field(default_factory=list)


class Stage:
    """One pass at a time, of one or several requests; `run` its stretches in order."""

    def __init__(self, model: Any, chain: Chain, units: Callable[[int], Sequence[int]], stalled_ns: Callable[[], int]):
        """`units` of a layer; `stalled_ns`: how long units were waited for, so far."""
        self._model, self._chain, self._units, self._stalled_ns = model, chain, units, stalled_ns
        self._stretches: tuple[LayerRange, ...] = ()
        self._members: dict[int, _Member] = {}
        self._present: dict[tuple[int, int], _Part] = {}  # in the present pass, by request and chunk
        self._number: int | None = None  # of the present pass
        self._at = -1  # the stretch that was run last
        self._kept: int | None = None  # a unit that more is to be run on
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
            for number in {number for number, _ in self._present}:
                own = [one for (member, _), one in self._present.items() if member == number]
                if all(one.at == len(self._stretches) - 1 for one in own):
                    self._members[number].length += self._members[number].new
                    self._members[number].new = 0
                else:
                    del self._members[number]  # some layers hold the positions of this pass, and others do not
            self._kept = None
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
        elif self._open and ask.index == 0:
            self._join(ask.parts, states)
        if not self._open or ask.index not in (self._at, self._at + 1) or ask.index >= len(self._stretches):
            raise BadMessage(f"stretch {ask.index} of pass {ask.number} was asked for, {self._at + 1} comes next")
        self._keep_tensors(ask, placed, memory)
        self._at = ask.index
        complete = False
        try:
            with torch.no_grad():
                given = self._run_layers(self._stretches[ask.index], ask, states)
            complete = True
            for part in ask.parts:
                self._present[part.member, part.chunk].at = ask.index
        finally:
            if not complete:
                self.abandon()
        if ask.last and not ask.more:
            for number in {number for number, _ in self._present}:
                one = self._members[number]
                one.length, one.new = one.length + one.new, 0
            self._open, self._present, self._kept = False, {}, None
            self._model._hermes_binder.end(True)
        return given, time.monotonic_ns() - began, self._stalled_ns() - stalled

    def _keep_tensors(self, ask: RunLayers, placed: Sequence[Placed], memory: memoryview) -> None:
        """The next bundle will lie there."""
        at = 0
        for part in ask.parts:
            one = self._present.get((part.member, part.chunk))
            if one is None or one.at != ask.index - 1:
                raise BadMessage(f"stretch {ask.index} is not what comes next for request {part.member} in this pass")
            one.tensors += [_tensor(memory, place).clone() for place in placed[at : at + len(part.tensors)]]
            at += len(part.tensors) + 1

    def _run_layers(
        self, stretch: LayerRange, ask: RunLayers, states: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Of each layer all requests' calls, one after the other: its unit is read once for all of them."""
        count = stretch.last - stretch.first
        calls = []
        for part in ask.parts:
            one = self._present[part.member, part.chunk]
            calls.append(layer_calls.decode(part.calls, count, one.tensors, one.of.cache))
        for number in range(count):
            layer = self._chain.layers[stretch.first + number]
            with self._bound(stretch.first + number, len(ask.parts) > 1, ask.more and count == 1):
                for place, own in enumerate(calls):
                    args, kwargs = own[number](states[place])
                    output = layer(*args, **kwargs)
                    states[place] = output[0] if isinstance(output, tuple) else output
        return states

    @contextmanager
    def _bound(self, layer: int, several: bool, keep: bool) -> Iterator[None]:
        """Inside, the unit of the layer lies there, and after it where more is to be run on it (`keep`).

        A layer of several units has each of them read for every call.
        """
        units = self._units(layer)
        binder = self._model._hermes_binder
        if self._kept is not None and [self._kept] != units:
            unit, self._kept = self._kept, None
            binder.drop(unit, True)
        if len(units) != 1 or not (several or keep or self._kept is not None):
            yield
            return
        if self._kept is None:
            binder.hold(units[0])
            self._kept = units[0]
        yield
        if not keep:
            self._kept = None
            binder.drop(units[0], True)

    def _begin(self, ask: RunLayers, states: Sequence[torch.Tensor]) -> None:
        self.abandon()
        self._join(ask.parts, states)
        self._number, self._at = ask.number, -1
        first = self._members[ask.parts[0].member]
        call = {"hidden_states": states[0], "past_key_values": first.cache}
        self._model._hermes_binder.open(lambda: call, None)
        self._open = True

    def _join(self, parts: Sequence[LayerCalls], states: Sequence[torch.Tensor]) -> None:
        """These take part in the pass."""
        for part, own in zip(parts, states, strict=True):
            if own.dim() < 2:
                raise BadMessage(f"hidden states of {own.dim()} dimensions")
            key = part.member, part.chunk
            if key in self._present or part.member >= MAX_IN_FLIGHT:
                raise BadMessage(f"request {part.member} of a pass is named twice, or beyond {MAX_IN_FLIGHT}")
            one = self._go_on(part) if part.chunk == 0 else self._members.get(part.member)
            if one is None or part.past != one.length + one.new:
                raise BadMessage(f"chunk {part.chunk} of request {part.member} does not follow the one before it")
            one.new += own.shape[1]
            self._model._hermes_binder.check_call({"hidden_states": own, "past_key_values": one.cache})
            self._members[part.member] = one
            self._present[key] = _Part(one)

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
        one.new = 0
        return one


def _tensor(memory: memoryview, one: Placed) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, one.spec.dtype)
    if not one.nbytes:
        return torch.empty(one.spec.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=torch.uint8, count=one.nbytes, offset=one.at).view(dtype).view(one.spec.shape)
