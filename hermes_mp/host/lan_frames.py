"""What both ends of a connection between boards share: the limits of their sockets, and a message as its frames.

A message is one frame, and of the kinds in `WITH_PAYLOAD` a second one of exactly `nbytes` bytes. It knows no peer.
"""

from __future__ import annotations

import struct
from typing import Any, get_args

import zmq

from hermes_mp.board_messages import HEARTBEAT_S, HEARTBEAT_TIMEOUT_S, MAX_PAYLOAD_NBYTES, WITH_PAYLOAD
from hermes_mp.errors import BadMessage
from hermes_mp.host.codec import pack, unpack
from hermes_mp.host.keys import KeyPair
from hermes_mp.host.wire import limited_socket, milliseconds

QUEUE_LENGTH = 8  # messages per peer and direction: with payloads of 1 MiB, 16 MiB of memory per peer
CURVE_NBYTES = 64  # that encryption adds to a frame at most; 33 in libzmq 4.3.5
TIMEOUT_S = HEARTBEAT_TIMEOUT_S - HEARTBEAT_S / 2  # from a heartbeat, which may be 1 s late: 4.5 s at most
HERE = b""  # the first frame of a link: its connection is known by it before it has anything to say
PAYLOAD_KINDS = get_args(WITH_PAYLOAD)
LAST_FRAMES_S = 0.02  # ZeroMQ tells the end of a connection microseconds before it hands over what came before it
_NOTHING = bytearray()
_EVENT = struct.Struct("=HI")


def lan_socket(kind: int, handshake_s: float) -> zmq.Socket[bytes]:
    """A socket in its own context, with our limits; to be told its keys, and to be bound or connected."""
    socket = limited_socket(kind)
    socket.set(zmq.MAXMSGSIZE, MAX_PAYLOAD_NBYTES + CURVE_NBYTES)  # a larger frame costs its sender the connection
    socket.set(zmq.SNDHWM, QUEUE_LENGTH)
    socket.set(zmq.RCVHWM, QUEUE_LENGTH)
    socket.set(zmq.IMMEDIATE, 1)  # else a context never ends whose connection was lost and is not made again (4.3.5)
    socket.set(zmq.HANDSHAKE_IVL, milliseconds(handshake_s))
    socket.set(zmq.HEARTBEAT_IVL, milliseconds(HEARTBEAT_S))
    socket.set(zmq.HEARTBEAT_TIMEOUT, milliseconds(TIMEOUT_S))
    socket.set(zmq.HEARTBEAT_TTL, milliseconds(TIMEOUT_S))
    socket.set(zmq.TCP_MAXRT, milliseconds(HEARTBEAT_TIMEOUT_S))  # what the other host has not acknowledged
    return socket


def encrypt(socket: zmq.Socket[bytes], keys: KeyPair, server_key: str) -> None:
    """The client's half of CURVE."""
    socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
    socket.set(zmq.CURVE_SERVERKEY, server_key.encode())


def packed(message: object, payload: bytes | memoryview | None) -> bytes:
    """The frame of a message; BadMessage where its payload is not the one that it announces."""
    announced = message.nbytes if isinstance(message, PAYLOAD_KINDS) else None
    there = None if payload is None else memoryview(payload).nbytes
    if announced != there or (there or 0) > MAX_PAYLOAD_NBYTES:
        raise BadMessage(f"{type(message).__name__} announces {announced} bytes of payload, and {there} are given")
    return pack(message)


def send_frames(socket: zmq.Socket[bytes], frame: bytes, payload: bytes | memoryview | None) -> None:
    """Raises what ZeroMQ does. The payload is copied, so its place is free at once; encryption costs ten times more."""
    if payload is None:
        socket.send(frame)
    else:
        socket.send(frame, zmq.SNDMORE)
        socket.send(payload)


def unpacked(socket: zmq.Socket[bytes], frame: bytes, union: object) -> Any:
    """The message of a frame that was just received, whose payload is still in the socket where it has one."""
    message = unpack(frame, union)
    announced = message.nbytes if isinstance(message, PAYLOAD_KINDS) else None
    if (announced is not None) != bool(socket.get(zmq.RCVMORE)):
        raise BadMessage(f"{type(message).__name__}: expected {1 if announced is None else 2} frames")
    if announced is not None and announced > MAX_PAYLOAD_NBYTES:
        raise BadMessage(f"{type(message).__name__}: {announced} bytes of payload, more than {MAX_PAYLOAD_NBYTES}")
    return message


def payload_into(socket: zmq.Socket[bytes], into: memoryview, announced: int) -> None:
    """The next frame, to its place; BadMessage where it has another length, or is not the last one."""
    if memoryview(into).nbytes != announced:
        drop_rest(socket)
        raise BadMessage(f"{announced} bytes of payload were announced where {memoryview(into).nbytes} are expected")
    nbytes = socket.recv_into(into if announced else _NOTHING)
    more = bool(socket.get(zmq.RCVMORE))
    drop_rest(socket)
    if nbytes != announced or more:
        raise BadMessage(f"{announced} bytes of payload were announced, {nbytes} came{', and more frames' * more}")


def drop_rest(socket: zmq.Socket[bytes]) -> None:
    """What of a message was not received yet; ready for the next one."""
    while socket.get(zmq.RCVMORE):
        socket.recv_into(_NOTHING)


def event_of(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    """(event, value), see zmq_socket_monitor(3); the address that follows is our own."""
    event, value = _EVENT.unpack(monitor.recv())
    drop_rest(monitor)
    return event, value


def new_keys() -> KeyPair:
    """By the library that uses them."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def keys_of(secret: str) -> KeyPair:
    """A secret key with the public one that belongs to it."""
    return KeyPair(zmq.curve_public(secret.encode()).decode(), secret)
