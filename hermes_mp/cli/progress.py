"""How a wait looks: a bar on a terminal, now and then a line elsewhere. It knows nothing of answers.

On a terminal a wait is never silent. While an answer is being written and the cursor stands in the middle of its
line, a bar would overwrite the text: then a few words stand behind it, and the cursor is put back.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

SAVE, RESTORE, ERASE_REST, DIM, PLAIN = "\0337", "\0338", "\033[K", "\033[2m", "\033[0m"
SETTLED_S = 0.7  # no words behind text that still flows
FIRST_LINE_S, LAST_LINE_S, SLOWER = 2.0, 30.0, 1.5


@dataclass(frozen=True)
class Status:
    """What is going on since `since_s`: a phase, or the units of a pass."""

    text: str
    since_s: float
    done: int = 0
    total: int = 0
    nbytes: int = 0

    def words(self, now_s: float) -> str:
        """One short line."""
        if not self.total:
            return self.text
        rate = f", {self.nbytes / 1e6 / (now_s - self.since_s):.0f} MB/s" if now_s > self.since_s + 0.1 else ""
        return f"{self.text} {self.done}/{self.total}{rate}"


class Progress(Protocol):
    """Shows a status on the error stream."""

    def show(self, status: Status, now_s: float, room: int | None, quiet_s: float) -> None:
        """Draw it. `room`: columns left behind the text, None at the start of a line; text last came `quiet_s` ago."""

    def clear(self) -> None:
        """Take away what is drawn, before something else is written."""


class TerminalProgress:
    """tqdm's bar, or words behind the text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None
        self._shown: Status | None = None
        self._behind_text = False
        self._turn = 0

    def show(self, status: Status, now_s: float, room: int | None, quiet_s: float) -> None:
        if room is not None:
            if quiet_s >= SETTLED_S:
                self._show_behind(status, now_s, room)
            return
        if self._bar is None or self._shown is None or status.since_s != self._shown.since_s:
            self._close_bar()
            self._bar = _make_bar(self._stream, status)
        self._shown = status
        seconds = now_s - status.since_s
        self._bar.n = status.done
        if status.total:
            self._bar.set_postfix_str(f"{status.nbytes / 1e6 / max(seconds, 0.1):.0f} MB/s", refresh=False)
        else:
            self._bar.set_description_str(f"{status.text} {'.' * (self._turn % 4):3} {seconds:.0f} s", refresh=False)
        self._turn += 1
        self._bar.refresh()

    def clear(self) -> None:
        if self._behind_text:
            self._behind_text = False
            self._stream.write(ERASE_REST)
            self._stream.flush()
        self._close_bar()

    def _show_behind(self, status: Status, now_s: float, room: int) -> None:
        self._turn += 1
        words = f"  [{status.words(now_s)}, {now_s - status.since_s:.0f} s]"
        short = f" {status.done}/{status.total}" if status.total else ""
        tick = " " + "|/-\\"[self._turn % 4]
        # The last column is left alone: behind it terminals disagree where the cursor is.
        fits = next((one for one in (words, short + tick, tick) if len(one) < room), "")
        if fits:
            self._behind_text = True
            self._stream.write(f"{ERASE_REST}{SAVE}{DIM}{fits}{PLAIN}{RESTORE}")
            self._stream.flush()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class PlainProgress:
    """A line when something changed, the first after 2 s, then ever more rarely."""

    def __init__(self, stream: TextIO, now_s: float) -> None:
        self._stream = stream
        self._next_s = now_s + FIRST_LINE_S
        self._interval_s = FIRST_LINE_S
        self._shown = ""

    def show(self, status: Status, now_s: float, room: int | None, quiet_s: float) -> None:
        words = status.words(now_s)
        if now_s < self._next_s or words == self._shown:
            return
        self._interval_s = min(self._interval_s * SLOWER, LAST_LINE_S) if status.total else FIRST_LINE_S
        self._next_s = now_s + self._interval_s
        self._shown = words
        self._stream.write(words + "\n")
        self._stream.flush()

    def clear(self) -> None:
        """A line stays where it is."""


def _make_bar(stream: TextIO, status: Status) -> Any:
    from tqdm.std import tqdm  # 6 MB and 50 ms, which a run that is not watched does not pay

    # Without a lock of ours tqdm makes a semaphore of multiprocessing's, and a thread that wakes up for every bar.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    layout = "{desc} {percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt}{postfix}" if status.total else "{desc}"
    # A serial console says that it has 0 columns, and tqdm then draws nothing at all.
    columns, rows = (None, None) if _columns(stream) else (80, 24)
    return tqdm(
        total=status.total or None, desc=status.text, file=stream, leave=False, bar_format=layout,
        dynamic_ncols=columns is None, ncols=columns, nrows=rows,
    )  # fmt: skip


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:  # no terminal, or none that knows its size
        return 0
