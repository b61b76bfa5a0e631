"""What `hermes-board serve` tells a service manager, on a real socket: sd_notify(3), and a watchdog of its loop."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import Launch
from served import Served
from tiny_models import gpt2

from hermes_mp.host.supervisor import Watchdog, tell_supervisor

WITHIN_S = 30.0
ASKED_USEC = 1_000_000  # so a word every half second
SILENT_S = 1.5


class Manager:
    """Hears what systemd would."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)

    def next(self, within_s: float = WITHIN_S) -> str | None:
        """What is said next; None where nothing is."""
        if not select.select([self._socket], [], [], within_s)[0]:
            return None
        return self._socket.recv(1000).decode()

    def skip(self) -> None:
        """What was said until now."""
        while self.next(0.0) is not None:
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    found = Manager(path)
    yield found
    found.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpt2(tmp_path_factory.mktemp("board-models") / "gpt2", layers=4)


def test_a_board_says_that_it_is_ready_that_it_lives_and_that_it_leaves(
    manager: Manager, model: Path, tmp_path: Path
) -> None:
    env = {"WATCHDOG_USEC": str(ASKED_USEC), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with Served(tmp_path / "config", "--model-dir", model, "--listen", "127.0.0.1:0", env=env) as board:
        assert manager.next() == "READY=1"
        assert [manager.next() for _ in range(3)] == ["WATCHDOG=1"] * 3  # idle

        flags = ["--model", model, "--boards", board.boards_file(tmp_path / "boards.toml"), "--max-new-tokens", 2]
        env = {"XDG_CACHE_HOME": str(tmp_path / "head-cache")}
        with Launch(tmp_path / "home", *flags, "--split", "head:2,shelf:2", env=env, lines=True) as head:
            head.write("the ship\n")
            board.wait_for("runs a stage")
            assert [manager.next() for _ in range(3)] == ["WATCHDOG=1"] * 3  # while it starts
            head.wait_for(lambda run: run.out)
            manager.skip()
            assert [manager.next() for _ in range(3)] == ["WATCHDOG=1"] * 3  # while it waits for more
            head.write("the crab\n")
            assert head.ended().code == 0
            assert "going on without" not in head.err

        os.kill(board.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, board.process.pid, os.WSTOPPED | os.WNOWAIT)
        manager.skip()
        assert manager.next(SILENT_S) is None
        os.kill(board.process.pid, signal.SIGCONT)
        assert manager.next() == "WATCHDOG=1"

        manager.skip()
        os.kill(board.process.pid, signal.SIGTERM)
        last = manager.next()
        while last == "WATCHDOG=1":
            last = manager.next()
        assert last == "STOPPING=1"
        assert board.ended() == 128 + signal.SIGTERM
        assert "Traceback" not in board.said


def test_without_a_manager_or_without_its_wish_nothing_is_said(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked, pid in (("", None), ("0", None), ("x", None), (str(ASKED_USEC), "1")):  # the last: another's watchdog
        monkeypatch.setenv("WATCHDOG_USEC", asked)
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        if pid is not None:
            monkeypatch.setenv("WATCHDOG_PID", pid)
        Watchdog().alive()
    assert manager.next(0.0) is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    monkeypatch.setenv("WATCHDOG_USEC", str(ASKED_USEC))
    watchdog = Watchdog()
    began_s = time.monotonic()
    while time.monotonic() - began_s < 0.1:
        watchdog.alive()
    assert [manager.next(0.0), manager.next(0.0)] == ["WATCHDOG=1", None]  # not in every turn
    monkeypatch.delenv("NOTIFY_SOCKET")
    tell_supervisor("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    tell_supervisor("READY=1")


def test_a_socket_without_a_name_in_the_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"hermes-mp-test-{os.getpid()}"
    manager = Manager("\0" + name)
    try:
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        tell_supervisor("STATUS=here")
        assert manager.next(0.0) == "STATUS=here"
    finally:
        manager.close()
