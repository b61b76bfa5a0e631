"""The compute agent of a launch: imports torch, builds the model on streamed units, answers the daemon's requests.

A thin shell: the model is `models.streamed`'s, units come through `agents.supplying`, tasks from `models.tasks`.
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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes_mp.agents.supplying import LinkedSupply
from hermes_mp.errors import (
    DaemonLost,
    HermesError,
    InvariantBroken,
    OutOfMemory,
    SystemCallFailed,
    refused,
)
from hermes_mp.host import malloc
from hermes_mp.host.arena import Arena
from hermes_mp.host.checkpoint import CheckpointFile, Stamp, find_checkpoint
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
        _Compute(settings, link, files).run()
    except DaemonLost as error:
        return error.exit_code  # nobody is left to be told
    except Exception as error:  # an entry point: whatever it is becomes a message
        return _report(link, _last_words(WatchedFiles(files).explain(error)))
    return 0


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
    def __init__(self, settings: dict[str, Any], link: Link[ToCompute], files: list[CheckpointFile]) -> None:
        self.settings, self.link = settings, link
        arena = Arena.attach(settings["arena_fd"])
        self.supply = LinkedSupply(link, arena, os.getpid(), files)
        self.parts: dict[int, str] = {}

    def run(self) -> None:
        directory = Path(self.settings["directory"])
        gc.disable()  # nothing that is imported goes; looking for what could takes a tenth of the start
        self.supply.say("importing torch")
        from hermes_mp.models.light_imports import import_lightly

        import_lightly()
        import torch

        if self.settings["threads"]:
            torch.set_num_threads(self.settings["threads"])
        from hermes_mp.models.choose_plan import Told, choose_plan
        from hermes_mp.models.footprint import check_call, check_generate
        from hermes_mp.models.prepare import trace_model
        from hermes_mp.models.settle import settle
        from hermes_mp.models.streamed import stream
        from hermes_mp.models.tasks.task import open_task
        from hermes_mp.models.tasks.text_input import open_early

        _quiet_libraries()
        checkpoint = find_checkpoint(directory)
        settings = self.settings
        open_early(directory)
        traced = trace_model(
            checkpoint, settings["dtype"], settings["context"], settings["batch"], self.supply.say
        )
        told = Told(
            settings["dtype"], settings["context"], settings["batch"], settings["threads"], settings["loaders"],
            settings["memory"], settings["granule"],
        )  # fmt: skip
        chosen = choose_plan(traced, checkpoint, told)
        made = traced.divide(chosen.room, chosen.streamed_by)
        self.supply.use(made.division.list)
        limited, footprint = settings["memory"] is not None, made.footprint
        if limited:
            malloc.keep_large_blocks_apart()
        model = stream(
            made.skeleton,
            made.division,
            self.supply,
            (lambda call: check_call(footprint, self.supply.room_nbytes, made.skeleton.model.config, call))
            if limited
            else (lambda call: None),
            (lambda *call: check_generate(footprint, self.supply.room_nbytes, *call))
            if limited
            else (lambda *call: None),
        )
        task = open_task(model, directory, self.settings["options"])
        base = settle(made.skeleton.dtype, images=model.main_input_name == "pixel_values")
        gc.freeze()  # nor later
        gc.enable()
        # An image is prepared before its pass needs the reserve.
        wish = IMAGE_NBYTES if model.main_input_name == "pixel_values" else 0
        divided = self.supply.describe(base, footprint.reserve_nbytes, wish, chosen.plan)
        room = {"room_nbytes": divided.reserve_nbytes} if limited else {}
        while True:
            request = self.supply.next_request()
            if isinstance(request, StopCompute):
                return
            whole = self._whole(request)
            if whole is not None:
                self._answer(task, request, whole | room | {"number": request.request})

    def _whole(self, request: RunRequest) -> dict[str, Any] | None:
        text = self.parts.pop(request.request, "") + request.text
        if not request.last:
            self.parts[request.request] = text
            return None
        whole: dict[str, Any] = json.loads(text)
        return whole

    def _answer(self, task: Task, request: RunRequest, whole: dict[str, Any]) -> None:
        def say(text: str, token_ids: Sequence[int] = ()) -> None:
            for part in _parts(text):
                self.link.send(TextStreamed(request.request, part, tuple(token_ids)))
                token_ids = ()

        try:
            answer = task.answer(whole, say, request.final)
        except HermesError as error:
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
        parts = _parts(json.dumps(answer))
        for number, part in enumerate(parts):
            self.link.send(RequestAnswered(request.request, number, number == len(parts) - 1, part))


def _parts(text: str) -> list[str]:
    return [text[at : at + MAX_TEXT_CHARS] for at in range(0, len(text), MAX_TEXT_CHARS)] or [""]


def _quiet_libraries() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
