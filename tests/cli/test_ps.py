"""`hermes-ps` beside real runs."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from launching import Launch

from hermes_mp.cli import ps

ARGUMENTS = ("--prompt", "the ship", "--max-new-tokens", 60, "--loaders", 2, "--memory", "none")


def runs(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert ps.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["error"]) == (1, None)
    return list(found["runs"])


def restarts(capsys: pytest.CaptureFixture[str]) -> int:
    """Of the loaders of the one run, as many as it answers for."""
    return sum(one["restarts"] for one in runs(capsys)[0].get("loaders", ()))


def test_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert ps.main([]) == 0
    assert capsys.readouterr().out == "nothing runs\n"
    assert runs(capsys) == []


def test_a_run_says_how_it_is(models: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Launch(home, "--model", models / "big", *ARGUMENTS[2:], lines=True) as run:  # it stays for another line
        run.write("the ship\n")
        run.wait_until_at_work(2)
        (found,) = runs(capsys)
        assert (found["pid"], found["kind"], found["ready"]) == (run.pid, "launch", True)
        assert found["model"] == str(models / "big")
        assert [(one["number"], one["pid"]) for one in found["loaders"]] == list(enumerate(run.loaders()))
        assert {one["state"] for one in found["loaders"]} == {"up"}
        assert (found["compute"]["pid"], found["compute"]["state"]) == (run.process("compute"), "up")
        assert len(found["slots"]) == 3
        assert {one["state"] for one in found["slots"]} <= {"empty", "lent", "loaded", "held"}
        assert all((one["unit"] is None) == (one["state"] == "empty") for one in found["slots"])
        read = sorted(unit for one in found["loaders"] for unit in one["reads"])
        assert read == sorted(one["unit"] for one in found["slots"] if one["state"] == "lent")
        assert found["memory_nbytes"].keys() == {"daemon", "loader 0", "loader 1", "compute", "slots"}
        assert min(found["memory_nbytes"].values()) > 1 << 20
        run.send(run.loaders()[0], signal.SIGKILL)
        run.wait_for(lambda run: "ended (killed by SIGKILL" in run.err)
        run.wait_for(lambda run: restarts(capsys) == 1)
        assert ps.main([]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"hermes-launch, process {run.pid}: {models / 'big'}, for 0:")
        assert "restarted 1 time" in shown
        assert "3 of " in shown
        run.send(run.pid, signal.SIGTERM)
        assert run.ended().code == 143


def test_a_daemon_that_does_not_answer(models: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Launch(home, "--model", models / "big", *ARGUMENTS) as run:
        run.wait_for(lambda run: run.out)
        run.send(run.pid, signal.SIGSTOP)
        assert [one["answers"] for one in runs(capsys)] == [False]
        assert ps.main([]) == 0
        assert capsys.readouterr().out.endswith(": its daemon does not answer\n")
        run.send(run.pid, signal.SIGCONT)
        run.send(run.pid, signal.SIGTERM)
        assert run.ended().code == 143


def test_a_caller_of_load_is_shown(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hermes_mp import load

    with load(models / "gpt2", loaders=1):
        (found,) = runs(capsys)
        assert (found["kind"], found["compute"]["state"], len(found["loaders"])) == ("load", "caller", 1)
    assert runs(capsys) == []


def test_wrong_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ps.main(["--jsno"]) == 2
    line = "hermes-ps: unknown argument '--jsno', did you mean --json?; see hermes-ps --help\n"
    assert capsys.readouterr().err == line
