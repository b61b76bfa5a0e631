"""A short, seeded sample of each campaign; `make fault-full` runs them at length."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from campaigns.every import CAMPAIGNS, ON_A_BED
from campaigns.slopes import growth
from testbed import why_not

REPLACED_S = 0.5  # median
PATIENCE = 4  # CI's machines do other things; the bounds themselves are for whoever runs a whole campaign
DEADLINE_S = 900.0  # of one sample


def sample(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "campaigns", name, "--count", CAMPAIGNS[name][2], "--out", folder / f"{name}.jsonl"]
    words += ["--patience", PATIENCE]
    tests = Path(__file__).resolve().parents[1]
    words = list(map(str, words))
    try:
        return subprocess.run(words, cwd=tests, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    except subprocess.TimeoutExpired as late:
        return subprocess.CompletedProcess(words, -1, "", f"not done after {DEADLINE_S:g} s: {late.stderr!r}")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Each as a person runs it, two at a time: much of a campaign is waiting."""
    folder = tmp_path_factory.mktemp("samples")
    names = [name for name in CAMPAIGNS if name not in ON_A_BED or why_not() is None]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(lambda name: sample(name, folder), names), strict=True))


ALL = [
    pytest.param(name, marks=pytest.mark.skipif(name in ON_A_BED and why_not() is not None, reason=str(why_not())))
    for name in CAMPAIGNS
]


@pytest.mark.parametrize("name", ALL)
def test_a_sample(name: str, samples: dict[str, subprocess.CompletedProcess[str]]) -> None:
    ended = samples[name]
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["campaign"] == name
    if name == "kill":
        assert found["replaced_s"]["median"] <= REPLACED_S


def test_a_slope_sees_a_leak_and_no_noise() -> None:
    """A KiB for each request is found beneath pages that come and go; a step in the warm memory is none."""
    chance = Random(1)
    times = [4.0 * at for at in range(40)]
    noise = [chance.choice((0, 4, 60, -60)) for _ in times]
    still = [(at, 15_000.0 + more) for at, more in zip(times, noise, strict=True)]
    leaking = [(at, kib + 12 * at / 4) for at, kib in still]
    stepped = [(at, kib + 100 * (at > 140)) for at, kib in still]
    assert abs(growth(still)) < 50
    assert growth(leaking) == pytest.approx(39 * 12, rel=0.15)
    assert growth(stepped) < 100
