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

from hermes_mp.host import memory, procstat

# The kernel kills the highest score first: a lost loader costs a read, a lost compute a pass, a lost daemon the run.
# The score counts in thousandths of the limit beside what a process has mapped: with less than 1000 a compute that has
# most of a small cgroup would be taken before its loaders. It and the daemon keep the score that we were started with.
LOADER_OOM_SCORE = 1000
VOICE_NBYTES, VOICE_KEPT, LAST_WORDS_CHARS = 1 << 16, 4096, 200
PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Not `-m`: it imports runpy (4 ms) and puts the current directory first on the path, where any file may lie.
BOOTSTRAP = "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); from {} import main; sys.exit(main(sys.argv[1:]))"


_claimed: tuple[set[int], set[int]] = (set(), set())  # of the kernel's kills, numbered, those that were a child's end


@dataclass(eq=False)
class Child:
    """A process that was started; its pidfd becomes readable when it has ended. `reap` it, or `forsake` it."""

    title: str
    pid: int
    pidfd: int
    _process: subprocess.Popen[bytes] = field(repr=False)
    _oom_kills: tuple[int, int] = field(repr=False)
    voice_fd: int = -1  # becomes readable when it has written to standard output or error; `hear` it then
    starved: bool = False  # it has ended, for lack of memory
    _heard: bytes = b""
    _by_us: bool = False  # we have killed it: no kill of the kernel's is its end

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; nothing happens where the process has ended."""
        if self.pidfd >= 0:
            self._by_us = self._by_us or (number == signal.SIGKILL and not self.has_ended())
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def processor_ticks(self) -> int:
        """The processor time that it has taken so far; of one that is gone 0."""
        return procstat.look(self.pid).ticks

    def state(self) -> str:
        """What the kernel says it is at this moment: 'stopped', 'waiting for a disk', ..."""
        return procstat.state_of(self.pid)

    def hear(self) -> bytes | None:
        """What it has written since; b"" where that is nothing, None where nothing can follow: `voice_fd` is closed."""
        if self.voice_fd < 0:
            return None
        try:
            data = os.read(self.voice_fd, VOICE_NBYTES)
        except BlockingIOError:
            return b""
        except OSError:  # what it says is worth less than that it works
            data = b""
        if not data:
            os.close(self.voice_fd)
            self.voice_fd = -1
            return None
        self._heard = (self._heard + data)[-VOICE_KEPT:]
        return data

    def hear_out(self) -> bytes:
        """What it has written since, of one that has ended: nothing follows, `voice_fd` is closed."""
        found = b""
        while data := self.hear():
            found += data
        if self.voice_fd >= 0:  # held open by a stranger
            os.close(self.voice_fd)
            self.voice_fd = -1
        return found

    @property
    def last_words(self) -> str:
        """The last line that was heard of it, as one that a terminal may be shown; "" where there was none."""
        lines = [line for line in self._heard.decode("utf-8", "replace").splitlines() if line.strip()]
        line = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in (lines or [""])[-1].strip())
        return line if len(line) <= LAST_WORDS_CHARS else line[: LAST_WORDS_CHARS - 3] + "..."

    def has_ended(self, timeout_s: float = 0.0) -> bool:
        """Whether there is something to `reap`, or is within the timeout."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(max(0, round(timeout_s * 1000))))

    def reap(self, timeout_s: float) -> str | None:
        """How it ended ('exit code 3', 'killed by SIGKILL'), or None if it has not within the timeout.

        Closes the pidfd: let no poller watch it any more.
        """
        if self.pidfd >= 0:
            if not self.has_ended(timeout_s):
                return None
            self._process.wait()
            os.close(self.pidfd)
            self.pidfd = -1
        return self._cause()

    def forsake(self) -> None:
        """Let go of one that cannot be killed: it ends when the kernel lets it, and is not `reap`ed by us."""
        for fd in (self.pidfd, self.voice_fd):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.voice_fd = -1

    @property
    def exit_code(self) -> int | None:
        """Of a reaped child; negative where a signal ended it."""
        return self._process.returncode

    def _cause(self) -> str:
        code = self._process.returncode
        if code >= 0:
            return f"exit code {code}"
        text = f"killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL and not self._by_us:
            with contextlib.suppress(OSError):  # it has ended, whatever more could be said of that
                anywhere, here = map(_claim, self._oom_kills, memory.oom_kills(), _claimed)
                self.starved = anywhere or here
                if here:
                    return "killed by the kernel for lack of memory"
                text += ", probably by the kernel for lack of memory" if anywhere else ""
        return text


def _claim(before: int, now: int, claimed: set[int]) -> bool:
    """Whether one of the kills since `before` was nobody else's yet; the first such is this one's then.

    A kill is counted milliseconds before its process is gone, and another child may be started between.
    """
    number = next((number for number in range(before + 1, now + 1) if number not in claimed), None)
    if number is None:
        return False
    claimed.add(number)
    return True


def spawn(
    module: str,
    title: str,
    arguments: Sequence[str],
    pass_fds: Sequence[int] = (),
    oom_score: int = 0,
    light: bool = False,
    env: Mapping[str, str] | None = None,
    hear: bool = False,
) -> Child:
    """Start `main(arguments)` of `module`. Its stdout is our stderr: what we print there is ours alone.

    `hear`: both go into a pipe, for `Child.hear`.

    `light` leaves out `site` and Python's environment variables: 5 ms sooner, for modules that need neither.
    `env` is the whole environment, ours where it is None.
    """
    flags = ["-B"] * sys.dont_write_bytecode + ["-X", f"utf8={sys.flags.utf8_mode}"] + ["-I", "-S"] * light
    kills = memory.oom_kills()
    voice_fd, mouth_fd = os.pipe2(os.O_CLOEXEC) if hear else (-1, 2)
    try:
        process = subprocess.Popen(
            [sys.executable, *flags, "-c", BOOTSTRAP.format(module), import_path(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=mouth_fd,
            stderr=mouth_fd,
            pass_fds=pass_fds,
            start_new_session=True,
            env=env,
        )
    except BaseException:
        if hear:
            os.close(voice_fd)
        raise
    finally:
        if hear:
            os.close(mouth_fd)
    if hear:
        os.set_blocking(voice_fd, False)
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        if hear:
            os.close(voice_fd)
        raise
    child = Child(title, process.pid, pidfd, process, kills, voice_fd)
    _prefer_as_victim(process.pid, oom_score)
    return child


def hand_on(data: bytes) -> None:
    """What a child wrote, to our own standard error; where nobody reads that, nobody hears it."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]


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
    with contextlib.suppress(OSError), open(path, "r+", encoding="ascii") as file:  # gone; else it goes without
        if int(file.read()) < oom_score:  # lowering it takes a privilege, and is not what we want
            file.seek(0)
            file.write(str(oom_score))
