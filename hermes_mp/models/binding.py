"""Binds units to modules: before a piece's forward its parameters point into the slot, after it they are placeholders.

A forward that stops, raises, skips, repeats or starts in the middle is legal: a unit is asked for by number when the
first module that needs it runs, and given back when the last one is done, or when another unit is wanted.
Holds no reference to the model itself, so that dropping the model ends the run. Knows no process and no message.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from hermes_mp.errors import NeedsAllWeights
from hermes_mp.models.division import Bound, Division, Piece
from hermes_mp.models.placeholder import Placeholder
from hermes_mp.models.skeleton import Source
from hermes_mp.models.supply import Supply

Check = Callable[[dict[str, Any]], None]


class Turns(Protocol):
    """Who goes on next, where several requests are in flight: each call may let others run until it returns."""

    @property
    def in_order(self) -> bool:
        """Whether what runs may overtake nobody, not even on a unit that stays."""

    def join(self, more: bool, end: int | None, extent: tuple[int, int]) -> None:
        """A pass begins: whether another one follows, the unit it ends before, its rows and new positions."""

    def want(self, unit: int) -> None:
        """Returns once the unit is to be bound."""

    def leave(self, complete: bool) -> None:
        """The pass is over."""

    def together(self, works: Sequence[Callable[[], None]]) -> None:
        """Have parts of the request that runs done in this order at every unit, which is read once for them."""


class Holding:
    """Of one request: whether it is in a pass, how many are to come, and which units it holds, how often."""

    def __init__(self) -> None:
        self.active: dict[int, int] = defaultdict(int)
        self.taken: set[int] = set()
        self.lingering: int | None = None
        self.depth = 0
        self.passes_left: int | None = None


class Binder:
    """The state of the binding: which units lie bound. `now` is of the request that runs; alone there is but one."""

    def __init__(self, division: Division, supply: Supply, check_call: Check) -> None:
        self.supply = supply
        self.lock: AbstractContextManager[object] = threading.RLock()
        self.check_call = check_call
        self.now = Holding()
        self.turns: Turns | None = None
        self._layouts = division.layouts
        self._ends = division.ends
        whole = torch.frombuffer(supply.buffer, dtype=torch.uint8)
        self._storage = whole.untyped_storage()
        self._arena = (whole.data_ptr(), whole.data_ptr() + len(supply.buffer))
        self._bases: dict[int, int] = {}
        self._users: dict[int, int] = defaultdict(int)  # requests that hold the unit
        self._computed: set[int] = set()  # of units that nobody holds, but somebody may want
        self._weights: dict[int, tuple[int, nn.Parameter]] = {}
        for piece in division.pieces:
            for bound in piece.bounds:
                self._make_weight(bound, bound.source.info.shape, bound.source)
        for matrix in division.matrices:
            for block in matrix.blocks:
                self._make_weight(block, (block.rows, *matrix.source.info.shape[1:]), matrix.source)

    def _make_weight(self, key: object, shape: tuple[int, ...], source: Source) -> None:
        """What `weight` points to the weight of `key`; made before there are activations, see there."""
        if source.dtype == source.file_dtype and source.info.nbytes:
            self._weights[id(key)] = 0, weight_at(self.supply.buffer, 0, shape, source)

    # --- passes

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hooked forward begins. The outermost one is a pass and keeps other threads out."""
        if torch.is_grad_enabled() and any(_needs_grad(value) for value in (*args, *kwargs.values())):
            raise NeedsAllWeights("an input requires grad, but gradients need every layer's weights kept")
        self.open(lambda: call_arguments(module, args, kwargs), self._ends.get(id(module)))

    def open(self, arguments: Callable[[], dict[str, Any]], end: int | None) -> None:
        """A pass begins, where none is under way: with these arguments, and expected to end before unit `end`."""
        self.lock.__enter__()
        now = self.now
        now.depth += 1
        if now.depth > 1:
            return
        try:
            call = arguments()
            self.check_call(call)
            if now.passes_left is not None:
                now.passes_left = max(now.passes_left - 1, 0)
            if self.turns is not None:
                self.turns.join(now.passes_left != 0, end, call_extent(call))
            else:
                self.supply.forecast(now.passes_left != 0, end)
                self.supply.pass_started(*call_extent(call))
        except BaseException:
            now.depth -= 1
            self.lock.__exit__(None, None, None)
            raise

    def end(self, complete: bool) -> None:
        now = self.now
        try:
            if now.depth == 1:
                self._drop_all()
                if self.turns is not None:
                    self.turns.leave(complete)
                else:
                    self.supply.pass_ended(complete)
        finally:
            now.depth -= 1
            self.lock.__exit__(None, None, None)

    # --- units

    def hold(self, unit: int) -> int:
        """The byte of the arena where the unit begins; waits for it unless it is held already."""
        now = self.now
        if not now.active[unit]:
            if now.lingering != unit:
                self._drop_lingering()
                self._take(unit)
            now.lingering = None
        now.active[unit] += 1
        return self._bases[unit]

    def drop(self, unit: int, last: bool) -> None:
        """One holder less. The last piece of a unit gives it back; before that it is kept for the pieces to come."""
        now = self.now
        now.active[unit] -= 1
        if now.active[unit]:
            return
        if last:
            self._give(unit, True)
        else:
            self._drop_lingering()
            now.lingering = unit

    def _drop_lingering(self) -> None:
        if self.now.lingering is not None:
            unit, self.now.lingering = self.now.lingering, None
            self._give(unit, True)

    def _drop_all(self) -> None:
        """At the end of a pass: the lingering unit, and those that Ctrl-C in the midst of binding left behind."""
        now = self.now
        if self.turns is None:
            for unit in list(self._bases):
                if now.lingering == unit:
                    self._computed.add(unit)
                self._users[unit] = 0
                self._release(unit)
            now.taken.clear()
        for unit in list(now.taken):
            self._give(unit, now.lingering == unit)
        now.active.clear()
        now.lingering = None

    def _take(self, unit: int) -> None:
        """For the request that runs; what another one has bound is not asked for again."""
        if self.turns is not None and (self.turns.in_order or not self.supply.keeps(unit)):
            self.turns.want(unit)
        if unit not in self._bases:
            self._bases[unit] = self.supply.acquire(unit)
        self.now.taken.add(unit)
        self._users[unit] += 1

    def _give(self, unit: int, computed: bool) -> None:
        self.now.taken.discard(unit)
        self._users[unit] -= 1
        if computed:
            self._computed.add(unit)
        if not self._users[unit] and (self.turns is None or self.supply.keeps(unit)):
            self._release(unit)

    def release_unused(self) -> None:
        """What lies bound for requests that are not as far: there are none any more."""
        for unit in list(self._bases):
            if not self._users[unit]:
                self._release(unit)

    def _release(self, unit: int) -> None:
        computed = unit in self._computed
        self._computed.discard(unit)
        del self._bases[unit]
        self.supply.release(unit, computed)

    # --- pieces

    def bind(self, piece: Piece, base: int) -> None:
        """Point the piece's parameters into its unit, which is held and begins at byte `base`."""
        at = self._layouts[piece.unit].at
        for bound in piece.bounds:
            info = bound.source.info
            bound.module._parameters[bound.leaf] = self.weight(bound, base + at[info.name], info.shape, bound.source)

    def weight(self, key: object, offset: int, shape: tuple[int, ...], source: Source) -> nn.Parameter:
        """`weight_at` in the supply's buffer; for `key` the same object every time, pointed to where it lies now.

        Of another dtype than the file's, or at an odd offset, it is made anew. That takes 10 us, and its few bytes lie
        between activations as long as it lives: where they were, the next activation of that size has no room (all
        weights of ViT-Large, units of parts of layers: a heap of 144 MiB where 126 do).
        """
        known = self._weights.get(id(key))
        if known is None or offset % source.dtype.itemsize:
            return weight_at(self.supply.buffer, offset, shape, source)
        at, weight = known
        if at != offset:
            self._weights[id(key)] = -1, weight  # Ctrl-C may come in between
            with torch.no_grad():
                weight.set_(self._storage, offset // source.dtype.itemsize, shape, weight.stride())
            self._weights[id(key)] = offset, weight
        return weight

    def own(self, output: Any) -> Any:
        """The piece's output, with tensors that lie in a slot (a weight handed out, or a view of one) copied out of it.

        Raises NeedsAllWeights where the piece recorded gradients by itself.
        """
        if isinstance(output, torch.Tensor):
            if output.requires_grad:
                raise NeedsAllWeights("a layer records gradients, but they need every layer's weights kept")
            is_ours = self._arena[0] <= output.data_ptr() < self._arena[1] if output.numel() else False
            return output.clone() if is_ours else output
        if isinstance(output, tuple) and hasattr(output, "_make"):
            return output._make(self.own(part) for part in output)
        if type(output) in (tuple, list):
            return type(output)(self.own(part) for part in output)
        if isinstance(output, dict):
            for name, part in output.items():
                owned = self.own(part)
                if owned is not part:
                    output[name] = owned
        elif dataclasses.is_dataclass(output) and not isinstance(output, type):
            for field in dataclasses.fields(output):
                object.__setattr__(output, field.name, self.own(getattr(output, field.name)))  # frozen ones too
        return output

    def unbind(self, piece: Piece, placeholders: list[tuple[Bound, Placeholder]], complete: bool) -> None:
        for bound, placeholder in placeholders:
            bound.module._parameters[bound.leaf] = placeholder  # type: ignore[assignment]
        self.drop(piece.unit, not complete or piece.ends_unit)


def weight_at(buffer: Any, offset: int, shape: tuple[int, ...], source: Source) -> nn.Parameter:
    """The weight at byte `offset`, without a copy unless its dtype differs from the file's. Use it `as_loaded`.

    It says that it requires grad, as loaded ones do: by that flag torch chooses between two ways to multiply a batch
    whose rows do not lie one after the other (`should_fold` in ATen/native/LinearAlgebra.cpp), with other last bits.
    """
    count = 1
    for extent in shape:
        count *= extent
    with torch.inference_mode(False):
        if not count:
            return nn.Parameter(torch.empty(shape, dtype=source.dtype))
        tensor = torch.frombuffer(buffer, dtype=source.file_dtype, count=count, offset=offset).view(shape)
        return nn.Parameter(tensor if source.dtype == source.file_dtype else tensor.to(source.dtype))


@contextmanager
def as_loaded() -> Iterator[None]:
    """Around what computes with bound weights: nothing may collect gradients, and autocast may not keep its casts.

    It keeps those of weights that require grad until it ends: in time the whole model.
    """
    keeps = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()  # of code that switched the cache on for itself
        torch.set_autocast_cache_enabled(keeps)


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, writable; NumPy is the bridge, and has no bfloat16."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array).cast("B")


def memory_like(offset: int, nbytes: int) -> memoryview:
    """Memory of our own for bytes of a file; its address modulo 64 is that of `offset`, as where the file is loaded.

    In fp32 another residue changes the last bit of many a product.
    """
    raw = torch.empty(nbytes + 64, dtype=torch.uint8)
    skip = (offset - raw.data_ptr()) % 64
    return byte_view(raw)[skip : skip + nbytes]


def hook_piece(binder: Binder, piece: Piece, shared: dict[Source, Placeholder]) -> None:
    """Wrap the piece's forward so that its parameters are bound while it runs; until then they are placeholders.

    `shared` keeps tied parameters one object.
    """
    placeholders = []
    for bound in piece.bounds:
        made = Placeholder.of(bound.name, torch.Size(bound.source.info.shape), bound.source.dtype)
        placeholder = shared.setdefault(bound.source, made)
        bound.module._parameters[bound.leaf] = placeholder  # type: ignore[assignment]
        placeholders.append((bound, placeholder))
    call = plain_forward(piece.module)

    def forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        binder.begin(module, args, kwargs)
        complete = False
        try:
            base = binder.hold(piece.unit)
            try:
                binder.bind(piece, base)
                with as_loaded():
                    output = binder.own(call(module, *args, **kwargs))
                complete = True
                return output
            finally:
                binder.unbind(piece, placeholders, complete)
        finally:
            binder.end(complete)

    replace_forward(piece.module, forward)


def hook_guard(binder: Binder, module: nn.Module) -> None:
    """Wrap the forward of a module above the pieces: the outermost one that runs is a pass."""
    call = plain_forward(module)

    def forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        binder.begin(module, args, kwargs)
        complete = False
        try:
            output = call(module, *args, **kwargs)
            complete = True
            return output
        finally:
            binder.end(complete)

    replace_forward(module, forward)


def plain_forward(module: nn.Module) -> Callable[..., Any]:
    """The module's own forward, to be called with the module first."""
    bound = module.__dict__.get("forward")
    if bound is not None:  # some integration replaced it on the instance: it brings its own self
        return lambda _, *args, **kwargs: bound(*args, **kwargs)
    plain: Callable[..., Any] = type(module).forward
    return plain


def replace_forward(module: nn.Module, forward: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """From now on the module's forward is this one: it takes module, args and kwargs, and keeps its signature."""
    itself = weakref.ref(module)
    original = module.forward

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        owner = itself()
        assert owner is not None
        return forward(owner, args, kwargs)

    functools.update_wrapper(wrapper, type(module).forward)
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    wrapper.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    module.forward = wrapper


def call_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name; positional ones that the signature does not name are dropped."""
    if not args:
        return kwargs
    try:
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    except TypeError:
        return kwargs
    named: dict[str, Any] = dict(bound.arguments)
    named.update(named.pop("kwargs", {}))
    return named


def _needs_grad(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def call_extent(call: dict[str, Any]) -> tuple[int, int]:
    """Sequences and new positions per sequence of a call (images count as one position)."""
    for name in ("input_ids", "decoder_input_ids", "inputs_embeds", "hidden_states"):
        value = call.get(name)
        if isinstance(value, torch.Tensor) and value.dim() >= 2:
            return value.shape[0], value.shape[1]
    for value in call.values():
        if isinstance(value, torch.Tensor) and value.dim() >= 1:
            return value.shape[0], 1
    return 1, 1
