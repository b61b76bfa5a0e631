"""SIGKILL of the daemon at random moments: 2 s later nothing of it is there, and the next start does not mind.

The next run of the campaign is that next start; a directory that a dead daemon left may lie there until then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from campaigns.common import PROMPTS, Campaign, Failed, Record, bound, pause, signalled
from launching import Launch

GONE_S = 2.0
LONGEST_WAIT_S = 4.0  # torch is imported within two
WHOLE = 5  # one run of so many is not killed


class DaemonCampaign(Campaign):
    name = "daemon"

    def run(self, number: int) -> Iterator[Record]:
        ground = self._ground
        chance = ground.chance(number)
        prompt = chance.choice(PROMPTS)
        with Launch(ground.home(number), *ground.words(chance.randint(1, 3)), lines=True) as run:
            run.write(prompt + "\n")
            if number % WHOLE == WHOLE - 1:
                ended = run.ended()
                if (ended.code, ended.out) != (0, ground.answers[prompt] + "\n"):
                    raise Failed(f"ended with {ended.code}: {ended.out!r} {ended.err[-2000:]!r}")
                yield ground.record(number, code=0)
                return
            pause(run, chance.uniform(0, LONGEST_WAIT_S))
            titles = sorted(run.processes().values())
            state = "computing" if run.out else "starting" if "hermes: compute" in titles else "beginning"
            signalled(run.pid)
            killed_s = time.monotonic()
            while run.processes():
                if time.monotonic() - killed_s > GONE_S:
                    raise Failed(f"after {GONE_S:g} s there are still {run.processes()}")
                time.sleep(0.01)
            gone_s = round(time.monotonic() - killed_s, 3)
            run.ended()
        left = [name for name in os.listdir(os.environ["XDG_RUNTIME_DIR"]) if name.startswith("hermes-mp-")]
        yield ground.record(number, role="daemon", state=state, gone_s=gone_s, directories=len(left))
        yield ground.record(number, code=-9)

    def summary(self, records: list[Record]) -> Record:
        """By state, how soon all was gone, and how often a directory was left for the next start to sweep."""
        faults = [one for one in records if "role" in one]
        gone = sorted(one["gone_s"] for one in faults)
        return {
            "faults": len(faults), "runs": sum("code" in one for one in records),
            "by": {state: sum(one["state"] == state for one in faults) for state in {one["state"] for one in faults}},
            "gone_s": {"median": gone[len(gone) // 2], "most": gone[-1]} if gone else None,
            "directories_left": max((one["directories"] for one in faults), default=0),
            "bound_95": bound(len(faults)),
        }  # fmt: skip
