"""A head's links to the other boards of a run: greets them, measures their links, starts stages, has layers run.

Every wait looks after all of them, has a deadline, and tells the daemon that something is under way. It knows no tensor
and no plan: bytes and messages only.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hermes_mp.agents.board_link import BoardEntry, BoardLink, LostBoard
from hermes_mp.agents.greeting import Greeting
from hermes_mp.board_messages import (
    HEARTBEAT_TIMEOUT_S,
    AskStage,
    Probe,
    Probed,
    Refused,
    StageEnded,
    StageTold,
    StartStage,
    StopStage,
    TensorPart,
    Welcome,
)
from hermes_mp.core.bundle import Placed
from hermes_mp.errors import HermesError
from hermes_mp.host.keys import KeyPair
from hermes_mp.messages import AssignLayers, LayerRange, LayersRun, RunLayers

SILENCE_S = HEARTBEAT_TIMEOUT_S + 0.5  # of a board that was asked for something, until it counts as lost
LOOK_S = 0.25  # how often the others are looked at meanwhile
START_S = 120.0  # a small board imports slowly; it says once a second that it is at it
REJOIN_S = 1.0  # to find out whether a lost board is there again
LEFT_ALONE = 5.0  # times as long as one has let us wait, until it is tried again
MOST_AT_ONCE = 64  # messages of a board that nothing was asked
PROBES, PROBE_NBYTES = 5, 1 << 20


class Boards:
    """`say` takes what is under way (often), `note` what is worth a line."""

    def __init__(
        self,
        entries: Iterable[BoardEntry],
        keys: KeyPair | None,
        greeting: Greeting,
        say: Callable[[str], None],
        note: Callable[[str], None],
        death_fd: int,
    ) -> None:
        self.linked = {one.name: BoardLink(one, note) for one in entries}
        self._keys, self._greeting, self._say, self._death_fd = keys, greeting, say, death_fd
        self._looked_s = 0.0

    @property
    def there(self) -> list[str]:
        """The names of those that are not lost."""
        return [name for name, one in self.linked.items() if one.is_there]

    def close(self) -> None:
        for one in self.linked.values():
            one.drop(last_words=True)

    # --- coming and going

    def greet(self, name: str, deadline_s: float = 5.0) -> None:
        """Connect and say Hello. Raises LostBoard, and what cannot be mended by waiting as what it is."""
        one = self.linked[name]
        try:
            one.greet(self._greeting, self._keys, deadline_s, self._death_fd)
            answer = self._await(one, (Welcome, Refused), deadline_s)
        except HermesError:  # perhaps of another board
            one.drop()
            raise
        one.welcomed(self._greeting, answer)

    def come_back(self) -> list[str]:
        """Greet those that were lost and may be there again; who is. One that stays away costs a share of the time."""
        back = []
        for name, one in self.linked.items():
            began_s = time.monotonic()
            if one.is_there or one.refuses or one.lends or began_s < one.again_s:
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
            one.send(Probe(number, PROBE_NBYTES if large else 0, 0), b"")
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
        for name in names:
            one = self.linked[name]
            one.opened = {}
            one.send(StartStage(epoch, json.dumps(settings)))

    def let_lend(self, name: str, epoch: int) -> None:
        """Have its stage end, and with it all that it takes of that board's memory; then it is none of ours any more.

        Raises LostBoard, perhaps of another one.
        """
        one = self.linked[name]
        one.lends = True
        try:
            one.send(StopStage(epoch))
            self._await(one, (StageEnded,), START_S)
        except LostBoard as error:
            one.lends = error.board != name  # else it may come back, and lend then
            raise
        finally:
            one.drop()

    def await_opened(self) -> None:
        """Until the stages of all that are there have said what planning needs. Raises LostBoard."""
        self._await_stages(self.there, lambda one: bool(one.opened))

    def ask(self, name: str, epoch: int) -> dict[str, Any]:
        """What the board's stage has taken so far. Raises LostBoard."""
        one = self.linked[name]
        if one.asked is not None:  # its answer comes first, and is not to be lost
            return one.stage
        one.send(AskStage(epoch))
        self._await(one, (StageTold,), HEARTBEAT_TIMEOUT_S)
        return one.stage

    def assign(
        self, epoch: int, stretches: dict[str, tuple[LayerRange, ...]], windows: Mapping[str, int] | None = None
    ) -> None:
        """What every board runs from now on, with these windows. Raises LostBoard."""
        for one in self.linked.values():
            one.asked = one.answer = None
        for name, own in stretches.items():
            self.linked[name].send(AssignLayers(epoch, own, (windows or {}).get(name, 0)))

    def await_ready(self, epoch: int, names: Iterable[str]) -> None:
        """Until the stages of all of them can run what `epoch` has assigned. Raises LostBoard."""
        self._await_stages(names, lambda one: one.ready == epoch)

    def _await_stages(self, names: Iterable[str], is_so: Callable[[BoardLink], bool]) -> None:
        until_s = time.monotonic() + START_S
        for name in names:
            one = self.linked[name]
            while not is_so(one):
                self._say(f"waiting for board {name}: {one.waits_for or 'its stage'}")
                one.hear(LOOK_S)
                self._hear_others(one)
                if time.monotonic() > until_s:
                    raise one.lose(f"board {name} has not begun within {START_S:g} s")

    def lose(self, name: str, why: str) -> LostBoard:
        """Go on without this board: what it says is of no use."""
        return self.linked[name].lose(why)

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
        self.linked[name].begin(ask, bundle)

    def has_answered(self, name: str, timeout_s: float) -> bool:
        """Whether what was asked last is answered; waits for so long. Raises LostBoard, StageForgotten."""
        one = self.linked[name]
        while one.answer is None:
            if one.hear(timeout_s) is None:
                silent_s = time.monotonic() - one.heard_s
                if silent_s > SILENCE_S:
                    raise one.lose(f"board {name} has not answered for {silent_s:.1f} s")
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
        return one.finish(room, lambda: self._await(one, (TensorPart,), None))

    def stop(self, epoch: int, deadline_s: float) -> None:
        """Have all stages end, and hear what they took."""
        waiting = []
        for one in self.linked.values():
            with contextlib.suppress(HermesError):
                one.send(StopStage(epoch))
                waiting.append(one)
        until_s = time.monotonic() + deadline_s
        for one in waiting:
            with contextlib.suppress(HermesError):
                self._await(one, (StageEnded,), max(0.0, until_s - time.monotonic()))

    # ---

    def _await(self, one: BoardLink, kinds: tuple[type[Any], ...], deadline_s: float | None) -> Any:
        """The next message of these kinds; everything else is noted. Raises LostBoard where nothing comes at all."""
        until_s = None if deadline_s is None else time.monotonic() + deadline_s
        while True:
            message = one.hear(LOOK_S)
            now_s = time.monotonic()
            if isinstance(message, kinds):
                return message
            if now_s - one.heard_s > SILENCE_S or (until_s is not None and now_s > until_s):
                raise one.lose(f"board {one.name} has not answered for {now_s - one.heard_s:.1f} s")
            if message is None:
                self._say(f"waiting for board {one.name}: {one.waits_for or 'its answer'}")
                self._hear_others(one)

    def _hear_others(self, one: BoardLink) -> None:
        """A link whose queue is full is taken for dead by both ends."""
        for other in self.linked.values():
            if other is not one:
                self._hear_all(other)

    def _hear_all(self, one: BoardLink) -> None:
        """What has come, but not for ever."""
        for _ in range(MOST_AT_ONCE):
            if not one.is_there or one.answer is not None or one.hear(0.0) is None:
                return  # behind an answer come its states
