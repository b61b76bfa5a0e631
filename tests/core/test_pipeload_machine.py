"""The daemon's mind under any order of events, sense and nonsense: a Hypothesis state machine.

The model beside it is the world: which process may still write where, and what compute was told. After every step
`check` holds, and every action must be legal in that world.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hermes_mp.core.pipeload import (
    Announce,
    ComputeGone,
    Event,
    Kill,
    Limits,
    Load,
    LoaderGone,
    NoLoadersLeft,
    Pipeload,
    ProgressSeen,
    Recall,
    Refuse,
    SlotAdded,
    SlotsWanted,
    Tick,
)
from hermes_mp.messages import (
    AskUnit,
    Epoch,
    LoaderNo,
    LoaderStarted,
    LoadFailed,
    PassForecast,
    SlotNo,
    Ticket,
    UnitDone,
    UnitLoaded,
    UnitNo,
)

LIMITS = Limits(soft_ns=20, hard_ns=60, doubt_ns=10, patience_ns=40)
NUMBERS = st.integers(0, 3)


class World(RuleBasedStateMachine):
    """`flying`: loads under way; `content`: what each slot holds; `held`: leases that compute has."""

    @initialize(
        units=st.integers(1, 8),
        loaders=st.integers(1, 4),
        window=st.none() | st.integers(1, 4),
        slots=st.integers(0, 5),
        orders=st.integers(1, 3),
    )
    def begin(self, units: int, loaders: int, window: int | None, slots: int, orders: int) -> None:
        self.units, self.orders = units, orders
        self.mind = Pipeload([10] * units, 10, loaders, window, limits=replace(LIMITS, orders=orders))
        self.now = 0
        self.slots: set[int] = set()
        self.epochs = dict.fromkeys(range(4), 0)
        self.up: set[tuple[int, int]] = set()
        self.killed: set[tuple[int, int]] = set()
        self.flying: dict[int, Load] = {}
        self.content: dict[int, int] = {}
        self.held: dict[int, Announce] = {}
        self.recalled: set[int] = set()
        self.waiting: set[int] = set()
        self.last_ticket = 0
        self.lost = False
        self.errors: set[int] = set()
        for slot in range(slots):
            self.slots.add(slot)
            self.tell(SlotAdded(SlotNo(slot)))

    def tell(self, event: Event) -> None:
        for action in self.mind.handle(event, self.now):
            if isinstance(action, Load):
                who = (action.loader, action.epoch)
                assert who in self.up
                assert who not in self.killed
                assert self.epochs[action.loader] == action.epoch
                orders = sum((load.loader, load.epoch) == who for load in self.flying.values())
                assert orders < self.orders, "no more tickets at a time"
                assert action.slot in self.slots
                assert all(load.slot != action.slot for load in self.flying.values()), "a read may land there"
                assert all(lease.slot != action.slot for lease in self.held.values()), "compute reads there"
                assert action.ticket > self.last_ticket
                self.last_ticket = action.ticket
                self.content.pop(action.slot, None)
                self.flying[action.ticket] = action
            elif isinstance(action, Announce):
                if action.ticket in self.held:
                    assert self.held[action.ticket] == action
                else:
                    assert action.ticket > self.last_ticket
                    self.last_ticket = action.ticket
                assert self.content[action.slot] == action.unit
                assert all(load.slot != action.slot for load in self.flying.values())
                self.held[action.ticket] = action
                self.waiting.discard(action.unit)
            elif isinstance(action, Recall):
                assert self.held[action.ticket].keep
                assert self.held[action.ticket].unit == action.unit
                assert action.ticket not in self.recalled, "once is enough"
                self.recalled.add(action.ticket)
            elif isinstance(action, Refuse):
                if action.exit_code == 16:
                    assert {lease.slot for lease in self.held.values()} == self.slots
                elif action.exit_code == 43:
                    assert self.lost
                else:
                    assert action.unit in self.errors
                self.waiting.discard(action.unit)
            elif isinstance(action, Kill):
                assert (action.loader, action.epoch) not in self.killed
                self.killed.add((action.loader, action.epoch))
            else:
                assert len(self.slots) > 1
                assert all(load.slot != action.slot for load in self.flying.values())
                assert all(lease.slot != action.slot for lease in self.held.values())
                self.slots.remove(action.slot)
                self.content.pop(action.slot, None)

    # --- what happens in this world

    @rule(number=NUMBERS)
    def loader_starts(self, number: int) -> None:
        self.epochs[number] += 1
        self.up.add((number, self.epochs[number]))
        self.lost = False
        self.tell(LoaderStarted(LoaderNo(number), Epoch(self.epochs[number]), 1))

    @rule(data=st.data())
    def loader_finishes(self, data: st.DataObject) -> None:
        if self.flying:
            load = self.flying.pop(data.draw(st.sampled_from(sorted(self.flying))))
            current = self.epochs[load.loader] == load.epoch
            if not current:  # old news: nobody may count on it, the process can still write until it is gone
                self.flying[load.ticket] = load
            elif load.unit not in self.content.values():
                self.content[load.slot] = load.unit
            self.tell(UnitLoaded(load.loader, load.epoch, load.ticket, 10, True, 0, 0))

    @rule(data=st.data())
    def loader_fails(self, data: st.DataObject) -> None:
        if self.flying:
            load = self.flying[data.draw(st.sampled_from(sorted(self.flying)))]
            if self.epochs[load.loader] == load.epoch:
                del self.flying[load.ticket]
            self.errors.add(load.unit)
            self.tell(LoadFailed(load.loader, load.epoch, load.ticket, 31, "input/output error"))

    @rule(data=st.data())
    def loader_is_gone(self, data: st.DataObject) -> None:
        if self.up:
            number, epoch = data.draw(st.sampled_from(sorted(self.up)))
            self.up.remove((number, epoch))
            for load in list(self.flying.values()):
                if (load.loader, load.epoch) == (number, epoch):
                    del self.flying[load.ticket]
            self.tell(LoaderGone(LoaderNo(number), Epoch(epoch)))

    @rule()
    def nobody_is_left(self) -> None:
        if not self.up:
            self.lost = True
            self.tell(NoLoadersLeft())

    @rule(unit=st.integers(0, 7), waiting=st.booleans())
    def compute_asks(self, unit: int, waiting: bool) -> None:
        if waiting:
            self.waiting.add(unit % self.units)
        self.tell(AskUnit(UnitNo(unit % self.units), waiting))

    @rule(data=st.data(), computed=st.booleans(), ahead=st.none() | st.integers(0, 7))
    def compute_returns(self, data: st.DataObject, computed: bool, ahead: int | None) -> None:
        if self.held:
            ticket = data.draw(st.sampled_from(sorted(self.held)))
            del self.held[ticket]
            guesses = () if ahead is None else (UnitNo(ahead % self.units),)
            self.tell(UnitDone(Ticket(ticket), computed, 0, 0, 0, guesses))

    @rule(more=st.booleans(), units=st.integers(0, 9))
    def compute_forecasts(self, more: bool, units: int) -> None:
        self.tell(PassForecast(more, units))

    @rule()
    def compute_dies(self) -> None:
        self.held.clear()
        self.waiting.clear()
        self.tell(ComputeGone())

    @rule(slot=st.integers(0, 6))
    def slot_is_added(self, slot: int) -> None:
        self.slots.add(slot)
        self.tell(SlotAdded(SlotNo(slot)))

    @rule(count=st.integers(0, 6))
    def slots_are_wanted(self, count: int) -> None:
        self.tell(SlotsWanted(count))

    @rule(passed=st.integers(1, 70), busy=st.booleans())
    def time_passes(self, passed: int, busy: bool) -> None:
        self.now += passed
        if busy:
            for number, epoch in sorted(self.up):
                self.tell(ProgressSeen(LoaderNo(number), Epoch(epoch), self.now))
        self.tell(Tick())

    @rule(number=NUMBERS, back=st.integers(0, 2), ticket=st.integers(0, 40), kind=st.integers(0, 3))
    def nonsense_arrives(self, number: int, back: int, ticket: int, kind: int) -> None:
        """Old or repeated news; what would be true is left to the rules above."""
        loader, epoch = LoaderNo(number), Epoch(self.epochs[number] - back)
        true = ticket in self.flying and (self.flying[ticket].loader, self.flying[ticket].epoch) == (loader, epoch)
        if kind == 0 and not true:
            self.tell(UnitLoaded(loader, epoch, Ticket(ticket), 10, True, 0, 0))
        elif kind == 1 and not true:
            self.tell(LoadFailed(loader, epoch, Ticket(ticket), 31, "nonsense"))
        elif kind == 2 and epoch > 0:
            self.tell(LoaderStarted(loader, epoch, 1))
        elif kind == 3 and ticket not in self.held:
            self.tell(UnitDone(Ticket(ticket), True, 0, 0, 0))

    # --- what must hold

    @invariant()
    def the_named_invariants_hold(self) -> None:
        if hasattr(self, "mind"):
            self.mind.check()

    @invariant()
    def the_mind_and_the_world_agree(self) -> None:
        if hasattr(self, "mind"):
            assert set(self.mind.slots.all) == self.slots
            assert set(self.mind.slots.lent) == set(self.flying)
            assert set(self.mind.slots.announced) == set(self.held)

    def teardown(self) -> None:
        """From wherever this ended: with one healthy loader and an honest compute every wait ends."""
        if not hasattr(self, "mind") or not self.slots:
            return
        for number, epoch in sorted(self.up):
            for load in [load for load in self.flying.values() if (load.loader, load.epoch) == (number, epoch)]:
                del self.flying[load.ticket]
            self.up.remove((number, epoch))
            self.tell(LoaderGone(LoaderNo(number), Epoch(epoch)))
        self.loader_starts(0)
        for _ in range(300):
            ticket = next((one for one, lease in self.held.items() if not lease.keep or one in self.recalled), None)
            if ticket is not None:
                del self.held[ticket]
                self.tell(UnitDone(Ticket(ticket), True, 0, 0, 0))
            elif self.flying:
                load = self.flying.pop(next(iter(self.flying)))
                self.content[load.slot] = load.unit
                self.tell(UnitLoaded(load.loader, load.epoch, load.ticket, 10, True, 0, 0))
            elif self.waiting:  # what compute keeps it returns only when it is asked to
                self.now += LIMITS.doubt_ns
                self.tell(Tick())
            else:
                break
        assert not self.waiting, f"never answered: {self.waiting}"


World.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestWorld = World.TestCase
