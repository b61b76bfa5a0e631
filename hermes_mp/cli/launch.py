"""`hermes-launch`: runs a model on one board, this process being the daemon.

Reads the options, finds the model, starts the daemon's loop, and turns whatever ends it into one line and an exit
code. Never imports torch: the daemon must stay small.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from hermes_mp.agents.daemon import Daemon, DaemonSettings, arena_nbytes
from hermes_mp.cli import embedded, options
from hermes_mp.cli.console import Console
from hermes_mp.cli.front import LaunchFront
from hermes_mp.cli.lines import LineSource
from hermes_mp.config import LaunchConfig
from hermes_mp.core.ledger import Ledger
from hermes_mp.errors import HermesError
from hermes_mp.host import hub
from hermes_mp.host.arena import Arena
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.host.trace import TraceWriter

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, that of the error (docs/exit-codes.md), or 128 + the signal that ended the run."""
    started_ns = process_started_ns()
    try:
        config = options.parse(sys.argv[1:] if argv is None else argv)
    except HermesError as error:
        print(f"hermes-launch: {error.line()}", file=sys.stderr)
        return error.exit_code
    console = Console(sys.stdout, sys.stderr, time.monotonic(), as_json=config.json, quiet=config.quiet)
    try:
        with _signals() as (wakeup_fd, on_signal):
            code = _launch(config, console, started_ns, wakeup_fd, on_signal)
    except _Interrupted as interrupted:
        code = 128 + interrupted.number
        console.error(f"ended by {signal.Signals(interrupted.number).name}", code)
    except HermesError as error:
        console.error(error.line(), error.exit_code)
        code = error.exit_code
    console.close()
    return code


class _Interrupted(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


OnSignal = Callable[[Callable[[], None]], None]


@contextmanager
def _signals() -> Iterator[tuple[int, OnSignal]]:
    """A descriptor that wakes a poller up when a signal came, and a way to say what shall happen then.

    Until something is said, a signal ends the start-up by an exception.
    """
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    came: list[int] = []
    then: list[Callable[[], None]] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if not then:
            raise _Interrupted(number)
        then[-1]()

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    woken = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    try:
        yield read_fd, then.append
        if came:
            raise _Interrupted(came[0])
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)


def _launch(config: LaunchConfig, console: Console, started_ns: int, wakeup_fd: int, on_signal: OnSignal) -> int:
    console.phase("looking for the model")
    directory = (
        embedded.embedded_model() if config.model is None else hub.resolve(config.model, console.note)
    ).resolve()
    console.model(config.model or "all-MiniLM-L6-v2")
    checkpoint = find_checkpoint(directory)
    trace = TraceWriter(config.trace, started_ns) if config.trace else None
    ledger = Ledger(config.loaders, config.memory, started_ns)
    requests, lines, line_request = _requests(config)
    front = LaunchFront(console, ledger, trace, requests, lines, line_request, wakeup_fd)
    settings = DaemonSettings(
        checkpoint, config.loaders, config.memory, config.context, config.batch, config.dtype, config.threads,
        options=_task_options(config), sample_exactly=config.sample_memory,
    )  # fmt: skip
    if trace is not None:
        trace.instant("daemon", "command started", started_ns)
    arena = Arena.create(arena_nbytes(checkpoint, config.memory, config.loaders))
    try:
        with Daemon(settings, arena, front) as daemon:
            front.daemon = daemon
            on_signal(daemon.end)
            console.phase("starting")
            daemon.start()
            daemon.run()
            daemon.sample(exactly=True)
            ledger.pages = arena.pages
    finally:
        if trace is not None:
            trace.close()
    if trace is not None and trace.failure:
        console.note(trace.failure)
    console.report(ledger.report())
    return front.exit_code


def _requests(config: LaunchConfig) -> tuple[list[dict[str, Any]], LineSource | None, dict[str, Any]]:
    """The requests of the command line, where lines come from if there are none, and what every line's request holds."""
    given: list[dict[str, Any]] = [{"prompt": text} for text in config.prompt]
    given += [{"image": str(Path(path).resolve())} for path in config.image]
    if config.token_ids is not None:
        given.append({"token_ids": list(config.token_ids)})
    if config.model is not None or given:
        given += [{"text": text} for text in config.text]
        return given, None if given else LineSource(sys.stdin.fileno()), {}
    # The packaged model ranks sentences: against the user's text, a line of a pipe, or one of ours.
    ranking = {"sentences": embedded.embedded_requests(())[0]["sentences"]}
    if config.text:
        return [{"text": text} | ranking for text in config.text], None, ranking
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISREG(mode):
        return [], LineSource(sys.stdin.fileno()), ranking
    lines = LineSource(sys.stdin.fileno()) if sys.stdin.isatty() else None
    return [dict(request) for request in embedded.embedded_requests(())], lines, ranking


def _task_options(config: LaunchConfig) -> dict[str, Any]:
    """What the task in the compute process needs of the options, as JSON holds it."""
    return {
        name: value for name, value in asdict(config).items() if name not in ("prompt", "text", "image", "token_ids")
    }


def process_started_ns() -> int:
    """When this process was started, on the clock of `time.monotonic_ns`, to 10 ms."""
    with open("/proc/self/stat", encoding="utf-8") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    since_boot_ns = ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return since_boot_ns - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns())


if __name__ == "__main__":
    sys.exit(main())
