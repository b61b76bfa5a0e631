"""Spawning, killing and outliving: real processes, ended in every way a process can end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes_mp.host.children import PACKAGE_ROOT, Child, DeathPipe, spawn

DEADLINE_S = 20.0

# `main` of a module that no package holds: children find it because they get our import path.
CHILD = """
import json, os, signal, sys

def main(arguments):
    what, fd = arguments[0], int(arguments[1])
    if what == "describe":
        cores = {"ppid": os.getppid(), "session": os.getsid(0), "pid": os.getpid(), "path": sys.path,
                 "modules": sorted(sys.modules), "fds": sorted(os.listdir("/proc/self/fd")), "env": dict(os.environ),
                 "oom": int(open("/proc/self/oom_score_adj").read()), "stdin": os.readlink("/proc/self/fd/0")}
        os.write(fd, json.dumps(cores).encode())
        return 3
    if what == "hang":
        os.write(fd, b"up")
        signal.pause()
    if what == "eat":
        open(arguments[2] + "/cgroup.procs", "w").write(str(os.getpid()))
        bytearray(128 << 20)
    return 0
"""

# A parent of its own kind: starts a child that follows it in the way named, tells the child's pid, and waits to die.
PARENT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from hermes_mp.host.children import DeathPipe, spawn
pipe = DeathPipe()
arguments = [sys.argv[2], str(os.getpid()), str(pipe.read_fd), sys.argv[3]]
child = spawn("follower", "follower", arguments, [pipe.read_fd, int(sys.argv[4])], env=dict(os.environ, UP=sys.argv[4]))
print(child.pid, flush=True)
signal.pause()
"""
FOLLOWER = """
import os, pathlib, select, signal
from hermes_mp.host.deathwatch import DeathWatch, ignore_interrupts

def main(arguments):
    how, parent, fd, mark = arguments
    watch = DeathWatch(int(parent), int(fd))
    ignore_interrupts()
    if how == "kill":
        watch.be_killed_with_parent()
    if how == "clean":
        watch.die_with_parent(lambda: pathlib.Path(mark).touch())
    os.write(int(os.environ["UP"]), b"up")
    if how == "pipe":
        poll = select.poll()
        poll.register(int(fd), 0)
        poll.poll()
        assert watch.parent_is_gone()
        pathlib.Path(mark).touch()
        return 0
    while True:
        signal.pause()
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "some_child.py").write_text(CHILD)
    (tmp_path / "follower.py").write_text(FOLLOWER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_fd, write_fd = os.pipe()
    yield read_fd, write_fd
    for fd in (read_fd, write_fd):
        os.close(fd)


def run(what: str, pipe: tuple[int, int], *more: str, light: bool = True) -> Child:
    return spawn("some_child", "child", [what, str(pipe[1]), *more], [pipe[1]], 900, light)


@pytest.mark.parametrize("light", [True, False])
def test_a_child_gets_what_it_is_meant_to_and_nothing_else(
    modules: Path, pipe: tuple[int, int], light: bool
) -> None:
    stray = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(stray, True)
    child = run("describe", pipe, light=light)
    assert child.reap(DEADLINE_S) == "exit code 3"
    assert child.exit_code == 3
    assert child.pidfd == -1
    assert child.reap(0) == "exit code 3"
    import json

    seen = json.loads(os.read(pipe[0], 1 << 16))
    os.close(stray)
    assert seen["pid"] == seen["session"] == child.pid
    assert seen["ppid"] == os.getpid()
    assert [path for path in seen["path"] if path != PACKAGE_ROOT] == [
        path for path in sys.path if path not in ("", PACKAGE_ROOT)
    ]
    assert PACKAGE_ROOT in seen["path"]
    assert len(seen["fds"]) == 5  # 0, 1, 2, the one passed, and the one that lists them
    assert str(pipe[1]) in seen["fds"]
    assert seen["oom"] >= 900
    assert seen["stdin"] == "/dev/null"
    assert ("site" in seen["modules"]) != light
    assert seen["env"]["XDG_RUNTIME_DIR"] == os.environ["XDG_RUNTIME_DIR"]


def test_a_killed_child_says_so_in_its_cause(modules: Path, pipe: tuple[int, int]) -> None:
    child = run("hang", pipe)
    assert os.read(pipe[0], 2) == b"up"
    assert child.reap(0) is None
    child.kill()
    cause = child.reap(DEADLINE_S)
    assert cause == "killed by SIGKILL"
    child.kill(signal.SIGTERM)  # of a process that is gone: nothing happens


def test_one_that_is_forsaken_is_nothing_of_ours(modules: Path, pipe: tuple[int, int]) -> None:
    child = spawn("some_child", "child", ["hang", str(pipe[1])], [pipe[1]], hear=True)
    assert os.read(pipe[0], 2) == b"up"
    child.forsake()
    assert (child.pidfd, child.voice_fd, child.hear()) == (-1, -1, None)
    os.kill(child.pid, signal.SIGKILL)
    assert os.waitpid(child.pid, 0)[1] == signal.SIGKILL


def test_an_end_makes_the_pidfd_readable(modules: Path, pipe: tuple[int, int]) -> None:
    child = run("hang", pipe)
    os.read(pipe[0], 2)
    assert select.select([child.pidfd], [], [], 0)[0] == []
    child.kill(signal.SIGTERM)
    assert select.select([child.pidfd], [], [], DEADLINE_S)[0] == [child.pidfd]
    assert child.reap(0) == "killed by SIGTERM"


def test_an_out_of_memory_kill_is_named(modules: Path, pipe: tuple[int, int], memory_cgroup: Path) -> None:
    child = run("eat", pipe, str(memory_cgroup))
    assert child.reap(DEADLINE_S) == "killed by SIGKILL, probably by the kernel for lack of memory"


def test_every_kill_for_lack_of_memory_is_counted_once(
    modules: Path, pipe: tuple[int, int], memory_cgroup: Path
) -> None:
    """Three of them, of which the last began when the second had been killed and the first had not been reaped."""
    named = "killed by SIGKILL, probably by the kernel for lack of memory"
    first = run("eat", pipe, str(memory_cgroup))
    assert first.has_ended(DEADLINE_S)
    bystander = run("hang", pipe)
    second = run("eat", pipe, str(memory_cgroup))
    assert second.has_ended(DEADLINE_S)
    third = run("hang", pipe)
    assert [child.reap(0) for child in (first, second)] == [named, named]
    fourth = run("eat", pipe, str(memory_cgroup))
    assert fourth.reap(DEADLINE_S) == named
    for child in (bystander, third):
        os.kill(child.pid, signal.SIGKILL)  # by somebody else: `Child.kill` claims none
        assert child.reap(DEADLINE_S) == "killed by SIGKILL"


def start_parent(modules: Path, how: str, up: int) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-c", PARENT, str(modules), how, str(modules / "mark"), str(up)]
    parent = subprocess.Popen(command, pass_fds=[up], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    return parent, pid


@pytest.mark.parametrize(("how", "cleans"), [("clean", True), ("pipe", True), ("kill", False)])
def test_a_child_does_not_outlive_its_parent(modules: Path, pipe: tuple[int, int], how: str, cleans: bool) -> None:
    parent, pid = start_parent(modules, how, pipe[1])
    pidfd = os.pidfd_open(pid)
    try:
        assert os.read(pipe[0], 2) == b"up"
        parent.kill()
        parent.communicate(timeout=DEADLINE_S)
        assert select.select([pidfd], [], [], 1.0)[0] == [pidfd]
    finally:
        os.close(pidfd)
    assert (modules / "mark").exists() == cleans


def test_a_living_parent_cleans_up_itself(modules: Path, pipe: tuple[int, int]) -> None:
    parent, pid = start_parent(modules, "clean", pipe[1])
    pidfd = os.pidfd_open(pid)
    try:
        assert os.read(pipe[0], 2) == b"up"
        os.kill(pid, signal.SIGINT)  # ignored
        os.kill(pid, signal.SIGTERM)
        assert select.select([pidfd], [], [], DEADLINE_S)[0] == [pidfd]
    finally:
        os.close(pidfd)
        parent.kill()
        parent.communicate(timeout=DEADLINE_S)
    assert not (modules / "mark").exists()


def test_a_fork_of_the_parent_does_not_keep_the_pipe_open() -> None:
    death = DeathPipe()
    read_fd = os.dup(death.read_fd)
    hold_read, hold_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(hold_write)
        os.read(hold_read, 1)  # until the parent is done
        os._exit(0)
    os.close(hold_read)
    try:
        assert select.select([read_fd], [], [], 0)[0] == []
        death.close()
        assert select.select([read_fd], [], [], DEADLINE_S)[0] == [read_fd]
    finally:
        os.close(hold_write)
        os.waitpid(pid, 0)
        os.close(read_fd)
