"""The Layer Profiler as a process of its own, so that nobody who plans has to import torch.

`profile_in_own_process` starts it, hears what it is doing, and gets its figures or its error by a pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hermes_mp.core.profile import ModelProfile
from hermes_mp.errors import ComputeLost, HermesError, revived
from hermes_mp.host import environment
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.host.children import DeathPipe, spawn
from hermes_mp.host.deathwatch import DeathWatch, ignore_interrupts


@dataclass(frozen=True)
class ProfilerSettings:
    """What to profile: see `models.model_profile.Wanted`; `seconds` of measuring, besides building the model."""

    directory: str
    dtype: str
    context: int | None
    batch: int
    tokens: int
    threads: int | None
    headers_only: bool
    seconds: float


def profile_in_own_process(settings: ProfilerSettings, say: Callable[[str], None]) -> ModelProfile:
    """The profile; raises what `in_own_process` does."""
    told = in_own_process("hermes_mp.agents.profiler", asdict(settings), say)
    return ModelProfile.from_json(told)


def in_own_process(module: str, settings: dict[str, Any], say: Callable[[str], None]) -> Any:
    """What the process of that module found, as JSON holds it; `module` hands its work to `work_as_told`.

    Raises the error that the process reported, or ComputeLost where it died without a word.
    """
    death = DeathPipe()
    read_fd, write_fd = os.pipe()
    told: dict[str, Any] = {}
    try:
        words = {"settings": settings, "parent_pid": os.getpid(), "death_fd": death.read_fd, "fd": write_fd}
        fds = (death.read_fd, write_fd)
        child = spawn(
            module, "hermes: profiler", [json.dumps(words)], fds,
            env=environment.for_computing(),
        )  # fmt: skip
        os.close(write_fd)
        try:
            with os.fdopen(read_fd, encoding="utf-8") as lines:
                for line in lines:
                    told = json.loads(line)
                    if "say" in told:
                        say(told["say"])
        except BaseException:
            child.kill()
            raise
        finally:
            cause = child.reap(30.0)
    finally:
        death.close()
    if "found" in told:
        return told["found"]
    if "exit_code" in told:
        raise revived(told["exit_code"], told["text"])
    raise ComputeLost(f"the profiler ended ({cause})", "see above; with too little memory lower --batch or --tokens")


def main(arguments: Sequence[str]) -> int:
    """The process; `arguments`: one JSON text. Its exit code, or that of the error it reported."""
    return work_as_told(arguments, _profile)


def work_as_told(arguments: Sequence[str], work: Callable[[dict[str, Any], Callable[[str], None]], Any]) -> int:
    """Have `work` find what is asked for, of the settings, and tell who has started this process."""
    words: dict[str, Any] = json.loads(arguments[0])
    settings: dict[str, Any] = words["settings"]
    ignore_interrupts()
    DeathWatch(words["parent_pid"], words["death_fd"]).be_killed_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with os.fdopen(words["fd"], "w", encoding="utf-8") as pipe:

        def tell(document: dict[str, Any]) -> None:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(document), file=pipe, flush=True)

        try:
            tell({"say": "importing torch"})
            from setproctitle import setproctitle

            setproctitle("hermes: profiler")
            settings["death_fd"] = words["death_fd"]
            tell({"found": work(settings, lambda text: tell({"say": text}))})
        except HermesError as error:
            tell({"exit_code": error.exit_code, "text": error.line()})
            return error.exit_code
        except Exception as error:  # an entry point: the traceback is for us, the line for the user
            traceback.print_exc(file=sys.stderr)
            tell({"exit_code": 70, "text": f"the profiler failed: {type(error).__name__}: {error}"})
            return 70
    return 0


def _profile(told: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    settings = ProfilerSettings(**{name: value for name, value in told.items() if name != "death_fd"})
    from hermes_mp.models.light_imports import import_lightly

    import_lightly()  # as compute does: what it takes is measured too
    from hermes_mp.models.model_profile import Wanted, profile_model

    wanted = Wanted(
        settings.dtype, settings.context, settings.batch, settings.tokens, settings.threads, settings.headers_only
    )
    return profile_model(find_checkpoint(Path(settings.directory)), wanted, settings.seconds, say).to_json()
