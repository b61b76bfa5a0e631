"""Tells a service manager how we are: sd_notify(3), without its library. Nothing happens where there is no manager."""

from __future__ import annotations

import math
import os
import socket
import time
from contextlib import suppress


def tell_supervisor(state: str) -> None:
    """`READY=1`, `WATCHDOG=1`, `STOPPING=1` or `STATUS=...`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.connect("\0" + address[1:] if address[0] == "@" else address)
        out.send(state.encode())


class Watchdog:
    """Call `alive` in each turn of the one loop that matters: when that hangs, the manager hears nothing, and acts.

    No thread does it, for that would live on beside a loop that hangs. Source: sd_watchdog_enabled(3).
    """

    def __init__(self) -> None:
        asked, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
        is_for_us = asked.isascii() and asked.isdigit() and int(asked) > 0 and pid == str(os.getpid())
        self._every_s = int(asked) / 2e6 if is_for_us else math.inf  # half of it, as the manual page has it
        self._next_s = 0.0 if is_for_us else math.inf

    def alive(self) -> None:
        """`WATCHDOG=1`, where it is time for it."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + self._every_s
            tell_supervisor("WATCHDOG=1")
