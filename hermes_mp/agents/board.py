"""A board that works for heads: one door in the network, and behind it at most one stage at a time.

It greets and measures whoever is paired, pairs bearers of tokens, and becomes the daemon of a stage when a head asks
for one; when that head leaves, all is as before. It never imports torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hermes_mp.agents.daemon import Daemon
from hermes_mp.agents.gatekeeper import Gatekeeper
from hermes_mp.agents.lending import LEND_NBYTES, Lending
from hermes_mp.agents.quarters import Quarters, make_arena
from hermes_mp.agents.settings import DaemonSettings
from hermes_mp.agents.stage_costs import disk_rate
from hermes_mp.agents.stage_front import StageFront
from hermes_mp.board_messages import (
    MAX_PAYLOAD_NBYTES,
    PROTOCOL,
    AskFile,
    AskStage,
    GrantCredit,
    Hello,
    LendUnit,
    PairHead,
    Probe,
    Probed,
    Refused,
    StartStage,
    StopStage,
    TensorPart,
    Welcome,
)
from hermes_mp.config import VERIFY
from hermes_mp.core.budget import LOADER_NBYTES
from hermes_mp.errors import (
    BadMessage,
    HermesError,
    ModelNotFound,
    ModelsDiffer,
    NotAllowed,
    ProtocolsDiffer,
    refused,
)
from hermes_mp.host import profilecache
from hermes_mp.host.arena import Arena
from hermes_mp.host.cachedir import versions
from hermes_mp.host.checkpoint import CONFIG, Checkpoint, find_checkpoint
from hermes_mp.host.fingerprint import fingerprint
from hermes_mp.host.lan import LanHub, Left, Visitor
from hermes_mp.host.wire import Poller
from hermes_mp.messages import MAX_IN_FLIGHT, AssignLayers, RunLayers, clip

IDLE_S = 0.4  # the hub wants to be asked twice a second
OF_A_STAGE = (AssignLayers, RunLayers, TensorPart, AskStage, StopStage)


@dataclass(frozen=True)
class BoardSettings:
    """`models`: a directory with a model, or of such directories. `memory`: bytes, "auto" or None."""

    name: str
    software: str
    models: Path | None
    memory: int | str | None
    loaders: int | None
    threads: int | None


@dataclass(frozen=True)
class _Greeted:
    """A head that has said Hello; `checkpoint` is our copy of its model, None where we have none."""

    checkpoint: Checkpoint | None


class Board:
    """`say` takes a line of ours, `alive` is called in every turn of the loop that runs at the time.

    Call `serve` once; `end` from a signal handler.
    """

    def __init__(
        self,
        settings: BoardSettings,
        lan: LanHub,
        keeper: Gatekeeper | None,
        say: Callable[[str], None],
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """`keeper` is None where there are no keys."""
        self._settings, self._lan, self._keeper, self._say, self._alive = settings, lan, keeper, say, alive
        self._greeted: dict[Visitor, _Greeted] = {}
        self._known: dict[Path, tuple[str, Checkpoint]] = {}
        self._next: tuple[Visitor, StartStage] | None = None
        self._daemon: Daemon | None = None
        self._working_for: Visitor | None = None
        self._over = False
        self._poller = Poller()
        self._poller.watch(lan)
        self._lending = Lending(
            lan, self._checkpoint_of, settings.loaders or 1, LEND_NBYTES, self._poller, self._say
        )
        self._lends_beside = False  # beside the stage that runs

    def end(self) -> None:
        """Leave, with the stage that is there."""
        self._over = True
        if self._daemon is not None:
            self._daemon.end()

    def serve(self) -> None:
        """Until `end`."""
        with closing(self._lending):
            self._serve()

    def _serve(self) -> None:
        while not self._over:
            for key in self._poller.wait(self._lending.hurry_s or IDLE_S):
                if key is not self._lan:
                    self._lending.readable(key)
            self._alive()
            self._hear()
            self._lending.turn()
            if self._next is not None and not self._over:
                visitor, start = self._next
                self._next = None
                self._run_stage(visitor, start)

    def _hear(self) -> None:
        while not self._over and self._next is None:
            try:
                received = self._lan.receive()
            except BadMessage as error:
                self._say(str(error))
                if isinstance(error.peer, Visitor):
                    self._lan.dismiss(error.peer)
                continue
            if received is None:
                return
            self._handle(*received)

    # --- whoever comes

    def _handle(self, visitor: Visitor, message: Any) -> None:
        """What is no business of a stage that runs."""
        try:
            self._answer(visitor, message)
        except (HermesError, OSError) as reason:
            error = refused(reason) if isinstance(reason, OSError) else reason
            self._lan.send(visitor, Refused(error.exit_code, clip(str(error))))

    def _answer(self, visitor: Visitor, message: Any) -> None:
        if isinstance(message, Left):
            self._lending.left(visitor)
            self._greeted.pop(visitor, None)
            return
        if self._keeper is not None and not self._keeper.may(visitor.name, message):
            raise NotAllowed(f"{self._settings.name} does not take {type(message).__name__} of a visitor like this")
        if isinstance(message, PairHead):
            if self._keeper is None:
                raise NotAllowed(f"{self._settings.name} has no keys")
            answer = self._keeper.pair(visitor.name, message)
            self._lan.send(visitor, answer)
            self._say(f"paired with head {message.name}" if not isinstance(answer, Refused) else answer.text)
        elif isinstance(message, Hello):
            self._greet(visitor, message)
        elif visitor not in self._greeted:
            raise BadMessage(f"{type(message).__name__} came before Hello")
        elif isinstance(message, Probe):
            nbytes = min(message.answer_nbytes, MAX_PAYLOAD_NBYTES)
            self._lan.send(visitor, Probed(message.number, nbytes), bytes(nbytes))
        elif isinstance(message, StartStage):
            self._start(visitor, message)
        elif isinstance(message, LendUnit | GrantCredit | AskFile):
            if self._daemon is not None and not self._lends_beside and isinstance(message, LendUnit):
                raise NotAllowed(
                    f"{self._settings.name} runs a stage, and nothing was set aside for lending when that began",
                    "begin to borrow before, or try again later",
                )
            self._lending.handle(visitor, message)
        elif not isinstance(message, OF_A_STAGE):  # that has ended
            raise BadMessage(f"{type(message).__name__} is not for {self._settings.name}")

    def _greet(self, visitor: Visitor, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            raise ProtocolsDiffer(
                f"the head speaks version {hello.protocol} of our protocol (hermes-mp {hello.software}), "
                f"{self._settings.name} {PROTOCOL} (hermes-mp {self._settings.software})"
            )
        checkpoint, ours = self._copy_of(hello)
        self._greeted[visitor] = _Greeted(checkpoint)
        facts = json.dumps(self._facts(checkpoint))
        name = self._settings.name
        self._lan.send(visitor, Welcome(PROTOCOL, self._settings.software, name, ours, facts))

    def _copy_of(self, hello: Hello) -> tuple[Checkpoint | None, str]:
        """Our copy and its fingerprint; a head that has none itself says the name only.

        Raises ModelsDiffer where ours of that name is another one.
        """
        other = ""
        named_so = sorted(self._directories() if hello.model else (), key=lambda one: one.name != hello.model)
        for directory in named_so:  # the likeliest first: what no other head has asked for has to be read
            try:
                print_, checkpoint = self._known_as(directory)
            except HermesError:
                continue  # a directory that holds no model of ours is none of the head's business
            if print_ == hello.fingerprint or (not hello.fingerprint and directory.name == hello.model):
                return checkpoint, print_
            if directory.name == hello.model:
                other = print_
        if other:
            raise ModelsDiffer(
                f"{hello.model} is {hello.fingerprint[:12]} on the head and {other[:12]} on {self._settings.name}"
            )
        return None, ""

    def _directories(self) -> list[Path]:
        """That may hold a model."""
        root = self._settings.models
        if root is None:
            return []
        if (root / CONFIG).is_file():
            return [root]
        try:
            return sorted(one for one in root.iterdir() if (one / CONFIG).is_file())
        except OSError as error:
            raise ModelNotFound(f"{root} cannot be listed: {error.strerror}") from error

    def _known_as(self, directory: Path) -> tuple[str, Checkpoint]:
        checkpoint = find_checkpoint(directory)
        known = self._known.get(directory)
        if known is None or known[1].digest != checkpoint.digest:
            known = self._known[directory] = fingerprint(checkpoint), checkpoint
        return known

    def _facts(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        found: dict[str, Any] = {
            "versions": versions(),
            "processor": profilecache.processor(),
            "threads": self._settings.threads or os.cpu_count() or 1,
            "memory": self._settings.memory,
            "loaders": self._settings.loaders,
        }
        if checkpoint is not None:
            found["disk_nbytes_per_s"] = disk_rate(checkpoint)
        return found

    def _checkpoint_of(self, visitor: Visitor) -> Checkpoint | None:
        greeted = self._greeted.get(visitor)
        return None if greeted is None else greeted.checkpoint

    # --- stages

    def _start(self, visitor: Visitor, start: StartStage) -> None:
        if self._working_for not in (None, visitor) and self._working_for.name != visitor.name:
            raise NotAllowed(f"{self._settings.name} works for head {self._working_for.name}", "try again later")
        self._next = visitor, start
        if self._daemon is not None:
            self._daemon.end()  # the head has begun anew

    def _run_stage(self, visitor: Visitor, start: StartStage) -> None:
        greeted = self._greeted.get(visitor)
        if greeted is None:
            return  # it has left meanwhile
        try:
            if greeted.checkpoint is None:
                raise ModelNotFound(f"{self._settings.name} has no copy of the model", "copy it there (--model-dir)")
            settings = self._stage_settings(start, greeted.checkpoint)
            self._working_for = visitor
            self._say(f"runs a stage of {greeted.checkpoint.directory.name} for head {visitor.name or 'on loopback'}")
            with closing(Quarters(settings.loaders or 1)) as quarters, closing(make_arena()) as exchange:
                self._run(visitor, replace(settings, exchange_fd=exchange.fd), quarters, exchange)
        except (HermesError, OSError) as reason:
            error = refused(reason) if isinstance(reason, OSError) else reason
            self._say(error.line())
            self._lan.send(visitor, Refused(error.exit_code, clip(str(error))))
        finally:
            self._working_for = None

    def _run(self, visitor: Visitor, settings: DaemonSettings, quarters: Quarters, exchange: Arena) -> None:
        front = StageFront(self._lan, visitor, exchange, self._handle, self._say, self._lending, self._alive)
        with Daemon(settings, quarters, front) as daemon:
            front.daemon = self._daemon = daemon
            daemon.watch(self._lan)
            self._lending.watch_with(daemon)
            why: HermesError | None = None
            try:
                daemon.start()
                daemon.run()
            except HermesError as error:
                why = error
                self._say(error.line())
            finally:
                self._daemon = None
                self._lending.watch_with(self._poller)
                daemon.forget(self._lan)
            if front.head_left:
                self._greeted.pop(visitor, None)
                self._say("the head has left")
            else:
                daemon.sample(exactly=True)
                self._lan.send(visitor, front.ended(why))

    def _stage_settings(self, start: StartStage, checkpoint: Checkpoint) -> DaemonSettings:
        """What the head says of the model, and this board of itself. Raises BadMessage."""
        try:
            told = json.loads(start.settings)
            dtype, context, batch, room = (told[name] for name in ("dtype", "context", "batch", "room"))
            timeout_s, verify, fresh = told["timeout_s"], told["verify"], told.get("fresh") is True
            in_flight = told["in_flight"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise BadMessage("a stage is started with a JSON object of settings") from None
        good = isinstance(dtype, str) and verify in VERIFY
        good = good and all(one is None or (type(one) is int and one > 0) for one in (context, room))
        good = good and type(batch) is int and batch > 0
        good = good and type(in_flight) is int and 1 <= in_flight <= MAX_IN_FLIGHT
        good = good and (timeout_s is None or (isinstance(timeout_s, int | float) and 0 < timeout_s <= 86400))
        good = good and all(one is None or one < 2**40 for one in (context, batch, room)) and len(dtype) < 20
        if not good:
            raise BadMessage("a stage is started with settings of which one is none")
        own, memory = self._settings, self._settings.memory
        self._lends_beside = self._lending.nbytes > 0
        if self._lends_beside and isinstance(memory, int):
            memory = max(0, memory - self._lending.nbytes - LOADER_NBYTES * len(self._lending.pids))
        return DaemonSettings(
            checkpoint, own.loaders or 1, memory, context, batch, dtype, own.threads,
            {"fresh": fresh, "disk": disk_rate(checkpoint, fresh)}, eager=True, timeout_s=timeout_s, verify=verify,
            in_flight=in_flight, room=room,
        )  # fmt: skip
