"""Hub, Link and Poller over real ipc sockets: order, backpressure, hostile peers, dead peers, dead daemons."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from hermes_mp.errors import BadMessage, DaemonLost, InvariantBroken
from hermes_mp.host.codec import pack
from hermes_mp.host.wire import QUEUE_LENGTH, Hub, Link, Peer, Poller
from hermes_mp.ids import Epoch, LoaderNo
from hermes_mp.messages import (
    MAX_FRAME_NBYTES,
    AskUnit,
    ComputeStarted,
    LoaderStarted,
    Progress,
    StopLoader,
    ToCompute,
    ToLoader,
    UnitReady,
)

DEADLINE_S = 10.0
COMPUTE = Peer("compute", 0, 4)
LOADER = Peer("loader", 2, 7)

LOADER_PROCESS = """
import os, sys
from hermes_mp.host.wire import Link, Peer
from hermes_mp.messages import LoaderStarted, ToLoader
link = Link(sys.argv[1], Peer("loader", 2, 7), ToLoader)
link.send(LoaderStarted(2, 7, os.getpid()))
link.receive(60)
"""


def next_of(hub: Hub) -> tuple[Peer, Any]:
    """The hub's next message; fails after the deadline."""
    poller = Poller()
    poller.watch(hub)
    ends = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends:
        poller.wait(ends - time.monotonic())
        received = hub.receive()
        if received is not None:
            return received
    pytest.fail("no message came")


def linked(hub: Hub, peer: Peer = COMPUTE, **options: Any) -> Any:
    """A link whose peer the hub has already heard of."""
    link: Any = Link(hub.endpoint, peer, ToCompute if peer.kind == "compute" else ToLoader, **options)
    link.send(ComputeStarted(1) if peer.kind == "compute" else LoaderStarted(peer.number, peer.epoch, 1))
    assert next_of(hub)[0] == peer
    return closing(link)


@contextmanager
def raw_dealer(hub: Hub, routing_id: bytes) -> Iterator[Any]:
    """A peer that keeps to none of our rules."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        if routing_id:
            dealer.set(zmq.ROUTING_ID, routing_id)
        dealer.connect(hub.endpoint)
        yield dealer
    finally:
        context.destroy(linger=0)


# --- peers have names


@pytest.mark.parametrize("peer", [LOADER, COMPUTE, Peer("loader", 0, 0), Peer("loader", 63, 10**12)])
def test_a_routing_id_names_its_peer(peer: Peer) -> None:
    assert Peer.parse(peer.routing_id) == peer


def test_routing_ids_are_the_ones_of_the_design() -> None:
    assert LOADER.routing_id == b"loader-2-7"
    assert COMPUTE.routing_id == b"compute-4"


STRANGERS = [b"", b"\0\x01\x02\x03\x04", b"loader-2", b"loader-02-7", b"loader--7", b"loader-2-7\n", b"compute-1-2",
             b"loader-2-" + b"9" * 19, b"Loader-2-7", b"loader-\xd9\xa3-7"]  # fmt: skip


@pytest.mark.parametrize("routing_id", STRANGERS)
def test_other_names_are_refused(routing_id: bytes) -> None:
    with pytest.raises(BadMessage, match="none of ours"):
        Peer.parse(routing_id)


# --- order and backpressure


def test_messages_arrive_in_order_even_when_the_queue_fills_up(hub: Hub) -> None:
    count = QUEUE_LENGTH * 8
    with linked(hub) as link:
        sender = threading.Thread(target=lambda: [link.send(AskUnit(number, True)) for number in range(count)])
        sender.start()
        asked = [next_of(hub) for _ in range(count)]
        sender.join(DEADLINE_S)
    assert asked == [(COMPUTE, AskUnit(number, True)) for number in range(count)]


def test_what_the_hub_says_was_sent_arrives_and_a_full_queue_refuses(hub: Hub) -> None:
    with linked(hub) as link:
        sent = 0
        while hub.send(COMPUTE, UnitReady(sent, sent, sent)):
            sent += 1
            assert sent < 10**6, "a queue without end"
        assert sent >= QUEUE_LENGTH
        assert [link.receive(DEADLINE_S) for _ in range(sent)] == [UnitReady(n, n, n) for n in range(sent)]
        assert link.receive(0) is None


def test_threads_may_share_a_link_under_a_lock(hub: Hub) -> None:
    lock = threading.Lock()
    with linked(hub) as link:

        def ask(thread: int) -> None:
            for number in range(100):
                with lock:
                    link.send(AskUnit(thread * 1000 + number, False))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        units = [next_of(hub)[1].unit for _ in range(400)]
        for thread in threads:
            thread.join(DEADLINE_S)
    for thread_no in range(4):
        assert [unit for unit in units if unit // 1000 == thread_no] == [thread_no * 1000 + n for n in range(100)]


def test_every_peer_gets_its_own(hub: Hub) -> None:
    with linked(hub, LOADER) as loader, linked(hub, COMPUTE) as compute:
        assert hub.send(COMPUTE, UnitReady(1, 2, 3))
        assert hub.send(LOADER, StopLoader())
        assert loader.receive(DEADLINE_S) == StopLoader()
        assert compute.receive(DEADLINE_S) == UnitReady(1, 2, 3)


# --- peers that are not there, or no longer


def test_an_unknown_peer_or_epoch_gets_nothing(hub: Hub) -> None:
    assert not hub.send(COMPUTE, UnitReady(1, 2, 3))
    with linked(hub) as link:
        assert not hub.send(Peer("compute", 0, COMPUTE.epoch + 1), UnitReady(1, 2, 3))
        assert hub.send(COMPUTE, UnitReady(7, 7, 7))
        assert link.receive(DEADLINE_S) == UnitReady(7, 7, 7)


def test_a_peer_killed_by_sigkill_is_gone_and_its_next_epoch_is_heard(hub: Hub) -> None:
    child = subprocess.Popen([sys.executable, "-c", LOADER_PROCESS, hub.endpoint])
    assert next_of(hub) == (LOADER, LoaderStarted(2, 7, child.pid))
    assert hub.send(LOADER, UnitReady(1, 2, 3))
    pidfd = os.pidfd_open(child.pid)
    poller = Poller()
    poller.watch(hub)
    poller.watch(pidfd)
    child.kill()
    assert poller.wait(DEADLINE_S) == {pidfd}
    poller.forget(pidfd)
    os.close(pidfd)
    child.wait(DEADLINE_S)
    ends = time.monotonic() + DEADLINE_S
    tries = 0
    while hub.send(LOADER, StopLoader()):  # the io thread hears of the hang-up a moment later
        tries += 1
        assert time.monotonic() < ends
        assert tries < QUEUE_LENGTH, "refused for a full queue, not for a peer that is gone"
        poller.wait(0.01)
    with linked(hub, Peer("loader", 2, 8)) as link:
        assert hub.send(Peer("loader", 2, 8), StopLoader())
        assert link.receive(DEADLINE_S) == StopLoader()


# --- peers that talk nonsense: the hub names them and lives on

NONSENSE = {
    "garbage": (LOADER.routing_id, [b"\xff\x00garbage"], r"^loader 2 \(epoch 7\): no msgpack"),
    "empty": (LOADER.routing_id, [b""], r"^loader 2 \(epoch 7\): no msgpack"),
    "two frames": (COMPUTE.routing_id, [b"", pack(Progress("x"))], r"^compute \(epoch 4\): expected 1 frame, got 2"),
    "other direction": (LOADER.routing_id, [pack(AskUnit(1, True))], r"^loader 2 \(epoch 7\): 'AskUnit' is no kind"),
    "wrong type": (COMPUTE.routing_id, [b"\x92\xacPassForecast\x92\x01\x00"], r"epoch 4\): PassForecast\.more: exp"),
    "stranger": (b"stranger", [pack(Progress("x"))], "^a peer called b'stranger' is none of ours"),
    "without a name": (b"", [pack(Progress("x"))], "^a peer called .* is none of ours"),
}  # fmt: skip


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_is_refused_by_the_name_of_who_sent_it(hub: Hub, case: str) -> None:
    routing_id, frames, text = NONSENSE[case]
    with raw_dealer(hub, routing_id) as dealer, linked(hub, Peer("loader", 5, 1)) as good:
        dealer.send_multipart(frames)
        with pytest.raises(BadMessage, match=text):
            next_of(hub)
        good.send(LoaderStarted(5, 1, 42))
        assert next_of(hub) == (Peer("loader", 5, 1), LoaderStarted(5, 1, 42))


def test_too_large_a_frame_costs_its_sender_the_connection_and_nobody_else(hub: Hub) -> None:
    with raw_dealer(hub, LOADER.routing_id) as dealer, linked(hub, COMPUTE) as good:
        dealer.send(pack(LoaderStarted(2, 7, 1)))
        assert next_of(hub) == (LOADER, LoaderStarted(2, 7, 1))
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dealer.send(b"\0" * (MAX_FRAME_NBYTES + 1))
        assert monitor.poll(DEADLINE_S * 1000), "the hub took it"
        dealer.disable_monitor()
        good.send(AskUnit(1, True))
        assert next_of(hub) == (COMPUTE, AskUnit(1, True))
        assert hub.receive() is None
        dealer.send(pack(LoaderStarted(2, 7, 2)))  # it may come back
        assert next_of(hub) == (LOADER, LoaderStarted(2, 7, 2))


def test_a_link_refuses_nonsense_from_the_daemon(hub: Hub) -> None:
    with linked(hub) as link:
        hub._socket.send_multipart([COMPUTE.routing_id, pack(StopLoader())])
        with pytest.raises(BadMessage, match=r"^daemon: 'StopLoader' is no kind"):
            link.receive(DEADLINE_S)
        assert hub.send(COMPUTE, UnitReady(1, 2, 3))
        assert link.receive(DEADLINE_S) == UnitReady(1, 2, 3)


def test_what_breaks_a_limit_is_not_sent(hub: Hub) -> None:
    with linked(hub) as link:
        with pytest.raises(BadMessage, match=r"^UnitReady\.base"):
            hub.send(COMPUTE, UnitReady(1, 2, -3))
        with pytest.raises(BadMessage, match=r"^AskUnit\.unit"):
            link.send(AskUnit(-1, True))
        link.send(AskUnit(1, True))
        assert next_of(hub) == (COMPUTE, AskUnit(1, True))


# --- waiting


def test_wait_tells_messages_and_fds_apart(hub: Hub) -> None:
    reading, writing = os.pipe()
    with linked(hub) as link:
        assert link.wait(0, [reading]) == (False, set())
        os.write(writing, b"x")
        assert link.wait(DEADLINE_S, [reading]) == (False, {reading})
        assert hub.send(COMPUTE, UnitReady(1, 2, 3))
        assert link.wait(DEADLINE_S, []) == (True, set())
        assert link.wait(DEADLINE_S, [reading]) == (True, {reading})
        assert link.receive(0) == UnitReady(1, 2, 3)
        os.close(writing)
        os.read(reading, 1)
        assert link.wait(DEADLINE_S, [reading]) == (False, {reading})  # hung up
    os.close(reading)


def test_the_poller_waits_on_all_and_forgets(hub: Hub) -> None:
    reading, writing = os.pipe()
    poller = Poller()
    with linked(hub) as link:
        for key in (hub, link, reading):
            poller.watch(key)
        assert poller.wait(0) == set()
        link.send(AskUnit(1, True))
        assert poller.wait(DEADLINE_S) == {hub}
        os.close(writing)
        assert poller.wait(DEADLINE_S) == {hub, reading}
        poller.forget(reading)
        assert poller.wait(DEADLINE_S) == {hub}
        assert hub.receive() == (COMPUTE, AskUnit(1, True))
        assert hub.send(COMPUTE, UnitReady(1, 2, 3))
        assert poller.wait(None) == {link}
    os.close(reading)


def test_waiting_takes_the_time_it_was_given(hub: Hub) -> None:
    with linked(hub) as link:
        started = time.monotonic()
        assert link.receive(0.05) is None
        assert 0.05 <= time.monotonic() - started < DEADLINE_S


# --- a daemon that is not there, or no longer


def test_a_link_to_nobody_is_refused_at_the_deadline(run_dir: Path) -> None:
    with pytest.raises(DaemonLost, match=r"did not answer for 0\.1 s"):
        Link(f"ipc://{run_dir}/hub", COMPUTE, ToCompute, connect_deadline_s=0.1)


def test_a_link_to_nobody_is_refused_at_once_when_the_daemon_is_known_to_be_gone(run_dir: Path) -> None:
    with hung_up_pipe() as daemon_fd, pytest.raises(DaemonLost, match="is gone"):
        Link(f"ipc://{run_dir}/hub", COMPUTE, ToCompute, daemon_fd=daemon_fd, connect_deadline_s=600)


def test_sending_to_a_daemon_that_left_is_an_error_not_a_loss(run_dir: Path) -> None:
    hub = Hub(run_dir)
    with linked(hub, send_deadline_s=0.2) as link:
        hub.close()
        with pytest.raises(DaemonLost, match=r"took no message for 0\.2 s"):
            send_for_ever(link)


def test_sending_to_a_daemon_that_does_not_read_ends_at_the_deadline(hub: Hub) -> None:
    with (
        linked(hub, send_deadline_s=0.2) as link,
        pytest.raises(DaemonLost, match=r"took no message for 0\.2 s"),
    ):
        send_for_ever(link)


def test_a_daemon_known_to_be_gone_ends_every_wait_after_its_last_words(hub: Hub) -> None:
    reading, writing = os.pipe()
    with linked(hub, daemon_fd=reading, send_deadline_s=600) as link:
        assert hub.send(COMPUTE, UnitReady(1, 2, 3))
        assert link.wait(DEADLINE_S, ()) == (True, set())
        os.close(writing)
        assert link.receive(600) == UnitReady(1, 2, 3)
        with pytest.raises(DaemonLost, match="is gone"):
            link.receive(600)
        with pytest.raises(DaemonLost, match="is gone"):
            link.wait(None, ())
        with pytest.raises(DaemonLost, match="is gone"):
            send_for_ever(link)
    os.close(reading)


def send_for_ever(link: Any) -> None:
    """Until it raises; returns after more than any queue holds."""
    for _ in range(10**5):
        link.send(Progress("x" * 10_000))


@contextmanager
def hung_up_pipe() -> Iterator[int]:
    reading, writing = os.pipe()
    os.close(writing)
    yield reading
    os.close(reading)


# --- opening and closing


def test_a_hub_refuses_an_endpoint_in_use(hub: Hub, run_dir: Path) -> None:
    with pytest.raises(InvariantBroken, match="exists"):
        Hub(run_dir)
    with linked(hub) as link:
        link.send(AskUnit(1, True))
        assert next_of(hub) == (COMPUTE, AskUnit(1, True))


def test_a_hub_in_a_directory_that_is_not_there_says_so(run_dir: Path) -> None:
    with pytest.raises(InvariantBroken, match="hub"):
        Hub(run_dir / "missing")


def test_closing_unlinks_the_socket_never_waits_and_leaves_no_fd(run_dir: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    hub = Hub(run_dir)
    with linked(hub) as link:
        assert hub.send(COMPUTE, UnitReady(1, 2, 3))  # never read
        link.send(AskUnit(1, True))  # never read either
        started = time.monotonic()
        hub.close()
        hub.close()
        link.close()
        assert time.monotonic() - started < 2
    assert not (run_dir / "hub").exists()
    assert len(os.listdir("/proc/self/fd")) == before


FORGETFUL_PROCESS = """
import gc, pathlib, sys
from hermes_mp.host.wire import Hub, Link, Peer
from hermes_mp.messages import ToCompute

class Owner: pass

owner = Owner()
owner.hub = Hub(pathlib.Path(sys.argv[1]))
owner.link = Link(owner.hub.endpoint, Peer("compute", 0, 4), ToCompute)
owner.hub.send(Peer("compute", 0, 4), None) if sys.argv[2] == "raise" else None
owner.itself = owner if sys.argv[2] == "cycle" else None
if sys.argv[2] != "exit":
    del owner
    gc.collect()
"""


@pytest.mark.parametrize(("how", "status"), [("exit", 0), ("cycle", 0), ("collected", 0), ("raise", 1)])
def test_what_nobody_closed_does_not_hang_the_interpreter(run_dir: Path, how: str, status: int) -> None:
    """The garbage collector ended a context before its socket once, and the exit of a script waited for ever."""
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL_PROCESS, run_dir, how], timeout=DEADLINE_S, capture_output=True, check=False
    )
    assert done.returncode == status, done.stderr


@pytest.mark.parametrize("uid", [0, 65534])
def test_only_processes_of_our_user_are_heard(uid: int) -> None:
    """Even where the run directory lets others in: the kernel says who connects."""
    if os.getuid() != 0:
        pytest.skip("another user can be played by root only")
    with tempfile.TemporaryDirectory() as folder, closing(Hub(Path(folder))) as hub:
        for path, mode in ((folder, 0o755), (hub.endpoint.removeprefix("ipc://"), 0o777)):
            os.chmod(path, mode)
        pid = os.fork()
        if pid == 0:
            os.setuid(uid)
            socket = zmq.Context().socket(zmq.DEALER)
            socket.set(zmq.ROUTING_ID, LOADER.routing_id)
            socket.connect(hub.endpoint)
            socket.send(pack(LoaderStarted(LoaderNo(2), Epoch(7), 1)))
            time.sleep(1.0)
            os._exit(0)
        poller = Poller()
        poller.watch(hub)
        heard = None
        while heard is None and os.waitpid(pid, os.WNOHANG) == (0, 0):
            poller.wait(0.1)
            heard = hub.receive()
        assert (heard is not None) == (uid == 0)
        if heard is not None:
            os.waitpid(pid, 0)
