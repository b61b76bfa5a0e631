"""`hermes-doctor`: what this machine can do for a run, line by line: ok, warn or bad, and what to do about it.

Never imports torch, writes nothing and changes nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hermes_mp.cli.options import Command, parse_for
from hermes_mp.cli.output import print_out, refused
from hermes_mp.config import DoctorConfig
from hermes_mp.core.checkup import Finding, Level, check, worst
from hermes_mp.errors import HermesError
from hermes_mp.host import hub, machine
from hermes_mp.host.checkpoint import find_checkpoint

SCHEMA = 1
COMMAND = Command(
    "hermes-doctor",
    DoctorConfig,
    "hermes-doctor [flags]",
    """\
Look at this machine: memory, limits, huge pages, disk, processor, packages. Each line is ok, warn or bad, with
what to do. With --model the disk of its weights is tried as well, for a second.""",
    """\
examples:
  hermes-doctor
  hermes-doctor --model ./gpt-j-6b
  hermes-doctor --json | jq '.findings[] | select(.level != "ok")'""",
)
EXIT_CODES = {Level.OK: 0, Level.WARN: 0, Level.BAD: 1}


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 where something is bad, or that of the error (docs/exit-codes.md)."""
    words = sys.argv[1:] if argv is None else argv
    try:
        config = parse_for(COMMAND, words)
        findings = _look(config.model)
        print_out(_as_json(findings) if config.json else as_text(findings))
    except (HermesError, OSError) as error:
        return refused(COMMAND.program, SCHEMA, error, "--json" in words)
    except KeyboardInterrupt:
        return 130
    return EXIT_CODES[worst(findings)]


def _look(model: str | None) -> list[Finding]:
    if model is None or (hub.is_hub_id(model) and not Path(model).exists()):
        found = check(machine.look(None, hub.cache_place()))
        if model is None:
            return found
        attempt = "name its directory to have its disk tried; looked at was where the hub's models would lie"
        return [*found, Finding(Level.WARN, "model", f"{model} is no directory here", attempt)]
    checkpoint = find_checkpoint(hub.resolve(model, lambda text: None).resolve())
    largest = max(checkpoint.files, key=lambda file: file.nbytes).path
    return check(machine.look(largest, largest.parent))


def as_text(findings: list[Finding]) -> str:
    """For people: what to do goes on a line of its own, below what it is about."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level.value:<5}{finding.what:<{width + 2}}{finding.found}")
        if finding.attempt:
            lines.append(f"{'':<{width + 7}}-> {finding.attempt}")
    return "\n".join(lines)


def _as_json(findings: list[Finding]) -> str:
    rows = [
        {"level": one.level.value, "what": one.what, "found": one.found, "attempt": one.attempt or None}
        for one in findings
    ]
    return json.dumps({"schema": SCHEMA, "worst": worst(findings).value, "findings": rows, "error": None})


if __name__ == "__main__":
    sys.exit(main())
