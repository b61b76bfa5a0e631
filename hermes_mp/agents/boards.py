"""A head's links to the other boards of a run: greets them, measures their links, starts stages, has layers run.

Every wait looks after all of them, has a deadline, and tells the daemon that something is under way. A board that is
lost stays so until it is asked for again by `join`. It knows no tensor and no plan: bytes and messages only.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hermes_mp.board_messages import (
    HEARTBEAT_TIMEOUT_S,
    MAX_PAYLOAD_NBYTES,
    PROTOCOL,
    AskStage,
    Hello,
    Probe,
    Probed,
    Refused,
    StageEnded,
    StageForgot,
    StageOpened,
    StageReady,
    StageSaid,
    StageTold,
    StartStage,
    StillThere,
    StopStage,
    TensorPart,
    Welcome,
)
from hermes_mp.core.bundle import Arrival, Placed, place
from hermes_mp.errors import (
    BadMessage,
    BoardLost,
    HermesError,
    MachineError,
    PeerError,
    ProtocolsDiffer,
    RequestAgain,
    UserError,
    by_exit_code,
    revived,
)
from hermes_mp.host.keys import KeyPair
from hermes_mp.host.lan import LanLink
from hermes_mp.messages import (
    AssignLayers,
    LayerRange,
    LayersFailed,
    LayersRun,
    RunLayers,
)

SILENCE_S = HEARTBEAT_TIMEOUT_S + 0.5  # of a board that was asked for something, until it counts as lost
LOOK_S = 0.25  # how often the others are looked at meanwhile
START_S = 120.0  # a small board imports slowly; it says once a second that it is at it
REJOIN_S = 1.0  # to find out whether a lost board is there again
LEFT_ALONE = 5.0  # times as long as one has let us wait, until it is tried again
MOST_AT_ONCE = 64  # messages of a board that nothing was asked
PROBES, PROBE_NBYTES = 5, 1 << 20


@dataclass(frozen=True)
class BoardEntry:
    """How a board is reached; `key` is its public one, "" on plaintext loopback."""

    name: str
    address: str
    key: str


@dataclass
class Linked:
    """One board: `link` is None while it is lost, and `why` says why."""

    entry: BoardEntry
    link: LanLink | None = None
    why: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    opened: dict[str, Any] = field(default_factory=dict)  # what planning needs of it; empty until its stage has opened
    stage: dict[str, Any] = field(default_factory=dict)  # what it last said of its stage
    is_welcome: bool = False
    refuses: bool = False  # what is asked of it, as long as it is set up as it is
    again_s: float = 0.0  # while it is lost: not to be tried before
    ready: int = 0  # the epoch that its stage is ready for
    heard_s: float = 0.0
    waits_for: str = ""
    hops: int = 0
    took_ns: int = 0
    stalled_ns: int = 0
    began_ns: int = 0
    asked: RunLayers | None = None  # and not finished
    answer: LayersRun | LayersFailed | None = None
    away_ns: int = 0  # from asking to the answer: also the way there and back


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


class Boards:
    """`say` takes what is under way (often), `note` what is worth a line."""

    def __init__(
        self,
        entries: Iterable[BoardEntry],
        keys: KeyPair | None,
        hello: tuple[str, str, str, str],
        say: Callable[[str], None],
        note: Callable[[str], None],
        death_fd: int,
    ) -> None:
        """`hello`: our software's version and name, the model's name and fingerprint."""
        self.linked = {one.name: Linked(one) for one in entries}
        self._keys, self._hello, self._say, self._note, self._death_fd = keys, hello, say, note, death_fd
        self._looked_s = 0.0
        self._settings = ""

    @property
    def there(self) -> list[str]:
        """The names of those that are not lost."""
        return [name for name, one in self.linked.items() if one.link is not None]

    def close(self) -> None:
        for one in self.linked.values():
            if one.link is not None:
                one.link.close(last_words=True)
                one.link = None

    # --- coming and going

    def greet(self, name: str, deadline_s: float = 5.0) -> None:
        """Connect and say Hello. Raises LostBoard, and what cannot be mended by waiting as what it is."""
        one = self.linked[name]
        entry = one.entry
        keys = self._keys if entry.key else None
        try:
            one.link = LanLink(name, entry.address, keys, entry.key or None, deadline_s, self._death_fd)
            one.heard_s = time.monotonic()
            software, head, model, fingerprint = self._hello
            one.link.send(Hello(PROTOCOL, software, head, model, fingerprint))
            welcome = self._await(one, (Welcome, Refused), deadline_s)
        except BoardLost as error:
            raise self._lose(one, str(error)) from error
        except HermesError:
            self._drop(one)
            raise
        if isinstance(welcome, Refused):
            self._drop(one)
            raise revived(welcome.exit_code, f"board {name}: {welcome.text}")
        if welcome.protocol != PROTOCOL:
            self._drop(one)
            raise ProtocolsDiffer(
                f"board {name} speaks version {welcome.protocol} of our protocol (hermes-mp {welcome.software}), "
                f"this one {PROTOCOL} (hermes-mp {software})"
            )
        try:
            one.facts, one.fingerprint, one.why = _object(welcome.facts, name), welcome.fingerprint, ""
        except BadMessage as error:
            raise self._lose(one, str(error)) from error
        one.is_welcome = True

    def come_back(self) -> list[str]:
        """Greet those that were lost and may be there again; who is. One that stays away costs a share of the time."""
        back = []
        for name, one in self.linked.items():
            began_s = time.monotonic()
            if one.link is not None or one.refuses or began_s < one.again_s:
                continue
            try:
                self.greet(name, REJOIN_S)
                back.append(name)
            except HermesError:
                now_s = time.monotonic()
                one.again_s = now_s + LEFT_ALONE * (now_s - began_s)
        return back

    def measure(self, name: str) -> tuple[float, float]:
        """Bytes per second of the link, and its round trip in seconds. Raises LostBoard."""
        one = self.linked[name]
        trips, rates = [], []
        for number in range(2 * PROBES):
            large = number >= PROBES
            began = time.monotonic()
            self._send(one, Probe(number, PROBE_NBYTES if large else 0, 0), b"")
            while True:
                probed = self._await(one, (Probed,), HEARTBEAT_TIMEOUT_S)
                if probed.number == number:
                    break
            took = time.monotonic() - began
            trips.append(took) if not large else rates.append(took)
        trip = statistics.median(trips)
        return PROBE_NBYTES / max(1e-6, statistics.median(rates) - trip), trip

    def start(self, names: Iterable[str], settings: dict[str, Any], epoch: int) -> None:
        """Have them start a stage; `assign` says of what. Raises LostBoard."""
        self._settings = json.dumps(settings)
        for name in names:
            self.linked[name].opened = {}
            self._send(self.linked[name], StartStage(epoch, self._settings))

    def await_opened(self) -> None:
        """Until the stages of all that are there have said what planning needs. Raises LostBoard."""
        self._await_stages(self.there, lambda one: bool(one.opened))

    def ask(self, name: str, epoch: int) -> dict[str, Any]:
        """What the board's stage has taken so far. Raises LostBoard."""
        one = self.linked[name]
        if one.asked is not None:  # its answer comes first, and is not to be lost
            return one.stage
        self._send(one, AskStage(epoch))
        self._await(one, (StageTold,), HEARTBEAT_TIMEOUT_S)
        return one.stage

    def assign(
        self, epoch: int, stretches: dict[str, tuple[LayerRange, ...]], windows: Mapping[str, int] | None = None
    ) -> None:
        """What every board runs from now on, with these windows. Raises LostBoard."""
        for one in self.linked.values():
            one.asked = one.answer = None
        for name, own in stretches.items():
            self._send(self.linked[name], AssignLayers(epoch, own, (windows or {}).get(name, 0)))

    def await_ready(self, epoch: int, names: Iterable[str]) -> None:
        """Until the stages of all of them can run what `epoch` has assigned. Raises LostBoard."""
        self._await_stages(names, lambda one: one.ready == epoch)

    def _await_stages(self, names: Iterable[str], is_so: Callable[[Linked], bool]) -> None:
        until_s = time.monotonic() + START_S
        for name in names:
            one = self.linked[name]
            while not is_so(one):
                self._say(f"waiting for board {name}: {one.waits_for or 'its stage'}")
                self._hear(one, LOOK_S)
                self._hear_others(one)
                if time.monotonic() > until_s:
                    raise self._lose(one, f"board {name} has not begun within {START_S:g} s")

    def lose(self, name: str, why: str) -> LostBoard:
        """Go on without this board: what it says is of no use."""
        return self._lose(self.linked[name], why)

    def look(self) -> None:
        """Now and then: raises LostBoard where one that is not asked for anything has gone."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        for one in self.linked.values():
            self._hear_all(one)

    # --- layers

    def begin(self, name: str, ask: RunLayers, bundle: Sequence[memoryview]) -> None:
        """Ask the board to run a stretch; `finish` it once it `has_answered`. Raises LostBoard."""
        one = self.linked[name]
        one.began_ns, one.asked, one.answer = time.monotonic_ns(), ask, None
        self._send(one, ask)
        placed = place(ask.bundle)
        for where, bytes_ in zip(placed, bundle, strict=True):
            for first in range(0, where.nbytes, MAX_PAYLOAD_NBYTES):
                part = bytes_[first : first + MAX_PAYLOAD_NBYTES]
                self._send(one, TensorPart(where.at + first, len(part)), part)
        one.heard_s = time.monotonic()

    def has_answered(self, name: str, timeout_s: float) -> bool:
        """Whether what was asked last is answered; waits for so long. Raises LostBoard, StageForgotten."""
        one = self.linked[name]
        while one.answer is None:
            if self._hear(one, timeout_s) is None:
                silent_s = time.monotonic() - one.heard_s
                if silent_s > SILENCE_S:
                    raise self._lose(one, f"board {name} has not answered for {silent_s:.1f} s")
                if timeout_s and time.monotonic() - self._looked_s >= LOOK_S:
                    self._say(f"waiting for board {name}: {one.waits_for or 'its answer'}")
                    self.look()
                return False
        return True

    def finish(self, name: str, room: Callable[[Sequence[Placed]], memoryview]) -> LayersRun:
        """What has answered gives its states; `room` gives memory for them, as they are placed.

        Raises LostBoard, StageForgotten, or what the board says is wrong with what was asked.
        """
        one = self.linked[name]
        answer, ask, one.answer, one.asked = one.answer, one.asked, None, None
        assert answer is not None
        assert ask is not None
        if isinstance(answer, LayersFailed):
            kind = by_exit_code().get(answer.exit_code, PeerError)
            text = f"board {name}: {answer.text}"
            if issubclass(kind, MachineError | PeerError):
                raise self._lose(one, text)
            raise revived(answer.exit_code, text)
        if answer.states != tuple(part.states for part in ask.parts):  # layers of a chain give what they are given
            told = ", ".join(f"{given.shape} of {given.dtype[:20]}" for given in answer.states[:2])
            raise self._lose(one, f"board {name} answers with {told}")
        given = place(answer.states)
        into = room(given)
        arrival = Arrival(given, MAX_PAYLOAD_NBYTES)
        while not arrival.complete:
            part_found: TensorPart = self._await(one, (TensorPart,), None)
            try:
                arrival.take(part_found.offset, part_found.nbytes)
                assert one.link is not None
                one.link.payload_into(into[part_found.offset : part_found.offset + part_found.nbytes])
            except BadMessage as error:
                raise self._lose(one, f"board {name}: {error}") from error
        one.hops += 1
        one.took_ns += answer.took_ns
        one.stalled_ns += answer.stalled_ns
        one.away_ns += time.monotonic_ns() - one.began_ns
        return answer

    def stop(self, epoch: int, deadline_s: float) -> None:
        """Have all stages end, and hear what they took."""
        waiting = []
        for one in self.linked.values():
            if one.link is not None:
                try:
                    self._send(one, StopStage(epoch))
                    waiting.append(one)
                except HermesError:
                    continue
        until_s = time.monotonic() + deadline_s
        for one in waiting:
            try:
                self._await(one, (StageEnded,), max(0.0, until_s - time.monotonic()))
            except HermesError:
                continue

    # ---

    def _send(self, one: Linked, message: object, payload: bytes | memoryview | None = None) -> None:
        if one.link is None:
            raise LostBoard(one.entry.name, f"board {one.entry.name} was lost: {one.why}")
        try:
            one.link.send(message, payload)
        except BoardLost as error:
            raise self._lose(one, str(error)) from error

    def _await(
        self,
        one: Linked,
        kinds: tuple[type[Any], ...],
        deadline_s: float | None,
        good: Callable[[Any], bool] = lambda message: True,
    ) -> Any:
        """The next message of these kinds; everything else is noted. Raises LostBoard where nothing comes at all."""
        until_s = None if deadline_s is None else time.monotonic() + deadline_s
        while True:
            message = self._hear(one, LOOK_S)
            now_s = time.monotonic()
            if message is not None and isinstance(message, kinds) and good(message):
                return message
            if now_s - one.heard_s > SILENCE_S or (until_s is not None and now_s > until_s):
                raise self._lose(one, f"board {one.entry.name} has not answered for {now_s - one.heard_s:.1f} s")
            if message is None:
                self._say(f"waiting for board {one.entry.name}: {one.waits_for or 'its answer'}")
                self._hear_others(one)

    def _hear_others(self, one: Linked) -> None:
        """A link whose queue is full is taken for dead by both ends."""
        for other in self.linked.values():
            if other is not one:
                self._hear_all(other)

    def _hear_all(self, one: Linked) -> None:
        """What has come, but not for ever."""
        for _ in range(MOST_AT_ONCE):
            if one.link is None or one.answer is not None or self._hear(one, 0.0) is None:
                return  # behind an answer come its states

    def _hear(self, one: Linked, timeout_s: float) -> Any:
        """The next message, noted; None where none comes in time. Raises LostBoard, StageForgotten."""
        name = one.entry.name
        if one.link is None:
            raise LostBoard(name, f"board {name} was lost: {one.why}")
        try:
            message = one.link.receive(timeout_s)
        except BoardLost as error:
            raise self._lose(one, str(error)) from error
        except BadMessage as error:
            raise self._lose(one, f"board {name}: {error}") from error
        if message is None:
            return None
        one.heard_s = time.monotonic()
        try:
            self._note_of(one, message)
        except BadMessage as error:
            raise self._lose(one, str(error)) from error
        return message

    def _note_of(self, one: Linked, message: Any) -> None:
        name = one.entry.name
        if isinstance(message, LayersRun | LayersFailed):
            if one.asked is not None and _answers(message, one.asked):
                one.answer = message
        elif isinstance(message, StillThere):
            one.waits_for = message.waits_for[:40]
        elif isinstance(message, StageSaid):
            if message.note:
                self._note(f"board {name}: {message.text}")
            else:
                one.waits_for = message.text[:80]
        elif isinstance(message, StageOpened):
            one.opened = _object(message.facts, name)
        elif isinstance(message, StageTold):
            one.stage = _object(message.facts, name)
        elif isinstance(message, StageReady):
            one.ready, one.stage, one.waits_for = message.epoch, _object(message.facts, name), ""
        elif isinstance(message, StageForgot):
            one.ready = 0
            raise StageForgotten(name, message.text)
        elif isinstance(message, StageEnded):
            one.stage, one.ready = _object(message.facts, name), 0
            if message.exit_code:
                kind = by_exit_code().get(message.exit_code, PeerError)
                one.refuses = issubclass(kind, UserError)  # such as too small a budget: it would be so again
                raise self._lose(one, f"board {name}: {message.text}")
        elif isinstance(message, Refused) and one.is_welcome:
            one.refuses = issubclass(by_exit_code().get(message.exit_code, PeerError), UserError)
            raise self._lose(one, f"board {name}: {message.text}")

    def _lose(self, one: Linked, why: str) -> LostBoard:
        one.why = why
        self._drop(one)
        return LostBoard(one.entry.name, why)

    def _drop(self, one: Linked) -> None:
        one.ready, one.is_welcome = 0, False
        if one.link is not None:
            one.link.close()
            one.link = None


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
