"""Gathers what a plan is made of: the profiles of disk and model, from the user's cache, else measured now."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hermes_mp.agents.profiler import ProfilerSettings, profile_in_own_process
from hermes_mp.core.profile import ASSUMED_DEVICE, DeviceProfile, ModelProfile
from hermes_mp.errors import ReadFailed
from hermes_mp.host import diskspeed, profilecache, unitcache
from hermes_mp.host.checkpoint import Checkpoint

DEVICE_S, MODEL_S = 2.5, 2.0  # of measuring
INCOMPLETE = ".incomplete"  # of a download that goes on or was broken off; holes read faster than the disk


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
    """`fresh`: measure whatever is known. `place`: where the weights will lie, of which there are only headers yet;

    a folder that may not exist yet. What lies there already serves to measure by, whatever it is.

    `memory`, `loaders`: what a run will be told; how much memory compute took in the last such run counts.

    Raises what measuring raises: see `measure_device` and `profile_model`.
    """
    largest = max(checkpoint.files, key=lambda file: file.nbytes).path
    name = diskspeed.device_name(largest if place is None else _existing(place))
    device_path = profilecache.device_path(name)
    device = None if fresh else profilecache.recall_device(device_path)
    measured, unkept = False, ""
    if device is None:
        file = largest if place is None else _large_file(place)
        if file is not None and file.stat().st_size >= diskspeed.LEAST_NBYTES:
            say("measuring the disk")
            device = _measured(file, strange=place is not None)
        if device is not None:
            measured = True
            unkept = profilecache.remember(device_path, device)
    model_path = profilecache.model_path(
        checkpoint.digest, wanted.dtype, wanted.context, wanted.batch, wanted.tokens, wanted.threads, name
    )
    model = None if fresh else profilecache.recall_model(model_path)
    if model is None:
        measured = True
        model = profile_in_own_process(wanted, say)
        unkept = profilecache.remember(model_path, model)
    if unkept:
        say(unkept)
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


def _measured(file: Path, strange: bool) -> DeviceProfile | None:
    """None where a `strange` file, that only serves to measure by, cannot be read: the speed is then assumed."""
    try:
        return diskspeed.measure_device(file, DEVICE_S)
    except (OSError, ReadFailed):
        if not strange:
            raise
        return None


def _existing(place: Path) -> Path:
    """`place`, or the nearest folder above it that exists."""
    return next(folder for folder in (place, *place.parents) if folder.exists())


def _large_file(place: Path) -> Path | None:
    """The first file below `place`, on its device, that can be read and is large enough to measure by."""
    if not place.is_dir():
        return None
    device = os.stat(place).st_dev
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if _status(Path(folder, name), device) is not None)
        for path in (Path(folder, name) for name in sorted(names)):
            status = None if path.suffix == INCOMPLETE else _status(path, device)
            if status is None or not stat.S_ISREG(status.st_mode) or status.st_size < diskspeed.LEAST_NBYTES:
                continue
            if os.access(path, os.R_OK):
                return path
    return None


def _status(path: Path, device: int) -> os.stat_result | None:
    """Of `path` itself, were it a link; None for what is gone, or on another device."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if status.st_dev == device else None
