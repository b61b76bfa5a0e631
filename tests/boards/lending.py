"""A lender in a process of its own, a head that is paired with it, and what either of them sees of the other."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from hermes_mp.agents.borrowed import Lender
from hermes_mp.host.lan import LanLink, new_keys
from hermes_mp.host.pairings import Identity, PairedBoard, Store

DEADLINE_S = 60.0
PROGRAM = Path(__file__).parent / "lender.py"


class LenderProcess:
    """`home` holds both stores: `home/head` is the head's `$XDG_CONFIG_HOME`."""

    def __init__(self, home: Path, model: Path, loaders: int, plain: bool) -> None:
        self._home, self._words = home, [str(model), "127.0.0.1:0", str(loaders)]
        self._heads_store = Store(home / "head" / "hermes-mp")
        self._key = ""
        if not plain:
            head, board = new_keys(), new_keys()
            self._key = board.public
            own = Store(home / "board" / "hermes-mp")
            own.keep_identity(Identity("nas", "127.0.0.1:7946", board))
            self._heads_store.keep_identity(Identity("laptop", "", head))
            with own.change(0) as pairings:
                pairings.heads = {"laptop": head.public}
        self._begin()
        if not plain:
            with self._heads_store.change(0) as pairings:
                pairings.boards = {"nas": PairedBoard(self.address, self._key)}

    def _begin(self) -> None:
        env = {**os.environ, "XDG_CONFIG_HOME": str(self._home / "board")}
        command = [sys.executable, str(PROGRAM), *self._words]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, bufsize=0)
        self._text = b""
        self.said = ""  # the last line
        self.address = self.line("ready ").split()[1]

    @property
    def env(self) -> dict[str, str]:
        """Of a launch on the head."""
        return {"XDG_CONFIG_HOME": str(self._home / "head")}

    @property
    def lender(self) -> Lender:
        return Lender("nas", self.address, self._key)

    def link(self) -> LanLink:
        """In plain text."""
        return LanLink("nas", self.address, None, None)

    def line(self, word: str) -> str:
        """The next line that has this in it."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + DEADLINE_S
        while True:
            while b"\n" in self._text:
                line, _, self._text = self._text.partition(b"\n")
                self.said = line.decode()
                if word in self.said:
                    return line.decode()
            left_s = deadline - time.monotonic()
            assert select.select([self._process.stdout], [], [], max(0.0, left_s))[0], f"never said {word!r}"
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            assert data, f"it ended before it said {word!r}"
            self._text += data

    def loaders(self) -> list[int]:
        """Its processes."""
        return sorted(child.pid for child in psutil.Process(self._process.pid).children())

    def wait_until_free(self) -> None:
        """Until the last borrower has left, and with it all that was made for it."""
        while self.loaders() or not self.said.endswith("0 are there, 0 processes, 0 bytes"):
            self.line("left")

    def kill(self) -> None:
        """As a power cut would; its loaders go with it."""
        children = psutil.Process(self._process.pid).children()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(DEADLINE_S)
        psutil.wait_procs(children, DEADLINE_S)

    def freeze(self) -> None:
        """It says nothing any more, and its connections stay."""
        self._process.send_signal(signal.SIGSTOP)

    def restart(self) -> None:
        """Where it was."""
        self._words[1] = self.address
        self.close()
        self._begin()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DEADLINE_S)
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def lender(home: Path, model: Path, loaders: int = 2, plain: bool = False) -> Iterator[LenderProcess]:
    found = LenderProcess(home, model, loaders, plain)
    try:
        yield found
    finally:
        found.close()
