"""A child notices that its parent is gone: a signal from the kernel at once, and a pipe that hangs up, for sure.

PR_SET_PDEATHSIG reaches a child that is busy reading or computing, but is set only after the child has started,
and follows the parent's thread; the pipe has neither weakness, but has to be looked at.
Knows nothing of what is to be cleaned up. Source: prctl(2), pipe(7).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
from collections.abc import Callable
from types import FrameType

PR_SET_PDEATHSIG = 1
# The signal comes with the end of the thread that spawned us. Others of the parent (ZeroMQ's) may live on for a moment,
# and with them its process id and its pipe: seen in every fourth kill -9.
DYING_S = 0.5


class DeathWatch:
    """The parent `parent_pid`, which alone holds the write end of the pipe behind `death_fd`."""

    def __init__(self, parent_pid: int, death_fd: int) -> None:
        self.death_fd = death_fd
        self._parent_pid = parent_pid
        self._poll = select.poll()
        self._poll.register(death_fd, 0)  # hang-ups are always reported; nobody ever writes

    def parent_is_gone(self) -> bool:
        """Ask; takes a microsecond."""
        return os.getppid() != self._parent_pid or bool(self._poll.poll(0))

    def die_with_parent(self, clean_up: Callable[[], None]) -> None:
        """From now on SIGTERM ends this process quietly, and the kernel sends it when the parent dies.

        `clean_up` runs before that only if the parent is gone, or is within DYING_S: else cleaning up is the parent's.
        Also for a parent that is gone already. Python runs it between two bytecodes of the main thread.
        """

        def end(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            poll = select.poll()  # not the other one: it may be in use at this moment
            poll.register(self.death_fd, 0)
            poll.poll(DYING_S * 1000)
            if self.parent_is_gone():
                clean_up()
            os._exit(0)

        signal.signal(signal.SIGTERM, end)
        self._end_with_parent(signal.SIGTERM)
        if self.parent_is_gone():
            clean_up()
            os._exit(0)

    def be_killed_with_parent(self) -> None:
        """For a child that may be deep in a long C call: the kernel kills it when the parent dies."""
        self._end_with_parent(signal.SIGKILL)
        if self.parent_is_gone():
            os._exit(0)

    def _end_with_parent(self, number: signal.Signals) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def ignore_interrupts() -> None:
    """Ctrl-C is the parent's: it tells its children what follows from it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
