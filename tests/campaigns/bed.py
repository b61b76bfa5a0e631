"""What campaigns on a test bed share: boards that serve a head there, their requests, and what must hold after each.

The bed stays up for all runs; its boards are started again where they were killed. It knows no faults.
"""

from __future__ import annotations

import functools
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from campaigns.common import PROMPTS, Campaign, Failed, Ground, Record, pause
from launching import LAUNCH, Ended, Launch
from serving import BedServing
from testbed import TestBed, why_not

TOKENS = 48  # of an answer
DELAY = "4ms"  # one way: so that an answer takes some seconds, of which some pass in the network
HANG_S = 60.0  # without an answer
IDLE_S = 10.0  # until nothing but its own process is left of a board's stage
LOST_S, FORECASTS = 6.0, 1.5  # the next token comes after so long, and so many forecasts of the replay
STALL_S = 5.0  # --timeout
LOSS = r"board {}[ :].*going on without it"


class BedGround(Ground):
    """The golden answers of one board, and boards on a bed."""

    def words(self, loaders: int) -> tuple[object, ...]:
        return (
            "--model", self._model, "--max-new-tokens", TOKENS, "--loaders", loaders, "--memory", "none",
            "--temperature", 2.0, "--seed", 5, "--timeout", STALL_S,
        )  # fmt: skip


class Talk:
    """A run of the head's, and when it said what. Its requests are lines; `began` is where the present answer does."""

    def __init__(self, run: Launch) -> None:
        self.run = run
        self.said: list[tuple[float, int, int]] = []  # when how much of out and err was there
        self.asked_s = 0.0
        self.began = self.noted = 0
        self._lines = 0

    def ask(self, prompt: str) -> None:
        self.began, self.noted, self.asked_s = len(self.run.out), len(self.run.err), time.monotonic()
        self.run.write(prompt + "\n")
        self._lines += 1

    @property
    def answered(self) -> bool:
        return self.run.out.count("\n") >= self._lines

    def look(self, run: Launch | None = None) -> bool:
        """For `wait_for`: notes what has come; whether the answer is whole."""
        now = time.monotonic(), len(self.run.out), len(self.run.err)
        if not self.said or now[1:] != self.said[-1][1:]:
            self.said.append(now)
        if not self.answered and now[0] - self.asked_s > HANG_S:
            raise Failed(f"no answer for {HANG_S:g} s: {self.run.out[self.began :]!r} {self.run.err[-3000:]!r}")
        return self.answered

    def watch(self, seconds: float) -> None:
        """For so long, or until the answer is whole."""
        until_s = time.monotonic() + seconds
        self.run.wait_for(lambda run: self.look() or time.monotonic() > until_s)

    def watch_text(self) -> None:
        """Until the answer has begun."""
        self.run.wait_for(lambda run: self.look() or len(run.out) > self.began)

    def finish(self) -> None:
        self.run.wait_for(self.look)

    def found_s(self, since_s: float, noted: int, pattern: str) -> float | None:
        """When a line like this was there, of what was said on standard error after its first `noted` characters."""
        err = self.run.err
        for when_s, _, length in self.said:
            if when_s >= since_s and re.search(pattern, err[noted:length]):
                return when_s
        return None

    def next_s(self, since_s: float) -> float | None:
        """When the answer first grew after that."""
        before = max((out for when_s, out, _ in self.said if when_s <= since_s), default=0)
        return next((when_s for when_s, out, _ in self.said if when_s > since_s and out > before), None)


class BedCampaign(Campaign):
    """With `count` boards beside the head."""

    count = 2

    def __init__(self, model: Path, folder: Path, seed: int) -> None:
        super().__init__(model, folder, seed)
        self._stack = ExitStack()
        self._files: dict[int, int] = {}  # descriptors of a board's process when it was first idle
        self.rates: dict[int, float] = {}  # seconds a token, by how many boards there are beside the head

    @functools.cached_property
    def _ground(self) -> BedGround:
        return BedGround(self.name, self._model, self._folder, self._seed)

    @functools.cached_property
    def bed(self) -> TestBed:
        if reason := why_not():
            raise Failed(reason)
        return self._stack.enter_context(TestBed(self.count + 1, delay=DELAY))

    @functools.cached_property
    def boards(self) -> BedServing:
        folder = self._folder / f"{self.name}-boards"
        return self._stack.enter_context(BedServing(self.bed, folder, self._model.parent))

    def close(self) -> None:
        self._stack.close()

    def launch(
        self, number: int, loaders: int, split: str = "", *words: object, boards: list[str] | None = None
    ) -> Launch:
        """A run of the head's, on the bed, that takes lines; all boards have a part, until one of them is lost."""
        split = split or "head:2," + ",".join(f"{name}:{6 // self.count}" for name in self.boards.names)
        named = [word for name in boards or self.boards.names for word in ("--board", name)]
        return Launch(
            self._draws.home(number), *self._ground.words(loaders), *named, "--split", split, *words,
            lines=True,
            env=self.boards.env, program=(*self.boards.head, *LAUNCH),
        )  # fmt: skip

    def measure(self) -> None:
        """What a token takes with all boards, and without one after the other, in the rest of an answer."""
        if self.rates:
            return
        names = self.boards.names
        with self.launch(-1, 1) as run:
            talk = Talk(run)
            for gone in range(len(names) + 1):
                prompt = PROMPTS[gone]
                talk.ask(prompt)
                talk.watch_text()
                first_s = time.monotonic()
                if gone:
                    self.boards.kill(names[-gone])
                    talk.finish()
                    lost_s = talk.found_s(first_s, talk.noted, LOSS.format(names[-gone]))
                    found_s = None if lost_s is None else talk.next_s(lost_s)
                    if found_s is None:
                        raise Failed(f"{names[-gone]} was not missed: {run.err[-3000:]!r}")
                    first_s = found_s
                talk.finish()
                grew = [(when_s, out) for when_s, out, _ in talk.said if first_s <= when_s and out >= talk.began]
                text = self._ground.answers[prompt]
                share = (grew[-1][1] - grew[0][1]) / len(text)
                self.rates[len(names) - gone] = (grew[-1][0] - grew[0][0]) / max(1.0, share * TOKENS)
            ended = run.ended()
        self.check(ended, list(PROMPTS[: len(names) + 1]))
        self.revive()

    def revive(self) -> None:
        """Start all boards that are not there, and wait until all serve."""
        for name in self.boards.names:
            if not self.boards.is_up(name):
                self.boards.start(name)
        for name in self.boards.names:
            self.boards.await_up(name)

    def forecast_s(self, shown: int, prompt: str, boards: int) -> float:
        """Of the replay of an answer of which so many characters were there, and its next token."""
        tokens = math.ceil(TOKENS * shown / len(self._ground.answers[prompt])) + 1
        return tokens * self.rates[boards]

    def check(self, ended: Ended, prompts: list[str]) -> None:
        """The right answers, nothing that is a bug, and boards that are as before."""
        if ended.code != 0:
            raise Failed(f"ended with {ended.code}: {ended.err[-3000:]!r}")
        expected = [self._ground.answers[prompt] for prompt in prompts]
        if ended.out.split("\n") != [*expected, ""]:
            raise Failed(f"answered {ended.out!r}, not {expected!r}: {ended.err[-3000:]!r}")
        self.check_boards(ended.err)

    def check_boards(self, said: str) -> None:
        """No board has anything left of a stage, or of what it opened for one."""
        names = [name for name in self.boards.names if self.boards.is_up(name)]
        for text in (said, *(self.boards.log(name) for name in names)):
            if "Traceback" in text:
                raise Failed(f"a traceback: {text[-3000:]!r}")
        until_s = time.monotonic() + IDLE_S
        for name in names:
            pid = self.boards.pid(name)
            while set(left := self.boards.processes(name)) != {pid}:
                if time.monotonic() > until_s:
                    said = self.boards.log(name)[-3000:]
                    raise Failed(f"board {name} is not idle after {IDLE_S:g} s: {left}; {said!r}")
                time.sleep(0.02)
        self._check_files(names)

    def _check_files(self, names: list[str]) -> None:
        """A head's connection may take as long as a heartbeat to be missed."""
        until_s = time.monotonic() + IDLE_S
        for name in names:
            pid = self.boards.pid(name)
            most = self._files.setdefault(pid, len(os.listdir(f"/proc/{pid}/fd"))) + 2
            while len(files := os.listdir(f"/proc/{pid}/fd")) > most:
                if time.monotonic() > until_s:
                    raise Failed(f"board {name} has {len(files)} descriptors, {most - 2} when it was first idle")
                time.sleep(0.02)


def figures(values: Iterator[float]) -> Record | None:
    """Median and worst."""
    found = sorted(values)
    return {"median": round(found[len(found) // 2], 3), "most": round(found[-1], 3)} if found else None


def let_pass(talk: Talk, seconds: float) -> None:
    """Whether there is a request or not."""
    if talk.answered:
        pause(talk.run, seconds)
    else:
        talk.watch(seconds)
