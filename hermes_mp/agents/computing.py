"""Compute as the daemon has it: a child that is spawned, told, watched, and started again as `core.lifecycle` says.

Behind `hermes_mp.load` compute is the caller: it is told in the same way, but nobody starts it, nor outlives it.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hermes_mp.core.lifecycle import KILL_NS, Again, Happened, Over, Solo
from hermes_mp.host import environment
from hermes_mp.host.children import Child, spawn
from hermes_mp.host.wire import Hub, Peer, Poller
from hermes_mp.ids import Epoch
from hermes_mp.messages import StopCompute

GONE_S = KILL_NS / 1e9  # how long one that was killed is waited for
AGAIN_S = 0.5  # after the system has refused a process
CALLER = Peer("compute", 0, 1)


@dataclass(frozen=True)
class Ended:
    """How compute ended, whether for lack of memory, and, unless it was started again, that it is over."""

    cause: str
    starved: bool
    over: Over | None


class Computing:
    """Compute's present incarnation (`peer`), its process if it is ours, and what is on its way to it."""

    def __init__(self, hub: Hub, poller: Poller, on_heard: Callable[[bytes], object]) -> None:
        """`on_heard` takes what it writes to its standard error."""
        self._on_heard = on_heard
        self.peer = CALLER
        self._hub, self._poller = hub, poller
        self.words = 0  # messages that came from it
        self._life = Solo()
        self._child: Child | None = None
        self._due_s: float | None = None  # when to try again to start it
        self._settings: dict[str, Any] = {}
        self._fds: tuple[int, ...] = ()
        self._outbox: deque[object] = deque()  # while it is not connected or its queue is full

    @property
    def pid(self) -> int:
        """0 where it is no child of ours."""
        return 0 if self._child is None else self._child.pid

    @property
    def state(self) -> str:
        """What its table says."""
        return self._life.state.value

    def start(self, settings: dict[str, Any], fds: tuple[int, ...]) -> None:
        """Spawn it; `settings` are what every incarnation is told beside its epoch, `fds` what it inherits."""
        self._settings, self._fds = settings, fds
        self._spawn(self._life.epoch)

    def send(self, message: object) -> None:
        """Send, in order, as soon as compute is connected and has room; that it is gone is said elsewhere."""
        self._outbox.append(message)
        self.flush()

    def flush(self) -> None:
        """Send what waits."""
        while self._outbox and self._hub.send(self.peer, self._outbox[0]):
            self._outbox.popleft()

    def happened(self, what: Happened) -> None:
        """Something it said, or that was done to it."""
        if self._child is not None:
            self._life.handle(self._life.epoch, what, time.monotonic_ns())

    def came_further(self) -> None:
        """Something was said that had not been said before."""
        self._life.came_further()

    def mark(self) -> tuple[int, int]:
        """Another one whenever it has taken processor time or said something."""
        return (0 if self._child is None else self._child.processor_ticks()), self.words

    def stop_hanging(self) -> str:
        """It stands still: end it for good; what it was doing."""
        if self._child is None:
            return "gone"
        state = self._child.state()
        self.happened(Happened.SAID_FAILED)  # a successor would stand still as well
        self._child.kill()
        return state

    def owns(self, fd: int) -> bool:
        return self._child is not None and fd == self._child.pidfd

    def speaks(self, fd: int) -> bool:
        """Whether that is its standard error; what it said is handed on."""
        if self._child is None or fd != self._child.voice_fd:
            return False
        data = self._child.hear()
        if data:
            self._on_heard(data)
        elif data is None:
            self._poller.forget(fd)
        return True

    def turn(self) -> str | None:
        """Time passes: where the system did not let us start it, try again; why it is over, if it is."""
        if self._due_s is None or time.monotonic() < self._due_s:
            return None
        self._due_s = None
        return self._try_to_spawn(self._life.epoch)

    def reap(self) -> Ended | None:
        """Its pidfd became readable; None where it lives: the descriptor that was readable had been another's."""
        assert self._child is not None
        pidfd = self._child.pidfd
        self._poller.forget(pidfd)
        cause = self._child.reap(0.0)
        if cause is None:
            self._poller.watch(pidfd)
            return None
        self._hear_out()
        starved = self._child.starved
        if self._child.last_words:
            cause += f', its last words: "{self._child.last_words}"'
        what = self._life.handle(self._life.epoch, Happened.EXITED, time.monotonic_ns())
        self._child = None
        if isinstance(what, Again):
            why_not = self._try_to_spawn(what.epoch)
            return Ended(cause, starved, None if why_not is None else Over(why_not))
        return Ended(cause, starved, what if isinstance(what, Over) else Over(""))

    def kill(self) -> None:
        """It is of no use any more; the kernel says when it is gone."""
        if self._child is not None:
            self.happened(Happened.KILL_SENT)
            self._child.kill()

    def ask_to_stop(self) -> None:
        if self._child is not None:
            self.happened(Happened.STOP_ASKED)
            self.send(StopCompute())

    def close(self, leave_s: float) -> str | None:
        """End it: it has so long to leave by itself. What it is if it cannot be ended."""
        state = None
        if self._child is not None:
            if self._child.reap(leave_s) is None:
                self._child.kill()
                if self._child.reap(GONE_S) is None:  # it waits in the kernel
                    self._poller.forget(self._child.pidfd)
                    state = self._child.state()
            self._hear_out()
            self._child.forsake()
            self._child = None
        return state

    def _hear_out(self) -> None:
        if self._child is not None and self._child.voice_fd >= 0:
            self._poller.forget(self._child.voice_fd)
            self._on_heard(self._child.hear_out())

    def _try_to_spawn(self, epoch: Epoch) -> str | None:
        """Where that cannot be it counts as a death; why it is not tried again, if it is not."""
        try:
            self._spawn(epoch)
        except OSError as error:
            what = self._life.handle(epoch, Happened.EXITED, time.monotonic_ns())
            if isinstance(what, Again):
                self.peer = Peer("compute", 0, what.epoch)
                self._due_s = time.monotonic() + AGAIN_S
                return None
            return f"it cannot be started again: {error.strerror}"
        return None

    def _spawn(self, epoch: Epoch) -> None:
        self.peer = Peer("compute", 0, epoch)
        self._outbox.clear()
        words = [json.dumps(self._settings | {"epoch": epoch})]
        self._child = spawn(
            "hermes_mp.agents.compute", "hermes: compute", words, self._fds,
            env=environment.for_computing(), hear=True,
        )  # fmt: skip
        self._poller.watch(self._child.pidfd)
        self._poller.watch(self._child.voice_fd)
