"""A head's end of the connection to a board: `LanLink`; lan.py has the other end.

No wait is without a deadline, and each ends as soon as the board is known to be gone: by the end of the connection, or
by heartbeats that it does not answer. It knows frames and keys, not what messages mean.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import Any

import zmq

from hermes_mp.board_messages import FromBoard
from hermes_mp.core.address import is_loopback, join_address, split_address
from hermes_mp.errors import BadMessage, BoardLost, DaemonLost, NotAllowed, SystemCallFailed, UnsafeAddress
from hermes_mp.host.keys import KeyPair
from hermes_mp.host.lan_frames import (
    HERE,
    LAST_FRAMES_S,
    PAYLOAD_KINDS,
    drop_rest,
    encrypt,
    event_of,
    lan_socket,
    packed,
    payload_into,
    send_frames,
    unpacked,
)
from hermes_mp.host.wire import LAST_WORDS_MS, close_sockets, has_message, milliseconds

CONNECT_DEADLINE_S = 5.0
SEND_DEADLINE_S = 5.0
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_FAILED = _REFUSED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_ENDED = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED
_AT_LINK = _FAILED | _ENDED | zmq.EVENT_HANDSHAKE_SUCCEEDED


class LanLink:
    """A head's end: a DEALER to one board. Once its connection has ended it stays so: a new link is a new session.

    `death_fd` becomes readable once the daemon is gone, as for `wire.Link`: then every wait ends in DaemonLost.
    """

    def __init__(
        self,
        board: str,
        address: str,
        keys: KeyPair | None,
        server_key: str | None,
        connect_deadline_s: float = CONNECT_DEADLINE_S,
        death_fd: int | None = None,
    ) -> None:
        """Connect; raises BoardLost where nobody answers, NotAllowed where the board refuses us."""
        self._board = f"board {board} ({address})"
        self._death_fd = death_fd
        self._lost = self._up = False
        self._announced: int | None = None
        host, port = split_address(address)
        if (keys is None) != (server_key is None) or (keys is None and not is_loopback(host)):
            raise UnsafeAddress(f"{self._board} is not on loopback, or one of the two keys is missing")
        self._socket = lan_socket(zmq.DEALER, 2 * connect_deadline_s)  # our own deadline comes first
        self._monitor = self._socket.get_monitor_socket(_AT_LINK)
        self._close = weakref.finalize(self, close_sockets, (self._monitor, self._socket))
        self._socket.set(zmq.RECONNECT_IVL, -1)
        self._socket.set(zmq.CONNECT_TIMEOUT, milliseconds(connect_deadline_s))
        self._socket.set(zmq.IPV6, int(":" in host))
        try:
            if keys is not None and server_key is not None:
                encrypt(self._socket, keys, server_key)
            self._connect(f"tcp://{join_address(host, port)}", connect_deadline_s)
        except BaseException:
            self.close()
            raise

    def _connect(self, endpoint: str, deadline_s: float) -> None:
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as reason:
            raise BoardLost(f"{self._board} cannot be reached: {reason.strerror}") from reason
        until_s = time.monotonic() + deadline_s
        while not self._up:
            self._poll(self._monitor, zmq.POLLIN, until_s - time.monotonic(), ())
            self._hear_monitor()
            if self._lost:
                raise BoardLost(f"{self._board} cannot be reached: it refuses the connection")
            if not self._up and time.monotonic() >= until_s:
                raise BoardLost(f"{self._board} did not answer for {deadline_s:g} s")
        self._socket.send(HERE)

    @property
    def sockets(self) -> Sequence[zmq.Socket[bytes]]:
        """For the Poller."""
        return (self._socket, self._monitor)

    def send(
        self, message: object, payload: bytes | memoryview | None = None, deadline_s: float = SEND_DEADLINE_S
    ) -> None:
        """Queue a message, its payload copied; raises BoardLost if there is no room for it within the deadline."""
        frame = packed(message, payload)
        until_s = time.monotonic() + deadline_s
        while True:
            self._hear_monitor()
            if self._lost:
                raise self._loss()
            try:
                return send_frames(self._socket, frame, payload)
            except zmq.Again:
                left_s = until_s - time.monotonic()
            except zmq.ZMQError as reason:
                raise SystemCallFailed(f"nothing can be sent to {self._board}: {reason.strerror}") from reason
            if left_s <= 0:
                raise BoardLost(f"{self._board} took no message for {deadline_s:g} s")
            self._poll(self._socket, zmq.POLLOUT, left_s, ())

    def receive(self, timeout_s: float) -> Any:
        """The next message of `FromBoard`, or None after `timeout_s`; raises BadMessage for anything else that comes.

        Raises BoardLost once the connection has ended, after the messages that had come.
        """
        drop_rest(self._socket)
        self._announced = None
        if not has_message(self._socket) and not self.wait(timeout_s)[0]:
            return None
        try:
            message = unpacked(self._socket, self._socket.recv(), FromBoard)
        except zmq.Again:
            return None
        except BadMessage as wrong:
            drop_rest(self._socket)
            raise BadMessage(f"{self._board}: {wrong}") from None
        self._announced = message.nbytes if isinstance(message, PAYLOAD_KINDS) else None
        return message

    def payload_into(self, into: memoryview) -> None:
        """Receive the payload of the message that came last into its place; BadMessage if its length is another."""
        announced, self._announced = self._announced, None
        if announced is None:
            raise BadMessage(f"{self._board}: no payload is left to be taken")
        try:
            payload_into(self._socket, into, announced)
        except BadMessage as wrong:
            raise BadMessage(f"{self._board}: {wrong}") from None

    def wait(self, timeout_s: float | None, fds: Sequence[int] = ()) -> tuple[bool, set[int]]:
        """Wait for a message or any of `fds`: whether a message is there, and which fds are readable or hung up."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            ready = self._poll(self._socket, zmq.POLLIN, LAST_FRAMES_S if self._lost else left_s, fds)
            mine = {fd for fd in fds if fd in ready}
            if self._socket in ready or mine:
                return has_message(self._socket), mine
            was_lost = self._lost
            self._hear_monitor()
            if was_lost:
                raise self._loss()
            if not self._lost and left_s is not None and time.monotonic() >= (until_s or 0.0):
                return False, set()

    def close(self, last_words: bool = False) -> None:
        """Drop what is queued and close; with `last_words` wait up to 0.5 s until it is sent. May be called again."""
        if self._close.alive:
            if last_words:
                self._socket.set(zmq.LINGER, LAST_WORDS_MS)
            self._socket.disable_monitor()
        self._close()

    def _hear_monitor(self) -> None:
        while has_message(self._monitor):
            event, _ = event_of(self._monitor)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._up = True
            elif event & _FAILED and not self._up:
                what = "refuses our key" if event & _REFUSED else "ended the handshake: its key is not the one we know"
                raise NotAllowed(f"{self._board} {what}")
            elif event & _ENDED:
                self._lost = True

    def _loss(self) -> BoardLost:
        return BoardLost(f"{self._board} is gone")

    def _poll(self, socket: zmq.Socket[bytes], event: int, timeout_s: float | None, fds: Sequence[int]) -> set[Any]:
        """What is ready; DaemonLost if that is the death of our daemon and nothing else."""
        watched: list[tuple[Any, int]] = [(socket, event), *((fd, zmq.POLLIN) for fd in fds)]
        if not self._lost and socket is not self._monitor:
            watched.append((self._monitor, zmq.POLLIN))
        if self._death_fd is not None:
            watched.append((self._death_fd, zmq.POLLIN))
        ready = {key for key, _ in zmq.zmq_poll(watched, milliseconds(timeout_s))}
        if ready == {self._death_fd}:
            raise DaemonLost("the daemon is gone")
        return ready
