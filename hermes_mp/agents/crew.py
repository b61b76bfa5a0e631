"""The loaders as processes: spawned, watched by pidfd, killed, reaped, and started again as `core.lifecycle` says.

It is the first thing a run makes, so that the loaders start up while the daemon still imports: nothing slow here.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hermes_mp.agents.borrowed import Borrowed, Lender
from hermes_mp.agents.loader_arguments import LoaderArguments, RemoteArguments
from hermes_mp.core import lifecycle
from hermes_mp.core.lifecycle import KILL_NS, AllLost, Crew, Happened, Spawn, State
from hermes_mp.core.report import counted
from hermes_mp.host.arena import Arena
from hermes_mp.host.children import LOADER_OOM_SCORE, Child, DeathPipe, hand_on, spawn
from hermes_mp.host.progress import ProgressBoard

if TYPE_CHECKING:
    from hermes_mp.host.wire import Watching
    from hermes_mp.ids import Epoch, LoaderNo

GONE_S = KILL_NS / 1e9  # how long one that was killed is waited for
AGAIN_S = 0.5  # after the system has refused a process
CHUNK_NBYTES = 16 << 20  # asked for at once, at most, before there is a plan; `host.readers` asks for less


class LoaderCrew:
    """Every living loader process, watched by a poller once it is `attach`ed to a daemon."""

    def __init__(self, count: int, endpoint: str, run_dir: Path, arena: Arena, death: DeathPipe) -> None:
        self._crew = Crew(count)
        self._endpoint, self._run_dir, self._arena, self._death = endpoint, run_dir, arena, death
        self._poller: Watching | None = None
        self._on_gone: Callable[[LoaderNo, Epoch], None] = lambda loader, epoch: None
        self._on_stuck: Callable[[LoaderNo, Epoch, str], None] = lambda loader, epoch, text: None
        self._on_fewer: Callable[[], None] = lambda: None
        self._on_replaced: Callable[[], None] = lambda: None
        self._on_lost: Callable[[str], None] = lambda why: None
        self._say: Callable[[str], None] = lambda text: None
        self._on_heard: Callable[[bytes], object] = hand_on
        self.progress = ProgressBoard.create()
        self._children: dict[tuple[LoaderNo, Epoch], Child] = {}
        self._by_fd: dict[int, tuple[LoaderNo, Epoch]] = {}
        self._voices: dict[int, tuple[LoaderNo, Epoch]] = {}
        self._retired: set[tuple[LoaderNo, Epoch]] = set()
        self._later: deque[tuple[float, Spawn]] = deque()  # those that the system did not let us start
        self._stopping = False
        self._borrowed: Borrowed | None = None
        self.last_words = ""  # of the last one that ended with any
        self._lenders: dict[LoaderNo, Lender] = {}  # of those that take from other boards

    def attach(
        self,
        poller: Watching,
        on_gone: Callable[[LoaderNo, Epoch], None],
        on_stuck: Callable[[LoaderNo, Epoch, str], None],
        on_fewer: Callable[[], None],
        on_lost: Callable[[str], None],
        say: Callable[[str], None],
        on_heard: Callable[[bytes], object],
        on_replaced: Callable[[], None],
    ) -> None:
        """`on_gone` hears of each loader that the kernel has ended, `on_replaced` when one that died is, `on_fewer`
        when one is not, `on_lost` when that was the last; `on_stuck` of each that was killed and does not end, and what
        the kernel says of it.

        `say` takes a line of ours, `on_heard` what loaders write to their standard error.
        """
        self._poller, self._on_gone, self._on_lost, self._say = poller, on_gone, on_lost, say
        self._on_stuck, self._on_fewer = on_stuck, on_fewer
        self._on_heard, self._on_replaced = on_heard, on_replaced
        for fd in (*self._by_fd, *self._voices):
            poller.watch(fd)

    def move_to(self, poller: Watching) -> None:
        """Be woken up by this one from now on."""
        assert self._poller is not None
        for fd in (*self._by_fd, *self._voices):
            self._poller.forget(fd)
            poller.watch(fd)
        self._poller = poller

    def start(self) -> None:
        """Raises OSError where the system gives no process, as a run that begins so would not come far."""
        for action in self._crew.start():
            assert isinstance(action, Spawn)
            self._spawn(action.loader, action.epoch)

    def borrow(self, borrowed: Borrowed) -> None:
        """From now on so many more, that take from other boards."""
        self._borrowed = borrowed
        each = [lender for lender in borrowed.lenders for _ in range(lender.count)]
        actions = self._crew.add(len(each))
        self._lenders.update({action.loader: lender for action, lender in zip(actions, each, strict=True)})
        for action in actions:
            self._try_to_spawn(action)

    @property
    def lenders(self) -> dict[str, int]:
        """How many took from which board, also those that were given up."""
        return dict(Counter(lender.name for lender in self._lenders.values()))

    @property
    def remote(self) -> int:
        """How many take from other boards, and are up or on their way."""
        return sum(number in self._lenders for number in self._crew.members)

    @property
    def local(self) -> int:
        """How many read here, and are up or on their way."""
        return self.count - self.remote

    def name(self, loader: LoaderNo) -> str:
        """As people are told of it: `loader 3 (nas)`."""
        lender = self._lenders.get(loader)
        return f"loader {loader}" if lender is None else f"loader {loader} ({lender.name})"

    def board(self, loader: LoaderNo) -> str:
        """The board that it takes from; "" where it reads here."""
        lender = self._lenders.get(loader)
        return "" if lender is None else lender.name

    def turn(self) -> None:
        """Time passes: go on without those that outlived their kill, start those whose turn it is."""
        self._leave_unkillable()
        while self._later and self._later[0][0] <= time.monotonic():
            _, action = self._later.popleft()
            member = self._crew.members.get(action.loader)
            if member is not None and member[0] == action.epoch:  # else it has been retired
                self._try_to_spawn(action)

    def resize(self, count: int) -> list[tuple[LoaderNo, Epoch]]:
        """So many that read here from now on; those that are to be asked to leave instead, and are not replaced."""
        actions, retired = self._crew.resize(count)
        self._retired.update(retired)
        self._perform(actions)
        return retired

    def pids(self) -> dict[str, int]:
        """Process ids by the name a report shows."""
        return {f"loader {number}": child.pid for (number, _), child in self._children.items()}

    def states(self) -> list[tuple[LoaderNo, Epoch, int, str]]:
        """Of each present incarnation its process number and the state that its table says."""
        found = []
        for (number, epoch), child in self._children.items():
            member = self._crew.members.get(number)
            life = member[1] if member is not None and member[0] == epoch else self._crew.former.get((number, epoch))
            found.append((number, epoch, child.pid, (State.STOPPING if life is None else life.state).value))
        return found

    def restarts(self, loader: LoaderNo) -> int:
        """How often this one has died and was replaced."""
        return self._crew.restarts[loader]

    def degraded(self) -> list[str]:
        """What the run has to do without, and why."""
        return self._crew.degraded()

    def state_of(self, loader: LoaderNo, epoch: Epoch) -> str:
        """What the kernel says it is at this moment."""
        child = self._children.get((loader, epoch))
        return "gone" if child is None else child.state()

    def members(self) -> list[tuple[LoaderNo, Epoch]]:
        return list(self._children)

    def happened(self, loader: LoaderNo, epoch: Epoch, what: Happened) -> None:
        """Something a loader said."""
        self._perform(self._crew.handle(loader, epoch, what, time.monotonic_ns()))

    @property
    def count(self) -> int:
        """How many are up or on their way."""
        return len(self._crew.members)

    def kill(self, loader: LoaderNo, epoch: Epoch) -> None:
        child = self._children.get((loader, epoch))
        if child is not None:
            self.happened(loader, epoch, Happened.KILL_SENT)
            child.kill()

    def _leave_unkillable(self) -> None:
        for loader, epoch in self._crew.outlived(time.monotonic_ns()):
            actions = self._crew.handle(loader, epoch, Happened.OUTLIVED, time.monotonic_ns())
            self._on_stuck(loader, epoch, self.state_of(loader, epoch))
            self._perform(actions)

    def readable(self, fd: int) -> bool:
        """Handle a pidfd or a voice that became readable; False where it is none of ours."""
        if fd in self._voices:
            self._hear(self._voices[fd])
            return True
        key = self._by_fd.get(fd)
        if key is None:
            return False
        self._reap(key, 0.0)
        return True

    def _hear(self, key: tuple[LoaderNo, Epoch]) -> None:
        child = self._children[key]
        fd = child.voice_fd
        data = child.hear()
        if data:
            self._on_heard(data)
        elif data is None:
            self._forget_voice(fd)

    def _forget_voice(self, fd: int) -> None:
        del self._voices[fd]
        if self._poller is not None:
            self._poller.forget(fd)

    def renew(self) -> list[tuple[LoaderNo, Epoch]]:
        """Kill all present loaders, which counts against none of them, and start others; those that are still there."""
        present = list(self._children)
        renewed = {key: self._crew.renew(*key) for key in present}
        self._retired.update(key for key, actions in renewed.items() if actions)
        for key in present:
            self.kill(*key)
        self._wait_gone(present)
        for actions in renewed.values():
            self._perform(actions)
        return [key for key in present if key in self._children]

    def stop(self, timeout_s: float) -> None:
        """Wait for all to leave, then kill those that have not; only what cannot be killed is there afterwards."""
        self._stopping = True
        self._later.clear()
        for number, epoch in list(self._children):
            self.happened(number, epoch, Happened.STOP_ASKED)
        deadline = time.monotonic() + timeout_s
        for key in list(self._children):
            self._reap(key, max(0.0, deadline - time.monotonic()))
        for key in list(self._children):
            self.kill(*key)
        self._wait_gone(list(self._children))
        for key in list(self._children):
            self._forsake(key)
        self.progress.close()

    def _wait_gone(self, keys: list[tuple[LoaderNo, Epoch]]) -> None:
        """Of those that were killed; but no longer for one of which it is known that this is in vain."""
        deadline = time.monotonic() + GONE_S
        for key in keys:
            self._reap(key, 0.0 if self._crew.is_unkillable(key) else max(0.0, deadline - time.monotonic()))

    def _forsake(self, key: tuple[LoaderNo, Epoch]) -> None:
        child = self._children.pop(key)
        self._say(f"{self.name(key[0])} (epoch {key[1]}) cannot be killed and is left behind: it is {child.state()}")
        for fd in (child.pidfd, child.voice_fd):
            if self._poller is not None and fd >= 0:
                self._poller.forget(fd)
        self._by_fd.pop(child.pidfd, None)
        self._voices.pop(child.voice_fd, None)
        child.forsake()

    def _reap(self, key: tuple[LoaderNo, Epoch], timeout_s: float) -> None:
        child = self._children[key]
        pidfd = child.pidfd
        if self._poller is not None:
            self._poller.forget(pidfd)
        cause = child.reap(timeout_s)
        if cause is None:
            if self._poller is not None:
                self._poller.watch(pidfd)
            return
        if child.voice_fd >= 0:
            self._forget_voice(child.voice_fd)
            self._on_heard(child.hear_out())
        del self._children[key], self._by_fd[pidfd]
        number, epoch = key
        if child.last_words:
            self.last_words = child.last_words
        actions = self._crew.handle(number, epoch, Happened.EXITED, time.monotonic_ns())
        if not self._stopping and key not in self._retired:
            words = f', its last words: "{child.last_words}"' if child.last_words else ""
            then = "; it is replaced" if any(isinstance(action, Spawn) for action in actions) else ""
            self._say(f"{self.name(number)} (epoch {epoch}) ended ({cause}){words}{then}")
        self._on_gone(number, epoch)
        if any(isinstance(action, Spawn) for action in actions):
            self._on_replaced()
        self._perform(actions)

    def _perform(self, actions: list[lifecycle.Action]) -> None:
        for action in actions:
            if isinstance(action, Spawn):
                self._try_to_spawn(action)
            elif isinstance(action, AllLost):
                self._on_lost(action.why)
            else:
                self._say(f"going on with {counted(action.left, 'loader')}: {self.name(action.loader)}, {action.why}")
                self._on_fewer()

    def _try_to_spawn(self, action: Spawn) -> None:
        """Where that cannot be it counts as a death, and the next try is made a little later."""
        try:
            self._spawn(action.loader, action.epoch)
        except OSError as error:
            self._say(f"{self.name(action.loader)} (epoch {action.epoch}) cannot be started: {error.strerror}")
            actions = self._crew.handle(action.loader, action.epoch, Happened.EXITED, time.monotonic_ns())
            due_s = time.monotonic() + AGAIN_S
            self._later.extend((due_s, one) for one in actions if isinstance(one, Spawn))
            self._perform([one for one in actions if not isinstance(one, Spawn)])

    def _spawn(self, loader: LoaderNo, epoch: Epoch) -> None:
        arguments = LoaderArguments(
            loader=loader,
            epoch=epoch,
            endpoint=self._endpoint,
            run_dir=str(self._run_dir),
            parent_pid=os.getpid(),
            death_fd=self._death.read_fd,
            arena_fd=self._arena.fd,
            progress_fd=self.progress.fd,
            chunk_nbytes=CHUNK_NBYTES,
        )
        lender, words, module = self._lenders.get(loader), arguments.to_words(), "hermes_mp.agents.loader"
        if lender is not None and self._borrowed is not None:
            words = RemoteArguments(arguments, lender, self._borrowed.model, self._borrowed.fingerprint).to_words()
            module = "hermes_mp.agents.remote_loader"
        child = spawn(
            module,
            f"hermes: {self.name(loader)}",
            words,
            arguments.pass_fds,
            LOADER_OOM_SCORE,
            light=True,
            hear=True,
        )
        self._children[loader, epoch] = child
        self._by_fd[child.pidfd] = self._voices[child.voice_fd] = (loader, epoch)
        if self._poller is not None:
            self._poller.watch(child.pidfd)
            self._poller.watch(child.voice_fd)
