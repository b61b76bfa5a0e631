"""What is said to and by `Pipeload` inside the daemon: its limits, the events that are no messages, and its actions.

A loader is named by number and epoch, so that news of an earlier incarnation can be told apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_mp.errors import LoadersLost
from hermes_mp.messages import (
    AskUnit,
    Epoch,
    LoaderNo,
    LoaderStarted,
    LoadFailed,
    PassForecast,
    PassStarted,
    SlotNo,
    Ticket,
    UnitDone,
    UnitLoaded,
    UnitNo,
)


@dataclass(frozen=True)
class Limits:
    """Deadlines in nanoseconds without progress; and `orders`, the most that a loader is given at once."""

    soft_ns: int = 2_000_000_000  # then the unit is also loaded into another slot; see `Loaders.soft_ns`
    hard_ns: int = 30_000_000_000  # then the loader is killed
    doubt_ns: int = 100_000_000  # how long to wait for compute to return a guess before a resident is evicted
    patience_ns: int = 2_000_000_000  # how long compute may hold all slots and want another before it is refused
    orders: int = 2  # the unit that it reads, and the next


# --- events of the daemon itself; the others are messages


@dataclass(frozen=True)
class LoaderGone:
    """The kernel says that this process is gone: nothing writes to its slots any more."""

    loader: LoaderNo
    epoch: Epoch


@dataclass(frozen=True)
class LoaderStuck:
    """This process was killed and does not end: its slots stay lent until `LoaderGone`, which may never come."""

    loader: LoaderNo
    epoch: Epoch
    text: str


@dataclass(frozen=True)
class LoadersLeft:
    """So many loaders (at least 1) are up or on their way: one was given up for good."""

    count: int


@dataclass(frozen=True)
class NoLoadersLeft:
    """No loader is alive and none will come back."""

    exit_code: int = LoadersLost.exit_code
    text: str = "no loader could be kept alive"


@dataclass(frozen=True)
class ProgressSeen:
    """A look at a loader's progress counter in shared memory."""

    loader: LoaderNo
    epoch: Epoch
    counter: int


@dataclass(frozen=True)
class SlotAdded:
    """The slot is allocated, and nothing is in it."""

    slot: SlotNo


@dataclass(frozen=True)
class SlotsWanted:
    """So many slots there shall be (at least 1): surplus ones are removed as they come free.

    `window`: so many of them streamed units share; `loaders`: so many are to read (0: as before).
    """

    count: int
    window: int = 0
    loaders: int = 0


@dataclass(frozen=True)
class ComputeGone:
    """Compute is gone; what it held is free. Its pass and its forecast are over."""


@dataclass(frozen=True)
class Tick:
    """Time has passed: judge the deadlines (`wake_ns` says when next)."""


Event = (
    LoaderStarted | UnitLoaded | LoadFailed | LoaderGone | LoaderStuck | LoadersLeft | NoLoadersLeft
    | ProgressSeen
    | AskUnit | UnitDone | PassForecast | PassStarted | ComputeGone | SlotAdded | SlotsWanted | Tick
)  # fmt: skip


# --- actions


@dataclass(frozen=True)
class Load:
    """Send `LoadUnit` to this loader."""

    loader: LoaderNo
    epoch: Epoch
    ticket: Ticket
    unit: UnitNo
    slot: SlotNo


@dataclass(frozen=True)
class Announce:
    """Send `UnitReady` to compute."""

    ticket: Ticket
    unit: UnitNo
    slot: SlotNo
    keep: bool = False


@dataclass(frozen=True)
class Recall:
    """Send `RecallUnit` to compute."""

    ticket: Ticket
    unit: UnitNo


@dataclass(frozen=True)
class Refuse:
    """Send `UnitFailed` to compute."""

    unit: UnitNo
    exit_code: int
    text: str


@dataclass(frozen=True)
class Kill:
    """Kill this loader; its slots stay lent until `LoaderGone`."""

    loader: LoaderNo
    epoch: Epoch
    why: str


@dataclass(frozen=True)
class RemoveSlot:
    """Nothing refers to this slot any more: give its memory back."""

    slot: SlotNo


Action = Load | Announce | Recall | Refuse | Kill | RemoveSlot
