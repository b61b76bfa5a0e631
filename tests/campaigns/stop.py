"""SIGSTOP of a loader, for a while or for ever, then SIGCONT even of one that was worked around: no hang, no old byte.

What a loader that wakes up late still writes, it writes into a slot that is lent to it: no answer changes. One that
sleeps for too long is killed and replaced: deadlines are short here.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator

from campaigns.common import PROMPTS, Campaign, Failed, Record, bound, pause, signalled, status_of
from campaigns.kill import HANG_S, check
from launching import Launch

FAULTS = 4  # of a run
OPTIONS = ("--soft-deadline", 0.2, "--hard-deadline", 1.5, "--verify", "always")
LONGEST_S = 2.5
FOR_EVER = 0.3  # of them are woken up only when the run is to end


class StopCampaign(Campaign):
    name = "stop"

    def run(self, number: int) -> Iterator[Record]:
        ground = self._ground
        chance = ground.chance(number)
        expected: list[str] = []
        asleep: list[int] = []
        with Launch(ground.home(number), *ground.words(chance.randint(2, 3)), *OPTIONS, lines=True) as run:
            for _ in range(FAULTS):
                prompt = chance.choice(PROMPTS)
                run.write(prompt + "\n")
                expected.append(ground.answers[prompt])
                pause(run, chance.uniform(0, 0.3))
                victim = self._victim(run, chance, asleep)
                seconds = None if chance.random() < FOR_EVER else chance.uniform(0.1, LONGEST_S)
                if victim is not None and signalled(victim[0], signal.SIGSTOP):
                    if seconds is None:
                        asleep.append(victim[0])
                    else:
                        pause(run, seconds)
                        signalled(victim[0], signal.SIGCONT)
                    yield ground.record(number, role="loader", state=victim[1], stopped_s=seconds)
                asked_s = time.monotonic()
                while run.out.count("\n") < len(expected):
                    pause(run, 0.02)
                    if time.monotonic() - asked_s > HANG_S:
                        raise Failed(f"no answer for {HANG_S:g} s: {run.out!r} {run.err[-2000:]!r}")
            for pid in asleep:
                signalled(pid, signal.SIGCONT)
            ended = run.ended()
        check(ended, expected)
        hung = ended.err.count("is killed: no progress for")
        yield ground.record(number, answers=len(expected), code=ended.code, killed=hung)

    def summary(self, records: list[Record]) -> Record:
        """How many were stopped for a while, and for ever."""
        faults = [one for one in records if "role" in one]
        return {
            "faults": len(faults), "runs": sum("code" in one for one in records),
            "killed": sum(one.get("killed", 0) for one in records),
            "for_ever": sum(one["stopped_s"] is None for one in faults),
            "reading": sum(one["state"] == "mid-read" for one in faults), "bound_95": bound(len(faults)),
        }  # fmt: skip

    def _victim(self, run: Launch, chance: random.Random, asleep: list[int]) -> tuple[int, str] | None:
        """One that is not asleep, but never the last."""
        status = status_of(run)
        found = [] if status is None else [one for one in status["loaders"] if one["pid"] not in asleep]
        if len(found) < 2:
            return None
        loader = chance.choice(found)
        return loader["pid"], "mid-read" if loader["reads"] else "idle"
