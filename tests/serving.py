"""Boards that serve, as real processes: on 127.0.0.1 in plaintext, or on a test bed with keys of their own.

`Serving` starts them and finds their processes; leaving it ends them in order and fails where something is left.
`BedServing` has them on the boards of a bed but its first, which is paired with them all: it is their head.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from launching import DEADLINE_S
from testbed import SCRIPT, TestBed

BOARD = (sys.executable, "-m", "hermes_mp.cli.board")
SERVES = re.compile(r"serves at (\S+), ")


class Serving:
    """Boards `b1`, `b2` ...; `file` names them for `--boards`. Each lives in a directory of its own below `folder`."""

    def __init__(self, folder: Path, models: Path, count: int, memory: str = "1GiB", loaders: int = 1) -> None:
        self.folder, self._models = folder, models
        self.names = [f"b{number}" for number in range(1, count + 1)]
        self._flags = ["--model-dir", str(models), "--memory", memory, "--loaders", str(loaders)]
        self._runs: dict[str, subprocess.Popen[bytes]] = {}
        self._addresses: dict[str, str] = {}

    def __enter__(self) -> Serving:
        try:
            self._begin()
        except BaseException:
            self._kill_all()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            codes = {name: self.stop(name) for name in list(self._runs)}
        finally:
            self._kill_all()
        for name in self.names if error is not None else ():
            print(f"board {name} has written:\n{self.log(name)}", file=sys.stderr)  # pytest shows it
        if error is None:
            assert set(codes.values()) <= {128 + signal.SIGTERM}, (codes, {n: self.log(n) for n in codes})

    def _begin(self) -> None:
        for name in self.names:
            self.start(name)
        for name in self.names:
            self.await_up(name)

    @property
    def file(self) -> Path:
        """Names all boards."""
        path = self.folder / "boards.toml"
        path.write_text("".join(f'[{name}]\naddress = "{self._addresses[name]}"\n' for name in self.names))
        return path

    def home(self, name: str) -> Path:
        return self.folder / name

    def log(self, name: str) -> str:
        """What that board has written."""
        return (self.home(name) / "log").read_text()

    def start(self, name: str) -> None:
        """Again on the same port, where it had one."""
        home = self.home(name)
        home.mkdir(parents=True, exist_ok=True)
        command, env = self._command(name)
        with open(home / "log", "wb") as log:
            self._runs[name] = subprocess.Popen(
                [*command, *self._flags], cwd=home, env={**os.environ, **env, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _command(self, name: str) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        """With what in its environment."""
        listen = self._addresses.get(name, "127.0.0.1:0")
        return [*BOARD, "serve", "--listen", listen], {"XDG_CONFIG_HOME": str(self.home(name))}

    def await_up(self, name: str) -> None:
        """Until it serves."""
        until_s = time.monotonic() + DEADLINE_S
        while (found := SERVES.search(self.log(name))) is None:
            assert self._runs[name].poll() is None, self.log(name)
            assert time.monotonic() < until_s, self.log(name)
            os.sched_yield()
        self._addresses[name] = found[1]

    def is_up(self, name: str) -> bool:
        """Started, and neither killed nor stopped since; it may not serve yet."""
        return name in self._runs

    def pid(self, name: str) -> int:
        """Of the board's own process, which is the daemon of its stage."""
        return self._runs[name].pid

    def processes(self, name: str) -> dict[int, str]:
        """Process ids and titles of all that belong to that board."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{entry}/cwd") == str(self.home(name).resolve()):
                        found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " ").strip()
        return found

    def process(self, name: str, title: str) -> int | None:
        """The process of that board with this title, if it is there."""
        wanted = [pid for pid, found in self.processes(name).items() if found == f"hermes: {title}"]
        return wanted[0] if wanted else None

    def await_rest(self) -> None:
        """Until no board runs anything but itself: a head that ends does not wait for what its boards have to end."""
        until_s = time.monotonic() + DEADLINE_S
        while busy := {name: found for name in self._runs if len(found := self.processes(name)) > 1}:
            assert time.monotonic() < until_s, f"still at work: {busy}"
            time.sleep(0.01)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """The board's own process; of SIGKILL its end is waited for."""
        os.kill(self.pid(name), number)
        if number == signal.SIGKILL:
            self._runs.pop(name).wait(DEADLINE_S)

    def stop(self, name: str) -> int:
        """In order; its exit code."""
        run = self._runs.pop(name)
        with contextlib.suppress(ProcessLookupError):
            run.send_signal(signal.SIGCONT)
            run.send_signal(signal.SIGTERM)
        code = run.wait(DEADLINE_S)
        until_s = time.monotonic() + 10
        while (left := self.processes(name)) and time.monotonic() < until_s:
            os.sched_yield()
        assert not left, f"board {name} has left {left}"
        return code

    def _kill_all(self) -> None:
        for name in self.names:
            for pid in self.processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for run in self._runs.values():
            run.wait(DEADLINE_S)
        self._runs.clear()


class BedServing(Serving):
    """`boards` names them for the head's own `--boards`; `head` is what a command of the head's begins with."""

    def __init__(
        self, bed: TestBed, folder: Path, models: Path, memory: str = "1GiB", loaders: int = 1
    ) -> None:
        super().__init__(folder, models, len(bed.names) - 1, memory, loaders)
        self.names = bed.names[1:]
        self._bed = bed
        self.env = {"HERMES_TESTBED": bed.name}
        self.head = (str(SCRIPT), "exec", bed.names[0])

    def _begin(self) -> None:
        """Keys and a token on each board, which its head joins with."""
        for name in self.names:
            address = f"{self._bed.address(name)}:{self._bed.port(name)}"
            token = self._ask(name, "init", "--name", name, "--address", address)
            self.start(name)
            self.await_up(name)
            self._ask(self._bed.names[0], "join", "--name", "desk", said=token)

    @property
    def file(self) -> Path:
        """Names all boards; where they are the pairings know."""
        path = self.folder / "boards.toml"
        path.write_text("".join(f"[{name}]\n" for name in self.names))
        return path

    def _command(self, name: str) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        return [SCRIPT, "exec", name, *BOARD, "serve"], self.env

    def _ask(self, board: str, *words: str, said: str = "") -> str:
        run = subprocess.run(
            [SCRIPT, "exec", board, *BOARD, *words], env={**os.environ, **self.env}, input=said, text=True,
            capture_output=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return run.stdout
