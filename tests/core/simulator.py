"""Joins the real states of daemon, loaders and compute by queues under a virtual clock, and makes them suffer.

A seed decides everything: sizes, delays (messages of one link keep their order), crashes in the middle of a read,
hangs, read errors, slots and loaders that come and go, repeated and old news, nonsense, what compute does, its deaths,
and when the run ends. The slots' memory is modelled byte by byte: a dead loader's read keeps landing until the kernel
says it is gone. `python tests/core/simulator.py`: 10,000 seeds, and how often each transition was taken.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from dataclasses import replace
from heapq import heappop, heappush
from random import Random
from typing import Any

from compute_script import MS, Script
from transitions import TRANSITIONS, CountedSlots, Tally

from hermes_mp.core import leasing, lifecycle, loading, pipeload
from hermes_mp.core.lifecycle import Crew, Happened, Solo
from hermes_mp.errors import BudgetTooSmall, InvariantBroken, LoadersLost, ReadFailed
from hermes_mp.messages import (
    AskUnit,
    ComputeFailed,
    ComputeStarted,
    Epoch,
    LoaderFailed,
    LoaderNo,
    LoaderStarted,
    LoadUnit,
    OpenFile,
    PassStarted,
    Range,
    RecallUnit,
    SlotNo,
    StopLoader,
    UnitDone,
    UnitFailed,
    UnitNo,
    UnitReady,
)

PIECES = 3  # ranges per unit, one byte each, so the memory of a slot is a list of this length
LIMITS = pipeload.Limits(soft_ns=60 * MS, hard_ns=200 * MS, doubt_ns=20 * MS, patience_ns=100 * MS)
LEAVE_NS = 50 * MS  # from the end of a run: who is still there is killed
MAX_STEPS = 20_000


class Loader:
    """One incarnation: its mind, and what its process does to memory."""

    __slots__ = ("alive", "counter", "epoch", "gone", "hung", "mind", "number", "started")

    def __init__(self, number: LoaderNo, epoch: Epoch, arena_nbytes: int) -> None:
        self.number = number
        self.epoch = epoch
        self.mind = loading.Loading(number, epoch, arena_nbytes)
        self.alive = True  # runs; a dead one's read still lands until it is `gone`
        self.gone = False
        self.hung = False
        self.counter = 0
        self.started = False


class Compute:
    """One incarnation: its mind, how far its script is, and what it holds."""

    __slots__ = ("alive", "at", "bound", "epoch", "hung", "inbox", "mind", "uses", "wait_no", "waits")

    def __init__(self, epoch: Epoch, units: int) -> None:
        self.epoch = epoch
        self.mind = leasing.Leasing(units)
        self.alive = True
        self.hung = False
        self.at = 0
        self.inbox: deque[UnitReady | RecallUnit | UnitFailed] = deque()
        self.waits: int | None = None
        self.wait_no = 0
        self.bound: dict[int, tuple[UnitReady, list[Any]]] = {}
        self.uses: list[int] = []  # the units in use, the innermost last


class Chaos:
    """How likely each misfortune is in this seed."""

    def __init__(self, rng: Random, calm: bool) -> None:
        def some(chance: float, most: float) -> float:
            return 0.0 if calm or rng.random() > chance else rng.random() * most

        self.crash = some(0.5, 0.08)  # per range read
        self.hang = some(0.25, 0.05)
        self.stuck = some(0.5, 1.0)  # per kill: it takes effect only long after
        self.nap = some(0.25, 0.05)  # hangs past the soft deadline, then goes on
        self.read_error = some(0.25, 0.1)
        self.repeat = some(0.4, 0.2)  # per message
        self.resize = some(0.3, 0.15)  # per step of compute
        self.start_fails = some(0.1, 0.5)
        self.start_dies = some(0.1, 0.5)
        self.nonsense = some(0.2, 0.3)  # per message of a loader or of compute
        self.bug = some(0.15, 0.1)  # per message of a loader: it cannot go on
        self.compute_dies = some(0.2, 0.05)  # per step of compute
        self.compute_fails = some(0.2, 0.15)
        self.compute_hangs = some(0.05, 0.02)
        self.end = some(0.15, 1.0)  # of the run, by a signal: when


class Simulation:
    """One seed from start to end; `run` raises if anything is wrong."""

    def __init__(self, seed: int, calm: bool = False) -> None:
        rng = self.rng = Random(seed)
        self.random = rng.random
        self.calm = calm or rng.random() < 0.2
        self.chaos = Chaos(rng, self.calm)
        self.units = rng.randint(1, 12)
        slots = rng.randint(1, 8)
        loaders = rng.randint(1, 6)
        window = None if rng.random() < 0.7 else rng.randint(1, slots)
        self.base_delay = rng.choice((MS // 20, MS // 2, 2 * MS))
        self.read_ns = rng.choice((MS // 4, MS, 4 * MS))
        self.now = 0
        self.steps = 0
        self.events: list[tuple[int, int, Any, Any]] = []
        self.order = 0
        self.links: dict[Any, int] = {}
        sizes = [rng.randint(1, PIECES) if rng.random() < 0.2 else PIECES for _ in range(self.units)]
        limits = replace(LIMITS, orders=rng.choice((1, 2, 2, 3)))
        self.tally = Tally()
        self.daemon = pipeload.Pipeload(sizes, PIECES, loaders, window, limits=limits, eager=rng.random() < 0.5)
        self.daemon.slots = CountedSlots(self.tally)
        self.sizes = sizes
        self.max_slots = 8
        self.memory: list[list[Any] | None] = [None] * self.max_slots
        restarts = rng.choice((5, 2)), rng.choice((30_000 * MS, 50 * MS))
        self.crew = Crew(loaders, *restarts)
        self.solo = Solo(rng.choice((3, 1)), rng.choice((60_000 * MS, 20 * MS)))
        self.loaders: dict[tuple[LoaderNo, Epoch], Loader] = {}
        self.lost = False
        self.stuck = False
        self.bad_units: set[int] = set()
        self.asked = 0  # what compute asked for last, as the daemon knows it
        self.demanded: set[int] = set()
        self.tick_at: int | None = None
        self.computed: list[int] = []  # by compute
        self.returned = 0  # as computed, to the daemon
        self.tickets: dict[int, int] = {}
        self.script = Script(rng, self.units, self.read_ns, self.calm)
        self.steps_done = 0  # of the script, by whichever compute came furthest
        self.finished = self.stopping = False
        for slot in range(slots):
            self.memory[slot] = [None] * PIECES
            self.tell(pipeload.SlotAdded(SlotNo(slot)))
        for action in self.crew.start():
            self.crew_does(action)
        self.start_compute()

    # --- the clock

    def later(self, at_ns: int, what: Any, argument: Any) -> None:
        self.order += 1
        heappush(self.events, (at_ns, self.order, what, argument))

    def post(self, link: Any, what: Any, argument: Any) -> None:
        """Deliver over a link: in order, after a random delay."""
        delay = int(self.random() * self.base_delay)
        at_ns = max(self.links.get(link, 0), self.now + delay)
        self.links[link] = at_ns
        self.later(at_ns, what, argument)

    def run(self) -> None:
        if self.chaos.end:
            self.later(int(self.chaos.end * 200 * MS), self.end, None)
        while not self.finished:
            assert self.events, "nothing will ever happen again, and compute is not finished"
            self.step()
        if self.rng.random() < 0.5 or self.calm:  # what is still under way comes to rest: nothing is asked for any more
            self.come_to_rest()
            assert not self.daemon.slots.lent or self.lost, "a slot stays lent"
        self.stop(None)
        self.perhaps_again(self.stop, None)
        self.come_to_rest()
        assert not self.daemon.slots.lent, "a slot stays lent to a process that is gone"
        assert all(loader.gone for loader in self.loaders.values()), "a loader is left"
        assert not self.compute.alive, "compute is left"
        self.check_end()

    def step(self) -> None:
        self.steps += 1
        assert self.steps < MAX_STEPS, "it does not finish"
        self.now, _, what, argument = heappop(self.events)
        what(argument)

    def come_to_rest(self) -> None:
        while self.events:
            self.step()

    def end(self, _: Any) -> None:
        self.finished = True

    def stop(self, _: Any) -> None:
        """Everybody is asked to leave, and killed where he does not."""
        self.stopping = True
        for (number, epoch), loader in self.loaders.items():
            self.crew_says(number, epoch, Happened.STOP_ASKED)
            self.post(loader, self.loader_hears, (loader, StopLoader()))
        if self.compute_is_there:
            self.solo_says(Happened.STOP_ASKED)
            leaves = self.compute_fails if self.random() < self.chaos.compute_fails else self.compute_ends
            self.later(self.now + int(self.random() * 2 * LEAVE_NS), leaves, self.compute)
        self.later(self.now + LEAVE_NS, self.kill_all, None)

    def kill_all(self, _: Any) -> None:
        for loader in self.loaders.values():
            self.kill(loader)
        self.kill_compute()

    def check_end(self) -> None:
        daemon = self.daemon
        assert sum(daemon.computes_by_unit) == self.returned <= len(self.computed)
        if self.calm:
            assert self.computed == list(range(self.units)) * self.script.full_passes, "every unit once, in order"
            loads = daemon.loads_by_unit
            assert daemon.bytes_read == sum(count * size for count, size in zip(loads, self.sizes, strict=True))
            most = self.script.full_passes + self.script.ever_more
            assert all(1 <= count <= most for count in loads), f"a pass read a unit twice: {loads}"
            assert all(loads[unit] == 1 for unit in daemon.residents), f"a resident was read again: {loads}"
            if not self.script.ever_more:
                assert daemon.bytes_unused == 0, "something was read for nothing"

    # --- the daemon's shell

    def tell(self, event: Any) -> None:
        now = self.now
        daemon = self.daemon
        tally = self.tally
        tally.event(daemon, event, now)
        actions = daemon.handle(event, now)
        daemon.check()
        for action in actions:
            tally.action(daemon, action, isinstance(action, pipeload.Announce) and action.ticket in self.tickets)
            if isinstance(action, pipeload.Load):
                self.order_load(action)
            elif isinstance(action, pipeload.Announce):
                self.demanded.discard(action.unit)
                self.tickets[action.ticket] = action.unit
                self.to_compute(UnitReady(action.ticket, action.unit, action.slot * PIECES, action.keep))
            elif isinstance(action, pipeload.Recall):
                self.to_compute(RecallUnit(action.ticket, action.unit))
            elif isinstance(action, pipeload.Refuse):
                self.demanded.discard(action.unit)
                self.to_compute(UnitFailed(action.unit, action.exit_code, action.text))
            elif isinstance(action, pipeload.Kill):
                self.kill(self.loaders[action.loader, action.epoch])
            else:
                assert isinstance(action, pipeload.RemoveSlot)
                self.memory[action.slot] = None
        wake = daemon.wake_ns()
        if wake is not None and (self.tick_at is None or wake < self.tick_at):
            self.tick_at = max(wake, now)
            self.later(self.tick_at, self.tick, self.tick_at)

    def tick(self, at_ns: int) -> None:
        if self.tick_at != at_ns:
            return
        self.tick_at = None
        for loader in [loader for loader in self.loaders.values() if not loader.gone]:
            self.tell(pipeload.ProgressSeen(loader.number, loader.epoch, loader.counter))
        self.tell(pipeload.Tick())

    def order_load(self, action: pipeload.Load) -> None:
        unit = action.unit
        if not self.daemon._more:
            assert unit >= self.asked or unit in self.demanded, f"unit {unit} was read beyond the last"
        loader = self.loaders[action.loader, action.epoch]
        assert not loader.gone, "work for a loader that is gone"
        ranges = tuple(Range(0, unit * PIECES + piece, 1, piece) for piece in range(self.sizes[unit]))
        order = LoadUnit(action.epoch, action.ticket, unit, action.slot * PIECES, PIECES, ranges)
        self.post(loader, self.loader_hears, (loader, order))
        self.perhaps_again(self.loader_hears, (loader, order))

    def from_loader(self, message: Any) -> None:
        if isinstance(message, LoaderFailed):
            self.crew_says(message.loader, message.epoch, Happened.SAID_FAILED)
            return
        if isinstance(message, LoaderStarted):
            self.crew_says(message.loader, message.epoch, Happened.STARTED)
        self.tell(message)

    def from_compute(self, argument: tuple[Compute, Any]) -> None:
        compute, message = argument
        if compute is not self.compute or not self.compute_is_there:
            return  # late words
        if isinstance(message, ComputeStarted):
            self.solo_says(Happened.STARTED)
            return
        if isinstance(message, ComputeFailed):
            self.solo_says(Happened.SAID_FAILED)
            self.finished = True
            return
        if isinstance(message, AskUnit) and message.unit < self.units:
            self.asked = message.unit
            if message.waiting:
                self.demanded.add(message.unit)
        elif isinstance(message, UnitDone):
            self.asked = message.ahead[0] if message.ahead else self.asked
            self.returned += message.computed and message.ticket in self.daemon.slots.announced
        self.tell(message)

    def perhaps_again(self, what: Any, argument: Any) -> None:
        if self.chaos.repeat and self.random() < self.chaos.repeat:
            self.later(self.now + int(self.random() * 60 * MS), what, argument)

    # --- loaders and the kernel

    def crew_says(self, number: LoaderNo, epoch: Epoch, happened: Happened) -> None:
        child = self.crew.former.get((number, epoch))
        member = self.crew.members.get(number)
        if child is None and member is not None and member[0] == epoch:
            child = member[1]
        if child is not None:
            self.tally.life("loader", child.state, happened)
        for action in self.crew.handle(number, epoch, happened, self.now):
            self.tally.succession(action)
            self.crew_does(action)

    def kill(self, loader: Loader) -> None:
        if not loader.gone:
            self.crew_says(loader.number, loader.epoch, Happened.KILL_SENT)
            if loader.alive and self.random() < self.chaos.stuck:
                self.get_stuck(loader)
            else:
                self.die(loader)

    def crew_does(self, action: lifecycle.Action) -> None:
        if isinstance(action, lifecycle.Spawn):
            loader = Loader(action.loader, action.epoch, self.max_slots * PIECES)
            self.loaders[action.loader, action.epoch] = loader
            loader.mind.handle(OpenFile(0, "model", self.units * PIECES), self.now)
            self.later(self.now + int(self.random() * 10 * MS), self.loader_starts, loader)
        elif isinstance(action, lifecycle.Abandon):
            self.tell(pipeload.LoadersLeft(max(1, action.left)))
        elif isinstance(action, lifecycle.AllLost):
            self.lost = True
            self.tell(pipeload.NoLoadersLeft())

    def loader_starts(self, loader: Loader) -> None:
        chance = self.random()
        if not loader.alive:
            return
        if chance < self.chaos.start_dies:
            self.die(loader)
        elif chance - self.chaos.start_dies < self.chaos.start_fails:
            self.loader_fails(loader)
        else:
            loader.started = True
            self.loader_says(loader, LoaderStarted(loader.number, loader.epoch, 1))

    def loader_fails(self, loader: Loader) -> None:
        self.send(loader, LoaderFailed(loader.number, loader.epoch, InvariantBroken.exit_code, "a bug"))
        self.post((loader, 0), self.die, loader)  # the kernel's notice comes after its last words

    def send(self, loader: Loader, message: Any) -> None:
        what = [(self.from_loader, message)]
        if self.chaos.nonsense and self.random() < self.chaos.nonsense:  # the daemon answers to it by killing
            what.insert(self.rng.randint(0, 1), (self.kill, loader))
        self.deliver((loader, 0), what)

    def deliver(self, link: Any, what: list[tuple[Any, Any]]) -> None:
        for one in what:
            self.post(link, *one)
            self.perhaps_again(*one)

    def loader_says(self, loader: Loader, message: Any) -> None:
        self.send(loader, message)
        if self.chaos.bug and self.random() < self.chaos.bug:
            self.loader_fails(loader)

    def loader_hears(self, argument: tuple[Loader, Any]) -> None:
        loader, message = argument
        if not loader.alive or loader.hung:
            return
        if not loader.started:  # it reads its messages once it is up
            self.later(self.now + MS, self.loader_hears, argument)
            return
        for action in self.tally.to_loader(loader.mind, message, self.now):
            if isinstance(action, loading.Read):
                self.range_is_read(loader, action.load, 0)
            elif isinstance(action, loading.Send):
                self.loader_says(loader, action.message)
            elif isinstance(action, loading.Exit):
                self.post((loader, 0), self.die, loader)

    def range_is_read(self, loader: Loader, load: LoadUnit, index: int) -> None:
        """One after the other of a load, while those of the next one are read beside them."""
        self.later(self.now + int(self.random() * self.read_ns), self.range_lands, (loader, load, index))

    def range_lands(self, argument: tuple[Loader, LoadUnit, int]) -> None:
        loader, load, index = argument
        if loader.gone:
            return
        read = load.ranges[index]
        where = load.base + read.at
        memory = self.memory[where // PIECES]
        assert memory is not None, "a read landed in a slot that was given back"
        memory[where % PIECES] = (read.offset, load.ticket)
        if not loader.alive or loader.hung:
            return
        chaos, chance = self.chaos, self.random()
        if chance < chaos.crash:
            self.die(loader)
        elif (chance := chance - chaos.crash) < chaos.hang:
            loader.hung = True  # and its read is still under way
            self.later(self.now + int(self.random() * 2 * LIMITS.hard_ns), self.range_lands, argument)
        elif (chance := chance - chaos.hang) < chaos.nap:
            self.later(self.now + LIMITS.soft_ns + int(self.random() * 300 * MS), self.range_lands, argument)
        elif chance - chaos.nap < chaos.read_error:
            loader.counter += 1
            self.bad_units.add(read.offset // PIECES)
            broken = loading.LoadBroken(load.ticket, ReadFailed.exit_code, "input/output error")
            self.loader_hears((loader, broken))
        else:
            loader.counter += 1
            if index + 1 < len(load.ranges):
                self.range_is_read(loader, load, index + 1)
            else:
                self.loader_hears((loader, loading.LoadRead(load.ticket, True, self.now)))

    def die(self, loader: Loader) -> None:
        """The process dies now; its read in flight lands until the kernel says so."""
        if loader.alive:
            loader.alive = False
            self.later(self.now + int(self.random() * 40 * MS), self.kernel_says_gone, loader)

    def get_stuck(self, loader: Loader) -> None:
        """It was killed and stays for a while, or for longer than the run; its read in flight may land all the time."""
        loader.alive = False
        self.later(self.now + lifecycle.KILL_NS, self.has_outlived, loader)
        self.later(self.now + lifecycle.KILL_NS + int(self.random() * 1000 * MS), self.kernel_says_gone, loader)

    def has_outlived(self, loader: Loader) -> None:
        assert (loader.number, loader.epoch) in self.crew.outlived(self.now)
        self.stuck = True
        self.crew_says(loader.number, loader.epoch, Happened.OUTLIVED)
        self.tell(pipeload.LoaderStuck(loader.number, loader.epoch, "a loader that cannot be killed"))
        for words in (
            LoaderStarted(loader.number, loader.epoch, 1),
            LoaderFailed(loader.number, loader.epoch, InvariantBroken.exit_code, "a bug"),
        ):
            self.perhaps_again(self.from_loader, words)  # they were on their way for long

    def kernel_says_gone(self, loader: Loader) -> None:
        loader.gone = True
        gone = pipeload.LoaderGone(loader.number, loader.epoch)
        self.tell(gone)
        self.perhaps_again(self.tell, gone)
        self.crew_says(loader.number, loader.epoch, Happened.EXITED)

    # --- compute's process

    def start_compute(self) -> None:
        self.compute = Compute(self.solo.epoch, self.units)
        self.compute_is_there = True  # as the daemon knows
        self.later(self.now + int(self.random() * 10 * MS), self.compute_starts, self.compute)

    def solo_says(self, happened: Happened) -> None:
        """Of the present incarnation, which is not known to be gone."""
        self.tally.life("compute", self.solo.state, happened)
        what = self.solo.handle(self.compute.epoch, happened, self.now)
        if what is not None:
            self.tally.succession(what)
        if isinstance(what, lifecycle.Again):
            self.demanded.clear()
            self.asked = 0
            self.tell(pipeload.ComputeGone())
            self.start_compute()
        elif happened is Happened.EXITED:
            self.compute_is_there = False
            self.finished = True

    def compute_starts(self, compute: Compute) -> None:
        chance = self.random()
        if chance < self.chaos.start_dies:
            self.compute_ends(compute)
        elif chance - self.chaos.start_dies < self.chaos.start_fails:
            self.compute_fails(compute)
        elif compute.alive:
            self.compute_says(compute, ComputeStarted(1))
            self.compute_goes_on(compute)

    def compute_says(self, compute: Compute, message: Any) -> None:
        what = [(self.from_compute, (compute, message))]
        if self.chaos.nonsense and self.random() < self.chaos.nonsense:
            no_such_unit = self.from_compute, (compute, AskUnit(UnitNo(self.units), True))
            nonsense = no_such_unit if self.random() < 0.5 else (self.distrust_compute, compute)
            what.insert(self.rng.randint(0, 1), nonsense)
        self.deliver(("from compute", compute), what)

    def compute_fails(self, compute: Compute) -> None:
        if not compute.alive:
            return
        self.compute_says(compute, ComputeFailed(InvariantBroken.exit_code, "a bug", ""))
        self.post(("from compute", compute), self.compute_ends, compute)

    def compute_ends(self, compute: Compute) -> None:
        """The process leaves or dies; the kernel says so later."""
        if compute.alive:
            compute.alive = False
            self.later(self.now + int(self.random() * 40 * MS), self.compute_is_gone, compute)

    def compute_is_gone(self, compute: Compute) -> None:
        assert compute is self.compute
        self.solo_says(Happened.EXITED)

    def distrust_compute(self, compute: Compute) -> None:
        if compute is self.compute:
            self.kill_compute()

    def kill_compute(self) -> None:
        if self.compute_is_there:
            self.solo_says(Happened.KILL_SENT)
            self.compute_ends(self.compute)

    def compute_hangs(self, compute: Compute) -> None:
        """It was looked at for long enough: a successor would hang as well."""
        if compute is self.compute and self.compute_is_there:
            self.solo_says(Happened.SAID_FAILED)
            self.compute_ends(compute)
            self.finished = True

    def suffers(self, compute: Compute) -> bool:
        """Whether a misfortune ends this incarnation at its next step."""
        chaos, chance = self.chaos, self.random()
        if chance < chaos.compute_dies:
            self.compute_ends(compute)
        elif (chance := chance - chaos.compute_dies) < chaos.compute_fails:
            compute.hung = True
            self.compute_fails(compute)
        elif chance - chaos.compute_fails < chaos.compute_hangs:
            compute.hung = True
            self.later(self.now + 300 * MS, self.compute_hangs, compute)
        else:
            return False
        return True

    # --- compute's shell

    def to_compute(self, message: UnitReady | RecallUnit | UnitFailed) -> None:
        argument = self.compute, message
        self.post(("to compute", self.compute), self.compute_gets, argument)
        if not isinstance(message, UnitFailed):
            self.perhaps_again(self.compute_gets, argument)

    def compute_gets(self, argument: tuple[Compute, UnitReady | RecallUnit | UnitFailed]) -> None:
        compute, message = argument
        compute.inbox.append(message)
        if compute.waits is not None:
            self.compute_goes_on(compute)

    def compute_does(self, compute: Compute, actions: list[leasing.Action]) -> bool:
        """Whether compute must give up what it waits for."""
        gave_up = False
        for action in actions:
            if isinstance(action, leasing.Send):
                self.compute_says(compute, action.message)
            else:
                gave_up = True
                self.check_refusal(compute, action)
        return gave_up

    def check_refusal(self, compute: Compute, action: leasing.GiveUp) -> None:
        if action.exit_code == BudgetTooSmall.exit_code:
            assert len(compute.bound) >= len(self.daemon.slots.all), f"refused while a slot was free: {action.text}"
        elif action.exit_code == ReadFailed.exit_code:
            assert action.unit in self.bad_units or self.stuck, "refused without an error"
        else:
            assert action.exit_code == LoadersLost.exit_code
            assert self.lost

    def remind(self, argument: tuple[Compute, int]) -> None:
        compute, wait_no = argument
        if compute.waits is not None and wait_no == compute.wait_no and compute.alive and not compute.hung:
            self.compute_does(compute, compute.mind.remind())

    def impatient(self, argument: tuple[Compute, int]) -> None:
        compute, wait_no = argument
        if compute.waits is not None and wait_no == compute.wait_no and compute.alive and not compute.hung:
            compute.waits = None
            compute.mind.abandon()
            self.unwind(compute)
            self.compute_goes_on(compute)

    def unwind(self, compute: Compute) -> None:
        """An exception runs up to the end of the pass: hooks on the way return what is bound."""
        while compute.uses:
            self.finish_use(compute, computed=False)
        while self.script.steps[compute.at][0] != "end":
            compute.at += 1

    def check_content(self, ready: UnitReady, seen: list[Any] | None = None) -> list[Any]:
        memory = self.memory[ready.base // PIECES]
        assert memory is not None, "bound to a slot that was given back"
        for piece in range(self.sizes[ready.unit]):
            assert memory[piece] is not None, "bound before it was loaded"
            assert memory[piece][0] == ready.unit * PIECES + piece, f"wrong weights in unit {ready.unit}"
        assert seen is None or memory == seen, "written to while bound"
        return list(memory)

    def compute_goes_on(self, compute: Compute) -> None:
        if not compute.alive or compute.hung or self.suffers(compute):
            return
        while compute.inbox:
            if self.compute_does(compute, self.tally.to_compute(compute.mind, compute.inbox.popleft(), self.now)):
                compute.waits = None
                self.unwind(compute)
        while self.compute_steps(compute):
            if compute.at > self.steps_done:
                self.steps_done = compute.at
                self.solo.came_further()

    def compute_steps(self, compute: Compute) -> bool:
        """Do the next step of the script; False where compute waits, works, or is finished."""
        mind, now = compute.mind, self.now
        if compute.waits is not None:
            if mind.held(UnitNo(compute.waits)) is None:
                return False
            compute.waits = None
            compute.at += 1
        if compute.at == len(self.script.steps):
            self.finished = True
            return False
        name, value, number = self.script.steps[compute.at]
        unit = UnitNo(value)
        if name == "want" and not mind.keeps(unit):  # else it is compute's without a word
            actions = mind.want(unit, now)
            if unit in compute.bound:  # nested use of the same unit: `want` must know
                assert not self.compute_does(compute, actions)
                assert mind.held(unit) is not None
            else:
                compute.waits = unit
                compute.wait_no += 1
                self.compute_does(compute, actions)
                self.later(now + 10 * MS, self.remind, (compute, compute.wait_no))
                if number:
                    self.later(now + number, self.impatient, (compute, compute.wait_no))
                return True
        elif name == "work":
            self.later(now + value, self.worked, compute)
            return False
        elif name == "begin":
            ready = mind.held(unit)
            assert ready is not None
            compute.uses.append(unit)
            if unit not in compute.bound:
                compute.bound[unit] = ready, self.check_content(ready)
            self.compute_does(compute, mind.begin(unit, now))
        elif name == "done":
            self.finish_use(compute, computed=True)
        elif name == "raise":
            self.unwind(compute)
            return True
        elif name == "start":
            self.compute_says(compute, PassStarted(now, 1, 1))
        elif name == "forecast":
            self.compute_does(compute, mind.forecast(bool(value), number))
        compute.at += 1
        return True

    def finish_use(self, compute: Compute, computed: bool) -> None:
        unit = compute.uses.pop()
        ready, seen = compute.bound[unit]
        self.check_content(ready, seen)
        if computed:
            self.computed.append(unit)
        self.compute_does(compute, compute.mind.done(UnitNo(unit), self.now, computed))
        if unit not in compute.uses:
            del compute.bound[unit]

    def worked(self, compute: Compute) -> None:
        if not compute.alive or compute.hung:
            return
        if self.chaos.resize and self.random() < self.chaos.resize:
            self.resize()
        compute.at += 1
        self.compute_goes_on(compute)

    # --- memory and loaders come and go

    def resize(self) -> None:
        wanted = self.rng.randint(1, self.max_slots)
        loaders = self.rng.randint(1, 6) if self.rng.random() < 0.2 and not self.stopping else 0
        if loaders:
            self.resize_crew(loaders)
        self.tell(pipeload.SlotsWanted(wanted, 0, loaders))
        for slot in range(self.max_slots):
            if len(self.daemon.slots.all) < wanted and self.memory[slot] is None:
                self.memory[slot] = [None] * PIECES
                added = pipeload.SlotAdded(SlotNo(slot))
                self.tell(added)
        if self.daemon.slots.all and self.random() < self.chaos.repeat:
            self.tell(pipeload.SlotAdded(next(iter(self.daemon.slots.all))))

    def resize_crew(self, count: int) -> None:
        actions, retired = self.crew.resize(count)
        for action in actions:
            self.crew_does(action)
        for key in retired:
            loader = self.loaders[key]
            if loader.started:
                self.post(loader, self.loader_hears, (loader, StopLoader()))
            else:
                self.kill(loader)


def run_seed(seed: int) -> Simulation:
    """Run one seed; a failure names it."""
    simulation = None
    try:
        simulation = Simulation(seed)
        simulation.run()
    except Exception as error:
        at = f"step {simulation.steps}, {simulation.now} ns" if simulation else "the start"
        raise AssertionError(f"seed {seed} at {at}: {type(error).__name__}: {error}") from error
    return simulation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    arguments = parser.parse_args()
    began, steps, taken = time.perf_counter(), 0, Tally()
    for seed in range(arguments.start, arguments.start + arguments.seeds):
        simulation = run_seed(seed)
        steps += simulation.steps
        taken.counts.update(simulation.tally.counts)
    took = time.perf_counter() - began
    print(taken.table())
    never = taken.never_taken()
    print(f"{arguments.seeds} seeds, {steps} steps, {took:.1f} s")
    print(f"{len(TRANSITIONS) - len(never)} of {len(TRANSITIONS)} transitions taken")
    for transition in [*never, *taken.unlisted()]:
        print("never taken, or in no table:", ": ".join(transition))
    return 1 if never or taken.unlisted() else 0


if __name__ == "__main__":
    sys.exit(main())
