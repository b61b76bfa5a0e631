"""Compute may be killed at any moment: the same answer, later, nothing twice and nothing missing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest
from campaigns.common import status_of
from launching import Ended, Launch, launch

MIB = 1 << 20
# Without a budget: a window, so that all units are read in every pass.
ARGUMENTS = ("--prompt", "the ship", "--max-new-tokens", 24, "--memory", "none")
KINDS = {
    "greedy": (),
    "sampled": ("--temperature", 3.0, "--top-k", 50),
    "seeded": ("--temperature", 3.0, "--seed", 7),
}


@pytest.fixture(scope="module")
def answers(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What runs without faults say."""
    folder = tmp_path_factory.mktemp("answers")
    return {
        kind: launch(folder / kind, "--model", models / "big", *ARGUMENTS, *words, "--quiet").out
        for kind, words in KINDS.items()
    }


def kill_compute(run: Launch, before: int = 0) -> int:
    """Kill the one that is there, once it is another than `before`; its process id."""
    run.wait_for(lambda run: run.process("compute") != before)
    pid = run.process("compute")
    run.send(pid, signal.SIGKILL)
    return pid


def is_ready(run: Launch) -> bool:
    """Whether compute has started and slots hold units."""
    status = status_of(run)
    return status is not None and status["ready"] and any(slot["unit"] is not None for slot in status["slots"])


def restarts(ended: Ended) -> int:
    return len(re.findall(r"compute \(epoch \d+\) ended \(killed by SIGKILL.*\); it is started again", ended.err))


@pytest.mark.parametrize("kind", list(KINDS))
def test_killed_while_it_says_the_answer(models: Path, home: Path, answers: dict[str, str], kind: str) -> None:
    """Twice; the second time while it repeats what was said, or soon after."""
    with Launch(home, "--model", models / "big", *ARGUMENTS, *KINDS[kind]) as run:
        run.wait_for(lambda run: len(run.out) > 12)
        before = run.out
        first = kill_compute(run)
        run.process("compute")
        run.wait_for(lambda run: run.err.count("it is started again") == 1)
        kill_compute(run, first)
        ended = run.ended()
    assert ended.code == 0
    if kind == "sampled":  # every run another answer
        assert ended.out.startswith(before)
        assert ended.out != answers[kind]
    else:
        assert ended.out == answers[kind]
    assert restarts(ended) == 2
    assert re.search(r"^compute   restarted 2 times; its requests were repeated$", ended.err, re.MULTILINE)


@pytest.mark.parametrize("kind", ["greedy", "seeded"])
def test_a_fast_replay_goes_on_behind_the_last_token(
    models: Path, home: Path, answers: dict[str, str], kind: str
) -> None:
    """Nothing of what was shown is computed again, shown twice or missing; what follows may differ."""
    with Launch(home, "--model", models / "big", *ARGUMENTS, *KINDS[kind], "--replay", "fast") as run:
        run.wait_for(lambda run: len(run.out) > 12)
        before = run.out
        kill_compute(run)
        ended = run.ended()
    assert (ended.code, restarts(ended)) == (0, 1)
    assert ended.out.startswith(before)
    assert len(ended.out) > len(before) + 4
    found = re.search(r"it goes on behind ([0-9]+) tokens: what follows may differ", ended.err)
    assert found, ended.err
    assert int(found[1]) >= 3
    passes = re.search(r"^pass .*median of ([0-9]+)", ended.err, re.MULTILINE)
    assert passes, ended.err
    assert int(passes[1]) <= 24, "a pass more for the one that was lost, none again"


def test_killed_while_it_starts(models: Path, home: Path, answers: dict[str, str]) -> None:
    with Launch(home, "--model", models / "big", *ARGUMENTS) as run:
        kill_compute(run)
        ended = run.ended()
    assert (ended.code, ended.out, restarts(ended)) == (0, answers["greedy"], 1)


def test_killed_between_two_lines(models: Path, home: Path, tmp_path: Path) -> None:
    """It had nothing to repeat: the next line finds its successor."""
    arguments = ("--model", models / "gpt2", "--max-new-tokens", 8, *KINDS["seeded"])
    whole = launch(home, *arguments, stdin="cold\nwarm\n")
    with Launch(tmp_path / "killed", *arguments, lines=True) as run:
        run.write("cold\n")
        run.wait_for(lambda run: run.out.endswith("\n"))
        kill_compute(run)
        run.wait_for(lambda run: "it is started again" in run.err)
        run.write("warm\n")
        ended = run.ended()
    assert (ended.code, ended.out, restarts(ended)) == (0, whole.out, 1)


def test_the_budget_is_kept_while_its_successor_starts(models: Path, home: Path, tmp_path: Path) -> None:
    """At the smallest budget, with units in the slots."""
    arguments = ("--model", models / "big", "--prompt", "the ship", "--max-new-tokens", 12, "--loaders", 1)
    refused = launch(home, *arguments, "--memory", "100MiB")
    found = re.search(r"the smallest budget for this model, context and batch is ([0-9]+) MiB", refused.line)
    assert found
    memory = ("--memory", f"{found[1]}MiB", "--sample-memory")
    whole = launch(tmp_path / "whole", *arguments, *memory)
    with Launch(tmp_path / "killed", *arguments, *memory, "--json") as run:
        run.wait_for(is_ready)
        run.send(run.process("compute"), signal.SIGKILL)
        ended = run.ended()
    report = ended.object["report"]
    assert (ended.code, report["compute_restarted"]) == (0, 1)
    assert ended.object["answers"][0]["text"] == whole.out.rstrip("\n")
    assert report["memory"]["peak_nbytes"] <= int(found[1]) * MIB


def test_killed_again_and_again(models: Path, home: Path) -> None:
    """The fourth time within a minute the run ends, with its cause."""
    killed = set()
    with Launch(home, "--model", models / "big", *ARGUMENTS) as run:

        def kill_each(run: Launch) -> bool:
            for pid, title in run.processes().items():
                if title == "hermes: compute":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
            return not run.is_running

        run.wait_for(kill_each)
        ended = run.ended()
    last = ended.err.splitlines()[-1]
    assert ended.code == 42
    why = "compute (epoch 4) ended (killed by SIGKILL): it died 4 times within 60 s; see above"
    assert last.startswith(f"hermes-launch: {why}")
    assert (len(killed), restarts(ended)) == (4, 3)
    assert "Traceback" not in ended.err


def test_stopped_for_ever_while_it_starts(models: Path, home: Path) -> None:
    with Launch(home, "--model", models / "big", *ARGUMENTS, "--timeout", 2) as run:
        run.send(run.process("compute"), signal.SIGSTOP)
        ended = run.ended()
    assert ended.code == 42
    assert ended.err.splitlines()[-1] == (
        "hermes-launch: compute (epoch 1) has done nothing for 2 s: it is stopped; "
        "run it again; on a machine that pauses processes raise --timeout"
    )


def test_stopped_for_a_while(models: Path, home: Path, answers: dict[str, str]) -> None:
    with Launch(home, "--model", models / "big", *ARGUMENTS, "--timeout", 30) as run:
        run.wait_for(lambda run: len(run.out) > 3)
        compute = run.process("compute")
        run.send(compute, signal.SIGSTOP)
        stopped_s = run.now_s
        run.wait_for(lambda run: run.now_s > stopped_s + 3)
        run.send(compute, signal.SIGCONT)
        ended = run.ended()
    assert (ended.code, ended.out, restarts(ended)) == (0, answers["greedy"], 0)
