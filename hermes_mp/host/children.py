"""Starting a child process and learning how it ended: subprocess, pidfds, out-of-memory scores.

A child is `main(arguments) -> exit code` of a module, in an interpreter of its own with our import path, a session
of its own (a terminal's Ctrl-C or hang-up is the parent's to handle) and no descriptor but those passed.
Children follow the *thread* that spawned them where they ask for that (`deathwatch`): spawn from the main thread.
Knows nothing of what a child does, nor whether it should be started again.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hermes_mp.host import memory

# The kernel kills the highest score first: a lost loader costs a read, a lost compute a pass, a lost daemon the run.
LOADER_OOM_SCORE = 900
COMPUTE_OOM_SCORE = 500
PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Not `-m`: it imports runpy (4 ms) and puts the current directory first on the path, where any file may lie.
BOOTSTRAP = "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); from {} import main; sys.exit(main(sys.argv[1:]))"


@dataclass
class Child:
    """A process that was started; its pidfd becomes readable when it has ended. `reap` it, always."""

    title: str
    pid: int
    pidfd: int
    _process: subprocess.Popen[bytes] = field(repr=False)
    _oom_kills: int = field(repr=False)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; nothing happens where the process has ended."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def reap(self, timeout_s: float) -> str | None:
        """How it ended ('exit code 3', 'killed by SIGKILL'), or None if it has not within the timeout.

        Closes the pidfd: let no poller watch it any more.
        """
        if self.pidfd >= 0:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if not poll.poll(max(0, round(timeout_s * 1000))):
                return None
            self._process.wait()
            os.close(self.pidfd)
            self.pidfd = -1
        return self._cause()

    @property
    def exit_code(self) -> int | None:
        """Of a reaped child; negative where a signal ended it."""
        return self._process.returncode

    def _cause(self) -> str:
        code = self._process.returncode
        if code >= 0:
            return f"exit code {code}"
        text = f"killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL and memory.oom_kills() > self._oom_kills:
            text += ", probably by the kernel for want of memory"
        return text


def spawn(
    module: str,
    title: str,
    arguments: Sequence[str],
    pass_fds: Sequence[int] = (),
    oom_score: int = 0,
    light: bool = False,
    env: Mapping[str, str] | None = None,
) -> Child:
    """Start `main(arguments)` of `module`. Its stdout is our stderr: what we print there is ours alone.

    `light` leaves out `site` and Python's environment variables: 5 ms sooner, for modules that need neither.
    `env` is the whole environment, ours where it is None.
    """
    flags = ["-B"] * sys.dont_write_bytecode + ["-X", f"utf8={sys.flags.utf8_mode}"] + ["-I", "-S"] * light
    kills = memory.oom_kills()
    process = subprocess.Popen(
        [sys.executable, *flags, "-c", BOOTSTRAP.format(module), import_path(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=pass_fds,
        start_new_session=True,
        env=env,
    )
    child = Child(title, process.pid, os.pidfd_open(process.pid), process, kills)
    _prefer_as_victim(process.pid, oom_score)
    return child


def import_path() -> str:
    """Ours, one entry a line, for BOOTSTRAP: without the current directory, but with the package itself."""
    path = [entry for entry in sys.path if entry]
    if PACKAGE_ROOT not in path:
        path.insert(0, PACKAGE_ROOT)
    return "\n".join(path)


class DeathPipe:
    """Its read end reports a hang-up once this process is gone: pass it on, never write to the other."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()
        _death_pipes.add(self)

    def close(self) -> None:
        """Tell all who hold the read end that we are gone."""
        for fd in (self.read_fd, self._write_fd):
            if fd >= 0:
                os.close(fd)
        self.read_fd = self._write_fd = -1


def _close_death_pipes() -> None:
    """In a process that our caller forked: it would keep the write end open, and so keep up the look of us living."""
    for pipe in _death_pipes:
        pipe.close()


_death_pipes: weakref.WeakSet[DeathPipe] = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_death_pipes)


def _prefer_as_victim(pid: int, oom_score: int) -> None:
    path = f"/proc/{pid}/oom_score_adj"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(path, "r+", encoding="ascii") as file:
        if int(file.read()) < oom_score:  # lowering it takes a privilege, and is not what we want
            file.seek(0)
            file.write(str(oom_score))
