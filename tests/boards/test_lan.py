"""Hub and links between boards, over real TCP: what is said, what is not, and who notices that the other has gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from hermes_mp.board_messages import MAX_PAYLOAD_NBYTES, Probe, Probed, StopStage, TensorPart
from hermes_mp.errors import BadMessage, BadOption, BoardLost, DaemonLost, NotAllowed, UnsafeAddress
from hermes_mp.host.lan import LanHub, LanLink, Left, new_keys
from hermes_mp.host.wire import Poller

DEADLINE_S = 10.0


def heard(hub: LanHub) -> object:
    """The next of a hub, whoever says it."""
    poller = Poller()
    poller.watch(hub)
    until_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < until_s:
        found = hub.receive()
        if found is not None:
            return found[1]
        poller.wait(0.1)
    raise AssertionError("nothing was heard")


def served(link: LanLink, nbytes: int = 1000) -> bool:
    """Whether the board answers a probe."""
    link.send(Probe(7, nbytes, nbytes), bytes(nbytes))
    told = link.receive(DEADLINE_S)
    link.payload_into(memoryview(bytearray(nbytes)))
    return told == Probed(7, nbytes)


@pytest.mark.parametrize("nbytes", [0, 1, 65_536, MAX_PAYLOAD_NBYTES])
def test_a_payload_goes_to_its_place_and_back(board, nbytes: int) -> None:  # type: ignore[no-untyped-def]
    with closing(board.link()) as link:
        for _ in range(12):
            assert served(link, nbytes)
    assert [board.next() for _ in range(13)] == ["laptop Probe"] * 12 + ["laptop left"]


def test_a_payload_that_is_not_the_one_announced_is_not_sent() -> None:
    with closing(LanHub("127.0.0.1:0", None, lambda key: None)) as hub, closing(_plain(hub)) as link:
        for message, payload in [
            (TensorPart(0, 4), b"123"), (TensorPart(0, 4), None), (StopStage(1), b""),
            (TensorPart(0, MAX_PAYLOAD_NBYTES + 1), bytes(MAX_PAYLOAD_NBYTES + 1)),
        ]:  # fmt: skip
            with pytest.raises(BadMessage):
                link.send(message, payload)
        link.send(StopStage(3))
        assert heard(hub) == StopStage(3)


def test_a_payload_nobody_takes_is_dropped_and_one_of_another_length_refused() -> None:
    with closing(LanHub("127.0.0.1:0", None, lambda key: None)) as hub, closing(_plain(hub)) as link:
        link.send(TensorPart(0, 4), b"1234")
        link.send(TensorPart(4, 4), b"5678")
        assert heard(hub) == TensorPart(0, 4)
        assert heard(hub) == TensorPart(4, 4)
        with pytest.raises(BadMessage, match="4 bytes"):
            hub.payload_into(memoryview(bytearray(5)))
        with pytest.raises(BadMessage):
            hub.payload_into(memoryview(bytearray(4)))
        link.send(StopStage(1))
        assert heard(hub) == StopStage(1)


def test_what_was_said_before_the_end_is_heard_before_it() -> None:
    for _ in range(20):
        with closing(LanHub("127.0.0.1:0", None, lambda key: None)) as hub:
            link = _plain(hub)
            for number in range(5):
                link.send(StopStage(number))
            link.close(last_words=True)
            assert [heard(hub) for _ in range(6)] == [*map(StopStage, range(5)), Left()]


def test_a_full_queue_refuses_at_the_hub_and_waits_at_the_link() -> None:
    with closing(LanHub("127.0.0.1:0", None, lambda key: None)) as hub, closing(_plain(hub)) as link:
        part = TensorPart(0, MAX_PAYLOAD_NBYTES), bytes(MAX_PAYLOAD_NBYTES)
        with pytest.raises(BoardLost, match=r"took no message for 0\.2 s"):
            say_until_lost(link, *part)
        found = hub.receive()
        while found is None:
            found = hub.receive()
        sent = [hub.send(found[0], Probed(1, MAX_PAYLOAD_NBYTES), bytes(MAX_PAYLOAD_NBYTES)) for _ in range(100)]
        assert sent[0]
        assert not sent[-1]


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.1:0"])
def test_beyond_loopback_nothing_is_said_in_the_clear(listen: str) -> None:
    with pytest.raises((UnsafeAddress, BadOption)) as refusal:
        LanHub(listen, None, lambda key: None)
    assert isinstance(refusal.value, UnsafeAddress) == listen.startswith("0")
    LanHub("0.0.0.0:0", new_keys(), lambda key: None).close()


@pytest.mark.parametrize("listen", ["nowhere.invalid:1", "127.0.0.1", "127.0.0.1:99999", "a b:1", ""])
def test_an_address_that_is_none_is_one_line(listen: str) -> None:
    with pytest.raises(BadOption):
        LanHub(listen, None, lambda key: None)


def test_two_cannot_listen_on_one_port() -> None:
    hub = LanHub("127.0.0.1:0", None, lambda key: None)
    with closing(hub), pytest.raises(BadOption, match="nothing can listen on"):
        LanHub(hub.address, None, lambda key: None)
    LanHub(hub.address, None, lambda key: None).close()


def test_nobody_there_is_told_at_once_and_a_mute_one_at_the_deadline() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        started_s = time.monotonic()
        with pytest.raises(BoardLost, match=r"shelf .*did not answer for 0\.5 s"):
            LanLink("shelf", address, None, None, connect_deadline_s=0.5)
        assert time.monotonic() - started_s < 2
    with pytest.raises(BoardLost, match=f"board shelf .{address}. cannot be reached"):
        LanLink("shelf", address, None, None)


def test_the_death_of_our_daemon_ends_a_wait() -> None:
    reader, writer = os.pipe()
    with (
        closing(LanHub("127.0.0.1:0", None, lambda key: None)) as hub,
        closing(LanLink("shelf", hub.address, None, None, death_fd=reader)) as link,
    ):
        os.close(writer)
        with pytest.raises(DaemonLost):
            link.receive(DEADLINE_S)
    os.close(reader)


def test_keys_must_be_the_right_ones(board) -> None:  # type: ignore[no-untyped-def]
    stranger = new_keys()
    for keys, server_key in [
        (stranger, board.key), (None, None), (stranger, stranger.public),
    ]:  # fmt: skip
        with pytest.raises(NotAllowed, match=f"board shelf .{board.address}."):
            LanLink("shelf", board.address, keys, server_key)
    with pytest.raises(NotAllowed):
        board.link(server_key=stranger.public)
    with closing(board.link()) as link:
        assert served(link)


def test_a_key_is_of_no_use_to_a_board_without(start_board: Callable[..., object]) -> None:
    board = start_board("plain")
    with pytest.raises(NotAllowed):
        board.link()  # type: ignore[attr-defined]


def test_a_revoked_head_is_heard_no_more(board) -> None:  # type: ignore[no-untyped-def]
    with closing(board.link("laptop")) as link, closing(board.link("desk")) as other:
        assert served(link)
        assert served(other)
        board.forget("laptop")
        with pytest.raises(BoardLost):
            say_until_lost(link)
        assert served(other)
    with pytest.raises(NotAllowed):
        board.link("laptop")
    said = [board.next() for _ in range(5)]
    assert "laptop StopStage" not in said
    assert "laptop left" in said


def say_until_lost(link: LanLink, message: object = StopStage(1), payload: bytes | None = None) -> None:
    while True:
        link.send(message, payload, deadline_s=0.2)
        if payload is None:
            link.receive(0.05)


def test_a_silent_head_that_is_revoked_is_shown_out(board) -> None:  # type: ignore[no-untyped-def]
    with closing(board.link("laptop")) as link:
        assert served(link)
        board.forget("laptop")
        with pytest.raises(BoardLost):
            link.receive(3.0)


@pytest.mark.parametrize(("number", "within_s"), [(signal.SIGKILL, 1.0), (signal.SIGSTOP, 6.0)])
def test_a_link_notices_the_end_of_its_board(board, number: int, within_s: float) -> None:  # type: ignore[no-untyped-def]
    with closing(board.link()) as link:
        assert served(link)
        started_s = time.monotonic()
        os.kill(board.process.pid, number)
        with pytest.raises(BoardLost, match="board shelf"):
            link.receive(DEADLINE_S)
        assert time.monotonic() - started_s <= within_s


HEAD = """
import sys, time
from hermes_mp.host.lan import LanLink
from hermes_mp.board_messages import StopStage
link = LanLink("shelf", sys.argv[1], None, None)
link.send(StopStage(1))
sys.stdin.read()
"""


@pytest.mark.parametrize(("number", "within_s"), [(signal.SIGKILL, 1.0), (signal.SIGSTOP, 6.0)])
def test_a_hub_notices_the_end_of_a_head(number: int, within_s: float) -> None:
    root = Path(__file__).parents[2]
    with (
        closing(LanHub("127.0.0.1:0", None, lambda key: None)) as hub,
        subprocess.Popen([sys.executable, "-c", HEAD, hub.address], cwd=root, stdin=subprocess.PIPE) as head,
    ):
        try:
            assert heard(hub) == StopStage(1)
            started_s = time.monotonic()
            os.kill(head.pid, number)
            assert heard(hub) == Left()
            assert time.monotonic() - started_s <= within_s
        finally:
            head.kill()


def test_a_poller_wakes_for_the_end_of_a_link() -> None:
    hub = LanHub("127.0.0.1:0", None, lambda key: None)
    with closing(_plain(hub)) as link:
        poller = Poller()
        poller.watch(link)
        assert not poller.wait(0)
        hub.close()
        assert poller.wait(DEADLINE_S) == {link}
        poller.forget(link)
        with pytest.raises(BoardLost):
            link.send(StopStage(1))


def _plain(hub: LanHub) -> LanLink:
    return LanLink("shelf", hub.address, None, None)
