"""`hermes-board serve` as a process: on loopback, without keys, and what it says, line by line.

It ends with the context, and with all its children. Every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from launching import DEADLINE_S

SERVE = (sys.executable, "-m", "hermes_mp.cli.board", "serve")


class Served:
    """`config` is where its keys would be; `address` is where it listens, once it says so."""

    def __init__(
        self,
        config: Path,
        *flags: object,
        env: Mapping[str, str] | None = None,
        program: Sequence[object] = SERVE,
        await_ready: bool = True,
    ) -> None:
        environment = {**os.environ, "XDG_CONFIG_HOME": str(config), "OMP_NUM_THREADS": "1", **(env or {})}
        words = [*map(str, program), *map(str, flags)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, bufsize=0, start_new_session=True
        )
        self.said = ""
        self.address = ""
        if await_ready:
            try:
                self.wait_for(" serves at ")
            except BaseException:
                self.close()
                raise
            self.address = self.said.rpartition(" serves at ")[2].partition(",")[0]

    def wait_for(self, text: str) -> None:
        """Until it has said so."""
        until_s = time.monotonic() + DEADLINE_S
        while text not in self.said:
            assert self._hear(until_s), f"ended, or said nothing of {text!r}: {self.said!r}"

    def ended(self) -> int:
        """Its exit code, once it has ended by itself; then all that it said is in `said`."""
        until_s = time.monotonic() + DEADLINE_S
        while self._hear(until_s):
            pass
        return self.process.wait(max(0.1, until_s - time.monotonic()))

    def _hear(self, until_s: float) -> bool:
        assert self.process.stderr is not None
        if not select.select([self.process.stderr], [], [], max(0.0, until_s - time.monotonic()))[0]:
            return False
        chunk = self.process.stderr.read(1 << 16)
        self.said += chunk.decode("utf-8", "replace")
        return bool(chunk)

    def boards_file(self, path: Path, name: str = "shelf") -> Path:
        """One that names it, for `hermes-launch --boards`."""
        path.write_text(f'[{name}]\naddress = "{self.address}"\n')
        return path

    def close(self) -> None:
        if self.process.poll() is None:
            for number in (signal.SIGCONT, signal.SIGTERM):
                self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            self.process.kill()
            self.process.wait(DEADLINE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
