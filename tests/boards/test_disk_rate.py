"""What a board plans with as its disk's rate: what its last run with others has read, else a short try."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermes_mp.agents.stage_costs import LEAST_READ_NBYTES, disk_rate, keep_disk_rate
from hermes_mp.core.busy import Reading
from hermes_mp.host.checkpoint import Checkpoint, find_checkpoint

MS = 1_000_000
UNIT_NBYTES = 13_000_000


@pytest.fixture
def checkpoint(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return find_checkpoint(models / "big")


def read(units: int) -> Reading:
    """At 77 MB/s, but for the first."""
    reading, at = Reading(), 0
    for number in range(units):
        took = round(UNIT_NBYTES / 77e6 * 1e9) if number else 10 * MS
        reading.add(UNIT_NBYTES, at, at + took)
        at += took
    return reading


def test_what_a_run_has_read_is_planned_with(checkpoint: Checkpoint) -> None:
    assert disk_rate(checkpoint) != pytest.approx(77e6, rel=1e-3)
    keep_disk_rate(checkpoint, read(40), loaders=2)
    assert disk_rate(checkpoint) == pytest.approx(77e6, rel=1e-3)


def test_a_run_that_has_read_little_says_nothing(checkpoint: Checkpoint) -> None:
    before = disk_rate(checkpoint)
    keep_disk_rate(checkpoint, read(LEAST_READ_NBYTES // UNIT_NBYTES), loaders=1)
    keep_disk_rate(checkpoint, Reading(), loaders=1)
    assert disk_rate(checkpoint) == before


def test_a_fresh_measurement_is_planned_with_again(checkpoint: Checkpoint) -> None:
    keep_disk_rate(checkpoint, read(40), loaders=1)
    fresh = disk_rate(checkpoint, fresh=True)
    assert fresh != pytest.approx(77e6, rel=1e-3)
    assert disk_rate(checkpoint) == fresh
