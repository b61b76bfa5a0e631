"""Joins the real states of daemon, loaders and compute by queues under a virtual clock, and makes them suffer.

A seed decides everything: sizes, delays (messages of one link keep their order), crashes in the middle of a read,
hangs, read errors, slots that come and go, repeated and old news, and what compute does. The slots' memory is modelled
byte by byte: a dead loader's read keeps landing until the kernel says it is gone. `python -m tests.core.simulator`.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, deque
from dataclasses import replace
from heapq import heappop, heappush
from random import Random
from typing import Any

from hermes_mp.core import leasing, lifecycle, loading, pipeload
from hermes_mp.core.lifecycle import Crew, Happened
from hermes_mp.errors import BudgetTooSmall, LoadersLost, ReadFailed
from hermes_mp.messages import (
    AskUnit,
    Epoch,
    LoaderNo,
    LoaderStarted,
    LoadUnit,
    OpenFile,
    PassForecast,
    Range,
    RecallUnit,
    SlotNo,
    UnitDone,
    UnitFailed,
    UnitNo,
    UnitReady,
)

MS = 1_000_000
PIECES = 3  # ranges per unit, one byte each, so the memory of a slot is a list of this length
LIMITS = pipeload.Limits(soft_ns=60 * MS, hard_ns=200 * MS, doubt_ns=20 * MS, patience_ns=100 * MS)
MAX_STEPS = 20_000
Step = tuple[str, int, int]


class Loader:
    """One incarnation: its mind, and what its process does to memory."""

    __slots__ = ("alive", "counter", "epoch", "gone", "hung", "mind", "number", "queue")

    def __init__(self, number: LoaderNo, epoch: Epoch, arena_nbytes: int) -> None:
        self.number = number
        self.epoch = epoch
        self.mind = loading.Loading(number, epoch, arena_nbytes)
        self.alive = True  # runs; a dead one's read still lands until it is `gone`
        self.gone = False
        self.hung = False
        self.counter = 0
        self.queue: deque[Any] = deque()


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
        self.daemon = pipeload.Pipeload(sizes, PIECES, loaders, window, limits=limits)
        self.sizes = sizes
        self.max_slots = 8
        self.memory: list[list[Any] | None] = [None] * self.max_slots
        self.crew = Crew(loaders)
        self.loaders: dict[LoaderNo, Loader] = {}
        self.lost = False
        self.bad_units: set[int] = set()
        self.asked = 0  # what compute asked for last, as the daemon knows it
        self.demanded: set[int] = set()
        self.tick_at: int | None = None
        self.computed: list[int] = []  # by compute
        self.returned = 0  # as computed, to the daemon
        self.tickets: dict[int, int] = {}
        self.met: Counter[str] = Counter()
        # compute
        self.leasing = leasing.Leasing(self.units)
        self.script = self.write_script(rng)
        self.at = 0
        self.inbox: deque[UnitReady | RecallUnit | UnitFailed] = deque()
        self.waits: int | None = None
        self.wait_no = 0
        self.bound: dict[int, tuple[UnitReady, list[Any]]] = {}
        self.uses: list[int] = []  # the units in use, the innermost last
        self.finished = False
        for slot in range(slots):
            self.memory[slot] = [None] * PIECES
            self.tell(pipeload.SlotAdded(SlotNo(slot)))
        for action in self.crew.start():
            self.crew_does(action)

    # --- what compute will do

    def write_script(self, rng: Random) -> list[Step]:
        script: list[Step] = []
        passes = rng.randint(1, 4)
        always_off = rng.random() < 0.3
        self.full_passes = 0
        self.ever_more = False
        for number in range(passes):
            more = not always_off and rng.random() < (0.9 if number + 1 < passes else 0.2)
            self.ever_more = self.ever_more or more
            script.append(("forecast", more, 0))
            if self.calm or rng.random() < 0.4:
                self.full_passes += 1
                if not self.calm and rng.random() < 0.2:  # a wrong guess of how far the pass will go
                    script[-1] = ("forecast", more, rng.randint(0, self.units))
                for unit in range(self.units):
                    self.use(script, rng, unit)
            else:
                if rng.random() < 0.3:
                    script[-1] = ("forecast", more, rng.randint(0, self.units))
                self.odd_pass(script, rng)
            script.append(("end", 0, 0))
            if rng.random() < 0.3:
                script.append(("work", rng.randint(1, 30) * MS, 0))
        return script

    def odd_pass(self, script: list[Step], rng: Random) -> None:
        first = 0 if rng.random() < 0.6 else rng.randrange(self.units)
        last = self.units if rng.random() < 0.5 else rng.randint(first, self.units)
        for unit in range(first, last):
            chance = rng.random()
            if chance < 0.08:  # skip
                continue
            if chance < 0.16:  # repeat
                self.use(script, rng, unit)
            elif chance < 0.24:  # nested
                self.use(script, rng, unit, depth=rng.randint(1, 3))
                continue
            elif chance < 0.30:  # an exception while bound
                script += [("want", unit, 0), ("begin", unit, 0), ("work", MS, 0), ("raise", 0, 0)]
                return
            elif chance < 0.36:  # an interrupt while waiting
                script.append(("want", unit, rng.randint(1, 5) * MS))
                return
            elif chance < 0.40:  # the exception comes before the unit is used
                script.append(("want", unit, 0))
                return
            self.use(script, rng, unit)

    def use(self, script: list[Step], rng: Random, unit: int, depth: int = 0) -> None:
        script += [("want", unit, 0), ("begin", unit, 0), ("work", int(rng.random() * 3 * self.read_ns), 0)]
        if depth:
            self.use(script, rng, rng.randrange(self.units), depth - 1)
        script.append(("done", unit, 0))

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
        self.later(0, self.compute_goes_on, None)
        events = self.events
        while not self.finished:
            assert events, "nothing will ever happen again, and compute is not finished"
            self.steps += 1
            assert self.steps < MAX_STEPS, "it does not finish"
            self.now, _, what, argument = heappop(events)
            what(argument)
        # What is still under way comes to rest: nothing is asked for any more.
        while events and self.steps < MAX_STEPS:
            self.steps += 1
            self.now, _, what, argument = heappop(events)
            what(argument)
        assert not events, "it does not come to rest"
        self.check_end()

    def check_end(self) -> None:
        daemon = self.daemon
        assert not daemon.slots.lent or self.lost, "a slot stays lent"
        assert sum(daemon.computes_by_unit) == self.returned <= len(self.computed)
        if self.calm:
            assert self.computed == list(range(self.units)) * self.full_passes, "every unit once, in order"
            loads = daemon.loads_by_unit
            assert daemon.bytes_read == sum(count * size for count, size in zip(loads, self.sizes, strict=True))
            most = self.full_passes + self.ever_more
            assert all(1 <= count <= most for count in loads), f"a pass read a unit twice: {loads}"
            assert all(loads[unit] == 1 for unit in daemon.residents), f"a resident was read again: {loads}"
            if not self.ever_more:
                assert daemon.bytes_unused == 0, "something was read for nothing"

    # --- the daemon's shell

    def tell(self, event: Any) -> None:
        now = self.now
        daemon = self.daemon
        actions = daemon.handle(event, now)
        daemon.check()
        for action in actions:
            if isinstance(action, pipeload.Load):
                self.order_load(action)
            elif isinstance(action, pipeload.Announce):
                self.demanded.discard(action.unit)
                self.tickets[action.ticket] = action.unit
                self.met["keep"] += action.keep
                self.to_compute(UnitReady(action.ticket, action.unit, action.slot * PIECES, action.keep))
            elif isinstance(action, pipeload.Recall):
                self.met["Recall"] += 1
                self.to_compute(RecallUnit(action.ticket, action.unit))
            elif isinstance(action, pipeload.Refuse):
                self.demanded.discard(action.unit)
                self.met["Refuse"] += 1
                self.to_compute(UnitFailed(action.unit, action.exit_code, action.text))
            elif isinstance(action, pipeload.Kill):
                loader = self.loaders[action.loader]
                assert loader.epoch == action.epoch
                self.crew_hears(loader, Happened.KILL_SENT)
                if self.random() < self.chaos.stuck:
                    self.get_stuck(loader)
                else:
                    self.die(loader)
            else:
                assert isinstance(action, pipeload.RemoveSlot)
                self.met["RemoveSlot"] += 1
                self.memory[action.slot] = None
        wake = daemon.wake_ns()
        if wake is not None and (self.tick_at is None or wake < self.tick_at):
            self.tick_at = max(wake, now)
            self.later(self.tick_at, self.tick, self.tick_at)

    def tick(self, at_ns: int) -> None:
        if self.tick_at != at_ns:
            return
        self.tick_at = None
        for loader in list(self.loaders.values()):
            self.tell(pipeload.ProgressSeen(loader.number, loader.epoch, loader.counter))
        self.tell(pipeload.Tick())

    def order_load(self, action: pipeload.Load) -> None:
        unit = action.unit
        if not self.daemon._more:
            assert unit >= self.asked or unit in self.demanded, f"unit {unit} was read beyond the last"
        self.met["second load"] += len(self.daemon.slots.loading[unit]) > 1
        loader = self.loaders[action.loader]
        assert loader.epoch == action.epoch, "work for an old epoch"
        ranges = tuple(Range(0, unit * PIECES + piece, 1, piece) for piece in range(self.sizes[unit]))
        order = LoadUnit(action.epoch, action.ticket, unit, action.slot * PIECES, PIECES, ranges)
        self.post(loader, self.loader_hears, (loader, order))
        self.perhaps_again(self.loader_hears, (loader, order))

    def from_loader(self, message: Any) -> None:
        if isinstance(message, LoaderStarted):
            member = self.crew.members.get(message.loader)
            if member is not None and member[0] == message.epoch:
                self.crew_says(message.loader, message.epoch, Happened.STARTED)
        self.tell(message)

    def from_compute(self, message: Any) -> None:
        if isinstance(message, AskUnit):
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

    def crew_hears(self, loader: Loader, happened: Happened) -> None:
        self.crew_says(loader.number, loader.epoch, happened)

    def crew_says(self, number: LoaderNo, epoch: Epoch, happened: Happened) -> None:
        for action in self.crew.handle(number, epoch, happened, self.now):
            self.crew_does(action)

    def crew_does(self, action: lifecycle.Action) -> None:
        if isinstance(action, lifecycle.Spawn):
            loader = Loader(action.loader, action.epoch, self.max_slots * PIECES)
            self.loaders[action.loader] = loader
            loader.mind.handle(OpenFile(0, "model", self.units * PIECES), self.now)
            self.later(self.now + int(self.random() * 10 * MS), self.loader_starts, loader)
        elif isinstance(action, lifecycle.AllLost):
            self.lost = True
            self.tell(pipeload.NoLoadersLeft())

    def loader_starts(self, loader: Loader) -> None:
        if self.random() < self.chaos.start_fails:
            self.crew_hears(loader, Happened.SAID_FAILED)
            self.die(loader)
            return
        self.loader_says(loader, LoaderStarted(loader.number, loader.epoch, 1))

    def loader_says(self, loader: Loader, message: Any) -> None:
        self.post((loader, 0), self.from_loader, message)
        self.perhaps_again(self.from_loader, message)

    def loader_hears(self, argument: tuple[Loader, Any]) -> None:
        loader, message = argument
        if not loader.alive or loader.hung:
            return
        for action in loader.mind.handle(message, self.now):
            if isinstance(action, loading.Read):
                self.range_is_read(loader, action.load, 0)
            elif isinstance(action, loading.Send):
                self.loader_says(loader, action.message)

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
            self.later(self.now + int(self.random() * 20 * MS), self.kernel_says_gone, loader)

    def get_stuck(self, loader: Loader) -> None:
        """It was killed and stays for a while, or for longer than the run; its read in flight may land all the time."""
        loader.alive = False
        self.later(self.now + lifecycle.KILL_NS, self.has_outlived, loader)
        self.later(self.now + lifecycle.KILL_NS + int(self.random() * 1000 * MS), self.kernel_says_gone, loader)

    def has_outlived(self, loader: Loader) -> None:
        assert (loader.number, loader.epoch) in self.crew.outlived(self.now)
        self.met["LoaderStuck"] += 1
        self.crew_hears(loader, Happened.OUTLIVED)
        self.tell(pipeload.LoaderStuck(loader.number, loader.epoch, "a loader that cannot be killed"))

    def kernel_says_gone(self, loader: Loader) -> None:
        loader.gone = True
        self.met["LoaderGone"] += 1
        gone = pipeload.LoaderGone(loader.number, loader.epoch)
        self.tell(gone)
        self.perhaps_again(self.tell, gone)
        self.crew_hears(loader, Happened.EXITED)

    # --- compute's shell

    def to_compute(self, message: UnitReady | RecallUnit | UnitFailed) -> None:
        self.post("to compute", self.compute_gets, message)
        if not isinstance(message, UnitFailed):
            self.perhaps_again(self.compute_gets, message)

    def compute_gets(self, message: UnitReady | RecallUnit | UnitFailed) -> None:
        self.inbox.append(message)
        if self.waits is not None:
            self.compute_goes_on(None)

    def compute_does(self, actions: list[leasing.Action]) -> bool:
        """Whether compute must give up what it waits for."""
        gave_up = False
        for action in actions:
            if isinstance(action, leasing.Send):
                self.post("from compute", self.from_compute, action.message)
                if not isinstance(action.message, PassForecast):
                    self.perhaps_again(self.from_compute, action.message)
            else:
                gave_up = True
                self.check_refusal(action)
        return gave_up

    def check_refusal(self, action: leasing.GiveUp) -> None:
        if action.exit_code == BudgetTooSmall.exit_code:
            assert len(self.bound) >= len(self.daemon.slots.all), f"refused while a slot was free: {action.text}"
        elif action.exit_code == ReadFailed.exit_code:
            assert action.unit in self.bad_units or self.met["LoaderStuck"], "refused without an error"
        else:
            assert action.exit_code == LoadersLost.exit_code
            assert self.lost

    def remind(self, wait_no: int) -> None:
        if self.waits is not None and wait_no == self.wait_no:
            self.compute_does(self.leasing.remind())

    def impatient(self, wait_no: int) -> None:
        if self.waits is not None and self.wait_no == wait_no:
            self.waits = None
            self.leasing.abandon()
            self.unwind()
            self.compute_goes_on(None)

    def unwind(self) -> None:
        """An exception runs up to the end of the pass: hooks on the way return what is bound."""
        while self.uses:
            self.finish_use(computed=False)
        while self.script[self.at][0] != "end":
            self.at += 1

    def check_content(self, ready: UnitReady, seen: list[Any] | None = None) -> list[Any]:
        memory = self.memory[ready.base // PIECES]
        assert memory is not None, "bound to a slot that was given back"
        for piece in range(self.sizes[ready.unit]):
            assert memory[piece] is not None, "bound before it was loaded"
            assert memory[piece][0] == ready.unit * PIECES + piece, f"wrong weights in unit {ready.unit}"
        assert seen is None or memory == seen, "written to while bound"
        return list(memory)

    def compute_goes_on(self, _: Any) -> None:
        while self.inbox:
            if self.compute_does(self.leasing.handle(self.inbox.popleft(), self.now)):
                self.waits = None
                self.unwind()
        while True:
            if self.waits is not None:
                if self.leasing.held(UnitNo(self.waits)) is None:
                    return
                self.waits = None
                self.at += 1
            if self.at == len(self.script):
                self.finished = True
                return
            name, value, patience_ns = self.script[self.at]
            if name == "want":
                if self.leasing.keeps(UnitNo(value)):  # compute's without a word
                    self.met["kept use"] += 1
                    self.at += 1
                    continue
                if value in self.bound:  # nested use of the same unit: `want` must know
                    assert not self.compute_does(self.leasing.want(UnitNo(value), self.now))
                    assert self.leasing.held(UnitNo(value)) is not None
                    self.at += 1
                    continue
                self.waits = value
                self.wait_no += 1
                self.compute_does(self.leasing.want(UnitNo(value), self.now))
                self.later(self.now + 10 * MS, self.remind, self.wait_no)
                if patience_ns:
                    self.later(self.now + patience_ns, self.impatient, self.wait_no)
                continue
            if name == "work":
                self.later(self.now + value, self.worked, None)
                return
            if name == "begin":
                ready = self.leasing.held(UnitNo(value))
                assert ready is not None
                self.uses.append(value)
                if value not in self.bound:
                    self.bound[value] = ready, self.check_content(ready)
                self.compute_does(self.leasing.begin(UnitNo(value), self.now))
            elif name == "done":
                self.finish_use(computed=True)
            elif name == "raise":
                self.unwind()
                continue
            elif name == "forecast":
                self.compute_does(self.leasing.forecast(bool(value), patience_ns))
            self.at += 1

    def finish_use(self, computed: bool) -> None:
        unit = self.uses.pop()
        ready, seen = self.bound[unit]
        self.check_content(ready, seen)
        if computed:
            self.computed.append(unit)
        self.compute_does(self.leasing.done(UnitNo(unit), self.now, computed))
        if unit not in self.uses:
            del self.bound[unit]

    def worked(self, _: Any) -> None:
        if self.chaos.resize and self.random() < self.chaos.resize:
            self.resize()
        self.at += 1
        self.compute_goes_on(None)

    def resize(self) -> None:
        wanted = self.rng.randint(1, self.max_slots)
        self.tell(pipeload.SlotsWanted(wanted))
        for slot in range(self.max_slots):
            if len(self.daemon.slots.all) < wanted and self.memory[slot] is None:
                self.memory[slot] = [None] * PIECES
                self.tell(pipeload.SlotAdded(SlotNo(slot)))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    arguments = parser.parse_args()
    began, steps = time.perf_counter(), 0
    for seed in range(arguments.start, arguments.start + arguments.seeds):
        steps += run_seed(seed).steps
    took = time.perf_counter() - began
    print(f"{arguments.seeds} seeds, {steps} steps, {took:.1f} s")


if __name__ == "__main__":
    main()
