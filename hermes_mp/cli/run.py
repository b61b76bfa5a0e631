"""A launch from its options to its exit code: finds the model, joins daemon, front, ledger and trace, and runs them.

What is slow to import comes in here, while the loaders already start. Never imports torch: the daemon stays small.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes_mp.agents.borrowed import Borrowed
from hermes_mp.agents.daemon import Daemon
from hermes_mp.agents.quarters import Quarters
from hermes_mp.agents.settings import DaemonSettings
from hermes_mp.agents.stage_costs import keep_disk_rate
from hermes_mp.agents.tracing import TracingFront
from hermes_mp.cli import embedded
from hermes_mp.cli.boards_file import shared_with
from hermes_mp.cli.console import Console
from hermes_mp.cli.front import LaunchFront
from hermes_mp.cli.lines import LineSource
from hermes_mp.config import NEVER, LaunchConfig
from hermes_mp.core.ledger import Ledger
from hermes_mp.errors import CheckpointBroken
from hermes_mp.host import checksums, hub
from hermes_mp.host.checkpoint import Checkpoint, find_checkpoint
from hermes_mp.host.trace import TraceWriter

if TYPE_CHECKING:
    from hermes_mp.cli.launching import Signals

def run(config: LaunchConfig, console: Console, quarters: Quarters, started_ns: int, signals: Signals) -> int:
    """The exit code of a run that ended as it should, or by a signal; raises a HermesError otherwise."""
    with ExitStack() as stack:
        return _run(config, console, quarters, started_ns, signals, stack)


def _run(
    config: LaunchConfig, console: Console, quarters: Quarters, started_ns: int, signals: Signals, stack: ExitStack
) -> int:
    console.phase("looking for the model")
    directory, borrowed = _find(config, console, quarters, stack)
    console.model(config.model or "all-MiniLM-L6-v2")
    checkpoint = find_checkpoint(directory)
    if borrowed is None and config.remote_loader:
        from hermes_mp.cli import borrow

        borrowed = borrow.beside_a_copy(config, checkpoint, console.note)
    if config.verify != NEVER and (borrowed is None or borrowed.has_copy):
        _prove(checkpoint, config.model is None, console)
    trace = TraceWriter(config.trace, started_ns) if config.trace else None
    named = config.memory if isinstance(config.memory, int) else None
    ledger = Ledger(quarters.loaders, named, started_ns, auto=config.memory == "auto")
    requests, lines, line_request = _requests(config)
    tracing = None if trace is None else TracingFront(trace)
    front = LaunchFront(console, ledger, tracing, requests, lines, line_request, signals.wakeup_fd, config.in_flight)
    settings = DaemonSettings(
        checkpoint, config.loaders, config.memory, config.context, config.batch, config.dtype, config.threads,
        options=_task_options(config), sample_exactly=config.sample_memory,
        timeout_s=config.timeout or None, verify=config.verify, soft_s=config.soft_deadline,
        hard_s=config.hard_deadline, in_flight=config.in_flight, boards=shared_with(config), borrowed=borrowed,
    )  # fmt: skip
    if trace is not None:
        trace.instant("daemon", "command started", started_ns)
    try:
        with Daemon(settings, quarters, front) as daemon:
            front.daemon = daemon
            signals.then = daemon.end
            console.phase("starting")
            daemon.start()
            daemon.run()
            daemon.sample(exactly=True)
            ledger.pages = quarters.arena.pages
            ledger.slots = len(daemon.slots.bases)
            ledger.budget_nbytes = daemon.slots.budget_nbytes
            ledger.loaders, ledger.plan = daemon.plan.loaders, daemon.plan
            ledger.remote_loaders = daemon.crew.lenders
            ledger.verified = daemon.guard.report()
            ledger.degraded = daemon.crew.degraded()
            ledger.residents = len(daemon.mind.residents) if daemon.mind is not None else 0
    finally:
        if trace is not None:
            trace.close()
    if trace is not None and trace.failure:
        console.note(trace.failure)
    report = ledger.report()
    if settings.boards is not None and not report.remote_loaders:
        keep_disk_rate(checkpoint, ledger.reading, ledger.loaders)
    console.report(report)
    return front.exit_code


def _find(
    config: LaunchConfig, console: Console, quarters: Quarters, stack: ExitStack
) -> tuple[Path, Borrowed | None]:
    """The model's directory, which is temporary where another board lends all of its weights."""
    if not quarters.loaders:
        from hermes_mp.cli import borrow

        return borrow.outline(config, stack, console.note)
    found = embedded.embedded_model() if config.model is None else hub.resolve(config.model, console.note)
    return found.resolve(), None


def _prove(checkpoint: Checkpoint, packaged: bool, console: Console) -> None:
    """Compare the files with what was published of them. Raises CheckpointBroken."""
    try:
        unkept = checksums.prove(checkpoint, embedded.PUBLISHED if packaged else {}, console.phase)
    except CheckpointBroken as error:
        if packaged:
            error.attempt = embedded.REINSTALL
        raise
    if unkept:
        console.note(unkept)


def _requests(config: LaunchConfig) -> tuple[list[dict[str, Any]], LineSource | None, dict[str, Any]]:
    """Requests of the command line; where lines come from if there are none; what every line's request holds."""
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
    options = {
        name: value for name, value in asdict(config).items() if name not in ("prompt", "text", "image", "token_ids")
    }
    # Drawn here, as torch would: a compute that is started again repeats what its predecessor drew.
    return options | {"run_seed": int.from_bytes(os.urandom(7), "big")}
