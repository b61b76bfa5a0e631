"""The daemon: one loop that joins `core.pipeload` to sockets, processes, the arena and the clock. Never imports torch.

It is the parent of the loaders and, in a launch, of compute; behind `hermes_mp.load` it is the caller's child and
compute is the caller. Everything it decides is decided in `core`; what is shown to people is its front's.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import replace
from typing import Any

from hermes_mp.agents import status
from hermes_mp.agents.accounting import Accounting
from hermes_mp.agents.adapting import Adapting
from hermes_mp.agents.allotment import Allotment
from hermes_mp.agents.borrowed import Borrowed
from hermes_mp.agents.computing import Computing
from hermes_mp.agents.front import Front
from hermes_mp.agents.guard import Guard
from hermes_mp.agents.quarters import FILES, FILES_PER_LOADER, LEAVE_S, Quarters, allow_files
from hermes_mp.agents.remembering import Remembering
from hermes_mp.agents.settings import DaemonSettings
from hermes_mp.config import FAST
from hermes_mp.core import pipeload
from hermes_mp.core.budget import MIN_SLOTS, WINDOW_NBYTES, Needs, Spare
from hermes_mp.core.lifecycle import Happened
from hermes_mp.core.pipeload import (
    Announce,
    ComputeGone,
    Kill,
    Limits,
    Load,
    LoaderGone,
    LoadersLeft,
    LoaderStuck,
    NoLoadersLeft,
    Pipeload,
    ProgressSeen,
    Recall,
    Refuse,
    SlotAdded,
    SlotsWanted,
    Tick,
)
from hermes_mp.core.report import counted
from hermes_mp.core.shortage import Shortage
from hermes_mp.core.stillness import Stillness
from hermes_mp.core.unitlist import UnitFile, UnitList, UnitSpec
from hermes_mp.errors import (
    BadMessage,
    BoardLost,
    BudgetTooSmall,
    ComputeLost,
    HermesError,
    LoadersLost,
    OutOfMemory,
    ReadFailed,
    SystemCallFailed,
    line_of,
    revived,
)
from hermes_mp.host import unitcache
from hermes_mp.host.mounts import device_of
from hermes_mp.host.scheduling import take_short_turns
from hermes_mp.host.wire import Hub, Key, Peer, Poller
from hermes_mp.messages import (
    MAX_TEXT_CHARS,
    AskUnit,
    BoardGone,
    ComputeFailed,
    ComputeStarted,
    Epoch,
    FileNamed,
    FromCompute,
    FromLoader,
    LoaderFailed,
    LoaderNo,
    LoaderStarted,
    LoadFailed,
    LoadUnit,
    OpenFile,
    PassForecast,
    PassStarted,
    RecallUnit,
    RunEnded,
    RunPlan,
    RunRequest,
    SlotsDivided,
    StopLoader,
    Ticket,
    UnitDescribed,
    UnitDone,
    UnitFailed,
    UnitLoaded,
    UnitNo,
    UnitReady,
    UnitsDescribed,
    clip,
)

COMPUTE_LOST = "see above; with too little memory lower --context"
WAITS = ("asleep", "waiting for a disk")  # perhaps for the model's files
TURN_S = 0.1  # the longest sleep of the loop: memory is sampled and the person kept informed this often


class Daemon:
    """Use as a context: whatever happens inside, no process, socket file or memory is left."""

    def __init__(self, settings: DaemonSettings, quarters: Quarters, front: Front) -> None:
        self.settings, self.front = settings, front
        self.arena, self.crew = quarters.arena, quarters.crew
        self.started_ns = time.monotonic_ns()
        self.over: HermesError | bool | None = False  # True or an error once the run is to end
        self._borrowed: Borrowed | None = None  # once a run borrows
        loaders = quarters.loaders + settings.remote_loaders
        self.slots = Allotment(quarters.arena, settings.memory, loaders, settings.slots)
        self.adapting = Adapting(self.slots.budget_nbytes, front)
        self.accounting = Accounting(
            quarters.crew, "caller" if settings.has_caller else "compute", settings.sample_exactly
        )
        self.guard = Guard(settings.checkpoint, settings.verify)
        self.mind: Pipeload | None = None
        self.units = UnitList((), ())
        self._remembering = Remembering(settings, front.say)
        self.plan = RunPlan(quarters.loaders)  # until compute says more
        self._described: tuple[list[UnitFile], list[UnitSpec]] = ([], [])
        self._loading: dict[Ticket, tuple[UnitNo, Peer]] = {}
        self._leased: dict[Ticket, tuple[UnitNo, Ticket]] = {}
        self._started: dict[Peer, LoaderStarted] = {}
        self.divided = False
        self._gone: dict[str, str] = {}  # boards that layers were shared with, and why they no longer are
        self._no_loaders: HermesError | None = None  # once the last one was not replaced
        self._stillness = Stillness(None if settings.timeout_s is None else round(settings.timeout_s * 1e9))
        self._start: tuple[int, int] | None = None  # what the present units leave compute to start with, and reserve

        self._quarters = quarters
        self.hub = Hub(quarters.run_dir.path)
        self._poller = Poller()
        self._poller.watch(self.hub)
        self.compute = Computing(self.hub, self._poller, front.heard)
        for fd in front.fds:
            self._poller.watch(fd)
        if settings.has_caller:
            self._poller.watch(settings.caller_death_fd)
        take_short_turns()
        self.crew.attach(
            self._poller, self._loader_gone, self._loader_stuck, self._fewer_loaders, self._loaders_lost, front.say,
            front.heard, front.restarted,
        )  # fmt: skip

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the life of a run

    def start(self) -> None:
        """Where the units are known from an earlier run, let the loaders read at once; then spawn compute."""
        if self.settings.borrowed is not None:
            self._borrow(self.settings.borrowed)
        known = self._remembering.recall()
        if known is not None:
            try:
                self._follow(known.plan)
                # While compute starts the slots fill, so what it takes then must have room beside them.
                base = max(known.base_nbytes, known.start_nbytes - known.reserve_nbytes)
                self._adopt(known.units, self._needs(base, known.reserve_nbytes), remembered=True)
            except HermesError:
                self.mind = None  # compute's own figures will tell; a guess refuses nobody
        if not self.settings.has_caller:
            fds = {"death_fd": self._quarters.death.read_fd, "arena_fd": self.arena.fd}
            if self.settings.exchange_fd >= 0:
                fds["exchange_fd"] = self.settings.exchange_fd
            ours = {"endpoint": self.hub.endpoint, "parent_pid": os.getpid(), "granule": self.arena.granule}
            ours["crew"] = self.plan.loaders
            self.compute.start(self.settings.for_compute() | ours | fds, tuple(fds.values()))
            self.accounting.compute_began(self.compute.pid)

    def run(self) -> None:
        """Work until the front or compute ends the run; raises the error that ended it."""
        while self.over is False:
            for key in self._poller.wait(self._timeout_s()):
                if isinstance(key, int):
                    self._readable(key)
                elif key is self.hub:
                    self._drain()
                else:
                    self.front.readable(key)
            self._turn()
        if isinstance(self.over, HermesError):
            raise self.over

    def request(self, number: int, request: dict[str, Any], final: bool) -> None:
        """Hand a request to our compute process; `final`: nothing follows it."""
        text = json.dumps(request)
        parts = [text[at : at + MAX_TEXT_CHARS] for at in range(0, len(text), MAX_TEXT_CHARS)]
        for index, part in enumerate(parts):
            self.compute.send(RunRequest(number, index, index == len(parts) - 1, final, part))

    def watch(self, key: Key) -> None:
        """The front wants to know when this descriptor, or end of a connection, is readable."""
        self._poller.watch(key)

    def forget(self, key: Key) -> None:
        """The front has no use for it, for now or for good."""
        self._poller.forget(key)

    def end(self, error: HermesError | None = None) -> None:
        """The run is over; the first reason counts."""
        if self.over is False:
            if isinstance(error, BudgetTooSmall) and self._gone:
                error = BoardLost(f"{'; '.join(self._gone.values())}; without it {error}")
            self.over = True if error is None else error
            if error is not None and self.settings.has_caller:
                self.compute.send(RunEnded(error.exit_code, clip(error.line())))

    def close(self) -> None:
        """End all children, remove the run directory, free the arena."""
        with contextlib.ExitStack() as after:  # whatever fails of it, the rest is done
            after.callback(self._quarters.close)
            after.callback(self._close_guard)
            after.callback(self.adapting.close)
            after.callback(self.hub.close, last_words=self.settings.has_caller)
            after.callback(self._close_compute)
            after.callback(self.crew.stop, LEAVE_S)
            with contextlib.suppress(SystemCallFailed):  # who cannot be told is killed
                self.compute.ask_to_stop()
                for number, epoch in self.crew.members():
                    self.hub.send(Peer("loader", number, epoch), StopLoader())

    def _close_compute(self) -> None:
        epoch = self.compute.peer.epoch
        left = self.compute.close(LEAVE_S if self.over is True else 0.0)
        if left is not None:
            self.front.say(f"compute (epoch {epoch}) cannot be killed and is left behind: it is {left}")

    def _close_guard(self) -> None:
        self.guard.close()
        self._remembering.failed(self.guard.failure)

    # --- the loop

    def _timeout_s(self) -> float:
        if self.slots.missing:
            return 0.0
        wake = None if self.mind is None else self.mind.wake_ns()
        turn_s = TURN_S if self.front.hurry_s is None else self.front.hurry_s
        return turn_s if wake is None else min(turn_s, max(0.0, (wake - time.monotonic_ns()) / 1e9))

    def _turn(self) -> None:
        self.compute.flush()
        self.crew.turn()
        why_over = self.compute.turn()
        if why_over is not None:
            self.end(ComputeLost(f"compute (epoch {self.compute.peer.epoch}): {why_over}", COMPUTE_LOST))
        self._adapt()
        self._add_slot()
        if self.mind is not None:
            wake = self.mind.wake_ns()
            if wake is not None and wake <= time.monotonic_ns():
                for number, epoch in self.crew.members():
                    self._feed(ProgressSeen(number, epoch, self.crew.progress.read(number)))
                self._feed(Tick())
        if self.accounting.due():
            self.sample()
            self._judge_compute()
        self.front.tick()

    def _readable(self, fd: int) -> None:
        self._drain()  # last words come before the kernel's notice
        if fd == self.settings.caller_death_fd:
            self.end()
        elif self.compute.owns(fd):
            if self.over is False:
                self._compute_ended()
        elif self.compute.speaks(fd):
            pass
        elif not self.crew.readable(fd):
            self.front.readable(fd)

    def _drain(self) -> None:
        while self.over is False:
            try:
                received = self.hub.receive()
            except BadMessage as error:
                self._distrust(error)
                continue
            if received is None:
                return
            peer, message = received
            if peer.kind == "loader":
                self._from_loader(peer, message)  # type: ignore[arg-type]  # the hub decodes by kind
            elif peer.kind == "viewer":
                for told in status.parts(status.of(self)):
                    self.hub.send(peer, told)  # one that is gone needs no answer
            elif peer == self.compute.peer or (
                isinstance(message, ComputeFailed) and peer.epoch < self.compute.peer.epoch  # its last words
            ):
                self.compute.words += 1
                self._from_compute(message)  # type: ignore[arg-type]

    def _distrust(self, error: BadMessage) -> None:
        """Nonsense came: a child is replaced, without the caller there is no run, a stranger is not listened to."""
        peer = error.peer
        if isinstance(peer, Peer) and peer.kind == "compute" and self.settings.has_caller:
            self.end(error)
            return
        self.front.say(str(error))
        if not isinstance(peer, Peer):
            return
        if peer == self.compute.peer:
            self.compute.kill()
        elif peer.kind == "loader":
            self.crew.kill(LoaderNo(peer.number), Epoch(peer.epoch))

    # --- loaders

    def _from_loader(self, peer: Peer, message: FromLoader) -> None:
        if peer.number != message.loader or peer.epoch != message.epoch:
            error = BadMessage(f"{peer} speaks for loader {message.loader}, epoch {message.epoch}")
            error.peer = peer
            self._distrust(error)
            return
        if (message.loader, message.epoch) not in self.crew.members():  # gone, or somebody who made himself a name
            return
        if isinstance(message, LoaderStarted):
            self.crew.happened(message.loader, message.epoch, Happened.STARTED)
            self._started[peer] = message
            self._name_files(peer)
            self._feed(message)
        elif isinstance(message, UnitLoaded):
            unit = self._ordered(peer, message.ticket)
            if unit is None:
                self._feed(message)
                return
            judged = self.guard.judge(message, unit)
            if isinstance(judged, LoadFailed):
                self._load_failed(judged)
            else:
                self.front.loaded(message, unit)
                self._feed(message)
        elif isinstance(message, LoadFailed):
            unit = self._ordered(peer, message.ticket)
            self._load_failed(message if unit is None else self.guard.explain(message, unit))
        elif isinstance(message, LoaderFailed):
            self.front.say(f"{self.crew.name(message.loader)} cannot start: {message.text}")
            self.crew.last_words = message.text
            self.crew.happened(message.loader, message.epoch, Happened.SAID_FAILED)

    def _ordered(self, peer: Peer, ticket: Ticket) -> UnitNo | None:
        """The unit that this loader was to load by this order, which has ended now."""
        unit, who = self._loading.get(ticket, (None, None))
        if who != peer:
            return None
        del self._loading[ticket]
        return unit

    def _load_failed(self, failed: LoadFailed) -> None:
        """What compute waits for is read once more, so that a disk may err."""
        self.front.say(f"{self.crew.name(failed.loader)}: {failed.text}")
        self._feed(failed)

    def _name_files(self, peer: Peer) -> None:
        plan = self.plan
        for number, file in enumerate(self.units.files):
            if not self.hub.send(peer, OpenFile(number, file.path, file.nbytes, plan.chunk_nbytes, plan.direct)):
                self.crew.kill(LoaderNo(peer.number), Epoch(peer.epoch))  # it takes nothing any more
                return

    def _loader_gone(self, loader: LoaderNo, epoch: Epoch) -> None:
        peer = Peer("loader", loader, epoch)
        self._started.pop(peer, None)
        self._loading = {ticket: ordered for ticket, ordered in self._loading.items() if ordered[1] != peer}
        self._feed(LoaderGone(loader, epoch))

    def _loader_stuck(self, loader: LoaderNo, epoch: Epoch, state: str) -> None:
        """It was killed and is still there."""
        text = self._who_reads_what(loader, epoch, state)
        self.front.say(f"going on without {text}: it cannot be killed")
        self._feed(LoaderStuck(loader, epoch, text))

    def _who_reads_what(self, loader: LoaderNo, epoch: Epoch, state: str) -> str:
        """By what was ordered: no file is touched, it may lie on a disk that does not answer."""
        if self.crew.board(loader):
            return f"{self.crew.name(loader)} (epoch {epoch}), which is {state}"
        units = [unit for unit, who in self._loading.values() if who == Peer("loader", loader, epoch)]
        files = sorted({one.file for unit in units for one in self.units.units[unit].ranges})
        paths = [self.units.files[number].path for number in files]
        reads = " and reads " + ", ".join(f"{path} ({device_of(path)})" for path in paths) if paths else ""
        return f"{self.crew.name(loader)} (epoch {epoch}), which is {state}{reads}"

    def _fewer_loaders(self) -> None:
        self._feed(LoadersLeft(self._loaders_left()))

    def _loaders_left(self) -> int:
        """Fewer than planned where some were given up."""
        return max(1, self.crew.count)

    def _loaders_lost(self, why: str) -> None:
        lost: HermesError = LoadersLost(why)
        if not self.settings.has_copy:
            words = f": {self.crew.last_words}" if self.crew.last_words else ""
            lost = BoardLost(f"nobody lends the model any more, {why}{words}")
        self._no_loaders = lost
        if self.divided:  # the units that lie in slots can still be computed with
            self._feed(NoLoadersLeft(lost.exit_code, str(lost)))
        else:
            self.end(lost)

    # --- compute

    def _from_compute(self, message: FromCompute) -> None:
        if isinstance(message, (AskUnit, PassForecast)):
            self._feed(message)
        elif isinstance(message, UnitDone):
            leased = self._leased.pop(message.ticket, None)
            if leased is not None:
                self.front.done(message, *leased)
            self._feed(message)
        elif isinstance(message, ComputeStarted):
            self.accounting.compute = message.pid
            self.compute.happened(Happened.STARTED)
        elif isinstance(message, FileNamed):
            self._described[0].append(UnitFile(message.path, message.nbytes))
        elif isinstance(message, UnitDescribed):
            self._described[1].append(UnitSpec(message.nbytes, message.ranges))
        elif isinstance(message, UnitsDescribed):
            self._divide(message)
        elif isinstance(message, ComputeFailed):
            if message.traceback:
                self.front.say(message.traceback)
            self.compute.happened(Happened.SAID_FAILED)
            self.end(revived(message.exit_code, message.text))
        else:
            if isinstance(message, PassStarted):
                self._feed(message)
            elif isinstance(message, BoardGone):
                self._gone.pop(message.board, None)
                if message.text:
                    self._gone[message.board] = message.text
            self.front.told(message)

    def _compute_ended(self) -> None:
        """It is replaced where that is allowed: the weights that lie in slots stay there."""
        epoch = self.compute.peer.epoch
        ended = self.compute.reap()
        if ended is None:
            return
        cause, attempt = ended.cause, COMPUTE_LOST
        if ended.starved:
            shortage = self._shortage()
            cause, attempt = f"{cause}: {shortage.story()}", shortage.attempt()
        if ended.over is not None:
            why = f": {ended.over.why}" if ended.over.why else ""
            self.end(ComputeLost(f"compute (epoch {epoch}) ended ({cause}){why}", attempt))
            return
        repeats = "" if self.settings.options.get("replay") == FAST else ", and repeats the request"
        self.front.say(f"compute (epoch {epoch}) ended ({cause}); it is started again{repeats}")
        self.accounting.compute_began(self.compute.pid)
        self._described = [], []
        self._leased.clear()
        self.divided = False
        self._feed(ComputeGone())
        self._leave_room_to_start()
        self.front.compute_restarted()

    def _shortage(self) -> Shortage:
        """Compute has just been killed for lack of memory: what it took shows in what is free of a limit by now."""
        took = {**self.accounting.largest, "slots": self.arena.allocated_nbytes()}
        left, _ = self.accounting.sample()
        limit = self.adapting.tightest()
        others = max(0, limit.limit_nbytes - limit.free_nbytes - sum(left.values()) - took["slots"])
        return Shortage(
            limit.name, limit.limit_nbytes, others, took, self.slots.budget_nbytes, starting=not self.divided
        )

    def _judge_compute(self) -> None:
        """End the run where our compute process has work, and what it works on, and does nothing."""
        if self.settings.has_caller or self.over is not False:
            return
        has_work = not self.divided or self.front.busy
        waits = self.mind is not None and self.mind.wanted
        if self._stillness.look(has_work and not waits, self.compute.mark(), time.monotonic_ns()):
            epoch, state = self.compute.peer.epoch, self.compute.stop_hanging()
            disk = device_of(str(self.settings.checkpoint.directory)) if state in WAITS else ""
            where = f", and the model lies on {disk}" if disk else ""
            self.end(ComputeLost(
                f"compute (epoch {epoch}) has done nothing for {self.settings.timeout_s:g} s: it is {state}{where}",
                "run it again; on a machine that pauses processes raise --timeout",
            ))  # fmt: skip

    def _leave_room_to_start(self) -> None:
        """Compute may take more while it starts than once it runs: so much less for slots, until it has started."""
        if self.mind is None or self._start is None:
            return
        try:
            self._adopt(self.units, self._needs(*self._start))
        except HermesError:  # too tight for any slot beside it
            self._forget_units()

    def _divide(self, message: UnitsDescribed) -> None:
        """Compute has said everything: divide the budget by its figures, and keep the list for the next start."""
        files, specs = self._described
        units = UnitList(tuple(files), tuple(specs))
        if len(specs) != message.units or units.digest() != message.digest:
            raise BadMessage(f"compute described {len(specs)} of {message.units} units, or others than it named")
        units.check()
        self.sample(exactly=True)
        self._follow(self._with_lenders(message, units))
        self._start = None
        needs = self._needs(message.base_nbytes, message.reserve_nbytes, message.wish_nbytes)
        self._described = [], []
        try:
            if self.divided:  # other units from now on, and of compute none is in use
                self._leased.clear()
                self._feed(ComputeGone())
            if self.mind is not None and units != self.units:
                self._forget_guess()
            self._adopt(units, needs)
        except HermesError as error:
            self.end(error)
            return
        self._start = max(message.base_nbytes, needs.start - message.reserve_nbytes), message.reserve_nbytes
        entry = unitcache.Remembered(units, message.base_nbytes, needs.start, message.reserve_nbytes, self.plan)
        self._remembering.remember(entry)
        self.divided = True
        self.compute.send(SlotsDivided(self.slots.planned, self.slots.slot_nbytes, self.slots.reserve_nbytes))
        self.front.ready(units)

    # --- units and slots

    def _with_lenders(self, described: UnitsDescribed, units: UnitList) -> RunPlan:
        """Borrow from those that are named, once in a run; the plan, but no forecast of it where that cannot be.

        Remote loaders must have room by what our processes take: compute knew a forecast of that.
        """
        plan = described.plan
        if not described.lenders or self._borrowed is not None:
            return plan
        borrowed = Borrowed.from_json(json.loads(described.lenders))
        remote, local = borrowed.loaders, plan.loaders or self.plan.loaders
        needs = self._needs_of(local, remote, described.base_nbytes, described.reserve_nbytes, described.wish_nbytes)
        why = "the budget here has no room for a remote loader"
        try:
            if self.slots.has_room(units, needs, self._spare(needs), local + remote):
                self._borrow(borrowed)
                return plan
        except HermesError as error:
            why = str(error)
        self.front.say(f"no disk is borrowed: {why}")
        return replace(plan, forecast_us=0, source="")

    def _needs(self, base_nbytes: int, reserve_nbytes: int, wish_nbytes: int = 0) -> Needs:
        return self._needs_of(self.plan.loaders, self.crew.remote, base_nbytes, reserve_nbytes, wish_nbytes)

    def _needs_of(
        self, local: int, remote: int, base_nbytes: int, reserve_nbytes: int, wish_nbytes: int
    ) -> Needs:
        needs = self.accounting.needs(local + remote, base_nbytes, reserve_nbytes, wish_nbytes)
        # What a lender was allowed to send may wait in a loader's memory.
        return replace(needs, loaders=needs.loaders + remote * WINDOW_NBYTES)

    def _spare(self, needs: Needs) -> Spare:
        """What the machine has for us at this moment."""
        own_nbytes, file_nbytes = self.accounting.held(needs)
        return self.adapting.spare(own_nbytes + self.arena.allocated_nbytes(), file_nbytes)

    def _borrow(self, borrowed: Borrowed) -> None:
        """From these as well, until the run ends. Raises SystemCallFailed."""
        allow_files(FILES + FILES_PER_LOADER * (self.plan.loaders + borrowed.loaders))
        self._borrowed = borrowed
        self.crew.borrow(borrowed)

    def _follow(self, plan: RunPlan) -> None:
        """Run by this plan: so many loaders, that read in this way."""
        before, self.plan = self.plan, replace(plan, loaders=plan.loaders or self.plan.loaders)
        if self.settings.borrowed is not None:  # which the plan knows nothing of
            loaders = self.plan.loaders if self.settings.has_copy else 0
            self.plan = replace(self.plan, loaders=loaders, window=0, forecast_us=0, source="")
        self.slots.loaders = self.plan.loaders + self.crew.remote
        for number, epoch in self.crew.resize(self.plan.loaders):
            if not self.hub.send(Peer("loader", number, epoch), StopLoader()):
                self.crew.kill(number, epoch)  # not connected yet: it would work, uncounted, once it is
        if (before.chunk_nbytes, before.direct) != (self.plan.chunk_nbytes, self.plan.direct):
            for peer in self._started:
                self._name_files(peer)

    def _adopt(self, units: UnitList, needs: Needs, remembered: bool = False) -> None:
        """Run on these units from now on, with the slots that the budget leaves."""
        count = self.slots.divide(units, needs, self._spare(needs), remembered)
        self.adapting.plan(count, self.slots.slot_nbytes, self.slots.most)
        if self.mind is None:
            self.units = units
            self.guard.adopt(units)
            if units.units:
                sizes = [unit.nbytes for unit in units.units]
                self.mind = Pipeload(
                    sizes, self.slots.slot_nbytes, self._loaders_left(), self.plan.window or None, more=True,
                    limits=Limits(round(self.settings.soft_s * 1e9), round(self.settings.hard_s * 1e9)),
                    eager=self.settings.eager,
                )  # fmt: skip
                for peer in self._started:
                    self._name_files(peer)
                if self._no_loaders is not None and not self.crew.members():
                    self._feed(NoLoadersLeft(self._no_loaders.exit_code, str(self._no_loaders)))
        self._feed(SlotsWanted(max(1, count), self.plan.window, self._loaders_left()))
        for started in self._started.values():
            self._feed(started)  # those that came up before the units were known; for the others this is old news
        self._add_slot()

    def _forget_guess(self) -> None:
        """The remembered units were wrong, or others are assigned."""
        if not self.divided:
            self.front.say("the remembered units of this model were out of date; its weights are read anew")
        self._forget_units()

    def _forget_units(self) -> None:
        """Begin anew. A loader that is still reading must be gone before its slot is reused."""
        self.mind = None
        stuck = [self._who_reads_what(*key, self.crew.state_of(*key)) for key in self.crew.renew()]
        if stuck:
            raise ReadFailed(f"slots cannot be used again: {'; '.join(stuck)} cannot be killed")
        self.slots.clear()
        self._loading.clear()

    def _adapt(self) -> None:
        """Give slots back while memory is tight, and take them again."""
        if self.mind is None:
            return
        slots = self.mind.slots  # all of them held and a wait that will be judged: compute waits for yet another
        starved = len(slots.announced) == len(slots.all) and self.mind.wake_ns() is not None
        promised_nbytes = self.accounting.promised_nbytes if self.settings.memory == "auto" else 0
        count = self.adapting.look(
            len(self.slots.bases), promised_nbytes, bool(self.slots.missing), starved, self.accounting.faults
        )
        if count is not None:
            self.slots.want(count)
            self._feed(SlotsWanted(max(1, count)))

    def _add_slot(self) -> None:
        """One at a time: allocating takes milliseconds, and the loaders wait for orders."""
        if not self.slots.missing or self.mind is None:
            return
        try:
            slot = self.slots.add()
        except OutOfMemory as error:
            left = len(self.slots.bases)
            if left < min(MIN_SLOTS, len(self.units.units)):
                self.end(error)
            else:
                self.front.say(f"{error}; going on with {counted(left, 'slot')}")
                self.adapting.refused(left)
                self._feed(SlotsWanted(left))
            return
        self._feed(SlotAdded(slot))

    def _feed(self, event: pipeload.Event) -> None:
        if self.mind is None:
            return
        for action in self.mind.handle(event, time.monotonic_ns()):
            self._perform(action)
        self.front.slots_changed(self.mind.slots)

    def _perform(self, action: pipeload.Action) -> None:
        if isinstance(action, Load):
            spec = self.units.units[action.unit]
            peer = Peer("loader", action.loader, action.epoch)
            self._loading[action.ticket] = action.unit, peer
            base = self.slots.bases[action.slot]
            room = self.slots.slot_nbytes
            checked = self.guard.wants(action.unit)
            order = LoadUnit(action.epoch, action.ticket, action.unit, base, room, spec.ranges, checked)
            if not self.hub.send(peer, order):
                self.crew.kill(action.loader, action.epoch)  # it reads nothing any more
        elif isinstance(action, Announce):
            assert self.mind is not None
            self._leased[action.ticket] = (action.unit, self.mind.slots.all[action.slot].loaded_by)
            self.compute.send(UnitReady(action.ticket, action.unit, self.slots.bases[action.slot], action.keep))
        elif isinstance(action, Recall):
            self.compute.send(RecallUnit(action.ticket, action.unit))
        elif isinstance(action, Refuse):
            self.compute.send(UnitFailed(action.unit, action.exit_code, clip(line_of(action.exit_code, action.text))))
        elif isinstance(action, Kill):
            state = self.crew.state_of(action.loader, action.epoch)
            self.front.say(f"{self.crew.name(action.loader)} is killed: {action.why}; it is {state}")
            self.crew.kill(action.loader, action.epoch)
        else:
            self.slots.remove(action.slot)

    def sample(self, exactly: bool = False) -> None:
        """Tell the front what every process takes at this moment."""
        by_process, exact = self.accounting.sample(exactly)
        self.front.sampled(by_process, self.arena.allocated_nbytes(), exact)
