"""A loader may be killed or hang at any moment: the same answer, later, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest
from campaigns.common import status_of
from launching import Launch, launch

# Without a budget: a window, so that all units are read in every pass.
ARGUMENTS = ("--prompt", "the ship", "--max-new-tokens", 24, "--memory", "none")


@pytest.fixture(scope="module")
def answer(models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run without faults says."""
    home = tmp_path_factory.mktemp("answer") / "home"
    return launch(home, "--model", models / "big", *ARGUMENTS, "--quiet").out


@pytest.mark.parametrize("loaders", [1, 3])
def test_loaders_killed_with_every_piece_of_text(models: Path, home: Path, answer: str, loaders: int) -> None:
    """Whichever loader is alive, and whatever it is at: five of them may die in 30 s before one is given up."""
    killed: set[int] = set()
    with Launch(home, "--model", models / "big", *ARGUMENTS, "--loaders", loaders) as run:
        while len(killed) < 4 * loaders:
            seen = len(run.out)
            run.wait_for(lambda run, seen=seen: len(run.out) > seen)
            victim = next((pid for pid in run.loaders() if pid not in killed), None)
            if victim is not None:
                run.send(victim, signal.SIGKILL)
                killed.add(victim)
            if run.out.endswith("\n"):
                break
        ended = run.ended()
    assert ended.code == 0
    assert ended.out == answer
    assert 3 <= ended.err.count("ended (killed by SIGKILL)") <= len(killed)  # the end of the run may be first
    assert re.search(rf"^loaders   {loaders} \([0-9]+ restarted\)", ended.err, re.MULTILINE)
    # Once 3395 GiB, when a loader was measured at the moment its program began.
    assert re.search(r"^memory    [2345][0-9]{2} MiB at most", ended.err, re.MULTILINE)


def test_a_loader_killed_while_it_reads(models: Path, home: Path, answer: str) -> None:
    """Stopped, so that whatever was lent to it is still lent when it dies."""
    with Launch(home, "--model", models / "big", *ARGUMENTS, "--loaders", 3) as run:
        run.wait_until_at_work(3)
        loaders = run.loaders()
        for pid in loaders:
            run.send(pid, signal.SIGSTOP)
        run.send(loaders[0], signal.SIGKILL)
        run.send(loaders[1], signal.SIGKILL)
        run.send(loaders[2], signal.SIGCONT)
        ended = run.ended()
    assert (ended.code, ended.out) == (0, answer)


def test_a_loader_that_hangs_is_worked_around(models: Path, home: Path, answer: str) -> None:
    """It never wakes up again: its unit is read by another, and the end of the run does not wait for it."""
    with Launch(home, "--model", models / "big", *ARGUMENTS, "--loaders", 2) as run:
        run.wait_until_at_work(2)
        run.send(run.loaders()[0], signal.SIGSTOP)
        ended = run.ended()
    assert (ended.code, ended.out) == (0, answer)


def test_all_loaders_hang_and_wake_up(models: Path, home: Path, answer: str) -> None:
    """For longer than the soft deadline: their late news is of units that were asked for again."""
    with Launch(home, "--model", models / "big", *ARGUMENTS, "--loaders", 3) as run:
        run.wait_until_at_work(3)
        loaders = run.loaders()
        for pid in loaders:
            run.send(pid, signal.SIGSTOP)
        stopped_s = run.now_s
        run.wait_for(lambda run: run.now_s > stopped_s + 3)
        for pid in loaders:
            run.send(pid, signal.SIGCONT)
        ended = run.ended()
    assert (ended.code, ended.out) == (0, answer)


def test_a_run_without_one_of_its_loaders_is_degraded(models: Path, home: Path) -> None:
    """One that dies again and again is given up for good; that shows while it runs, and in its report."""
    why = "without loader 0: it died 6 times within 30 s"
    words = ("--model", models / "big", *ARGUMENTS[2:], "--loaders", 2, "--json")
    with Launch(home, *words, lines=True) as run:
        run.wait_for(lambda run: "compute" in run.err or len(run.loaders()) == 2)

        def kill_the_first(run: Launch) -> bool:
            for pid, title in run.processes().items():
                if title == "hermes: loader 0":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            return "going on with 1 loader: loader 0" in run.err

        run.wait_for(kill_the_first)
        run.wait_for(lambda run: (status_of(run) or {}).get("degraded") == [why])
        run.write("the ship\n")
        ended = run.ended()
    assert ended.code == 0
    assert ended.object["report"]["degraded"] == [why]


def test_a_loader_that_hangs_for_too_long_is_killed(models: Path, home: Path, answer: str) -> None:
    """Its deadlines can be set; the line says that it was stopped."""
    deadlines = ("--soft-deadline", 0.1, "--hard-deadline", 1.0)
    with Launch(home, "--model", models / "big", *ARGUMENTS[2:], *deadlines, "--loaders", 2, lines=True) as run:
        run.write("the ship\n")
        run.wait_until_at_work(2)
        run.send(run.loaders()[0], signal.SIGSTOP)
        run.write("the ship\n")
        run.wait_for(lambda run: "; it is replaced" in run.err)
        ended = run.ended()
    assert (ended.code, ended.out) == (0, answer * 2)
    line = r"loader 0 is killed: no progress for [12]\.[0-9] s while loading unit \d+; it is stopped\n"
    assert re.search(line, ended.err), ended.err
