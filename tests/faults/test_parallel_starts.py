"""Many instances on one board, started at the same moment with an empty cache: none is in another's way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from launching import DEADLINE_S, Launch, launch

from hermes_mp.cli import ps

ARGUMENTS = ("--max-new-tokens", 12, "--temperature", 2, "--seed", 3, "--loaders", 2)


def runs_ready(capsys: pytest.CaptureFixture[str]) -> dict[int, list[int]]:
    """The runs that `hermes-ps` finds ready: the process numbers of their loaders by that of the daemon."""
    assert ps.main(["--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    return {run["pid"]: [one["pid"] for one in run["loaders"]] for run in runs if run.get("ready")}


@pytest.mark.parametrize("count", [pytest.param(6, id="6"), pytest.param(20, id="20", marks=pytest.mark.slow)])
def test_all_answer_and_share_what_is_remembered(
    models: Path, tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = launch(tmp_path / "alone", "--model", models / "gpt2", *ARGUMENTS, "--quiet", stdin="the ship\n")
    cache = tmp_path / "cache"
    began_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(
                Launch(
                    tmp_path / str(number), "--model", models / "gpt2", *ARGUMENTS, lines=True,
                    env={"XDG_CACHE_HOME": str(cache)},
                )
            )
            for number in range(count)
        ]  # fmt: skip
        found: dict[int, list[int]] = {}
        while len(found) < count:  # all of them at once
            assert time.monotonic() < began_s + DEADLINE_S, f"only {len(found)} are ready"
            for run in runs:
                assert run.is_running, run.err
            found = runs_ready(capsys)
        assert set(found) == {run.pid for run in runs}
        assert sorted(map(sorted, found.values())) == sorted(sorted(run.loaders()) for run in runs)
        for run in runs:
            run.write("the ship\n")
        ended = [run.ended() for run in runs]
    assert [(one.code, one.out) for one in ended] == [(0, alone.out)] * count
    assert not os.listdir(os.environ["XDG_RUNTIME_DIR"])
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} >= {"units", "profiles"}
    for path in files:
        assert path.suffix == ".json", "a file that was not finished"
        json.loads(path.read_text())
    again = launch(
        tmp_path / "again", "--model", models / "gpt2", *ARGUMENTS, stdin="the ship\n",
        env={"XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip
    assert (again.code, again.out) == (0, alone.out)
    assert "out of date" not in again.err


def test_one_that_is_killed_does_not_disturb_the_other(models: Path, home: Path, tmp_path: Path) -> None:
    arguments = ("--model", models / "big", "--prompt", "the ship", "--max-new-tokens", 40, "--memory", "none")
    with Launch(home, *arguments) as one, Launch(tmp_path / "other", *arguments) as other:
        for run in (one, other):
            run.wait_for(lambda run: len(run.out) > 3)
        one.send(one.pid, signal.SIGKILL)
        assert one.ended().code == -signal.SIGKILL
        ended = other.ended()
    alone = launch(tmp_path / "alone", *arguments, "--quiet")
    assert (ended.code, ended.out) == (0, alone.out)
    assert "ended (" not in ended.err
