"""Random SIGKILL of loaders and compute in whatever state they are: no wrong answer, no hang, nothing left.

Some are killed by the kernel instead, for lack of memory: in a small cgroup, where somebody else takes it all.
Every run of it is drawn from the seed and its number alone, so that any can be repeated; which state a victim is in
when the signal comes is the machine's to say, and is written down. A run has as many faults as restarts are allowed.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from campaigns.common import PROMPTS, Campaign, Failed, Record, bound, pause, signalled, status_of
from launching import Ended, Launch
from memory_groups import crowd_out, memory_group

COMPUTE_KILLS, LOADER_KILLS = 3, 4  # of a run, and for each of its loaders
RESTARTS = 5  # of one loader within 30 s
HANG_S = 60.0  # without an answer
REPLACED_S = 10.0
LONGEST_WAIT_S = 0.25
OOM_SHARE = 0.1  # of the faults, where we may make memory cgroups
OOM_MIB = 16
STOPPING_SHARE = 0.2  # of the runs are hit once more while they end


class KillCampaign(Campaign):
    name = "kill"

    def run(self, number: int) -> Iterator[Record]:
        ground = self._ground
        chance = ground.chance(number)
        loaders = chance.randint(1, 3)
        computes = [chance.choice(("compute", "computing")) for _ in range(chance.randint(0, COMPUTE_KILLS))]
        faults = computes + ["loader"] * chance.randint(1, LOADER_KILLS * loaders)
        chance.shuffle(faults)
        expected: list[str] = []
        with Launch(ground.home(number), *ground.words(loaders), lines=True) as run:
            asked_s = time.monotonic()
            while faults or run.out.count("\n") < len(expected):
                if run.out.count("\n") == len(expected) and faults and chance.random() < 0.7:
                    prompt = chance.choice(PROMPTS)  # else it is killed while it waits for a line
                    run.write(prompt + "\n")
                    expected.append(ground.answers[prompt])
                    asked_s = time.monotonic()
                pause(run, chance.uniform(0, LONGEST_WAIT_S))
                if time.monotonic() - asked_s > HANG_S + len(faults):
                    raise Failed(f"no answer for {HANG_S:g} s: {run.out!r} {run.err[-2000:]!r}")
                fault = self._kill(run, faults[-1], chance) if faults else None
                if fault is not None:
                    faults.pop()
                    yield ground.record(number, **fault)
            run.close_input()
            if chance.random() < STOPPING_SHARE:
                role = chance.choice(("compute", "loader"))
                pause(run, chance.uniform(0, 0.05))
                found = [pid for pid, title in run.processes().items() if title.startswith(f"hermes: {role}")]
                if found and signalled(chance.choice(found)):
                    yield ground.record(number, role=role, state="stopping")
            ended = run.ended()
        check(ended, expected)
        yield ground.record(number, answers=len(expected), code=ended.code)

    def summary(self, records: list[Record]) -> Record:
        """Faults by role and state, and how soon loaders were replaced."""
        faults = [one for one in records if "role" in one]
        replaced = [one["replaced_s"] for one in faults if "replaced_s" in one]
        counts: dict[str, int] = {}
        for one in faults:
            name = f"{one['role']} {one['state']}"
            counts[name] = counts.get(name, 0) + 1
        return {
            "faults": len(faults), "runs": sum("code" in one for one in records), "by": dict(sorted(counts.items())),
            "oom": sum(one.get("by") == "oom" for one in faults),
            "replaced_s": {"median": statistics.median(replaced), "most": max(replaced)} if replaced else None,
            "bound_95": bound(len(faults)),
        }  # fmt: skip

    def _kill(self, run: Launch, role: str, chance: random.Random) -> Record | None:
        """Kill one; None where there is none at this moment. Of a loader also how long until another one is up."""
        how = "oom" if chance.random() < OOM_SHARE else "SIGKILL"
        status = status_of(run)
        if role != "loader":
            pid, state = compute_of(run, status)
            if role == "computing" != state:
                return None  # in that state only: it starts for seconds and computes for less than one
            return {"role": "compute", "state": state, "by": how} if pid and killed(pid, how) else None
        loaders = [] if status is None else [one for one in status["loaders"] if one["restarts"] < RESTARTS]
        if status is None or not loaders:
            return None
        loader = chance.choice(loaders)
        killed_s = time.monotonic()
        if not killed(loader["pid"], how):
            return None
        wait_replaced(run, loader["number"], loader["restarts"])
        took = {"replaced_s": round(time.monotonic() - killed_s, 3)} if how == "SIGKILL" else {}
        return {"role": role, "state": state_of(loader, status), "by": how, **took}


def killed(pid: int, how: str) -> bool:
    """Whether it was still there to be killed."""
    if how == "SIGKILL":
        return signalled(pid)
    with memory_group("campaign", OOM_MIB) as group:
        if group is None:
            return signalled(pid)
        try:
            Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:  # it has ended
            return False
        crowd_out(group)
    return True


def compute_of(run: Launch, status: dict[str, Any] | None) -> tuple[int, str]:
    """Its process, 0 where there is none, and what it is at."""
    if status is None or not status["compute"]["pid"]:
        found = [pid for pid, title in run.processes().items() if title == "hermes: compute"]
        return (found[0] if found else 0), "starting"
    held = any(slot["state"] == "held" for slot in status["slots"])
    return status["compute"]["pid"], "starting" if not status["ready"] else "computing" if held else "idle"


def state_of(loader: dict[str, Any], status: dict[str, Any]) -> str:
    """What a loader is at, and whether what was loaded waits to be taken."""
    state = "starting" if loader["state"] == "spawning" else "mid-read" if loader["reads"] else "idle"
    return state + (", ready not taken" if any(slot["state"] == "loaded" for slot in status["slots"]) else "")


def wait_replaced(run: Launch, number: int, restarts: int) -> None:
    """Until another incarnation of that loader is up."""
    deadline = time.monotonic() + REPLACED_S

    def is_replaced(run: Launch) -> bool:
        status = status_of(run)
        found = [] if status is None else [one for one in status["loaders"] if one["number"] == number]
        if time.monotonic() > deadline:
            raise Failed(f"loader {number} was not replaced within {REPLACED_S:g} s: {run.err[-2000:]!r}")
        return any(one["restarts"] > restarts and one["state"] == "up" for one in found)

    run.wait_for(is_replaced)


def check(ended: Ended, expected: list[str]) -> None:
    """The right answers, and nothing that is a bug."""
    if ended.code != 0:
        raise Failed(f"ended with {ended.code}: {ended.err[-2000:]!r}")
    if ended.out.splitlines() != expected:
        raise Failed(f"answered {ended.out!r}, not {expected!r}")
    if "Traceback" in ended.err:
        raise Failed(f"a traceback: {ended.err[-2000:]!r}")
