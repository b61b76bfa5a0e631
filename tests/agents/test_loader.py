"""Real loader processes on a real hub: bytes arrive, errors are told, and nothing outlives anything it should not."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes_mp.agents.loader import LoaderArguments
from hermes_mp.errors import InvariantBroken, ReadFailed
from hermes_mp.host import memory
from hermes_mp.host.arena import Arena
from hermes_mp.host.children import LOADER_OOM_SCORE, Child, DeathPipe, spawn
from hermes_mp.host.progress import ProgressBoard
from hermes_mp.host.rundir import RunDirectory
from hermes_mp.host.wire import Hub, Peer, Poller
from hermes_mp.messages import (
    Epoch,
    LoaderFailed,
    LoaderNo,
    LoaderStarted,
    LoadFailed,
    LoadUnit,
    OpenFile,
    Range,
    StopLoader,
    Ticket,
    UnitLoaded,
    UnitNo,
)

DEADLINE_S = 20.0
MIB = 1 << 20
ARENA_NBYTES = 64 * MIB
USS_NBYTES = 20_000_000  # the promise, per loader
NUMBER, EPOCH = LoaderNo(2), Epoch(7)
PEER = Peer("loader", NUMBER, EPOCH)

# A daemon that starts one loader, has it read for seconds if told so, and then only waits to be killed.
DAEMON = """
import os, signal, sys, time
from hermes_mp.agents.loader import LoaderArguments
from hermes_mp.host.arena import Arena
from hermes_mp.host.children import DeathPipe, spawn
from hermes_mp.host.progress import ProgressBoard
from hermes_mp.host.rundir import RunDirectory
from hermes_mp.host.wire import Hub, Peer, Poller
from hermes_mp.messages import *
path, nbytes = sys.argv[1], int(sys.argv[2])
run, death, board, arena = RunDirectory.create(), DeathPipe(), ProgressBoard.create(), Arena.create(64 << 20)
hub, poller = Hub(run.path), Poller()
poller.watch(hub)
words = LoaderArguments(0, 1, hub.endpoint, str(run.path), os.getpid(), death.read_fd, arena.fd, board.fd, 4096)
child = spawn("hermes_mp.agents.loader", "loader 0", words.to_words(), words.pass_fds, light=True)
poller.wait(20)
assert isinstance(hub.receive()[1], LoaderStarted)
if nbytes:
    arena.allocate(0, 64 << 20)
    hub.send(Peer("loader", 0, 1), OpenFile(0, path, nbytes))
    ranges = tuple(Range(0, 0, nbytes, 0) for _ in range(50))  # the same bytes again and again, 4 KiB at a time
    hub.send(Peer("loader", 0, 1), LoadUnit(1, 1, 0, 0, 64 << 20, ranges))
    deadline = time.monotonic() + 20
    while not board.read(0):
        assert time.monotonic() < deadline
print(child.pid, run.path, flush=True)
signal.pause()
"""


class Daemon:
    """What a daemon gives a loader, and what it hears from it."""

    def __init__(self) -> None:
        self.run = RunDirectory.create()
        self.hub = Hub(self.run.path)
        self.death = DeathPipe()
        self.arena = Arena.create(ARENA_NBYTES)
        self.board = ProgressBoard.create()
        self.children: list[Child] = []
        self._poller = Poller()
        self._poller.watch(self.hub)

    def start(self, arena_fd: int | None = None, chunk_nbytes: int = MIB) -> Child:
        fds = (self.death.read_fd, self.arena.fd if arena_fd is None else arena_fd, self.board.fd)
        arguments = LoaderArguments(
            NUMBER, EPOCH, self.hub.endpoint, str(self.run.path), os.getpid(), *fds, chunk_nbytes
        )
        title = f"loader {NUMBER}"
        words = arguments.to_words()
        child = spawn("hermes_mp.agents.loader", title, words, arguments.pass_fds, LOADER_OOM_SCORE, light=True)
        self.children.append(child)
        return child

    def hear(self) -> object:
        """The next news of the loader; it must come before the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            self._poller.wait(deadline - time.monotonic())
            news = self.hub.receive()
            if news is not None:
                assert news[0] == PEER
                return news[1]
        raise AssertionError("the loader said nothing")

    def tell(self, *messages: object) -> None:
        for message in messages:
            assert self.hub.send(PEER, message)

    def close(self) -> None:
        for child in self.children:
            child.kill()
            assert child.reap(DEADLINE_S) is not None
        self.hub.close()
        self.run.remove()
        self.death.close()
        self.board.close()
        self.arena.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    yield made
    made.close()


@pytest.fixture
def ready(daemon: Daemon) -> Daemon:
    child = daemon.start()
    assert daemon.hear() == LoaderStarted(NUMBER, EPOCH, child.pid)
    return daemon


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(8 * MIB + 100))
    return path


def order(ticket: int, ranges: list[Range], base: int = 0, room: int = 16 * MIB) -> LoadUnit:
    return LoadUnit(EPOCH, Ticket(ticket), UnitNo(0), base, room, tuple(ranges))


def test_bytes_travel_from_the_file_into_the_slot(ready: Daemon, weights: Path) -> None:
    content = weights.read_bytes()
    base = 4 * MIB
    ready.arena.allocate(base, 16 * MIB)
    tail = Range(0, 8 * MIB - 4096, 4196, 2 * MIB)  # up to the file's last byte
    ready.tell(OpenFile(0, str(weights), len(content)), order(1, [Range(0, 4096, MIB, 0), tail], base))
    before_ns = time.monotonic_ns()
    loaded = ready.hear()
    assert isinstance(loaded, UnitLoaded)
    assert (loaded.loader, loaded.epoch, loaded.ticket, loaded.nbytes) == (NUMBER, EPOCH, 1, MIB + 4196)
    assert loaded.started_ns < loaded.ended_ns <= time.monotonic_ns()
    assert loaded.ended_ns > before_ns - 10**9
    slot = ready.arena.view(base, 16 * MIB)
    assert slot[:MIB] == content[4096 : 4096 + MIB]
    assert slot[2 * MIB : 2 * MIB + 4196] == content[-4196:]
    assert slot[2 * MIB + 8192 :] == bytes(16 * MIB - 2 * MIB - 8192)  # nothing past the last block
    assert ready.board.read(NUMBER) == 2  # chunks


def test_loads_queue_and_all_end(ready: Daemon, weights: Path) -> None:
    content = weights.read_bytes()
    ready.arena.allocate(0, 32 * MIB)
    ready.tell(OpenFile(0, str(weights), len(content)))
    ready.tell(*(order(ticket, [Range(0, ticket * MIB, MIB, 0)], base=ticket * MIB, room=MIB) for ticket in (1, 2, 3)))
    assert sorted(getattr(ready.hear(), "ticket", 0) for _ in range(3)) == [1, 2, 3]
    assert ready.arena.view(MIB, 3 * MIB) == content[MIB : 4 * MIB]


def test_it_finishes_its_work_before_it_stops(ready: Daemon, weights: Path) -> None:
    ready.arena.allocate(0, 16 * MIB)
    ready.tell(OpenFile(0, str(weights), weights.stat().st_size), order(1, [Range(0, 0, MIB, 0)]), StopLoader())
    assert isinstance(ready.hear(), UnitLoaded)
    assert ready.children[0].reap(DEADLINE_S) == "exit code 0"


def test_a_file_of_another_length_is_told(ready: Daemon, weights: Path) -> None:
    ready.tell(OpenFile(0, str(weights), weights.stat().st_size + 1), order(1, [Range(0, 0, 4096, 0)]))
    failed = ready.hear()
    assert isinstance(failed, LoadFailed)
    assert (failed.ticket, failed.exit_code) == (1, ReadFailed.exit_code)
    assert str(weights) in failed.text


def test_a_file_truncated_after_it_was_opened_is_told_and_the_loader_goes_on(ready: Daemon, weights: Path) -> None:
    ready.arena.allocate(0, 16 * MIB)
    ready.tell(OpenFile(0, str(weights), weights.stat().st_size), order(1, [Range(0, 0, MIB, 0)]))
    assert isinstance(ready.hear(), UnitLoaded)
    os.truncate(weights, 6 * MIB)
    ready.tell(order(2, [Range(0, 5 * MIB, 3 * MIB, 0)]), order(3, [Range(0, 5 * MIB, MIB, 0)]))
    news = ready.hear(), ready.hear()  # in any order: they are read side by side
    (failed,) = (one for one in news if isinstance(one, LoadFailed))
    assert (failed.ticket, failed.exit_code) == (2, ReadFailed.exit_code) == (2, 31)
    assert f"ends at byte {6 * MIB}" in failed.text
    assert any(isinstance(one, UnitLoaded) and one.ticket == 3 for one in news)


def test_a_file_may_be_named_anew_while_it_is_read(ready: Daemon, weights: Path) -> None:
    """As when the next plan reads in another way: what was ordered before is read by the old descriptor, or after."""
    content = weights.read_bytes()
    ready.arena.allocate(0, 32 * MIB)
    file = OpenFile(0, str(weights), len(content))
    for ticket in range(1, 9):
        place = order(ticket, [Range(0, 0, 4 * MIB, 0)], base=(ticket % 2) * 8 * MIB, room=8 * MIB)
        ready.tell(OpenFile(0, str(weights), len(content), 4096 * ticket, direct=ticket % 2 == 0), place)
    ready.tell(file)
    news = [ready.hear() for _ in range(8)]
    assert all(isinstance(one, UnitLoaded) for one in news), news
    assert ready.arena.view(0, 4 * MIB) == content[: 4 * MIB]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_signals(ready: Daemon, weights: Path, number: signal.Signals) -> None:
    """A terminal's Ctrl-C is the daemon's to handle; SIGTERM ends it quietly and leaves the run directory alone."""
    child = ready.children[0]
    child.kill(number)
    if number == signal.SIGINT:
        ready.arena.allocate(0, 16 * MIB)
        ready.tell(OpenFile(0, str(weights), weights.stat().st_size), order(1, [Range(0, 0, MIB, 0)]))
        assert isinstance(ready.hear(), UnitLoaded)
    else:
        assert child.reap(DEADLINE_S) == ("exit code 0" if number == signal.SIGTERM else "killed by SIGHUP")
    assert ready.run.path.exists()


def test_a_start_that_fails_is_told_and_named(daemon: Daemon) -> None:
    unsealed = os.memfd_create("unsealed", os.MFD_CLOEXEC)
    child = daemon.start(arena_fd=unsealed)
    os.close(unsealed)
    failed = daemon.hear()
    assert isinstance(failed, LoaderFailed)
    assert (failed.loader, failed.epoch, failed.exit_code) == (NUMBER, EPOCH, InvariantBroken.exit_code)
    assert "sealed" in failed.text
    assert child.reap(DEADLINE_S) == f"exit code {InvariantBroken.exit_code}"


def test_a_kill_in_the_middle_of_a_read_leaves_a_slot_that_can_be_lent_again(daemon: Daemon, weights: Path) -> None:
    content = weights.read_bytes()
    daemon.arena.allocate(0, 16 * MIB)
    first = daemon.start(chunk_nbytes=4096)
    assert isinstance(daemon.hear(), LoaderStarted)
    file = OpenFile(0, str(weights), len(content))
    daemon.tell(file, order(1, [Range(0, 0, 8 * MIB, 0)] * 50))
    deadline = time.monotonic() + DEADLINE_S
    while not daemon.board.read(NUMBER):
        assert time.monotonic() < deadline
    first.kill()
    assert first.reap(DEADLINE_S) == "killed by SIGKILL"
    assert daemon.board.read(NUMBER) < 50 * 8 * MIB // 4096  # so it was in the middle
    assert daemon.hub.receive() is None
    done = daemon.board.read(NUMBER)
    peer = Peer("loader", NUMBER, Epoch(EPOCH + 1))
    arguments = LoaderArguments(
        NUMBER, peer.epoch, daemon.hub.endpoint, str(daemon.run.path), os.getpid(),
        daemon.death.read_fd, daemon.arena.fd, daemon.board.fd, MIB,
    )  # fmt: skip
    second = spawn("hermes_mp.agents.loader", "loader", arguments.to_words(), arguments.pass_fds, light=True)
    daemon.children.append(second)
    poller = Poller()
    poller.watch(daemon.hub)
    poller.wait(DEADLINE_S)
    assert daemon.hub.receive() == (peer, LoaderStarted(NUMBER, Epoch(peer.epoch), second.pid))
    unit = LoadUnit(Epoch(peer.epoch), Ticket(2), UnitNo(0), 0, 16 * MIB, (Range(0, 0, 8 * MIB, 0),))
    assert daemon.hub.send(peer, file)
    assert daemon.hub.send(peer, unit)
    poller.wait(DEADLINE_S)
    news = daemon.hub.receive()
    assert news is not None
    assert isinstance(news[1], UnitLoaded)
    assert daemon.arena.view(0, 8 * MIB) == content[: 8 * MIB]
    assert daemon.board.read(NUMBER) > done


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "reading"])
def test_a_killed_daemon_leaves_no_loader_and_no_run_directory(weights: Path, busy: bool) -> None:
    nbytes = weights.stat().st_size if busy else 0
    command = [sys.executable, "-c", DAEMON, str(weights), str(nbytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        pid, run_dir = daemon.stdout.readline().split()
        assert (Path(run_dir) / "hub").exists()
        pidfd = os.pidfd_open(int(pid))
        try:
            daemon.kill()
            assert select.select([pidfd], [], [], 1.0)[0] == [pidfd]
        finally:
            os.close(pidfd)
    assert not Path(run_dir).exists()


def test_it_is_light(ready: Daemon, weights: Path) -> None:
    child = ready.children[0]
    ready.arena.allocate(0, 16 * MIB)
    ready.tell(OpenFile(0, str(weights), weights.stat().st_size), order(1, [Range(0, 0, 8 * MIB, 0)]))
    assert isinstance(ready.hear(), UnitLoaded)
    assert 0 < memory.uss_nbytes(child.pid) <= USS_NBYTES
    libraries = Path(f"/proc/{child.pid}/maps").read_text()
    assert "zmq" in libraries
    assert not any(name in libraries for name in ("torch", "numpy", "tokenizers", "libssl"))
    title = Path(f"/proc/{child.pid}/cmdline").read_bytes().rstrip(b"\0 ")
    assert title == f"hermes: loader {NUMBER}".encode()
    assert int(Path(f"/proc/{child.pid}/oom_score_adj").read_text()) >= LOADER_OOM_SCORE


