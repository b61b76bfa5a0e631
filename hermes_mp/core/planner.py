"""The Pipeline Planner: from what was measured and a budget to the fastest way to run (paper, section IV).

It tries every number of loaders, granularity, window and way to read that the budget allows, best bound first, and
forecasts each by simulation until no other can be faster. What fits is decided by `core.budget`, as in the daemon.
It knows no clock, file or process.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from hermes_mp.core.budget import (
    DAEMON_NBYTES,
    LOADER_NBYTES,
    MIN_SLOTS,
    RUNS_DIFFER_NBYTES,
    Needs,
    Share,
    share_out,
    slot_cost,
)
from hermes_mp.core.forecast import Flow, Pass, simulate
from hermes_mp.core.loading import READERS
from hermes_mp.core.profile import DeviceProfile, Granularity, ModelProfile
from hermes_mp.core.residents import choose_residents, window_for
from hermes_mp.errors import BudgetTooSmall
from hermes_mp.messages import UnitNo

MOST_LOADERS = 6
TOLERANCE = 0.004  # a forecast that is better by less is no better: then fewer loaders and larger units win
LOADER_SHARE, LOADER_S = 0.02, 0.001  # one more loader is to save so much of a pass, and so many seconds
SOME_WINDOWS = 16  # every window up to this one is tried, beyond it every eighth more
# Fitted to 20 runs of BERT-Large under 500 and 900 MB, with units of 6 to 24 MiB, 1 to 3 loaders and windows of 3 to 9,
# on two cores of a shared x86-64 machine and its disk as it is: off by 4 % there (root of the mean square), with
# computing and reading a tenth slower beside each other. 0.3 ms taken fit as well; 0.6 is nearer to runs of ViT-Large.
# Orders of 0.5 to 4 ms fit alike; with 4 ms, runs in two slots (ViT-Large, the shape of Llama-3.2-1B) took 0.8 of it.
UNIT_S = 0.0001  # of compute, per streamed unit: to ask for it, bind it and give it back
TAKEN_S = 0.0006  # what daemon and loader take, per unit, of the cores that compute is at work on: its threads wait
ORDER_S = 0.002  # from a slot that is free to the first byte asked of the disk: compute, daemon and loader in turn
READ_S = 0.0002  # of the disk, per unit: not busy, or not with all readers, whatever their number
LOADER_AT_WORK, DAEMON_AT_WORK = 11 << 20, 18 << 20  # what `DAEMON_NBYTES` and `LOADER_NBYTES` are the most of
BOUND_BY_COMPUTE, BOUND_BY_DISK, BOUND_BY_WINDOW = "compute", "disk", "window"


@dataclass(frozen=True)
class Forecast:
    """Per pass: seconds, seconds stalled, bytes streamed; the most memory; what the pass is bound by.

    `first_s`: the first pass, from nothing loaded, after everything has started. `limit_s`: what no way of streaming
    could beat, the larger of computing and reading.
    """

    seconds: float
    stall_s: float
    first_s: float
    limit_s: float
    peak_nbytes: int
    streamed_nbytes: int
    bound_by: str

    @property
    def stall_share(self) -> float:
        return self.stall_s / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Plan:
    """How to run: `residents` of `units` keep a slot for good, the others share `window` of the `slots`."""

    loaders: int
    room: int | None
    slot_nbytes: int
    slots: int
    window: int
    residents: int
    units: int
    resident_nbytes: int
    model_nbytes: int  # of all units: what a pass would read with no resident
    chunk_nbytes: int
    direct: bool
    threads: int
    forecast: Forecast

    @property
    def resident_share(self) -> float:
        return self.resident_nbytes / self.model_nbytes if self.model_nbytes else 1.0

    @property
    def fits(self) -> bool:
        """Nothing is streamed after the first pass."""
        return self.residents == self.units


@dataclass(frozen=True, order=True)
class _Choice:
    """One way to run; ordered by what no forecast of it can be below, then by what we would rather have."""

    bound_s: float  # with what the loaders cost
    loaders: int
    rank: int  # of its granularity, the largest units first
    window: int
    way: tuple[int, bool] = field(compare=False)
    rates: tuple[float, ...] = field(compare=False)
    granularity: Granularity = field(compare=False)
    slots: int = field(compare=False)

    @property
    def fits(self) -> bool:
        return self.slots >= len(self.granularity.units)


def plan(device: DeviceProfile, model: ModelProfile, budget: int | None, loaders: int | None = None) -> Plan:
    """The fastest plan under `budget` bytes (None: no limit), with so many `loaders` (None: as many as is best).

    Raises BudgetTooSmall with the smallest budget that any plan would do with.
    """
    heap: list[tuple[_Choice, int, Iterator[_Choice]]] = []  # the number keeps equal choices in their order
    smallest: BudgetTooSmall | None = None
    for count in _loader_counts(device, loaders):
        for rank, granularity in enumerate(_largest_first(model)):
            try:
                share = shares(budget, granularity, count)
            except BudgetTooSmall as error:
                smallest = smallest or error
                continue
            if loaders is None and 1 < count >= share.slots:
                continue  # a loader without a slot to read into while compute holds one
            for way, rates in _ways(device, count):
                choices = _choices(model, granularity, rank, count, way, rates, share.slots)
                heapq.heappush(heap, (next(choices), len(heap), choices))
    if not heap:
        raise _too_small(model, budget, loaders) from smallest
    best: tuple[_Choice, Pass] | None = None
    least_s = math.inf
    while heap:
        choice, number, following = heapq.heappop(heap)
        if choice.bound_s >= least_s * (1 - TOLERANCE):
            break
        found = simulate(_flow(choice, model, device))
        cost_s = with_loaders(found.seconds, choice.loaders)
        rests = best is not None and choice.fits and not best[0].fits  # as fast would do: it leaves the disk alone
        if cost_s < least_s * (1 + TOLERANCE if rests else 1 - TOLERANCE):
            best, least_s = (choice, found), cost_s
        following_choice = next(following, None)
        if following_choice is not None:
            heapq.heappush(heap, (following_choice, number, following))
    assert best is not None
    return _planned(*best, device, model)


def with_loaders(seconds: float, loaders: int) -> float:
    """What a pass is worth: each loader takes memory, and the processor's time from others, which no forecast knows."""
    return seconds * (1 + LOADER_SHARE * loaders) + LOADER_S * loaders


def smallest_budget(model: ModelProfile, loaders: int | None = None) -> int:
    """The least bytes that some plan does with."""
    count = loaders or 1
    return min(_least(one, count) for one in model.granularities) + RUNS_DIFFER_NBYTES


def everything_fits(model: ModelProfile, loaders: int | None = None) -> int:
    """The least bytes with which nothing is streamed after the first pass, and that is the fastest there is."""
    count = loaders or 1
    fastest = min(one.compute_s for one in model.granularities)
    return min(
        needs(one, count).least(one.rounding_nbytes + len(one.units) * slot_cost(one.slot_nbytes, count))
        for one in model.granularities
        if one.compute_s + model.other_s <= (fastest + model.other_s) * (1 + TOLERANCE / 2)
    )


def shares(budget: int | None, one: Granularity, loaders: int) -> Share:
    """The daemon's division of the budget. Raises BudgetTooSmall."""
    return share_out(budget, needs(one, loaders), len(one.units), one.slot_nbytes, loaders, one.rounding_nbytes)


def needs(one: Granularity, loaders: int) -> Needs:
    """What the daemon will leave beside the slots."""
    return Needs(
        DAEMON_NBYTES, LOADER_NBYTES * loaders, one.base_nbytes, one.reserve_nbytes, start=one.start_nbytes
    )  # fmt: skip


def table(
    device: DeviceProfile, model: ModelProfile, rows: int = 8, loaders: int | None = None
) -> list[tuple[int, Plan]]:
    """(budget, plan) from the smallest budget to the one with which everything fits."""
    low, high = smallest_budget(model, loaders), everything_fits(model, loaders)
    step = next((mib << 20 for mib in (16, 32, 64, 128, 256, 512) if (high - low) >> 20 <= mib * 20), 1024 << 20)
    budgets = [-(-low // (1 << 20)) << 20]
    for number in range(1, rows):
        # The nth power between: what one more MiB brings is worth most where there are few.
        wished = low * (high / low) ** (number / (rows - 1)) if low else high
        rounded = -(-int(wished) // step) * step
        if rounded > budgets[-1]:
            budgets.append(rounded)
    return [(budget, plan(device, model, budget, loaders)) for budget in budgets]


def _least(one: Granularity, loaders: int) -> int:
    slots = min(MIN_SLOTS, len(one.units)) * slot_cost(one.slot_nbytes, loaders)
    return needs(one, loaders).least(one.rounding_nbytes + slots)


def _loader_counts(device: DeviceProfile, loaders: int | None) -> Iterable[int]:
    if loaders is not None:
        return (loaders,)
    return range(1, max(MOST_LOADERS, *(rate.readers for rate in device.rates)) + 1)


def _largest_first(model: ModelProfile) -> list[Granularity]:
    return sorted(model.granularities, key=lambda one: -one.slot_nbytes)


def _ways(device: DeviceProfile, loaders: int) -> list[tuple[tuple[int, bool], tuple[float, ...]]]:
    """Ways to read, without those that another one beats however many loaders are busy."""
    kept: list[tuple[tuple[int, bool], tuple[float, ...]]] = []
    for way in device.ways():
        rates = device.by_readers(*way, READERS * loaders)[::READERS]
        if any(all(a <= b for a, b in zip(rates, other, strict=True)) for _, other in kept):
            continue
        kept = [one for one in kept if not all(b <= a for a, b in zip(rates, one[1], strict=True))]
        kept.append((way, rates))
    return kept


def _choices(
    model: ModelProfile,
    granularity: Granularity,
    rank: int,
    loaders: int,
    way: tuple[int, bool],
    rates: tuple[float, ...],
    slots: int,
) -> Iterator[_Choice]:
    """All windows, narrow ones first: with them the bound only grows."""
    sizes = sorted((unit.read_nbytes for unit in granularity.units), reverse=True)
    saved = [0, *accumulate(sizes)]
    total, count = saved[-1], len(sizes)
    compute_s = model.other_s + granularity.compute_s
    fastest = max(rates)
    previous = 0.0
    for window in _windows(slots, count, loaders):
        streamed = 0 if slots >= count else total - saved[max(0, slots - window)]
        units = 0 if slots >= count else count - max(0, slots - window)
        bound_s = max(compute_s + UNIT_S * units, streamed / fastest + READ_S * units)
        previous = max(previous, bound_s)
        yield _Choice(with_loaders(previous, loaders), loaders, rank, window, way, rates, granularity, slots)


def _windows(slots: int, units: int, loaders: int) -> Iterator[int]:
    """None with fewer slots than one for each loader and one that compute holds: loaders that wait for a slot come to
    read and to wait together, and the disk rests while compute works, which no forecast shows (measured: 2 loaders in
    2 slots left it idle for 16 % of a pass, in 3 for 1.5 %).
    """
    if slots >= units:
        yield window_for(slots, 1)
        return
    window = window_for(slots, loaders)
    while window < slots:
        yield window
        window += 1 if window < SOME_WINDOWS else window // 8
    yield slots


def _flow(choice: _Choice, model: ModelProfile, device: DeviceProfile, first: bool = False) -> Flow:
    units = choice.granularity.units
    residents = _residents(choice)
    reads: list[float] = []
    holds: list[float] = []
    gaps: list[float] = []
    lead_s = model.first_other_s if first else model.other_s
    for number, unit in enumerate(units):
        seconds = unit.first_s if first else unit.compute_s
        if number not in residents or first:
            reads.append(unit.read_nbytes + READ_S * max(choice.rates))
            holds.append(seconds + UNIT_S)
            gaps.append(0.0)
        elif gaps:
            gaps[-1] += seconds
        else:
            lead_s += seconds
    slots = choice.slots if first else choice.window  # on the first pass residents are read like all the others,
    return Flow(  # and what is yet to come may lie in every slot
        reads, holds, gaps, lead_s, choice.rates, max(1, slots), device.read_s + ORDER_S,
        1 + model.beside_compute, 1 + model.beside_read, TAKEN_S,
    )  # fmt: skip


def _residents(choice: _Choice) -> frozenset[UnitNo]:
    sizes = [unit.nbytes for unit in choice.granularity.units]
    return choose_residents(sizes, choice.slots, window_for(choice.slots, choice.loaders, choice.window))


def _planned(choice: _Choice, found: Pass, device: DeviceProfile, model: ModelProfile) -> Plan:
    units = choice.granularity.units
    residents = _residents(choice)
    resident_nbytes = sum(units[unit].read_nbytes for unit in residents)
    model_nbytes = choice.granularity.read_nbytes
    streamed = model_nbytes - resident_nbytes
    compute_s = model.other_s + choice.granularity.compute_s
    reading_s = streamed / max(choice.rates)
    bound_by = BOUND_BY_COMPUTE
    if found.stall_s > 0.02 * found.seconds:
        bound_by = BOUND_BY_DISK if reading_s * (1 + model.beside_read) >= 0.9 * found.seconds else BOUND_BY_WINDOW
    peak = DAEMON_AT_WORK + LOADER_AT_WORK * choice.loaders
    peak += choice.granularity.base_nbytes + choice.granularity.use_nbytes
    peak += choice.slots * slot_cost(choice.granularity.slot_nbytes, choice.loaders)
    peak += choice.granularity.rounding_nbytes
    peak = max(peak, DAEMON_AT_WORK + LOADER_AT_WORK * choice.loaders + choice.granularity.start_nbytes)
    return Plan(
        loaders=choice.loaders,
        room=choice.granularity.room,
        slot_nbytes=choice.granularity.slot_nbytes,
        slots=choice.slots,
        window=0 if len(residents) == len(units) else choice.window,
        residents=len(residents),
        units=len(units),
        resident_nbytes=resident_nbytes,
        model_nbytes=model_nbytes,
        chunk_nbytes=choice.way[0],
        direct=choice.way[1],
        threads=model.threads,
        forecast=Forecast(
            seconds=found.seconds,
            stall_s=found.stall_s,
            first_s=simulate(_flow(choice, model, device, first=True), first=True).seconds,
            limit_s=max(compute_s, reading_s),
            peak_nbytes=peak,
            streamed_nbytes=streamed,
            bound_by=bound_by,
        ),
    )


def _too_small(model: ModelProfile, budget: int | None, loaders: int | None) -> BudgetTooSmall:
    """The refusal of the plan that needs least, in the words of the daemon's."""
    count = loaders or 1
    least = min(model.granularities, key=lambda one: _least(one, count))
    try:
        shares(budget, least, count)
    except BudgetTooSmall as error:
        return error
    raise AssertionError("a plan that fits was found after all")
