"""The daemon's mind: who may load what into which slot, and when compute may have it. It knows no clock, no socket,
no arena and no process: events and the time go in, actions come out.

`handle` applies a fact totally (late, repeated and old-epoch news are legal and change nothing), then the rules run
in order of priority: announce, recall, shrink, load what compute waits for, read ahead, refuse. None of them can enable
an earlier one, so one round is all. `check` asserts the named invariants I1-I7; tests call it after every step.
"""

from __future__ import annotations

from collections.abc import Sequence

from hermes_mp.core.loaders import Loaders
from hermes_mp.core.pipeload_words import (
    Action,
    Announce,
    ComputeGone,
    Event,
    Kill,
    Limits,
    Load,
    LoaderGone,
    LoadersLeft,
    LoaderStuck,
    NoLoadersLeft,
    ProgressSeen,
    Recall,
    Refuse,
    RemoveSlot,
    SlotAdded,
    SlotsWanted,
    Tick,
)
from hermes_mp.core.residents import choose_residents, window_for
from hermes_mp.core.slots import ANNOUNCED, EMPTY, LENT, LOADED, Slot, Slots
from hermes_mp.errors import BadMessage, BudgetTooSmall, InvariantBroken, ReadFailed
from hermes_mp.messages import (
    AskUnit,
    LoaderStarted,
    LoadFailed,
    PassForecast,
    PassStarted,
    UnitDone,
    UnitLoaded,
    UnitNo,
)

__all__ = [
    "Action",
    "Announce",
    "ComputeGone",
    "Event",
    "Kill",
    "Limits",
    "Load",
    "LoaderGone",
    "LoaderStuck",
    "LoadersLeft",
    "NoLoadersLeft",
    "ProgressSeen",
    "Recall",
    "Refuse",
    "RemoveSlot",
    "SlotAdded",
    "SlotsWanted",
    "Tick",
]

TRIES = 2  # loads of a unit that compute waits for, before it is refused: errors may be transient


class _Demand:
    """A unit that compute waits for."""

    __slots__ = ("exit_code", "failures", "text")

    def __init__(self) -> None:
        self.failures = 0
        self.exit_code = 0
        self.text = ""


class Pipeload:
    """Units 0.. in predicted order (`units`: what each takes of a slot, in bytes), slots, loaders, compute's wishes."""

    def __init__(
        self,
        units: Sequence[int],
        slot_nbytes: int,
        loaders: int,
        window: int | None = None,
        more: bool = False,
        limits: Limits | None = None,
        eager: bool = True,
    ) -> None:
        if not units or max(units) > slot_nbytes:
            raise InvariantBroken(f"I1 every unit fits a slot: {max(units, default=0)} of {slot_nbytes} bytes")
        self.units = tuple(units)
        self.slot_nbytes = slot_nbytes
        self.residents: frozenset[UnitNo] = frozenset()
        self.window = 0  # the slots that streamed units share
        self.slots = Slots()
        self.loads_by_unit = [0] * len(units)
        self.computes_by_unit = [0] * len(units)
        self._limits = limits or Limits()
        self.loaders = Loaders(self._limits, loaders)
        self._window_planned = window
        self._slots_wanted: int | None = None
        self._lost: NoLoadersLeft | None = None
        self._stuck = ""  # what is said of the last loader that cannot be killed
        self._more = more
        self._may_read_ahead = eager  # else only once the first pass has begun
        self._expected = len(units)  # a pass is expected to end before this unit
        self._reach: int | None = None  # the most that was ever expected: over so many units residents are spread
        self._position = 0  # the unit expected next; len(units) after the last
        self._demands: dict[UnitNo, _Demand] = {}  # the newest last
        self._guess: UnitNo | None = None
        self._guessed: Slot | None = None  # what was announced on the last guess
        self._divided = False  # residents may have been chosen anew since the last recall
        self._recalled_ns = 0
        self._failed: set[UnitNo] = set()  # not read ahead again until demanded
        self._now_ns = 0
        self._moved_ns = 0  # when compute last asked for, got or returned something
        self._robbed: list[str] = []  # what the other slots were when this event made us evict a resident

    @property
    def bytes_read(self) -> int:
        return self.slots.bytes_read

    @property
    def bytes_unused(self) -> int:
        """Read and never computed with, so far."""
        return self.slots.bytes_unused()

    @property
    def wanted(self) -> bool:
        """Whether compute waits for a unit."""
        return bool(self._demands)

    def handle(self, event: Event, now_ns: int) -> list[Action]:
        actions: list[Action] = []
        self._now_ns = now_ns
        if self._robbed:
            self._robbed.clear()
        self._apply(event, now_ns, actions)
        self._announce(now_ns, actions)
        self._recall(actions)
        self._shrink(actions)
        self._load_demands(now_ns, actions)
        self._read_ahead(now_ns, actions)
        self._refuse(now_ns, actions)
        return actions

    def wake_ns(self) -> int | None:
        """When the next `Tick` (after a `ProgressSeen` of every busy loader) can make a difference."""
        wake_ns = self.loaders.wake_ns()
        if not self._demands or not (self.slots.announced or self.loaders.slots_stuck):
            return wake_ns
        since = max(self._moved_ns, self._recalled_ns)
        waits = since + self._limits.doubt_ns, since + self._limits.patience_ns
        times = [wake_ns] if wake_ns is not None else []
        return min([*times, *(time_ns for time_ns in waits if time_ns > self._now_ns)], default=None)

    # --- facts

    def _apply(self, event: Event, now_ns: int, actions: list[Action]) -> None:
        if isinstance(event, UnitLoaded):
            slot = self.loaders.take(event, now_ns)
            if slot is not None:
                self._failed.discard(slot.unit)
                self.slots.fill(slot, event.nbytes)
        elif isinstance(event, UnitDone):
            done = self.slots.announced.get(event.ticket)
            if done is not None:
                self._moved_ns = now_ns
                self.slots.give_back(done, event.computed)
                self.computes_by_unit[done.unit] += event.computed
            for unit in event.ahead:
                self._ask(unit, False, now_ns, actions)
        elif isinstance(event, AskUnit):
            self._ask(event.unit, event.waiting, now_ns, actions)
        elif isinstance(event, Tick):
            actions.extend(self.loaders.judge(now_ns))
        elif isinstance(event, ProgressSeen):
            self.loaders.seen(event.loader, event.epoch, event.counter, now_ns)
        elif isinstance(event, LoadFailed):
            slot = self.loaders.take(event, now_ns)
            if slot is not None:
                self._load_failed(slot, event)
        elif isinstance(event, LoaderStarted):
            if self.loaders.started(event.loader, event.epoch):
                self._lost = None
        elif isinstance(event, LoaderGone):
            stuck = self.loaders.slots_stuck
            for slot in self.loaders.gone(event.loader, event.epoch):
                self.slots.drop(slot)
            if self.loaders.slots_stuck != stuck:
                self._divide()
        elif isinstance(event, LoaderStuck):
            self.loaders.stuck(event.loader, event.epoch)
            self._stuck = event.text
            self._divide()
        elif isinstance(event, PassForecast):
            self._forecast(event)
        elif isinstance(event, PassStarted):
            self._may_read_ahead = True  # while compute still looks up the rows of its embedding
        elif isinstance(event, SlotAdded):
            if event.slot not in self.slots.all:
                self.slots.add(event.slot)
                self._divide()
        elif isinstance(event, SlotsWanted):
            self._slots_wanted = max(1, event.count)
            self._window_planned = event.window or self._window_planned
            self.loaders.planned = event.loaders or self.loaders.planned
            self._divide()
        elif isinstance(event, LoadersLeft):
            self.loaders.planned = event.count
            self._divide()
        elif isinstance(event, ComputeGone):
            for slot in list(self.slots.announced.values()):
                self.slots.give_back(slot, computed=False)
            self._demands.clear()
            self._guess, self._position, self._more = None, 0, False
            self._expected, self._reach = len(self.units), None
            self._divide()
        else:
            self._lost = event

    def _ask(self, unit: UnitNo, waiting: bool, now_ns: int, actions: list[Action]) -> None:
        if not 0 <= unit < len(self.units):
            actions.append(Refuse(unit, BadMessage.exit_code, f"unit {unit} of {len(self.units)} was asked for"))
            return
        self._moved_ns = now_ns
        self._may_read_ahead = True
        self._position = unit
        if self._reach is not None and unit >= self._reach:
            self._reach = len(self.units)
            self._divide()
        self._guess = None if waiting else unit
        if not waiting and self._guessed is not None:
            # Compute guesses on once it has got the last guess: it binds that one, or returns it before it waits.
            self._guessed.guess, self._guessed = False, None
        slot = self.slots.content.get(unit)
        if slot is not None and slot.holds is ANNOUNCED:
            self._position, self._guess = unit + 1, None
            slot.guess = slot.guess and not waiting
            actions.append(Announce(slot.ticket, unit, slot.number, slot.kept))
        elif waiting:
            demand = self._demands.pop(unit) if unit in self._demands else _Demand()
            self._demands[unit] = demand  # the newest last

    def _forecast(self, event: PassForecast) -> None:
        self._more = event.more
        self._expected = event.units if 0 < event.units <= len(self.units) else len(self.units)
        if self._reach is None or self._expected > self._reach:  # never less: calls of the model and of its base
            self._reach = self._expected  # take turns, and would drive each other's residents out
            self._divide()

    def _load_failed(self, slot: Slot, event: LoadFailed) -> None:
        unit = slot.unit
        self.slots.drop(slot)
        self._failed.add(unit)
        demand = self._demands.get(unit)
        if demand is not None:
            demand.failures += 1
            demand.exit_code, demand.text = event.exit_code, event.text

    def _divide(self) -> None:
        """Residents and window for the slots there will be once the surplus ones are removed."""
        count = len(self.slots.all)
        if self._slots_wanted is not None:
            count = min(count, self._slots_wanted)
        count = max(1, count - self.loaders.slots_stuck)
        self.window = window_for(count, self.loaders.planned, self._window_planned)
        self.residents = choose_residents(self.units[: self._reach], count, self.window)
        self._divided = True

    # --- rules, in order of priority

    def _announce(self, now_ns: int, actions: list[Action]) -> None:
        for unit in reversed(list(self._demands)) if self._demands else ():
            if self._announce_unit(unit, False, now_ns, actions):
                del self._demands[unit]
        if self._guess is not None and self._announce_unit(self._guess, True, now_ns, actions):
            self._guess = None

    def _announce_unit(self, unit: UnitNo, guess: bool, now_ns: int, actions: list[Action]) -> bool:
        slot = self.slots.content.get(unit)
        if slot is None:
            return False
        if slot.holds is LOADED:
            # Kept from its second use on: by then it is known that it was of use.
            keep = slot.computed and unit in self.residents and not self._is_surplus()
            actions.append(Announce(self.slots.announce(slot, guess, keep), unit, slot.number, keep))
            self._moved_ns = now_ns
            if guess:
                self._guessed = slot
        if self._position == unit:
            self._position = unit + 1
        return True

    def _recall(self, actions: list[Action]) -> None:
        """What compute keeps and is no resident any more."""
        if self._divided:
            self._divided = False
            for slot in self.slots.announced.values():
                if slot.kept and not slot.recalled and slot.unit not in self.residents:
                    self._recall_slot(slot, actions)

    def _recall_slot(self, slot: Slot, actions: list[Action]) -> None:
        slot.recalled, self._recalled_ns = True, self._now_ns
        actions.append(Recall(slot.ticket, slot.unit))

    def _is_surplus(self) -> bool:
        return self._slots_wanted is not None and len(self.slots.all) > self._slots_wanted

    def _shrink(self, actions: list[Action]) -> None:
        if self._slots_wanted is None or len(self.slots.all) <= self._slots_wanted:
            return
        free = [*self.slots.empty.values(), *self.slots.loaded.values()]
        free.sort(key=lambda slot: (slot.holds is LOADED, slot.unit in self.residents, -self._distance(slot.unit)))
        for slot in free[: len(self.slots.all) - self._slots_wanted]:
            if slot.holds is LOADED:
                self.slots.evict(slot)
            self.slots.remove(slot)
            actions.append(RemoveSlot(slot.number))

    def _load_demands(self, now_ns: int, actions: list[Action]) -> None:
        for unit in reversed(list(self._demands)) if self._demands else ():
            if not self.loaders.can_take():
                return
            if self._demands[unit].failures < TRIES and self._missing(unit):
                slot = self._slot_for_demand(unit, now_ns)
                if slot is not None:
                    self._lend(slot, unit, now_ns, actions)
                else:
                    self._recall_for_demand(now_ns, actions)

    def _recall_for_demand(self, now_ns: int, actions: list[Action]) -> None:
        """Have a resident that compute keeps given back, where no other slot will come free; one at a time."""
        doubt_ns = self._limits.doubt_ns
        if self._others_will_come_free(now_ns) or now_ns - self._recalled_ns < doubt_ns:
            return
        kept = [slot for slot in self.slots.announced.values() if slot.kept and not slot.recalled]
        if kept:
            self._recall_slot(max(kept, key=lambda slot: self._distance(slot.unit)), actions)

    def _read_ahead(self, now_ns: int, actions: list[Action]) -> None:
        count, first = self._cycle(), self._position
        if not self._may_read_ahead or not self.loaders.can_take() or len(self.slots.content) == len(self.units):
            return
        window_full = False
        for distance in range(count if self._more else count - first):
            unit = UnitNo((first + distance) % count)
            if window_full and unit not in self.residents:
                continue
            if unit in self._failed or unit in self._demands or not self._missing(unit):
                continue
            slot = self._slot_for_guess(unit, distance)
            if slot is not None:
                self._lend(slot, unit, now_ns, actions)
                if not self.loaders.can_take():
                    return
            elif unit in self.residents or window_full or not self._residents_missing():
                return  # whatever comes later in the order has a weaker claim to a slot
            else:
                window_full = True

    def _refuse(self, now_ns: int, actions: list[Action]) -> None:
        if not self._demands:
            return
        slots = self.slots
        held_for_ns = now_ns - max(self._moved_ns, self._recalled_ns)
        stuck = self.loaders.slots_stuck
        all_held = len(slots.announced) + stuck == len(slots.all) > 0 and held_for_ns >= self._limits.patience_ns
        all_held = all_held and not any(slot.kept and not slot.recalled for slot in slots.announced.values())
        for unit, demand in list(self._demands.items()):
            if demand.failures >= TRIES and unit not in slots.loading:
                refusal = Refuse(unit, demand.exit_code, demand.text)
            elif self._lost is not None:
                refusal = Refuse(unit, self._lost.exit_code, self._lost.text)
            elif all_held and stuck:
                held = f"{stuck} of {len(slots.all)} slots are held by loaders that cannot be killed: {self._stuck}"
                refusal = Refuse(unit, ReadFailed.exit_code, f"unit {unit} cannot be read: {held}")
            elif all_held:
                refusal = Refuse(
                    unit,
                    BudgetTooSmall.exit_code,
                    f"unit {unit} is needed while all {len(slots.all)} slots are in use: this model needs at least "
                    f"{len(slots.all) + 1} slots of {self.slot_nbytes} bytes",
                )
            else:
                continue
            del self._demands[unit]
            actions.append(refusal)

    # --- what the rules ask

    def _lend(self, slot: Slot, unit: UnitNo, now_ns: int, actions: list[Action]) -> None:
        if slot.holds is LOADED:
            self.slots.evict(slot)
        loader = self.loaders.give(slot, self.units[unit], now_ns)
        self.loads_by_unit[unit] += 1
        actions.append(Load(loader.number, loader.epoch, self.slots.lend(slot, unit), unit, slot.number))

    def _missing(self, unit: UnitNo) -> bool:
        """Nowhere complete, and no load of it makes progress."""
        if unit in self.slots.content:
            return False
        loads = self.slots.loading.get(unit)
        return loads is None or all(slot.late for slot in loads)

    def _distance(self, unit: UnitNo) -> int:
        """How many units are expected to be used before this one; one that no pass is expected to use comes last."""
        count = self._cycle()
        return (unit - self._position) % count if unit < count else len(self.units) + unit

    def _cycle(self) -> int:
        """The number of units after which a pass begins anew; one that went further than expected goes to the end."""
        return self._expected if self._position <= self._expected else len(self.units)

    def _residents_missing(self) -> bool:
        if all(map(self.slots.content.__contains__, self.residents)):
            return False
        return any(map(self._missing, self.residents))

    def _window_has_room(self) -> bool:
        """Streamed units together hold fewer slots than the window has; a second load of a resident is streamed."""
        slots = self.slots
        held = len(slots.all) - len(slots.empty) - self.loaders.slots_stuck
        residents = sum(map(slots.content.__contains__, self.residents))
        residents += sum(unit in self.residents and unit not in slots.content for unit in slots.loading)
        return held - residents < self.window

    def _candidates(self) -> tuple[Slot | None, Slot | None, Slot | None]:
        """An empty slot; the loaded streamed unit and the loaded resident that are needed latest."""
        streamed = resident = None
        farthest_streamed = farthest_resident = -1
        for unit, slot in self.slots.loaded.items():
            distance = self._distance(unit)
            if unit in self.residents:
                if distance > farthest_resident:
                    resident, farthest_resident = slot, distance
            elif distance > farthest_streamed:
                streamed, farthest_streamed = slot, distance
        return next(iter(self.slots.empty.values()), None), streamed, resident

    def _slot_for_guess(self, unit: UnitNo, distance: int) -> Slot | None:
        empty, streamed, _ = self._candidates()
        if empty is not None and (unit in self.residents or self._window_has_room()):
            return empty
        if streamed is not None and self._distance(streamed.unit) > distance:
            return streamed
        return None

    def _slot_for_demand(self, unit: UnitNo, now_ns: int) -> Slot | None:
        """A demand takes any slot, but a resident's only where no other can come free without it."""
        empty, streamed, resident = self._candidates()
        if empty is not None and streamed is not None:
            return empty if unit in self.residents or self._window_has_room() else streamed
        if empty is not None or streamed is not None:
            return empty or streamed
        if resident is None or self._others_will_come_free(now_ns):
            return None
        self._robbed = [
            "late" if slot.holds is LENT and slot.late else slot.holds.name
            for slot in self.slots.all.values()
            if slot.holds is not LOADED or slot.unit not in self.residents
        ]
        return resident

    def _others_will_come_free(self, now_ns: int) -> bool:
        """A load ends, or compute returns a wrong guess as soon as it hears of it."""
        if any(not slot.late for slot in self.slots.lent.values()):
            return True
        guessed = self._guessed is not None and self._guessed.holds is ANNOUNCED and self._guessed.guess
        return guessed and now_ns - self._moved_ns < self._limits.doubt_ns

    # --- for tests

    def check(self) -> None:
        """Raise `InvariantBroken` with the name of the first invariant that does not hold."""
        slots = self.slots
        slots.check()  # I2, I3, I4
        if sum(self.units[slot.unit] for slot in slots.all.values() if slot.holds is not EMPTY) > (
            len(slots.all) * self.slot_nbytes
        ):
            raise InvariantBroken("I1 bytes lent and loaded never exceed the arena")
        self.loaders.check(slots.lent)
        if any(robbed not in ("late", "ANNOUNCED") for robbed in self._robbed):
            raise InvariantBroken(f"I6 a resident is evicted only where nothing else will come free: {self._robbed}")
        for unit in self._demands:
            if not self._is_on_its_way(unit):
                raise InvariantBroken(f"I7 what compute waits for is on its way: unit {unit}")

    def _is_on_its_way(self, unit: UnitNo) -> bool:
        slots = self.slots
        if unit in slots.content or self._lost is not None:
            return False  # then it should have been announced, or refused
        if unit in slots.loading or not self.loaders.can_take() or not slots.all:
            return True
        # A loader can be given it: then there must be no slot to take, and one that somebody will give back.
        empty, streamed, _ = self._candidates()
        coming = any(not slot.kept or slot.recalled for slot in slots.announced.values())
        return empty is None and streamed is None and (coming or bool(slots.lent))
