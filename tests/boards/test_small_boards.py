"""A board that has no room for layers lends its disk to the head instead, where that pays; over real processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from boards.served import Served
from launching import DEADLINE_S, Launch, launch

from hermes_mp.agents.stage_costs import keep_disk_rate
from hermes_mp.core.busy import Reading
from hermes_mp.errors import BudgetTooSmall
from hermes_mp.host.checkpoint import find_checkpoint

MIB = 1 << 20
UNIT_NBYTES, UNIT_NS = 10_000_000, 5_000_000_000  # 2 MB/s


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """340 MB, of which little stays in a small budget."""
    from tiny_models import gpt2

    return gpt2(tmp_path_factory.mktemp("models") / "wide", width=768, layers=12)


@pytest.fixture
def env(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a head that has learned in an earlier run how slow its disk is."""
    cache = str(tmp_path / "cache")
    reading = Reading()
    for number in range(40):
        reading.add(UNIT_NBYTES, number * UNIT_NS, (number + 1) * UNIT_NS)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache)
        keep_disk_rate(find_checkpoint(model), reading, loaders=1)
    return {"XDG_CACHE_HOME": cache, "XDG_CONFIG_HOME": cache, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def shelf(model: Path, tmp_path: Path) -> Iterator[Served]:
    """Its memory holds no compute, let alone layers."""
    flags = ("--model-dir", model, "--memory", "150MiB", "--listen", "127.0.0.1:0", "--loaders", 1)
    board = Served(tmp_path / "shelf", *flags)
    try:
        yield board
    finally:
        board.close()


def words(model: Path, memory: str, tokens: int = 8) -> list[object]:
    return [
        "--model", model, "--prompt", "the ship", "--max-new-tokens", tokens, "--memory", memory,
        "--threads", 1, "--loaders", 1,
    ]  # fmt: skip


def shared(shelf: Served, tmp_path: Path) -> list[object]:
    return ["--boards", shelf.boards_file(tmp_path / "boards.toml")]


def below(board: Served) -> list[str]:
    """The titles of its processes."""
    found = []
    for one in psutil.Process(board.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            found.append(" ".join(one.cmdline()))
    return found


@contextmanager
def borrowing(model: Path, home: Path, tmp_path: Path, env: dict[str, str], shelf: Served) -> Iterator[Launch]:
    """A run that has said something, and reads from the board."""
    with Launch(home / "shared", *words(model, "480MiB", 24), *shared(shelf, tmp_path), env=env) as run:
        run.wait_for(lambda run: run.out and below(shelf))
        yield run


def token_ids(ended: Any) -> list[int]:
    assert ended.code == 0, ended.err
    found: list[int] = ended.object["answers"][0]["token_ids"]
    return found


def test_it_lends_where_the_disk_here_is_slow(
    model: Path, home: Path, tmp_path: Path, env: dict[str, str], shelf: Served
) -> None:
    alone = launch(home / "alone", *words(model, "none"), "--json")
    ended = launch(home / "shared", *words(model, "480MiB"), *shared(shelf, tmp_path), "--json", env=env)
    assert token_ids(ended) == token_ids(alone)
    report = ended.object["report"]
    count = report["remote_loaders"]["shelf"]  # a slow way there takes more
    assert f'board "shelf" runs no layers, and lends its disk to {count} remote loader' in ended.err
    assert {one["board"]: (len(one["layers"]), one["lends_to"]) for one in report["boards"]} == {
        "head": (12, 0), "shelf": (0, count),
    }  # fmt: skip
    assert report["memory"]["peak_nbytes"] <= 480 * MIB


def test_a_plan_says_so(model: Path, tmp_path: Path, env: dict[str, str], shelf: Served) -> None:
    asked = [
        sys.executable, "-m", "hermes_mp.cli.plan", "--model", model, "--memory", "480MiB", "--threads", 1,
        "--loaders", 1, *shared(shelf, tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, asked)), capture_output=True, text=True, env={**os.environ, **env}, timeout=DEADLINE_S, check=True
    )
    assert "shelf reads for head, through " in done.stdout
    assert "left out" not in done.stdout


def test_meanwhile_it_computes_nothing_and_may_be_lost(
    model: Path, home: Path, tmp_path: Path, env: dict[str, str], shelf: Served
) -> None:
    alone = launch(home / "alone", *words(model, "none", 24))
    with borrowing(model, home, tmp_path, env, shelf) as run:
        titles = below(shelf)
        shelf.process.kill()
        ended = run.ended()
    assert (ended.code, ended.out) == (0, alone.out)
    assert not [title for title in titles if "compute" in title], titles
    gone = r'loader \d \(shelf\) \(epoch 1\) ended .*last words: "board shelf .* is gone"'
    assert re.search(gone, ended.err), ended.err
    assert "repeated" not in ended.err  # a unit is read again, no token is made again


def test_a_head_that_computes_anew_goes_on_borrowing(
    model: Path, home: Path, tmp_path: Path, env: dict[str, str], shelf: Served
) -> None:
    alone = launch(home / "alone", *words(model, "none", 24))
    with borrowing(model, home, tmp_path, env, shelf) as run:
        run.send(run.process("compute"), signal.SIGKILL)
        ended = run.ended()
    assert (ended.code, ended.out) == (0, alone.out)
    assert re.search("^loaders   1, and . of shelf", ended.err, re.MULTILINE), ended.err


def test_a_head_that_is_too_small_is_told_so(
    model: Path, home: Path, tmp_path: Path, env: dict[str, str], shelf: Served
) -> None:
    ended = launch(home / "shared", *words(model, "200MiB"), *shared(shelf, tmp_path), env=env)
    assert ended.code == BudgetTooSmall.exit_code
    assert "--memory 200 MiB is too small; the smallest budget" in ended.err
