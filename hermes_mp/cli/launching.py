"""`hermes-launch`: runs a model on one board, this process being the daemon.

Reads the options, finds the model, starts the daemon's loop, and turns whatever ends it into one line and an exit
code. Never imports torch: the daemon must stay small.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import FrameType

from hermes_mp.agents.quarters import Quarters, loaders_to_start
from hermes_mp.cli import options
from hermes_mp.config import LaunchConfig
from hermes_mp.errors import HermesError, refused
from hermes_mp.host import procstat

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, that of the error (docs/exit-codes.md), or 128 + the signal that ended the run."""
    words = sys.argv[1:] if argv is None else argv
    try:
        started_ns = process_started_ns()
        _open_standard_streams()
        config, sources = options.parse_with_sources(options.LAUNCH, words)
    except (HermesError, OSError) as error:
        return _refused(error, "--json" in words)
    if config.show_config:
        from hermes_mp.cli import show_config

        print(show_config.as_json(config, sources) if config.json else show_config.as_launch_file(config, sources))
        return 0
    try:
        with heeded_signals() as signals, closing(quarters_of(config)) as quarters:
            from hermes_mp.cli.console import Console  # from here on the loaders start up beside us
            from hermes_mp.cli.run import run

            console = Console(sys.stdout, sys.stderr, time.monotonic(), as_json=config.json, quiet=config.quiet)
            with closing(console):
                try:
                    code = run(config, console, quarters, started_ns, signals)
                    signals.check()
                except (HermesError, OSError) as error:
                    found = refused(error) if isinstance(error, OSError) else error
                    console.error(found.line(), found.exit_code)
                    code = found.exit_code
    except (HermesError, OSError) as error:
        return _refused(error, config.json)
    return code


def quarters_of(config: LaunchConfig) -> Quarters:
    return Quarters(loaders_to_start(config.loaders, config.model) if has_copy(config) else 0)


def has_copy(config: LaunchConfig) -> bool:
    """Whether the weights are here; without remote loaders they have to be."""
    return not config.remote_loader or config.model is None or os.path.exists(os.path.expanduser(config.model))


def _open_standard_streams() -> None:
    """A closed one (`<&-`) becomes /dev/null: else the next file we open would take its number, and its place."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            setattr(sys, name, os.fdopen(fd, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))


def _refused(reason: HermesError | OSError, as_json: bool) -> int:
    """The error of a run that never began, as any other is shown; its exit code."""
    from hermes_mp.cli.console import Console

    error = refused(reason) if isinstance(reason, OSError) else reason
    with closing(Console(sys.stdout, sys.stderr, time.monotonic(), as_json=as_json)) as console:
        console.error(error.line(), error.exit_code)
    return error.exit_code


class _Ended(HermesError):
    """A signal ended the run."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Signals:
    """`wakeup_fd` becomes readable when one came. Until `then` is set, a signal ends the start-up by an exception."""

    def __init__(self, wakeup_fd: int) -> None:
        self.wakeup_fd = wakeup_fd
        self.then: Callable[[], None] | None = None
        self._came = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        self._came = self._came or number
        if self.then is None:
            self.check()
        else:
            self.then()

    def check(self) -> None:
        """Raise what a signal that came stands for."""
        if self._came:
            raise _Ended(self._came)


@contextmanager
def heeded_signals() -> Iterator[Signals]:
    """Inside, SIGINT, SIGTERM and SIGHUP end the run in order."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signals = Signals(read_fd)
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup has one ignored
    before = {number: signal.signal(number, signals.handle) for number in heeded}
    woken = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)


def process_started_ns() -> int:
    """When this process was started, on the clock of `time.monotonic_ns`, to 10 ms."""
    since_boot_ns = procstat.look("self").started_ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return since_boot_ns - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns())
