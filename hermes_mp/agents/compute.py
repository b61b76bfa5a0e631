"""The compute agent of a launch: imports torch, builds the model on streamed units, answers the daemon's requests.

A thin shell: the model is `agents.compute_model`'s, units come through `agents.supplying`, tasks from `models.tasks`.
It never touches the terminal; what it has to say goes to the daemon as messages.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes_mp.agents.compute_model import takes_turns
from hermes_mp.agents.supplying import LinkedSupply, Rows
from hermes_mp.errors import (
    DaemonLost,
    HermesError,
    InvariantBroken,
    OutOfMemory,
    RequestAgain,
    SystemCallFailed,
    refused,
)
from hermes_mp.host.arena import Arena
from hermes_mp.host.checkpoint import CheckpointFile, Stamp
from hermes_mp.host.deathwatch import DeathWatch, ignore_interrupts
from hermes_mp.host.scheduling import take_usual_turns
from hermes_mp.host.watched import WatchedFiles
from hermes_mp.host.wire import Link, Peer
from hermes_mp.messages import (
    MAX_TEXT_CHARS,
    ComputeFailed,
    RequestAnswered,
    RequestFailed,
    RunRequest,
    StopCompute,
    TextStreamed,
    ToCompute,
    clip,
)

if TYPE_CHECKING:
    from hermes_mp.agents.compute_head import Head
    from hermes_mp.agents.compute_model import Opened
    from hermes_mp.models.tasks.task import Task

IMAGE_NBYTES = 112 << 20  # wished for: to decode a JPEG of 12 megapixels and turn it upright


def main(arguments: Sequence[str]) -> int:
    """`arguments`: one JSON text, see `Daemon._compute_settings`. Exit code 0, or that of the error it reported."""
    settings: dict[str, Any] = json.loads(arguments[0])
    ignore_interrupts()
    take_usual_turns()  # the daemon's are short
    watch = DeathWatch(settings["parent_pid"], settings["death_fd"])
    watch.be_killed_with_parent()
    from setproctitle import setproctitle

    setproctitle("hermes: compute")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager sends it to all of us: the daemon decides
    try:
        link: Link[ToCompute] = Link(
            settings["endpoint"], Peer("compute", 0, settings["epoch"]), ToCompute, daemon_fd=settings["death_fd"]
        )
    except (DaemonLost, SystemCallFailed) as error:
        print(f"compute: {error}", file=sys.stderr)
        return error.exit_code
    files = [CheckpointFile(Path(path), Stamp(*stamp)) for path, *stamp in settings["files"]]
    try:
        supply = LinkedSupply(link, Arena.attach(settings["arena_fd"]), os.getpid(), files, _rows_of(settings))
        gc.disable()  # nothing that is imported goes; looking for what could takes a tenth of the start
        if "exchange_fd" in settings:
            from hermes_mp.agents.compute_stage import StageCompute

            StageCompute(settings, link, supply).run()
        else:
            _Compute(settings, link, supply).run()
    except DaemonLost as error:
        return error.exit_code  # nobody is left to be told
    except Exception as error:  # an entry point: whatever it is becomes a message
        return _report(link, _last_words(WatchedFiles(files).explain(error)))
    return 0


def _rows_of(settings: dict[str, Any]) -> Callable[[int], Rows] | None:
    """Where rows are read that do not lie on this board."""
    if settings["borrowed"] is None:
        return None
    from hermes_mp.agents.borrowed import Borrowed
    from hermes_mp.agents.remote_rows import RemoteRows

    return RemoteRows(Borrowed.from_json(settings["borrowed"]), settings["death_fd"]).reader


def _last_words(error: Exception) -> ComputeFailed:
    if isinstance(error, OSError):
        error = refused(error)
    if isinstance(error, HermesError):
        return ComputeFailed(error.exit_code, clip(error.line()), "")
    bug = InvariantBroken(clip(f"{type(error).__name__}: {error}", 2000))
    return ComputeFailed(bug.exit_code, bug.line(), clip("".join(traceback.format_exception(error)), 8000))


def _report(link: Link[ToCompute], last_words: ComputeFailed) -> int:
    with contextlib.suppress(DaemonLost, SystemCallFailed):
        link.send(last_words)
        link.close(last_words=True)
    return last_words.exit_code


class _Compute:
    """Answers requests; of a head, with other boards."""

    def __init__(self, settings: dict[str, Any], link: Link[ToCompute], supply: LinkedSupply) -> None:
        self.settings, self.link, self.supply = settings, link, supply
        self.parts: dict[int, str] = {}

    def run(self) -> None:
        boards = None
        if self.settings["boards"] is not None:
            from hermes_mp.agents.compute_head import Head

            boards = Head(self.settings, self.supply, self.link)
            boards.greet()  # they import torch while we do
        with contextlib.closing(boards) if boards is not None else contextlib.nullcontext():
            self._run(boards)

    def _run(self, boards: Head | None) -> None:
        from hermes_mp.agents.compute_model import open_model

        opened = open_model(self.settings, self.supply, early=True, cut=boards is not None)
        from hermes_mp.models.tasks.task import open_task

        model = opened.model
        task = open_task(model, opened.directory, self.settings["options"])
        base = opened.settle()
        # An image is prepared before its pass needs the reserve.
        wish = IMAGE_NBYTES if model.main_input_name == "pixel_values" else 0
        if boards is not None:
            boards.begin(opened, base, wish)
        else:
            self.supply.describe(base, opened.footprint.reserve_nbytes, wish, opened.plan)
        if takes_turns(self.settings):
            self._run_in_flight(opened, task, boards)
            return
        while True:
            request = self.supply.next_request()
            if isinstance(request, StopCompute):
                return
            if not isinstance(request, RunRequest):
                raise InvariantBroken(f"{type(request).__name__} is for a board's stage")
            whole = self._whole(request)
            if whole is not None:
                asked = whole | self._beside(opened, request)
                if boards is None:
                    self._answer(task, request, asked)
                else:
                    answer = partial(self._answer, task, request, asked, boards.tell)
                    boards.answer(request.request, answer)

    def _run_in_flight(self, opened: Opened, task: Task, boards: Head | None) -> None:
        from hermes_mp.agents.in_flight import InFlight
        from hermes_mp.models.turns import Turns
        from hermes_mp.models.units import units_of

        at_most: int = self.settings["in_flight"]
        division, chain = opened.made.division, opened.chain

        def unit_of(layer: int) -> int:
            assert chain is not None
            return units_of(division, chain.layers[layer])[0]

        turns = Turns(opened.model._hermes_binder, None if boards is None else boards.sharing, at_most, unit_of)
        told = (boards.tell,) if boards is not None else ()

        def answer(request: RunRequest, whole: dict[str, Any]) -> None:
            self._answer(task, request, whole | self._beside(opened, request), *told)

        InFlight(self.supply, turns, at_most, boards, self._whole, answer).run()

    def _beside(self, opened: Opened, request: RunRequest) -> dict[str, Any]:
        """What a task is told of a request beside what it is."""
        room = {"room_nbytes": self.supply.room_nbytes} if opened.is_limited else {}
        return room | {"number": request.request}

    def _whole(self, request: RunRequest) -> dict[str, Any] | None:
        # A request that is asked once more may have been broken off between two parts.
        text = (self.parts.pop(request.request, "") if request.part else "") + request.text
        if not request.last:
            self.parts[request.request] = text
            return None
        whole: dict[str, Any] = json.loads(text)
        return whole

    def _answer(
        self, task: Task, request: RunRequest, whole: dict[str, Any], answered: Callable[[], None] = lambda: None
    ) -> None:
        """`answered` is called before the daemon has the answer: with the last one it ends."""

        def say(text: str, token_ids: Sequence[int] = ()) -> None:
            for part in _parts(text):
                self.link.send(TextStreamed(request.request, part, tuple(token_ids)))
                token_ids = ()

        try:
            answer = task.answer(whole, say, request.final)
        except HermesError as error:
            if isinstance(error, RequestAgain):
                raise
            why = self.supply.files.explain(error)
            if why is not error:
                raise why from error  # no other request can be answered either
            self.link.send(RequestFailed(request.request, error.exit_code, clip(error.line())))
            return
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
                raise
            full = OutOfMemory("no memory for the answer's activations", "lower --context or --batch, or ask for less")
            self.link.send(RequestFailed(request.request, full.exit_code, full.line()))
            return
        answered()
        parts = _parts(json.dumps(answer))
        for number, part in enumerate(parts):
            self.link.send(RequestAnswered(request.request, number, number == len(parts) - 1, part))


def _parts(text: str) -> list[str]:
    return [text[at : at + MAX_TEXT_CHARS] for at in range(0, len(text), MAX_TEXT_CHARS)] or [""]
