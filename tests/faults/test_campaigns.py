"""A short, seeded sample of each campaign; `make fault-full` runs them at length."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from campaigns.common import carry_out
from campaigns.every import CAMPAIGNS
from campaigns.slopes import growth

REPLACED_S = 0.5  # median


@pytest.mark.parametrize("name", list(CAMPAIGNS))
def test_a_sample(name: str, models: Path, tmp_path: Path) -> None:
    kind, _, count = CAMPAIGNS[name]
    campaign: Any = kind(models / "big", tmp_path, 1)
    found = campaign.summary(list(carry_out(campaign, count)))
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
