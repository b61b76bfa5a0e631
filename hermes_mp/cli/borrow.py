"""What `--remote-loader` comes to: who lends, what the model is known by there, and its outline where it is not here.

Every board that is named is greeted once before anything starts, so that what is wrong is said at once.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from hermes_mp.agents.borrowed import Borrowed
from hermes_mp.agents.lenders import greet, paired
from hermes_mp.agents.outlining import fetch
from hermes_mp.config import LaunchConfig
from hermes_mp.core.borrowing import why_not_worth_it
from hermes_mp.errors import BadOption, BoardLost, ModelNotFound
from hermes_mp.host import diskspeed, hub, profilecache
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.host.fingerprint import fingerprint


def outline(config: LaunchConfig, stack: ExitStack, say: Callable[[str], None]) -> tuple[Path, Borrowed]:
    """A temporary directory with the model's outline, by the first lender that is there."""
    assert config.model is not None
    if config.loaders is not None:
        raise BadOption(f"--loaders {config.loaders}: {config.model} is no directory here, only other boards read it")
    if not hub.may_be_hub_id(config.model):
        raise ModelNotFound(f"there is no directory {config.model}", "name one, or the model as the lender does")
    lenders = paired(config.remote_loaders)
    with hub.writing_to(os.environ.get("TMPDIR") or "/tmp"):
        temporary = tempfile.TemporaryDirectory(prefix="hermes-outline-", ignore_cleanup_errors=True)
    folder = Path(stack.enter_context(temporary)).resolve()
    found = ""
    for lender in lenders:
        try:
            if not found:
                found = fetch(lender, config.model, folder)
                say(f"{config.model} is not here: it runs from board {lender.name}, without a copy of the weights")
            else:
                greet(lender, config.model, found)[0].close()
        except BoardLost:
            if lender is lenders[-1] and not found:
                raise
    return folder, Borrowed(lenders, config.model, found, has_copy=False)


def beside_a_copy(config: LaunchConfig, checkpoint: Checkpoint, say: Callable[[str], None]) -> Borrowed:
    """The lenders' copies must be ours."""
    ours = fingerprint(checkpoint)
    name = checkpoint.directory.name if config.model is None or not hub.is_hub_id(config.model) else config.model
    borrowed = Borrowed(paired(config.remote_loaders), name, ours)
    for lender in borrowed.lenders:
        link, welcome = greet(lender, name, ours)
        link.close()
        word = why_not_worth_it(lender.name, _local_rate(checkpoint), lent_rate(welcome.facts))
        if word:
            say(word)
    return borrowed


def lent_rate(facts: str) -> float | None:
    """Bytes per second of the lender's disk, where it says so."""
    try:
        rate = json.loads(facts).get("disk_nbytes_per_s")
    except (ValueError, AttributeError, RecursionError):
        return None
    return float(rate) if isinstance(rate, int | float) and 0 < rate < 1e14 else None


def _local_rate(checkpoint: Checkpoint) -> float | None:
    """Where an earlier run has measured it."""
    name = diskspeed.device_name(max(checkpoint.files, key=lambda file: file.nbytes).path)
    known = profilecache.recall_device(profilecache.device_path(name))
    known = known or profilecache.recall_device(profilecache.device_path(f"{name}-quick"))
    return None if known is None else max(rate.nbytes_per_s for rate in known.rates)


