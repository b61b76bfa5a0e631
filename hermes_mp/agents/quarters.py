"""What a run lives in: its directory, arena and death pipe, and its loaders.

Made before anything that is slow to import, so that the loaders start up while the daemon still does: from the command
to their first byte may take 0.3 s.
"""

from __future__ import annotations

import contextlib
import resource

from hermes_mp.agents.crew import LoaderCrew
from hermes_mp.errors import OutOfMemory, SystemCallFailed
from hermes_mp.host import unitcache
from hermes_mp.host.arena import Arena
from hermes_mp.host.children import DeathPipe
from hermes_mp.host.memory import total_nbytes
from hermes_mp.host.rundir import RunDirectory

LOADERS = 3  # to begin with, where nothing is known
FILES = 128  # that a process must be able to open: ZeroMQ ends a program that runs out of them
FILES_PER_LOADER = 4
RAISE = "raise that: ulimit -n 1024"
LEAVE_S = 0.5  # how long loaders may take to leave when asked; they have nothing to lose


class Quarters:
    """`close` ends the loaders and leaves nothing behind; harmless when repeated. It begins with so many `loaders`."""

    def __init__(self, loaders: int, arena: Arena | None = None) -> None:
        self.loaders = loaders
        allow_files(FILES + FILES_PER_LOADER * loaders)
        with contextlib.ExitStack() as made:  # in case that the next thing cannot be
            self.arena = arena or make_arena()
            made.callback(self.arena.close)
            self.run_dir = RunDirectory.create()
            made.callback(self.run_dir.remove)
            self.death = DeathPipe()
            made.callback(self.death.close)
            self.crew = LoaderCrew(loaders, self.run_dir.endpoint, self.run_dir.path, self.arena, self.death)
            made.callback(self.crew.stop, 0.0)
            self.crew.start()
            self._made = made.pop_all()

    def close(self) -> None:
        self._made.close()


def allow_files(count: int) -> None:
    """Have this process and its children open so many, where fewer are allowed. Raises SystemCallFailed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            raise SystemCallFailed(f"no process may open more than {hard} files, and {count} may be needed", RAISE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def loaders_to_start(loaders: int | None, model: str | None) -> int:
    """As many as were asked for; else as the last run of this directory had."""
    return loaders or unitcache.recall_loaders(model) or LOADERS


def make_arena() -> Arena:
    """An arena as long as all memory there is: sparse, so that costs nothing.

    Not as the budget: compute lays its largest unit into it before it can be said that the budget is too small.
    """
    nbytes = total_nbytes()
    try:
        return Arena.create(nbytes)
    except OSError as error:
        raise OutOfMemory(f"no address space for {nbytes >> 20} MiB of slots: {error.strerror}") from error
