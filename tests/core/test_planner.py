"""The planner against brute force on small cases; and what holds of every plan: its budget, that memory helps."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_mp.core import planner
from hermes_mp.core.budget import slot_cost
from hermes_mp.core.loading import READERS
from hermes_mp.core.planner import TOLERANCE, Plan, everything_fits, plan, shares, smallest_budget, table
from hermes_mp.core.profile import ASSUMED_DEVICE, DeviceProfile, Granularity, ModelProfile, ReadRate, UnitCost
from hermes_mp.errors import BudgetTooSmall

MIB = 1 << 20


def device(*rows: tuple[int, int, bool, float], read_s: float = 0.0005) -> DeviceProfile:
    return DeviceProfile(tuple(ReadRate(n, mib * MIB, direct, rate * 1e6) for n, mib, direct, rate in rows), read_s)


def granularity(room_mib: int | None, *units: tuple[float, float]) -> Granularity:
    """Units as (MiB, seconds)."""
    costs = tuple(UnitCost(int(mib * MIB), int(mib * MIB), s, 2 * s) for mib, s in units)
    slot = max(unit.nbytes for unit in costs)
    return Granularity(None if room_mib is None else room_mib * MIB, slot, MIB, 300 * MIB, 40 * MIB, 10 * MIB, costs)


def model(*granularities: Granularity, **more: float) -> ModelProfile:
    values = {
        "other_s": 0.01, "first_other_s": 0.02,
        "weights_nbytes": 0, "parameters": 0, "batch": 1, "tokens": 16, "context": 128,
        "decodes": True, "threads": 2,
    }  # fmt: skip
    return ModelProfile(granularities, **values | more)  # type: ignore[arg-type]


DISK = device((1, 16, True, 1000), (2, 16, True, 1600), (3, 16, True, 1800), (1, 1, True, 900), (2, 1, True, 1700),
              (1, 16, False, 500), (3, 16, False, 1900))  # fmt: skip
LAYERS = granularity(None, *[(50, 0.02)] * 24, (64, 0.03))
HALVES = granularity(25, *[(25, 0.0101)] * 48, *[(22, 0.011)] * 3)
MODEL = model(LAYERS, HALVES)


def worth(found: Plan) -> float:
    return planner.with_loaders(found.forecast.seconds, found.loaders)


def brute_force(device: DeviceProfile, model: ModelProfile, budget: int) -> float:
    """The least that a pass is worth of all there is to choose, each simulated."""
    least = float("inf")
    found = 0
    for loaders, one, (chunk, direct) in itertools.product(range(1, 7), model.granularities, device.ways()):
        try:
            slots = shares(budget, one, loaders).slots
        except BudgetTooSmall:
            continue
        rates = device.by_readers(chunk, direct, READERS * loaders)[::READERS]
        if loaders > 1 and slots <= loaders:
            continue
        for window in range(min(loaders + 1, slots), slots + 1):
            found += 1
            choice = planner._Choice(0.0, loaders, 0, window, (chunk, direct), rates, one, slots)
            seconds = planner.simulate(planner._flow(choice, model, device)).seconds
            least = min(least, planner.with_loaders(seconds, loaders))
    assert found
    return least


@pytest.mark.parametrize("mib", [520, 560, 640, 800, 1000, 1400, 1700])
@pytest.mark.parametrize("factor", [0.05, 0.5, 1.0, 10.0])
def test_no_choice_is_faster_than_the_plan(mib: int, factor: float) -> None:
    found = plan(DISK.faster(factor), MODEL, mib * MIB)
    assert worth(found) <= brute_force(DISK.faster(factor), MODEL, mib * MIB) * (1 + 2 * TOLERANCE)


small_units = st.lists(st.tuples(st.integers(1, 60), st.floats(0, 0.2)), min_size=1, max_size=7)
disks = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([1, 16]), st.booleans(), st.floats(10, 4000)), min_size=1, max_size=5
).map(lambda rows: device(*rows))
models = st.builds(
    lambda coarse, fine, beside: model(
        granularity(None, *coarse), granularity(8, *fine), beside_compute=beside, beside_read=beside
    ),
    small_units, small_units, st.floats(0, 0.3),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(disks, models, st.integers(0, 300))
def test_no_choice_is_faster_than_the_plan_whatever_the_model(
    disk: DeviceProfile, model: ModelProfile, spare_mib: int
) -> None:
    budget = smallest_budget(model) + spare_mib * MIB
    found = plan(disk, model, budget)
    assert worth(found) <= brute_force(disk, model, budget) * (1 + 2 * TOLERANCE) + 1e-9


@settings(max_examples=60, deadline=None)
@given(disks, models, st.integers(0, 200), st.integers(0, 200))
def test_the_budget_is_kept_and_more_of_it_is_never_slower(
    disk: DeviceProfile, model: ModelProfile, spare_mib: int, more_mib: int
) -> None:
    budget = smallest_budget(model) + spare_mib * MIB
    less, more = plan(disk, model, budget), plan(disk, model, budget + more_mib * MIB)
    for one, limit in ((less, budget), (more, budget + more_mib * MIB)):
        assert one.forecast.peak_nbytes <= limit
        assert one.forecast.seconds >= one.forecast.limit_s * 0.999
        assert one.slots <= one.units
        assert one.fits == (one.forecast.streamed_nbytes == 0)
    assert worth(more) <= worth(less) * 1.05 + 1e-6


def test_the_smallest_budget_is_the_smallest() -> None:
    least = smallest_budget(MODEL)
    assert plan(DISK, MODEL, least).room == 25 * MIB
    with pytest.raises(BudgetTooSmall, match=f"smallest budget .* is {-(-least // MIB)} MiB"):
        plan(DISK, MODEL, least - 30 * MIB)


def test_a_start_that_takes_more_than_running_counts() -> None:
    """The daemon refuses a budget that compute outgrows before it has slots, so no such budget is planned for."""
    small = granularity(None, *[(1, 0.001)] * 4)
    start = small.base_nbytes + 200 * MIB
    starts = model(replace(small, start_nbytes=start))
    least = smallest_budget(starts)
    assert least == smallest_budget(model(small)) - planner.needs(small, 1).least(MIB + 2 * slot_cost(MIB, 1)) + (
        planner.needs(small, 1).daemon + planner.needs(small, 1).loaders + start
    )
    assert plan(DISK, starts, least).forecast.peak_nbytes <= least
    assert everything_fits(starts) > everything_fits(model(small))
    assert plan(DISK, starts, everything_fits(starts)).fits
    with pytest.raises(BudgetTooSmall, match=f"smallest budget .* is {-(-least // MIB)} MiB"):
        plan(DISK, starts, everything_fits(model(small)))


def test_a_small_model_needs_one_loader() -> None:
    assert plan(DISK, model(granularity(None, (1, 0.001), (1, 0.001), (1, 0.001))), 800 * MIB).loaders == 1


def test_a_slot_for_each_loader_and_one_that_compute_holds() -> None:
    """With fewer, loaders read and wait together, and the disk rests meanwhile."""
    for mib in range(460, 1500, 20):
        found = plan(DISK, MODEL, mib * MIB)
        assert found.fits or found.window > found.loaders


def test_as_many_loaders_as_are_asked_for() -> None:
    assert plan(DISK, MODEL, 800 * MIB, loaders=5).loaders == 5


def test_what_a_pass_is_bound_by() -> None:
    assert plan(DISK.faster(20), MODEL, 600 * MIB).forecast.bound_by == "compute"
    assert plan(DISK.faster(0.1), MODEL, 600 * MIB).forecast.bound_by == "disk"
    one_slot = plan(DISK, model(granularity(None, (50, 0.1), (50, 0.1), (50, 0.1))), 520 * MIB, loaders=1)
    assert one_slot.forecast.bound_by in ("window", "compute")


def test_everything_fits_and_nothing_is_streamed() -> None:
    found = plan(DISK, MODEL, everything_fits(MODEL))
    assert found.fits
    assert found.forecast.seconds == pytest.approx(0.01 + 24 * 0.02 + 0.03, rel=0.02)
    assert (found.window, found.resident_share, found.forecast.stall_s) == (0, 1.0, 0.0)


def test_without_a_limit_it_is_what_the_daemon_does_without_one() -> None:
    found = plan(DISK, MODEL, None)
    assert found.slots == found.loaders + 1


def test_a_table_of_a_large_model_takes_less_than_two_seconds() -> None:
    layers = granularity(None, *[(430, 0.02)] * 28, *[(410, 0.02)] * 2)
    halves = granularity(200, *[(140, 0.006), (200, 0.009), (90, 0.005)] * 28, *[(190, 0.01)] * 4)
    matrices = granularity(32, *[(32, 0.0015)] * 280)
    blocks = granularity(16, *[(16, 0.0008)] * 600)
    large = model(layers, halves, matrices, blocks, beside_compute=0.1)
    started = time.process_time()
    rows = table(DISK, large)
    assert time.process_time() - started < 2.0
    budgets = [budget for budget, _ in rows]
    assert budgets == sorted(set(budgets))
    assert budgets[0] - smallest_budget(large) < MIB
    assert rows[-1][1].fits
    worths = [worth(found) for _, found in rows]
    assert all(later <= earlier * (1 + 2 * TOLERANCE) for earlier, later in itertools.pairwise(worths))


def test_a_loader_more_must_be_worth_its_turns_on_the_processor() -> None:
    def loaders(rate: float) -> int:
        return plan(device((1, 16, True, 900), (2, 16, True, 1000), (4, 16, True, rate)), MODEL, 700 * MIB).loaders

    assert loaders(1010) == 1, "a loader has two readers"
    assert loaders(1200) == 2


def test_an_assumed_device_says_so() -> None:
    assert ASSUMED_DEVICE.assumed
    assert plan(ASSUMED_DEVICE, MODEL, 700 * MIB).forecast.bound_by == "disk"
