"""A loader whose bytes come from another board: orders come by the daemon's link, parts of units by the lender's.

To the daemon it is a loader as any other (`core.loading` is the mind of both). It knows no model and no tensor, and
imports as little as `agents.loader`. Where the lender is lost it says so and ends: the daemon starts another one.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from hermes_mp.agents.greeting import said_by
from hermes_mp.agents.lenders import greet
from hermes_mp.agents.loader_arguments import RemoteArguments
from hermes_mp.agents.loader_process import run_loader
from hermes_mp.board_messages import GrantCredit, LendFailed, LendUnit, Refused, UnitLent, UnitPart
from hermes_mp.core import loading
from hermes_mp.core.borrowing import Borrowing
from hermes_mp.core.budget import WINDOW_NBYTES
from hermes_mp.core.loading import LoadBroken, Loading, LoadRead
from hermes_mp.errors import (
    BadMessage,
    BoardLost,
    BoardUnknown,
    DaemonLost,
    ModelNotFound,
    ModelsDiffer,
    NotAllowed,
    ProtocolsDiffer,
    UnsafeAddress,
)
from hermes_mp.host.arena import Arena
from hermes_mp.host.lan import LanLink
from hermes_mp.host.progress import ProgressBoard
from hermes_mp.host.wire import Link, Poller
from hermes_mp.messages import NOT_CHECKED, Epoch, LoaderNo, LoadUnit, ToLoader, clip

RETRY_S = 2.0  # for a board that is not there (yet, or again); six incarnations wait so long before it is given up
AGAIN_S = 0.2
TURN_S = 0.5  # the longest wait, so that a lost lender is noticed
FOR_GOOD = (NotAllowed, ModelsDiffer, ModelNotFound, ProtocolsDiffer, BoardUnknown, UnsafeAddress)  # as its successor


@dataclass
class _Load:
    """One on its way; `slowest_ns` is the longest that a part of it was waited for."""

    order: LoadUnit
    started_ns: int = 0
    slowest_ns: int = 0
    checksum: int = 0


class RemoteLoader:
    """Performs the actions of its mind by the lender's link."""

    def __init__(self, arguments: RemoteArguments, link: Link[ToLoader], lan: LanLink) -> None:
        own = arguments.loader
        self._number = LoaderNo(own.loader)
        self._board = arguments.lender.name
        self._link, self._lan = link, lan
        self._arena = Arena.attach(own.arena_fd)
        self._progress = ProgressBoard.attach(own.progress_fd)
        self._mind = Loading(self._number, Epoch(own.epoch), self._arena.nbytes)
        self._borrowing = Borrowing()
        self._loads: dict[int, _Load] = {}
        self._heard_ns = 0
        self._death_fd = own.death_fd
        lan.send(GrantCredit(WINDOW_NBYTES))

    def run(self) -> None:
        """Work until told to stop; raises DaemonLost when there is nobody left to tell, BoardLost."""
        poller = Poller()
        for key in (self._link, self._lan, self._death_fd):
            poller.watch(key)
        while True:
            ready = poller.wait(TURN_S)
            while (order := self._link.receive(0)) is not None:
                if not self._handle(order):
                    return
            if ready == {self._death_fd}:
                raise DaemonLost("the daemon is gone")
            while (message := self._lan.receive(0)) is not None:
                if not self._told(message):
                    return

    # --- the daemon

    def _handle(self, event: loading.Event) -> bool:
        """Whether to go on."""
        actions = deque(self._mind.handle(event, time.monotonic_ns()))
        while actions:
            action = actions.popleft()
            if isinstance(action, loading.Read):
                load = action.load
                self._loads[load.ticket] = _Load(load)
                self._borrowing.order(load.ticket, load.ranges)
                self._lan.send(LendUnit(load.ticket, load.ranges))
            elif isinstance(action, loading.Send):
                self._link.send(action.message)
            elif isinstance(action, loading.Exit):
                return False
        return True  # nothing is opened here: the lender has the files

    # --- the lender

    def _told(self, message: object) -> bool:
        """Whether to go on."""
        if isinstance(message, UnitPart):
            self._take(message)
            return True
        if isinstance(message, UnitLent):
            self._borrowing.complete(message)
            load = self._loads.pop(message.order)
            checksum = load.checksum if load.order.checked else NOT_CHECKED
            started_ns = load.started_ns or time.monotonic_ns()
            self._grant()
            return self._handle(LoadRead(load.order.ticket, True, started_ns, load.slowest_ns, checksum))
        if isinstance(message, LendFailed) and self._borrowing.failed(message.order):
            load = self._loads.pop(message.order)
            self._grant()
            text = clip(f"board {self._board}: {message.text}")
            return self._handle(LoadBroken(load.order.ticket, message.exit_code, text))
        if isinstance(message, Refused):
            raise said_by(self._board, message.exit_code, message.text)
        raise BadMessage(f"board {self._board} says {type(message).__name__}, and was not asked for it")

    def _take(self, part: UnitPart) -> None:
        """Straight into the slot."""
        at = self._borrowing.place(part)
        load = self._loads[part.order]
        with self._arena.view(load.order.base + at, part.nbytes) as place:
            self._lan.payload_into(place)
            if load.order.checked:
                load.checksum = zlib.crc32(place, load.checksum)
        now_ns = time.monotonic_ns()
        if load.started_ns:
            load.slowest_ns = max(load.slowest_ns, now_ns - self._heard_ns)
        else:
            load.started_ns = now_ns
        self._heard_ns = now_ns
        self._progress.bump(self._number)
        self._grant()

    def _grant(self) -> None:
        nbytes = self._borrowing.grant()
        if nbytes:
            self._lan.send(GrantCredit(nbytes))


def main(words: list[str]) -> int:
    """The process; its exit code."""
    arguments = RemoteArguments.from_words(words)

    def work(link: Link[ToLoader], started: Callable[[], None]) -> None:
        with closing(_reach(arguments)) as lan:
            loader = RemoteLoader(arguments, link, lan)
            started()
            loader.run()

    return run_loader(arguments.loader, arguments.lender.name, work, lambda error, _: isinstance(error, FOR_GOOD))


def _reach(arguments: RemoteArguments) -> LanLink:
    """The lender's link; tried again for a while, as a board that was lost may come back."""
    until_s = time.monotonic() + RETRY_S
    while True:
        try:
            left_s = max(AGAIN_S, until_s - time.monotonic())
            death_fd = arguments.loader.death_fd
            return greet(arguments.lender, arguments.model, arguments.fingerprint, left_s, death_fd)[0]
        except BoardLost:
            if time.monotonic() + AGAIN_S >= until_s:
                raise
        _rest(arguments.loader.death_fd)


def _rest(death_fd: int) -> None:
    poller = Poller()
    poller.watch(death_fd)
    if poller.wait(AGAIN_S):
        raise DaemonLost("the daemon is gone")
