"""Divides `--memory` between the processes and the slots, or says what the smallest budget would be; `auto` first
becomes a number here.

What is bounded: private memory and file-backed PSS of every process of ours, the arena's allocated bytes once, and
page tables. All figures in bytes; whoever measured them is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_mp.errors import BudgetTooSmall

MIN_SLOTS = 2  # with one, nothing could be read while compute computes
MARGIN_NBYTES = 12 << 20  # the allocator's slack, and growth of daemon and loaders after they were measured (seen: 2)
LAST_NBYTES = 16 << 20  # of the reserve stays free even where all else is needed to run at all
RUNS_DIFFER_NBYTES = 8 << 20  # compute takes up to 5 MiB more or less in the next run: the budget named must do there
LOADER_NBYTES = 13 << 20  # what one that is still starting will take; one at work has 11.6
WINDOW_NBYTES = 8 << 20  # on their way to one remote loader: what a disk and a wire have under way together
DAEMON_NBYTES = 20 << 20  # at work 16 to 17
PAGE_ENTRIES = 512  # a page table entry is 8 bytes for a page of 4 KiB: 1/512, once per process that maps the slot


@dataclass(frozen=True)
class Needs:
    """What must be left beside the slots."""

    daemon: int
    loaders: int  # all of them together
    compute: int  # before it binds
    reserve: int  # KV cache, logits, activations and casts at the reserved context and batch
    wish: int = 0  # a larger reserve, for inputs that are large before they are prepared; slots beyond the least yield
    start: int = 0  # the most that compute has taken while it started, when there were no slots yet

    @property
    def total(self) -> int:
        return self.daemon + self.loaders + self.compute + self.reserve + MARGIN_NBYTES

    def least(self, slots_nbytes: int) -> int:
        """The smallest budget: for running with so many bytes of slots, and for starting without them."""
        return max(self.total + slots_nbytes, self.daemon + self.loaders + self.start)


@dataclass(frozen=True)
class Share:
    """`slots` slots of `slot_nbytes`, and `reserve` bytes for what compute does."""

    slots: int
    slot_nbytes: int
    reserve: int


@dataclass(frozen=True)
class Spare:
    """What the machine can spare for us, with what we have already; the reserve is left alone, or all but the last."""

    nbytes: int
    last_nbytes: int


def auto_budget(spare: Spare, needs: Needs, units: int, slot_nbytes: int, loaders: int, rounding: int = 0) -> int:
    """The number that `--memory auto` stands for: what is spare beyond the reserve.

    The reserve is kept for the sake of others, among them a run of ours beside us that has residents to give back: so
    a run that could not be otherwise begins in the reserve, with the least number of slots.
    """
    least = needs.least(rounding + min(units, MIN_SLOTS) * slot_cost(slot_nbytes, loaders))
    return max(0, spare.nbytes, min(least, spare.last_nbytes))


def share_out(
    budget: int | None,
    needs: Needs,
    units: int,
    slot_nbytes: int,
    loaders: int,
    rounding: int = 0,
    auto: bool = False,
) -> Share:
    """The number of slots: what the budget leaves, at most one per unit; without a budget one more than loaders.

    `rounding`: bytes that all slots together may take more, for the last huge page. With an `auto` budget what no slot
    needs is for compute as well: it was reserved for nobody.
    Raises BudgetTooSmall with the smallest budget that would do.
    """
    if units == 0:
        return Share(0, slot_nbytes, max(needs.reserve, needs.wish))
    if budget is None:
        return Share(min(units, max(loaders + 1, MIN_SLOTS)), slot_nbytes, max(needs.reserve, needs.wish))
    cost = slot_cost(slot_nbytes, loaders)
    least = min(units, MIN_SLOTS)
    spare = budget - needs.total - rounding - least * cost
    if budget < needs.least(rounding + least * cost):
        smallest = needs.least(rounding + least * cost) + RUNS_DIFFER_NBYTES
        starts = needs.total + rounding + least * cost < needs.daemon + needs.loaders + needs.start
        start = f" ({_mib(needs.start)} while it starts)" if starts else ""
        asked = f"--memory auto comes to {_mib(budget)} here, which" if auto else f"--memory {_mib(budget)}"
        raise BudgetTooSmall(
            f"{asked} is too small; the smallest budget for this model, context and batch is "
            f"{_mib(smallest)} (daemon {_mib(needs.daemon)}, {loaders} loaders {_mib(needs.loaders)}, compute "
            f"{_mib(needs.compute)}{start}, KV cache and activations {_mib(needs.reserve)}, {least} slots of "
            f"{_mib(slot_nbytes)}, margin {_mib(MARGIN_NBYTES + RUNS_DIFFER_NBYTES + rounding)})",
            "free some memory, or lower --context, --batch or --loaders" if auto else None,
        )
    extra = min(spare, max(0, needs.wish - needs.reserve))
    slots = min(least + (spare - extra) // cost, units)
    if auto:
        extra = spare - (slots - least) * cost
    return Share(slots, slot_nbytes, needs.reserve + extra)


def slot_cost(slot_nbytes: int, loaders: int) -> int:
    """Bytes that one more slot takes, with the page tables of compute and the loaders that map it."""
    return slot_nbytes + (loaders + 1) * (-(-slot_nbytes // PAGE_ENTRIES))


def slot_shape(largest_nbytes: int, granule: int, page: int) -> tuple[int, int]:
    """Bytes of a slot that holds units of up to `largest_nbytes`, and what all slots together may take more.

    They lie side by side in whole pages; where a slot has room for a huge page (`granule`), in whole huge pages.
    """
    nbytes = -(-largest_nbytes // page) * page
    return nbytes, granule - page if nbytes >= granule else 0


def _mib(nbytes: int) -> str:
    return f"{-(-nbytes // (1 << 20))} MiB"
