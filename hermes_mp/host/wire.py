"""ZeroMQ within a board: the daemon's `Hub`, everybody else's `Link`, and a `Poller` over ends of ours and fds.

No message is dropped in silence: a full queue refuses (`Hub.send` is False) or waits with a deadline (`Link.send`).
It knows peers and frames, not what the messages mean. A process has one Hub or one Link, and with it one context.
ZeroMQ sockets are not thread-safe: threads that share a Hub or Link hold one lock of the caller's around every call.
"""

from __future__ import annotations

import functools
import math
import os
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

import zmq

from hermes_mp.errors import BadMessage, DaemonLost, InvariantBroken, SystemCallFailed
from hermes_mp.host.codec import pack, unpack
from hermes_mp.host.rundir import SOCKET_NAME
from hermes_mp.host.scheduling import short_turns
from hermes_mp.messages import MAX_FRAME_NBYTES, FromCompute, FromLoader, FromViewer

# Messages per queue and direction. A loader is sent at most one OpenFile per shard before it reads (the hub's largest
# checkpoints have some 190), a compute one UnitReady per slot; each is in two queues. All 256 of 64 KiB is 16 MiB.
QUEUE_LENGTH = 256
RECONNECT_MS = 5  # a loader may be up before the hub listens; ZeroMQ would try again after 100 ms
LAST_WORDS_MS = 500
CONNECT_DEADLINE_S = 10.0  # 64 loaders that start at once on four slow cores take seconds
SEND_DEADLINE_S = 5.0  # a busy daemon frees half a queue in well under a second
_POLLIN = int(zmq.POLLIN)  # a plain one: arithmetic of flags costs 1 us

UNIONS: dict[str, object] = {"loader": FromLoader, "compute": FromCompute, "viewer": FromViewer}

M = TypeVar("M")


@dataclass(frozen=True)
class Peer:
    """One incarnation of a child, `number` being 0 for compute; or the `hermes-ps` of that process number.

    `routing_id` is its name on the hub.
    """

    kind: Literal["loader", "compute", "viewer"]
    number: int
    epoch: int

    @functools.cached_property
    def routing_id(self) -> bytes:
        number = "" if self.kind == "compute" else f"{self.number}-"
        return f"{self.kind}-{number}{self.epoch}".encode()

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def parse(routing_id: bytes) -> Peer:
        """The peer of that name; raises BadMessage where it is none of ours."""
        found = re.fullmatch(rb"(?:(loader|viewer)-(0|[1-9]\d{0,17})|compute)-(0|[1-9]\d{0,17})", routing_id)
        if found is None:
            raise BadMessage(f"a peer called {routing_id[:40]!r} is none of ours")
        if found[1] is None:
            return Peer("compute", 0, int(found[3]))
        return Peer("loader" if found[1] == b"loader" else "viewer", int(found[2]), int(found[3]))

    def __str__(self) -> str:
        name = "compute" if self.kind == "compute" else f"{self.kind} {self.number}"
        return f"{name} (epoch {self.epoch})"


class Hub:
    """The daemon's end: one ROUTER on `ipc://RUN_DIR/hub`, every child a peer of it."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / SOCKET_NAME
        self.endpoint = f"ipc://{self._path}"
        if os.path.lexists(self._path):  # bind would take it over from whoever listens there, without a word
            raise InvariantBroken(f"a run directory is fresh, but {self._path} exists")
        self._socket = limited_socket(zmq.ROUTER)
        self._close = weakref.finalize(self, close_sockets, (self._socket,))
        self._socket.set(zmq.ROUTER_MANDATORY, 1)  # an unknown peer or a full queue is an error, not a lost message
        self._socket.set(zmq.IPC_FILTER_UID, os.getuid())  # others do not come into the directory, either
        try:
            self._socket.bind(self.endpoint)
        except zmq.ZMQError as reason:
            self.close()
            raise InvariantBroken(f"a run directory takes a socket, but {self.endpoint}: {reason}") from reason

    @property
    def sockets(self) -> Sequence[zmq.Socket[bytes]]:
        """For the Poller."""
        return (self._socket,)

    def send(self, peer: Peer, message: object) -> bool:
        """Queue a message; False if the peer is not connected (yet, or any more) or its queue is full. Never waits."""
        frame = pack(message)
        try:
            self._socket.send_multipart((peer.routing_id, frame))
        except zmq.Again:
            return False
        except zmq.ZMQError as reason:
            if reason.errno == zmq.EHOSTUNREACH:
                return False
            raise SystemCallFailed(f"nothing can be sent to {peer}: {reason.strerror}") from reason
        return True

    def receive(self) -> tuple[Peer, FromLoader | FromCompute | FromViewer] | None:
        """The next message and who sent it, or None at once where there is none.

        Raises BadMessage, its text beginning with the peer's name (`peer` of the error; None where it is a stranger),
        for anything else; the next call goes on after it.
        """
        if not has_message(self._socket):
            return None
        try:
            routing_id, *frames = self._socket.recv_multipart()
        except zmq.Again:
            return None
        except zmq.ZMQError as reason:
            raise SystemCallFailed(f"nothing can be heard of our processes: {reason.strerror}") from reason
        peer = Peer.parse(routing_id)
        try:
            if len(frames) != 1:
                raise BadMessage(f"expected 1 frame, got {len(frames)}")
            return peer, unpack(frames[0], UNIONS[peer.kind])
        except BadMessage as wrong:
            error = BadMessage(f"{peer}: {wrong}")
            error.peer = peer
            raise error from None

    def close(self, last_words: bool = False) -> None:
        """Drop what is queued (with `last_words`, wait up to 0.5 s until it is sent), close, unlink the socket file.

        May be called again.
        """
        if self._close.alive:
            if last_words:
                self._socket.set(zmq.LINGER, LAST_WORDS_MS)
            self._close()
            self._path.unlink(missing_ok=True)


class Link(Generic[M]):
    """A child's end: a DEALER with its peer's name, whose frames are messages of `union`.

    `daemon_fd` becomes readable once the daemon is gone (the death pipe, or a pidfd); with it every wait ends at once
    then, in DaemonLost, after the messages that had already come. Without it only the deadlines tell.
    """

    def __init__(
        self,
        endpoint: str,
        peer: Peer,
        union: object,
        daemon_fd: int | None = None,
        connect_deadline_s: float | None = CONNECT_DEADLINE_S,
        send_deadline_s: float = SEND_DEADLINE_S,
    ) -> None:
        """Connect; raises DaemonLost if no hub answers within the deadline (None: as long as the daemon lives)."""
        self._union = union
        self._daemon_fd = daemon_fd
        self._send_deadline_s = send_deadline_s
        self._socket = limited_socket(zmq.DEALER)
        self._close = weakref.finalize(self, close_sockets, (self._socket,))
        self._socket.set(zmq.ROUTING_ID, peer.routing_id)
        self._socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.set(zmq.IMMEDIATE, 1)  # without a connection nothing is queued, so waiting to send means waiting
        try:
            self._socket.connect(endpoint)
            self._wait_writable(connect_deadline_s, "did not answer")
        except BaseException:
            self.close()
            raise

    @property
    def sockets(self) -> Sequence[zmq.Socket[bytes]]:
        """For the Poller."""
        return (self._socket,)

    def send(self, message: object) -> None:
        """Queue a message; raises DaemonLost if there is no room for it within the deadline."""
        frame = pack(message)
        try:
            if not self._send_now(frame):
                self._wait_writable(self._send_deadline_s, "took no message")
                if not self._send_now(frame):
                    raise DaemonLost("the connection to the daemon broke")
        except zmq.ZMQError as reason:
            raise SystemCallFailed(f"nothing can be sent to the daemon: {reason.strerror}") from reason

    def receive(self, timeout_s: float) -> M | None:
        """The next message, or None after `timeout_s`; raises BadMessage for anything else that comes."""
        if not has_message(self._socket) and (timeout_s <= 0 or not self.wait(timeout_s, ())[0]):
            return None
        try:
            frames = self._socket.recv_multipart()
        except zmq.Again:
            return None
        except zmq.ZMQError as reason:
            raise SystemCallFailed(f"nothing can be heard of the daemon: {reason.strerror}") from reason
        if len(frames) != 1:
            raise BadMessage(f"daemon: expected 1 frame, got {len(frames)}")
        try:
            return cast("M", unpack(frames[0], self._union))
        except BadMessage as wrong:
            raise BadMessage(f"daemon: {wrong}") from None

    def wait(self, timeout_s: float | None, fds: Sequence[int]) -> tuple[bool, set[int]]:
        """Wait for a message or any of `fds`: whether a message is there, and which fds are readable or hung up."""
        ready = self._poll(zmq.POLLIN, timeout_s, fds)
        there = self._socket in ready
        mine = {fd for fd in fds if fd in ready}
        if not there and not mine and self._daemon_fd in ready:
            raise DaemonLost("the daemon is gone")
        return there, mine

    def close(self, last_words: bool = False) -> None:
        """Drop what is queued and close; with `last_words` wait up to 0.5 s until it is sent. May be called again."""
        if last_words and self._close.alive:
            self._socket.set(zmq.LINGER, LAST_WORDS_MS)
        self._close()

    def _send_now(self, frame: bytes) -> bool:
        try:
            self._socket.send(frame)
        except zmq.Again:
            return False
        return True

    def _wait_writable(self, deadline_s: float | None, failure: str) -> None:
        ready = self._poll(zmq.POLLOUT, deadline_s, ())
        if self._socket not in ready:
            gone = self._daemon_fd in ready
            raise DaemonLost("the daemon is gone" if gone else f"the daemon {failure} for {deadline_s} s")

    def _poll(self, event: int, timeout_s: float | None, fds: Sequence[int]) -> set[Any]:
        watched: list[tuple[Any, int]] = [(self._socket, event)]
        watched += [(fd, zmq.POLLIN) for fd in fds]
        if self._daemon_fd is not None:
            watched.append((self._daemon_fd, zmq.POLLIN))
        return {key for key, _ in zmq.zmq_poll(watched, milliseconds(timeout_s))}


class Watched(Protocol):
    """An end of ours: ready when any of its sockets has something to be read."""

    @property
    def sockets(self) -> Sequence[zmq.Socket[bytes]]: ...


Key = Watched | int


class Watching(Protocol):
    """Who has keys watched: a `Poller`, or a daemon that has one."""

    def watch(self, key: Key) -> None: ...

    def forget(self, key: Key) -> None: ...


class Poller:
    """Waits on hubs, links and plain fds (pidfds, pipes, the wake-up fd of signals) at once."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._keys: dict[Any, Key] = {}

    def watch(self, key: Key) -> None:
        """Wait on this one too: for a message, or for the fd to be readable or hung up."""
        for watched in _parts(key):
            self._keys[watched] = key
            self._poller.register(watched, zmq.POLLIN)

    def forget(self, key: Key) -> None:
        """No longer wait on it; before its fd is closed, for the number will be used again."""
        for watched in _parts(key):
            del self._keys[watched]
            self._poller.unregister(watched)

    def wait(self, timeout_s: float | None) -> set[Key]:
        """Those that are ready, or none after `timeout_s` (None: wait for ever). Signal handlers run meanwhile."""
        return {self._keys[watched] for watched, _ in self._poller.poll(milliseconds(timeout_s))}


def _parts(key: Key) -> Sequence[Any]:
    return (key,) if isinstance(key, int) else key.sockets


def has_message(socket: zmq.Socket[bytes]) -> bool:
    """A tenth of what an `Again` costs."""
    return bool(int(socket.get(zmq.EVENTS)) & _POLLIN)


def limited_socket(kind: int) -> zmq.Socket[bytes]:
    """A socket in its own context, with our limits instead of ZeroMQ's; every wait on it is a poll with a deadline."""
    with short_turns():  # for ZeroMQ's thread, which starts here and stands between any two processes
        socket = zmq.Context(io_threads=1).socket(kind)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.MAXMSGSIZE, MAX_FRAME_NBYTES)  # a larger frame costs its sender the connection, before it is read
    socket.set(zmq.SNDHWM, QUEUE_LENGTH)
    socket.set(zmq.RCVHWM, QUEUE_LENGTH)
    socket.set(zmq.SNDTIMEO, 0)  # send and receive never wait: what cannot be done at once raises zmq.Again
    socket.set(zmq.RCVTIMEO, 0)
    socket.set(zmq.HANDSHAKE_IVL, milliseconds(CONNECT_DEADLINE_S))  # how long a mute connection may hold an fd
    return socket


def close_sockets(sockets: Sequence[zmq.Socket[bytes]]) -> None:
    """Also run when their owner is collected, and at exit: the end of a context waits for ever for an open socket of
    it, and the collector may take the context of a cycle first. The last one has made the context."""
    for socket in sockets:
        socket.close()  # its LINGER is 0, unless last words are on their way
    sockets[-1].context.term()


def milliseconds(timeout_s: float | None) -> int:
    return -1 if timeout_s is None else max(0, math.ceil(timeout_s * 1000))  # rounded up: 0 would spin
