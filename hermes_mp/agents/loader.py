"""A loader's shell: orders come by the link, bytes go from the file straight into the arena, news goes back.

What comes next is decided in `core.loading`. It knows no model, no tensor and no other loader; it imports neither
torch, transformers nor numpy, and a test keeps the list of what it does import. It ends quietly with its daemon,
removing the run directory where the daemon no longer can.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from pathlib import Path

from hermes_mp.agents.loader_arguments import LoaderArguments
from hermes_mp.core import loading
from hermes_mp.core.layout import ALIGN
from hermes_mp.core.loading import Loading, OpenFailed, RangeFailed, RangeRead, ReadRange
from hermes_mp.errors import DaemonLost, HermesError, InvariantBroken, MachineError, UserError
from hermes_mp.host.arena import Arena
from hermes_mp.host.deathwatch import DeathWatch, ignore_interrupts
from hermes_mp.host.progress import ProgressBoard
from hermes_mp.host.reading import FileReader
from hermes_mp.host.rundir import remove_path
from hermes_mp.host.scheduling import take_short_turns
from hermes_mp.host.wire import Link, Peer
from hermes_mp.messages import Epoch, LoaderFailed, LoaderNo, LoaderStarted, ToLoader, clip


class Loader:
    """Performs the actions of its mind; every wait is on the link, which also wakes up when the daemon dies."""

    def __init__(self, arguments: LoaderArguments, watch: DeathWatch, link: Link[ToLoader]) -> None:
        self._number = LoaderNo(arguments.loader)
        self._chunk_nbytes = arguments.chunk_nbytes
        self._watch = watch
        self._link = link
        self._arena = Arena.attach(arguments.arena_fd)
        self._progress = ProgressBoard.attach(arguments.progress_fd)
        self._mind = Loading(self._number, Epoch(arguments.epoch), self._arena.nbytes)
        self._files: dict[int, FileReader] = {}
        self._chunks: dict[int, int] = {}

    def run(self) -> None:
        """Work until told to stop; raises DaemonLost when there is nobody left to tell."""
        while True:
            self._link.wait(None, ())
            message = self._link.receive(0)
            if message is not None and not self._handle(message):
                return

    def _handle(self, message: ToLoader) -> bool:
        """Whether to go on."""
        actions = deque(self._mind.handle(message, time.monotonic_ns()))
        while actions:
            action = actions.popleft()
            event: loading.Event | None = None
            if isinstance(action, ReadRange):
                while (heard := self._link.receive(0)) is not None:  # the next order, or that there is none
                    actions.extend(self._mind.handle(heard, time.monotonic_ns()))
                event = self._read(action)
            elif isinstance(action, loading.Send):
                self._link.send(action.message)
            elif isinstance(action, loading.Open):
                event = self._open(action)
            else:
                return False
            if event is not None:
                actions.extend(self._mind.handle(event, time.monotonic_ns()))
        return True

    def _open(self, action: loading.Open) -> OpenFailed | None:
        if action.file in self._files:
            self._files.pop(action.file).close()
        try:
            self._files[action.file] = FileReader(action.path, action.nbytes, action.direct)
            self._chunks[action.file] = action.chunk_nbytes or self._chunk_nbytes
        except (MachineError, UserError) as error:
            return OpenFailed(action.file, error.exit_code, str(error))
        return None

    def _read(self, action: ReadRange) -> RangeRead | RangeFailed:
        piece = action.range
        # The read of a file's last block may write past the range, up to the next multiple of ALIGN: never further.
        room = min(-(-piece.nbytes // ALIGN) * ALIGN, action.room - piece.at)
        file = self._files[piece.file]
        with self._arena.view(action.base + piece.at, room) as buffer:
            try:
                file.read_into(buffer, piece.offset, piece.nbytes, self._chunks[piece.file], self._chunk_read)
            except MachineError as error:
                return RangeFailed(action.ticket, error.exit_code, str(error))
        return RangeRead(action.ticket, piece.nbytes, file.direct)

    def _chunk_read(self, nbytes: int) -> None:
        self._progress.bump(self._number)
        if self._watch.parent_is_gone():
            raise DaemonLost("the daemon is gone")


def main(words: list[str]) -> int:
    """The process; its exit code."""
    arguments = LoaderArguments.from_words(words)
    watch = DeathWatch(arguments.parent_pid, arguments.death_fd)
    ignore_interrupts()
    take_short_turns()
    watch.die_with_parent(lambda: remove_path(Path(arguments.run_dir)))
    number, epoch = LoaderNo(arguments.loader), Epoch(arguments.epoch)
    with contextlib.ExitStack() as stack:
        try:
            peer = Peer("loader", arguments.loader, arguments.epoch)
            # No deadline: before the hub listens a model may have to be downloaded. The death pipe ends the wait.
            link: Link[ToLoader] = Link(arguments.endpoint, peer, ToLoader, arguments.death_fd, None)
            stack.callback(link.close, True)
            loader = Loader(arguments, watch, link)
            link.send(LoaderStarted(number, epoch, os.getpid()))
            import setproctitle  # only now, as it costs 4 ms (logging) that the daemon need not wait for

            setproctitle.setproctitle(f"hermes: loader {number}")
            loader.run()
        except DaemonLost as error:
            if watch.parent_is_gone():
                remove_path(Path(arguments.run_dir))
                return 0
            return error.exit_code  # a daemon that answers nobody; it will see this from our pidfd
        except Exception as error:  # the one broad except: whatever it is, the daemon hears of it
            code = error.exit_code if isinstance(error, HermesError) else InvariantBroken.exit_code
            if code == InvariantBroken.exit_code:
                import traceback

                traceback.print_exc()
            with contextlib.suppress(DaemonLost):
                link.send(LoaderFailed(number, epoch, code, clip(f"{type(error).__name__}: {error}")))
            return code
    return 0
