"""Boards on 127.0.0.1, for machines without root: directories and ports of their own, no links."""

from __future__ import annotations

import subprocess
import sys

import pytest
from testbed import TestBed


def test_boards_on_loopback_have_ports_and_homes_of_their_own() -> None:
    with TestBed(3, loopback=True) as bed:
        assert {bed.address(name) for name in bed.names} == {"127.0.0.1"}
        assert len({bed.port(name) for name in bed.names}) == 3
        words = [sys.executable, "-I", "-c", "import os; print(os.environ['HOME'], os.environ['HERMES_TESTBED_BOARD'])"]
        for name in bed.names:
            run = bed.run(name, words, stdout=subprocess.PIPE, text=True)
            assert run.communicate(timeout=60)[0].split() == [str(bed.home(name)), name]
        with pytest.raises(NotImplementedError):
            bed.link("board2", "cut")
    assert not bed.directory.exists()


def test_what_still_runs_ends_with_the_bed() -> None:
    with TestBed(1, loopback=True) as bed:
        run = bed.run("board1", ["sleep", "1000"])
    assert run.returncode is not None
