"""A board that lends, as small as it can be: `python -m boards.lender MODEL LISTEN LOADERS [LEND_NBYTES]` in tests/.

Its keys and its heads are the store's in `$XDG_CONFIG_HOME`; with an empty store it talks in plain text on loopback.
It says "ready ADDRESS", and a line for everything that happens; SIGTERM ends it.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from hermes_mp.agents.lending import Lending
from hermes_mp.board_messages import PROTOCOL, AskFile, GrantCredit, Hello, LendUnit, Refused, Welcome
from hermes_mp.errors import BadMessage, HermesError, ModelsDiffer
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.host.fingerprint import fingerprint
from hermes_mp.host.lan import LanHub, Left, Visitor
from hermes_mp.host.pairings import Store
from hermes_mp.host.wire import Poller

IDLE_S = 0.25


def main() -> None:
    model, listen, loaders = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    lend_nbytes = int(sys.argv[4]) if len(sys.argv) > 4 else 32 << 20
    checkpoint = find_checkpoint(model)
    ours = fingerprint(checkpoint)
    store = Store()
    identity = store.identity()

    def allow(key: str) -> str | None:
        return next((name for name, head in store.pairings().heads.items() if head == key), None)

    def say(text: str) -> None:
        print(text, flush=True)

    lan = LanHub(listen, None if identity is None else identity.keys, allow)
    greeted: set[Visitor] = set()
    poller = Poller()
    poller.watch(lan)
    lending = Lending(
        lan, lambda visitor: checkpoint if visitor in greeted else None, loaders, lend_nbytes, poller, say
    )
    over: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: over.append(number))

    def greet(visitor: Visitor, hello: Hello) -> None:
        if hello.fingerprint not in ("", ours):
            error = ModelsDiffer(f"{hello.model} is {hello.fingerprint[:12]} on the head and {ours[:12]} here")
            lan.send(visitor, Refused(error.exit_code, str(error)))
            return
        greeted.add(visitor)
        has_it = hello.fingerprint or hello.model == model.name
        lan.send(visitor, Welcome(PROTOCOL, hello.software, "nas", ours if has_it else "", "{}"))

    say(f"ready {lan.address}")
    while not over:
        for key in poller.wait(lending.hurry_s or IDLE_S):
            if key is not lan:
                lending.readable(key)
        while True:
            try:
                received = lan.receive()
            except (BadMessage, HermesError) as error:
                say(str(error))
                if isinstance(error, BadMessage) and isinstance(error.peer, Visitor):
                    lan.dismiss(error.peer)
                continue
            if received is None:
                break
            visitor, message = received
            if isinstance(message, Hello):
                greet(visitor, message)
            elif isinstance(message, Left):
                lending.left(visitor)
                greeted.discard(visitor)
                say(f"left, {len(greeted)} are there, {len(lending.pids)} processes, {lending.nbytes} bytes")
            elif isinstance(message, LendUnit | GrantCredit | AskFile):
                lending.handle(visitor, message)
        lending.turn()
    lending.close()
    lan.close()


if __name__ == "__main__":
    main()
