"""Who is not paired gets nothing, costs little and ends nobody: crowds, half-open handshakes, hostile first bytes."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hermes_mp.board_messages import Probe, Probed
from hermes_mp.errors import BoardLost
from hermes_mp.host.lan import LanLink

CROWD = 1000
CROWDED_S = 3.0
MOST_GROWTH_KIB = 5 << 10
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + bytes(32)  # of ZMTP 3.1
NO_DESCRIPTORS = 3


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 4 * CROWD), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def served(link: LanLink) -> bool:
    link.send(Probe(1, 9, 9), bytes(9))
    return link.receive(5.0) == Probed(1, 9)


class Crowd:
    """Strangers who connect, say their `words` and then nothing, and come again when they are shown out."""

    def __init__(self, address: str, count: int, words: bytes) -> None:
        host, port = address.rsplit(":", 1)
        self._place, self._words = (host, int(port)), words
        self._selector = selectors.DefaultSelector()
        self.let_in = 0
        for _ in range(count):
            self._come()

    def _come(self) -> None:
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(self._place)
        self._selector.register(one, selectors.EVENT_WRITE)

    def stay(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            for key, event in self._selector.select(0.05):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                if event & selectors.EVENT_WRITE:
                    with contextlib.suppress(OSError):
                        one.send(self._words)
                    self._selector.modify(one, selectors.EVENT_READ)
                    self.let_in += 1
                elif not self._hears(one):
                    self._selector.unregister(one)
                    one.close()
                    self._come()

    def go(self) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    @staticmethod
    def _hears(one: socket.socket) -> bool:
        with contextlib.suppress(OSError):
            return bool(one.recv(1000))
        return False


@pytest.mark.parametrize("words", [b"", GREETING, GREETING + b"\x04\x27\x05HELLO"], ids=["idle", "greeting", "half"])
def test_a_crowd_costs_little_and_a_head_is_served_beside_it(board, words: bytes) -> None:  # type: ignore[no-untyped-def]
    with closing(board.link("laptop")) as link:
        assert served(link)
        before_kib, fds = board.process.kib("VmRSS"), board.process.fds()
        crowd = Crowd(board.address, CROWD, words)
        try:
            crowd.stay(CROWDED_S / 2)
            assert served(link)
            crowd.stay(CROWDED_S / 2)
            assert served(link)
            assert board.process.fds() < fds + 20
            assert board.process.kib("VmHWM") - before_kib < MOST_GROWTH_KIB
            assert crowd.let_in > 10
        finally:
            crowd.go()
        assert served(link)
        with closing(comes_in(board)) as other:
            assert served(other)


def comes_in(board) -> LanLink:  # type: ignore[no-untyped-def]
    """After a crowd: its dead connections are in the kernel's queue before ours."""
    until_s = time.monotonic() + 20
    while True:
        try:
            link: LanLink = board.link("desk")
            return link
        except BoardLost:
            assert time.monotonic() < until_s


def test_a_board_without_descriptors_goes_on(start_board: Callable[..., object]) -> None:
    """ZeroMQ's thread would spin where it may not accept, and end the process where it can make no signaler."""
    board = start_board(f"fds={NO_DESCRIPTORS}")
    with closing(board.link("laptop")) as link:  # type: ignore[attr-defined]
        assert served(link)
        crowd = Crowd(board.address, 50, GREETING)  # type: ignore[attr-defined]
        try:
            crowd.stay(0.5)
            before_s = cpu_s(board.process.pid)  # type: ignore[attr-defined]
            crowd.stay(1.0)
            assert cpu_s(board.process.pid) - before_s < 0.5  # type: ignore[attr-defined]
            assert served(link)
        finally:
            crowd.go()
        with closing(comes_in(board)) as other:
            assert served(other)


def cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


HUGE = (1 << 62).to_bytes(8, "big")
MIB = (1 << 20).to_bytes(8, "big")
FIRST_BYTES = {
    "a huge command": GREETING + b"\x06" + HUGE,
    "a huge message": GREETING + b"\x02" + HUGE,
    "a frame as large as may be": GREETING + b"\x06" + MIB + bytes(1 << 20),
    "a huge frame of ZMTP 1": b"\xff" + HUGE + b"\x00" + bytes(1000),
    "a message before the handshake": GREETING + b"\x00\x05hello",
    "no mechanism": b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48),
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "noise": bytes(range(256)) * 40,
}


@pytest.mark.parametrize("words", FIRST_BYTES.values(), ids=FIRST_BYTES)
def test_hostile_first_bytes(board, words: bytes) -> None:  # type: ignore[no-untyped-def]
    with closing(board.link("laptop")) as link:
        assert served(link)
        before_kib = board.process.kib("VmRSS")
        host, port = board.address.rsplit(":", 1)
        for _ in range(10):
            with socket.create_connection((host, int(port)), timeout=10) as one, contextlib.suppress(OSError):
                one.sendall(words)
                while one.recv(1000):  # until it is shown out
                    pass
        assert served(link)
        assert board.process.kib("VmHWM") - before_kib < MOST_GROWTH_KIB
