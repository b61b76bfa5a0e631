"""For every test: it must leave no child process, no file descriptor, no memfd and no run directory behind."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

# What libraries keep open for good once they have used it.
KEPT_OPEN = ("/dev/urandom", "/dev/null", "/dev/pts/", "/dev/tty")


for _number, _handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(_number) == signal.SIG_IGN:  # under nohup, or in the background of a script: inherited by all
        signal.signal(_number, _handler)

# Machines that do other things are slow now and then: that fails no test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def _descriptors() -> set[tuple[int, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:  # the one that listed them
            continue
    return found


def _children() -> dict[int, str]:
    return {child.pid: str(child) for child in psutil.Process().children(recursive=True)}


@pytest.fixture(scope="session", autouse=True)
def run_directories() -> Iterator[Path]:
    """Where run directories are made: a private place, so that another session on this machine is not ours to blame."""
    folder = Path(tempfile.mkdtemp(prefix="hermes-tests-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder
    folder.rmdir()


@pytest.fixture(autouse=True)
def nothing_is_left(run_directories: Path) -> Iterator[None]:
    """Fail the test that leaves something."""
    before, children = _descriptors(), _children()
    yield
    if _descriptors() - before:
        gc.collect()  # what only waits for the collector is not lost
    fds = [f"{fd} -> {link}" for fd, link in sorted(_descriptors() - before) if not link.startswith(KEPT_OPEN)]
    assert not fds, f"left open: {fds}"
    left = {pid: line for pid, line in _children().items() if pid not in children}
    assert not left, f"left running: {left}"
    folders = sorted(run_directories.iterdir())
    for folder in folders:
        shutil.rmtree(folder)  # one leak fails one test
    assert not folders, f"left behind: {folders}"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of models to launch, made once, and a cache of unit lists that is not the user's."""
    from tiny_models import make_models

    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a launch runs; it makes the directory itself."""
    return tmp_path / "home"


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A memory cgroup of 64 MiB without swap; skips where we may not make one."""
    from memory_groups import memory_group

    with memory_group("test", 64) as folder:
        if folder is None:
            pytest.skip("no memory cgroup can be made here")
        yield folder
