"""10,000 seeds of the joined states; a failing seed names itself, and `python -m tests.core.simulator` runs more."""

from __future__ import annotations

import pytest
from simulator import run_seed


@pytest.mark.parametrize("thousand", range(10))
def test_every_seed_finishes_with_the_right_weights(thousand: int) -> None:
    for seed in range(thousand * 1000, thousand * 1000 + 1000):
        run_seed(seed)


@pytest.mark.parametrize("seed", [8900, 105178, 506689])
def test_seeds_that_once_found_something(seed: int) -> None:
    run_seed(seed)


def test_the_seeds_meet_what_they_are_for() -> None:
    """Otherwise the test above could pass because nothing ever happens."""
    crashes = refusals = doubles = removals = calm = kept = recalled = stuck = 0
    for seed in range(1000):
        simulation = run_seed(seed)
        crashes += simulation.met["LoaderGone"]
        refusals += simulation.met["Refuse"]
        doubles += simulation.met["second load"]
        removals += simulation.met["RemoveSlot"]
        calm += simulation.calm
        kept += simulation.met["kept use"]
        recalled += simulation.met["Recall"]
        stuck += simulation.met["LoaderStuck"]
    found = (crashes, refusals, doubles, removals, calm, kept, recalled, stuck)
    assert min(found) > 20, found
