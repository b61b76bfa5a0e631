"""Boards for tests: `TestBed` starts cluster/testbed.sh and runs commands in its boards.

`TestBed(loopback=True)` needs neither root nor namespaces: boards are then directories and ports of 127.0.0.1, without
shaped links and without limits. It knows nothing of what runs in the boards.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "cluster" / "testbed.sh"
START_S, END_S = 60.0, 60.0
PORT = 47700  # of every board, where each has an address of its own
NEEDED = ("ip", "tc", "nsenter", "unshare", "lsblk", "flock")


def why_not() -> str | None:
    """Why no test bed can be made here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a test bed needs Linux and root"
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"a test bed needs {', '.join(missing)}"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "a test bed needs /dev/net/tun"
    tried = subprocess.run(["unshare", "--net", "--uts", "true"], check=False, capture_output=True, text=True)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else None


class TestBed:
    """Boards board1..boardN, as long as the `with` lasts; options are those of testbed.sh, None where it decides."""

    __test__ = False  # pytest: no tests in here

    def __init__(
        self,
        boards: int = 2,
        *,
        rate: str | None = None,
        delay: str | None = None,
        loss: str | None = None,
        disk: str | None = "none",  # a machine of CI may have none that can be capped
        disk_of: str | None = None,
        memory: str | None = "none",
        loopback: bool = False,
    ) -> None:
        self.names = [f"board{number}" for number in range(1, boards + 1)]
        self.loopback = loopback
        self.directory = Path()
        options = {"rate": rate, "delay": delay, "loss": loss, "disk": disk, "disk-of": disk_of, "memory": memory}
        self._options = [word for name, value in options.items() if value for word in (f"--{name}", value)]
        self._script: subprocess.Popen[bytes] | None = None
        self._addresses: dict[str, str] = {}
        self._ports: dict[str, int] = {}
        self._runs: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> TestBed:
        if self.loopback:
            self._start_on_loopback()
        else:
            self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._script is not None:
            assert self._script.stdin is not None
            self._script.stdin.close()  # what it runs in board1 waits for that
            self._script.wait(END_S)
        for run in self._runs:
            if self.loopback and run.poll() is None:
                run.kill()
            run.wait(END_S)  # with its board gone, so is it
            for pipe in (run.stdin, run.stdout, run.stderr):
                if pipe is not None and not pipe.closed:
                    pipe.close()
        if self.loopback:
            shutil.rmtree(self.directory)

    @property
    def name(self) -> str:
        """What HERMES_TESTBED is."""
        return self.directory.name

    def address(self, board: str) -> str:
        """Where the others reach that board."""
        return self._addresses[board]

    def port(self, board: str) -> int:
        """A port that is free there for whatever the test runs."""
        return self._ports[board]

    def home(self, board: str) -> Path:
        """That board's HOME."""
        return self.directory / board / "home"

    def run(
        self, board: str, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **words: Any
    ) -> subprocess.Popen[Any]:
        """`command` in that board, as Popen(**words) starts it; its pid is the command's. It ends with the bed."""
        variables = {**os.environ, **self._variables(board), **(env or {})}
        entry: list[str | Path] = [] if self.loopback else [SCRIPT, "exec", board]
        run = subprocess.Popen([*entry, *command], env=variables, **words)
        self._runs.append(run)
        return run

    def link(self, board: str, *what: str) -> None:
        """`link("board2", "half-open", "in")`: as testbed.sh link; it holds from the return on."""
        if self.loopback:
            raise NotImplementedError("boards on 127.0.0.1 have no links of their own")
        variables = {**os.environ, "HERMES_TESTBED": self.name}
        subprocess.run([SCRIPT, "link", board, *what], env=variables, check=True, timeout=START_S)

    def _start(self) -> None:
        command = ["sh", "-c", "echo $HERMES_TESTBED_DIR; exec cat"]
        words: list[str | Path] = [SCRIPT, str(len(self.names)), *self._options, "--", *command]
        with tempfile.TemporaryFile() as said:
            script = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
            assert script.stdin is not None
            assert script.stdout is not None
            with script.stdout:
                directory = script.stdout.readline().decode().strip()
            if not directory:
                script.stdin.close()
                code = script.wait(START_S)
                said.seek(0)
                raise RuntimeError(f"no test bed (exit {code}): {said.read().decode()}")
        self._script, self.directory = script, Path(directory)
        lines = (self.directory / "boards.env").read_text().splitlines()
        self._addresses = dict(line.split("=", 1) for line in lines)
        self._ports = dict.fromkeys(self.names, PORT)

    def _start_on_loopback(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hermes-bed-"))
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in self.names]  # all at once: so no port comes twice
        for name, listener in zip(self.names, listeners, strict=True):
            with listener:
                self._ports[name] = listener.getsockname()[1]
            self._addresses[name] = "127.0.0.1"
            for folder in ("home", "config", "cache", "run"):
                (self.directory / name / folder).mkdir(parents=True, mode=0o700)
        lines = [f"{name}={address}\n" for name, address in self._addresses.items()]
        (self.directory / "boards.env").write_text("".join(lines))

    def _variables(self, board: str) -> dict[str, str]:
        own = self.directory / board
        return {
            "HOME": str(own / "home"),
            "XDG_CONFIG_HOME": str(own / "config"),
            "XDG_CACHE_HOME": str(own / "cache"),
            "XDG_RUNTIME_DIR": str(own / "run"),
            "HERMES_TESTBED": self.name,
            "HERMES_TESTBED_DIR": str(self.directory),
            "HERMES_TESTBED_BOARD": board,
        }
