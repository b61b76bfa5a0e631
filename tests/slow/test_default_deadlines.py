"""The deadlines as they are by default: a loader that stands still is worked around after 2 s, killed after 30 s.

And a compute that does nothing ends the run after 60 s.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from campaigns.common import status_of
from launching import Launch

ARGUMENTS = ("--max-new-tokens", 24, "--memory", "none", "--loaders", 2)
SLACK_S = 5.0  # a machine that runs other tests beside these looks later


@pytest.mark.slow
def test_a_loader_that_stands_still(models: Path, home: Path) -> None:
    with Launch(home, "--model", models / "big", *ARGUMENTS, lines=True) as run:
        run.write("the ship\n")
        run.wait_until_at_work(2)
        run.send(run.loaders()[0], signal.SIGSTOP)
        stopped_s = run.now_s
        run.write("the ship\n")
        run.wait_for(is_late)
        assert 1.9 <= run.now_s - stopped_s <= 2 + SLACK_S
        run.wait_for(lambda run: run.out.count("\n") == 2)
        run.wait_for(lambda run: "is killed: " in run.err)
        assert 29.9 <= run.now_s - stopped_s <= 30 + SLACK_S
        run.wait_for(lambda run: "; it is replaced" in run.err)
        run.write("the ship\n")
        ended = run.ended()
    assert ended.code == 0
    assert len(set(ended.out.splitlines())) == 1
    line = r"loader 0 is killed: no progress for 3[0-9]\.[0-9] s while loading unit \d+; it is stopped\n"
    assert re.search(line, ended.err), ended.err


@pytest.mark.slow
def test_compute_that_stands_still(models: Path, home: Path) -> None:
    with Launch(home, "--model", models / "big", *ARGUMENTS, lines=True) as run:
        run.write("the ship\n")
        run.wait_until_at_work(2)
        run.send(run.process("compute"), signal.SIGSTOP)
        stopped_s = run.now_s
        run.wait_for(lambda run: not run.is_running)
        assert 59.5 <= run.now_s - stopped_s <= 60 + 2 * SLACK_S
        ended = run.ended()
    assert ended.code == 42
    assert "compute (epoch 1) has done nothing for 60 s: it is stopped; run it again" in ended.err


def is_late(run: Launch) -> bool:
    status = status_of(run)
    return status is not None and any(slot["late"] for slot in status["slots"])
