"""A child's life as a table, and when one that died is started again. It knows no process and no clock.

A pair of state and event that is not in the table is a bug of ours and raises with the story so far: to signal or to
reap a process twice could hit a stranger that got its number. Late words of a dead child are nobody's: the kernel's
notice and the child's last message travel by different ways, and by then another incarnation is in its place, or none.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from hermes_mp.errors import InvariantBroken
from hermes_mp.ids import Epoch, LoaderNo


class State(Enum):
    """What a child is to its parent."""

    SPAWNING = "spawning"  # the process exists, it has not said a word
    UP = "up"
    STOPPING = "stopping"  # asked to leave
    KILLED = "killed"  # by us, because it hung
    FAILED = "failed"  # said that it cannot go on; it leaves by itself
    GONE = "gone"  # died by itself: may be started again
    UNFIT = "unfit"  # gone after it said why: starting it again would fail again
    ENDED = "ended"  # gone as asked


class Happened(Enum):
    """What a parent does to a child or hears of it."""

    STARTED = "started"
    SAID_FAILED = "said it failed"
    STOP_ASKED = "stop asked"
    KILL_SENT = "kill sent"
    EXITED = "exited"  # the kernel says so


_S, _H = State, Happened

TABLE: dict[tuple[State, Happened], State] = {
    (_S.SPAWNING, _H.STARTED): _S.UP,
    (_S.SPAWNING, _H.SAID_FAILED): _S.FAILED,
    (_S.SPAWNING, _H.STOP_ASKED): _S.STOPPING,
    (_S.SPAWNING, _H.KILL_SENT): _S.KILLED,
    (_S.SPAWNING, _H.EXITED): _S.GONE,
    (_S.UP, _H.STARTED): _S.UP,
    (_S.UP, _H.SAID_FAILED): _S.FAILED,
    (_S.UP, _H.STOP_ASKED): _S.STOPPING,
    (_S.UP, _H.KILL_SENT): _S.KILLED,
    (_S.UP, _H.EXITED): _S.GONE,
    (_S.STOPPING, _H.STARTED): _S.STOPPING,
    (_S.STOPPING, _H.SAID_FAILED): _S.STOPPING,
    (_S.STOPPING, _H.STOP_ASKED): _S.STOPPING,
    (_S.STOPPING, _H.KILL_SENT): _S.STOPPING,
    (_S.STOPPING, _H.EXITED): _S.ENDED,
    (_S.KILLED, _H.STARTED): _S.KILLED,
    (_S.KILLED, _H.SAID_FAILED): _S.KILLED,
    (_S.KILLED, _H.STOP_ASKED): _S.STOPPING,
    (_S.KILLED, _H.KILL_SENT): _S.KILLED,
    (_S.KILLED, _H.EXITED): _S.GONE,
    (_S.FAILED, _H.STARTED): _S.FAILED,
    (_S.FAILED, _H.SAID_FAILED): _S.FAILED,
    (_S.FAILED, _H.STOP_ASKED): _S.FAILED,
    (_S.FAILED, _H.KILL_SENT): _S.FAILED,
    (_S.FAILED, _H.EXITED): _S.UNFIT,
}


class Child:
    """One incarnation of one child."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.SPAWNING
        self._story = [State.SPAWNING.value]

    def handle(self, happened: Happened) -> State:
        state = TABLE.get((self.state, happened))
        if state is None:
            story = " -> ".join(self._story)
            raise InvariantBroken(f"a child's life follows the table: {self.name}: {story}, then {happened.value!r}")
        if state is not self.state:
            self._story.append(state.value)
        self.state = state
        return state


@dataclass(frozen=True)
class Spawn:
    """Start this loader in this incarnation."""

    loader: LoaderNo
    epoch: Epoch


@dataclass(frozen=True)
class Abandon:
    """Go on without this loader; `left` others are alive or on their way."""

    loader: LoaderNo
    why: str
    left: int


@dataclass(frozen=True)
class AllLost:
    """That was the last one."""

    why: str


Action = Spawn | Abandon | AllLost


class Restarts:
    """At most `limit` of them within `window_ns`."""

    def __init__(self, limit: int, window_ns: int) -> None:
        self._limit = limit
        self._window_ns = window_ns
        self._at: deque[int] = deque()

    def grant(self, now_ns: int) -> bool:
        """Whether there may be another one now; if so it counts."""
        while self._at and now_ns - self._at[0] >= self._window_ns:
            self._at.popleft()
        if len(self._at) >= self._limit:
            return False
        self._at.append(now_ns)
        return True

    @property
    def why_not(self) -> str:
        return f"it died {len(self._at) + 1} times within {self._window_ns / 1e9:g} s"


class Crew:
    """All loaders and their restarts: at most `limit` of each loader within `window_ns`, then one fewer.

    The window is per loader: an out-of-memory killer or a person who kills all of them at once then costs each one
    restart, where a common window would cost the crew members it can well afford. A cause that all share (a broken
    disk driver) still ends after `limit` restarts of each.
    """

    def __init__(self, count: int, limit: int = 5, window_ns: int = 30_000_000_000) -> None:
        self._count = count
        self._limits = limit, window_ns
        self._restarts: dict[LoaderNo, Restarts] = {}
        self._epochs: dict[LoaderNo, int] = {}  # the last one of each, also of those that left
        self.members: dict[LoaderNo, tuple[Epoch, Child]] = {}

    def start(self) -> list[Action]:
        """Everybody's first incarnation."""
        return [self._spawn(LoaderNo(number), Epoch(1)) for number in range(self._count)]

    def resize(self, count: int) -> tuple[list[Action], list[tuple[LoaderNo, Epoch]]]:
        """So many loaders there shall be: whom to start, and who is to be asked to leave, and not be replaced."""
        retired = [(number, self.members.pop(number)[0]) for number in sorted(self.members)[count:]]
        added = [LoaderNo(number) for number in range(self._count, count) if number not in self.members]
        self._count = count
        return [self._spawn(number, Epoch(self._epochs.get(number, 0) + 1)) for number in added], retired

    def handle(self, loader: LoaderNo, epoch: Epoch, happened: Happened, now_ns: int) -> list[Action]:
        """What this incarnation did; of an older one, and of a loader that left, nothing follows."""
        member = self.members.get(loader)
        if member is None or member[0] != epoch:
            return []
        state = member[1].handle(happened)
        if happened is not Happened.EXITED:
            return []
        if state is State.ENDED:
            del self.members[loader]
            return []
        if state is State.UNFIT:
            return self._abandon(loader, "its start-up failed")
        restarts = self._restarts.setdefault(loader, Restarts(*self._limits))
        if not restarts.grant(now_ns):
            return self._abandon(loader, restarts.why_not)
        return [self._spawn(loader, Epoch(epoch + 1))]

    def _spawn(self, loader: LoaderNo, epoch: Epoch) -> Spawn:
        self._epochs[loader] = epoch
        self.members[loader] = epoch, Child(f"loader {loader}, epoch {epoch}")
        return Spawn(loader, epoch)

    def _abandon(self, loader: LoaderNo, why: str) -> list[Action]:
        del self.members[loader]
        actions: list[Action] = [Abandon(loader, why, len(self.members))]
        if not self.members:
            actions.append(AllLost(f"loader {loader} was the last one: {why}"))
        return actions


@dataclass(frozen=True)
class Again:
    """Start compute in this incarnation."""

    epoch: Epoch


@dataclass(frozen=True)
class Over:
    """Without compute there is no run; `why` it is not started again, where its end alone does not say that."""

    why: str


class Solo:
    """The one compute: at most `limit` restarts within `window_ns`, none after a start-up that failed.

    Nor more than `limit` that came no further than the last: a request that always kills it may take minutes to.
    """

    def __init__(self, limit: int = 3, window_ns: int = 60_000_000_000) -> None:
        self._restarts = Restarts(limit, window_ns)
        self._limit = limit
        self._vain = 0
        self._life = Child("compute, epoch 1")
        self.epoch = Epoch(1)

    @property
    def state(self) -> State:
        return self._life.state

    def came_further(self) -> None:
        """Something was said that had not been said before."""
        self._vain = 0

    def handle(self, epoch: Epoch, happened: Happened, now_ns: int) -> Again | Over | None:
        """What this incarnation did; of an older one nothing follows."""
        if epoch != self.epoch:
            return None
        state = self._life.handle(happened)
        if happened is not Happened.EXITED or state is State.ENDED:
            return None
        if state is State.UNFIT:
            return Over("")
        if not self._restarts.grant(now_ns):
            return Over(self._restarts.why_not)
        if self._vain >= self._limit:
            return Over(f"it died {self._vain + 1} times without coming further")
        self._vain += 1
        self.epoch = Epoch(epoch + 1)
        self._life = Child(f"compute, epoch {self.epoch}")
        return Again(self.epoch)
