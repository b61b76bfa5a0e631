"""A board that lends its disk: what visitors order is read by loaders of its own, and sent as far as they allow.

Its crew and its memory are there from the first order until the last borrower has left. What it is asked for it
checks; what cannot be it answers, and never raises. It knows neither Hello nor stages: who calls it has greeted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hermes_mp.agents.lending_crew import STRIDE_NBYTES, Incarnation, LendingCrew
from hermes_mp.agents.looking import Looking
from hermes_mp.board_messages import (
    MAX_PAYLOAD_NBYTES,
    AskFile,
    FilePart,
    GrantCredit,
    LendFailed,
    LendUnit,
    Refused,
    UnitLent,
    UnitPart,
)
from hermes_mp.core.lending import PIECE_NBYTES, Lent, Loans, Part, Refusal
from hermes_mp.errors import BadMessage, HermesError, ModelNotFound, refused
from hermes_mp.host import outline
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.host.lan import LanHub, Visitor
from hermes_mp.host.watched import WatchedFiles
from hermes_mp.host.wire import Key, Watching
from hermes_mp.messages import clip

LEND_NBYTES = 32 << 20  # half of it in slots, at most the rest in the network's queues
LEAST_NBYTES = 4 * PIECE_NBYTES
BLOCKED_S = 0.005  # until what the network did not take is offered again
MAX_FILES = 4  # asked for by one visitor and not sent yet

ToLender = LendUnit | GrantCredit | AskFile


@dataclass
class _File:
    name: str
    data: bytes
    at: int = 0


class Lending:
    """`poller` is told what is to be watched; call `readable` for each key of it, and `turn` at every turn."""

    def __init__(
        self,
        lan: LanHub,
        checkpoint_of: Callable[[Visitor], Checkpoint | None],
        loaders: int,
        lend_nbytes: int,
        poller: Watching,
        say: Callable[[str], None],
    ) -> None:
        """`checkpoint_of`: our copy of what the visitor greeted with. `lend_nbytes`: of the board's budget, for all."""
        self._lan, self._checkpoint_of, self._loaders, self._poller, self._say = (
            lan, checkpoint_of, loaders, poller, say
        )  # fmt: skip
        self._lend_nbytes = max(LEAST_NBYTES, lend_nbytes)
        self._slots = self._lend_nbytes // 2 // PIECE_NBYTES
        self._loans = self._no_loans()
        self._crew: LendingCrew | None = None
        self._looking: Looking[tuple[Visitor, int]] | None = None
        self._models: dict[str, WatchedFiles] = {}
        self._asked: set[tuple[Visitor, int]] = set()  # looks at files that are under way
        self._outboxes: dict[Visitor, deque[_File]] = {}
        self._blocked = False

    @property
    def hurry_s(self) -> float | None:
        """The next `turn` is wanted so soon."""
        return BLOCKED_S if self._blocked else None

    @property
    def pids(self) -> dict[str, int]:
        """Its processes, by name."""
        return {} if self._crew is None else {f"lending {name}": pid for name, pid in self._crew.pids.items()}

    @property
    def nbytes(self) -> int:
        """What the window takes now, of the board's budget."""
        return 0 if self._crew is None else self._slots * STRIDE_NBYTES + self._lend_nbytes // 2

    def handle(self, visitor: Visitor, message: ToLender) -> None:
        """What a visitor that was greeted asks for."""
        now_ns = time.monotonic_ns()
        try:
            if isinstance(message, GrantCredit):
                self._loans.granted(visitor, message.nbytes, now_ns)
            elif isinstance(message, LendUnit):
                self._order(visitor, message, now_ns)
            else:
                self._ask(visitor, message.name)
        except HermesError as error:
            self._refuse(visitor, message, error)
        except OSError as reason:
            self._refuse(visitor, message, refused(reason))
        self._work()

    def left(self, visitor: Visitor) -> None:
        """Its connection has ended: what it held is free. After the last one there is no crew."""
        self._outboxes.pop(visitor, None)
        self._asked = {asked for asked in self._asked if asked[0] != visitor}
        self._loans.left(visitor)
        if not self._loans.borrowers:
            self._end_crew()

    def readable(self, key: Key) -> bool:
        """False where this is none of ours."""
        if self._looking is not None and key == self._looking.fd:
            for (visitor, order), changed in self._looking.ended():
                self._asked.discard((visitor, order))
                self._loans.looked(visitor, order, changed)
                if changed is not None:
                    self._say(f"lending: {changed}")
        elif self._crew is None or not self._crew.readable(key):
            return False
        self._work()
        return True

    def turn(self) -> None:
        """Time passes."""
        if self._crew is not None:
            self._crew.turn()
            for visitor in self._loans.stuck(time.monotonic_ns()):
                self._say(f"borrower {visitor.name or 'on loopback'} takes nothing: it is shown out")
                self._loans.left(visitor)
                self._lan.dismiss(visitor)
            if self._crew.lost is not None and not self._loans.has_ordered:
                self._forget_crew()  # the next order has another try
                self._loans.begin_anew()
        self._work()

    def watch_with(self, poller: Watching) -> None:
        """Be woken up by this one from now on: a stage has a loop of its own."""
        if self._looking is not None:
            self._poller.forget(self._looking.fd)
            poller.watch(self._looking.fd)
        if self._crew is not None:
            self._crew.watch_with(poller)
        self._poller = poller

    def close(self) -> None:
        """End the crew; harmless when repeated."""
        self._end_crew()

    # --- what is asked

    def _order(self, visitor: Visitor, message: LendUnit, now_ns: int) -> None:
        checkpoint = self._copy_of(visitor)
        model = f"{checkpoint.directory} {checkpoint.digest}"
        if self._crew is None:
            self._begin_crew()
        assert self._crew is not None
        self._crew.know(model, checkpoint)
        self._models.setdefault(model, WatchedFiles(checkpoint.files))
        files = [file.nbytes for file in checkpoint.files]
        refusal = self._loans.ordered(visitor, message.order, message.ranges, files, model, now_ns)
        if refusal is not None:
            raise refusal.error
        if self._crew.lost is not None:
            self._loans.lost(self._crew.lost)

    def _ask(self, visitor: Visitor, name: str) -> None:
        checkpoint = self._copy_of(visitor)
        outbox = self._outboxes.setdefault(visitor, deque())
        if len(outbox) >= MAX_FILES:
            raise BadMessage(f"{MAX_FILES} files are on their way already")
        listed = outline.list_as_json(outline.contents(checkpoint)) if not name else b""
        outbox.append(_File(name, outline.begin_of(checkpoint, name) if name else listed))

    def _copy_of(self, visitor: Visitor) -> Checkpoint:
        checkpoint = self._checkpoint_of(visitor)
        if checkpoint is None:
            raise ModelNotFound("this board has no copy of the model", "copy it there")
        return checkpoint

    def _refuse(self, visitor: Visitor, message: ToLender, error: HermesError) -> None:
        text = clip(str(error))
        if isinstance(message, LendUnit):
            self._lan.send(visitor, LendFailed(message.order, error.exit_code, text))
        else:
            self._lan.send(visitor, Refused(error.exit_code, text))

    # --- the crew

    def _no_loans(self) -> Loans[Visitor, Incarnation]:
        return Loans(self._slots, self._lend_nbytes)

    def _begin_crew(self) -> None:
        self._crew = LendingCrew(self._loans, self._loaders, self._slots, self._poller, self._say)
        if self._looking is None:
            self._looking = Looking()
            self._poller.watch(self._looking.fd)

    def _forget_crew(self) -> None:
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def _end_crew(self) -> None:
        self._forget_crew()
        if self._looking is not None:
            self._poller.forget(self._looking.fd)
            self._looking.close()
            self._looking = None
        self._models.clear()
        self._asked.clear()
        self._loans = self._no_loans()

    # --- what goes on

    def _work(self) -> None:
        """Read and send whatever can be."""
        self._blocked = False
        self._read()
        while self._send():
            self._read()
        for visitor in list(self._outboxes):
            self._send_files(visitor)

    def _read(self) -> None:
        if self._crew is None:
            return
        while (given := self._loans.next_read()) is not None:
            self._crew.read(*given)
        for visitor, order, model in self._loans.to_look_at():
            if (visitor, order) not in self._asked and self._looking is not None:
                self._asked.add((visitor, order))
                self._looking.ask((visitor, order), self._models[str(model)])

    def _send(self) -> bool:
        """One word to everyone; whether any went."""
        any_went = False
        for visitor in self._loans.borrowers:
            word = self._loans.next_word(visitor)
            if word is None:
                continue
            if self._say_to(visitor, word):
                self._loans.said(visitor, word, time.monotonic_ns())
                any_went = True
            else:
                self._blocked = True
        return any_went

    def _say_to(self, visitor: Visitor, word: Part | Lent | Refusal) -> bool:
        if isinstance(word, Part):
            assert self._crew is not None
            with self._crew.view(word.slot, word.skip, word.nbytes) as payload:
                return self._lan.send(visitor, UnitPart(word.order, word.at, word.nbytes), payload)
        if isinstance(word, Lent):
            return self._lan.send(visitor, UnitLent(word.order, word.nbytes, word.slowest_ns))
        error = word.error
        return self._lan.send(visitor, LendFailed(word.order, error.exit_code, clip(str(error))))

    def _send_files(self, visitor: Visitor) -> None:
        outbox = self._outboxes[visitor]
        while outbox:
            file = outbox[0]
            data = memoryview(file.data)[file.at : file.at + MAX_PAYLOAD_NBYTES]
            part = FilePart(file.name, file.at, len(file.data), len(data))
            if not self._lan.send(visitor, part, data):
                self._blocked = True
                return
            file.at += len(data)
            if file.at == len(file.data):
                outbox.popleft()
        del self._outboxes[visitor]
