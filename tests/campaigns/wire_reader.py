"""The process that hears hostile frames in the wire campaign: on its standard input, and with a hub as a daemon has it.

`python -m campaigns.wire_reader DIRECTORY`: of each frame (length, union, bytes), and of each message at the hub, a
line says how long it took and whether it was a `message`, was `refused`, or what else happened, which must not.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from any_message import UNIONS, is_well_typed, kinds_of

from hermes_mp.errors import BadMessage
from hermes_mp.host.codec import pack, unpack
from hermes_mp.host.wire import Hub, Poller

HEAD = struct.Struct(">IB")  # bytes of the frame, number of the union
MOST_CHARS = 300  # of a refusal: it becomes a line of a log


def verdict(read: Callable[[], Any], kinds: tuple[type, ...]) -> str:
    """What `read` makes of a frame: as the codec promises, a message of these kinds or BadMessage; nothing of None."""
    try:
        message = read()
    except BadMessage as refusal:
        line = str(refusal)
        return "refused" if len(line) <= MOST_CHARS and "\n" not in line else f"refused at length: {line!a}"
    except Exception as error:
        return f"raised {error!a}"
    if message is None:
        return ""
    if type(message) not in kinds or not is_well_typed(message, type(message)):
        return f"took for a message {message!a}"
    if unpack(pack(message), type(message)) != message:
        return f"does not come back: {message!a}"
    return "message"


def say(read: Callable[[], Any], kinds: tuple[type, ...]) -> bool:
    """The line of one; False where there was none."""
    started_s = time.perf_counter()
    told = verdict(read, kinds)
    if told:
        print(f"{time.perf_counter() - started_s:.6f} {told}", flush=True)
    return bool(told)


def frames(heard: bytearray) -> Iterator[tuple[Any, bytes]]:
    """Take those that are whole: the union, and the frame."""
    while len(heard) >= HEAD.size:
        nbytes, number = HEAD.unpack_from(heard)
        end = HEAD.size + nbytes
        if len(heard) < end:
            return
        frame = bytes(heard[HEAD.size : end])
        del heard[:end]
        yield list(UNIONS.values())[number], frame


def main() -> int:
    hub = Hub(Path(sys.argv[1]))
    everything = tuple(kind for union in UNIONS.values() for kind in kinds_of(union))
    poller = Poller()
    poller.watch(hub)
    poller.watch(0)
    heard = bytearray()
    print("ready", flush=True)
    while True:
        ready = poller.wait(None)
        if 0 in ready:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                hub.close()
                return 0
            heard += chunk
            for union, frame in frames(heard):
                say(functools.partial(unpack, frame, union), kinds_of(union))
        while hub in ready and say(lambda: (hub.receive() or (None, None))[1], everything):
            pass


if __name__ == "__main__":
    sys.exit(main())
