"""Processes of a benchmark that are killed or cannot be started: a failed row or a group left out, no traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from hermes_mp.bench import peers
from hermes_mp.bench.board import ControlGroup, Unavailable
from hermes_mp.bench.journal import Journal
from hermes_mp.bench.measure import Bench, Peers
from hermes_mp.bench.models import open_model
from hermes_mp.bench.plan import Wanted
from hermes_mp.bench.process import WorkerLost, WorkerProcess
from hermes_mp.bench.raw import Raw
from hermes_mp.bench.reference import Reference


def kill_children() -> None:
    for child in psutil.Process().children():
        os.kill(child.pid, signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            while child.status() != psutil.STATUS_ZOMBIE:
                os.sched_yield()


def test_what_cannot_be_started_is_lost(tmp_path: Path) -> None:
    with pytest.raises(WorkerLost, match=r"/none cannot be started: .*No such file"):
        WorkerProcess(["/none"])
    gone = ControlGroup(tmp_path / "gone")
    with pytest.raises(WorkerLost, match=r"cannot be started: Exception occurred in preexec_fn"):
        WorkerProcess([sys.executable], [gone])
    with pytest.raises(peers.PeerFailed, match="cannot be run: Exception occurred in preexec_fn"):
        peers.run_llama([sys.executable], [gone])


def test_without_its_reader_the_raw_rate_is_unavailable(models: Path, tmp_path: Path) -> None:
    model = open_model(str(models / "mlm"), tmp_path, print)
    with Raw(model, [], [], 1e9) as raw:
        raw.measure([1], None)
        assert raw.rate(1) > 0
        raw.measure([1, 2], 1000.0)
        assert (raw.rate(1), raw.rate(2)) == (1000.0, 2000.0)  # whatever a cap lets pass at first
        kill_children()
        with pytest.raises(Unavailable, match="its reader was lost: killed by SIGKILL"):
            raw.measure([1], None)
    with pytest.raises(Unavailable, match=r"its reader was lost: .* cannot be started"):
        Raw(model, [ControlGroup(tmp_path / "gone")], [], 1e9)


def test_a_reference_that_was_killed_is_begun_anew(models: Path, tmp_path: Path) -> None:
    model = open_model(str(models / "mlm"), tmp_path, print)
    with Reference(Wanted((model.facts.name,)), model) as reference:
        assert None not in reference.measure()
        kill_children()
        assert reference.measure() == (None, None)
        assert None not in reference.measure()


def test_a_peer_that_cannot_be_started_is_a_failed_row(models: Path, tmp_path: Path) -> None:
    model = open_model(str(models / "mlm"), tmp_path, print)
    wanted = Wanted((model.facts.name,), modes=(), peers=("accelerate",), rounds=1)
    (group,) = wanted.groups()
    journal = Journal(None, {})
    Bench(wanted, journal, Peers(accelerate_python=tmp_path / "none"), print, None).run(group, model)
    assert "cannot be started" in journal.failed(group.label, "accelerate")
    assert not journal.notes[group.label].left_out
