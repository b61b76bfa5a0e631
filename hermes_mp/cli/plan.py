"""`hermes-plan`: how a model would run on this machine, under which budget, and what would help.

Never imports torch: what has to be measured is measured by a process of its own, once, and kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hermes_mp.agents.planning import MODEL_S, gather
from hermes_mp.agents.profiler import ProfilerSettings
from hermes_mp.cli import embedded
from hermes_mp.cli.options import Command, parse_for
from hermes_mp.cli.output import print_out, refused
from hermes_mp.cli.plan_text import SCHEMA, Found, as_object, as_text
from hermes_mp.config import PlanConfig
from hermes_mp.core.advice import fits_at_4_bits, helps
from hermes_mp.core.planner import plan, table
from hermes_mp.errors import HermesError
from hermes_mp.host import hub
from hermes_mp.host.checkpoint import find_checkpoint

COMMAND = Command(
    "hermes-plan",
    PlanConfig,
    "hermes-plan [flags]",
    """\
Forecast how a model runs on this machine: for a table of budgets, or for one (--memory) with what would help most.
Disk and layers are measured once, in about ten seconds. Of a hub id only configuration and headers are fetched.""",
    """\
examples:
  hermes-plan --model ./gpt-j-6b                           from the smallest budget to the one that fits everything
  hermes-plan --model ./gpt-j-6b --memory 1GiB             the plan for this budget, why, and what would help
  hermes-plan --model openai-community/gpt2-xl             before anything is downloaded
  hermes-plan --model ./bert-large --tokens 32 --batch 8   for other inputs
  hermes-plan --model ./gpt-j-6b --board pi2 --board pi3   shared with other boards: who would run which layers""",
)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or that of the error (docs/exit-codes.md)."""
    words = sys.argv[1:] if argv is None else argv
    try:
        config = parse_for(COMMAND, words)
        if config.boards is not None or config.board or config.split is not None:
            from hermes_mp.cli.plan_boards import plan_boards

            print_out(plan_boards(config, _teller(config.json)))
            return 0
        found = _find(config, _teller(config.json))
        text = json.dumps(as_object(found)) if config.json else as_text(found)
        print_out(text)
    except (HermesError, OSError) as error:
        return refused(COMMAND.program, SCHEMA, error, "--json" in words)
    except KeyboardInterrupt:
        return 130
    return 0


def _find(config: PlanConfig, say: Callable[[str], None]) -> Found:
    with contextlib.ExitStack() as stack:
        directory, place = _directory(config.model, stack, say)
        checkpoint = find_checkpoint(directory.resolve())
        wanted = ProfilerSettings(
            str(directory.resolve()), config.dtype, config.context, config.batch, config.tokens, config.threads,
            headers_only=place is not None, seconds=MODEL_S,
        )  # fmt: skip
        profiles = gather(checkpoint, wanted, config.fresh, say, place, config.memory, config.loaders)
    device, model = profiles.device, profiles.model
    name = config.model or "all-MiniLM-L6-v2"
    if config.memory is None:
        rows = table(device, model, loaders=config.loaders)
        return Found(name, device, model, rows, headers_only=place is not None)
    chosen = plan(device, model, config.memory, config.loaders)
    return Found(
        name, device, model, [], (config.memory, chosen),
        tuple(helps(device, model, chosen, config.memory, config.loaders)),
        fits_at_4_bits(model, chosen, config.memory), place is not None,
    )  # fmt: skip


def _directory(
    model: str | None, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> tuple[Path, Path | None]:
    """Where the model lies; and, if that holds headers only, where its weights would lie."""
    if model is None:
        return embedded.embedded_model(), None
    if not hub.is_hub_id(model):
        return hub.resolve(model, say), None
    say(f"asking the hub for the headers of {model}")
    with hub.writing_to(os.environ.get("TMPDIR") or "/tmp"):  # what none can be made in is not named by the error
        temporary = tempfile.TemporaryDirectory(prefix="hermes-plan-", ignore_cleanup_errors=True)
    folder = Path(stack.enter_context(temporary))
    found = hub.outline(model, folder)
    return (found, hub.cache_place()) if found == folder else (found, None)


def _teller(as_json: bool) -> Callable[[str], None]:
    """On a terminal, and in a pipe that a person may read later: what takes seconds."""

    def say(text: str) -> None:
        print(f"{COMMAND.program}: {text}", file=sys.stderr, flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
