"""Gathers what a plan is made of: the profiles of disk and model, from the user's cache, else measured now."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hermes_mp.agents.profiler import ProfilerSettings, profile_in_own_process
from hermes_mp.core.profile import ASSUMED_DEVICE, DeviceProfile, ModelProfile
from hermes_mp.host import diskspeed, profilecache, unitcache
from hermes_mp.host.checkpoint import Checkpoint

DEVICE_S, MODEL_S = 2.5, 2.0  # of measuring


@dataclass(frozen=True)
class Profiles:
    """What is known, and whether it was measured only now."""

    device: DeviceProfile
    model: ModelProfile
    fresh: bool


def gather(
    checkpoint: Checkpoint,
    wanted: ProfilerSettings,
    fresh: bool,
    say: Callable[[str], None],
    place: Path | None = None,
    memory: int | None = None,
    loaders: int | None = None,
) -> Profiles:
    """`fresh`: measure whatever is known. `place`: where the weights will lie, of which there are only headers yet.

    `memory`, `loaders`: what a run will be told; how much memory compute took in the last such run counts.

    Raises what measuring raises: see `measure_device` and `profile_model`.
    """
    largest = max(checkpoint.files, key=lambda file: file.nbytes).path
    name = diskspeed.device_name(place or largest)
    device_path = profilecache.device_path(name)
    device = None if fresh else profilecache.recall_device(device_path)
    measured = False
    if device is None:
        file = largest if place is None else _large_file(place)
        if file is not None and file.stat().st_size >= diskspeed.LEAST_NBYTES:
            say("measuring the disk")
            device = diskspeed.measure_device(file, DEVICE_S)
        if device is not None:
            measured = True
            profilecache.remember(device_path, device)
    model_path = profilecache.model_path(
        checkpoint.digest, wanted.dtype, wanted.context, wanted.batch, wanted.tokens, wanted.threads, name
    )
    model = None if fresh else profilecache.recall_model(model_path)
    if model is None:
        measured = True
        model = profile_in_own_process(wanted, say)
        profilecache.remember(model_path, model)
    return Profiles(device or ASSUMED_DEVICE, _as_it_ran(checkpoint, wanted, model, memory, loaders), measured)


def _as_it_ran(
    checkpoint: Checkpoint, wanted: ProfilerSettings, model: ModelProfile, memory: int | None, loaders: int | None
) -> ModelProfile:
    """With what compute took in a launch of this model, where there was one: truer than what the profiler took.

    What it took once started says what it takes before it binds; its peak until then says what a start needs.
    """
    entry = unitcache.entry_path(
        checkpoint.digest, wanted.dtype, wanted.context, wanted.batch, memory, loaders
    )
    known = unitcache.recall(entry)
    if known is None or not known.start_nbytes:  # a caller's memory, or none of it, is not a launch's
        return model
    sizes = [unit.nbytes for unit in known.units.units]
    for one in model.granularities:
        if [unit.nbytes for unit in one.units] == sizes:
            more = known.base_nbytes - one.base_nbytes
            return replace(model, granularities=tuple(
                replace(each, base_nbytes=max(0, each.base_nbytes + more), start_nbytes=known.start_nbytes)
                for each in model.granularities
            ))  # fmt: skip
    return model


def _large_file(place: Path) -> Path | None:
    """Some file on the device of `place`, below it, that is large enough to measure by."""
    device = os.stat(place).st_dev
    best: tuple[int, Path] | None = None
    for folder, _, names in os.walk(place):
        for name in names:
            path = Path(folder, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if status.st_dev == device and os.path.isfile(path) and not path.is_symlink():
                best = max(best or (0, path), (status.st_size, path))
    return best[1] if best is not None and best[0] >= diskspeed.LEAST_NBYTES else None
