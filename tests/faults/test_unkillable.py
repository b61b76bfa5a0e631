"""A loader that SIGKILL does not end: the run goes on without it and its slots, and ends without waiting for it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from campaigns.common import status_of
from launching import Launch, launch
from remembered import change, entry_of

# Without a budget: a window, so that all units are read in every pass.
ARGUMENTS = ("--prompt", "the ship", "--memory", "none", "--soft-deadline", 0.2, "--hard-deadline", 0.5)
FREEZER = Path("/sys/fs/cgroup/freezer")
LONG_S = 30.0  # the wait for the end of what was killed takes five


class Freezer:
    """A cgroup (v1) whose processes do nothing, not even die: in state D, as one that waits for a disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def freeze(self, *pids: int) -> None:
        for pid in pids:
            (self._folder / "cgroup.procs").write_text(str(pid))
        (self._folder / "freezer.state").write_text("FROZEN")

    def thaw(self) -> None:
        (self._folder / "freezer.state").write_text("THAWED")


@pytest.fixture
def freezer() -> Iterator[Freezer]:
    folder = FREEZER / f"hermes-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("no freezer cgroup (v1) can be made here")
    made = Freezer(folder)
    yield made
    made.thaw()
    deadline = time.monotonic() + 20
    while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)  # what was killed ends only now
    folder.rmdir()


@contextmanager
def frozen(freezer: Freezer, run: Launch, count: int) -> Iterator[None]:
    """So many of its loaders, until the context is left."""
    freezer.freeze(*run.loaders()[:count])
    try:
        yield
    finally:
        freezer.thaw()


def test_the_run_goes_on_without_it(models: Path, home: Path, tmp_path: Path, freezer: Freezer) -> None:
    words = ("--model", models / "big", *ARGUMENTS, "--max-new-tokens", 24)
    answer = launch(tmp_path / "whole", *words, "--quiet").out
    with Launch(home, *words, "--loaders", 3, lines=True) as run:
        run.wait_until_at_work(3)
        with frozen(freezer, run, 1):
            frozen_s = run.now_s
            run.wait_for(lambda run: not run.is_running)
            took_s = run.now_s - frozen_s
        ended = run.ended()
    assert (ended.code, ended.out) == (0, answer)
    assert took_s < LONG_S
    assert ended.err.count("loader 0 (epoch 1) cannot be killed and is left behind: it is waiting for a disk") == 1


def test_its_slots_come_back_when_the_kernel_ends_it(models: Path, home: Path, freezer: Freezer) -> None:
    words = ("--model", models / "big", *ARGUMENTS[2:], "--max-new-tokens", 24, "--loaders", 2)
    with Launch(home, *words, lines=True) as run:
        run.write("the ship\n")
        run.wait_until_at_work(2)
        with frozen(freezer, run, 1):
            run.wait_for(lambda run: "cannot be killed" in run.err)
            run.wait_for(lambda run: "\n" in run.out)
            run.wait_for(lambda run: {"up", "unkillable"} == {one["state"] for one in loaders(run)})
            status = status_of(run)
            assert status is not None
            assert status["degraded"] == ["without what loader 0, epoch 1, holds: it cannot be killed"]
            assert [one["restarts"] for one in loaders(run)] == [0, 0, 1]
        run.wait_for(lambda run: len(loaders(run)) == 2)
        status = status_of(run)
        assert status is not None
        assert status["degraded"] == []
        run.write("the ship\n")
        ended = run.ended()
    assert ended.code == 0
    first, second = ended.out.splitlines()
    assert first == second
    line = r"loader 0 is killed: no progress for [0-9.]+ s while loading unit \d+; it is waiting for a disk\n"
    assert re.search(line, ended.err)
    line = r"going on without loader 0 \(epoch 1\), which is waiting for a disk and reads (\S+) \(.* on .*\): it cannot"
    found = re.search(line, ended.err)
    assert found
    assert found[1] == str(models / "big" / "model.safetensors")


def loaders(run: Launch) -> list[dict[str, object]]:
    status = status_of(run)
    return [] if status is None else list(status["loaders"])


def test_where_no_slot_is_left_the_run_ends_and_names_the_disk(models: Path, home: Path, freezer: Freezer) -> None:
    """Without waiting for what cannot end; its last word says what it left behind."""
    words = ("--model", models / "big", *ARGUMENTS, "--max-new-tokens", 60, "--loaders", 3)
    with Launch(home, *words) as run:
        run.wait_until_at_work(3)
        with frozen(freezer, run, 3):
            frozen_s = run.now_s
            run.wait_for(lambda run: not run.is_running)
            took_s = run.now_s - frozen_s
        ended = run.ended()
    assert ended.code == 31
    assert took_s < LONG_S
    assert "4 of 4 slots are held by loaders that cannot be killed: loader" in ended.err
    assert f"is waiting for a disk and reads {models / 'big' / 'model.safetensors'} (" in ended.err
    assert ended.err.count("cannot be killed and is left behind") == 3


def test_its_slots_are_not_used_for_other_units(models: Path, home: Path, tmp_path: Path, freezer: Freezer) -> None:
    """The remembered units are wrong, and a loader that may still write one of them into its slot cannot be ended."""
    words = ("--model", models / "big", *ARGUMENTS[:4], "--max-new-tokens", 4, "--loaders", 3)
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert launch(tmp_path / "first", *words, env=env).code == 0
    change(entry_of(tmp_path / "cache"), lambda units: units[::-1])
    with Launch(home, *words, env=env) as run:
        run.wait_for(lambda run: len(run.loaders()) == 3)
        with frozen(freezer, run, 1):
            run.wait_for(lambda run: not run.is_running)
        ended = run.ended()
    assert ended.code == 31
    who = r"loader 0 \(epoch 1\), which is waiting for a disk(?: and reads .*)?"
    assert re.search(f"slots cannot be used again: {who} cannot be killed", ended.err), ended.err
