"""What the kernel says of a process in /proc/PID/stat: its state, its times, and how often it waited for a page."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

STATES = {
    "R": "running", "S": "asleep", "D": "waiting for a disk", "T": "stopped", "t": "stopped by a debugger", "Z": "gone",
}  # fmt: skip


@dataclass(frozen=True)
class Stat:
    """`ticks`: processor time; `started_ticks`: since boot; `major_faults`: waits for a page from a disk."""

    state: str
    ticks: int
    started_ticks: int
    major_faults: int


def look(pid: int | str) -> Stat:
    """At this moment, of a process or of "self"; one that is gone has had nothing."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            words = file.read().rpartition(")")[2].split()  # the program's name may hold anything
    except (FileNotFoundError, ProcessLookupError):
        return Stat("gone", 0, 0, 0)
    state = STATES.get(words[0], f"in state {words[0]}")
    return Stat(state, int(words[11]) + int(words[12]), int(words[19]), int(words[9]))


def state_of(pid: int) -> str:
    """Of a process: of its first thread, or where that has ended of another one that has not."""
    state = look(pid).state
    with contextlib.suppress(OSError):
        others = (look(f"{pid}/task/{thread}").state for thread in os.listdir(f"/proc/{pid}/task"))
        return next((one for one in others if one != "gone"), state) if state == "gone" else state
    return state
