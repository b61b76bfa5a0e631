"""Run directories: private, short enough for a socket, gone after SIGKILL, and never anybody else's."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hermes_mp.errors import BadOption, InvariantBroken
from hermes_mp.host.rundir import RunDirectory, remove_path
from hermes_mp.host.wire import Hub

DEADLINE_S = 30.0

OWNER_PROCESS = """
import sys
from hermes_mp.host.rundir import RunDirectory
owned = RunDirectory.create()
(owned.path / "hub").touch()
print(owned.path, flush=True)
sys.stdin.read()
"""

BUSY_PROCESS = """
import os
from hermes_mp.host.rundir import RunDirectory
for _ in range(150):
    owned = RunDirectory.create()
    (owned.path / "hub").touch()
    assert sorted(os.listdir(owned.path)) == ["hub", "lock"], "swept while it was owned"
    owned.remove()
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place for run directories, this test's own."""
    place = tmp_path / "run"
    place.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    return place


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another, for temporary files, taken where the first will not do."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)  # where the module remembers its choice
    return place


@contextmanager
def owner() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that owns a run directory until it is killed or the block ends."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_it_is_fresh_and_private(base: Path) -> None:
    first, second = RunDirectory.create(), RunDirectory.create()
    assert {first.path, second.path} == set(base.iterdir())
    for directory in (first, second):
        assert directory.path.name.startswith("hermes-mp-")
        assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
        assert os.listdir(directory.path) == ["lock"]
        directory.remove()
    assert not list(base.iterdir())


def test_removing_takes_all_it_holds_and_may_be_repeated(base: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    directory = RunDirectory.create()
    (directory.path / "hub").touch()
    directory.remove()
    directory.remove()
    assert not list(base.iterdir())
    assert len(os.listdir("/proc/self/fd")) == before


def test_children_may_remove_it_all_at_once(base: Path) -> None:
    for _ in range(20):
        directory = RunDirectory.create()
        for name in ("hub", "a", "b"):
            (directory.path / name).touch()
        failures: list[BaseException] = []

        def remove(path: Path = directory.path, failures: list[BaseException] = failures) -> None:
            try:
                remove_path(path)
            except BaseException as failure:
                failures.append(failure)
                raise

        threads = [threading.Thread(target=remove) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert not failures
        assert not list(base.iterdir())
        directory.remove()  # its owner finds nothing and is content


def test_only_run_directories_are_removed(tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "letter").touch()
    with pytest.raises(InvariantBroken, match="no run directory"):
        remove_path(precious)
    assert (precious / "letter").exists()


# --- where it is made


def test_without_a_runtime_directory_it_is_made_among_temporary_files(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    directory = RunDirectory.create()
    assert directory.path.parent == temporary
    directory.remove()


@pytest.mark.parametrize("why", ["missing", "open to others", "a file", "relative", "too long"])
def test_a_runtime_directory_that_will_not_do_is_passed_over(
    why: str, base: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    if why == "missing":
        base.rmdir()
    elif why == "open to others":
        base.chmod(0o755)
    elif why == "a file":
        base.rmdir()
        base.touch(mode=0o700)
    elif why == "relative":
        monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
    else:
        long = base / ("x" * 90)
        long.mkdir(mode=0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    directory = RunDirectory.create()
    assert directory.path.parent == temporary
    directory.remove()


def test_the_longest_path_that_is_let_through_takes_a_socket_and_the_next_is_refused(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    room = 107 - len("/hermes-mp-01234567/hub")
    longest = temporary / ("x" * (room - len(os.fsencode(temporary)) - 1))
    longest.mkdir()
    monkeypatch.setenv("TMPDIR", str(longest))
    monkeypatch.setattr(tempfile, "tempdir", None)
    directory = RunDirectory.create()
    hub = Hub(directory.path)
    assert len(hub.endpoint) == len("ipc://") + 107
    hub.close()
    directory.remove()
    longest = longest.rename(f"{longest}x")
    monkeypatch.setenv("TMPDIR", str(longest))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(BadOption, match="1 bytes too long for a socket") as refusal:
        RunDirectory.create()
    assert "TMPDIR" in refusal.value.line()
    assert not list(longest.iterdir())


def test_a_place_that_takes_no_directory_is_refused(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert tempfile.gettempdir() == str(temporary)
    temporary.rmdir()
    with pytest.raises(BadOption, match=f"no run directory in {temporary}: No such file") as refusal:
        RunDirectory.create()
    assert "TMPDIR" in refusal.value.line()


# --- what dead owners left


def test_what_a_killed_owner_left_is_swept_and_what_a_living_one_has_is_not(base: Path) -> None:
    with owner() as (killed, left), owner() as (_, living):
        killed.kill()
        killed.wait(DEADLINE_S)
        assert sorted(os.listdir(left)) == ["hub", "lock"]
        directory = RunDirectory.create()
        assert not left.exists()
        assert sorted(os.listdir(living)) == ["hub", "lock"]
        directory.remove()
        assert list(base.iterdir()) == [living]


def test_a_process_id_in_use_again_protects_nothing(base: Path) -> None:
    """The owner is who holds the lock, whatever was written down: here a living process is named, and is not it."""
    left = base / "hermes-mp-0badcafe"
    left.mkdir()
    (left / "lock").write_text(str(os.getpid()))
    RunDirectory.create().remove()
    assert not left.exists()


def test_a_half_removed_one_is_swept(base: Path) -> None:
    (base / "hermes-mp-00000000").mkdir()
    RunDirectory.create().remove()
    assert not list(base.iterdir())


def test_a_sweep_that_cannot_finish_leaves_the_lock_for_the_next(base: Path) -> None:
    left = base / "hermes-mp-stubborn"
    (left / "folder").mkdir(parents=True)
    (left / "lock").touch()
    RunDirectory.create().remove()
    assert sorted(os.listdir(left)) == ["folder", "lock"]
    (left / "folder").rmdir()
    RunDirectory.create().remove()
    assert not left.exists()


def test_what_is_not_ours_stays(base: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").touch()
    (base / "hermes-mp-symlink").symlink_to(precious)
    (base / "hermes-mp-file").touch()
    (base / "other").mkdir()
    strange = base / "hermes-mp-strange"
    (strange / "folder").mkdir(parents=True)
    linked = base / "hermes-mp-linked"
    linked.mkdir()
    (linked / "lock").symlink_to(precious / "lock")
    before = sorted(base.iterdir())
    RunDirectory.create().remove()
    assert sorted(base.iterdir()) == before
    assert (precious / "lock").exists()


def test_many_that_come_and_go_at_once_do_not_sweep_each_other(base: Path) -> None:
    """Each makes, sweeps and removes 150 times; a newborn whose lock is not held yet must survive or be made anew."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY_PROCESS], stderr=subprocess.PIPE) for _ in range(4)]
    for process in busy:
        _, complaints = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, complaints.decode()
    assert not list(base.iterdir())
