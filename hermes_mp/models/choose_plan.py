"""Plans a run that begins: with the profiles in the user's cache, or, where there are none, with a quick estimate.

A launch does not wait for a profile. What the disk gives is measured once per device, in half a second; computing is
estimated by one product of matrices, and the estimate is kept, so that the next run plans the same.
"""

from __future__ import annotations

import mmap
import os
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from hermes_mp.core.budget import slot_shape
from hermes_mp.core.planner import plan
from hermes_mp.core.profile import (
    ASSUMED_DEVICE,
    DeviceProfile,
    Granularity,
    ModelProfile,
    UnitCost,
    usual_beside,
)
from hermes_mp.core.squeeze import reserve_nbytes
from hermes_mp.errors import BudgetTooSmall, ReadFailed
from hermes_mp.host import diskspeed, memory, profilecache
from hermes_mp.host.ceilings import Ceilings
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.messages import RunPlan
from hermes_mp.models.division import Division
from hermes_mp.models.layer_times import decodes
from hermes_mp.models.prepare import Traced
from hermes_mp.models.settle import settle

QUICK_S, QUICK_NBYTES = 0.5, 32 << 20  # of reading, once per device, and the memory for that
PROFILED_TOKENS = 128  # what `hermes-plan` profiles for by default
ESTIMATED_TOKENS = 64  # of an input that is not known yet
WIDTH, HEIGHT, TURNS = 1024, 4096, 3  # of the matrices that are multiplied for an estimate
BLOCK_S = 0.00006  # to multiply by one block of rows more
TO_COME_NBYTES = 20 << 20  # of memory, until compute binds: buffers of some models; its tokenizer it has by then
SPARE_NBYTES = 64 << 20
ROUNDED_NBYTES = 8 << 20  # memory differs from run to run, and the plan should not
MEASURED, ESTIMATED, ASSUMED = "measured", "estimated", "assumed"


@dataclass(frozen=True)
class Told:
    """What a run was told that matters here. `loaders` None: as is best. `memory`: bytes, "auto", or None: no limit."""

    dtype: str
    context: int | None
    batch: int
    threads: int | None
    loaders: int | None
    memory: int | str | None
    granule: int
    in_flight: int = 1
    has_copy: bool = True  # else the files are headers and holes, and another board reads


@dataclass(frozen=True)
class Chosen:
    """Divide by `room`, run by `plan`."""

    room: int | None
    plan: RunPlan

    @property
    def streamed_by(self) -> int:
        """For so many loaders it is divided: where all units fit there shall be as few as were planned with."""
        return self.plan.loaders if self.plan.window else 1


def choose_plan(traced: Traced, checkpoint: Checkpoint, told: Told) -> Chosen:
    """Refuses nothing: what does not fit by what is known here the daemon will judge by what is so."""
    largest = max(checkpoint.files, key=lambda file: file.nbytes).path
    name = diskspeed.device_name(largest) if told.has_copy else "borrowed"
    device = _device(name, largest) if told.has_copy else ASSUMED_DEVICE
    model, source = _model(traced, checkpoint, told, name)
    if model.estimated:
        compute, read = usual_beside(max(rate.nbytes_per_s for rate in device.rates))
        model = replace(model, beside_compute=compute, beside_read=read)
    try:
        budget = told.memory if isinstance(told.memory, int | None) else spare_nbytes()
        found = plan(device, model, budget, told.loaders)
    except BudgetTooSmall:
        finest = min(model.granularities, key=lambda one: one.base_nbytes + one.reserve_nbytes + 2 * one.slot_nbytes)
        return Chosen(finest.room, RunPlan(told.loaders or 1))
    forecast_us = round(found.forecast.seconds * 1e6)
    source = ASSUMED if device.assumed else source
    return Chosen(
        found.room, RunPlan(found.loaders, found.window, found.chunk_nbytes, found.direct, forecast_us, source)
    )


def spare_nbytes() -> int:
    """About what `--memory auto` will come to; rounded, so that the next run plans the same."""
    with closing(Ceilings()) as ceilings:
        spare = min(one.free_nbytes - reserve_nbytes(one.limit_nbytes, None) for one in ceilings.look())
    return max(0, (spare + memory.quick(os.getpid()).total_nbytes) // SPARE_NBYTES * SPARE_NBYTES)


def _device(name: str, largest: Path) -> DeviceProfile:
    quick = profilecache.device_path(f"{name}-quick")
    known = profilecache.recall_device(profilecache.device_path(name)) or profilecache.recall_device(quick)
    if known is not None:
        return known
    try:
        measured = diskspeed.measure_device(largest, QUICK_S, QUICK_NBYTES, buffered=False)
    except ReadFailed:
        measured = None  # the loaders will meet the same, and name the unit
    if measured is None:
        return ASSUMED_DEVICE
    profilecache.remember(quick, measured)
    return measured


def _model(traced: Traced, checkpoint: Checkpoint, told: Told, device: str) -> tuple[ModelProfile, str]:
    def path(tokens: int) -> Path:
        return profilecache.model_path(
            checkpoint.digest, told.dtype, told.context, told.batch, tokens, told.threads, device,
            told.in_flight,
        )  # fmt: skip

    profiled = profilecache.recall_model(path(PROFILED_TOKENS))
    if profiled is not None:
        return profiled, MEASURED
    known = profilecache.recall_model(path(0))
    if known is None:
        known = _estimated(traced, checkpoint, told)
        profilecache.remember(path(0), known)
    return known, ESTIMATED


def _estimated(traced: Traced, checkpoint: Checkpoint, told: Told) -> ModelProfile:
    model = traced.skeleton.model
    decoding = decodes(model)
    images = model.main_input_name == "pixel_values"
    tokens = 1 if decoding else min(ESTIMATED_TOKENS, traced.positions)
    patches = max((shape[1] for shape in traced.trace.layers), default=tokens)
    again_s = seconds_per_byte(traced.skeleton.dtype, told.batch * (patches if images else tokens))
    again_s *= told.in_flight  # one after the other on each unit
    first_s = again_s
    if decoding:
        first_s = told.in_flight * seconds_per_byte(traced.skeleton.dtype, told.batch * ESTIMATED_TOKENS)
    base = settle(traced.skeleton.dtype, images=images) + TO_COME_NBYTES
    base = -(-base // ROUNDED_NBYTES) * ROUNDED_NBYTES
    return ModelProfile(
        granularities=tuple(
            Granularity(
                room,
                *slot_shape(made.division.list.slot_nbytes, told.granule, mmap.PAGESIZE),
                base + sum({bound.source: bound.source.info.nbytes for bound in made.division.pinned}.values()),
                made.footprint.reserve_nbytes,
                min(
                    made.footprint.reserve_nbytes,
                    told.in_flight * made.footprint.need_nbytes(told.batch, tokens, 1),
                ),
                _units(made.division, again_s, first_s),
            )
            for room, made in traced.granularities()
        ),
        other_s=0.0,
        first_other_s=0.0,
        weights_nbytes=sum(file.nbytes for file in checkpoint.files),
        parameters=sum(source.info.nbytes // source.file_dtype.itemsize for source in traced.sources()),
        batch=told.batch,
        tokens=tokens,
        context=traced.positions,
        decodes=decoding,
        threads=torch.get_num_threads(),
        estimated=True,
    )


def _units(division: Division, again_s: float, first_s: float) -> tuple[UnitCost, ...]:
    blocks = [0] * len(division.layouts)
    for matrix in division.matrices:
        for block in matrix.blocks:
            blocks[block.unit] += 1
    return tuple(
        UnitCost(
            spec.nbytes,
            spec.read_nbytes,
            spec.read_nbytes * again_s + blocks[unit] * BLOCK_S,
            spec.read_nbytes * first_s + blocks[unit] * BLOCK_S,
        )
        for unit, spec in enumerate(division.list.units)
    )


def seconds_per_byte(dtype: torch.dtype, rows: int) -> float:
    """What a byte of weights costs a pass over `rows` positions: by the fastest of a few products of matrices.

    The first one makes the library's plans for all, and what else runs disturbs others: medians of three were once
    ten times too long, and such an estimate stays.
    """
    weights = torch.ones(TURNS, HEIGHT, WIDTH, dtype=dtype)  # no more than that: memory for a start counts
    states = torch.ones(rows, WIDTH, dtype=dtype)
    times = []
    with torch.inference_mode():
        for weight in (*weights, *weights):
            started = time.perf_counter()
            F.linear(states, weight)
            times.append(time.perf_counter() - started)
    return min(times) / (HEIGHT * WIDTH * dtype.itemsize)
