"""A child's life as a table, and when one that died is started again. It knows no process and no clock.

A pair of state and event that is not in the table is a bug of ours and raises with the story so far: to signal or to
reap a process twice could hit a stranger that got its number. Late words of a dead child are nobody's: the kernel's
notice and the child's last message travel by different ways, and by then another incarnation is in its place, or none.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum
from itertools import count as _numbers
from itertools import islice

from hermes_mp.errors import InvariantBroken
from hermes_mp.ids import Epoch, LoaderNo

KILL_NS = 5_000_000_000  # a process that is there for so long after SIGKILL waits in the kernel, maybe for ever


class State(Enum):
    """What a child is to its parent."""

    SPAWNING = "spawning"  # the process exists, it has not said a word
    UP = "up"
    STOPPING = "stopping"  # asked to leave
    KILLED = "killed"  # by us, because it hung
    UNKILLABLE = "unkillable"  # killed, and still there: it waits in the kernel. Its memory is left to it
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
    OUTLIVED = "outlived"  # the kill, by more than a while
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
    (_S.STOPPING, _H.OUTLIVED): _S.UNKILLABLE,
    (_S.STOPPING, _H.EXITED): _S.ENDED,
    (_S.KILLED, _H.STARTED): _S.KILLED,
    (_S.KILLED, _H.SAID_FAILED): _S.KILLED,
    (_S.KILLED, _H.STOP_ASKED): _S.STOPPING,
    (_S.KILLED, _H.KILL_SENT): _S.KILLED,
    (_S.KILLED, _H.OUTLIVED): _S.UNKILLABLE,
    (_S.KILLED, _H.EXITED): _S.GONE,
    (_S.UNKILLABLE, _H.STARTED): _S.UNKILLABLE,
    (_S.UNKILLABLE, _H.SAID_FAILED): _S.UNKILLABLE,
    (_S.UNKILLABLE, _H.STOP_ASKED): _S.UNKILLABLE,
    (_S.UNKILLABLE, _H.KILL_SENT): _S.UNKILLABLE,
    (_S.UNKILLABLE, _H.EXITED): _S.ENDED,
    (_S.FAILED, _H.STARTED): _S.FAILED,
    (_S.FAILED, _H.SAID_FAILED): _S.FAILED,
    (_S.FAILED, _H.STOP_ASKED): _S.FAILED,
    (_S.FAILED, _H.KILL_SENT): _S.FAILED,
    (_S.FAILED, _H.OUTLIVED): _S.UNKILLABLE,
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
        self._added: set[LoaderNo] = set()  # that `resize` leaves alone
        self._killed: dict[tuple[LoaderNo, Epoch], int] = {}  # since when, of those that are still there
        self._limits = limit, window_ns
        self._restarts: dict[LoaderNo, Restarts] = {}
        self.restarts: Counter[LoaderNo] = Counter()  # how often each has died and was replaced
        self._epochs: dict[LoaderNo, int] = {}  # the last one of each, also of those that left
        self.members: dict[LoaderNo, tuple[Epoch, Child]] = {}
        self.former: dict[tuple[LoaderNo, Epoch], Child] = {}  # processes that are no members any more
        self.abandoned: dict[LoaderNo, str] = {}  # why

    def start(self) -> list[Action]:
        """Everybody's first incarnation."""
        return [self._spawn(LoaderNo(number), Epoch(1)) for number in range(self._count)]

    def resize(self, count: int) -> tuple[list[Action], list[tuple[LoaderNo, Epoch]]]:
        """So many loaders there shall be: whom to start, and who is to be asked to leave, and not be replaced."""
        present = sorted(self.members.keys() - self._added)
        retired = [(number, self._dismiss(number)) for number in present[count:]]
        for key in retired:
            self.former[key].handle(Happened.STOP_ASKED)
        places = islice((LoaderNo(number) for number in _numbers() if number not in self._added), count)
        added = [number for place, number in enumerate(places) if place >= self._count and number not in self.members]
        self._count = count
        return [self._spawn(number, Epoch(self._epochs.get(number, 0) + 1)) for number in added], retired

    def add(self, count: int) -> list[Spawn]:
        """So many more, whose number does not change: those that take from other boards."""
        numbers = [LoaderNo(number) for number in range(self._count, self._count + count)]
        self._added.update(numbers)
        return [self._spawn(number, Epoch(1)) for number in numbers]

    def renew(self, loader: LoaderNo, epoch: Epoch) -> list[Action]:
        """Start another incarnation in the place of this one, which is about to be killed for no fault of its own.

        Not of one that is at its end anyway.
        """
        member = self.members.get(loader)
        if member is None or member[0] != epoch or member[1].state not in (State.SPAWNING, State.UP):
            return []
        self._dismiss(loader)
        return [self._spawn(loader, Epoch(epoch + 1))]

    def handle(self, loader: LoaderNo, epoch: Epoch, happened: Happened, now_ns: int) -> list[Action]:
        """What this incarnation did; of an older one, and of a loader that was abandoned, nothing follows."""
        key = loader, epoch
        if happened is Happened.KILL_SENT and not self.is_unkillable(key):
            self._killed.setdefault(key, now_ns)
        elif happened in (Happened.OUTLIVED, Happened.EXITED):
            self._killed.pop(key, None)
        former = self.former.get(key)
        if former is not None:
            former.handle(happened)
            if happened is Happened.EXITED:
                del self.former[key]
            return []
        member = self.members.get(loader)
        if member is None or member[0] != epoch:
            return []
        before, state = member[1].state, member[1].handle(happened)
        if state is State.UNKILLABLE:
            self._dismiss(loader)
            if before is State.STOPPING:
                return []
            if before is State.FAILED:
                return self._abandon(loader, "its start-up failed")
        elif happened is not Happened.EXITED:
            return []
        elif state is State.ENDED:
            del self.members[loader]
            return []
        if state is State.UNFIT:
            return self._abandon(loader, "its start-up failed")
        restarts = self._restarts.setdefault(loader, Restarts(*self._limits))
        if not restarts.grant(now_ns):
            return self._abandon(loader, restarts.why_not)
        self.restarts[loader] += 1
        return [self._spawn(loader, Epoch(epoch + 1))]

    def outlived(self, now_ns: int) -> list[tuple[LoaderNo, Epoch]]:
        """Those that were killed a while ago and are still there: `OUTLIVED` is to be said of them."""
        return [key for key, at_ns in self._killed.items() if now_ns - at_ns >= KILL_NS]

    def degraded(self) -> list[str]:
        """What the run has to do without, for good as far as is known, and why."""
        lost = [f"without loader {number}: {why}" for number, why in sorted(self.abandoned.items())]
        stuck = [self.former[key].name for key in self.former if self.is_unkillable(key)]
        return lost + [f"without what {name}, holds: it cannot be killed" for name in stuck]

    def is_unkillable(self, key: tuple[LoaderNo, Epoch]) -> bool:
        """Whether it was given up with what it held, and is still there."""
        return key in self.former and self.former[key].state is State.UNKILLABLE

    def _dismiss(self, loader: LoaderNo) -> Epoch:
        """It is no member any more, but its process is there."""
        epoch, child = self.members.pop(loader)
        self.former[loader, epoch] = child
        return epoch

    def _spawn(self, loader: LoaderNo, epoch: Epoch) -> Spawn:
        self.abandoned.pop(loader, None)
        self._epochs[loader] = epoch
        self.members[loader] = epoch, Child(f"loader {loader}, epoch {epoch}")
        return Spawn(loader, epoch)

    def _abandon(self, loader: LoaderNo, why: str) -> list[Action]:
        self.members.pop(loader, None)
        self.abandoned[loader] = why
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
