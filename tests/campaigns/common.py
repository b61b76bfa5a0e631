"""What campaigns share: runs by their seed, a launch, what it should answer, and how it is at this moment."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launching import Launch, launch

from hermes_mp.cli.ps import ask
from hermes_mp.host.rundir import live

PROMPTS = ("the ship", "cold water", "a small crab", "grey stones", "sails over")
Record = dict[str, Any]


class Failed(AssertionError):
    """What must not happen."""


class Draws:
    """Each run of a campaign has chances and a folder of its own, by the seed and its number alone."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.name, self._folder, self._seed = name, folder, seed

    def chance(self, number: int) -> random.Random:
        return random.Random(f"{self._seed}/{number}")

    def home(self, number: int) -> Path:
        return self._folder / f"{self.name}-{number}"

    def record(self, number: int, **facts: Any) -> Record:
        return {"campaign": self.name, "seed": self._seed, "run": number, **facts}


class Ground(Draws):
    """The model of a campaign and its golden answers, by `prompt`."""

    def __init__(self, name: str, model: Path, folder: Path, seed: int) -> None:
        super().__init__(name, folder, seed)
        self._model = model
        whole = launch(folder / f"{name}-golden", *self.words(1), stdin="".join(f"{one}\n" for one in PROMPTS))
        self.answers = dict(zip(PROMPTS, whole.out.split("\n")[:-1], strict=True))

    def words(self, loaders: int) -> tuple[object, ...]:
        """A run that samples, and reads all units in every pass."""
        return (
            "--model", self._model, "--max-new-tokens", 12, "--loaders", loaders, "--memory", "none",
            "--temperature", 2.0, "--seed", 5,
        )  # fmt: skip


class Campaign:
    """Runs by number, each with its records; what is still there after one is ended by `close`."""

    name = ""
    patience = 1.0  # so many times as long may take what is bounded by time, where a campaign knows of it

    def __init__(self, model: Path, folder: Path, seed: int) -> None:
        self._model, self._draws = model, Draws(self.name, folder, seed)
        self._folder, self._seed = folder, seed

    @functools.cached_property
    def _ground(self) -> Ground:
        return Ground(self.name, self._model, self._folder, self._seed)

    def numbers(self) -> Iterator[int]:
        """Of its runs."""
        return itertools.count()

    def run(self, number: int) -> Iterator[Record]:
        """Raises Failed with what was seen."""
        raise NotImplementedError

    def amount(self, record: Record) -> float:
        """How much of a campaign this is: a fault, with the `role` of whom it hit, where nothing else is counted."""
        return "role" in record

    def finish(self) -> Iterator[Record]:
        """What only all runs together show; raises Failed."""
        return iter(())

    def summary(self, records: list[Record]) -> Record:
        """The figures."""
        raise NotImplementedError

    def close(self) -> None:
        """End what outlives a run."""


def carry_out(campaign: Campaign, count: float, only: int | None = None) -> Iterator[Record]:
    """So much of it at least or all that there is, or this run only; raises Failed with the number of the run."""
    with contextlib.closing(campaign):
        done = 0.0
        for number in campaign.numbers() if only is None else (only,):
            if done >= count:
                break
            try:
                for record in campaign.run(number):
                    done += campaign.amount(record)
                    yield record
            except AssertionError as error:  # Failed, or what the harness asserts of every run
                raise Failed(f"run {number}: {error}") from error
        yield from campaign.finish()


def status_of(run: Launch) -> dict[str, Any] | None:
    """What `hermes-ps` would show of it; None while it does not answer."""
    for path in live():
        status = ask(path)
        if status is not None and status["pid"] == run.pid:
            return status
    return None


def signalled(pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Whether there was still somebody to be signalled."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def pause(run: Launch, seconds: float) -> None:
    """Let it run for so long."""
    until_s = run.now_s + seconds
    run.wait_for(lambda run: run.now_s >= until_s)


def bound(faults: int) -> float:
    """With none in so many, fewer than this share of faults fail, with 95 % confidence."""
    return round(3 / max(1, faults), 5)
