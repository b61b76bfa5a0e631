"""What encryption costs: MB/s of 1 MiB payloads from a board to a head over loopback, with keys and without.

    python benchmarks/curve_cost.py --rounds 5 --payloads 200

Two processes, one per end; both ways take turns, medians over the rounds. `cpu` is that of both processes together.
"""

from __future__ import annotations

import argparse
import multiprocessing.connection as connection
import os
import statistics
import sys
import time

from hermes_mp.board_messages import MAX_PAYLOAD_NBYTES, GrantCredit, Probed
from hermes_mp.host.keys import KeyPair
from hermes_mp.host.lan import LanHub, LanLink, Visitor, new_keys
from hermes_mp.host.wire import Poller


def send_all(hub: LanHub, payloads: int) -> None:
    """The board's end: for each GrantCredit so many payloads, until the head goes."""
    poller, payload = Poller(), memoryview(bytearray(os.urandom(MAX_PAYLOAD_NBYTES)))
    poller.watch(hub)
    left, visitor = 0, Visitor(b"", "")
    while True:
        poller.wait(0.0002 if left else 0.5)  # a full queue has no event
        found = hub.receive()
        if found is not None:
            visitor, message = found
            if not isinstance(message, GrantCredit):
                return
            left += payloads
        while left and hub.send(visitor, Probed(left, MAX_PAYLOAD_NBYTES), payload):
            left -= 1


def measure(encrypted: bool, rounds: int, payloads: int) -> list[tuple[float, float]]:
    """(MB/s, seconds of processor per GB) of each round."""
    board_keys: KeyPair | None = new_keys() if encrypted else None
    head_keys = new_keys() if encrypted else None
    reader, writer = connection.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        hub = LanHub("127.0.0.1:0", board_keys, lambda key: "head" if head_keys and key == head_keys.public else None)
        writer.send_bytes(hub.address.encode())
        send_all(hub, payloads)
        hub.close()
        os._exit(0)
    link = LanLink("board", reader.recv_bytes().decode(), head_keys, board_keys.public if board_keys else None)
    place, found = memoryview(bytearray(MAX_PAYLOAD_NBYTES)), []
    for _ in range(rounds + 1):
        started_s, cpu_s = time.monotonic(), cpu_of(pid) + cpu_of(os.getpid())
        link.send(GrantCredit(1))
        for _ in range(payloads):
            if link.receive(10.0) is None:
                sys.exit("nothing came for 10 s")
            link.payload_into(place)
        took_s, cpu_s = time.monotonic() - started_s, cpu_of(pid) + cpu_of(os.getpid()) - cpu_s
        nbytes = payloads * MAX_PAYLOAD_NBYTES
        found.append((nbytes / took_s / 1e6, cpu_s / nbytes * 1e9))
    link.close()
    os.waitpid(pid, 0)
    return found[1:]  # the first one warms up


def cpu_of(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--payloads", type=int, default=200, help="of 1 MiB, per round")
    options = parser.parse_args()
    print(f"{'':<10} {'MB/s':>7} {'cpu s/GB':>9}")
    for name, encrypted in (("plain", False), ("CURVE", True)):
        found = measure(encrypted, options.rounds, options.payloads)
        rate, cpu = (statistics.median(one[at] for one in found) for at in (0, 1))
        print(f"{name:<10} {rate:>7.0f} {cpu:>9.2f}")


if __name__ == "__main__":
    main()
