"""A board in its default configuration, seen from the network: every port of it is tried, and none answers."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from testbed import TestBed, why_not

from hermes_mp.core.address import DEFAULT_PORT

BOARD = [sys.executable, "-m", "hermes_mp.cli.board", "serve"]
# Tries every port of an address, 500 connections at a time, and prints those that answered.
SCAN = """
import selectors, socket, sys
address, left, open_ports = sys.argv[1], list(range(1, 65536)), []
poll = selectors.DefaultSelector()
while left or poll.get_map():
    while left and len(poll.get_map()) < 500:
        one = socket.socket()
        one.setblocking(False)
        port = left.pop()
        if one.connect_ex((address, port)) == 0:
            open_ports.append(port)
            one.close()
        else:
            poll.register(one, selectors.EVENT_WRITE, port)
    found = poll.select(2)
    assert found, "silence: a port neither answers nor refuses"
    for key, _ in found:
        if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            if key.fileobj.getsockname() != key.fileobj.getpeername():  # who is given that port meets itself
                open_ports.append(key.data)
        poll.unregister(key.fileobj)
        key.fileobj.close()
print(sorted(open_ports))
"""


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_without_keys_nothing_answers_beyond_loopback() -> None:
    with TestBed(2) as bed:
        board = bed.run("board2", BOARD, stderr=subprocess.PIPE)
        assert board.stderr is not None
        said = next(line for line in board.stderr if b" serves at " in line)
        assert f"127.0.0.1:{DEFAULT_PORT}".encode() in said
        until_s = time.monotonic() + 100

        def scan(board: str, address: str) -> str:
            run = bed.run(board, [sys.executable, "-c", SCAN, address], stdout=subprocess.PIPE)
            return run.communicate(timeout=until_s - time.monotonic())[0].decode().strip()

        assert scan("board1", bed.address("board2")) == "[]"
        assert scan("board2", bed.address("board2")) == "[]"  # its own address of the network
        assert scan("board2", "127.0.0.1") == f"[{DEFAULT_PORT}]"  # so the scan does find what is there
        board.terminate()
        board.communicate(timeout=20)
