"""Fuzzing between boards: hostile frames of a paired head, first bytes of strangers, keys that nobody knows.

The board is a process of its own (lan_board.py), whose memory and descriptors are judged once it is warm; beside each
batch another head is served. One exception type, and nobody unknown is heard.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import zmq
from campaigns.common import Campaign, Failed, Record, bound
from campaigns.examined import Examined
from campaigns.wire_frames import frame

from hermes_mp.board_messages import FromBoard, Probe, Probed, ToBoard
from hermes_mp.host.keys import KeyPair
from hermes_mp.host.lan import LanLink, new_keys
from hermes_mp.host.pairings import Identity, Store

UNIONS: dict[str, Any] = {"ToBoard": ToBoard, "FromBoard": FromBoard}
OF_A_HEAD, OF_STRANGERS, UNKNOWN_KEYS = 180, 15, 5
OF_A_RUN = OF_A_HEAD + OF_STRANGERS + UNKNOWN_KEYS
AT_ONCE = 20
WARM = 400  # inputs, before memory counts
MOST_GROWTH_KIB = 5 << 10
SHOWN_OUT_S = 10.0
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + bytes(32)


class LanCampaign(Campaign):
    name = "lan"

    def __init__(self, model: Path, folder: Path, seed: int) -> None:
        super().__init__(model, folder, seed)
        self._ends = contextlib.ExitStack()
        self._keys = {"hostile": new_keys(), "desk": new_keys()}
        self._before: tuple[int, int] | None = None
        self._inputs = 0

    def run(self, number: int) -> Iterator[Record]:
        chance = self._draws.chance(number)
        verdicts: collections.Counter[str] = collections.Counter()
        self._by_a_head(chance, verdicts)
        for _ in range(OF_STRANGERS):
            self._by_a_stranger(_first_bytes(chance))
        self._with_unknown_keys(chance)
        self._served(verdicts)
        self._inputs += OF_A_RUN
        yield self._draws.record(number, inputs=OF_A_RUN, verdicts=dict(verdicts), grown_kib=self._grown_kib())

    def amount(self, record: Record) -> float:
        return int(record["inputs"])

    def summary(self, records: list[Record]) -> Record:
        verdicts: collections.Counter[str] = collections.Counter()
        for one in records:
            verdicts.update(one["verdicts"])
        inputs = sum(one["inputs"] for one in records)
        grown_mib = round(max(one["grown_kib"] for one in records) / 1024, 2)
        return {"inputs": inputs, "verdicts": dict(verdicts), "grown_mib": grown_mib, "bound_95": bound(inputs)}

    def close(self) -> None:
        self._ends.close()

    # --- the board, and who comes to it

    @functools.cached_property
    def _board(self) -> tuple[Examined, str, str]:
        """The process, its address and its public key."""
        os.environ["XDG_CONFIG_HOME"] = str(self._folder / "config")
        store, keys = Store(), new_keys()
        store.keep_identity(Identity("shelf", "127.0.0.1:7946", keys))
        with store.change(0) as pairings:
            pairings.heads = {name: one.public for name, one in self._keys.items()}
        process = Examined("campaigns.lan_board")
        self._ends.callback(process.close)
        return process, process.answer().removeprefix("ready "), keys.public

    @functools.cached_property
    def _desk(self) -> LanLink:
        _, address, key = self._board
        link = LanLink("shelf", address, self._keys["desk"], key)
        self._ends.callback(link.close)
        return link

    def _served(self, verdicts: collections.Counter[str]) -> None:
        """Our own head beside it; and all that the board has said until then."""
        self._desk.send(Probe(1, 9, 9), bytes(9))
        if self._desk.receive(30.0) != Probed(1, 9):
            raise Failed("a paired head was not served")
        process, _, _ = self._board
        while (line := process.answer()) != "desk Probe":
            name, _, what = line.partition(" ")
            if name not in ("hostile", "desk"):
                raise Failed(f"somebody unknown was heard: {line!r}")
            verdicts[what if what in ("refused", "left") else "message"] += 1

    def _by_a_head(self, chance: Random, verdicts: collections.Counter[str]) -> None:
        _, address, key = self._board
        for _ in range(0, OF_A_HEAD, AT_ONCE):
            name = chance.choice((b"", b"", b"", b"loader-1-1", chance.randbytes(chance.randint(1, 20)) + b"x"))
            with _dealer(address, self._keys["hostile"], key, name) as dealer:
                for _ in range(AT_ONCE):
                    parts = [frame(chance, UNIONS)[1] for _ in range(chance.choice((1, 1, 1, 2, 2, 5, 20)))]
                    if len(parts) > 1 and chance.random() < 0.3:
                        parts[1] = chance.randbytes(chance.choice((0, 1, 1000, 1 << 20)))
                    try:
                        dealer.send_multipart(parts)
                    except zmq.Again:  # it was shown out
                        break
                self._served(verdicts)

    def _by_a_stranger(self, words: bytes) -> None:
        host, port = self._board[1].rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=SHOWN_OUT_S) as one:
            try:
                one.sendall(words)
                one.shutdown(socket.SHUT_WR)
                while one.recv(1 << 16):
                    pass
            except TimeoutError:
                raise Failed(f"a stranger was let stay: {words[:200]!r}") from None
            except OSError:
                return

    def _with_unknown_keys(self, chance: Random) -> None:
        _, address, key = self._board
        with contextlib.ExitStack() as stack:
            for _ in range(UNKNOWN_KEYS):
                server_key = key if chance.random() < 0.7 else new_keys().public
                dealer = stack.enter_context(_dealer(address, new_keys(), server_key, b""))
                with contextlib.suppress(zmq.Again):
                    dealer.send(frame(chance, UNIONS)[1])

    def _grown_kib(self) -> int:
        process, _, _ = self._board
        kib, fds = process.kib("VmRSS"), process.fds()
        if self._inputs <= WARM or self._before is None:
            self._before = kib, fds
        until_s = time.monotonic() + SHOWN_OUT_S
        while process.fds() > self._before[1] + 8:  # who has just left
            if time.monotonic() > until_s:
                raise Failed(f"{process.fds()} descriptors, where there were {self._before[1]}")
            time.sleep(0.05)
        if kib - self._before[0] > MOST_GROWTH_KIB:
            raise Failed(f"memory grew from {self._before[0]} to {kib} KiB")
        return kib - self._before[0]


def _first_bytes(chance: Random) -> bytes:
    """A greeting, mostly, and what should not follow it."""
    said = bytearray(GREETING)
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        said[chance.randrange(len(said))] = chance.randrange(256)
    flags, nbytes = chance.choice((0, 1, 2, 3, 4, 6, 7, 255)), chance.choice((0, 5, 1 << 20, 1 << 33, (1 << 64) - 1))
    hello = b"\x05HELLO\x01\x00" + bytes(72) + chance.randbytes(32) + bytes(8) + chance.randbytes(80)
    follows = chance.choice((
        b"", chance.randbytes(300), bytes([flags]) + nbytes.to_bytes(8, "big") + chance.randbytes(100),
        b"\x04" + bytes([len(hello)]) + hello, b"\x04\x06\x05ERROR", bytes([flags, 5]) + b"hello",
    ))  # fmt: skip
    return bytes(said[: chance.choice((0, 10, 11, 64, 64, 64, 64))]) + follows


@contextlib.contextmanager
def _dealer(address: str, keys: KeyPair, server_key: str, name: bytes) -> Iterator[Any]:
    """A peer that keeps to none of our rules but CURVE."""
    context = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        if name:
            dealer.set(zmq.ROUTING_ID, name)
        dealer.set(zmq.SNDTIMEO, 200)
        dealer.set(zmq.RECONNECT_IVL, -1)
        dealer.set(zmq.IMMEDIATE, 1)  # libzmq 4.3.5 never ends a context with unsent messages of a lost connection else
        dealer.curve_publickey, dealer.curve_secretkey = keys.public.encode(), keys.secret.encode()
        dealer.curve_serverkey = server_key.encode()
        dealer.connect(f"tcp://{address}")
        yield dealer
    finally:
        context.destroy(linger=300)
