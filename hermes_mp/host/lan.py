"""Between boards, over TCP: a board's `LanHub`; with lan_link.py and lan_frames.py all that knows CURVE.

Nobody unknown is served: each key is asked for at the handshake and again at each message, and an error is a no. No
wait is without a deadline, no queue without a bound; strangers cost a few KB each, `MAX_STRANGERS` at once.
It knows frames, keys and who has gone, not what messages mean. A process has one hub, and may have many links.
Whoever reads nothing for 4 s while its queue is full is taken for dead by the other side: heartbeats queue as well.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils import z85

from hermes_mp.board_messages import ToBoard
from hermes_mp.core.address import join_address, split_address
from hermes_mp.errors import BadMessage, SystemCallFailed, UnsafeAddress
from hermes_mp.host.gate import Gate, inode_of, show_out
from hermes_mp.host.keys import KeyPair
from hermes_mp.host.lan_frames import (
    HERE,
    LAST_FRAMES_S,
    PAYLOAD_KINDS,
    drop_rest,
    event_of,
    keys_of,
    lan_socket,
    new_keys,
    packed,
    payload_into,
    send_frames,
    unpacked,
)
from hermes_mp.host.lan_link import LanLink
from hermes_mp.host.wire import LAST_WORDS_MS, close_sockets, has_message

__all__ = ["LanHub", "LanLink", "Left", "Visitor", "keys_of", "new_keys"]

MAX_STRANGERS = 4  # who have not said a word yet; each may have ZeroMQ take the 1 MiB of a frame before it is refused
MAX_CONNECTIONS = 64
PATIENCE_S = 0.25  # with the longest of so many strangers: others may wait behind them
HANDSHAKE_S = 2.0
SWEEP_S = 0.25  # how often the keys of silent visitors are looked at
LAST_ANSWER_S = 0.2  # for the answer to who pairs: the key of its token is of no use any more
RETRY_S = 0.5  # after no connection could be accepted: no descriptor was left
DOMAIN = b"hermes-mp"
_AT_HUB = zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED


@dataclass(frozen=True)
class Left:
    """The visitor's connection has ended; nothing more comes of it."""


@dataclass(frozen=True)
class Visitor:
    """One connection: `name` is what its key is known by, "" where there are no keys."""

    routing_id: bytes
    name: str


@dataclass
class _Connection:
    """A stranger's, until its first frame has come: then it has a visitor, and the key that ZeroMQ checked."""

    fd: int  # which only ZeroMQ uses
    inode: int | None
    since_s: float
    visitor: Visitor | None = None
    key: str = ""
    refused_s: float = math.inf

    def refuse(self, now_s: float) -> None:
        """Its key is allowed no more: show it out, but not before what was said to it is on its way."""
        self.refused_s = min(self.refused_s, now_s)
        if now_s - self.refused_s > LAST_ANSWER_S:
            self.show_out()

    def show_out(self) -> None:
        if self.inode is not None:
            show_out(self.fd, self.inode)


class LanHub:
    """A board's end: call `receive` until it is None whenever the Poller says so, and twice a second besides."""

    def __init__(self, listen: str, keys: KeyPair | None, allow: Callable[[str], str | None]) -> None:
        """Listen on HOST:PORT (port 0: any that is free); without keys on loopback only, or UnsafeAddress.

        `allow` gives the name of a public key, or None. Raises BadOption where nothing can listen.
        """
        self._gate = Gate(*split_address(listen))
        self._has_keys, self._allow = keys is not None, allow
        self.address = join_address(self._gate.host, self._gate.port)
        if keys is None and not self._gate.is_loopback:
            self._gate.close()
            raise UnsafeAddress(f"without keys nothing listens on {listen}: anybody in the network could come in")
        self._socket = lan_socket(zmq.ROUTER, HANDSHAKE_S)
        self._zap = self._socket.context.socket(zmq.REP)
        self._monitor = self._socket.get_monitor_socket(_AT_HUB)
        self._close = weakref.finalize(self, close_sockets, (self._zap, self._monitor, self._socket))
        self._connections: dict[int, _Connection] = {}  # by fd, in the order in which they came
        self._visitors: dict[bytes, _Connection] = {}
        self._ended: deque[_Connection] = deque()
        self._announced: int | None = None  # bytes of the payload that was not taken yet
        self._speaker: Visitor | None = None  # of the last message
        self._resting, self._retry_s, self._swept_s = False, 0.0, 0.0
        try:
            self._listen(keys)
        except BaseException:
            self.close()
            raise

    def _listen(self, keys: KeyPair | None) -> None:
        self._socket.set(zmq.ROUTER_MANDATORY, 1)  # an unknown peer or a full queue is an error, not a lost message
        if keys is not None:
            self._zap.set(zmq.LINGER, 0)
            self._zap.bind("inproc://zeromq.zap.01")
            self._socket.set(zmq.CURVE_SERVER, 1)
            self._socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
            self._socket.set(zmq.ZAP_DOMAIN, DOMAIN)
            self._socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an answer of ours nobody comes in
        self._socket.set(zmq.IPV6, int(self._gate.is_ipv6))
        self._socket.set(zmq.USE_FD, self._gate.fd)
        self._socket.bind(f"tcp://{self.address}")
        self._gate.take_over()

    @property
    def sockets(self) -> Sequence[zmq.Socket[bytes]]:
        """For the Poller."""
        return (self._socket, self._monitor, self._zap)

    def send(self, visitor: Visitor, message: object, payload: bytes | memoryview | None = None) -> bool:
        """Queue a message; False if the visitor has gone or its queue is full. Never waits; the payload is copied.

        Raises BadMessage where the payload is not the one that the message announces.
        """
        frame = packed(message, payload)
        try:
            self._socket.send(visitor.routing_id, zmq.SNDMORE)
            send_frames(self._socket, frame, payload)
        except zmq.Again:
            return False
        except zmq.ZMQError as reason:
            if reason.errno == zmq.EHOSTUNREACH:
                return False
            raise SystemCallFailed(f"nothing can be sent to {visitor.name!r}: {reason.strerror}") from reason
        return True

    def receive(self) -> tuple[Visitor, Any] | None:
        """The next message of `ToBoard`, or `Left`, and whose it is; None at once where there is none.

        Raises BadMessage for anything else, its `peer` being the visitor; the next call goes on after it.
        """
        drop_rest(self._socket)
        self._announced = None
        self._hear_monitor()
        self._answer_handshakes()
        while has_message(self._socket):
            found = self._next()
            if found is not None:
                return found
        while self._ended:
            connection = self._ended.popleft()
            if connection.visitor is not None and self._visitors.pop(connection.visitor.routing_id, None) is not None:
                return connection.visitor, Left()
        self._look_after_the_door(time.monotonic())
        return None

    def payload_into(self, into: memoryview) -> None:
        """Receive the payload of the message that came last into its place; BadMessage if its length is another."""
        announced, self._announced = self._announced, None
        try:
            if announced is None:
                raise BadMessage("no payload is left to be taken")
            payload_into(self._socket, into, announced)
        except BadMessage as wrong:
            raise _of(self._speaker, wrong) from None

    def dismiss(self, visitor: Visitor) -> None:
        """End its connection; `Left` comes after what it has sent."""
        connection = self._visitors.get(visitor.routing_id)
        if connection is not None:
            connection.show_out()

    def close(self, last_words: bool = False) -> None:
        """Drop what is queued and close; with `last_words` wait up to 0.5 s until it is sent. May be called again."""
        if self._close.alive:
            if last_words:
                self._socket.set(zmq.LINGER, LAST_WORDS_MS)
            self._socket.disable_monitor()
        self._close()

    # --- who comes and goes

    def _hear_monitor(self) -> None:
        while has_message(self._monitor):
            event, value = event_of(self._monitor)
            if event == zmq.EVENT_DISCONNECTED:
                ended = self._connections.pop(value, None)
                if ended is not None:
                    _await_end(ended)
                    self._ended.append(ended)
                continue
            self._resting = True
            if event == zmq.EVENT_ACCEPTED:
                self._connections[value] = _Connection(value, inode_of(value), time.monotonic())
            else:
                self._retry_s = time.monotonic() + RETRY_S

    def _answer_handshakes(self) -> None:
        """Who may come in: ZAP, rfc.zeromq.org/spec/27. Whatever goes wrong is a no."""
        while has_message(self._zap):
            frames = self._zap.recv_multipart()
            sequence, name = frames[1] if len(frames) > 1 else b"", None
            try:
                if len(frames) == 7 and frames[0] == b"1.0" and frames[2] == DOMAIN and frames[5] == b"CURVE":
                    key = z85.encode(frames[6])
                    name = self._allow(key.decode())
            finally:
                status = (b"200", b"", key) if name is not None else (b"400", b"", b"")
                self._zap.send_multipart((b"1.0", sequence, *status, b""))

    def _look_after_the_door(self, now_s: float) -> None:
        strangers = [one for one in self._connections.values() if one.visitor is None]
        if len(strangers) >= MAX_STRANGERS:
            if now_s - strangers[0].since_s > PATIENCE_S:
                strangers[0].show_out()
        elif self._resting and now_s >= self._retry_s and len(self._connections) < MAX_CONNECTIONS:
            self._resting = False
            self._gate.admit()
        if self._has_keys and now_s - self._swept_s > SWEEP_S:
            self._swept_s = now_s
            for one in self._visitors.values():
                if self._allow(one.key) is None:
                    one.refuse(now_s)

    # --- what comes

    def _next(self) -> tuple[Visitor, Any] | None:
        """A message; None for what has no right to be heard."""
        routing_id = self._socket.recv()
        connection = self._visitors.get(routing_id)
        if connection is None:
            connection, frame = self._introduced(routing_id)
        else:
            frame = self._socket.recv()
        if connection is None or connection.visitor is None:
            drop_rest(self._socket)
            return None
        if self._has_keys and self._allow(connection.key) is None:
            connection.refuse(time.monotonic())
            drop_rest(self._socket)
            return None
        if frame == HERE and not self._socket.get(zmq.RCVMORE):
            return None
        visitor = self._speaker = connection.visitor
        try:
            message = unpacked(self._socket, frame, ToBoard)
        except BadMessage as wrong:
            drop_rest(self._socket)
            raise _of(visitor, wrong) from None
        self._announced = message.nbytes if isinstance(message, PAYLOAD_KINDS) else None
        return visitor, message

    def _introduced(self, routing_id: bytes) -> tuple[_Connection | None, bytes]:
        """The first frame of a connection tells which it is, and whose key it has shown."""
        first = self._socket.recv(copy=False)
        self._hear_monitor()  # its beginning was told before, but maybe after we looked
        fd = first.get(zmq.SRCFD)
        connection = self._connections.get(fd) or next((one for one in self._ended if one.fd == fd), None)
        if connection is None:
            return None, b""
        if len(routing_id) != 5 or routing_id[0] != 0 or connection.visitor is not None:
            connection.show_out()  # a name of its own choice, or of another: ZeroMQ's begin with a zero
            return None, b""
        name: str | None = ""
        if self._has_keys:
            connection.key = str(first.get("User-Id"))
            name = self._allow(connection.key)
        if name is None:
            connection.show_out()
            return None, b""
        connection.visitor = Visitor(routing_id, name)
        self._visitors[routing_id] = connection
        return connection, bytes(first.buffer)


def _of(visitor: Visitor | None, wrong: BadMessage) -> BadMessage:
    error = BadMessage(f"{visitor.name if visitor and visitor.name else 'visitor'}: {wrong}")
    error.peer = visitor
    return error


def _await_end(connection: _Connection) -> None:
    """ZeroMQ tells the end before it hands over what came last, and closes the fd after that: microseconds."""
    until_s = time.monotonic() + LAST_FRAMES_S
    while inode_of(connection.fd) == connection.inode and time.monotonic() < until_s:
        os.sched_yield()
