"""A board's part of a model: runs stretches of its layers on hidden states that come from the head, with caches of its
own. The model is the whole one on streamed weights; of the others' layers nothing is ever loaded.

It knows no socket: bundles come and go through memory that its caller names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from hermes_mp.core.bundle import Placed
from hermes_mp.errors import BadMessage
from hermes_mp.messages import LayerRange, RunLayers
from hermes_mp.models import layer_calls
from hermes_mp.models.chain import Chain


class Stage:
    """One pass at a time; `run` its stretches in order."""

    def __init__(self, model: Any, chain: Chain, stalled_ns: Callable[[], int]) -> None:
        """`stalled_ns`: how long units were waited for, so far."""
        self._model, self._chain, self._stalled_ns = model, chain, stalled_ns
        self._stretches: tuple[LayerRange, ...] = ()
        self._cache: Any = None
        self._length = 0  # positions that the caches hold
        self._new = 0  # of them, of the present pass
        self._number: int | None = None  # of the present pass
        self._next = 0
        self._tensors: list[torch.Tensor] = []
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
        self._cache, self._length, self._number = None, 0, None

    def abandon(self) -> None:
        """A pass that is under way will not go on."""
        if self._open:
            self._open = False
            self._cache, self._length = None, 0  # some layers hold the positions of this pass, and others do not
            self._model._hermes_binder.end(False)
        self._tensors = []

    def run(self, ask: RunLayers, placed: Sequence[Placed], memory: memoryview) -> tuple[torch.Tensor, int, int]:
        """The stretch's hidden states, and the nanoseconds that they took and that units were waited for.

        `placed` says where in `memory` the tensors of the bundle lie, the states last. Raises BadMessage where what is
        asked does not go on from what was.
        """
        began, stalled = time.monotonic_ns(), self._stalled_ns()
        states = _tensor(memory, placed[-1])
        if ask.number != self._number:
            self._begin(ask, states)
        if not self._open or ask.index != self._next or ask.index >= len(self._stretches):
            raise BadMessage(f"stretch {ask.index} of pass {ask.number} was asked for, {self._next} comes next")
        self._tensors += [_tensor(memory, one).clone() for one in placed[:-1]]  # the next bundle will lie there
        complete = False
        try:
            with torch.no_grad():
                given = self._run_layers(self._stretches[ask.index], ask.calls, states)
            complete = True
        finally:
            if not complete:
                self.abandon()
        self._next += 1
        if ask.last:
            self._length += self._new
            self._open = False
            self._tensors = []
            self._model._hermes_binder.end(True)
        return given, time.monotonic_ns() - began, self._stalled_ns() - stalled

    def _run_layers(self, stretch: LayerRange, calls: str, states: torch.Tensor) -> torch.Tensor:
        count = stretch.last - stretch.first
        for number, call in enumerate(layer_calls.decode(calls, count, self._tensors, self._cache)):
            args, kwargs = call(states)
            output = self._chain.layers[stretch.first + number](*args, **kwargs)
            states = output[0] if isinstance(output, tuple) else output
        return states

    def _begin(self, ask: RunLayers, states: torch.Tensor) -> None:
        self.abandon()
        if states.dim() < 2:
            raise BadMessage(f"hidden states of {states.dim()} dimensions")
        if ask.past == 0:
            self._cache, self._length = DynamicCache(config=self._model.config), 0
        elif ask.past > self._length:
            raise BadMessage(f"a pass goes on behind {ask.past} positions, the caches hold {self._length}")
        elif ask.past < self._length:
            self._cache.crop(ask.past - self._length)
            self._length = ask.past
        if ask.rows and ask.past:
            self._cache.reorder_cache(torch.tensor(ask.rows))
        self._number, self._next, self._new = ask.number, 0, states.shape[1]
        call = {"hidden_states": states, "past_key_values": self._cache}
        self._model._hermes_binder.open(lambda: call, None)
        self._open = True


def _tensor(memory: memoryview, one: Placed) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, one.spec.dtype)
    if not one.nbytes:
        return torch.empty(one.spec.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=torch.uint8, count=one.nbytes, offset=one.at).view(dtype).view(one.spec.shape)
