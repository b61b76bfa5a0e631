"""Weights that change under a run, and bits that flip on their way from the disk: found, named, never computed with.

A file is truncated, written to, replaced or deleted at a random moment; who reads on is asked for more until it is
found. Bits flip in what a loader's `preadv` brings (`shim/failing_calls.py`), once or for good, of a model whose
checksums are known: what flipped once is read again, and the answer is right.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from campaigns.calls import ROOT, SHIM
from campaigns.common import PROMPTS, Campaign, Failed, Record, bound, status_of
from campaigns.kill import check
from campaigns.shim.failing_calls import CALLS, FLIP
from launching import Ended, Launch, launch

from hermes_mp.errors import WeightsChanged

WEIGHTS = "model.safetensors"
FLIPS = 0.4  # of the runs
ONCE = 0.7  # of those
LONGEST_WAIT_S = 4.0  # torch is imported within two
ASKED = 3  # prompts at most, once the fault is there: each has twelve passes
LATEST_READ = 40  # of one loader


def truncated(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def written(path: Path, chance: random.Random) -> None:
    """A few bytes, somewhere behind the header's length."""
    with open(path, "r+b") as file:
        file.seek(chance.randrange(8, path.stat().st_size - 16))
        file.write(chance.randbytes(16))


def replaced(path: Path, chance: random.Random) -> None:
    """By one of the same length: half of the time it is the same to the byte."""
    other = path.with_name("other")
    shutil.copyfile(path, other)
    if chance.random() < 0.5:
        written(other, chance)
    other.rename(path)


def deleted(path: Path, chance: random.Random) -> None:
    path.unlink()


CHANGES: tuple[Callable[[Path, random.Random], None], ...] = (truncated, written, replaced, deleted)


class FilesCampaign(Campaign):
    name = "files"

    def __init__(self, model: Path, folder: Path, seed: int) -> None:
        super().__init__(model, folder, seed)
        self._known: set[int] = set()  # loaders of runs that have made their checksums known

    def run(self, number: int) -> Iterator[Record]:
        chance = self._draws.chance(number)
        yield from self._flip(number, chance) if chance.random() < FLIPS else self._change(number, chance)

    def summary(self, records: list[Record]) -> Record:
        """What was done, and how it ended."""
        faults = [one for one in records if "role" in one]
        return {
            "faults": len(faults), "runs": sum("code" in one for one in records),
            "by": dict(sorted(Counter(one["how"] for one in faults).items())),
            "codes": {str(code): count for code, count in sorted(Counter(one["code"] for one in faults).items())},
            "bound_95": bound(len(faults)),
        }  # fmt: skip

    def _change(self, number: int, chance: random.Random) -> Iterator[Record]:
        home = self._ground.home(number)
        model = Path(shutil.copytree(self._model, home.with_suffix(".model")))
        change, loaders = chance.choice(CHANGES), chance.randint(1, 3)
        words = ("--model", model, *self._ground.words(loaders)[2:], "--verify", chance.choice(("first", "always")))
        with Launch(home, *words, lines=True) as run:
            asked = self._ask(run, chance, [])
            run.wait_for(status_of)  # before that its headers are not read: it would be another file from the beginning
            wait(run, chance.uniform(0, LONGEST_WAIT_S))
            state = "computing" if run.out and run.out.count("\n") < len(asked) else "idle" if run.out else "starting"
            if run.is_running:
                change(model / WEIGHTS, chance)
            answered = run.out.count("\n")
            while run.is_running and run.out.count("\n") < answered + ASKED:
                if run.out.count("\n") == len(asked):
                    self._ask(run, chance, asked)
                wait(run, 0.02)
            ended = run.ended()
        shutil.rmtree(model)
        how = change.__name__
        if ended.code != WeightsChanged.exit_code or str(model / WEIGHTS) not in ended.line:
            raise Failed(f"{how} while {state}: ended with {ended.code}: {ended.err[-2000:]!r}")
        if not "".join(f"{self._ground.answers[one]}\n" for one in asked).startswith(begun(ended)):
            raise Failed(f"{how} while {state}: answered {ended.out!r} to {asked}")
        yield self._ground.record(number, role="file", how=how, state=state, code=ended.code, line=ended.line)

    def _flip(self, number: int, chance: random.Random) -> Iterator[Record]:
        """Each run is asked until the fault has come, and once more."""
        ground, loaders, once = self._ground, chance.randint(1, 3), chance.random() < ONCE
        home = ground.home(number)
        fired = home.with_suffix(".fired")
        words = (*ground.words(loaders), "--verify", "always")
        if loaders not in self._known:
            launch(home.with_suffix(".known"), *words, "--prompt", PROMPTS[0])
            self._known.add(loaders)
        plan: dict[str, Any] = {"site": "loader preadv hermes_mp/host/reading.py _read_", "how": FLIP}
        plan |= {"first": chance.randint(1, LATEST_READ), "forever": not once, "fired": str(fired)}
        environment = {"PYTHONPATH": f"{SHIM}:{ROOT}", CALLS: json.dumps(plan)}
        with Launch(home, *words, env=environment, lines=True) as run:
            asked: list[str] = []
            while run.is_running and not (asked and fired.exists()):
                before = ended_requests(run)
                self._ask(run, chance, asked)
                run.wait_for(lambda run, before=before: ended_requests(run) > before or not run.is_running)
            ended = run.ended()
        expected = [ground.answers[one] for one in asked]
        how = "flipped once" if once else "flipped for good"
        if once:
            check(ended, expected)
        elif ended.code != WeightsChanged.exit_code or "Traceback" in ended.err:
            raise Failed(f"{how}: ended with {ended.code}: {ended.out!r} {ended.err[-2000:]!r}")
        elif not "".join(f"{one}\n" for one in expected).startswith(begun(ended)):
            raise Failed(f"{how}: answered {ended.out!r} to {asked}")
        if not re.search(rf"{WEIGHTS}: what was read of bytes .* has the checksum", ended.err):
            raise Failed(f"{how} and not found: {ended.err[-2000:]!r}")
        yield ground.record(number, role="read", how=how, first=plan["first"], code=ended.code)

    def _ask(self, run: Launch, chance: random.Random, asked: list[str]) -> list[str]:
        asked.append(chance.choice(PROMPTS))
        run.write(asked[-1] + "\n")
        return asked


def begun(ended: Ended) -> str:
    """What it said, without the end of a line, and of a character, that was broken off."""
    return ended.out.rstrip("\n\ufffd")


def ended_requests(run: Launch) -> int:
    """Another number once one more was answered or failed."""
    return run.out.count("\n") + run.err.count(f"; {WeightsChanged.attempt}\n")


def wait(run: Launch, seconds: float) -> None:
    """Or until it ends."""
    until_s = run.now_s + seconds
    run.wait_for(lambda run: run.now_s >= until_s or not run.is_running)
