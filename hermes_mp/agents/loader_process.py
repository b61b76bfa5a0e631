"""How a loader's process begins and ends, whatever it reads from: its daemon hears of all that cannot be mended."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from hermes_mp.agents.loader_arguments import LoaderArguments
from hermes_mp.errors import DaemonLost, HermesError, InvariantBroken, SystemCallFailed, refused
from hermes_mp.host.deathwatch import DeathWatch, ignore_interrupts
from hermes_mp.host.rundir import remove_path
from hermes_mp.host.scheduling import take_short_turns
from hermes_mp.host.wire import Link, Peer
from hermes_mp.messages import Epoch, LoaderFailed, LoaderNo, LoaderStarted, ToLoader, clip

Work = Callable[[Link[ToLoader], Callable[[], None]], None]


def run_loader(
    own: LoaderArguments, of: str, work: Work, is_for_good: Callable[[Exception, bool], bool]
) -> int:
    """The process; its exit code.

    `work` takes the link to the daemon and what to call once it can take orders, and ends when it is told to stop.
    `is_for_good` takes an error of it, and whether it had started: the loader's successor would fail as well. `of`
    stands behind its number: the board that it reads from, "" for this one.
    """
    watch = DeathWatch(own.parent_pid, own.death_fd)
    ignore_interrupts()
    take_short_turns()
    title = f"loader {own.loader}{f' ({of})' if of else ''}"
    try:
        watch.die_with_parent(lambda: remove_path(Path(own.run_dir)))
        return _run(own, of, title, work, is_for_good, watch)
    except (OSError, SystemCallFailed) as error:  # that may pass: the daemon sees it from our pidfd, and replaces us
        failure = refused(error)
        print(f"{title}: {failure}", file=sys.stderr)
        return failure.exit_code


def _run(
    own: LoaderArguments, of: str, title: str, work: Work, is_for_good: Callable[[Exception, bool], bool],
    watch: DeathWatch,
) -> int:  # fmt: skip
    number, epoch = LoaderNo(own.loader), Epoch(own.epoch)
    started = False
    with contextlib.ExitStack() as stack:

        def can_take_orders() -> None:
            nonlocal started
            link.send(LoaderStarted(number, epoch, os.getpid()))
            started = True
            _name(title)  # only now, as it costs 4 ms (logging) that the daemon need not wait for

        try:
            # No deadline: before the hub listens a model may have to be downloaded. The death pipe ends the wait.
            link: Link[ToLoader] = Link(own.endpoint, Peer("loader", number, epoch), ToLoader, own.death_fd, None)
            stack.callback(link.close, True)
            if of:
                _name(title)  # it may have to wait for the other board
            work(link, can_take_orders)
        except DaemonLost as error:
            if watch.parent_is_gone():
                remove_path(Path(own.run_dir))
                return 0
            return error.exit_code  # a daemon that answers nobody; it will see this from our pidfd
        except (OSError, SystemCallFailed):
            raise
        except Exception as error:  # the one broad except: whatever it is, the daemon hears of it, and replaces us
            code = error.exit_code if isinstance(error, HermesError) else InvariantBroken.exit_code
            if code == InvariantBroken.exit_code:
                import traceback

                traceback.print_exc()
            text = clip(str(error) if isinstance(error, HermesError) else f"{type(error).__name__}: {error}")
            if is_for_good(error, started):
                with contextlib.suppress(DaemonLost):
                    link.send(LoaderFailed(number, epoch, code, text))
            else:
                print(text if of else f"{title}: {text}", file=sys.stderr)  # a lost board is named in its text
            return code
    return 0


def _name(title: str) -> None:
    import setproctitle

    setproctitle.setproctitle(f"hermes: {title}")
