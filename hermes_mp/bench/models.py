"""The models of a benchmark: a directory of the user's, or a known shape with random weights, made where it lacks."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hermes_mp.bench.journal import ModelFacts
from hermes_mp.bench.shapes import shape_named
from hermes_mp.errors import BadOption, HermesError, ModelNotFound, WriteFailed
from hermes_mp.host.cachedir import cache_directory
from hermes_mp.host.checkpoint import find_checkpoint

MAKE_ROOM = "free some space, or name a directory on another disk"
SPARE_NBYTES = 512 << 20  # left on a disk that a model is made on


@dataclass(frozen=True)
class Model:
    """A model on this machine's disk. `generates`: by the name of its class."""

    directory: Path
    facts: ModelFacts
    files: tuple[Path, ...]
    is_of_words: bool
    generates: bool


def default_folder() -> Path:
    """Where shapes are made unless the user says otherwise."""
    return cache_directory() / "bench-models"


def open_model(name: str, folder: Path, say: Callable[[str], None]) -> Model:
    """`name`: a directory, or a shape, which is made in `folder` unless it is there. Raises a HermesError."""
    directory = _directory_of(name, folder)
    if not _is_there(directory):
        say(f"making {name} with random weights in {directory}")
        make_model(name, directory)
    return _describe(directory.resolve())


def check_model(name: str, folder: Path) -> None:
    """Raises what `open_model` would by the name or by what lies there, in little time: nothing is made."""
    directory = _directory_of(name, folder)
    if _is_there(directory):
        _describe(directory.resolve())


def _directory_of(name: str, folder: Path) -> Path:
    given = Path(name)
    if _is_there(given):
        return given
    if "/" in name or given.exists():
        raise ModelNotFound(f"{name} is no directory with a config.json", "name one, or a shape: hermes-bench --help")
    shape_named(name)
    return folder / name


def _is_there(directory: Path) -> bool:
    return (directory / "config.json").exists()


def make_model(name: str, directory: Path) -> None:
    """Write a random model of the shape `name`, in a process of its own, which needs torch but little memory."""
    shape = shape_named(name)
    if directory.exists():
        raise BadOption(f"{directory} exists", "name a directory to be made")
    parent = directory.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise BadOption(f"{directory} cannot be made: {error.strerror}", "name another directory") from error
    if free < shape.nbytes + SPARE_NBYTES:
        why = f"{name} takes {shape.nbytes / 1e9:.1f} GB and {parent} has {free / 1e9:.1f} GB free"
        raise WriteFailed(why, MAKE_ROOM)
    words = [sys.executable, "-m", "hermes_mp.bench.make_model", name, str(directory)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise WriteFailed(f"{name} could not be made in {directory}: {last[0]}", MAKE_ROOM)


def _describe(directory: Path) -> Model:
    checkpoint = find_checkpoint(directory)
    sizes: Counter[str] = Counter()
    parameters = 0
    for _, info in checkpoint.tensors.values():
        sizes[str(info.dtype)] += info.nbytes
        parameters += math.prod(info.shape)
    if not sizes:
        raise HermesError(f"{directory} holds no tensors")
    dtype = sizes.most_common(1)[0][0]
    facts = ModelFacts(directory.name, sum(sizes.values()), parameters, dtype)
    names = json.dumps(checkpoint.config.get("architectures") or [])
    return Model(
        directory,
        facts,
        tuple(file.path for file in checkpoint.files),
        "vocab_size" in checkpoint.config,
        "CausalLM" in names or "LMHeadModel" in names,
    )
