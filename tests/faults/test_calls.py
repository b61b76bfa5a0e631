"""System calls that fail, one place each, as the campaign `calls` has them fail at every place."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from campaigns.calls import ROOT, SHIM
from campaigns.shim.failing_calls import CALLS, SHORT
from launching import Launch, launch

ARGUMENTS = ("--prompt", "the ship", "--max-new-tokens", 24, "--memory", "none", "--loaders", 2)
SPAWN = "launch spawn hermes_mp/host/children.py spawn "
READ = "loader preadv hermes_mp/host/reading.py _read_direct "
STARTED = 3  # two loaders and compute


@pytest.fixture(scope="module")
def answer(models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run without faults says."""
    home = tmp_path_factory.mktemp("answer") / "home"
    return launch(home, "--model", models / "big", *ARGUMENTS, "--quiet").out


def failing(home: Path, site: str, how: int | str, first: int = 1, forever: bool = False) -> dict[str, str]:
    """The environment of a run where it fails."""
    plan = {"site": site, "how": how, "first": first, "forever": forever, "fired": str(home.with_suffix(".fired"))}
    return {"PYTHONPATH": f"{SHIM}:{ROOT}", CALLS: json.dumps(plan)}


def kill(run: Launch, title: str) -> None:
    """Once all are up and something was answered."""
    run.wait_until_at_work(2)
    run.send(run.process(title), signal.SIGKILL)


def test_a_loader_that_cannot_be_started_again_at_once_is_so_later(models: Path, home: Path, answer: str) -> None:
    env = failing(home, SPAWN, errno.EAGAIN, STARTED + 1)
    with Launch(home, "--model", models / "big", *ARGUMENTS, env=env) as run:
        kill(run, "loader 1")
        ended = run.ended()
    assert (ended.code, ended.out) == (0, answer)
    assert "loader 1 (epoch 2) cannot be started: Resource temporarily unavailable\n" in ended.err


def test_a_loader_that_cannot_be_started_again_is_given_up(models: Path, home: Path) -> None:
    """The run would end before that: it waits for a line."""
    env = failing(home, SPAWN, errno.ENOMEM, STARTED + 1, forever=True)
    with Launch(home, "--model", models / "big", *ARGUMENTS[2:], env=env, lines=True) as run:
        run.write("the ship\n")
        run.wait_for(lambda run: "\n" in run.out)
        kill(run, "loader 1")
        run.wait_for(lambda run: "going on with 1 loader: loader 1, it died 6 times within 30 s" in run.err)
        run.write("the ship\n")
        ended = run.ended()
    first, second = ended.out.splitlines()
    assert (ended.code, first) == (0, second)


def test_compute_that_cannot_be_started_again_at_once_is_so_later(models: Path, home: Path, answer: str) -> None:
    env = failing(home, SPAWN, errno.EAGAIN, STARTED + 1)
    with Launch(home, "--model", models / "big", *ARGUMENTS, env=env) as run:
        kill(run, "compute")
        ended = run.ended()
    assert (ended.code, ended.out) == (0, answer)
    assert "compute (epoch 1) ended (killed by SIGKILL); it is started again" in ended.err


def test_compute_that_cannot_be_started_again_ends_the_run(models: Path, home: Path) -> None:
    env = failing(home, SPAWN, errno.EMFILE, STARTED + 1, forever=True)
    with Launch(home, "--model", models / "big", *ARGUMENTS, env=env) as run:
        kill(run, "compute")
        ended = run.ended()
    assert ended.code == 42
    assert "hermes-launch: compute (epoch 4): it cannot be started again: Too many open files" in ended.err
    assert "Traceback" not in ended.err


def test_without_a_process_there_is_no_run(models: Path, home: Path) -> None:
    ended = launch(
        home, "--model", models / "big", *ARGUMENTS, env=failing(home, SPAWN, errno.EAGAIN, 2, forever=True)
    )
    assert ended.code == 35
    assert re.match(r"the system refused host/children\.py, line \d+ \(spawn\): Resource temp", ended.line)


@pytest.mark.parametrize("how", [errno.EIO, errno.ENOMEM, SHORT])
def test_a_read_that_fails_once_is_repeated(models: Path, home: Path, answer: str, how: Any) -> None:
    ended = launch(home, "--model", models / "big", *ARGUMENTS, env=failing(home, READ, how, 5))
    assert (ended.code, ended.out) == (0, answer)
    assert home.with_suffix(".fired").exists()


def test_a_read_that_always_fails_names_file_offset_tensor_and_unit(models: Path, home: Path) -> None:
    ended = launch(home, "--model", models / "big", *ARGUMENTS, env=failing(home, READ, errno.EIO, 5, forever=True))
    assert ended.code == 31
    file = re.escape(os.path.realpath(models / "big" / "model.safetensors"))
    where = r"cannot be read at byte \d+: Input/output error \(in \S+, of unit \d+\)"
    assert re.fullmatch(rf"hermes-launch: {file} {where}; check the disk .*", ended.err.splitlines()[-1])


def test_a_row_that_cannot_be_read_names_its_tensor(models: Path, home: Path) -> None:
    """Within a budget compute reads rows of embeddings, and what is small, itself."""
    env = failing(home, "compute preadv hermes_mp/host/reading.py _read_blocks ", errno.EIO, 2, forever=True)
    ended = launch(home, "--model", models / "big", *ARGUMENTS, "--memory", "400MiB", env=env)
    assert ended.code == 31
    assert re.search(r"model\.safetensors cannot be read at byte \d+: Input/output error \(in \S+\)", ended.line)


def test_a_loader_that_cannot_look_at_its_memory_is_replaced(models: Path, home: Path, answer: str) -> None:
    """Not told as a start-up that failed: it may pass."""
    env = failing(home, "loader fstat hermes_mp/host/arena.py sealed_nbytes ", errno.ENOMEM)
    ended = launch(home, "--model", models / "big", *ARGUMENTS, env=env)
    assert (ended.code, ended.out) == (0, answer)
    assert re.search(r"loader \d \(epoch 1\) ended \(exit code 35\), its last words: .*; it is replaced", ended.err)
