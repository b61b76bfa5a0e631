"""`hermes-ps`: the runs of this user on this machine: their agents, slots, and memory against the budget.

It asks each daemon, by the socket in its run directory, and waits for no answer longer than a second.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from hermes_mp.agents.status import SCHEMA as STATUS_SCHEMA
from hermes_mp.cli.console import harmless
from hermes_mp.cli.options import Command, parse_for
from hermes_mp.cli.output import print_out, refused
from hermes_mp.config import PsConfig
from hermes_mp.core.report import counted
from hermes_mp.errors import HermesError
from hermes_mp.host.rundir import SOCKET_NAME, live
from hermes_mp.host.wire import Link, Peer
from hermes_mp.messages import AskStatus, StatusTold, ToViewer

SCHEMA = 1
ANSWER_S = 1.0
SLOTS_SHOWN = 16
COMMAND = Command(
    "hermes-ps",
    PsConfig,
    "hermes-ps [flags]",
    """\
Show the runs of this user on this machine: agents, what they are at, slots, and memory against the budget.""",
    """\
examples:
  hermes-ps
  watch -n 1 hermes-ps
  hermes-ps --json | jq '.runs[] | .memory_nbytes'""",
)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or that of the error (docs/exit-codes.md)."""
    words = sys.argv[1:] if argv is None else argv
    try:
        config = parse_for(COMMAND, words)
        found = [(path, ask(path)) for path in live()]
        print_out(_as_json(found) if config.json else harmless(as_text(found)))
    except (HermesError, OSError) as error:
        return refused(COMMAND.program, SCHEMA, error, "--json" in words)
    except KeyboardInterrupt:
        return 130
    return 0


def ask(path: Path) -> dict[str, Any] | None:
    """How that run is; None where its daemon does not say so in time: it is stopped, or only begins."""
    me = Peer("viewer", os.getpid(), time.monotonic_ns())  # a name is refused while its last bearer is being forgotten
    try:
        link: Link[StatusTold] = Link(f"ipc://{path / SOCKET_NAME}", me, ToViewer, connect_deadline_s=ANSWER_S)
    except HermesError:
        return None
    text = ""
    try:
        link.send(AskStatus())
        while True:
            told = link.receive(ANSWER_S)
            if told is None:
                return None
            text += told.text
            if told.last:
                found = json.loads(text)
                ours = isinstance(found, dict) and found.pop("schema", None) == STATUS_SCHEMA  # of this version
                return found if ours else None
    except (HermesError, ValueError):  # it ended, or is of another version
        return None
    finally:
        link.close()


def as_text(found: list[tuple[Path, dict[str, Any] | None]]) -> str:
    """For people: a block per run."""
    if not found:
        return "nothing runs"
    silent = "its daemon does not answer"
    return "\n\n".join(f"{path.name}: {silent}" if run is None else _block(run) for path, run in found)


def _block(run: dict[str, Any]) -> str:
    state = "" if run["ready"] else ", starting"
    program = "hermes-launch" if run["kind"] == "launch" else "hermes_mp.load"
    lines = [f"{program}, process {run['pid']}: {run['model']}, for {_time(run['up_s'])}{state}"]
    memory = run["memory_nbytes"]
    limit = "no limit" if run["budget_nbytes"] is None else f"of {_mib(run['budget_nbytes'])} allowed"
    each = ", ".join(f"{name} {nbytes >> 20}" for name, nbytes in memory.items())
    lines.append(f"  memory    {_mib(sum(memory.values()))} {limit}: {each}")
    compute = run["compute"]
    lines.append(f"  compute   process {compute['pid']}, {compute['state']}{_restarts(compute['restarts'])}")
    for loader in run["loaders"]:
        at = f", reads {' and '.join(f'unit {unit}' for unit in loader['reads'])}" if loader["reads"] else ""
        restarts = _restarts(loader["restarts"])
        board = f" ({loader['board']})" if loader["board"] else ""
        lines.append(f"  loader {loader['number']:<2}{board} process {loader['pid']}, {loader['state']}{restarts}{at}")
    lines += [f"  degraded  {why}" for why in run["degraded"]]
    slots = run["slots"]
    if slots:
        residents = f"; {counted(run['residents'], 'resident')}" if run["residents"] else ""
        size, units = _mib(run["slot_nbytes"]), counted(run["units"], "unit")
        lines.append(f"  slots     {len(slots)} of {size} for {units}{residents}")
        shown = slots if len(slots) <= SLOTS_SHOWN else slots[:SLOTS_SHOWN]
        lines += [f"  {slot['number']:>5}     {_slot(slot)}" for slot in shown]
        if len(slots) > len(shown):
            lines.append(f"            and {len(slots) - len(shown)} more: see --json")
    return "\n".join(lines)


def _slot(slot: dict[str, Any]) -> str:
    if slot["unit"] is None:
        return str(slot["state"])
    notes = [word for word in ("resident", "late") if slot[word]]
    return f"{slot['state']}, unit {slot['unit']}" + "".join(f", {note}" for note in notes)


def _restarts(count: int) -> str:
    return f", restarted {counted(count, 'time')}" if count else ""


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB"


def _as_json(found: list[tuple[Path, dict[str, Any] | None]]) -> str:
    runs = [{"run_directory": str(path), "answers": run is not None, **(run or {})} for path, run in found]
    return json.dumps({"schema": SCHEMA, "runs": runs, "error": None})


if __name__ == "__main__":
    sys.exit(main())
