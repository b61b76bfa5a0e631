"""The Layer Profiler (paper, section III): what every unit of a model takes to compute, without reading the model.

The model runs as it will, hooked and bound, but on memory that holds random numbers of its dtype and is larger than
the processor's cache: matrices take the same time whatever is in them. Of units that look alike a few are computed
and the others handed a result of theirs, so that a model of any depth is measured in a second or two.
It reads no weights; who asks for the figures, and where they are kept, is not known here.
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

from hermes_mp.host.arena import Arena
from hermes_mp.host.reading import FileReader
from hermes_mp.models.trace import example_inputs
from hermes_mp.models.units import Division, Piece

ALIKE = 4  # units of a kind that are computed
STEPS = 4  # further tokens after the first, or repeated passes, per run
CACHE_NBYTES = 160 << 20  # more than the processor's cache, so that weights come from memory as they do in a run
FILL_NBYTES = 8 << 20  # of random numbers, repeated


@dataclass(frozen=True)
class Times:
    """Seconds by unit of a pass, and outside of all units: of the pass over the input, and of one that repeats."""

    first_s: tuple[float, ...]
    first_other_s: float
    again_s: tuple[float, ...]
    other_s: float

    @property
    def total_s(self) -> float:
        return sum(self.again_s) + self.other_s


@dataclass
class _PassTimes:
    began: float
    units: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    seconds: float = 0.0


class RandomSupply:
    """A `models.supply.Supply` without a daemon: every unit is there at once, as random numbers, and is timed."""

    def __init__(self, division: Division, files: Sequence[tuple[str, int]], arena: Arena, nbytes: int) -> None:
        """`nbytes` of `arena` are allocated."""
        self.buffer = arena.view(0, nbytes)
        self.granule = arena.granule
        self._slot_nbytes = -(-division.list.slot_nbytes // 4096) * 4096
        self._nbytes = nbytes
        self._base = 0
        self._files = [FileReader(path, size) for path, size in files]
        self._present: tuple[int, float] | None = None
        self._ended: float | None = None
        self.passes: list[_PassTimes] = []

    def fill(self, dtype: torch.dtype) -> None:
        """Numbers like weights: neither infinite nor so small that processors slow down on them."""
        pattern = (torch.randn(FILL_NBYTES // dtype.itemsize) * 0.02).to(dtype).view(torch.uint8)
        whole = torch.frombuffer(self.buffer, dtype=torch.uint8)
        for at in range(0, self._nbytes, FILL_NBYTES):
            part = whole[at : at + FILL_NBYTES]
            part.copy_(pattern[: part.numel()])

    def acquire(self, unit: int) -> int:
        self.mark()
        if self._base + 2 * self._slot_nbytes > self._nbytes:
            self._base = 0
        else:
            self._base += self._slot_nbytes
        self._present = unit, time.perf_counter()
        return self._base

    def mark(self) -> None:
        """What follows does not belong to the unit that was acquired last."""
        if self._present is not None and self.passes:
            unit, since = self._present
            self.passes[-1].units[unit] += time.perf_counter() - since
        self._present = None

    def release(self, unit: int, computed: bool) -> None:
        """What follows until the next unit still counts as this one's."""

    def read_rows(self, file: int, ranges: Sequence[tuple[int, int]], into: memoryview) -> None:
        self._files[file].read_rows(ranges, into)

    def forecast(self, more: bool, units: int | None) -> None:
        """Nothing is read ahead."""

    def pass_started(self, rows: int, tokens: int) -> None:
        now = time.perf_counter()
        self._end(now)
        self.passes.append(_PassTimes(now))

    def pass_ended(self, complete: bool) -> None:
        self.mark()
        self._ended = time.perf_counter()

    def finish(self) -> list[_PassTimes]:
        """All passes since the last call; the last one ends with its forward."""
        self._end(self._ended or time.perf_counter())
        passes, self.passes = self.passes, []
        return passes

    def close(self) -> None:
        for reader in self._files:
            reader.close()

    def _end(self, now: float) -> None:
        """A pass lasts until the next one starts: choosing the next token is part of it."""
        if self.passes:
            self.passes[-1].seconds = now - self.passes[-1].began


def kinds_of(division: Division) -> list[object]:
    """For every unit what it looks like: units of equal looks take equal times."""
    found: list[list[object]] = [[] for _ in division.layouts]
    for piece in division.pieces:
        shapes = tuple((bound.leaf, bound.source.info.dtype, bound.source.info.shape) for bound in piece.bounds)
        found[piece.unit].append((type(piece.module).__name__, shapes))
    for matrix in division.matrices:
        for block in matrix.blocks:
            found[block.unit].append((matrix.name, block.last - block.first))
    return [tuple(one) for one in found]


def measure_passes(
    model: Any, division: Division, supply: RandomSupply, batch: int, tokens: int, seconds: float
) -> Times:
    """Run `model`, streamed from `supply`, for about `seconds`; a generating one gives tokens after a prompt."""
    kinds = kinds_of(division)
    alike: dict[object, int] = defaultdict(int)
    computed = set()
    for unit, kind in enumerate(kinds):
        alike[kind] += 1
        if alike[kind] <= ALIKE:
            computed.add(unit)
    run = runner(model, batch, tokens)
    deadline = time.perf_counter() + seconds
    runs: list[list[_PassTimes]] = []
    with handed_on(division, kinds, computed, supply), torch.inference_mode():
        run()
        supply.finish()  # a warm-up
        while not runs or time.perf_counter() < deadline:
            run()
            runs.append(supply.finish())
    first = [passes[0] for passes in runs]
    again = [one for passes in runs for one in passes[1:]] or first
    first_s, first_other_s = _by_kind(first, kinds, computed)
    again_s, other_s = _by_kind(again, kinds, computed)
    return Times(first_s, first_other_s, again_s, other_s)


def _by_kind(passes: list[_PassTimes], kinds: list[object], computed: set[int]) -> tuple[tuple[float, ...], float]:
    """Each unit's seconds: the median over those that look alike and over the passes; and what is outside of units."""
    seen: dict[object, list[float]] = defaultdict(list)
    for one in passes:
        for unit in computed:
            seen[kinds[unit]].append(one.units.get(unit, 0.0))
    medians = {kind: statistics.median(found) for kind, found in seen.items()}
    other_s = statistics.median(one.seconds - sum(one.units.values()) for one in passes)
    return tuple(medians[kind] for kind in kinds), max(0.0, other_s)


def runner(model: Any, batch: int, tokens: int) -> Callable[[], Any]:
    """One run: a prompt and `STEPS` further tokens where the model generates, else one pass."""
    inputs = {name: _real(value, model) for name, value in example_inputs(model, batch, tokens).items()}
    if not decodes(model):
        return lambda: [model(**inputs) for _ in range(1 + STEPS // 2)]
    ids = inputs[model.main_input_name]
    settings = {"max_new_tokens": 1 + STEPS, "min_new_tokens": 1 + STEPS, "do_sample": False, "num_beams": 1}
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


@contextlib.contextmanager
def handed_on(division: Division, kinds: list[object], computed: set[int], supply: RandomSupply) -> Iterator[None]:
    """Inside, only the pieces of `computed` units run; the others give what the last piece that looks alike gave."""
    given: dict[tuple[object, int], Any] = {}
    places: dict[int, int] = defaultdict(int)
    before: list[tuple[Piece, Any]] = []

    def keep(forward: Any, key: tuple[object, int]) -> Any:
        def kept(*args: Any, **kwargs: Any) -> Any:
            given[key] = forward(*args, **kwargs)
            return given[key]

        return kept

    def hand(key: tuple[object, int]) -> Any:
        def handed(*args: Any, **kwargs: Any) -> Any:
            supply.mark()
            return given[key]

        return handed

    for piece in division.pieces:
        key = kinds[piece.unit], places[piece.unit]
        places[piece.unit] += 1
        forward = piece.module.forward
        before.append((piece, forward))
        piece.module.forward = keep(forward, key) if piece.unit in computed else hand(key)
    try:
        yield
    finally:
        for piece, forward in before:
            piece.module.forward = forward
