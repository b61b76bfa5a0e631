"""The daemon as the caller's child, behind `hermes_mp.load`: a guest that leaves when its host does.

It learns of the caller's end by a pipe, not by a signal: `load` may be called from any thread, and a signal would
follow that thread. It shows nothing to anybody; what goes wrong is told to the caller as a message.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from hermes_mp.agents.daemon import Daemon
from hermes_mp.agents.front import Front, SilentFront
from hermes_mp.agents.quarters import Quarters, loaders_to_start
from hermes_mp.agents.settings import DaemonSettings
from hermes_mp.agents.tracing import TracingFront
from hermes_mp.errors import HermesError, InvariantBroken, refused
from hermes_mp.host.arena import Arena
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.host.trace import TraceWriter


def main(arguments: Sequence[str]) -> int:
    """`arguments`: one JSON text, see `hermes_mp.api`. Says its endpoint, or why not, on the pipe `ready_fd`."""
    settings: dict[str, Any] = json.loads(arguments[0])
    setproctitle("hermes: daemon")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready = os.fdopen(settings.pop("ready_fd"), "w", encoding="utf-8")
    try:
        arena = Arena(settings.pop("arena_fd"), settings.pop("granule"))
        quarters = Quarters(loaders_to_start(settings["loaders"], settings["directory"]), arena)
        checkpoint = find_checkpoint(Path(settings.pop("directory")))
        with (
            _front(settings.pop("trace")) as front,
            Daemon(DaemonSettings(checkpoint=checkpoint, **settings), quarters, front) as daemon,
        ):
            signal.signal(signal.SIGTERM, lambda number, frame: daemon.end())
            ready.write(json.dumps({"endpoint": daemon.hub.endpoint}))
            ready.close()
            daemon.start()
            try:
                daemon.run()
            except (HermesError, OSError) as error:
                told = refused(error) if isinstance(error, OSError) else error
                daemon.end(told)  # says it to the caller, where `run` had no chance to
                raise told from error
    except HermesError as error:
        return _tell(ready, error)
    except OSError as error:
        return _tell(ready, refused(error))
    except Exception as error:  # an entry point: the caller raises it, the traceback goes to standard error
        import traceback

        traceback.print_exc(file=sys.stderr)
        return _tell(ready, InvariantBroken(f"{type(error).__name__}: {error}"))
    return 0


@contextlib.contextmanager
def _front(trace: str | None) -> Iterator[Front]:
    """One that shows nothing, or writes the trace."""
    if trace is None:
        yield SilentFront()
        return
    with TraceWriter(trace, time.monotonic_ns()) as writer:
        yield TracingFront(writer)


def _tell(ready: Any, error: HermesError) -> int:
    if not ready.closed:
        ready.write(json.dumps({"exit_code": error.exit_code, "text": error.line()}))
        ready.close()
    return error.exit_code
