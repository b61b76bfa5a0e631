"""The daemon as the caller's child, behind `hermes_mp.load`: a guest that leaves when its host does.

It learns of the caller's end by a pipe, not by a signal: `load` may be called from any thread, and a signal would
follow that thread. It shows nothing to anybody; what goes wrong is told to the caller as a message.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from hermes_mp.agents.daemon import Daemon, DaemonSettings
from hermes_mp.agents.quarters import Quarters
from hermes_mp.core.unitlist import UnitList
from hermes_mp.errors import HermesError, InvariantBroken
from hermes_mp.host.arena import Arena
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.messages import FromCompute, Ticket, UnitDone, UnitLoaded, UnitNo


class _Silent:
    """A front that shows nothing."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def told(self, message: FromCompute) -> None: ...

    def loaded(self, message: UnitLoaded, unit: UnitNo) -> None: ...

    def done(self, message: UnitDone, unit: UnitNo, loaded_by: Ticket) -> None: ...

    def ready(self, units: UnitList) -> None: ...

    def say(self, text: str) -> None: ...

    def restarted(self) -> None: ...

    def sampled(self, by_process: dict[str, int], arena_nbytes: int, exact: bool) -> None: ...

    def readable(self, fd: int) -> None: ...

    def tick(self) -> None: ...


def main(arguments: Sequence[str]) -> int:
    """`arguments`: one JSON text, see `hermes_mp.api`. Says its endpoint, or why not, on the pipe `ready_fd`."""
    settings: dict[str, Any] = json.loads(arguments[0])
    setproctitle("hermes: daemon")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready = os.fdopen(settings.pop("ready_fd"), "w", encoding="utf-8")
    try:
        arena = Arena(settings.pop("arena_fd"), settings.pop("granule"))
        quarters = Quarters(settings["loaders"], settings["memory"], arena)
        checkpoint = find_checkpoint(Path(settings.pop("directory")))
        with Daemon(DaemonSettings(checkpoint=checkpoint, **settings), quarters, _Silent()) as daemon:
            signal.signal(signal.SIGTERM, lambda number, frame: daemon.end())
            ready.write(json.dumps({"endpoint": daemon.hub.endpoint}))
            ready.close()
            daemon.start()
            daemon.run()
    except HermesError as error:
        return _tell(ready, error)
    except Exception as error:  # an entry point: the caller raises it, the traceback goes to standard error
        import traceback

        traceback.print_exc(file=sys.stderr)
        return _tell(ready, InvariantBroken(f"{type(error).__name__}: {error}"))
    return 0


def _tell(ready: Any, error: HermesError) -> int:
    if not ready.closed:
        ready.write(json.dumps({"exit_code": error.exit_code, "text": error.line()}))
        ready.close()
    return error.exit_code
