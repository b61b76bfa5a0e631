"""However a run ends, nothing of it is left: no process (the harness asserts it), no run directory, no memory.

A memfd has no name: it is gone with the last process that has it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from launching import Launch

ARGUMENTS = ("--prompt", "the ship", "--max-new-tokens", 60, "--loaders", 3, "--memory", "none")


def run_directories() -> list[str]:
    return [name for name in os.listdir(os.environ["XDG_RUNTIME_DIR"]) if name.startswith("hermes-mp-")]


def memfds(run: Launch) -> set[str]:
    """The anonymous memory that the run's processes have open."""
    found = set()
    for pid in run.processes():
        for fd in os.listdir(f"/proc/{pid}/fd"):
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
            if link.startswith("/memfd:"):
                found.add(link)
    return found


MOMENTS = pytest.mark.parametrize("moment", ["importing", "computing"])


def wait_for(run: Launch, moment: str) -> None:
    """Until the run has come to this moment, with all its processes up."""
    if moment == "importing":
        run.process("compute")
    else:
        run.wait_for(lambda run: len(run.out) > 3)
    run.wait_for(lambda run: len(run.loaders()) == 3)
    assert memfds(run)


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "importing"), (signal.SIGTERM, "computing"), (signal.SIGHUP, "importing")],
)
def test_a_signal(models: Path, home: Path, number: signal.Signals, moment: str) -> None:
    trace = home / "trace.json"  # a line about computing is written only where it takes long
    with Launch(home, "--model", models / "big", *ARGUMENTS, "--json", "--trace", trace) as run:
        run.process("compute")
        if moment == "computing":
            run.wait_for(lambda run: trace.exists() and '"compute"' in trace.read_text())
        run.send(run.pid, number)
        ended = run.ended()
    assert ended.code == 128 + number
    assert ended.line == f"ended by {number.name}"
    assert ended.object["error"] == {"exit_code": 128 + number, "line": ended.line}
    assert not run_directories()


@pytest.mark.parametrize(("moment", "keys"), [("importing", "\x03"), ("computing", "\x03\x03\x03")])
def test_ctrl_c_at_the_terminal(models: Path, home: Path, moment: str, keys: str) -> None:
    """It goes to the whole foreground process group; the children leave it to the daemon. Some press it thrice."""
    with Launch(home, "--model", models / "big", *ARGUMENTS, terminal=True) as run:
        wait_for_terminal(run, moment)
        run.write(keys)
        ended = run.ended()
    assert ended.code == 130
    assert ended.out.rstrip().endswith("hermes-launch: ended by SIGINT")
    assert "Traceback" not in ended.out
    assert not run_directories()


def wait_for_terminal(run: Launch, moment: str) -> None:
    run.process("compute")
    if moment == "computing":
        run.wait_for(lambda run: "units " in run.out)


def test_a_closed_terminal(models: Path, home: Path) -> None:
    with Launch(home, "--model", models / "big", *ARGUMENTS, terminal=True) as run:
        wait_for_terminal(run, "computing")
        run.close_terminal()
        assert run.ended().code == 129
    assert not run_directories()


@MOMENTS
def test_the_daemon_is_killed(models: Path, home: Path, moment: str) -> None:
    """The children notice by signal and pipe; the last loader removes the run directory."""
    with Launch(home, "--model", models / "big", *ARGUMENTS) as run:
        wait_for(run, moment)
        run.send(run.pid, signal.SIGKILL)
        ended = run.ended()
    assert ended.code == -signal.SIGKILL
    assert "Traceback" not in ended.err
    assert not run_directories()


def test_the_daemon_is_killed_while_its_loaders_are_stopped(models: Path, home: Path) -> None:
    """Stopped processes handle no signal: they are gone as soon as they may run again."""
    with Launch(home, "--model", models / "big", *ARGUMENTS) as run:
        wait_for(run, "computing")
        loaders = run.loaders()
        for pid in loaders:
            run.send(pid, signal.SIGSTOP)
        run.send(run.pid, signal.SIGKILL)
        for pid in loaders:
            run.send(pid, signal.SIGCONT)
        assert run.ended().code == -signal.SIGKILL
    assert not run_directories()


def test_nohup_keeps_a_run_alive_when_its_terminal_is_closed(models: Path, home: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited
    try:
        with Launch(home, "--model", models / "big", *ARGUMENTS) as run:
            wait_for(run, "computing")
            os.kill(run.pid, signal.SIGHUP)
            assert run.ended().code == 0
    finally:
        signal.signal(signal.SIGHUP, before)
