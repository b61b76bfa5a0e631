"""A short, seeded sample of each campaign; `make fault-full` runs them at length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from campaigns.every import CAMPAIGNS

REPLACED_S = 0.5  # median


@pytest.mark.parametrize("name", list(CAMPAIGNS))
def test_a_sample(name: str, models: Path, tmp_path: Path) -> None:
    kind, _, count = CAMPAIGNS[name]
    campaign: Any = kind(models / "big", tmp_path, 1)
    records: list[dict[str, Any]] = []
    for number in campaign.numbers():
        records += campaign.run(number)
        if sum("role" in one for one in records) >= count:
            break
    found = campaign.summary(records)
    assert found["faults"] >= count
    if name == "kill":
        assert found["replaced_s"]["median"] <= REPLACED_S
