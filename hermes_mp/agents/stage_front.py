"""A board's daemon between the head and its own compute: who asks for layers, and what becomes of it.

Bundles are received into memory that compute shares, and sent from it; what is said about them goes as messages. It
knows no torch. While something is asked, the head hears once a second that this loop runs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hermes_mp.agents.front import SilentFront
from hermes_mp.agents.lending import Lending
from hermes_mp.agents.stage_costs import keep_disk_rate, stage_told
from hermes_mp.board_messages import (
    HEARTBEAT_S,
    MAX_PAYLOAD_NBYTES,
    AskStage,
    StageEnded,
    StageForgot,
    StageOpened,
    StageReady,
    StageSaid,
    StageTold,
    StillThere,
    StopStage,
    TensorPart,
)
from hermes_mp.core.bundle import Arrival, aligned, parts, place
from hermes_mp.core.busy import Reading
from hermes_mp.core.unitlist import UnitList
from hermes_mp.errors import BadMessage, CallTooLarge, HermesError, OutOfMemory
from hermes_mp.host.arena import Arena
from hermes_mp.host.lan import LanHub, Left, Visitor
from hermes_mp.host.wire import Key
from hermes_mp.messages import (
    MAX_IN_FLIGHT,
    AssignLayers,
    FromCompute,
    LayersFailed,
    LayersRun,
    Progress,
    RunLayers,
    StageMeasured,
    UnitDone,
    UnitLoaded,
    UnitNo,
    clip,
)

if TYPE_CHECKING:
    from hermes_mp.agents.daemon import Daemon

KEPT_NBYTES = 4 << 20  # of the exchange between two passes: what decoding needs
MOST_AT_ONCE = 64  # messages, before the loop turns
MOST_WAITING = 8192  # messages to a head: more than the parts of any bundle
HURRY_S = 0.002  # until a full queue is tried again


class StageFront(SilentFront):
    """`other` takes what the head or anybody else says that is no business of the stage; `log` a line of ours.

    `alive` is called in every turn of the daemon's loop.
    """

    def __init__(
        self,
        lan: LanHub,
        head: Visitor,
        exchange: Arena,
        other: Callable[[Visitor, Any], None],
        log: Callable[[str], None],
        lending: Lending,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.daemon: Daemon | None = None
        self.head_left = False
        self.peak_nbytes = 0
        self._lan, self._head, self._exchange, self._other, self._log = lan, head, exchange, other, log
        self._lending, self._alive = lending, alive
        self._assigned: AssignLayers | None = None
        self._asked: RunLayers | None = None  # its bundle is on its way, or compute is at it
        self._arrival: Arrival | None = None
        self._end = 0  # of the bundle that came
        self._taken = 0  # bytes of the exchange that have memory
        self._ready = False
        self._outbox: deque[tuple[object, memoryview | None]] = deque()
        self._beat_s = 0.0
        self._reading = Reading()

    @property
    def busy(self) -> bool:
        return self._is_running or self._is_dividing

    @property
    def _is_running(self) -> bool:
        return self._asked is not None and (self._arrival is None or self._arrival.complete)

    @property
    def _is_dividing(self) -> bool:
        """Compute was told its layers, and has not described them."""
        return self._assigned is not None and not self._ready

    @property
    def hurry_s(self) -> float | None:
        return HURRY_S if self._outbox else self._lending.hurry_s

    # --- from the head

    def readable(self, key: Key) -> None:
        if key is self._lan or not self._lending.readable(key):
            self.hear()

    def hear(self) -> None:
        """Handle what has come over the network."""
        for _ in range(MOST_AT_ONCE):  # the loop has other things to do, whoever talks
            try:
                received = self._lan.receive()
            except BadMessage as error:
                self._distrust(error)
                continue
            if received is None:
                return
            visitor, message = received
            if visitor != self._head:
                self._other(visitor, message)
                continue
            try:
                self._from_head(message)
            except BadMessage as error:
                error.peer = visitor
                self._distrust(error)

    def _distrust(self, error: BadMessage) -> None:
        self._log(str(error))
        if isinstance(error.peer, Visitor):
            self._lan.dismiss(error.peer)

    def _from_head(self, message: Any) -> None:
        assert self.daemon is not None
        if isinstance(message, Left):
            self.head_left = True
            self.daemon.end()
        elif isinstance(message, StopStage):
            self.daemon.end()
        elif isinstance(message, AskStage):
            self.daemon.sample(exactly=True)
            self._say(StageTold(message.epoch, self.facts()))
        elif isinstance(message, AssignLayers):
            self._assigned, self._asked, self._arrival, self._ready = message, None, None, False
            self.daemon.compute.send(message)
        elif isinstance(message, RunLayers):
            self._expect(message)
        elif isinstance(message, TensorPart):
            self._take(message)
        else:
            self._other(self._head, message)

    def _expect(self, ask: RunLayers) -> None:
        if self._assigned is None or ask.epoch != self._assigned.epoch:
            self._arrival = None  # its parts are dropped as they come
            return
        if self._is_running:
            raise BadMessage("layers were asked for while others are being run")
        if not 1 <= len(ask.parts) <= MAX_IN_FLIGHT:
            raise BadMessage(f"layers were asked for by {len(ask.parts)} requests")
        placed = place(ask.bundle)
        self._asked, self._arrival = ask, Arrival(placed, MAX_PAYLOAD_NBYTES)
        self._end = aligned(placed[-1].end)
        need = 2 * self._end  # what comes out is as large as what goes in, mostly
        assert self.daemon is not None
        room = self.daemon.slots.reserve_nbytes
        if self.daemon.settings.memory is not None and need > max(room, KEPT_NBYTES):
            self._asked = self._arrival = None
            text = f"hidden states and masks of {need >> 20} MiB, where {room >> 20} MiB are reserved"
            self._say(LayersFailed(ask.epoch, ask.number, ask.index, CallTooLarge.exit_code, text))
            return
        try:
            if need > self._taken:
                self._exchange.allocate(self._taken, aligned_page(need - self._taken))
                self._taken += aligned_page(need - self._taken)
        except OutOfMemory as error:
            self._asked = self._arrival = None
            self._say(LayersFailed(ask.epoch, ask.number, ask.index, error.exit_code, clip(error.line())))
            return
        self._hand_over()

    def _take(self, part: TensorPart) -> None:
        if self._arrival is None:
            return
        self._arrival.take(part.offset, part.nbytes)
        self._lan.payload_into(self._exchange.view(part.offset, part.nbytes))
        self._hand_over()

    def _hand_over(self) -> None:
        assert self.daemon is not None
        if self._arrival is not None and self._arrival.complete:
            self.daemon.compute.send(self._asked)

    # --- to the head

    def told(self, message: FromCompute) -> None:
        if isinstance(message, LayersRun | LayersFailed):
            asked = self._asked
            if asked is None or (asked.epoch, asked.number, asked.index) != (
                message.epoch, message.number, message.index
            ):  # fmt: skip
                return
            self._asked = self._arrival = None
            self._say(message)
            if isinstance(message, LayersRun):
                placed = place(message.states, self._end)
                for number, first, nbytes in parts(placed, MAX_PAYLOAD_NBYTES):
                    at = placed[number].at + first
                    self._say(TensorPart(at - self._end, nbytes), self._exchange.view(at, nbytes))
                if asked.last:
                    self._shrink()
        elif isinstance(message, StageMeasured):
            assert self.daemon is not None
            self._say(StageOpened(self._epoch, stage_told(self.daemon, message)))
        elif isinstance(message, Progress):
            self._say(StageSaid(self._epoch, False, clip(message.text, 200)))

    def _shrink(self) -> None:
        """A prompt takes far more than a token; what compute has read of it is copied."""
        if self._taken > KEPT_NBYTES and not self._outbox:
            self._exchange.free(KEPT_NBYTES, self._taken - KEPT_NBYTES)
            self._taken = KEPT_NBYTES

    def ready(self, units: UnitList) -> None:
        assert self.daemon is not None
        self._ready = True
        self._say(StageReady(self._epoch, self.facts()))

    def compute_restarted(self) -> None:
        assert self.daemon is not None
        self._ready, self._asked, self._arrival = False, None, None
        self._say(StageForgot(self._epoch, "its compute process died and was started again"))
        if self._assigned is not None:
            self.daemon.compute.send(self._assigned)

    def say(self, text: str) -> None:
        self._log(text)
        self._say(StageSaid(self._epoch, True, clip(text, 1000)))

    def sampled(self, by_process: dict[str, int], arena_nbytes: int, exact: bool) -> None:
        self.peak_nbytes = max(self.peak_nbytes, sum(by_process.values()) + arena_nbytes + self._taken)

    def loaded(self, message: UnitLoaded, unit: UnitNo) -> None:
        self._reading.add(message.nbytes, message.started_ns, message.ended_ns)

    def done(self, message: UnitDone, unit: UnitNo, loaded_by: Any) -> None:
        assert self.daemon is not None
        self.daemon.compute.came_further()

    def facts(self) -> str:
        """What the stage has, and has taken, as JSON."""
        import json

        assert self.daemon is not None
        daemon, mind = self.daemon, self.daemon.mind
        return json.dumps({
            "loaders": daemon.plan.loaders,
            "slots": daemon.slots.planned,
            "slot_nbytes": daemon.slots.slot_nbytes,
            "residents": 0 if mind is None else len(mind.residents),
            "units": len(daemon.units.units),
            "units_nbytes": sum(unit.nbytes for unit in daemon.units.units),
            "budget_nbytes": daemon.slots.budget_nbytes,
            "peak_nbytes": self.peak_nbytes,
            "bytes_read": 0 if mind is None else mind.bytes_read,
        })  # fmt: skip

    def ended(self, error: HermesError | None) -> StageEnded:
        """The last word."""
        if self.daemon is not None:
            keep_disk_rate(self.daemon.settings.checkpoint, self._reading, self.daemon.plan.loaders)
        code, text = (0, "") if error is None else (error.exit_code, clip(str(error)))
        return StageEnded(self._epoch, code, text, self.facts())

    def tick(self) -> None:
        self._alive()
        self._lending.turn()
        self.hear()
        now_s = time.monotonic()
        # Before there are layers nobody waits by the second: a head that builds its own model meanwhile reads nothing,
        # and of one whose queue is full both sides think that it is dead (board1 of two was, after 10 s).
        if self.busy and now_s >= self._beat_s:
            self._beat_s = now_s + HEARTBEAT_S
            self._say(StillThere(self._waits_for()))
        self._flush()

    def _waits_for(self) -> str:
        assert self.daemon is not None
        if not self._ready:
            return "its start"
        return "its disk" if self.daemon.mind is not None and self.daemon.mind.wanted else "its processor"

    @property
    def _epoch(self) -> int:
        return 0 if self._assigned is None else self._assigned.epoch

    def _say(self, message: object, payload: memoryview | None = None) -> None:
        """In order, as soon as the network takes it; a head that takes nothing of so much is shown out."""
        if len(self._outbox) > MOST_WAITING:
            self._outbox.clear()
            self._lan.dismiss(self._head)
        self._outbox.append((message, payload))
        self._flush()

    def _flush(self) -> None:
        while self._outbox and self._lan.send(self._head, *self._outbox[0]):
            self._outbox.popleft()


def aligned_page(nbytes: int) -> int:
    """The next multiple of 64 KiB: whole pages on every machine."""
    return -(-nbytes // (64 << 10)) * (64 << 10)
