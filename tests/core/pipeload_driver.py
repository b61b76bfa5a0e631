"""A daemon's mind under check, and short words for its events and actions."""

from __future__ import annotations

from dataclasses import replace

from hermes_mp.core.pipeload import (
    Action,
    Announce,
    Event,
    Limits,
    Load,
    LoaderGone,
    Pipeload,
    Recall,
    SlotAdded,
)
from hermes_mp.messages import (
    AskUnit,
    Epoch,
    LoaderNo,
    LoaderStarted,
    LoadFailed,
    SlotNo,
    Ticket,
    UnitDone,
    UnitLoaded,
    UnitNo,
)

S = 1_000_000_000
LIMITS = Limits(soft_ns=2 * S, hard_ns=20 * S, doubt_ns=S // 10, patience_ns=3 * S, orders=1)


class Driver:
    """A daemon's mind under check, with words for its events."""

    def __init__(
        self, units: int, slots: int, loaders: int, window: int | None = None, more: bool = False, orders: int = 1
    ) -> None:
        self.mind = Pipeload([10] * units, 10, loaders, window, more, replace(LIMITS, orders=orders))
        self.now = 0
        for slot in range(slots):
            self.tell(SlotAdded(SlotNo(slot)))

    def tell(self, event: Event, at: float | None = None) -> list[Action]:
        if at is not None:
            self.now = int(at * S)
        actions = self.mind.handle(event, self.now)
        self.mind.check()
        return actions

    def start(self, loader: int, epoch: int = 1) -> list[Action]:
        return self.tell(LoaderStarted(LoaderNo(loader), Epoch(epoch), 100 + loader))

    def loaded(self, loader: int, ticket: int, epoch: int = 1) -> list[Action]:
        return self.tell(UnitLoaded(LoaderNo(loader), Epoch(epoch), Ticket(ticket), 10, True, 0, 0))

    def failed(self, loader: int, ticket: int, text: str = "input/output error") -> list[Action]:
        return self.tell(LoadFailed(LoaderNo(loader), Epoch(1), Ticket(ticket), 31, text))

    def gone(self, loader: int, epoch: int = 1) -> list[Action]:
        return self.tell(LoaderGone(LoaderNo(loader), Epoch(epoch)))

    def ask(self, unit: int, waiting: bool = True) -> list[Action]:
        return self.tell(AskUnit(UnitNo(unit), waiting))

    def done(self, ticket: int, computed: bool = True, ahead: tuple[int, ...] = ()) -> list[Action]:
        return self.tell(UnitDone(Ticket(ticket), computed, 0, 0, 0, tuple(map(UnitNo, ahead))))


def load(loader: int, ticket: int, unit: int, slot: int, epoch: int = 1) -> Load:
    return Load(LoaderNo(loader), Epoch(epoch), Ticket(ticket), UnitNo(unit), SlotNo(slot))


def announce(ticket: int, unit: int, slot: int, keep: bool = False) -> Announce:
    return Announce(Ticket(ticket), UnitNo(unit), SlotNo(slot), keep)


def recall(ticket: int, unit: int) -> Recall:
    return Recall(Ticket(ticket), UnitNo(unit))
