"""What a process that computes is started with: nothing of the user's is lost, and its threads do not spin for long."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hermes_mp.host import environment, malloc

ON_X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="elsewhere libgomp spins for next to no time")


@pytest.fixture(autouse=True)
def _untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*environment.WAITING, malloc.VARIABLE):
        monkeypatch.delenv(name, raising=False)


@ON_X86
def test_ours() -> None:
    assert environment.for_computing() == {
        **os.environ, malloc.VARIABLE: malloc.tunables(), environment.SPINS: str(environment.SPIN_COUNT)
    }  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")])
def test_how_the_user_has_threads_wait_wins(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    found = environment.for_computing()
    assert {one: found[one] for one in environment.WAITING if one in found} == {name: value}


BETWEEN = """
import time, torch
torch.set_num_threads(2)
a = torch.ones(256, 256)
for _ in range(20):
    a @ a
spent = time.process_time()
for _ in range(50):
    a @ a
    time.sleep(0.02)
print(time.process_time() - spent)
"""


@ON_X86
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one thread has nobody to wait for")
def test_threads_sleep_while_there_is_nothing_to_compute() -> None:
    """50 pauses: as they come they spin through a quarter of each and more."""

    def spent(variables: dict[str, str]) -> float:
        words = [sys.executable, "-c", BETWEEN]
        return float(subprocess.run(words, env=variables, capture_output=True, text=True, check=True).stdout)

    assert spent(environment.for_computing()) < 0.7 * spent(dict(os.environ))
