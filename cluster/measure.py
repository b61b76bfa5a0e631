"""What a board of a test bed really has: goodput and round trip of TCP to another one, and how fast its disk reads.

`measure.py serve` answers on every address, `measure.py link ADDRESS` prints "MB/s ms" (`stream`: MB/s alone),
`measure.py disk FILE` prints MB/s of reading past the page cache. It knows nothing of test beds: real boards will do.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import sys
import time

PORT = 5201
BLOCK_NBYTES = 1 << 20
STREAM_S, SPARE_S = 2.0, 0.3  # what is measured; before it, TCP finds its speed
READ_S = 2.0
TRIPS, PAUSE_S = 200, 0.002
DEADLINE_S = 30.0
ECHO, SINK = b"e", b"s"


def serve() -> None:
    """One asker at a time, until killed: echoes, or swallows and says how much."""
    with socket.create_server(("", PORT)) as server:
        print("ready", flush=True)
        while True:
            asker, _ = server.accept()
            with asker:
                asker.settimeout(DEADLINE_S)
                asker.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                (_echo if asker.recv(1) == ECHO else _swallow)(asker)


def _echo(asker: socket.socket) -> None:
    while received := asker.recv(64):
        asker.sendall(received)


def _swallow(asker: socket.socket) -> None:
    """Count what comes from SPARE_S on, for STREAM_S: at this end, for much of what was sent still lies in buffers."""
    block = bytearray(BLOCK_NBYTES)
    began = time.monotonic() + SPARE_S
    while time.monotonic() < began and asker.recv_into(block):
        pass
    began, nbytes = time.monotonic(), 0
    while time.monotonic() < began + STREAM_S and (received := asker.recv_into(block)):
        nbytes += received
    asker.sendall(f"{nbytes / (time.monotonic() - began) / 1e6:.2f}".encode())
    with contextlib.suppress(ConnectionResetError):
        while asker.recv_into(block):  # to close with something unread would take the answer back
            pass


def round_trip_ms(address: str) -> float:
    """There and back: the median."""
    with socket.create_connection((address, PORT), DEADLINE_S) as echo:
        echo.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        echo.sendall(ECHO)
        trips: list[float] = []
        while len(trips) < TRIPS and sum(trips) < STREAM_S:
            began = time.perf_counter()
            echo.sendall(b"?")
            echo.recv(64)
            trips.append(time.perf_counter() - began)
            time.sleep(PAUSE_S)  # idle: what the link adds, not what a busy wire does
    return sorted(trips)[len(trips) // 2] * 1e3


def goodput(address: str) -> str:
    """MB/s from here to there, as the other end has counted them."""
    with socket.create_connection((address, PORT), DEADLINE_S) as sink:
        sink.sendall(SINK)
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # the rest is not worth sending
        sink.setblocking(False)
        block = bytes(BLOCK_NBYTES)
        while True:
            answered, free, _ = select.select([sink], [sink], [], DEADLINE_S)
            if answered:
                return sink.recv(64).decode()
            if not free:
                raise TimeoutError(f"{address} takes nothing for {DEADLINE_S:g} s")
            sink.send(block)


def measured_disk(path: str) -> float:
    """MB/s."""
    with mmap.mmap(-1, BLOCK_NBYTES) as block:  # aligned, as O_DIRECT needs it
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            began, nbytes, offset = time.monotonic(), 0, 0
            while time.monotonic() < began + READ_S:
                received = os.preadv(fd, [block], offset)
                nbytes, offset = nbytes + received, (offset + received if received == BLOCK_NBYTES else 0)
            return nbytes / (time.monotonic() - began) / 1e6
        finally:
            os.close(fd)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            serve()
        case ["link", address]:
            print(goodput(address), f"{round_trip_ms(address):.3f}")
        case ["stream", address]:
            print(goodput(address))
        case ["disk", path]:
            print(f"{measured_disk(path):.1f}")
        case _:
            sys.exit(__doc__)
