"""The board that a machine plays: what is set is set, and undone when left."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from hermes_mp.bench import board
from hermes_mp.host.ceilings import Ceiling, Ceilings

RATE = 20e6


@contextmanager
def as_root() -> Iterator[None]:
    """Skip with what is missing where this machine cannot play that."""
    try:
        yield
    except board.Unavailable as error:
        pytest.skip(str(error))


def groups() -> set[Path]:
    return set(board.CGROUPS.glob(f"*/hermes-bench-{os.getpid()}-*"))


def written(path: Path, nbytes: int) -> Path:
    path.write_bytes(os.urandom(nbytes))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return path


def test_a_file_is_evicted(tmp_path: Path) -> None:
    path = written(tmp_path / "file", 8 << 20)
    if board.cached_share(path) < 1.0:
        pytest.skip("this file system tells nothing of its page cache")
    assert board.evict([path]) == 0.0
    path.read_bytes()
    assert board.cached_share(path) == 1.0


@pytest.mark.parametrize("free_mib", [400, 32, 0, -5])
def test_memory_is_touched_and_given_back(free_mib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is free in the tightest group half at most."""

    def look(_: object) -> list[Ceiling]:
        return [Ceiling("machine", 1 << 40, 1 << 39, 0), Ceiling("group", 1 << 30, free_mib << 20, 0)]

    monkeypatch.setattr(Ceilings, "look", look)
    taken: list[int] = []
    make = mmap.mmap

    def noted(fd: int, nbytes: int, **how: int) -> mmap.mmap:
        taken.append(nbytes)
        return make(fd, nbytes, **how)

    monkeypatch.setattr(board.mmap, "mmap", noted)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    rss_nbytes = psutil.Process().memory_info().rss
    board.touch_memory(128 << 20)
    touched = min(128 << 20, max(0, free_mib << 19))
    assert taken == ([touched] if touched else [])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before >= touched >> 21  # in huge pages
    assert psutil.Process().memory_info().rss < rss_nbytes + (8 << 20)


def test_reads_are_capped_and_the_group_is_gone_afterwards(tmp_path: Path) -> None:
    path = written(tmp_path / "file", 16 << 20)
    words = ["dd", f"if={path}", "of=/dev/null", "bs=1M", "iflag=direct"]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this file system takes no direct reads")
    before = groups()
    with as_root(), board.read_cap(tmp_path, RATE) as group:
        started = time.monotonic()
        subprocess.run(words, check=True, capture_output=True, preexec_fn=lambda: group.enter(os.getpid()))
        assert time.monotonic() - started > 0.6 * path.stat().st_size / RATE
        assert groups() - before == {group.folder}
        board.change_cap(group, tmp_path, 2 * RATE)
        assert group.read(board.READ_CAP).split()[1] == str(round(2 * RATE))
    assert groups() == before


def test_what_still_runs_in_a_group_is_ended_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "EMPTY_S", 0.2)
    with as_root(), board.memory_limit(64 << 20) as group:
        process = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: group.enter(os.getpid()))
        assert group.read("cgroup.procs").split() == [str(process.pid)]
        assert board.oom_kills(group) == 0
    assert process.wait(10) == -9
    assert not group.folder.exists()


def test_groups_of_a_benchmark_that_was_killed_are_removed_by_the_next() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with as_root(), board.memory_limit(64 << 20) as group:
        orphan = group.folder.with_name(f"hermes-bench-{ended.pid}-0")
        orphan.mkdir()
        with board.memory_limit(64 << 20):
            assert not orphan.exists()
            assert group.folder.exists()


def test_too_large_a_process_is_killed_and_counted() -> None:
    with as_root(), board.memory_limit(32 << 20) as group:
        words = ["python3", "-c", "bytearray(256 << 20)"]
        done = subprocess.run(words, capture_output=True, preexec_fn=lambda: group.enter(os.getpid()))
        assert done.returncode == -9
        assert board.oom_kills(group) == 1


def test_this_process_comes_home(tmp_path: Path) -> None:
    home = Path("/proc/self/cgroup").read_text()
    with as_root(), board.capped_disk(tmp_path, 100), board.preferred():
        assert Path("/proc/self/cgroup").read_text() != home
    assert Path("/proc/self/cgroup").read_text() == home


def test_a_setting_is_restored_even_after_an_error(tmp_path: Path) -> None:
    knob = tmp_path / "knob"
    for before, after in (("8192\n", "8192"), ("always [advise] never\n", "advise")):
        knob.write_text(before)
        with pytest.raises(KeyError), board.setting(knob, "128") as said:
            raise KeyError
        assert said == "128"
        assert knob.read_text() == after


def test_what_is_missing_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(board.Unavailable, match="has no"), board.setting(tmp_path / "none", "1"):
        pass
    monkeypatch.setattr(board, "CGROUPS", tmp_path)
    with pytest.raises(board.Unavailable, match="no cgroup v1 memory controller"), board.memory_limit(1 << 20):
        pass


def test_a_group_that_is_gone_already_is_no_error(tmp_path: Path) -> None:
    board.remove_group(tmp_path / "gone")


def test_a_group_that_cannot_be_removed_is_left_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One whose processes cannot be listed either."""
    monkeypatch.setattr(board, "EMPTY_S", 0.0)
    monkeypatch.setattr(board, "GIVE_UP_S", 0.2)
    (tmp_path / "child").mkdir()
    board.remove_group(tmp_path)
    assert tmp_path.exists()
    assert f"{tmp_path} is left behind: Directory not empty" in capfd.readouterr().err


def test_a_second_signal_does_not_stop_the_undoing(tmp_path: Path) -> None:
    """Three of them: the first ends it, the others come in the midst of undoing."""
    knob = tmp_path / "knob"
    knob.write_text("8192")
    code = """
import os, signal, sys
from pathlib import Path
from hermes_mp.bench import board
board.undo_when_ended()
with board.setting(Path(sys.argv[1]), "128"):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        print("undone", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code, str(knob)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "undone\n"
    assert done.returncode == 128 + signal.SIGINT
    assert knob.read_text() == "8192"
