"""From a model directory to its `core.profile.ModelProfile`: built without weights, divided, and its units timed.

The process that does this takes the same memory before it binds as compute will, so that figure is measured here too.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hermes_mp.core.budget import slot_size
from hermes_mp.core.profile import Granularity, ModelProfile, UnitCost
from hermes_mp.errors import OutOfMemory
from hermes_mp.host import memory
from hermes_mp.host.arena import Arena
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.host.reading import FileReader
from hermes_mp.models.footprint import model_maximum
from hermes_mp.models.layer_times import CACHE_NBYTES, RandomSupply, Times, decodes, measure_passes
from hermes_mp.models.prepare import Prepared, prepare, settle
from hermes_mp.models.streamed import stream
from hermes_mp.models.tasks.task import open_task
from hermes_mp.models.units import Division

BESIDE_CHUNK_NBYTES = 16 << 20
BESIDE_S = 0.6
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
    """Measure for about `seconds`, besides building the model. Raises what `prepare` and the model's forward raise."""
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    found: list[Granularity] = []
    made = prepare(checkpoint, wanted.dtype, wanted.context, wanted.batch, say)
    maximum = model_maximum(made.skeleton.model.config)
    tokens = min(wanted.tokens, max(1, made.footprint.context // 2), max(1, (maximum or wanted.tokens) // 2))
    with _streamed(made, checkpoint) as (model, supply):
        # Only now, as compute does: what the model's task imports and holds is in the figure.
        task = open_task(model, checkpoint.directory, {})
        settle(made.skeleton.dtype)
        base = memory.quick(os.getpid()).total_nbytes
        say("measuring how long its layers take")
        supply.fill(_pattern_dtype(made.division))
        times = measure_passes(model, made.division, supply, wanted.batch, tokens, seconds)
        found.append(_granularity(None, made.division, times, supply.granule))
        beside = (0.0, 0.0)
        if not wanted.headers_only:
            beside = _beside(model, made.division, supply, wanted, tokens, checkpoint, times)
        decoding = decodes(model)
        del task, model
    footprint = made.footprint
    return ModelProfile(
        granularities=tuple(found),
        other_s=times.other_s,
        first_other_s=times.first_other_s,
        base_nbytes=base,
        reserve_nbytes=footprint.reserve_nbytes,
        use_nbytes=min(footprint.reserve_nbytes, footprint.need_nbytes(wanted.batch, tokens, 1)),
        weights_nbytes=sum(file.nbytes for file in checkpoint.files),
        parameters=sum(source.info.nbytes // source.file_dtype.itemsize for source in _sources(made)),
        batch=wanted.batch,
        tokens=tokens,
        context=footprint.context,
        decodes=decoding,
        threads=torch.get_num_threads(),
        beside_compute=beside[0],
        beside_read=beside[1],
    )


def _sources(made: Prepared) -> set[Any]:
    return set(made.skeleton.parameters.values())


@contextlib.contextmanager
def _streamed(made: Prepared, checkpoint: Checkpoint) -> Iterator[tuple[Any, RandomSupply]]:
    """The model, bound to random numbers."""
    slot = -(-made.division.list.slot_nbytes // 4096) * 4096
    nbytes = max(CACHE_NBYTES // max(slot, 1) + 1, 2) * slot
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


def _granularity(room: int | None, division: Division, times: Times, granule: int) -> Granularity:
    units = tuple(
        UnitCost(spec.nbytes, spec.read_nbytes, again_s, first_s)
        for spec, again_s, first_s in zip(division.list.units, times.again_s, times.first_s, strict=True)
    )
    return Granularity(room, slot_size(division.list.slot_nbytes, granule, mmap.PAGESIZE), units)


def _pattern_dtype(division: Division) -> torch.dtype:
    """The smallest dtype of the file: its bit patterns are fair numbers in the larger ones too."""
    dtypes = {bound.source.file_dtype for piece in division.pieces for bound in piece.bounds}
    dtypes |= {matrix.source.file_dtype for matrix in division.matrices}
    return min(dtypes, key=lambda dtype: (dtype.itemsize, dtype != torch.bfloat16), default=torch.float32)


def _beside(
    model: Any,
    division: Division,
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

        def read(until: Callable[[], bool]) -> float:
            """Bytes per second."""
            nonlocal done
            began, before, at = time.perf_counter(), done, 0
            while not until():
                offset = done % (file.nbytes // BESIDE_CHUNK_NBYTES * BESIDE_CHUNK_NBYTES)
                with arena.view(at, BESIDE_CHUNK_NBYTES) as buffer:
                    reader.read_into(buffer, offset, BESIDE_CHUNK_NBYTES, BESIDE_CHUNK_NBYTES)
                done += BESIDE_CHUNK_NBYTES
                at = BESIDE_CHUNK_NBYTES - at
            return (done - before) / (time.perf_counter() - began)

        deadline = time.perf_counter() + BESIDE_S / 2
        rate_alone = read(lambda: time.perf_counter() > deadline)
        rates: list[float] = []
        thread = threading.Thread(target=lambda: rates.append(read(stop.is_set)))
        thread.start()
        try:
            times = measure_passes(model, division, supply, wanted.batch, tokens, BESIDE_S)
        finally:
            stop.set()
            thread.join()
    compute = sum(times.again_s) / sum(alone.again_s) - 1 if sum(alone.again_s) else 0.0
    read_share = rate_alone / rates[0] - 1 if rates and rates[0] else 0.0
    return min(1.0, max(0.0, compute)), min(1.0, max(0.0, read_share))
