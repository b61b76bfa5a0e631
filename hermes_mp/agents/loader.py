"""A loader's shell: orders come by the link, bytes go from the file straight into the arena, news goes back.

What is fit to be read is decided in `core.loading`, `host.readers` reads it. It knows no model, no tensor and no
other loader; it imports neither torch, transformers nor numpy, and a test keeps the list of what it does import. It
ends quietly with its daemon, removing the run directory where the daemon no longer can.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from hermes_mp.agents.loader_arguments import LoaderArguments
from hermes_mp.agents.loader_process import run_loader
from hermes_mp.core import loading
from hermes_mp.core.loading import Loading, OpenFailed
from hermes_mp.errors import (
    MachineError,
    UserError,
)
from hermes_mp.host.arena import Arena
from hermes_mp.host.progress import ProgressBoard
from hermes_mp.host.readers import OpenedFile, Readers
from hermes_mp.host.reading import FileReader
from hermes_mp.host.wire import Link
from hermes_mp.messages import Epoch, LoaderNo, ToLoader


class Loader:
    """Performs the actions of its mind; every wait is on the link, which also wakes up when the daemon dies."""

    def __init__(self, arguments: LoaderArguments, link: Link[ToLoader]) -> None:
        number = LoaderNo(arguments.loader)
        self._chunk_nbytes = arguments.chunk_nbytes
        self._link = link
        arena = Arena.attach(arguments.arena_fd)
        progress = ProgressBoard.attach(arguments.progress_fd)
        self._mind = Loading(number, Epoch(arguments.epoch), arena.nbytes)
        self._readers = Readers(arena, lambda: progress.bump(number))
        self._files: dict[int, OpenedFile] = {}

    def run(self) -> None:
        """Work until told to stop; raises DaemonLost when there is nobody left to tell."""
        while True:
            _, ready = self._link.wait(None, (self._readers.fd,))
            for ended in self._readers.ended() if ready else ():
                if not self._handle(ended):
                    return
            while (message := self._link.receive(0)) is not None:
                if not self._handle(message):
                    return

    def _handle(self, event: loading.Event) -> bool:
        """Whether to go on."""
        actions = deque(self._mind.handle(event, time.monotonic_ns()))
        while actions:
            action = actions.popleft()
            if isinstance(action, loading.Read):
                self._readers.read(action.load, self._files)
            elif isinstance(action, loading.Send):
                self._link.send(action.message)
            elif isinstance(action, loading.Open):
                failed = self._open(action)
                actions.extend(self._mind.handle(failed, time.monotonic_ns()) if failed is not None else ())
            else:
                return False
        return True

    def _open(self, action: loading.Open) -> OpenFailed | None:
        if action.file in self._files:
            self._readers.settle()
            self._files.pop(action.file).reader.close()
        try:
            reader = FileReader(action.path, action.nbytes, action.direct)
        except (MachineError, UserError) as error:
            return OpenFailed(action.file, error.exit_code, str(error))
        self._files[action.file] = OpenedFile(reader, action.chunk_nbytes or self._chunk_nbytes)
        return None


def main(words: list[str]) -> int:
    """The process; its exit code."""
    arguments = LoaderArguments.from_words(words)

    def work(link: Link[ToLoader], started: Callable[[], None]) -> None:
        loader = Loader(arguments, link)
        started()
        loader.run()

    return run_loader(arguments, "", work, lambda error, had_started: not had_started)
