"""A request that is shared with another board, while strangers crowd at that board's door: how much slower it gets.

`python benchmarks/strangers.py` as root. Turn by turn without and with a thousand strangers who connect, say half a
greeting, wait, and come again when they are shown out; from a third board, on the test bed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from on_bed import Boards, make_llama

CROWD = """
import resource, selectors, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
place, words, poll = (sys.argv[1], 7946), bytes.fromhex(sys.argv[2]), selectors.DefaultSelector()
def come():
    one = socket.socket(); one.setblocking(False); one.connect_ex(place); poll.register(one, selectors.EVENT_WRITE)
for _ in range(1000): come()
print("crowded", flush=True)
while True:
    for key, event in poll.select(0.1):
        one = key.fileobj
        try:
            if event & selectors.EVENT_WRITE:
                one.send(words); poll.modify(one, selectors.EVENT_READ); continue
            if one.recv(1000): continue
        except OSError:
            pass
        poll.unregister(one); one.close(); come()
"""
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + bytes(32) + b"\x04\x27\x05HELLO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("bench-models/llama-32x14mb"))
    parser.add_argument("--memory", default="330MiB")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = make_llama(arguments.model)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with Boards(2, model, arguments.memory, extra=1, rate="1gbit", delay="0.3ms", disk="100M") as boards:
        for number in range(2 * arguments.rounds):
            crowded, begun = bool(number % 2), boards.stages("board2")
            crowds: list[subprocess.Popen[bytes]] = []

            def crowd(begun: int = begun, crowds: list[subprocess.Popen[bytes]] = crowds) -> None:
                """Once the head is in."""
                while boards.stages("board2") == begun:
                    time.sleep(0.05)
                command = [sys.executable, "-c", CROWD, boards.bed.address("board2"), GREETING.hex()]
                crowds.append(boards.bed.run("board3", command, stdout=subprocess.PIPE))
                assert crowds[0].stdout is not None
                crowds[0].stdout.readline()

            layers = ",".join("head:1,board2:1" for _ in range(16))
            words = ["--memory", arguments.memory, "--max-new-tokens", str(arguments.tokens), "--split", layers]
            found = boards.launch(*words, meanwhile=crowd if crowded else None)
            seconds[crowded].append(found["report"]["tokens"]["median_s"])
            for one in crowds:
                one.kill()
            print(f"{'a thousand strangers' if crowded else 'nobody else':22} {seconds[crowded][-1]:.3f} s per token",
                  flush=True)  # fmt: skip
    plain, crowded_s = statistics.median(seconds[False]), statistics.median(seconds[True])
    print(f"with strangers {crowded_s / plain:.3f} times as long")


if __name__ == "__main__":
    main()
