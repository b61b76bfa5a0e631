"""A run directory and a hub, real ones, gone after the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes_mp.host.rundir import RunDirectory
from hermes_mp.host.wire import Hub


@pytest.fixture
def run_dir() -> Iterator[Path]:
    directory = RunDirectory.create()
    yield directory.path
    directory.remove()


@pytest.fixture
def hub(run_dir: Path) -> Iterator[Hub]:
    opened = Hub(run_dir)
    yield opened
    opened.close()
