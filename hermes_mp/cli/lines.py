"""Request lines from a terminal or a pipe, for a poller: reads what is there and never waits.

The descriptor stays blocking, because O_NONBLOCK would also hold for the shell that shares it; one `os.read` after the
poller says "readable" does not block.
"""

from __future__ import annotations

import os

from hermes_mp.errors import WrongInput

CHUNK_NBYTES = 1 << 16
MAX_LINE_NBYTES = 1 << 20


class LineSource:
    """Lines of descriptor `fd`; `ended` once it has no more. Blank lines are no requests and are left out."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._partial = b""
        self.ended = False

    def fileno(self) -> int:
        """For the poller."""
        return self._fd

    def read_lines(self) -> list[str]:
        """The lines that one read completes; bytes that are no UTF-8 are replaced. WrongInput: a line of over 1 MiB."""
        try:
            chunk = os.read(self._fd, CHUNK_NBYTES)
        except OSError:  # the terminal is gone
            chunk = b""
        self._partial += chunk
        if not chunk:
            self.ended = True
            self._partial += b"\n"
        *lines, self._partial = self._partial.split(b"\n")
        if len(self._partial) > MAX_LINE_NBYTES:
            self._partial, self.ended = b"", True
            raise WrongInput("a line of standard input is longer than 1 MiB", "write one request per line")
        texts = [line.decode("utf-8", "replace").rstrip("\r") for line in lines]
        return [text for text in texts if text.strip()]
