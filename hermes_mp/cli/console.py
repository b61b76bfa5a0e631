"""The one owner of the terminal: answers on standard output, everything else on standard error.

Told by the daemon's loop what is going on, and how late it is (`tick`). With `--json` standard output holds exactly
one object, written at the end. A reader that goes away (`| head`) is no error: `reader_gone` is set.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import unicodedata
from typing import Any, TextIO

from hermes_mp.cli.progress import PlainProgress, Progress, Status, TerminalProgress
from hermes_mp.cli.render import render
from hermes_mp.core.report import Report, render_report
from hermes_mp.errors import WriteFailed

SCHEMA = 1
PROGRAM = "hermes-launch"
READER_GONE = (errno.EPIPE, errno.EIO)  # a closed pipe, a closed terminal


class Console:
    """What a person, or the program behind a pipe, gets to see. Times are seconds of one clock."""

    def __init__(self, out: TextIO, err: TextIO, now_s: float, *, as_json: bool = False, quiet: bool = False) -> None:
        self._out = out
        self._err = err
        self._as_json = as_json
        self._quiet = quiet
        self._now_s = now_s
        terminal = err.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._text_beside_bar = terminal and out.isatty()
        self._progress: Progress = TerminalProgress(err) if terminal else PlainProgress(err, now_s)
        self._status: Status | None = None
        self._column = 0
        self._written_s = now_s
        self._streamed = False
        self._answered = 0
        self._model: str | None = None
        self._report: dict[str, object] | None = None
        self._error: dict[str, object] | None = None
        self._json_begun = False
        self.reader_gone = False
        for stream in (out, err):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to die

    def model(self, name: str) -> None:
        """Whose answers these are."""
        self._model = name

    def phase(self, text: str) -> None:
        """A step of starting up has begun, such as `importing torch`."""
        self._status = Status(text, self._now_s)

    def units(self, done: int, total: int, nbytes_read: int, text: str = "units") -> None:
        """`done` of `total` units of a pass are computed, `nbytes_read` were read for it."""
        last = self._status
        same = last is not None and last.total == total and last.text == text and last.done <= done
        self._status = Status(text, last.since_s if same and last else self._now_s, done, total, nbytes_read)

    def idle(self) -> None:
        """Nothing is under way: no progress is shown."""
        self._status = None
        self._clear()

    def prompt(self) -> None:
        """Invite the next line, where a person types it."""
        self.idle()
        if not self._as_json and self._text_beside_bar:
            self._write_err("> ")

    def tick(self, now_s: float) -> None:
        """Time has passed; to be called at least every 0.5 s."""
        self._now_s = now_s
        if self._status is None or self._quiet:
            return
        room = None
        if self._text_beside_bar and self._column:
            room = shutil.get_terminal_size().columns - self._column
        try:
            self._progress.show(self._status, now_s, room, now_s - self._written_s)
        except OSError as error:
            self._lost(self._err, error)

    def stream(self, text: str, label: str | None = None) -> None:
        """A piece of the answer, as it comes; `label` as for `answer`."""
        if not self._as_json:
            self._write_out(text if self._streamed else self._heading(label) + text)
            self._streamed = True

    def answer(self, answer: dict[str, Any], label: str | None = None) -> None:
        """The whole answer; what was streamed is not shown twice. `label` tells several answers apart."""
        self._json_answer(answer)
        if self._as_json:
            return
        if not self._streamed:
            self._write_out(self._heading(label) + render(answer))
        self._write_out("\n")
        self._streamed = False
        self._answered += 1

    def _heading(self, label: str | None) -> str:
        return "" if label is None else ("\n" if self._answered else "") + f"{label}\n"

    def failed(self, line: str, exit_code: int) -> None:
        """One request could not be answered; others may follow."""
        self._json_answer({"error": {"exit_code": exit_code, "line": line}})
        self.idle()  # or a word of progress would be the last one
        self._error_line(line)

    def note(self, text: str) -> None:
        """Something worth a line while the run goes on."""
        if not self._quiet:
            self._write_err(f"{PROGRAM}: {text}\n")

    def child_wrote(self, text: str) -> None:
        """What a process of ours wrote to its standard error: warnings of libraries, mostly."""
        if text:
            self._write_err(text)

    def error(self, line: str, exit_code: int) -> None:
        """The run is over."""
        self._error = {"exit_code": exit_code, "line": line}
        self._error_line(line)

    def report(self, report: Report) -> None:
        """How the run was; where nothing was computed there is nothing to tell people beside the error."""
        self._report = report.as_json()
        if report.passes and not self._quiet and not self._as_json:
            self._write_err("\n" + render_report(report) + "\n")

    def close(self) -> None:
        """Nothing follows."""
        self.idle()
        if self._as_json:
            self._json_begin()
            self._write_out(f'], "report": {_dumped(self._report)}, "error": {_dumped(self._error)}}}\n')
            self._as_json = False

    def _json_answer(self, answer: dict[str, Any]) -> None:
        """Written as it comes: ten thousand embeddings are more than the daemon may hold."""
        if self._as_json:
            self._write_out((", " if self._json_begin() else "") + _dumped(answer))

    def _json_begin(self) -> bool:
        """Whether an answer was written before."""
        begun, self._json_begun = self._json_begun, True
        if not begun:
            self._write_out(f'{{"schema": {SCHEMA}, "model": {_dumped(self._model)}, "answers": [')
        return begun

    def _error_line(self, line: str) -> None:
        if self._streamed:
            self._write_out("\n")
            self._streamed = False
        self._write_err(f"{PROGRAM}: {line}\n")

    def _write_out(self, text: str) -> None:
        self._clear()
        if self.reader_gone:
            return
        if self._out.isatty():
            text = harmless(text)
            self._column = column_after(text, self._column, shutil.get_terminal_size().columns)
        self._written_s = self._now_s
        try:
            self._out.write(text)
            self._out.flush()
        except OSError as error:
            self._lost(self._out, error)

    def _write_err(self, text: str) -> None:
        self._clear()
        if self._err.isatty():
            text = harmless(text)
        try:
            self._err.write(text)
            self._err.flush()
        except OSError as error:
            self._lost(self._err, error)

    def _clear(self) -> None:
        try:
            self._progress.clear()
        except OSError as error:
            self._lost(self._err, error)

    def _lost(self, stream: TextIO, error: OSError) -> None:
        # What is still in the buffer would raise again when Python flushes it at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        if stream is not self._out:
            return  # a run is not worth less because nobody hears of its progress
        self.reader_gone = True
        if error.errno not in READER_GONE:
            raise WriteFailed(f"standard output cannot be written: {error.strerror}") from error


def harmless(text: str) -> str:
    """Without control characters, by which a model's words, or a file's name, would steer a terminal."""
    return "".join(
        one if one in "\n\t" or unicodedata.category(one) != "Cc" else "\N{REPLACEMENT CHARACTER}" for one in text
    )


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def column_after(text: str, column: int, columns: int) -> int:
    """Where the cursor of a terminal of `columns` stands after `text`, 0 being the start of a line."""
    for one in text:
        if one == "\n":
            column = 0
        elif one == "\t":
            column = min(column // 8 * 8 + 8, columns - 1)
        elif not unicodedata.combining(one):
            width = 2 if unicodedata.east_asian_width(one) in "WF" else 1
            column = column + width if column + width <= columns else width
    return column
