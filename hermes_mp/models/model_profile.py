"""From a model directory to its `core.profile.ModelProfile`: built without weights, divided, and its units timed.

The process that does this takes the same memory before it binds as compute will, so that figure is measured here too.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from hermes_mp.core.budget import slot_shape
from hermes_mp.core.profile import (
    Granularity,
    ModelProfile,
    UnitCost,
    usual_beside,
)
from hermes_mp.errors import OutOfMemory
from hermes_mp.host import memory
from hermes_mp.host.arena import Arena
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.host.reading import FileReader
from hermes_mp.models.division import Division
from hermes_mp.models.footprint import Footprint, model_maximum
from hermes_mp.models.layer_times import CACHE_NBYTES, STEPS, Layers, RandomSupply, Times, decodes, measure_passes
from hermes_mp.models.prepare import Prepared, trace_model
from hermes_mp.models.settle import settle
from hermes_mp.models.skeleton import build_skeleton
from hermes_mp.models.streamed import stream
from hermes_mp.models.tasks.task import open_task
from hermes_mp.models.trace import trace_forward
from hermes_mp.models.units import divide

BESIDE_CHUNK_NBYTES = 4 << 20  # on a slow disk a tenth of a second: what ends after computing counts beside it
BESIDE_S, BESIDE_TURN_S = 1.6, 0.2  # in all, where a pass is short; and of each turn
SHORT_PROMPT = 1  # tokens, where only what follows the prompt is compared: one of 128 took GPT-J-6B 1.5 s
MOST_FOR_BLOCKS = 0.5  # of what a pass takes by layers; a larger difference is the machine's unrest
LEAST_BESIDE_NBYTES = 64 << 20  # of a file; reading a smaller one beside computing tells nothing
MOST_SHARE = 0.5  # of the memory that is to be had, for the random weights


@dataclass(frozen=True)
class Wanted:
    """What to profile for. `tokens`: of the input; `headers_only`: the files hold headers, no weights."""

    dtype: str
    context: int | None
    batch: int
    tokens: int
    threads: int | None
    headers_only: bool = False


def profile_model(checkpoint: Checkpoint, wanted: Wanted, seconds: float, say: Callable[[str], None]) -> ModelProfile:
    """Measure for about `seconds`, besides building the model. Raises what `trace_model` and a forward raise."""
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    traced = trace_model(checkpoint, wanted.dtype, wanted.context, wanted.batch, say)
    maximum = model_maximum(traced.skeleton.model.config)
    tokens = max(1, min(wanted.tokens, traced.positions - STEPS - 1, (maximum or wanted.tokens) - STEPS - 1))
    rooms, made = zip(*traced.granularities(), strict=True)
    splits = [Layers(traced.skeleton.model, one.division) for one in made]
    pinned = [sum({bound.source: bound.source.info.nbytes for bound in one.division.pinned}.values()) for one in made]
    say("measuring how long its layers take")
    beside = (0.0, 0.0)
    started = memory.peak_nbytes(os.getpid())  # before there is an arena: its pages count in the peak
    with _streamed(made[0], checkpoint) as (model, supply):
        task = open_task(model, checkpoint.directory, {})  # as compute does: what that takes is in the base
        base = settle(traced.skeleton.dtype, images=model.main_input_name == "pixel_values")
        supply.fill(_pattern_dtype(made[0].division))
        layered = measure_passes(model, splits[0], supply, wanted.batch, tokens, seconds / 2)
        if not wanted.headers_only:
            beside = _beside(model, splits[0], supply, wanted, tokens, checkpoint, layered)
        decoding, granule = decodes(model), supply.granule
        del task, model
    block_s = (0.0, 0.0)
    if len(made) > 1:
        block_s = _block_seconds(checkpoint, wanted, rooms[-1], tokens, seconds / 4, layered, made[0].footprint)
    return ModelProfile(
        granularities=tuple(
            Granularity(
                room,
                *slot_shape(one.division.list.slot_nbytes, granule, mmap.PAGESIZE),
                base + nbytes - pinned[0],
                one.footprint.reserve_nbytes,
                min(one.footprint.reserve_nbytes, one.footprint.need_nbytes(wanted.batch, tokens, 1)),
                _units(one.division, layers, splits[0], layered, block_s if room else (0.0, 0.0)),
                max(started, base),
            )
            for room, one, layers, nbytes in zip(rooms, made, splits, pinned, strict=True)
        ),
        other_s=layered.other_s,
        first_other_s=layered.first_other_s,
        weights_nbytes=sum(file.nbytes for file in checkpoint.files),
        parameters=sum(source.info.nbytes // source.file_dtype.itemsize for source in traced.sources()),
        batch=wanted.batch,
        tokens=tokens,
        context=traced.positions,
        decodes=decoding,
        threads=torch.get_num_threads(),
        beside_compute=beside[0],
        beside_read=beside[1],
    )


def _block_seconds(
    checkpoint: Checkpoint,
    wanted: Wanted,
    room: int | None,
    tokens: int,
    seconds: float,
    layered: Times,
    footprint: Footprint,
) -> tuple[float, float]:
    """What one more block of a matrix costs, in a pass that repeats and in the first: by the finest division.

    Where the model generates, a block of the first pass is taken to cost what one of the others does: it is bound and
    asked for all the same.
    """
    skeleton = build_skeleton(checkpoint.directory, checkpoint, wanted.dtype)
    tokens = _least_tokens(skeleton.model, tokens)
    trace = trace_forward(skeleton.model, wanted.batch, tokens)
    made = Prepared(skeleton, divide(skeleton, trace, room), footprint)
    layers = Layers(skeleton.model, made.division)
    with _streamed(made, checkpoint) as (model, supply):
        supply.fill(_pattern_dtype(made.division))
        fine = measure_passes(model, layers, supply, wanted.batch, tokens, seconds)
    blocks = max(1, sum(len(matrix.blocks) for matrix in made.division.matrices))

    def each(fine_s: float, layered_s: float) -> float:
        return min(max(0.0, fine_s - layered_s), MOST_FOR_BLOCKS * layered_s) / blocks

    again_s = each(sum(fine.again_s) + fine.other_s, sum(layered.again_s) + layered.other_s)
    if decodes(skeleton.model):
        return again_s, again_s
    return again_s, each(sum(fine.first_s) + fine.first_other_s, sum(layered.first_s) + layered.first_other_s)


def _least_tokens(model: Any, tokens: int) -> int:
    """How many to give a model whose passes after the first are wanted, or whose passes are all alike."""
    return min(tokens, SHORT_PROMPT) if decodes(model) else tokens


def _units(
    division: Division, layers: Layers, by_layers: Layers, times: Times, block_s: tuple[float, float]
) -> tuple[UnitCost, ...]:
    """Each unit's share of what was measured by layers, by bytes, and what its blocks cost besides."""
    blocks: dict[int, int] = defaultdict(int)
    for matrix in division.matrices:
        for block in matrix.blocks:
            blocks[block.unit] += 1
    again_s = _spread(division, layers, by_layers, times.again_s)
    first_s = _spread(division, layers, by_layers, times.first_s)
    return tuple(
        UnitCost(
            spec.nbytes,
            spec.read_nbytes,
            again_s[unit] + blocks[unit] * block_s[0],
            first_s[unit] + blocks[unit] * block_s[1],
        )
        for unit, spec in enumerate(division.list.units)
    )


def _spread(division: Division, layers: Layers, by_layers: Layers, seconds: Sequence[float]) -> list[float]:
    """The measured units' seconds, given to the units of another division: both hold the same bytes in one order."""
    if layers is by_layers:
        return list(seconds)
    sizes, own = by_layers.unit_nbytes(), layers.unit_nbytes()
    ends = list(accumulate(sizes))
    scale = ends[-1] / sum(own) if sum(own) else 0.0
    found = []
    begin = 0.0
    for nbytes in own:
        end = begin + nbytes * scale
        found.append(
            sum(
                s * max(0.0, min(end, high) - max(begin, high - size)) / size
                for s, size, high in zip(seconds, sizes, ends, strict=True)
                if size and high > begin and high - size < end
            )
        )
        begin = end
    return found


@contextlib.contextmanager
def _streamed(made: Prepared, checkpoint: Checkpoint) -> Iterator[tuple[Any, RandomSupply]]:
    """The model, bound to random numbers."""
    slot = -(-made.division.list.slot_nbytes // 4096) * 4096
    nbytes = (CACHE_NBYTES // max(slot, 1) + 1) * slot
    most = int(memory.available_nbytes() * MOST_SHARE)
    nbytes = max(min(nbytes, most // max(slot, 1) * slot), slot, mmap.PAGESIZE)
    files = [(str(file.path), file.nbytes) for file in checkpoint.files]
    with Arena.create(nbytes) as arena, contextlib.ExitStack() as stack:
        if nbytes > memory.available_nbytes():
            raise OutOfMemory(f"no {nbytes >> 20} MiB of memory to measure a unit of this model in")
        arena.allocate(0, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        supply = RandomSupply(made.division, files, arena, nbytes)
        stack.callback(supply.close)
        nothing = lambda *_: None  # noqa: E731  # no budget to check a call against
        yield stream(made.skeleton, made.division, supply, nothing, nothing), supply
        supply.buffer.release()


def _pattern_dtype(division: Division) -> torch.dtype:
    """The smallest dtype of the file: its bit patterns are fair numbers in the larger ones too."""
    dtypes = {bound.source.file_dtype for piece in division.pieces for bound in piece.bounds}
    dtypes |= {matrix.source.file_dtype for matrix in division.matrices}
    return min(dtypes, key=lambda dtype: (dtype.itemsize, dtype != torch.bfloat16), default=torch.float32)


def _beside(
    model: Any,
    layers: Layers,
    supply: RandomSupply,
    wanted: Wanted,
    tokens: int,
    checkpoint: Checkpoint,
    alone: Times,
) -> tuple[float, float]:
    """By what shares computing and reading take longer while the other goes on: they share cores and memory."""
    file = max(checkpoint.files, key=lambda one: one.nbytes)
    if file.nbytes < LEAST_BESIDE_NBYTES:
        return 0.0, 0.0
    with Arena.create(2 * BESIDE_CHUNK_NBYTES) as arena, FileReader(file.path, file.nbytes) as reader:
        arena.allocate(0, 2 * BESIDE_CHUNK_NBYTES)
        stop = threading.Event()
        done = 0

        def read_chunk() -> None:
            nonlocal done
            offset = done % (file.nbytes // BESIDE_CHUNK_NBYTES * BESIDE_CHUNK_NBYTES)
            with arena.view(done % (2 * BESIDE_CHUNK_NBYTES), BESIDE_CHUNK_NBYTES) as buffer:
                reader.read_into(buffer, offset, BESIDE_CHUNK_NBYTES)
            done += BESIDE_CHUNK_NBYTES

        def read(until: Callable[[], bool]) -> float:
            """Bytes per second; what is read first does not count."""
            read_chunk()
            began, before = time.perf_counter(), done
            read_chunk()
            while not until():
                read_chunk()
            return (done - before) / (time.perf_counter() - began)

        def compute() -> Times:
            return measure_passes(model, layers, supply, wanted.batch, _least_tokens(model, tokens), BESIDE_TURN_S)

        computing: list[float] = []  # ratios, each of two measurements that lie side by side: machines change speed
        reading: list[float] = []
        deadline = time.perf_counter() + BESIDE_S
        while True:
            for _ in range(2):  # the first does not count: after a pause a cap lets more through
                until = time.perf_counter() + BESIDE_TURN_S / 4
                rate_alone = read(lambda until=until: time.perf_counter() > until)  # type: ignore[misc]
            rates: list[float] = []
            stop.clear()
            thread = threading.Thread(target=lambda rates=rates: rates.append(read(stop.is_set)))
            thread.start()
            try:
                times = compute()
            finally:
                stop.set()
                thread.join()
            ended = time.perf_counter() > deadline
            alone = alone if ended else compute()
            if sum(alone.again_s):
                computing.append(sum(times.again_s) / sum(alone.again_s) - 1)
            if rates and rates[0]:
                reading.append(rate_alone / rates[0] - 1)
            if ended:
                break
    usual = usual_beside(rate_alone)
    return with_usual(computing, usual[0]), with_usual(reading, usual[1])


def with_usual(measured: Sequence[float], usual: float) -> float:
    """The mean of a few noisy measurements of a share and of what it usually is, which counts as two of them."""
    return min(1.0, max(0.0, (2 * usual + sum(measured)) / (2 + len(measured))))
