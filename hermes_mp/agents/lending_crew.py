"""The loaders of a lender, and the memory that they read into: processes as any run has, for pieces of others' orders.

What is read is decided in `core.lending`; this is its shell towards the disk. It knows no network.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from hermes_mp.agents.quarters import LEAVE_S, Quarters
from hermes_mp.core.lending import SLOT_NBYTES, Loans, Piece, reads_of, room_of
from hermes_mp.core.lifecycle import Happened
from hermes_mp.errors import BadMessage, HermesError, LoadersLost, ReadFailed, SystemCallFailed, revived
from hermes_mp.host.arena import Arena
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.host.children import hand_on
from hermes_mp.host.lan import Visitor
from hermes_mp.host.mounts import device_of
from hermes_mp.host.wire import Hub, Key, Peer, Watching
from hermes_mp.messages import (
    Epoch,
    FromLoader,
    LoaderFailed,
    LoaderNo,
    LoaderStarted,
    LoadFailed,
    LoadUnit,
    OpenFile,
    StopLoader,
    Ticket,
    UnitLoaded,
    UnitNo,
)

STRIDE_NBYTES = -(-SLOT_NBYTES // mmap.PAGESIZE) * mmap.PAGESIZE
LOOK_S = 1.0  # at the progress of its loaders

Incarnation = tuple[LoaderNo, Epoch]
Lends = Loans[Visitor, Incarnation]


class LendingCrew:
    """`slots` slots and `loaders` loaders from now on, until `close`."""

    def __init__(self, loans: Lends, loaders: int, slots: int, poller: Watching, say: Callable[[str], None]) -> None:
        """Raises OutOfMemory, SystemCallFailed, OSError."""
        self._loans, self._say = loans, say
        self.lost: HermesError | None = None  # no loader is left
        self._files: list[tuple[str, int]] = []
        self._models: dict[str, int] = {}
        self._started: set[Incarnation] = set()
        self._look_s = 0.0
        self._poller = poller
        with ExitStack() as made:
            self._arena = Arena.create(slots * STRIDE_NBYTES)
            made.callback(self._arena.close)
            self._arena.allocate(0, slots * STRIDE_NBYTES)
            quarters = Quarters(loaders, self._arena)
            made.callback(quarters.close)
            self._crew = quarters.crew
            self._hub = Hub(quarters.run_dir.path)
            made.callback(self._hub.close)
            poller.watch(self._hub)
            made.callback(lambda: self._poller.forget(self._hub))
            self._crew.attach(
                poller, self._gone, self._stuck, lambda: None, self._lost, say, hand_on, lambda: None
            )
            self._made = made.pop_all()

    # --- for `agents.lending`

    @property
    def pids(self) -> dict[str, int]:
        return self._crew.pids()

    def view(self, slot: int, skip: int, nbytes: int) -> memoryview:
        """What was read into a slot."""
        return self._arena.view(slot * STRIDE_NBYTES + skip, nbytes)

    def watch_with(self, poller: Watching) -> None:
        """Be woken up by this one from now on."""
        self._poller.forget(self._hub)
        self._poller = poller
        poller.watch(self._hub)
        self._crew.move_to(poller)

    def read(self, loader: Incarnation, piece: Piece) -> None:
        """As `Loans.next_read` says."""
        assert isinstance(piece.model, str)
        order = LoadUnit(
            loader[1], Ticket(piece.number), UnitNo(0), piece.slot * STRIDE_NBYTES, room_of(piece),
            reads_of(piece, self._models[piece.model]),
        )  # fmt: skip
        if not self._hub.send(Peer("loader", *loader), order):
            self._crew.kill(*loader)  # it reads nothing any more

    def know(self, model: str, checkpoint: Checkpoint) -> None:
        """Pieces of `model` are of these files."""
        if model in self._models:
            return
        self._models[model] = len(self._files)
        added = [(str(file.path), file.nbytes) for file in checkpoint.files]
        for loader in self._started:
            self._name(loader, len(self._files), added)
        self._files += added

    def readable(self, key: Key) -> bool:
        """False where this is none of ours."""
        if key is self._hub:
            self.hear()
            return True
        if isinstance(key, int):
            self.hear()  # last words come before the kernel's notice
            return self._crew.readable(key)
        return False

    def turn(self) -> None:
        """Time passes."""
        self._crew.turn()
        now_s = time.monotonic()
        if now_s < self._look_s:
            return
        self._look_s = now_s + LOOK_S
        for loader in self._started:
            self._loans.seen(loader, self._crew.progress.read(loader[0]), time.monotonic_ns())
        for loader in self._loans.hanging(time.monotonic_ns()):
            self._say(f"a lending loader hangs and is killed; it is {self._crew.state_of(*loader)}")
            self._crew.kill(*loader)

    def close(self) -> None:
        """End the loaders, give all memory back."""
        with suppress(SystemCallFailed):  # who cannot be told is killed
            for number, epoch in self._crew.members():
                self._hub.send(Peer("loader", number, epoch), StopLoader())
        self._crew.stop(LEAVE_S)
        self._made.close()

    # --- loaders

    def hear(self) -> None:
        """Everything that has come."""
        while True:
            try:
                received = self._hub.receive()
            except BadMessage as error:
                self._say(str(error))
                if isinstance(error.peer, Peer) and error.peer.kind == "loader":
                    self._crew.kill(LoaderNo(error.peer.number), Epoch(error.peer.epoch))
                continue
            if received is None:
                return
            peer, message = received
            loader = LoaderNo(peer.number), Epoch(peer.epoch)
            if peer.kind == "loader" and loader in self._crew.members():
                self._told(loader, message)  # type: ignore[arg-type]  # the hub decodes by kind

    def _told(self, loader: Incarnation, message: FromLoader) -> None:
        now_ns = time.monotonic_ns()
        if isinstance(message, LoaderStarted):
            self._crew.happened(*loader, Happened.STARTED)
            self._started.add(loader)
            self._name(loader, 0, self._files)
            self._loans.started(loader, now_ns)
        elif isinstance(message, UnitLoaded):
            self._loans.read(loader, message.ticket, message.slowest_ns, now_ns)
        elif isinstance(message, LoadFailed):
            self._loans.broken(loader, message.ticket, revived(message.exit_code, message.text))
        elif isinstance(message, LoaderFailed):
            self._say(f"a lending loader cannot start: {message.text}")
            self._crew.happened(*loader, Happened.SAID_FAILED)

    def _name(self, loader: Incarnation, first: int, files: list[tuple[str, int]]) -> None:
        for number, (path, nbytes) in enumerate(files, first):
            if not self._hub.send(Peer("loader", *loader), OpenFile(number, path, nbytes)):
                self._crew.kill(*loader)
                return

    def _gone(self, loader: LoaderNo, epoch: Epoch) -> None:
        self._started.discard((loader, epoch))
        self._loans.gone((loader, epoch))

    def _stuck(self, loader: LoaderNo, epoch: Epoch, state: str) -> None:
        disks = ", ".join(sorted({device_of(path) for path, _ in self._files}))
        text = f"a lending loader cannot be killed: it is {state}; the models lie on {disks}"
        self._say(text)
        self._loans.unkillable((loader, epoch), ReadFailed(text))

    def _lost(self, why: str) -> None:
        self.lost = LoadersLost(f"no loader could be kept alive that lends: {why}")
        self._loans.lost(self.lost)

