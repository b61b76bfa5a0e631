"""Soak: runs of several models that live long, at once, with faults, beside short ones; nothing of theirs grows.

Each turn asks all of them, and every answer is the one that was given before there was a fault. Private memory and
descriptors of every process, and shared memory, are sampled between turns; of those that live long enough the slopes
must be none but noise.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil
from campaigns.common import PROMPTS, Campaign, Failed, Record, pause, signalled
from campaigns.examined import Examined
from campaigns.slopes import Point, growth
from launching import Launch, launch
from tiny_models import picture

from hermes_mp.host.memory import uss_nbytes

REQUESTS = 3  # of a turn, to each
HANG_S = 60.0  # without an answer
WARM_SHARE = 0.4  # of a process's life is not judged: caches fill, allocators find their size
FEWEST = 5  # samples of a process that is judged
LONG_LIVES = 8  # of the processes that nobody kills, and of shared memories, at least
# KiB more, by the slope over what is judged, in a life that had so long to get warm; a shorter one may four times as
# much. The noise of ten minutes: loaders 5, daemons 20, compute, whose allocator has most to do, 80.
MOST_KIB, MOST_OF_COMPUTE_KIB, MOST_FDS = 64, 256, 0.5
WARM_S, NOT_WARM = 120.0, 4
LOADER_EVERY_S, STOP_EVERY_S, COMPUTE_EVERY_S = 8.0, 15.0, 25.0  # so that restarts are granted: 5 in 30 s, 3 in 60 s
SHORT_EVERY_S = 12.0
STOPPED_S = 2.5  # at most; the soft deadline is 2 s


class Launched:
    """A `hermes-launch` that is given line after line."""

    def __init__(self, home: Path, *words: object) -> None:
        self.run = Launch(home, *words, lines=True)
        self._answered = 0

    def ask(self, prompt: str) -> None:
        self.run.write(prompt + "\n")

    def answer(self) -> str:
        self._answered += 1
        deadline = time.monotonic() + HANG_S
        while self.run.out.count("\n") < self._answered:
            pause(self.run, 0.01)
            if time.monotonic() > deadline:
                raise Failed(f"no answer for {HANG_S:g} s: {self.run.err[-2000:]!r}")
        return self.run.out.split("\n")[self._answered - 1]

    def processes(self) -> dict[int, str]:
        titles = self.run.processes()  # the daemon's is its command
        return {pid: words[8:] if words.startswith("hermes: ") else "daemon" for pid, words in titles.items()}

    def end(self) -> None:
        ended = self.run.ended()
        if ended.code != 0 or "Traceback" in ended.err:
            raise Failed(f"ended with {ended.code}: {ended.err[-2000:]!r}")

    def kill(self) -> None:
        self.run.__exit__(None, None, None)


class Loaded:
    """A program with `hermes_mp.load`."""

    def __init__(self, model: Path, loaders: int) -> None:
        self._program = Examined("campaigns.soak_caller", model, loaders)
        self._program.answer()

    def ask(self, prompt: str) -> None:
        self._program.tell(f"{prompt}\n".encode())

    def answer(self) -> str:
        return self._program.answer()

    def processes(self) -> dict[int, str]:
        found = {self._program.pid: "caller"}
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._program.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found[child.pid] = " ".join(child.cmdline()).strip().removeprefix("hermes: ")
        return found

    def end(self) -> None:
        code = self._program.ended()
        if code != 0:
            raise Failed(f"the program ended with {code}")

    def kill(self) -> None:
        self._program.close()


@dataclass
class Series:
    """Samples of one process: KiB of private memory, and descriptors, by seconds."""

    kib: list[Point] = field(default_factory=list)
    fds: list[Point] = field(default_factory=list)


class SoakCampaign(Campaign):
    name = "soak"

    def __init__(self, model: Path, folder: Path, seed: int) -> None:
        super().__init__(model, folder, seed)
        self._lives: dict[str, Launched | Loaded] = {}
        self._answers: dict[str, dict[str, str]] = {}
        self._series: defaultdict[tuple[str, str, int], Series] = defaultdict(Series)  # by life, role and process
        self._last: defaultdict[str, float] = defaultdict(time.monotonic)  # when such a fault was last
        self._short: dict[str, tuple[object, ...]] = {}  # models that answer once, and what they are asked
        self._shown: dict[str, str] = {}

    def run(self, number: int) -> Iterator[Record]:
        if not self._lives:
            self._begin()
        chance = self._draws.chance(number)
        started_s = time.monotonic()
        prompts = chance.choices(PROMPTS, k=REQUESTS)
        for life, prompt in itertools.product(self._lives.values(), prompts):
            life.ask(prompt)
        faults = self._faults(chance)
        if self._is_due("short", SHORT_EVERY_S):
            self._short_one(chance.choice(list(self._short)), number)
        for (name, life), prompt in itertools.product(self._lives.items(), prompts):
            answer = life.answer()
            if answer != self._answers[name][prompt]:
                raise Failed(f"{name} answered {answer!r} to {prompt!r}, not {self._answers[name][prompt]!r}")
        self._sample()
        seconds, requests = round(time.monotonic() - started_s, 3), len(prompts) * len(self._lives)
        yield self._draws.record(number, seconds=seconds, requests=requests, faults=faults)

    def amount(self, record: Record) -> float:
        return float(record.get("seconds", 0.0))

    def finish(self) -> Iterator[Record]:
        for name, life in self._lives.items():
            try:
                life.end()
            except (AssertionError, OSError) as error:
                raise Failed(f"{name}: {error}") from error
        lived = 0
        for (name, title, pid), series in self._series.items():
            kib, fds = (points[int(len(points) * WARM_SHARE) :] for points in (series.kib, series.fds))
            if len(kib) < FEWEST:
                continue
            grown_kib, grown_fds = round(growth(kib), 1), round(growth(fds), 2)
            seconds = round(kib[-1][0] - kib[0][0])
            facts = f"{title} of {name}: {grown_kib} KiB and {grown_fds} descriptors more in {seconds} s"
            most_kib = MOST_OF_COMPUTE_KIB if title in ("compute", "caller") else MOST_KIB
            is_warm = kib[0][0] - series.kib[0][0] >= WARM_S
            if grown_kib > most_kib * (1 if is_warm else NOT_WARM) or grown_fds > MOST_FDS:
                raise Failed(f"{facts}: {[round(value) for _, value in series.kib]}")
            lived += 1
            yield self._draws.record(
                -1, life=name, process=title, pid=pid, judged_s=seconds, samples=len(kib),
                grown_kib=grown_kib, grown_fds=grown_fds, kib=series.kib[-1][1],
            )  # fmt: skip
        if lived < LONG_LIVES:
            raise Failed(f"only {lived} processes lived long enough to be judged")

    def summary(self, records: list[Record]) -> Record:
        """Requests, faults, and the most that a process of each role grew by, with the seconds that it was judged."""
        judged = sorted((one for one in records if "life" in one), key=lambda one: float(one["grown_kib"]))
        faults = Counter(fault.partition(": ")[2] for one in records for fault in one.get("faults", ()))
        return {
            "seconds": round(sum(self.amount(one) for one in records)),
            "requests": sum(one.get("requests", 0) for one in records), "faults": dict(faults), "judged": len(judged),
            "most_grown": {
                one["process"].split()[0]: {"kib": one["grown_kib"], "of": one["kib"], "seconds": one["judged_s"]}
                for one in judged
            },
            "most_grown_fds": max(one["grown_fds"] for one in judged),
        }  # fmt: skip

    def close(self) -> None:
        for life in self._lives.values():
            life.kill()

    # --- what it does

    def _begin(self) -> None:
        """Start those that live long; what they answer before there is a fault they must always answer."""
        home, models = self._folder / "soak", self._model.parent
        self._lives["killed loaders"] = Launched(home / "loaders", *self._words("big"), "--memory", "none")
        self._lives["killed compute"] = Launched(home / "compute", *self._words("gpt2"), "--memory", "none")
        self._lives["left alone"] = Launched(home / "alone", *self._words("chat"), "--memory", "1GiB")
        self._lives["a program"] = Loaded(models / "big", 2)
        for name, life in self._lives.items():
            self._answers[name] = {prompt: _answered(life, prompt) for prompt in PROMPTS}
        image = picture(self._folder / "gradient.png")
        self._short = {
            "vit": ("--image", image),
            "bert": ("--text", "the ship sails"),
            "classify": ("--text", "cold water"),
            "mlm": ("--text", "the [MASK] sails"),
        }

    def _words(self, model: str) -> tuple[object, ...]:
        return (
            "--model", self._model.parent / model, "--max-new-tokens", 12, "--loaders", 2,
            "--temperature", 2.0, "--seed", 5,
        )  # fmt: skip

    def _is_due(self, what: str, every_s: float) -> bool:
        if time.monotonic() - self._last[what] < every_s:
            return False
        self._last[what] = time.monotonic()
        return True

    def _faults(self, chance: Random) -> list[str]:
        """What was done to whom, seldom enough that all are replaced; loader 0 of each lives as long as its run."""
        time.sleep(chance.uniform(0, 0.1))
        done = []
        for name in ("killed loaders", "a program"):
            if self._is_due(f"{name}, loader", LOADER_EVERY_S) and self._signal(name, "loader 1", signal.SIGKILL):
                done.append(f"{name}: loader killed")
        if self._is_due("compute", COMPUTE_EVERY_S) and self._signal("killed compute", "compute", signal.SIGKILL):
            done.append("killed compute: compute killed")
        elif self._is_due("stop", STOP_EVERY_S) and self._signal("killed compute", "loader 1", signal.SIGSTOP):
            time.sleep(chance.uniform(0.2, STOPPED_S))
            self._signal("killed compute", "loader 1", signal.SIGCONT)
            done.append("killed compute: loader stopped")
        return done

    def _signal(self, name: str, role: str, number: signal.Signals) -> bool:
        found = [pid for pid, title in self._lives[name].processes().items() if title == role]
        return bool(found) and signalled(found[0], number)

    def _short_one(self, name: str, number: int) -> None:
        words = ("--model", self._model.parent / name, *self._short[name], "--loaders", 2)
        ended = launch(self._folder / "soak" / f"{name}-{number}", *words)
        if ended.code != 0 or ended.out != self._shown.setdefault(name, ended.out):
            raise Failed(f"{name} ended with {ended.code}: {ended.out!r} {ended.err[-2000:]!r}")

    def _sample(self) -> None:
        now_s = time.monotonic()
        for name, life in self._lives.items():
            for pid, title in life.processes().items():
                with contextlib.suppress(OSError):  # it has ended
                    fds = descriptors(pid)
                    self._add(name, title, pid, now_s, uss_nbytes(pid), len(fds))
                    if title == "daemon":
                        shared = sum(os.stat(path).st_blocks * 512 for path, to in fds.items() if "/memfd:" in to)
                        self._add(name, "shared", pid, now_s, shared, 0)

    def _add(self, name: str, title: str, pid: int, now_s: float, nbytes: int, fds: int) -> None:
        if nbytes:
            series = self._series[name, title, pid]
            series.kib.append((now_s, nbytes / 1024))
            series.fds.append((now_s, fds))


def descriptors(pid: int) -> dict[str, str]:
    """Those that are open, and to what they lead."""
    folder = f"/proc/{pid}/fd"
    return {f"{folder}/{name}": os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}


def _answered(life: Launched | Loaded, prompt: str) -> str:
    life.ask(prompt)
    return life.answer()
