"""A short, seeded sample of each campaign; `make fault-full` runs them at length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from campaigns.common import carry_out
from campaigns.every import CAMPAIGNS

REPLACED_S = 0.5  # median


@pytest.mark.parametrize("name", list(CAMPAIGNS))
def test_a_sample(name: str, models: Path, tmp_path: Path) -> None:
    kind, _, count = CAMPAIGNS[name]
    campaign: Any = kind(models / "big", tmp_path, 1)
    found = campaign.summary(list(carry_out(campaign, count)))
    if name == "kill":
        assert found["replaced_s"]["median"] <= REPLACED_S
