"""A head's link to one board of a run, and what the board has said of itself and of its stage.

A board that is lost stays so until it is greeted again. It waits for nobody but this board: `agents.boards` does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hermes_mp.agents.greeting import Greeting
from hermes_mp.board_messages import (
    MAX_PAYLOAD_NBYTES,
    Refused,
    StageEnded,
    StageForgot,
    StageOpened,
    StageReady,
    StageSaid,
    StageTold,
    StillThere,
    TensorPart,
)
from hermes_mp.core.bundle import Arrival, Placed, place
from hermes_mp.errors import (
    BadMessage,
    BoardLost,
    HermesError,
    MachineError,
    PeerError,
    RequestAgain,
    UserError,
    by_exit_code,
    revived,
)
from hermes_mp.host.keys import KeyPair
from hermes_mp.host.lan import LanLink
from hermes_mp.messages import LayersFailed, LayersRun, RunLayers


@dataclass(frozen=True)
class BoardEntry:
    """How a board is reached; `key` is its public one, "" on plaintext loopback."""

    name: str
    address: str
    key: str


class StageForgotten(HermesError, RequestAgain):
    """The board is there, but the caches of its stage are not: the request is to be repeated."""

    def __init__(self, board: str, text: str) -> None:
        super().__init__(f"board {board}: {text}", "")
        self.board = board


class LostBoard(BoardLost, RequestAgain):
    """With the board's name."""

    def __init__(self, board: str, text: str) -> None:
        super().__init__(text)
        self.board = board


class BoardLink:
    """`note` takes what the board has to say that is worth a line.

    While the board is lost `is_there` is false, and `why` says why. All but `greet` raises LostBoard then.
    """

    def __init__(self, entry: BoardEntry, note: Callable[[str], None]) -> None:
        self.entry, self.name, self._note = entry, entry.name, note
        self._lan: LanLink | None = None
        self.why = ""
        self.facts: dict[str, Any] = {}
        self.fingerprint = ""
        self.opened: dict[str, Any] = {}  # what planning needs of it; empty until its stage has opened
        self.stage: dict[str, Any] = {}  # what it last said of its stage
        self.is_welcome = False
        self.refuses = False  # what is asked of it, as long as it is set up as it is
        self.again_s = 0.0  # while it is lost: not to be tried before
        self.ready = 0  # the epoch that its stage is ready for
        self.lends = False  # and nothing else, until the run ends: remote loaders have links of their own
        self.heard_s = 0.0
        self.waits_for = ""
        self.hops = self.took_ns = self.stalled_ns = self._began_ns = 0
        self.asked: RunLayers | None = None  # and not finished
        self.answer: LayersRun | LayersFailed | None = None
        self.away_ns = 0  # from asking to the answer: also the way there and back

    @property
    def is_there(self) -> bool:
        return self._lan is not None

    # --- coming and going

    def greet(self, greeting: Greeting, keys: KeyPair | None, deadline_s: float, death_fd: int) -> None:
        """Connect and say Hello; what it answers is for `welcomed`."""
        own = keys if self.entry.key else None
        try:
            self._lan = LanLink(self.name, self.entry.address, own, self.entry.key or None, deadline_s, death_fd)
        except BoardLost as error:
            raise self.lose(str(error)) from error
        self.heard_s = time.monotonic()
        self.send(greeting.hello())

    def welcomed(self, greeting: Greeting, answer: object) -> None:
        """Raises LostBoard, and what cannot be mended by waiting as what it is."""
        try:
            welcome = greeting.welcomed(self.name, answer)
        except HermesError:
            self.drop()
            raise
        try:
            self.facts, self.fingerprint, self.why = _object(welcome.facts, self.name), welcome.fingerprint, ""
        except BadMessage as error:
            raise self.lose(str(error)) from error
        self.is_welcome = True

    def lose(self, why: str) -> LostBoard:
        """Go on without this board: what it says is of no use."""
        self.why = why
        self.drop()
        return LostBoard(self.name, why)

    def drop(self, last_words: bool = False) -> None:
        """Harmless when repeated."""
        self.ready, self.is_welcome = 0, False
        if self._lan is not None:
            self._lan.close(last_words)
            self._lan = None

    # --- messages

    def send(self, message: object, payload: bytes | memoryview | None = None) -> None:
        lan = self._there()
        try:
            lan.send(message, payload)
        except BoardLost as error:
            raise self.lose(str(error)) from error

    def hear(self, timeout_s: float) -> Any:
        """The next message, noted; None where none comes in time. Raises LostBoard, StageForgotten."""
        lan = self._there()
        try:
            message = lan.receive(timeout_s)
        except BoardLost as error:
            raise self.lose(str(error)) from error
        except BadMessage as error:
            raise self.lose(f"board {self.name}: {error}") from error
        if message is None:
            return None
        self.heard_s = time.monotonic()
        try:
            self._noted(message)
        except BadMessage as error:
            raise self.lose(str(error)) from error
        return message

    def _there(self) -> LanLink:
        if self._lan is None:
            raise LostBoard(self.name, f"board {self.name} was lost: {self.why}")
        return self._lan

    def _noted(self, message: Any) -> None:
        if isinstance(message, LayersRun | LayersFailed):
            if self.asked is not None and _answers(message, self.asked):
                self.answer = message
        elif isinstance(message, StillThere):
            self.waits_for = message.waits_for[:40]
        elif isinstance(message, StageSaid):
            if message.note:
                self._note(f"board {self.name}: {message.text}")
            else:
                self.waits_for = message.text[:80]
        elif isinstance(message, StageOpened):
            self.opened = _object(message.facts, self.name)
        elif isinstance(message, StageTold):
            self.stage = _object(message.facts, self.name)
        elif isinstance(message, StageReady):
            self.ready, self.stage, self.waits_for = message.epoch, _object(message.facts, self.name), ""
        elif isinstance(message, StageForgot):
            self.ready = 0
            raise StageForgotten(self.name, message.text)
        elif isinstance(message, StageEnded):
            self.stage, self.ready = _object(message.facts, self.name), 0
            if message.exit_code:
                raise self._ended(message)
        elif isinstance(message, Refused) and self.is_welcome:
            raise self._ended(message)

    def _ended(self, message: StageEnded | Refused) -> LostBoard:
        """What is the user's to mend, such as too small a budget, would be so again."""
        self.refuses = issubclass(by_exit_code().get(message.exit_code, PeerError), UserError)
        return self.lose(f"board {self.name}: {message.text}")

    # --- layers

    def begin(self, ask: RunLayers, bundle: Sequence[memoryview]) -> None:
        """Ask it to run a stretch; there is an `answer` some time later, to be `finished`."""
        self._began_ns, self.asked, self.answer = time.monotonic_ns(), ask, None
        self.send(ask)
        for where, bytes_ in zip(place(ask.bundle), bundle, strict=True):
            for first in range(0, where.nbytes, MAX_PAYLOAD_NBYTES):
                part = bytes_[first : first + MAX_PAYLOAD_NBYTES]
                self.send(TensorPart(where.at + first, len(part)), part)
        self.heard_s = time.monotonic()

    def finish(self, room: Callable[[Sequence[Placed]], memoryview], await_part: Callable[[], TensorPart]) -> LayersRun:
        """What has answered gives its states; `room` gives memory for them, as they are placed.

        Raises LostBoard, StageForgotten, or what the board says is wrong with what was asked.
        """
        answer, ask, self.answer, self.asked = self.answer, self.asked, None, None
        assert answer is not None
        assert ask is not None
        if isinstance(answer, LayersFailed):
            text = f"board {self.name}: {answer.text}"
            if issubclass(by_exit_code().get(answer.exit_code, PeerError), MachineError | PeerError):
                raise self.lose(text)
            raise revived(answer.exit_code, text)
        if answer.states != tuple(part.states for part in ask.parts):  # layers of a chain give what they are given
            told = ", ".join(f"{given.shape} of {given.dtype[:20]}" for given in answer.states[:2])
            raise self.lose(f"board {self.name} answers with {told}")
        given = place(answer.states)
        into = room(given)
        arrival = Arrival(given, MAX_PAYLOAD_NBYTES)
        while not arrival.complete:
            part = await_part()
            try:
                arrival.take(part.offset, part.nbytes)
                self._there().payload_into(into[part.offset : part.offset + part.nbytes])
            except BadMessage as error:
                raise self.lose(f"board {self.name}: {error}") from error
        self.hops += 1
        self.took_ns += answer.took_ns
        self.stalled_ns += answer.stalled_ns
        self.away_ns += time.monotonic_ns() - self._began_ns
        return answer


def _answers(found: LayersRun | LayersFailed, ask: RunLayers) -> bool:
    return (found.epoch, found.number, found.index) == (ask.epoch, ask.number, ask.index)


def _object(text: str, name: str) -> dict[str, Any]:
    """What a board says of itself; it is not to be relied on."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadMessage(f"board {name} says nothing of itself that is an object")
    return found
