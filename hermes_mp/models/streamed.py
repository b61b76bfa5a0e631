"""Turns a skeleton into a model for inference on streamed weights: still the transformers class, minus what needs all.

The object stays an instance of its transformers class (a subclass made on the fly, of the same name), so generate(),
pipelines, streamers and caches see what they know. Knows the supply only through the binder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from hermes_mp.errors import NeedsAllWeights, WrongInput
from hermes_mp.models.binding import Binder, Check, hook_guard, hook_piece, memory_like
from hermes_mp.models.chunks import Noting
from hermes_mp.models.division import Division
from hermes_mp.models.matrix import SuppliedMatrix
from hermes_mp.models.placeholder import Placeholder
from hermes_mp.models.skeleton import Skeleton, Source, load_buffers, make_buffers_real
from hermes_mp.models.supply import Supply, reading

MOST_CHUNKS = 32  # of a prompt: each is a thread


class StreamedModel:
    """Mixed in before a transformers class by `stream`."""

    _hermes_binder: Binder
    _hermes_check_generate: Callable[[Any, tuple[Any, ...], dict[str, Any]], None]
    _hermes_closer: Any = None
    _hermes_noting: Noting | None = None

    def _refuse(self, what: str) -> NoReturn:
        raise NeedsAllWeights(
            f"{what} needs all weights at once; a streamed {type(self).__name__} holds a few layers at a time"
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` of transformers; calls from several threads queue."""
        with self._hermes_binder.lock:
            self._hermes_check_generate(self, args, kwargs)
            return super().generate(*args, **kwargs)  # type: ignore[misc]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._hermes_noting is not None:
            return self._hermes_noting(kwargs)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def _prefill(self, input_ids: Any, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
        """In chunks, where that is asked for and requests take turns: all of them in one pass."""
        turns, cache = self._hermes_binder.turns, model_kwargs.get("past_key_values")
        ordinary = super()._prefill  # type: ignore[misc]
        size = generation_config.prefill_chunk_size
        if size is not None and turns is not None:
            if cache is None:
                raise WrongInput("the model keeps no cache that could be filled in chunks", "leave --prefill-chunk out")
            size = generation_config.prefill_chunk_size = max(size, -(-input_ids.shape[1] // MOST_CHUNKS))
        if size is None or turns is None or input_ids.shape[1] <= size:
            return ordinary(input_ids, generation_config, model_kwargs, *args, **kwargs)
        noting = Noting(cache)
        self._hermes_noting = noting
        try:
            ordinary(input_ids, generation_config, model_kwargs, *args, **kwargs)
        finally:
            self._hermes_noting = None
        last: Any = None

        def run(number: int) -> None:
            nonlocal last
            with torch.no_grad():
                output = self(**noting.calls[number])
            if number == len(noting.calls) - 1:
                last = output

        turns.together([partial(run, number) for number in range(len(noting.calls))])
        model_kwargs["past_key_values"] = last["past_key_values"] = cache
        return last

    @contextlib.contextmanager
    def expect_passes(self, count: int) -> Iterator[None]:
        """Inside, at most `count` passes will run and none after them: nothing is read ahead past the last."""
        holding = self._hermes_binder.now
        holding.passes_left = count
        try:
            yield
        finally:
            holding.passes_left = None

    def close(self) -> None:
        """End the processes behind the model. Calls after that raise."""
        if self._hermes_closer is not None:
            self._hermes_closer()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def train(self, mode: bool = True) -> Any:
        if mode:
            self._refuse("train()")
        return super().train(False)  # type: ignore[misc]

    def eval(self) -> Any:
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        if requires_grad:
            self._refuse("requires_grad_()")
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("state_dict()")

    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("load_state_dict()")

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("save_pretrained()")

    def push_to_hub(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("push_to_hub()")

    def to(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("to()")

    def compile(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("compile()")

    @property
    def _torchdynamo_orig_callable(self) -> NoReturn:
        """What `torch.compile` asks of a model first."""
        self._refuse("torch.compile()")

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("resize_token_embeddings()")

    def _apply(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("moving or casting the model")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self._refuse("copying the model")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._refuse("pickling the model")


def stream(
    skeleton: Skeleton,
    division: Division,
    supply: Supply,
    check_call: Check,
    check_generate: Callable[[Any, tuple[Any, ...], dict[str, Any]], None],
) -> Any:
    """Make the skeleton's model run on units from `supply`. Reads buffers and pinned weights now, the rest never.

    `check_call` is given the arguments of every outermost forward, `check_generate` the model and the arguments of
    every `generate`; both may raise CallTooLarge.
    """
    model = skeleton.model
    make_buffers_real(skeleton)
    load_buffers(skeleton, {name: _read(supply, source) for name, source in skeleton.buffers.items()})
    pinned: dict[Source, nn.Parameter] = {}
    for bound in division.pinned:
        if bound.source not in pinned:
            loaded = _read(supply, bound.source).to(bound.source.dtype)
            pinned[bound.source] = nn.Parameter(loaded, requires_grad=False)
        bound.module._parameters[bound.leaf] = pinned[bound.source]
    binder = Binder(division, supply, check_call)
    for matrix in division.matrices:
        info = matrix.source.info
        placeholder = Placeholder.of(
            matrix.name, torch.Size(info.shape), matrix.source.dtype, SuppliedMatrix(matrix, binder)
        )
        for module, leaf in matrix.owners:
            module._parameters[leaf] = placeholder  # type: ignore[assignment]
    inner = {id(part) for piece in division.pieces for part in piece.module.modules()}
    inner |= {id(part) for layer in _layers(model) for part in layer.modules() if part is not layer}
    shared: dict[Source, Placeholder] = {}
    for piece in division.pieces:
        hook_piece(binder, piece, shared)
    for module in model.modules():
        if id(module) not in inner and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            hook_guard(binder, module)
    kind = type(model)
    described = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    model.__class__ = type(kind.__name__, (StreamedModel, kind), described)
    model._hermes_binder = binder
    model._hermes_check_generate = check_generate
    return model


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The members of lists: what is called alone is a layer, hardly a part of one."""
    for part in model.modules():
        if isinstance(part, nn.ModuleList):
            yield from part.children()


def _read(supply: Supply, source: Source) -> torch.Tensor:
    """A tensor of its own memory, in the file's dtype."""
    info = source.info
    if not info.nbytes:
        return torch.empty(info.shape, dtype=source.file_dtype)
    memory = memory_like(info.begin, info.nbytes)
    with reading(info.name):
        supply.read_rows(source.file, [(info.begin, info.nbytes)], memory)
    return torch.frombuffer(memory, dtype=source.file_dtype).view(info.shape)
