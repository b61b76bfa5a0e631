"""Who loads: each loader's present incarnation, the slots it holds, and when it last made progress.

A loader may hold the order of its next unit: it begins that while the last bytes of the present one are on their way,
and the disk does not wait for three processes to wake up in turn.
News of an elder incarnation is recognised by its epoch. It knows no unit's demand and no policy of slots.
"""

from __future__ import annotations

from collections.abc import Iterator

from hermes_mp.core.pace import ChunkTimes
from hermes_mp.core.pipeload_words import Kill, Limits
from hermes_mp.core.slots import Slot
from hermes_mp.errors import InvariantBroken
from hermes_mp.messages import Epoch, LoaderNo, LoadFailed, Ticket, UnitLoaded


class Loader:
    """One incarnation of a loader; `slots` are those it is to fill, the one that was ordered first comes first."""

    __slots__ = ("counter", "epoch", "killed", "nbytes", "number", "progress_ns", "slots", "stuck")

    def __init__(self, number: LoaderNo, epoch: Epoch) -> None:
        self.number = number
        self.epoch = epoch
        self.slots: list[Slot] = []
        self.nbytes: list[int] = []  # that each of them takes
        self.counter = 0
        self.progress_ns = 0
        self.killed = False
        self.stuck = False  # killed in vain


class Loaders:
    """All incarnations that may still write. `planned`: so many are to be up before one gets a further order."""

    def __init__(self, limits: Limits, planned: int) -> None:
        self.planned = planned
        self._limits = limits
        self._alive: dict[tuple[LoaderNo, Epoch], Loader] = {}
        self._epochs: dict[LoaderNo, Epoch] = {}
        self._idle: list[Loader] = []  # can be given work; idle longest first
        self._times = ChunkTimes()
        self.slots_stuck = 0  # that loaders hold which cannot be killed
        self._reading: list[Loader] = []  # can be given one order more; the one that began its unit first comes first

    @property
    def soft_ns(self) -> int:
        """A load without progress for so long is late. Where chunks take long, longer; but well before it is killed."""
        return max(self._limits.soft_ns, min(self._times.unusual_ns(), self._limits.hard_ns // 2))

    def can_take(self) -> bool:
        """Whether some loader can be given another order."""
        return bool(self._idle) or self._next_reading() is not None

    def started(self, number: LoaderNo, epoch: Epoch) -> bool:
        """A new incarnation is there; False for old news."""
        before = self._epochs.get(number)
        if before is not None and epoch <= before:
            return False
        if before is not None:
            # Its elder may still be writing: it gets no more work, and its slots stay lent until it is gone.
            self._give_nothing_more(self._alive.get((number, before)))
        self._epochs[number] = epoch
        loader = self._alive[number, epoch] = Loader(number, epoch)
        self._idle.append(loader)
        return True

    def gone(self, number: LoaderNo, epoch: Epoch) -> list[Slot]:
        """The process is no more; the slots that it held, which nobody writes to any longer."""
        if epoch > self._epochs.get(number, Epoch(-1)):
            self._epochs[number] = epoch  # its late `LoaderStarted` is then old news
        loader = self._alive.pop((number, epoch), None)
        if loader is None:
            return []
        self._give_nothing_more(loader)
        self.slots_stuck -= len(loader.slots) * loader.stuck
        return loader.slots

    def stuck(self, number: LoaderNo, epoch: Epoch) -> None:
        """The process was killed and is still there: nobody waits for its slots."""
        loader = self._alive.get((number, epoch))
        if loader is None or loader.stuck:
            return
        loader.killed = loader.stuck = True
        self._give_nothing_more(loader)
        self.slots_stuck += len(loader.slots)
        for slot in loader.slots:
            slot.late = True

    def give(self, slot: Slot, nbytes: int, now_ns: int) -> Loader:
        """The loader that is to read `nbytes` into `slot`: the one idle longest, else the one that is idle soonest."""
        if self._idle:
            loader = self._idle.pop(0)
            loader.progress_ns = now_ns
        else:
            found = self._next_reading()
            assert found is not None
            loader = found
            self._reading.remove(loader)
        loader.slots.append(slot)
        loader.nbytes.append(nbytes)
        self._put(loader)
        return loader

    def take(self, news: UnitLoaded | LoadFailed, now_ns: int) -> Slot | None:
        """End the load that `news` is about and return its slot; None for old or repeated news."""
        if news.epoch != self._epochs.get(news.loader):
            return None
        loader = self._alive.get((news.loader, news.epoch))
        slot = None if loader is None else next((one for one in loader.slots if one.ticket == news.ticket), None)
        if loader is None or slot is None or loader.stuck:
            return None
        if isinstance(news, UnitLoaded):
            self._times.took(news.slowest_ns)
        position = loader.slots.index(slot)
        del loader.nbytes[position], loader.slots[position]
        if position == 0:  # else an older load may be what hangs
            loader.progress_ns = now_ns
            for left in loader.slots:
                left.late = False
        if not loader.killed:
            self._give_nothing_more(loader)
            self._put(loader)
        return slot

    def seen(self, number: LoaderNo, epoch: Epoch, counter: int, now_ns: int) -> None:
        """A look at a loader's progress counter: if it moved, its loads are not late.

        One that was killed shares it with its successor.
        """
        loader = self._alive.get((number, epoch))
        if loader is not None and loader.counter != counter and not loader.killed:
            loader.counter, loader.progress_ns = counter, now_ns
            for slot in loader.slots:
                slot.late = False

    def judge(self, now_ns: int) -> Iterator[Kill]:
        """Mark the loads that make no progress as late; name the loaders that have made none for too long."""
        for loader in self._busy():
            still_ns = now_ns - loader.progress_ns
            for slot in loader.slots:
                slot.late = still_ns >= self.soft_ns
            if still_ns >= self._limits.hard_ns:
                loader.killed = True
                self._give_nothing_more(loader)
                why = f"no progress for {still_ns / 1e9:.1f} s while loading unit {loader.slots[0].unit}"
                yield Kill(loader.number, loader.epoch, why)

    def wake_ns(self) -> int | None:
        """When `judge` can come to another verdict than now."""
        soft_ns, hard_ns = self.soft_ns, self._limits.hard_ns
        times = [one.progress_ns + (hard_ns if one.slots[0].late else min(soft_ns, hard_ns)) for one in self._busy()]
        return min(times, default=None)

    def at_work(self) -> dict[tuple[LoaderNo, Epoch], list[Slot]]:
        """The slots that each incarnation is to fill, the one that was ordered first comes first."""
        return {key: list(loader.slots) for key, loader in self._alive.items()}

    def _busy(self) -> list[Loader]:
        return [loader for loader in self._alive.values() if loader.slots and not loader.killed]

    def _next_reading(self) -> Loader | None:
        """Of those that have least to read the one that began first. None while a loader that starts may be idle."""
        if len(self._alive) < self.planned:
            return None
        able = [loader for loader in self._reading if not loader.slots[0].late]
        return min(able, key=lambda loader: sum(loader.nbytes), default=None)

    def _put(self, loader: Loader) -> None:
        """Behind those that are as far: a loader that can be given work, and was in no list."""
        if not loader.slots:
            self._idle.append(loader)
        elif len(loader.slots) < self._limits.orders:
            self._reading.append(loader)

    def _give_nothing_more(self, loader: Loader | None) -> None:
        for those in (self._idle, self._reading):
            if loader in those:
                those.remove(loader)

    def check(self, lent: dict[Ticket, Slot]) -> None:
        """I5 a loader has no more tickets than it may have orders, and every lent slot has a loader."""
        most = self._limits.orders
        held = [slot for loader in self._alive.values() for slot in loader.slots]
        if any(len(loader.slots) > most for loader in self._alive.values()):
            raise InvariantBroken(f"I5 a loader has at most {most} tickets")
        if len(held) != len(lent) or any(lent.get(slot.ticket) is not slot for slot in held):
            raise InvariantBroken("I5 every lent slot has a loader")
        if any(loader.slots or loader.killed for loader in self._idle):
            raise InvariantBroken("I5 an idle loader has no ticket")
        if any(not 0 < len(loader.slots) < most or loader.killed for loader in self._reading):
            raise InvariantBroken("I5 a loader that can be given its next order reads, and has room for it")
