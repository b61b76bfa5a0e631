"""Memory gets tight around a run and is free again: same answers, nobody killed, residents leave and return."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from launching import Launch, enter, launch
from memory_groups import limit, oom_kills, usage_nbytes
from tiny_models import gpt2

MIB = 1 << 20
LAYERS, SLOT_MIB = 24, 14
RESERVE_MIB = 64
TOKENS = 60
STEP_NBYTES = 16 * MIB
REQUEST = ("--max-new-tokens", TOKENS, "--loaders", 2)

NEIGHBOUR = """
import os, select, sys
held = []
for _ in range(int(sys.argv[1])):
    held.append(b"x" * int(sys.argv[2]))
    select.select([], [], [], 0.1)
print("grown", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers are most of what a run takes: 300 MB."""
    return gpt2(tmp_path_factory.mktemp("deep"), width=512, layers=LAYERS)


def smallest_mib(home: Path, model: Path) -> int:
    refused = launch(home, "--model", model, "--prompt", "the", *REQUEST, "--memory", "1MiB")
    return int(re.findall(r"the smallest budget .* is ([0-9]+) MiB", refused.line)[0])


def events(trace: Path, name: str) -> list[dict[str, Any]]:
    """Of a trace that may still be written to."""
    lines = trace.read_text().split("\n")[1:-1] if trace.exists() else []
    found = [json.loads(line.rstrip(",")) for line in lines if f'"name":"{name}"' in line and line.endswith("},")]
    return sorted(found, key=lambda event: event["ts"])


@contextmanager
def neighbour(cgroup: Path, nbytes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another process in the cgroup, growing by so much in steps of 16 MiB; it leaves with the context."""
    command = [sys.executable, "-c", NEIGHBOUR, str(nbytes // STEP_NBYTES), str(STEP_NBYTES)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=lambda: enter(cgroup)
    ) as process:
        yield process
        process.communicate(timeout=60)
        assert process.returncode == 0


class Asking:
    """A run that is asked the same over and over; how it answers undisturbed is known."""

    def __init__(self, run: Launch, answer: str) -> None:
        self._run, self._answer = run, answer
        self.asked = 0

    def once(self) -> None:
        self._run.write("the ship\n")
        self.asked += 1
        self._run.wait_for(lambda run: len(run.out) >= len(self._answer) * self.asked)

    def until(self, is_enough: Callable[[], object]) -> None:
        while not is_enough():
            self.once()


def test_a_neighbour_that_grows_and_leaves(deep: Path, home: Path, memory_cgroup: Path) -> None:
    trace = home.with_name("trace.json")
    undisturbed = launch(
        home.with_name("alone"), "--model", deep, *REQUEST, "--memory", "none", "--quiet", stdin="the ship\n"
    )
    room_mib = smallest_mib(home.with_name("refused"), deep) + (LAYERS - 1) * SLOT_MIB
    limit(memory_cgroup, room_mib + RESERVE_MIB)
    with Launch(home, "--model", deep, *REQUEST, "--trace", trace, lines=True, cgroup=memory_cgroup) as run:
        asking = Asking(run, undisturbed.out)
        asking.once()
        with neighbour(memory_cgroup, usage_nbytes(memory_cgroup) * 3 // 10) as process:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            asking.until(process.stdout.read)
            assert process.poll() is None
        asking.until(lambda: events(trace, "residents return"))
        ended = run.ended()
    assert ended.code == 0, ended.err
    assert oom_kills(memory_cgroup) == 0
    assert ended.out == undisturbed.out * asking.asked

    free = [(event["ts"], event["args"]["MiB"]) for event in events(trace, "free memory")]
    slots = [(event["ts"], sum(event["args"].values())) for event in events(trace, "slots")]
    left_at = events(trace, "residents leave")[0]["ts"]
    short_at = next(ts for ts, mib in free if mib < RESERVE_MIB)
    before = [count for ts, count in slots if ts <= short_at][-1]
    fewer_at = next(ts for ts, count in slots if ts > short_at and count < before)
    assert short_at <= left_at <= fewer_at <= short_at + 1e6
    assert ended.err.count("memory is short") == 1
    assert "memory is free again" in ended.err
    assert [count for ts, count in slots][-1] > min(count for ts, count in slots if ts > short_at)
    assert "residents left 1 time for want of memory" in ended.err
