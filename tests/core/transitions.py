"""Every transition that the states of daemon, loaders and compute can make, and a count of those a simulation took.

A transition is (whose, what happened, what it met). `Tally` names it just before the real state handles the event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from hermes_mp.core import leasing, lifecycle, loading, pipeload
from hermes_mp.core.lifecycle import TABLE, Happened, State
from hermes_mp.core.pipeload import Pipeload
from hermes_mp.core.slots import ANNOUNCED, Slot, Slots
from hermes_mp.errors import BadMessage, BudgetTooSmall, LoadersLost, ReadFailed
from hermes_mp.messages import (
    AskUnit,
    LoaderStarted,
    LoadFailed,
    LoadUnit,
    PassForecast,
    PassStarted,
    RecallUnit,
    StopLoader,
    UnitDone,
    UnitFailed,
    UnitLoaded,
    UnitReady,
)

Transition = tuple[str, str, str]

# What an event meets in the daemon's mind.
EVENTS: dict[type, tuple[str, ...]] = {
    LoaderStarted: ("the first of its number", "replaces one", "old news"),
    UnitLoaded: ("fills its slot", "another load was first", "old news"),
    LoadFailed: ("compute waits for the unit", "nobody waits for it", "old news"),
    pipeload.LoaderGone: ("it had slots", "it had none", "old news"),
    pipeload.LoaderStuck: ("it had slots", "it had none", "old news"),
    pipeload.LoadersLeft: ("fewer", "as many"),
    pipeload.NoLoadersLeft: ("compute waits", "nobody waits"),
    pipeload.ProgressSeen: ("it came further", "it stands still", "of nobody"),
    AskUnit: (
        "waits, nowhere", "waits, being loaded", "waits, loaded", "waits, announced",
        "guesses, nowhere", "guesses, being loaded", "guesses, loaded", "guesses, announced", "no such unit",
    ),
    UnitDone: ("computed", "computed, and the next guess", "unused", "old news"),
    PassForecast: ("another pass", "no other", "a part of the units"),
    PassStarted: ("may read ahead already", "may read ahead now"),
    pipeload.ComputeGone: ("it held units", "it held none"),
    pipeload.SlotAdded: ("new", "known"),
    pipeload.SlotsWanted: ("fewer", "as many or more"),
    pipeload.Tick: ("in time", "a load is late", "a loader is killed"),
}  # fmt: skip
# What the mind's rules lead to.
REFUSALS = ReadFailed, LoadersLost, BudgetTooSmall, BadMessage
ACTIONS: dict[type, tuple[str, ...]] = {
    pipeload.Load: ("on demand", "ahead: a resident", "ahead: streamed", "a second time"),
    pipeload.Announce: ("on demand", "on a guess", "for good", "once more"),
    pipeload.Recall: ("no resident any more", "for want of slots"),
    pipeload.Refuse: tuple(error.__name__ for error in REFUSALS),
    pipeload.Kill: ("it stood still",),
    pipeload.RemoveSlot: ("surplus",),
}
# What each change of a slot's owner makes of it.
MOVES = {
    "add": ("nothing -> EMPTY",),
    "remove": ("EMPTY -> nothing",),
    "lend": ("EMPTY -> LENT",),
    "fill": ("LENT -> LOADED", "LENT -> EMPTY"),
    "drop": ("LENT -> EMPTY",),
    "announce": ("LOADED -> ANNOUNCED",),
    "give_back": ("ANNOUNCED -> LOADED",),
    "evict": ("LOADED -> EMPTY",),
}
# What a message meets in compute's mind.
TO_COMPUTE: dict[type, tuple[str, ...]] = {
    UnitReady: ("waited for", "guessed", "not wanted any more", "repeated"),
    RecallUnit: ("in use", "not in use", "old news"),
    UnitFailed: ("gives up", "asks again", "of another wait"),
}
# What an event meets in a loader's mind.
TO_LOADER: dict[type, tuple[str, ...]] = {
    LoadUnit: ("is read", "old news"),
    loading.LoadRead: ("goes on", "leaves"),
    loading.LoadBroken: ("goes on", "leaves"),
    StopLoader: ("leaves", "has orders left"),
}
# What becomes of a child that ended.
SUCCESSION = {
    "loaders": ("Spawn", "Abandon: its start-up failed", "Abandon: it died", "AllLost"),
    "compute": ("Again", "Over: its start-up failed", "Over: too often", "Over: no further"),
}


def _all() -> Iterable[Transition]:
    for role in ("loader", "compute"):
        yield from (
            (role, state.value, happened.value)
            for state, happened in TABLE
            if role == "loader" or not {state, happened} & {State.UNKILLABLE, Happened.OUTLIVED}  # who only loaders are
        )
    for whose, table in (("daemon", EVENTS), ("rules", ACTIONS), ("compute", TO_COMPUTE), ("loader", TO_LOADER)):
        yield from ((whose, kind.__name__, met) for kind, found in table.items() for met in found)
    for whose, names in (("slot", MOVES), ("succession", SUCCESSION)):
        yield from ((whose, name, met) for name, found in names.items() for met in found)


TRANSITIONS: tuple[Transition, ...] = tuple(_all())


class Tally:
    """Counts; one that is in no table above is a mistake of the tables."""

    def __init__(self) -> None:
        self.counts: Counter[Transition] = Counter()

    def take(self, whose: str, what: str, met: str) -> None:
        self.counts[whose, what, met] += 1

    def life(self, role: str, child: lifecycle.State, happened: lifecycle.Happened) -> None:
        self.take(role, child.value, happened.value)

    def event(self, mind: Pipeload, event: Any, now_ns: int) -> None:
        self.take("daemon", type(event).__name__, _EVENT[type(event)](mind, event, now_ns))

    def action(self, mind: Pipeload, action: Any, announced_before: bool) -> None:
        met = ACTIONS[type(action)][0]
        if isinstance(action, pipeload.Load):
            ahead = "a resident" if action.unit in mind.residents else "streamed"
            met = "on demand" if action.unit in mind._demands else f"ahead: {ahead}"
            if len(mind.slots.loading[action.unit]) > 1:
                met = "a second time"
        elif isinstance(action, pipeload.Announce):
            guess = "on a guess" if mind.slots.all[action.slot].guess else "on demand"
            met = "once more" if announced_before else "for good" if action.keep else guess
        elif isinstance(action, pipeload.Recall):
            met = "for want of slots" if action.unit in mind.residents else "no resident any more"
        elif isinstance(action, pipeload.Refuse):
            met = next(error.__name__ for error in REFUSALS if error.exit_code == action.exit_code)
        self.take("rules", type(action).__name__, met)

    def to_compute(self, mind: leasing.Leasing, message: Any, now_ns: int) -> list[leasing.Action]:
        """Have compute's mind handle it."""
        waits_for, before = mind._waiting, mind.held(message.unit)
        actions = mind.handle(message, now_ns)
        if isinstance(message, UnitReady):
            came = "waited for" if message.unit == waits_for else "guessed"
            met = "not wanted any more" if actions else "repeated" if before is not None else came
        elif isinstance(message, UnitFailed):
            again = bool(actions) and isinstance(actions[0], leasing.Send)
            met = "of another wait" if not actions else "asks again" if again else "gives up"
        elif before is None or before.ticket != message.ticket:
            met = "old news"
        else:
            met = "not in use" if actions else "in use"
        self.take("compute", type(message).__name__, met)
        return actions

    def to_loader(self, mind: loading.Loading, message: Any, now_ns: int) -> list[loading.Action]:
        """Have a loader's mind handle it."""
        actions = mind.handle(message, now_ns)
        leaves = any(isinstance(action, loading.Exit) for action in actions)
        if isinstance(message, LoadUnit):
            met = "is read" if actions else "old news"
        elif isinstance(message, StopLoader):
            met = "leaves" if leaves else "has orders left"
        else:
            met = "leaves" if leaves else "goes on"
        self.take("loader", type(message).__name__, met)
        return actions

    def succession(self, action: Any) -> None:
        met = type(action).__name__
        if isinstance(action, lifecycle.Abandon):
            met += ": its start-up failed" if "start-up" in action.why else ": it died"
        elif isinstance(action, lifecycle.Over):
            why = "too often" if "within" in action.why else "no further"
            met += f": {why if action.why else 'its start-up failed'}"
        self.take("succession", "compute" if isinstance(action, lifecycle.Again | lifecycle.Over) else "loaders", met)

    def table(self) -> str:
        """Every transition with its count."""
        rows = [(*transition, self.counts[transition]) for transition in TRANSITIONS]
        return "\n".join(f"{count:>10,}  {whose}: {what}: {met}" for whose, what, met, count in rows)

    def never_taken(self) -> list[Transition]:
        return [transition for transition in TRANSITIONS if not self.counts[transition]]

    def unlisted(self) -> list[Transition]:
        return sorted(set(self.counts) - set(TRANSITIONS))


class CountedSlots(Slots):
    """The slots, and every change of owner counted."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def _count(self, move: str, number: Any, before: str) -> None:
        slot = self.all.get(number)
        self._tally.take("slot", move, f"{before} -> {'nothing' if slot is None else slot.holds.name}")


def _counted(move: str) -> Callable[..., Any]:
    plain = getattr(Slots, move)

    def counted(self: CountedSlots, what: Any, *rest: Any, **words: Any) -> Any:
        number, before = (what.number, what.holds.name) if isinstance(what, Slot) else (what, "nothing")
        result = plain(self, what, *rest, **words)
        self._count(move, number, before)
        return result

    return counted


for _move in MOVES:
    setattr(CountedSlots, _move, _counted(_move))


# --- what an event of the daemon's mind is about to meet


def _loader_started(mind: Pipeload, event: LoaderStarted, _: int) -> str:
    before = mind.loaders._epochs.get(event.loader)
    if before is None:
        return "the first of its number"
    return "replaces one" if event.epoch > before else "old news"


def _load_of(mind: Pipeload, event: UnitLoaded | LoadFailed) -> Slot | None:
    """The slot of which this is true news."""
    slot = mind.slots.lent.get(event.ticket)
    loader = mind.loaders._alive.get((event.loader, event.epoch))
    current = mind.loaders._epochs.get(event.loader) == event.epoch
    return slot if current and loader is not None and slot in loader.slots else None


def _unit_loaded(mind: Pipeload, event: UnitLoaded, _: int) -> str:
    slot = _load_of(mind, event)
    if slot is None:
        return "old news"
    return "another load was first" if slot.unit in mind.slots.content else "fills its slot"


def _load_failed(mind: Pipeload, event: LoadFailed, _: int) -> str:
    slot = _load_of(mind, event)
    if slot is None:
        return "old news"
    return "compute waits for the unit" if slot.unit in mind._demands else "nobody waits for it"


def _loader_gone(mind: Pipeload, event: pipeload.LoaderGone | pipeload.LoaderStuck, _: int) -> str:
    loader = mind.loaders._alive.get((event.loader, event.epoch))
    if loader is None:
        return "old news"
    return "it had slots" if loader.slots else "it had none"


def _progress_seen(mind: Pipeload, event: pipeload.ProgressSeen, _: int) -> str:
    loader = mind.loaders._alive.get((event.loader, event.epoch))
    if loader is None:
        return "of nobody"
    return "it stands still" if loader.counter == event.counter else "it came further"


def _ask_unit(mind: Pipeload, event: AskUnit, _: int) -> str:
    if not 0 <= event.unit < len(mind.units):
        return "no such unit"
    slot = mind.slots.content.get(event.unit)
    where = "being loaded" if event.unit in mind.slots.loading else "nowhere"
    if slot is not None:
        where = "announced" if slot.holds is ANNOUNCED else "loaded"
    return f"{'waits' if event.waiting else 'guesses'}, {where}"


def _unit_done(mind: Pipeload, event: UnitDone, _: int) -> str:
    if event.ticket not in mind.slots.announced:
        return "old news"
    return "unused" if not event.computed else "computed, and the next guess" if event.ahead else "computed"


def _tick(mind: Pipeload, event: pipeload.Tick, now_ns: int) -> str:
    still_ns = max((now_ns - loader.progress_ns for loader in mind.loaders._busy()), default=0)
    if still_ns >= mind._limits.hard_ns:
        return "a loader is killed"
    return "a load is late" if still_ns >= mind._limits.soft_ns else "in time"


_EVENT: dict[type, Callable[[Pipeload, Any, int], str]] = {
    LoaderStarted: _loader_started,
    UnitLoaded: _unit_loaded,
    LoadFailed: _load_failed,
    pipeload.LoaderGone: _loader_gone,
    pipeload.LoaderStuck: _loader_gone,
    pipeload.LoadersLeft: lambda mind, event, _: "fewer" if event.count < mind.loaders.planned else "as many",
    pipeload.NoLoadersLeft: lambda mind, event, _: "compute waits" if mind.wanted else "nobody waits",
    pipeload.ProgressSeen: _progress_seen,
    AskUnit: _ask_unit,
    UnitDone: _unit_done,
    PassForecast: lambda mind, event, _: (
        "a part of the units" if event.units else "another pass" if event.more else "no other"
    ),
    PassStarted: lambda mind, event, _: f"may read ahead {'already' if mind._may_read_ahead else 'now'}",
    pipeload.ComputeGone: lambda mind, event, _: "it held units" if mind.slots.announced else "it held none",
    pipeload.SlotAdded: lambda mind, event, _: "known" if event.slot in mind.slots.all else "new",
    pipeload.SlotsWanted: lambda mind, event, _: "fewer" if event.count < len(mind.slots.all) else "as many or more",
    pipeload.Tick: _tick,
}
