"""SIGTERM and SIGINT at random moments, on a terminal: in 5 s the run has ended, with its code, the terminal whole."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator

from campaigns.common import PROMPTS, Campaign, Failed, Record, bound, pause, signalled
from launching import Launch

GONE_S = 5.0
LONGEST_WAIT_S = 4.0


# Python is there before us, and says so where it is interrupted; so do these, in their first milliseconds.
FIRST = {"__init__.py", "cli/__init__.py", "cli/launch.py"}


class EndCampaign(Campaign):
    name = "end"

    def run(self, number: int) -> Iterator[Record]:
        ground = self._ground
        chance = ground.chance(number)
        which = chance.choice((signal.SIGTERM, signal.SIGINT))
        prompts = [word for prompt in PROMPTS * 5 for word in ("--prompt", prompt)]  # more than there is time for
        words = (*ground.words(chance.randint(1, 3)), *prompts, "--max-new-tokens", 60)
        with Launch(ground.home(number), *words, terminal=True) as run:
            before = run.terminal_settings()
            pause(run, chance.uniform(0, LONGEST_WAIT_S))
            if not run.is_running:
                raise Failed(f"ended by itself: {run.out[-2000:]!r}")
            state = "computing" if "hermes: compute" in run.processes().values() else "beginning"
            signalled(run.pid, which)
            sent_s = time.monotonic()
            ended = run.ended()
            took_s = round(time.monotonic() - sent_s, 3)
            after = run.terminal_settings()
        if took_s > GONE_S:
            raise Failed(f"it took {took_s:g} s to end")
        codes = [128 + which] + [-which] * (state == "beginning")  # it may not have come to its own program
        if "init_import_site" in ended.out:
            codes.append(1)  # Python's own start
        if ended.code not in codes or (state == "computing" and "Traceback" in ended.out) or of_ours(ended.out):
            raise Failed(f"{which.name}: ended with {ended.code}: {ended.out[-2000:]!r}")
        if before != after:
            raise Failed(f"the terminal is another one: {before} -> {after}")
        yield ground.record(number, role="daemon", state=state, signal=which.name, took_s=took_s)
        yield ground.record(number, code=ended.code)

    def summary(self, records: list[Record]) -> Record:
        """By signal, and how long the ends took."""
        faults = [one for one in records if "role" in one]
        took = sorted(one["took_s"] for one in faults)
        return {
            "faults": len(faults), "runs": sum("code" in one for one in records),
            "by": {name: sum(one["signal"] == name for one in faults) for name in ("SIGTERM", "SIGINT")},
            "took_s": {"median": took[len(took) // 2], "most": took[-1]} if took else None,
            "bound_95": bound(len(faults)),
        }  # fmt: skip


def of_ours(text: str) -> set[str]:
    """The files of ours that a traceback names."""
    return set(re.findall(r'File "\S*/hermes_mp/(\S+)"', text)) - FIRST
