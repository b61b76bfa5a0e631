"""The user's cache of profiles: what disks and models measured, so that the next plan needs neither time nor torch.

A device's figures go by what the device is (`diskspeed.device_name`); a model's by its checkpoint, what it was measured
for, the software and this machine's processor. A wrong, stale or damaged entry costs speed, never an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hermes_mp.core.cluster.layer_costs import LayerCosts
from hermes_mp.core.profile import DeviceProfile, ModelProfile
from hermes_mp.errors import BadMessage
from hermes_mp.host.cachedir import FORMAT, cache_directory, keep, versions


def device_path(name: str) -> Path:
    """Where the figures of this device lie, whether they exist or not."""
    return cache_directory() / "devices" / f"{name}.json"


def model_path(
    digest: str, dtype: str, context: int | None, batch: int, tokens: int, threads: int | None, device: str,
    in_flight: int = 1,
) -> Path:  # fmt: skip
    """Where the figures of this checkpoint for these settings lie; on `device`, as reading beside computing counts."""
    settings = [dtype, context, batch, tokens, threads, device, *([in_flight] if in_flight > 1 else [])]
    key = json.dumps([digest, *settings, processor(), versions()])
    return cache_directory() / "profiles" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def recall_device(path: Path) -> DeviceProfile | None:
    """What is kept there; None where there is nothing of use."""
    document = _read(path)
    try:
        return None if document is None else DeviceProfile.from_json(document)
    except BadMessage:
        return None


def recall_model(path: Path) -> ModelProfile | None:
    """What is kept there; None where there is nothing of use."""
    document = _read(path)
    try:
        return None if document is None else ModelProfile.from_json(document)
    except BadMessage:
        return None


def costs_path(digest: str, dtype: str, batch: int, threads: int | None, role: str) -> Path:
    """Where the costs of this checkpoint's layers lie, for a head or a stage: whether they exist or not."""
    key = json.dumps([digest, dtype, batch, threads, role, processor(), versions()])
    return cache_directory() / "costs" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def recall_costs(path: Path) -> LayerCosts | None:
    """What is kept there; None where there is nothing of use."""
    document = _read(path)
    try:
        return None if document is None else LayerCosts.from_json(document)
    except BadMessage:
        return None


def remember(path: Path, profile: DeviceProfile | ModelProfile | LayerCosts) -> str:
    """Keep it; see `keep`. Without it the next plan measures again."""
    return keep(path, json.dumps({"format": FORMAT, "profile": profile.to_json()}))


def processor() -> str:
    """What tells this machine from another that has the same home directory."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if line.startswith(("model name", "CPU part", "Hardware", "Model"))]
    except OSError:
        lines = []
    return json.dumps([os.uname().machine, len(os.sched_getaffinity(0)), sorted(set(lines))])


def _read(path: Path) -> Any:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return document["profile"] if document["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
