"""The Layer Profiler (paper, section III): what the layers of a model take to compute, without reading the model.

The model runs as it will, hooked and bound, but on memory that holds random numbers of its dtype and is larger than
the processor's cache: matrices take the same time whatever is in them. Of layers that look alike a few are computed
and the others hand on a result of theirs, so that a model of any depth is measured in a second or two.
It reads no weights but embedding rows; who asks for the figures, and where they are kept, is not known here.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hermes_mp.host.arena import Arena
from hermes_mp.host.reading import FileReader
from hermes_mp.models.division import Division
from hermes_mp.models.trace import example_inputs

ALIKE = 3  # layers of a kind that are computed; the first one of the first pass warms up
STEPS = 3  # further tokens after the first, or repeated passes, per run
CACHE_NBYTES = 160 << 20  # more than the processor's cache, so that weights come from memory as they do in a run
FILL_NBYTES = 8 << 20  # of random numbers, repeated


@dataclass(frozen=True)
class Times:
    """Seconds by unit of a pass, and outside of all units: of the pass over the input, and of one that repeats."""

    first_s: tuple[float, ...]
    first_other_s: float
    again_s: tuple[float, ...]
    other_s: float


@dataclass
class _PassTimes:
    began: float
    layers: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    units: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # outside of layers
    seconds: float = 0.0


class RandomSupply:
    """A `models.supply.Supply` without a daemon: every unit is there at once, as random numbers."""

    def __init__(self, division: Division, files: Sequence[tuple[str, int]], arena: Arena, nbytes: int) -> None:
        """`nbytes` of `arena` are allocated, a slot at least."""
        self.buffer = arena.view(0, nbytes)
        self.granule = arena.granule
        self.in_layer = False
        self._slot_nbytes = -(-division.list.slot_nbytes // 4096) * 4096
        self._nbytes = nbytes
        self._base = 0
        self._files = [FileReader(path, size) for path, size in files]
        self._present: tuple[int, float] | None = None
        self._ended: float | None = None
        self._passes: list[_PassTimes] = []

    def fill(self, dtype: torch.dtype) -> None:
        """Numbers like weights: neither infinite nor so small that processors slow down on them."""
        pattern = (torch.randn(FILL_NBYTES // dtype.itemsize) * 0.02).to(dtype).view(torch.uint8)
        whole = torch.frombuffer(self.buffer, dtype=torch.uint8)
        for at in range(0, self._nbytes, FILL_NBYTES):
            part = whole[at : at + FILL_NBYTES]
            part.copy_(pattern[: part.numel()])

    def acquire(self, unit: int) -> int:
        if not self.in_layer:
            self.mark()
            self._present = unit, time.perf_counter()
        self._base = self._base + self._slot_nbytes if self._base + 2 * self._slot_nbytes <= self._nbytes else 0
        return self._base

    def keeps(self, unit: int) -> bool:
        return False

    def mark(self) -> None:
        """What follows does not belong to the unit that was acquired last."""
        if self._present is not None and self._passes:
            unit, since = self._present
            self._passes[-1].units[unit] += time.perf_counter() - since
        self._present = None

    def layer_took(self, layer: int, seconds: float) -> None:
        if self._passes:
            self._passes[-1].layers[layer] += seconds

    def release(self, unit: int, computed: bool) -> None:
        """What follows until the next unit or layer still counts as this one's."""

    def read_rows(self, file: int, ranges: Sequence[tuple[int, int]], into: memoryview) -> None:
        self._files[file].read_rows(ranges, into)

    def forecast(self, more: bool, units: int | None) -> None:
        """Nothing is read ahead."""

    def pass_started(self, rows: int, tokens: int) -> None:
        now = time.perf_counter()
        self._end(now)
        self._passes.append(_PassTimes(now))

    def pass_ended(self, complete: bool) -> None:
        self.mark()
        self._ended = time.perf_counter()

    def finish(self) -> list[_PassTimes]:
        """All passes since the last call; the last one ends with its forward."""
        self._end(self._ended or time.perf_counter())
        passes, self._passes = self._passes, []
        return passes

    def close(self) -> None:
        for reader in self._files:
            reader.close()

    def _end(self, now: float) -> None:
        """A pass lasts until the next one starts: choosing the next token is part of it."""
        if self._passes:
            self._passes[-1].seconds = now - self._passes[-1].began


class Layers:
    """The members of a model's outermost lists, what they look like, and what of each unit is theirs.

    Made before the model is streamed: what is streamed has placeholders for parameters.
    """

    def __init__(self, model: nn.Module, division: Division) -> None:
        self.modules = list(_outermost(model))
        self.kinds = [
            (type(layer).__name__, tuple((name, tuple(one.shape)) for name, one in layer.named_parameters()))
            for layer in self.modules
        ]
        number_of = {id(part): number for number, layer in enumerate(self.modules) for part in layer.modules()}
        self.nbytes = [0] * len(self.modules)
        self.shares: list[dict[int, int]] = [defaultdict(int) for _ in division.layouts]  # by unit: layer -> bytes
        self.outside = [0] * len(division.layouts)  # by unit: bytes of no layer
        for piece in division.pieces:
            nbytes = sum({bound.source.info: bound.source.info.nbytes for bound in piece.bounds}.values())
            self._note(piece.unit, number_of.get(id(piece.module)), nbytes)
        for matrix in division.matrices:
            for block in matrix.blocks:
                self._note(block.unit, number_of.get(id(matrix.owners[0][0])), block.rows * matrix.row_nbytes)
        alike: dict[object, int] = defaultdict(int)
        self.computed: set[int] = set()
        for number, kind in enumerate(self.kinds):
            alike[kind] += 1
            if alike[kind] <= ALIKE:
                self.computed.add(number)

    def _note(self, unit: int, layer: int | None, nbytes: int) -> None:
        if layer is None:
            self.outside[unit] += nbytes
        else:
            self.nbytes[layer] += nbytes
            self.shares[unit][layer] += nbytes

    def unit_nbytes(self) -> list[int]:
        """Bytes of weights by unit."""
        return [sum(shares.values()) + rest for shares, rest in zip(self.shares, self.outside, strict=True)]

    @contextlib.contextmanager
    def handed_on(self, supply: RandomSupply) -> Iterator[None]:
        """Inside, only the `computed` layers run, and are timed; the others give what the last like them gave."""
        given: dict[object, Any] = {}
        before = [layer.forward for layer in self.modules]
        for number, layer in enumerate(self.modules):
            layer.forward = self._forward(number, before[number], given, supply)
        try:
            yield
        finally:
            for layer, forward in zip(self.modules, before, strict=True):
                layer.forward = forward

    def _forward(self, number: int, forward: Any, given: dict[object, Any], supply: RandomSupply) -> Any:
        kind = self.kinds[number]

        def timed(*args: Any, **kwargs: Any) -> Any:
            supply.mark()
            if number not in self.computed:
                return given[kind]
            supply.in_layer, started = True, time.perf_counter()
            given[kind] = forward(*args, **kwargs)
            supply.layer_took(number, time.perf_counter() - started)
            supply.in_layer = False
            return given[kind]

        return timed

    def warm(self, one: _PassTimes) -> _PassTimes:
        """A first pass without the first layer of each kind: that one made the libraries' plans for all."""
        firsts = {self.kinds.index(kind) for kind in self.kinds}
        layers = {layer: seconds for layer, seconds in one.layers.items() if layer not in firsts}
        spent_s = sum(one.layers.values()) - sum(layers.values())
        return _PassTimes(one.began, layers or one.layers, one.units, one.seconds - (spent_s if layers else 0.0))

    def times(self, passes: list[_PassTimes]) -> tuple[tuple[float, ...], float]:
        """Seconds by unit, by the bytes of a layer that it holds; and of the rest of a pass."""
        seen: dict[object, list[float]] = defaultdict(list)
        outside: dict[int, list[float]] = defaultdict(list)
        for one in passes:
            for layer, seconds in one.layers.items():
                seen[self.kinds[layer]].append(seconds)
            for unit, seconds in one.units.items():
                outside[unit].append(seconds)
        typical = {kind: _typical(found) for kind, found in seen.items()}
        units = [_typical(outside.get(unit, [0.0])) for unit in range(len(self.shares))]
        for unit, shares in enumerate(self.shares):
            for layer, nbytes in shares.items():
                units[unit] += typical.get(self.kinds[layer], 0.0) * nbytes / self.nbytes[layer]
        other_s = _typical([one.seconds - sum(one.units.values()) - sum(one.layers.values()) for one in passes])
        return tuple(units), max(0.0, other_s)


def _typical(found: list[float]) -> float:
    """The median: what else runs on the machine will run beside the model, too."""
    return statistics.median(found)


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (layer for layer in child if any(True for _ in layer.parameters()))
        else:
            yield from _outermost(child)


def measure_passes(
    model: Any, layers: Layers, supply: RandomSupply, batch: int, tokens: int, seconds: float
) -> Times:
    """Run `model`, streamed from `supply`, for about `seconds`; a generating one gives tokens after a prompt."""
    run = runner(model, batch, tokens)
    runs: list[list[_PassTimes]] = []
    deadline = time.perf_counter() + seconds
    with layers.handed_on(supply), torch.inference_mode():
        while not runs or time.perf_counter() < deadline:
            run()
            runs.append(supply.finish())
    first = [passes[0] for passes in runs[1:]] or [layers.warm(runs[0][0])]
    again = [one for passes in runs for one in passes[1:]]
    if not decodes(model):
        first = again
    return Times(*layers.times(first), *layers.times(again))


def runner(model: Any, batch: int, tokens: int, steps: int = STEPS) -> Callable[[], Any]:
    """One run: a prompt and `steps` further tokens where the model generates, else as many passes."""
    inputs = {name: _real(value, model) for name, value in example_inputs(model, batch, tokens).items()}
    if not decodes(model):

        def passes() -> None:
            for _ in range(max(1, steps - 1)):
                model(**inputs)

        return passes
    ids = inputs[model.main_input_name]
    settings = {"max_new_tokens": 1 + steps, "min_new_tokens": 1 + steps, "do_sample": False, "num_beams": 1}
    pad = {"pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    return lambda: model.generate(ids, **settings, **pad)


def decodes(model: Any) -> bool:
    """Whether a pass gives one more token of a text."""
    return bool(model.can_generate() and model.main_input_name == "input_ids" and not model.config.is_encoder_decoder)


def _real(value: Any, model: Any) -> Any:
    """An example input that is not on the meta device."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_floating_point():
        return torch.randn(value.shape, dtype=model.dtype)
    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    most = getattr(text, "vocab_size", None) or 2
    return torch.randint(0, min(int(most), 30000), value.shape)
