"""A process that is given hostile input, examined from outside: its answers, its memory, and whether it still lives."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from campaigns.common import Failed

DEADLINE_S = 30.0  # of one answer, on a machine with other work


class Examined:
    """`python -m MODULE WORD ...`: bytes go in, lines come out."""

    def __init__(self, module: str, *words: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, words)],
            cwd=Path(__file__).parent.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        self._rest = b""

    def tell(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
        except BrokenPipeError:
            raise Failed(f"it ended with {self._process.wait(DEADLINE_S)}") from None

    def answer(self) -> str:
        """The next line; Failed where it has ended, or says nothing."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + DEADLINE_S
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Failed(f"no answer for {DEADLINE_S:g} s")
            chunk = self._process.stdout.read(1 << 16)
            if not chunk:
                raise Failed(f"it ended with {self._process.wait(DEADLINE_S)}")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def kib(self, key: str) -> int:
        """Of the kernel's account of it: `VmRSS`, or `VmHWM`, the most there was."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        (value,) = (line.split()[1] for line in text.splitlines() if line.startswith(f"{key}:"))
        return int(value)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> int:
        """Close its input, and wait for its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(DEADLINE_S)

    def fds(self) -> int:
        """File descriptors that it has open."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.kill()
        self._process.wait(DEADLINE_S)
