"""The disk of the model stops answering, while a run starts or reads, and not even SIGKILL ends who waits for it."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hanging_disk import Served, hanging_disk
from launching import Launch, launch

# Without a budget: a window, so that all units are read in every pass.
ARGUMENTS = (
    "--prompt", "the ship", "--max-new-tokens", 40, "--memory", "none", "--loaders", 2,
    "--soft-deadline", 0.3, "--hard-deadline", 1,
)  # fmt: skip
LONG_S = 60.0  # two waits for the end of what was killed take five each


@pytest.fixture
def mounted(models: Path, tmp_path: Path) -> Iterator[tuple[Path, Served]]:
    """A model on such a disk."""
    directory, mount_point = tmp_path / "on disk", tmp_path / "mounted"
    shutil.copytree(models / "big", directory)
    mount_point.mkdir()
    with hanging_disk(directory, mount_point) as disk:
        if disk is None:
            pytest.skip("no file system of our own can be mounted here")
        yield mount_point, disk


def test_a_disk_that_answers(models: Path, home: Path, tmp_path: Path, mounted: tuple[Path, Served]) -> None:
    """This one does what others do."""
    whole = launch(home, "--model", models / "big", *ARGUMENTS)
    found = launch(tmp_path / "mine", "--model", mounted[0], *ARGUMENTS)
    assert (found.code, found.out) == (0, whole.out)


MOMENTS: dict[str, Callable[[Launch], object]] = {
    "while compute starts": lambda run: len(run.loaders()) == 2 and "hermes: compute" in run.processes().values(),
    "in the midst of an answer": lambda run: len(run.out) > 8,
}


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_the_run_ends_and_names_the_disk(home: Path, mounted: tuple[Path, Served], moment: str) -> None:
    """Whoever waits there is left behind, and said to be."""
    model, disk = mounted
    with Launch(home, "--model", model, *ARGUMENTS, "--timeout", 4) as run:
        run.wait_for(MOMENTS[moment])
        disk.hang()
        hung_s = run.now_s
        run.wait_for(lambda run: not run.is_running)
        took_s = run.now_s - hung_s
        disk.go_on()
        ended = run.ended()
    assert took_s < LONG_S
    assert ended.code in (31, 42)
    assert f"hanging on {model}" in ended.err.replace("(hanging on", "hanging on")
    assert "Traceback" not in ended.err
    assert re.search(r"^hermes-launch: \w+.* cannot be killed", ended.err, re.MULTILINE)


def test_ctrl_c_on_a_dead_disk(home: Path, mounted: tuple[Path, Served]) -> None:
    model, disk = mounted
    with Launch(home, "--model", model, *ARGUMENTS) as run:
        run.wait_for(MOMENTS["in the midst of an answer"])
        disk.hang()
        run.wait_for(lambda run: "is killed: no progress" in run.err)
        asked_s = run.now_s
        run.send(run.pid, signal.SIGINT)
        run.wait_for(lambda run: not run.is_running)
        took_s = run.now_s - asked_s
        disk.go_on()
        ended = run.ended()
    assert ended.code == 130
    assert took_s < LONG_S


def test_a_disk_that_answers_again(models: Path, home: Path, tmp_path: Path, mounted: tuple[Path, Served]) -> None:
    """Before anybody gives up: nothing but time was lost."""
    model, disk = mounted
    whole = launch(tmp_path / "whole", "--model", models / "big", *ARGUMENTS).out
    with Launch(home, "--model", model, *ARGUMENTS) as run:
        run.wait_for(MOMENTS["in the midst of an answer"])
        disk.hang()
        run.wait_for(lambda run: "is killed: no progress" in run.err)
        disk.go_on()
        ended = run.ended()
    assert (ended.code, ended.out) == (0, whole)
