"""Wire fuzzing: hostile frames to the codec, to a hub and to a daemon at work; one exception type, and nothing lost.

Codec and hub are in a process of their own, whose memory and descriptors are judged once it is warm. The daemon is
that of a real run, which hears well-formed nonsense of strangers and of incarnations that it never made, and answers.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import zmq
from any_message import UNIONS, any_of, kinds_of
from campaigns.common import PROMPTS, Campaign, Failed, Record, bound, pause
from campaigns.examined import Examined
from campaigns.wire_frames import frame, sound
from campaigns.wire_reader import HEAD
from launching import Launch

from hermes_mp.host.codec import pack
from hermes_mp.host.rundir import PREFIX, SOCKET_NAME, RunDirectory
from hermes_mp.messages import MAX_FRAME_NBYTES, FromCompute, FromLoader, FromViewer

INPUTS = 1000  # of a run: to the codec, ...
AT_THE_HUB = 100  # ... to a hub, ...
AT_A_DAEMON = 20  # ... and to a daemon at work
OF_A_RUN = INPUTS + AT_THE_HUB + AT_A_DAEMON
AT_ONCE = 50
WARM = 2000  # inputs, before memory counts
MOST_GROWTH_KIB = 5 << 10
SLOWEST_S = 5.0  # of one frame: a hang, not a time to be kept
HANG_S = 60.0
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)  # of ZMTP 3.1, so that what follows is a handshake
STRANGERS = [b"stranger", b"loader-02-7", b"loader-2", b"\0\x01", b"x" * 255, "läder-1-1".encode(), b"compute--1"]
UNIONS_AT_HUB = {"loader-{}-{}": FromLoader, "compute-{1}": FromCompute, "viewer-{}-{}": FromViewer}


class WireCampaign(Campaign):
    name = "wire"

    def __init__(self, model: Path, folder: Path, seed: int) -> None:
        super().__init__(model, folder, seed)
        self._ends = contextlib.ExitStack()
        self._before: tuple[int, int] | None = None  # memory and descriptors, once it was warm
        self._inputs = 0

    def run(self, number: int) -> Iterator[Record]:
        chance = self._draws.chance(number)
        verdicts: collections.Counter[str] = collections.Counter()
        slowest_s = 0.0
        made = [frame(chance) for _ in range(INPUTS)]
        for at in range(0, INPUTS, AT_ONCE):
            some = made[at : at + AT_ONCE]
            self._reader.tell(b"".join(HEAD.pack(len(one), list(UNIONS).index(union)) + one for _, one, union in some))
            for how, one, union in some:
                took_s, verdict = self._answer(f"{how}, to {union}: {one[:200]!r}")
                if how == "sound" and verdict != "message":
                    raise Failed(f"a message of {union} is refused: {one[:200]!r}")
                slowest_s = max(slowest_s, took_s)
                verdicts[verdict] += 1
        self._at_the_hub(chance, verdicts)
        self._at_a_daemon(chance)
        self._inputs += OF_A_RUN
        yield self._draws.record(
            number, inputs=OF_A_RUN, verdicts=dict(verdicts), slowest_s=slowest_s,
            grown_kib=self._grown_kib(),
        )  # fmt: skip

    def amount(self, record: Record) -> float:
        return int(record["inputs"])

    def finish(self) -> Iterator[Record]:
        run, _ = self._launch
        ended = run.ended()
        if ended.code != 0:
            raise Failed(f"the run with that daemon ended with {ended.code}: {ended.err[-2000:]!r}")
        yield self._draws.record(-1, inputs=0, verdicts={}, slowest_s=0.0, grown_kib=self._grown_kib(), code=ended.code)

    def summary(self, records: list[Record]) -> Record:
        """Verdicts, and what memory grew by."""
        verdicts: collections.Counter[str] = collections.Counter()
        for one in records:
            verdicts.update(one["verdicts"])
        inputs = sum(one["inputs"] for one in records)
        return {
            "inputs": inputs,
            "at_a_hub": inputs * AT_THE_HUB // OF_A_RUN, "at_a_daemon": inputs * AT_A_DAEMON // OF_A_RUN,
            "verdicts": dict(verdicts), "grown_mib": round(max(one["grown_kib"] for one in records) / 1024, 2),
            "slowest_s": max(one["slowest_s"] for one in records), "bound_95": bound(inputs),
        }  # fmt: skip

    def close(self) -> None:
        self._ends.close()

    # --- the codec and the hub

    @functools.cached_property
    def _directory(self) -> Path:
        directory = RunDirectory.create()
        self._ends.callback(directory.remove)
        return directory.path

    @functools.cached_property
    def _reader(self) -> Examined:
        reader = Examined("campaigns.wire_reader", self._directory)
        self._ends.callback(reader.close)
        reader.answer()
        return reader

    def _answer(self, what: str) -> tuple[float, str]:
        """How long the next verdict took, and what it is; Failed where it is neither of the two."""
        try:
            took, _, verdict = self._reader.answer().partition(" ")
        except Failed as error:
            raise Failed(f"{error}, at {what}") from None
        if verdict not in ("message", "refused") or float(took) > SLOWEST_S:
            raise Failed(f"{verdict} after {took} s, {what}")
        return float(took), verdict

    def _at_the_hub(self, chance: Random, verdicts: collections.Counter[str]) -> None:
        """Through real sockets: peers of all kinds, strangers, several frames, too long ones, and no ZeroMQ at all."""
        endpoint = self._directory / SOCKET_NAME
        with peers(endpoint) as connect:
            named = [f"{kind}-{at}-1".encode() for at in range(10) for kind in ("loader", "viewer")]
            for identity in chance.sample([*STRANGERS, b"", *named, b"compute-1", b"compute-9"], AT_THE_HUB // 10):
                dealer = connect(identity)
                for _ in range(10):
                    parts = [frame(chance)[1][:MAX_FRAME_NBYTES] for _ in range(chance.choice((1, 1, 1, 2, 5, 20)))]
                    dealer.send_multipart(parts)
                    verdicts[self._answer(f"{identity!r} with {len(parts)} frames")[1]] += 1
            connect(b"loader-1-2").send(b"\0" * (MAX_FRAME_NBYTES + 1))  # costs the sender its connection
            for greeting in (b"", chance.randbytes(100), GREETING, GREETING + chance.randbytes(300)):
                with socket.socket(socket.AF_UNIX) as plain, contextlib.suppress(BrokenPipeError):
                    plain.connect(str(endpoint))
                    plain.sendall(greeting)
            connect(b"loader-1-3").send(sound(chance, FromLoader))
            while self._answer("a message after those")[1] != "message":  # random bytes may be frames in ZMTP 1.0
                pass

    def _grown_kib(self) -> int:
        """Since it was warm; Failed where that is too much, or a descriptor is left of a peer that went."""
        kib, fds = self._reader.kib("VmRSS"), self._reader.fds()
        if self._inputs < WARM or self._before is None:
            self._before = kib, fds
        deadline = time.monotonic() + HANG_S
        while self._reader.fds() > self._before[1]:  # the io thread closes them a moment later
            if time.monotonic() > deadline:
                raise Failed(f"{self._reader.fds()} descriptors, where there were {self._before[1]}")
            time.sleep(0.01)
        if kib - self._before[0] > MOST_GROWTH_KIB:
            raise Failed(f"memory grew from {self._before[0]} to {kib} KiB")
        return kib - self._before[0]

    # --- a daemon at work

    @functools.cached_property
    def _launch(self) -> tuple[Launch, Iterator[int]]:
        run = Launch(self._draws.home(0), *self._ground.words(2), lines=True)
        self._ends.enter_context(run)
        return run, itertools.count(1)

    def _at_a_daemon(self, chance: Random) -> None:
        """Messages of whom there is not, and its answer to a prompt meanwhile."""
        ground = self._ground
        run, answers = self._launch
        prompt = chance.choice(PROMPTS)
        run.write(prompt + "\n")
        count = next(answers)
        run.wait_for(lambda _: self._endpoints())
        with peers(self._endpoints()[0]) as connect:
            for at in range(AT_A_DAEMON):
                words, union = chance.choice(list(UNIONS_AT_HUB.items()))
                number, epoch = chance.choice((0, 1, 7)), 1000 + at
                message = any_of(chance.choice(kinds_of(union)), chance)
                if union is FromLoader:
                    message = dataclasses.replace(message, loader=number, epoch=epoch)
                connect(words.format(number, epoch).encode()).send(pack(message))
                connect(chance.choice(STRANGERS)).send(frame(chance)[1][:MAX_FRAME_NBYTES])
            asked_s = time.monotonic()
            while run.out.count("\n") < count:
                pause(run, 0.02)
                if time.monotonic() - asked_s > HANG_S:
                    raise Failed(f"no answer for {HANG_S:g} s: {run.out[-500:]!r} {run.err[-2000:]!r}")
        if run.out.splitlines()[-1] != ground.answers[prompt] or "Traceback" in run.err:
            raise Failed(f"answered {run.out.splitlines()[-1]!r}, said {run.err[-2000:]!r}")

    def _endpoints(self) -> list[Path]:
        """The sockets of runs, but not that of our own hub."""
        runtime = Path(os.environ["XDG_RUNTIME_DIR"])
        return [path for path in runtime.glob(f"{PREFIX}*/{SOCKET_NAME}") if path.parent != self._directory]


@contextlib.contextmanager
def peers(path: Path) -> Iterator[Callable[[bytes], Any]]:
    """Makes peers of the hub there that keep to none of our rules: each with the name that it is given."""
    context = zmq.Context()

    def connect(identity: bytes) -> Any:
        dealer = context.socket(zmq.DEALER)
        if identity:
            dealer.set(zmq.ROUTING_ID, identity)
        dealer.connect(f"ipc://{path}")
        return dealer

    try:
        yield connect
    finally:
        context.destroy(linger=1000)
