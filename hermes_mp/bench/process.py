"""A worker as its parent sees it: started in its control groups, asked by JSON lines, looked at, ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from hermes_mp.bench.board import ControlGroup
from hermes_mp.bench.models import Model
from hermes_mp.bench.plan import Regime, Subject, Wanted, unit_nbytes
from hermes_mp.errors import MissingPackage
from hermes_mp.host import memory

try:
    import psutil
except ImportError:
    raise MissingPackage("hermes-bench needs psutil", "pip install 'hermes-mp[bench]'") from None

LEAVE_S = 10.0
SAMPLE_EVERY_S = 0.02
LAST_LINES = 3  # of its standard error, where it ended without a word


class WorkerLost(Exception):
    """The process ended instead of answering, or could not be started; the text says how."""


class WorkerProcess:
    """Use as a context: afterwards the process and all it started are gone."""

    def __init__(
        self,
        words: Sequence[str],
        groups: Sequence[ControlGroup] = (),
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        """`words`: the command line. `environment`: what of ours is otherwise; None: it lacks the variable.

        Raises WorkerLost.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        whole = {name: value for name, value in {**os.environ, **(environment or {})}.items() if value is not None}

        def enter() -> None:  # between fork and exec: what it imports counts in its groups too
            for group in groups:
                group.enter(os.getpid())

        try:
            self._process = subprocess.Popen(
                list(words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                preexec_fn=enter if groups else None, start_new_session=True, env=whole,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:  # the latter: it could not enter its groups
            self._errors.close()
            raise WorkerLost(f"{words[0]} cannot be started: {error}") from None
        self.pid = self._process.pid
        self.timeout_s: float | None = None  # for an answer
        self._watched = psutil.Process(self.pid)

    def ask(self, do: str, *arguments: object) -> dict[str, Any]:
        """Order something of a `worker` and wait for the answer. Raises WorkerLost."""
        self.send({"do": do, "with": arguments})
        return self.receive()

    def send(self, order: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` says how it ended
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], self.timeout_s)[0]:  # it never says two lines at once
            self._process.kill()
            raise WorkerLost(f"no answer in {self.timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerLost(self._ending())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def loaders(self) -> list[int]:
        """The process ids of its loaders, in order."""
        found = []
        for process in _children(self._watched):
            with contextlib.suppress(psutil.NoSuchProcess):
                title = " ".join(process.cmdline())
                if title.startswith("hermes: loader") or "hermes_mp.agents.loader" in title:
                    found.append(process.pid)
        return sorted(found)

    def memory(self) -> tuple[int, int]:
        """Bytes of it and all it started, exactly, and bytes of the arena, counted once. Slow: not in a timed run."""
        total = arena = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [self._watched, *self._watched.children(recursive=True)]:
                total += memory.exact(process.pid).total_nbytes
            arena = _arena_nbytes(self.pid)
        return total, arena

    def _ending(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"exit code {code}: {' '.join(lines[-LAST_LINES:])[-300:]}"

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        children = _children(self._watched)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if error is not None:
            self._process.kill()  # we were interrupted: it may be in the midst of something long
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        _gone, alive = psutil.wait_procs(children, LEAVE_S)  # they end by their death pipe
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def _arena_nbytes(pid: int) -> int:
    """What the arena among a process's files has allocated."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith("/memfd:hermes-arena"):
                    return os.stat(f"/proc/{pid}/fd/{name}").st_blocks * 512
    return 0


class Peak:
    """The largest total seen, and what of it was not the arena, in bytes."""

    def __init__(self) -> None:
        self.total_nbytes = 0
        self.beside_nbytes = 0

    def see(self, total: int, arena: int) -> None:
        self.total_nbytes = max(self.total_nbytes, total + arena)
        self.beside_nbytes = max(self.beside_nbytes, total)


@contextlib.contextmanager
def sampling(worker: WorkerProcess) -> Iterator[Peak]:
    """Looks at the worker's memory all the time, from a thread of ours."""
    peak = Peak()
    ended, stop = os.pipe()

    def work() -> None:
        while not select.select([ended], [], [], SAMPLE_EVERY_S)[0]:
            peak.see(*worker.memory())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield peak
    finally:
        os.close(stop)
        thread.join()
        os.close(ended)
        peak.see(*worker.memory())


def worker_settings(wanted: Wanted, model: Model, subject: Subject, regime: Regime) -> dict[str, Any]:
    """What a worker is told of a row."""
    context = None
    if model.is_of_words:
        context = wanted.tokens + (wanted.new_tokens + 1 if model.generates else 0)
    return {
        "backend": subject.backend,
        "directory": str(model.directory),
        "loaders": subject.loaders,
        "memory": subject.memory,
        "tokens": wanted.tokens,
        "new_tokens": wanted.new_tokens,
        "context": context,
        "batch": wanted.batch,
        "threads": wanted.threads,
        "dtype": wanted.dtype,
        "room": unit_nbytes(subject.backend, regime, wanted.slot, model.facts.nbytes),
        "slots": wanted.slots,
        "itemsize": model.facts.nbytes / model.facts.parameters,
    }


def worker_words(settings: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "hermes_mp.bench.worker", json.dumps(settings)]
