"""The README's "Two boards in five minutes", typed as it stands there: on a test bed, or on 127.0.0.1 without root.

Not run: what installs and what downloads. In their place lie commands of this source, and a small model.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from launching import DEADLINE_S
from testbed import TestBed, why_not
from tiny_models import gpt2

ROOT = Path(__file__).parents[2]
SECTION = "## Two boards in five minutes\n"
MACHINES = {"head": "board1", "board": "board2"}
NOT_RUN = ("pip install", "hf download")
LAYERS = 12  # as gpt2 has


@dataclass
class Typed:
    """A command, the machine it is typed on, and what one sees then, as far as the README says."""

    machine: str
    command: str
    seen: list[str] = field(default_factory=list)


def typed() -> list[Typed]:
    """All of the section, in order."""
    section = (ROOT / "README.md").read_text().split(SECTION)[1].split("\n## ")[0]
    found: list[Typed] = []
    for block in re.findall(r"^```\n(.*?)^```$", section, flags=re.M | re.S):
        for line in block.splitlines():
            prompt = re.match(r"(\w+)\$ +(.*)", line)
            if prompt is not None:
                found.append(Typed(prompt[1], prompt[2]))
            else:
                found[-1].seen.append(line)
    return found


def plain(text: str) -> str:
    """Without what is different on each machine: times, addresses, tokens, directories."""
    text = re.sub(r"^\d\d:\d\d:\d\d ", "", text, flags=re.M)
    text = re.sub(r"\b\d+(\.\d+){3}:\d+", "ADDRESS", text)
    return re.sub(r"\S+/hermes-mp/", "STORE/", re.sub(r"hermes1-\S+", "TOKEN", text))


def test_every_command_says_where_it_is_typed() -> None:
    commands = typed()
    assert {one.machine for one in commands} == set(MACHINES)
    assert [one for one in commands if one.command.startswith("hermes-launch")]
    places = {match[1] for one in commands if (match := re.search(r"hf download .* --local-dir ~/(\S+)", one.command))}
    assert places == {"models/gpt2"}


class Typist:
    """Types at both machines; `serve` is left running."""

    def __init__(self, bed: TestBed, loopback: bool) -> None:
        self._bed, self._loopback = bed, loopback
        self._serving: list[subprocess.Popen[bytes]] = []
        self._token = ""

    def prepare(self) -> None:
        """What the commands leave that are not run, and a way out of the network, as at home."""
        for name in self._bed.names:
            home = self._bed.home(name)
            (home / "hermes" / "bin").mkdir(parents=True)
            for program in ("board", "launch"):
                script = home / "hermes" / "bin" / f"hermes-{program}"
                script.write_text(f'#!/bin/sh\nexec {sys.executable} -m hermes_mp.cli.{program} "$@"\n')
                script.chmod(0o755)
            (home / "models").mkdir()
            gpt2(home / "models" / "gpt2", layers=LAYERS)
            if not self._loopback:
                route = self._bed.run(name, ["ip", "route", "add", "default", "dev", "eth0"])
                assert route.wait(DEADLINE_S) == 0

    def type(self, machine: str, command: str) -> tuple[str, str]:
        """All that one sees: standard output and error."""
        name = MACHINES[machine]
        command = re.sub(r"hermes1-\S+", self._token, command)
        if self._loopback and " init " in command:
            command += f" --address 127.0.0.1:{self._bed.port(name)}"
        path = f"{self._bed.home(name)}/hermes/bin:{os.environ['PATH']}"
        env = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        run = self._bed.run(
            name, ["bash", "-c", f"exec {command}"], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        if " serve " in command:
            self._serving.append(run)
            return "", self._read(run, " serves at ")
        out, err = (text.decode("utf-8", "replace") for text in run.communicate(timeout=DEADLINE_S))
        assert run.returncode == 0, err
        made = re.search(r"hermes1-\S+", out)
        self._token = made[0] if made else self._token
        return out, err

    def _read(self, run: subprocess.Popen[bytes], last: str | None) -> str:
        """Of its standard error, until the line with `last`; to the end where there is none."""
        assert run.stderr is not None
        until_s, seen = time.monotonic() + DEADLINE_S, b""
        while last is None or not re.search(re.escape(last) + r".*\n", seen.decode("utf-8", "replace")):
            assert select.select([run.stderr], [], [], max(0.0, until_s - time.monotonic()))[0], seen
            chunk = os.read(run.stderr.fileno(), 1 << 16)
            if not chunk:
                assert last is None, seen
                break
            seen += chunk
        return seen.decode("utf-8", "replace")

    def end(self) -> str:
        """As Ctrl-C on the board does; what it has said meanwhile."""
        said = ""
        for run in self._serving:
            run.send_signal(signal.SIGINT)
            said += self._read(run, None)
            assert run.wait(DEADLINE_S) == 128 + signal.SIGINT
        return said


@pytest.fixture(params=["namespaces", "loopback"])
def typist(request: pytest.FixtureRequest) -> Iterator[Typist]:
    loopback = request.param == "loopback"
    if not loopback and why_not() is not None:
        pytest.skip(why_not() or "")
    with TestBed(2, loopback=loopback) as bed:
        found = Typist(bed, loopback)
        found.prepare()
        yield found


def test_the_commands_do_what_the_readme_says(typist: Typist) -> None:
    shared = 0
    for one in typed():
        if any(words in one.command for words in NOT_RUN):
            continue
        out, err = typist.type(one.machine, one.command)
        for line in one.seen:
            assert plain(line) in plain(err + out), one.command
        if one.command.startswith("hermes-launch"):
            alone = re.sub(r" --(board|split) \S+", "", one.command)
            assert out == typist.type(one.machine, alone)[0], one.command
            shared += 1
    assert shared
    assert typist.end().count("runs a stage of gpt2 for head") >= shared  # more where it was lost and came back
