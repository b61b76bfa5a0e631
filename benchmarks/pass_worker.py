"""One model in a process of its own, for pass_time.py: told over standard input how many passes to run, answers JSON.

    python benchmarks/pass_worker.py streamed|plain DIRECTORY CASE LOADERS MEMORY

Its first line says that it is ready. For every number it reads: seconds, seconds stalled, and bytes that the
loaders read from the disk, as the kernel counts them; all for that many passes together. And the arena's pages.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from cases import CASES, passes, plain_model


def main() -> None:
    kind, directory, case, loaders, memory = sys.argv[1:]
    if kind == "plain":
        model = plain_model(Path(directory))
    else:
        from hermes_mp import load

        model = load(directory, loaders=int(loaders), memory=None if memory == "none" else memory)
    with torch.inference_mode():
        run = passes(CASES[case], model)
        run()
        stalled = Stalls(model) if kind == "streamed" else None
        print(json.dumps({"threads": torch.get_num_threads()} | arena(model, kind)), flush=True)
        for line in sys.stdin:
            pages = model._hermes_binder.supply._arena.pages if kind == "streamed" else ""
            print(json.dumps(timed(run, int(line), stalled) | {"pages": pages}), flush=True)
    if kind == "streamed":
        model.close()


def arena(model: Any, kind: str) -> dict[str, int]:
    """Where the arena is, and how much of it is allocated: its slots lie side by side from its start."""
    if kind == "plain":
        return {}
    supply = model._hermes_binder.supply
    return {"arena_fd": supply._arena.fd, "arena_nbytes": supply.divided.slots * supply.divided.slot_nbytes}


class Stalls:
    """Sums up how long compute waits for units."""

    def __init__(self, model: Any) -> None:
        supply = model._hermes_binder.supply
        acquire: Callable[[int], int] = supply.acquire
        self.seconds = 0.0

        def timed_acquire(unit: int) -> int:
            started = time.perf_counter()
            base = acquire(unit)
            self.seconds += time.perf_counter() - started
            return base

        supply.acquire = timed_acquire


def timed(run: Callable[[], Any], count: int, stalls: Stalls | None) -> dict[str, float]:
    """Run `count` passes."""
    before = read_nbytes()
    if stalls:
        stalls.seconds = 0.0
    started = time.perf_counter()
    for _ in range(count):
        run()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "stalled": stalls.seconds if stalls else 0.0, "nbytes": read_nbytes() - before}


def read_nbytes() -> int:
    """Bytes that all processes behind this one have read from disks so far."""
    total = 0
    for child in psutil.Process(os.getpid()).children(recursive=True):
        for line in Path(f"/proc/{child.pid}/io").read_text().splitlines():
            name, _, value = line.partition(":")
            total += int(value) if name == "read_bytes" else 0
    return total


if __name__ == "__main__":
    main()
