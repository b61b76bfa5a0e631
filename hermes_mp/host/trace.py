"""Writes Chrome trace-event JSON, as it happens, for ui.perfetto.dev: one row per agent, a board as the process.

The array form of the format (Trace Event Format, Google): a reader accepts it without its end, so a killed run's
trace can still be opened; `close` makes it whole JSON. It knows no message: the daemon says what happened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType

from hermes_mp.errors import BadOption

BOARD = 1


class TraceWriter:
    """A trace file. Times are nanoseconds of one clock; `started_ns` becomes 0 of the picture."""

    def __init__(self, path: str, started_ns: int, board: str = "this board") -> None:
        try:
            # Closed in close(): it is written to during the whole run.
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            why = f"the trace {path} cannot be written: {error.strerror}"
            raise BadOption(why, "name another --trace FILE") from error
        self._path = path
        self._started_ns = started_ns
        self._rows: dict[str, int] = {}
        self._separator = "[\n"
        self.failure: str | None = None  # set where the disk refused: the run matters more than its picture
        self._write({"ph": "M", "name": "process_name", "pid": BOARD, "tid": 0, "args": {"name": board}})

    def complete(self, row: str, name: str, started_ns: int, ended_ns: int, **facts: int | str) -> None:
        """Something that took time: a read, a wait, a computation, a pass."""
        duration = max(0, ended_ns - started_ns) / 1000
        self._write({"ph": "X", "name": name, "dur": duration, **self._at(row, started_ns), "args": facts})

    def instant(self, row: str, name: str, at_ns: int, **facts: int | str) -> None:
        """Something that took none: the command started, the first byte came, a process died."""
        self._write({"ph": "i", "s": "t", "name": name, **self._at(row, at_ns), "args": facts})

    def counters(self, name: str, at_ns: int, values: Mapping[str, int | float]) -> None:
        """Quantities from now on, drawn as one stack: how many slots are lent, loaded, held, empty."""
        at = (at_ns - self._started_ns) / 1000
        self._write({"ph": "C", "name": name, "pid": BOARD, "tid": 0, "ts": at, "args": dict(values)})

    def close(self) -> None:
        """End the JSON; `failure` then says whether all of it was written. Doing it twice is harmless."""
        if self._file.closed:
            return
        try:
            if self.failure is None:
                self._file.write("\n]\n")
            self._file.close()
        except OSError as error:
            self._failed(error)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _at(self, row: str, at_ns: int) -> dict[str, int | float]:
        if row not in self._rows:
            self._rows[row] = number = len(self._rows) + 1
            where = {"pid": BOARD, "tid": number}
            self._write({"ph": "M", "name": "thread_name", **where, "args": {"name": row}})
            self._write({"ph": "M", "name": "thread_sort_index", **where, "args": {"sort_index": number}})
        return {"pid": BOARD, "tid": self._rows[row], "ts": (at_ns - self._started_ns) / 1000}

    def _write(self, event: dict[str, object]) -> None:
        if self.failure is not None or self._file.closed:
            return
        try:
            self._file.write(self._separator + json.dumps(event, separators=(",", ":")))
        except OSError as error:
            self._failed(error)
        self._separator = ",\n"

    def _failed(self, error: OSError) -> None:
        self.failure = f"the trace {self._path} is incomplete: {error.strerror}"
