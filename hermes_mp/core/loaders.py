"""Who loads: each loader's present incarnation, the slot it holds, and when it last made progress.

News of an elder incarnation is recognised by its epoch. It knows no unit's demand and no policy of slots.
"""

from __future__ import annotations

from collections.abc import Iterator

from hermes_mp.core.pipeload_words import Kill, Limits
from hermes_mp.core.slots import Slot
from hermes_mp.errors import InvariantBroken
from hermes_mp.messages import Epoch, LoaderNo, LoadFailed, Ticket, UnitLoaded


class Loader:
    """One incarnation of a loader."""

    __slots__ = ("counter", "epoch", "killed", "number", "progress_ns", "slot")

    def __init__(self, number: LoaderNo, epoch: Epoch) -> None:
        self.number = number
        self.epoch = epoch
        self.slot: Slot | None = None
        self.counter = 0
        self.progress_ns = 0
        self.killed = False


class Loaders:
    """All incarnations that may still write; `idle` are those that can be given work, idle longest first."""

    def __init__(self, limits: Limits) -> None:
        self.idle: list[Loader] = []
        self._limits = limits
        self._alive: dict[tuple[LoaderNo, Epoch], Loader] = {}
        self._epochs: dict[LoaderNo, Epoch] = {}

    def busy(self) -> Iterator[tuple[Loader, Slot]]:
        """Those that hold a slot, with it."""
        return ((loader, loader.slot) for loader in self._alive.values() if loader.slot is not None)

    def started(self, number: LoaderNo, epoch: Epoch) -> bool:
        """A new incarnation is there; False for old news."""
        before = self._epochs.get(number)
        if before is not None and epoch <= before:
            return False
        if before is not None:
            # Its elder may still be writing: it gets no more work, and its slot stays lent until it is gone.
            elder = self._alive.get((number, before))
            if elder in self.idle:
                self.idle.remove(elder)
        self._epochs[number] = epoch
        loader = self._alive[number, epoch] = Loader(number, epoch)
        self.idle.append(loader)
        return True

    def gone(self, number: LoaderNo, epoch: Epoch) -> Slot | None:
        """The process is no more; the slot that it held, which nobody writes to any longer."""
        if epoch > self._epochs.get(number, Epoch(-1)):
            self._epochs[number] = epoch  # its late `LoaderStarted` is then old news
        loader = self._alive.pop((number, epoch), None)
        if loader is None:
            return None
        if loader in self.idle:
            self.idle.remove(loader)
        return loader.slot

    def give(self, slot: Slot, now_ns: int) -> Loader:
        """The loader that is to fill `slot`: the one that has been idle longest."""
        loader = self.idle.pop(0)
        loader.slot, loader.progress_ns = slot, now_ns
        return loader

    def take(self, news: UnitLoaded | LoadFailed) -> Slot | None:
        """End the load that `news` is about and return its slot; None for old or repeated news."""
        if news.epoch != self._epochs.get(news.loader):
            return None
        loader = self._alive.get((news.loader, news.epoch))
        if loader is None or loader.slot is None or loader.slot.ticket != news.ticket:
            return None
        slot, loader.slot = loader.slot, None
        if not loader.killed:
            self.idle.append(loader)
        return slot

    def seen(self, number: LoaderNo, epoch: Epoch, counter: int, now_ns: int) -> None:
        """A look at a loader's progress counter: if it moved, its load is not late."""
        loader = self._alive.get((number, epoch))
        if loader is not None and loader.counter != counter:
            loader.counter, loader.progress_ns = counter, now_ns
            if loader.slot is not None:
                loader.slot.late = False

    def judge(self, now_ns: int) -> Iterator[Kill]:
        """Mark the loads that make no progress as late; name the loaders that have made none for too long."""
        for loader, slot in self.busy():
            if loader.killed:
                continue
            still_ns = now_ns - loader.progress_ns
            slot.late = still_ns >= self._limits.soft_ns
            if still_ns >= self._limits.hard_ns:
                loader.killed = True
                why = f"no progress for {still_ns / 1e9:.1f} s while loading unit {slot.unit}"
                yield Kill(loader.number, loader.epoch, why)

    def deadlines_ns(self) -> Iterator[int]:
        """When `judge` can come to another verdict than now."""
        limits = self._limits
        for loader, slot in self.busy():
            if not loader.killed:
                yield loader.progress_ns + (limits.hard_ns if slot.late else limits.soft_ns)

    def check(self, lent: dict[Ticket, Slot]) -> None:
        """I5 a loader has at most one ticket, and every lent slot a loader."""
        held = [slot for _, slot in self.busy()]
        if len(held) != len(lent) or any(lent.get(slot.ticket) is not slot for slot in held):
            raise InvariantBroken("I5 a loader has at most one ticket, and every lent slot a loader")
        if any(loader.slot is not None or loader.killed for loader in self.idle):
            raise InvariantBroken("I5 an idle loader has no ticket")
