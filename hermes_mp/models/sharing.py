"""The head's model with layers on other boards: it stays the transformers model, and `generate` sees no difference.

The forward of a layer that runs elsewhere only notes what it was given; that of the last one of a stretch has the
board run them all. The head's cache keeps of such layers a row of numbers per position and no keys or values: masks,
lengths, beams and cropping go on as ever, and the numbers tell the board which rows its own cache shall have.
It knows boards by name, and neither sockets nor messages.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from transformers import Cache, DynamicCache

from hermes_mp.core.cluster.stretches import Stretch
from hermes_mp.errors import CannotBeCut
from hermes_mp.messages import MAX_TEXT_CHARS
from hermes_mp.models import layer_calls
from hermes_mp.models.binding import plain_forward, replace_forward
from hermes_mp.models.chain import Chain

MAX_CALLS_CHARS = 32_000  # of all requests, in one message


@dataclass(frozen=True)
class Hop:
    """What a board is told to run: its stretch number `index`, the first or the `last` of its pass `number`.

    The other fields as in `messages.LayerCalls`.
    """

    number: int
    index: int
    last: bool
    member: int
    chunk: int
    past: int
    rows: tuple[int, ...]
    calls: str
    tensors: list[torch.Tensor]
    states: torch.Tensor


class Far(Protocol):
    """The other boards."""

    def run(self, board: str, hops: Sequence[Hop]) -> list[torch.Tensor]:
        """The hidden states that the board's stretch makes of each `hop.states`; all hops are of one stretch and pass.

        Raises BoardLost, StageForgotten.
        """

    def send(self, board: str, hop: Hop, more: bool) -> None:
        """The same of one hop, without waiting; `more` of the same stretch and pass will come."""

    def arrived(self, wait: bool) -> list[tuple[str, torch.Tensor | Exception]]:
        """By board what has come of that, or why nothing will; `wait` until there is something.

        Raises BoardLost, StageForgotten; then nothing else will come either.
        """

    def keeps_all(self, board: str) -> bool:
        """Whether the weights of all its layers stay in its memory."""

    def look(self) -> None:
        """Called before every layer that runs here: raises BoardLost where a board has gone meanwhile."""


class Away(Protocol):
    """Who sends hops of several requests at once."""

    def hop(self, stretch: Stretch, hop: Hop) -> torch.Tensor:
        """As `Far.run`, for the one that calls."""


@dataclass
class _Pass:
    """What one board has been sent of the present pass."""

    tensors: layer_calls.PassTensors = field(default_factory=layer_calls.PassTensors)
    past: int = 0
    rows: tuple[int, ...] = ()


@dataclass
class Noted:
    """Of one request, number `member`: what it has noted of its present pass `number`, and sent."""

    member: int = 0
    chunk: int = 0
    number: int = 0
    calls: list[layer_calls.Call] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)
    passes: dict[str, _Pass] = field(default_factory=dict)


class Sharing:
    """Install it once with `share`; `assign` says, as often as is wanted between passes, who runs what."""

    def __init__(self, chain: Chain, far: Far, here: str) -> None:
        """`here`: the head's own name."""
        self._chain, self.far, self._here = chain, far, here
        self._of_layer: list[tuple[Stretch, int, bool] | None] = [None] * len(chain.layers)
        self._numbers = itertools.count(1)
        self.now = Noted()  # of the request that runs
        self.away: Away | None = None
        self.in_flight = 1  # requests at most

    def assign(self, stretches: Sequence[Stretch]) -> None:
        """From now on. A pass that is under way must have ended."""
        self._of_layer = [None] * len(self._chain.layers)
        counts: dict[str, int] = {}
        last = {one.board: one for one in stretches}
        for one in stretches:
            if one.board == self._here:
                continue
            index = counts[one.board] = counts.get(one.board, -1) + 1
            for layer in range(one.first, one.last):
                self._of_layer[layer] = one, index, one is last[one.board]
        self.begin()

    def begin(self) -> None:
        """A pass begins: nothing of an earlier one is left."""
        self.now.calls, self.now.states, self.now.passes = [], [], {}
        if self.away is None:  # else all that begin a pass together have one number
            self.now.number = self.number()

    def number(self) -> int:
        """Of another pass."""
        return next(self._numbers)

    def is_far(self, layer: int) -> bool:
        return self._of_layer[layer] is not None

    def run(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a layer that another board runs: its true states where the layer is the last of a stretch."""
        found = self._of_layer[layer]
        assert found is not None
        stretch, index, is_last = found
        states = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(states, torch.Tensor):
            raise CannotBeCut(f"layer {layer} of {self._chain.name} is given no hidden states")
        now = self.now
        first = layer == stretch.first
        if first:
            now.calls, now.states = [], []
        one = now.passes.get(stretch.board)
        past, rows = _note_positions(layer, states, args, kwargs)
        if one is None:
            one = now.passes[stretch.board] = _Pass(past=past, rows=rows)
        now.calls.append((args, kwargs))
        now.states.append(states)
        if layer < stretch.last - 1:
            return self._chain.gives(layer, states)
        most = min(MAX_TEXT_CHARS, MAX_CALLS_CHARS // self.in_flight)
        calls = layer_calls.encode(now.calls, now.states, one.tensors, most)
        unsent = one.tensors.unsent()
        hop = Hop(now.number, index, is_last, now.member, now.chunk, one.past, one.rows, calls, unsent, states)
        now.calls, now.states = [], []
        if self.away is None:
            (given,) = self.far.run(stretch.board, [hop])
        else:
            given = self.away.hop(stretch, hop)
        return self._chain.gives(layer, given)


def share(model: Any, chain: Chain, far: Far, here: str) -> Sharing:
    """Have layers of `model`, which is streamed already, run on other boards as the `Sharing` is told."""
    sharing = Sharing(chain, far, here)
    for number, layer in enumerate(chain.layers):
        _share_layer(sharing, number, layer)

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        sharing.begin()

    model.register_forward_pre_hook(begin, with_kwargs=True)
    if model.base_model is not model:
        model.base_model.register_forward_pre_hook(begin, with_kwargs=True)
    return sharing


def _share_layer(sharing: Sharing, number: int, layer: nn.Module) -> None:
    here = plain_forward(layer)

    def forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if sharing.is_far(number):
            return sharing.run(number, args, kwargs)
        sharing.far.look()
        return here(module, *args, **kwargs)

    replace_forward(layer, forward)


def _note_positions(
    layer: int, states: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int, tuple[int, ...]]:
    """Have the cache count the new positions of this layer; how many it had, and which rows are kept of those."""
    cache = next((one for one in (*args, *kwargs.values()) if isinstance(one, Cache)), None)
    if cache is None:
        return 0, ()
    if type(cache) is not DynamicCache:
        raise CannotBeCut(f"a {type(cache).__name__} cannot be shared between boards, only a DynamicCache")
    count, tokens = states.shape[:2]
    numbers = torch.arange(count, dtype=torch.int32, device=states.device)[:, None, None, None]
    past, rows = 0, tuple(range(count))
    if layer < len(cache.layers) and cache.layers[layer].get_seq_length():
        past = cache.layers[layer].get_seq_length()
        kept = cache.layers[layer].keys
        rows = tuple(kept[:, 0, -1, 0].tolist())
        kept.copy_(numbers.expand_as(kept))
    new = numbers.expand(count, 1, tokens, 1)
    cache.update(new.clone(), new.new_empty((count, 1, tokens, 0)), layer)
    return past, () if rows == tuple(range(count)) else rows
