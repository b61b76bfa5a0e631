"""`load`: a transformers model for inference whose weights stream in, with this process as the compute agent.

The daemon is this process's child and ends with it. No signal handler is touched; beside ZeroMQ's threads there is one
that hears, between calls, what the daemon wants back.
Dropping the model, leaving `with`, or the end of the interpreter ends everything behind it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import warnings
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

from hermes_mp.agents.computing import CALLER
from hermes_mp.agents.quarters import make_arena
from hermes_mp.agents.supplying import LinkedSupply, listen
from hermes_mp.config import NEVER, StreamConfig
from hermes_mp.errors import DaemonLost, refused, revived
from hermes_mp.host import checksums, malloc
from hermes_mp.host.checkpoint import Checkpoint, find_checkpoint
from hermes_mp.host.children import Child, DeathPipe, spawn
from hermes_mp.host.hub import resolve
from hermes_mp.host.rundir import remove_path
from hermes_mp.host.wire import Link
from hermes_mp.messages import RunPlan, ToCompute

START_S = 20.0  # a small board imports slowly
LEAVE_S = 5.0


def load(
    model: str | os.PathLike[str],
    *,
    loaders: int | str = "auto",
    memory: str | int | None = "auto",
    context: int | None = None,
    batch: int = 1,
    dtype: str = "auto",
    verify: str = "first",
    count_caller: bool = True,
    soft_deadline: float = 2.0,
    hard_deadline: float = 30.0,
    _slots: int | None = None,
    _room: int | None = None,
    _window: int = 0,
    _eager: bool = True,
    _trace: str | None = None,
) -> Any:
    """A model for inference on streamed weights: an instance of its transformers class, also a context manager.

    `model`: a directory with config.json and *.safetensors, or a hub id. `loaders`: processes that read, or "auto", as
    many as `hermes-plan` would take. `memory`: the budget in bytes or as "3GiB"; what this process takes already counts
    unless `count_caller` is false; "auto" is what the machine and its cgroup can spare, None sets no limit. `context`,
    `batch`: positions and sequences (beams count) that memory is reserved for. `dtype`: "auto" as transformers resolves
    it, or float32, float16, bfloat16. `verify`: check what is read against the checksums of earlier runs, and files
    against the SHA-256 that the hub or a SHA256SUMS beside them gives (once, which reads all of them): each unit's
    "first" load, "always", or "never". What a loader makes no progress with for `soft_deadline` seconds is also read by
    another; after `hard_deadline` it is killed and replaced.

    Unless `memory` is None glibc gives blocks from 64 KiB back at once (`mallopt`) in all of this process from then on.
    Raises a `HermesError`: ModelNotFound, NoSafetensors, CheckpointBroken, UnsupportedDtype, UnsupportedCheckpoint,
    MissingWeights, BudgetTooSmall, BadOption, SystemCallFailed. The model's calls may raise CallTooLarge, ReadFailed,
    WeightsChanged, NeedsAllWeights, SystemCallFailed, and DaemonLost within a second of the daemon's end.
    """
    config = StreamConfig(
        model=os.fspath(model),
        loaders=loaders,  # type: ignore[arg-type]  # "auto" becomes None there
        memory=memory,
        context=context,
        batch=batch,
        dtype=dtype,
        verify=verify,
        soft_deadline=soft_deadline,
        hard_deadline=hard_deadline,
    )
    try:
        checkpoint = find_checkpoint(resolve(os.fspath(model), lambda text: None).resolve())
        if verify != NEVER:
            unkept = checksums.prove(checkpoint, {}, lambda text: None)
            if unkept:
                warnings.warn(unkept, stacklevel=2)
        behind = _Behind(config, checkpoint, {"slots": _slots, "eager": _eager, "trace": _trace})
        try:
            made = _build(config, checkpoint, behind, count_caller, _room, _window)
        except BaseException:
            behind.close()
            raise
    except OSError as error:
        raise refused(error) from error
    behind.listen()
    made._hermes_closer = weakref.finalize(made, behind.close)
    return made


def _build(
    config: StreamConfig, checkpoint: Checkpoint, behind: _Behind, count_caller: bool, room: int | None, window: int
) -> Any:
    from hermes_mp.models.choose_plan import Told, choose_plan
    from hermes_mp.models.footprint import check_call, check_generate
    from hermes_mp.models.prepare import trace_model
    from hermes_mp.models.settle import settle
    from hermes_mp.models.streamed import stream

    traced = trace_model(checkpoint, config.dtype, config.context, config.batch)
    plan, streamed_by = RunPlan(), config.loaders or 1
    if room is None:
        told = Told(
            config.dtype, config.context, config.batch, None, config.loaders, config.memory, behind.granule
        )
        chosen = choose_plan(traced, checkpoint, told)
        room, plan, streamed_by = chosen.room, chosen.plan, chosen.streamed_by
    if window:
        plan = replace(plan, window=window)
    prepared = traced.divide(room or None, streamed_by)  # 0: by layers, whatever a plan would say
    behind.supply.use(prepared.division.list)
    footprint, supply = prepared.footprint, behind.supply
    model_config = prepared.skeleton.model.config  # of the model nothing else may be kept by its parts
    limited = config.memory is not None
    if limited:
        malloc.keep_large_blocks_apart()
    model = stream(
        prepared.skeleton,
        prepared.division,
        behind.supply,
        (lambda call: check_call(footprint, supply.room_nbytes, model_config, call)) if limited else lambda call: None,
        (lambda *call: check_generate(footprint, supply.room_nbytes, *call)) if limited else (lambda *call: None),
    )
    behind.lock = model._hermes_binder.lock
    base = settle(prepared.skeleton.dtype, images=model.main_input_name == "pixel_values")
    behind.supply.describe(base if count_caller else 0, footprint.reserve_nbytes, plan=plan)
    return model


class _Behind:
    """The daemon and what connects us with it. Knows nothing of the model, so that the model can be dropped."""

    def __init__(self, config: StreamConfig, checkpoint: Checkpoint, private: dict[str, Any]) -> None:
        self._pid = os.getpid()
        self._closed = threading.Event()
        self.lock = threading.RLock()  # whoever holds it may use the link
        self._run_dir: Path | None = None
        self._daemon: Child | None = None
        with contextlib.ExitStack() as made:  # in case that the next thing cannot be
            self._death = DeathPipe()
            made.callback(self._death.close)
            self._arena = make_arena()
            made.callback(self._arena.close)
            read_fd, ready_fd = os.pipe()
            made.pop_all()
        self.granule = self._arena.granule
        settings = {
            "directory": str(checkpoint.directory),
            "loaders": config.loaders,
            "memory": config.memory,
            "context": config.context,
            "batch": config.batch,
            "dtype": config.dtype,
            "threads": None,
            "verify": config.verify,
            "soft_s": config.soft_deadline,
            "hard_s": config.hard_deadline,
            "caller_death_fd": self._death.read_fd,
            "arena_fd": self._arena.fd,
            "granule": self._arena.granule,
            "ready_fd": ready_fd,
            **private,
        }
        fds = (self._death.read_fd, self._arena.fd, ready_fd)
        try:
            self._daemon = spawn("hermes_mp.agents.guest", "hermes: daemon", [json.dumps(settings)], fds)
        except BaseException:
            os.close(read_fd)
            self._stop_daemon()
            raise
        finally:
            os.close(ready_fd)
        try:
            said = _read_ready(read_fd)
            if "endpoint" not in said:
                raise revived(said["exit_code"], said["text"])
            endpoint = str(said["endpoint"])
            self._run_dir = Path(endpoint.removeprefix("ipc://")).parent
            link: Link[ToCompute] = Link(endpoint, CALLER, ToCompute, daemon_fd=self._daemon.pidfd)
            self.supply = LinkedSupply(link, self._arena, self._pid, checkpoint.files)
        except BaseException:
            self._stop_daemon()
            raise

    def listen(self) -> None:
        """From now on the daemon is heard between calls, too."""
        words = (self.supply, self.lock, self._closed)
        threading.Thread(target=listen, args=words, name="hermes: listener", daemon=True).start()

    def close(self) -> None:
        """End the daemon and all behind it; harmless when repeated, and in a fork of this process."""
        if self._closed.is_set() or os.getpid() != self._pid:
            return
        self._closed.set()
        self._death.close()  # a call that runs in another thread now ends with DaemonLost
        if self.lock.acquire(timeout=LEAVE_S):
            try:
                self.supply.close()
            finally:
                self.lock.release()
        self._stop_daemon()

    def _stop_daemon(self) -> None:
        self._death.close()
        if self._daemon is not None and self._daemon.reap(LEAVE_S) is None:
            self._daemon.kill()
            self._daemon.reap(LEAVE_S)
        if self._arena.fd >= 0:
            with contextlib.suppress(OSError):  # its mapping lives on with the model, its memory need not
                self._arena.free(0, self._arena.nbytes)
        self._arena.close()
        if self._run_dir is not None:
            remove_path(self._run_dir)  # where the daemon was killed


def _read_ready(fd: int) -> dict[str, Any]:
    """What the daemon says first; DaemonLost where it says nothing."""
    text = b""
    try:
        while select.select([fd], [], [], START_S)[0]:
            part = os.read(fd, 65536)
            if not part:
                break
            text += part
    finally:
        os.close(fd)
    with contextlib.suppress(ValueError):
        said: dict[str, Any] = json.loads(text)
        return said
    raise DaemonLost("the daemon did not start; its standard error says why")

