"""A board that answers probes and pairs, as the store of its user says; each thing that happens is a line.

`python -m campaigns.lan_board [plain] [fds=N]`: `ready ADDRESS` first; then `NAME KIND`, `NAME left`, `NAME refused`.
It ends with its standard input; `plain` is without keys, and with `fds` it may open so many files more.
"""

from __future__ import annotations

import os
import resource
import sys

from hermes_mp.agents.gatekeeper import Gatekeeper
from hermes_mp.board_messages import PairHead, Probe, Probed
from hermes_mp.errors import BadMessage
from hermes_mp.host.lan import LanHub, Left
from hermes_mp.host.pairings import Store
from hermes_mp.host.wire import Poller

TURN_S = 0.25


def answer(hub: LanHub, keeper: Gatekeeper, buffer: memoryview) -> bool:
    """One message, if there is one."""
    try:
        heard = hub.receive()
        if heard is None:
            return False
        visitor, message = heard
        if isinstance(message, Probe):
            hub.payload_into(buffer[: message.nbytes])
    except BadMessage as wrong:
        print(f"{getattr(wrong.peer, 'name', '')} refused", flush=True)
        return True
    if not isinstance(message, Left) and visitor.name and not keeper.may(visitor.name, message):
        print(f"{visitor.name} refused", flush=True)
        return True
    print(f"{visitor.name} {'left' if isinstance(message, Left) else type(message).__name__}", flush=True)
    if isinstance(message, PairHead):
        hub.send(visitor, keeper.pair(visitor.name, message))
    elif isinstance(message, Probe) and message.answer_nbytes <= len(buffer):
        hub.send(visitor, Probed(message.number, message.answer_nbytes), buffer[: message.answer_nbytes])
    return True


def main() -> int:
    words = sys.argv[1:]
    store = Store()
    identity = store.identity()
    keeper = Gatekeeper(store, identity.name if identity else "plain")
    keys = None if identity is None or "plain" in words else identity.keys
    hub = LanHub("127.0.0.1:0", keys, keeper.allow)
    poller = Poller()
    poller.watch(hub)
    poller.watch(0)
    buffer = memoryview(bytearray(1 << 20))
    for word in words:
        if word.startswith("fds="):
            highest = max(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + int(word[4:]), resource.getrlimit(7)[1]))
    print(f"ready {hub.address}", flush=True)
    while True:
        ready = poller.wait(TURN_S)
        if 0 in ready and not os.read(0, 1 << 16):
            hub.close()
            return 0
        while answer(hub, keeper, buffer):
            pass


if __name__ == "__main__":
    sys.exit(main())
