"""A prompt in chunks that are all in flight: one reading of the weights for all of them, in order at every layer.

What each chunk is called with is transformers' own chunked prefill's; only that a call waits for no earlier one. So a
chunk sees the one cache as if those before it had passed through all layers, and none after it. It knows no threads.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import ModelOutput

from hermes_mp.errors import WrongInput

Call = dict[str, Any]


class _Layer(DynamicLayer):  # type: ignore[misc]
    """A layer of a cache, that says it holds `past` positions; what is put there and taken from there is the cache's.

    At the time of the chunk's own update it does.
    """

    def __init__(self, layer: Any, past: int) -> None:
        self._layer, self._past = layer, past  # and nothing of its class: the rest is the layer's

    @property
    def is_sliding(self) -> bool:
        return bool(self._layer.is_sliding)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return self._layer.update(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def get_seq_length(self) -> int:
        return self._past

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if not isinstance(self._layer, DynamicSlidingWindowLayer):
            return self._past + query_length, 0
        as_then = copy.copy(self._layer)
        as_then.cumulative_length = self._past
        sizes: tuple[int, int] = as_then.get_mask_sizes(query_length)
        return sizes


def cache_at(cache: Any, past: int) -> Any:
    """`cache` as a chunk sees it that follows `past` positions. Raises WrongInput for a kind that cannot be shared."""
    layers = getattr(cache, "layers", ())
    good = type(cache) is DynamicCache and all(type(one) in (DynamicLayer, DynamicSlidingWindowLayer) for one in layers)
    if not good or cache.layer_class_to_replicate is not None:
        raise WrongInput("the model's cache cannot be filled in chunks", "leave --prefill-chunk out")
    seen = copy.copy(cache)
    seen.layers = [_Layer(one, past) for one in layers]
    return seen


class Noting:
    """In place of the model's forward: notes each chunk's call; the next one finds the cache as it will be then."""

    def __init__(self, cache: Any) -> None:
        self._cache, self._past = cache, cache.get_seq_length()
        self.calls: list[Call] = []

    def __call__(self, call: Call) -> ModelOutput:
        ids = call["inputs_embeds"] if call.get("input_ids") is None else call["input_ids"]
        self.calls.append(call | {"past_key_values": cache_at(self._cache, self._past)})
        self._past += ids.shape[1]
        return ModelOutput(past_key_values=cache_at(self._cache, self._past))
