"""A `hermes-launch` as a user starts it: real processes, on pipes or on a terminal, and what it leaves behind.

Its processes are found by their working directory, which no other run shares. Every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

DEADLINE_S = 180.0  # of anything: a machine that runs other tests beside these is ten times slower than a quiet one
COLUMNS = 100
LAUNCH = (sys.executable, "-m", "hermes_mp.cli.launch")


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what it showed; on a terminal all of it is `out`."""

    code: int
    out: str
    err: str

    @property
    def object(self) -> dict[str, Any]:
        """The one JSON object of `--json`."""
        (line,) = self.out.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found

    @property
    def line(self) -> str:
        """The one line of an error, where nothing else was said but progress, of the hub, and of a loader."""
        lines = [one for one in self.err.splitlines() if one.startswith("hermes-launch: ")]
        (line,) = [one for one in lines if not re.search(r" on the hub$|^hermes-launch: loader [0-9]+: ", one)]
        assert "Traceback" not in self.err
        return line.removeprefix("hermes-launch: ")


class Launch:
    """One run; leaving the context ends it, whatever happened. `home` is a fresh directory of its own."""

    def __init__(
        self,
        home: Path,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        lines: bool = False,
        terminal: bool = False,
        size: tuple[int, int] = (24, COLUMNS),
        cgroup: Path | None = None,
        program: Sequence[str] = LAUNCH,
    ) -> None:
        home.mkdir(parents=True)
        self.home = home.resolve()
        command = [*program, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", **(env or {})}
        self._seen = {"out": bytearray(), "err": bytearray()}
        self._terminal = -1
        self.silences: list[float] = []  # between two pieces of output
        self._last_s = self._started_s = time.monotonic()
        if terminal:
            mine, theirs = pty.openpty()
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
            self._process = subprocess.Popen(
                command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=home, env=environment,
                start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )  # fmt: skip
            os.close(theirs)
            self._fds = {mine: "out"}
            self._input = mine
            self._terminal = os.dup(mine)  # to be looked at after the end
        else:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE if lines else subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, cwd=home, env=environment, start_new_session=True, bufsize=0,
                preexec_fn=None if cgroup is None else lambda: enter(cgroup),
            )  # fmt: skip
            assert self._process.stdout is not None
            assert self._process.stderr is not None
            self._fds = {self._process.stdout.fileno(): "out", self._process.stderr.fileno(): "err"}
            self._input = self._process.stdin.fileno() if self._process.stdin is not None else -1
        self.pid = self._process.pid

    # --- what it shows

    @property
    def out(self) -> str:
        return self._seen["out"].decode("utf-8", "replace")

    @property
    def err(self) -> str:
        return self._seen["err"].decode("utf-8", "replace")

    def wait_for(self, what: Callable[[Launch], object]) -> None:
        """Until `what` of this is true; fails where the run ends, or the deadline passes, before."""
        deadline = time.monotonic() + DEADLINE_S
        while not what(self):
            assert time.monotonic() < deadline, f"waited too long: {self.out[-500:]!r} {self.err[-500:]!r}"
            alive = self._pump(0.05) or self._process.poll() is None
            assert alive or what(self), f"ended before that: {self.out[-500:]!r} {self.err[-500:]!r}"

    def wait_until_at_work(self, loaders: int) -> None:
        """Until it has said something and all loaders are there: text may come before the last one."""
        self.wait_for(lambda run: run.out and len(run.loaders()) == loaders)

    @property
    def now_s(self) -> float:
        """Seconds since the launch."""
        return time.monotonic() - self._started_s

    def write(self, text: str) -> None:
        os.write(self._input, text.encode())

    def close_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close_output(self) -> None:
        """As `| head` does once it has enough."""
        assert self._process.stdout is not None
        self._fds.pop(self._process.stdout.fileno(), None)
        self._process.stdout.close()

    def terminal_settings(self) -> list[Any]:
        """How the terminal behaves: echo, signals, and so on."""
        return termios.tcgetattr(self._terminal)

    def close_terminal(self) -> None:
        """As a window that is closed."""
        (mine,) = self._fds
        self._fds.clear()
        os.close(mine)
        os.close(self._terminal)
        self._terminal = -1

    def ended(self) -> Ended:
        """Wait for the end; everything of the run must be gone with it."""
        deadline = time.monotonic() + DEADLINE_S
        if self._process.stdin is not None:
            self._process.stdin.close()
        while self._pump(0.2):
            assert time.monotonic() < deadline, f"it does not end: {self.out[-500:]!r} {self.err[-500:]!r}"
        code = self._process.wait(max(0.1, deadline - time.monotonic()))
        left = self.left_behind()
        assert not left, f"left running: {left}"
        return Ended(code, self.out.replace("\r\n", "\n"), self.err)

    def _pump(self, timeout_s: float) -> bool:
        """Take what is there to read; False once nothing can follow."""
        if not self._fds:
            return False
        for fd in select.select(list(self._fds), [], [], timeout_s)[0]:
            try:
                chunk = os.read(fd, 1 << 16)
            except OSError:  # the terminal's other end is closed
                chunk = b""
            now = time.monotonic()
            self.silences.append(now - self._last_s)
            self._last_s = now
            self._seen[self._fds[fd]] += chunk
            if not chunk:
                del self._fds[fd]
                if self._process.stdout is None:
                    os.close(fd)
        return bool(self._fds)

    # --- its processes

    def processes(self) -> dict[int, str]:
        """Process ids and titles of all that belong to this run."""
        found = {}
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/cwd") == str(self.home):
                    found[int(name)] = Path(f"/proc/{name}/cmdline").read_text().replace("\0", " ").strip()
        return found

    def process(self, title: str) -> int:
        """The process of this title, once it is there."""

        def find() -> list[int]:
            return [pid for pid, found in self.processes().items() if found == f"hermes: {title}"]

        self.wait_for(lambda _: find())
        return find()[0]

    def loaders(self) -> list[int]:
        """Those that are up now, by number."""
        found = {title: pid for pid, title in self.processes().items() if title.startswith("hermes: loader ")}
        return [found[title] for title in sorted(found)]

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, pid: int, number: signal.Signals) -> None:
        """A signal to a process of the run."""
        os.kill(pid, number)

    def left_behind(self) -> dict[int, str]:
        """What is still there once all had time to end."""
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(next(iter(left)))
                select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
                os.close(pidfd)
        return left

    def __enter__(self) -> Launch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(DEADLINE_S)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        if self._process.stdout is None:
            for fd in (*self._fds, *([self._terminal] if self._terminal >= 0 else [])):
                os.close(fd)


def enter(cgroup: Path) -> None:
    """This process, and with it all its children, is in that cgroup from now on."""
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def launch(
    home: Path,
    *arguments: object,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    cgroup: Path | None = None,
) -> Ended:
    """Run it to its end, with these lines on standard input."""
    with Launch(home, *arguments, env=env, lines=stdin is not None, cgroup=cgroup) as run:
        if stdin is not None:
            run.write(stdin)
        return run.ended()
