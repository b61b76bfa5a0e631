"""Forecasts a pass: loaders, window and compute as a small simulation, in the steady state of passes in a row.

Compute takes the units in order; loaders read streamed ones ahead, in order, as far as the window goes, into the next
pass too; loaders that are busy at once share the disk. Times come from `core.profile`; it knows no policy but that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hermes_mp.core.pipeload_words import Limits

MOST_PASSES = 6
AGREE = 0.002  # two passes that differ by less are the steady state


@dataclass(frozen=True)
class Flow:
    """What is simulated. `reads`: bytes of every streamed unit; `holds`: seconds compute holds its slot; `gaps`:
    seconds of residents until compute wants the next streamed unit. `lead_s` comes before the first of them.

    `rates[n]`: bytes per second of n busy loaders together. `slow_compute`, `slow_reads`: how many times as long the
    one takes while the other goes on. `read_s` passes from a slot that is free to the first byte asked of the disk; a
    loader that has its next order goes on at once. `taken_s`: what daemon and loader take of computing with every unit,
    except while compute waits. `orders`: that one loader may have at once.
    """

    reads: Sequence[float]
    holds: Sequence[float]
    gaps: Sequence[float]
    lead_s: float
    rates: Sequence[float]
    window: int
    read_s: float
    slow_compute: float = 1.0
    slow_reads: float = 1.0
    taken_s: float = 0.0
    orders: int = Limits().orders

    @property
    def loaders(self) -> int:
        return len(self.rates) - 1


@dataclass(frozen=True)
class Pass:
    """Seconds of a pass, and how many of them compute waited for units."""

    seconds: float
    stall_s: float


def simulate(flow: Flow, first: bool = False) -> Pass:
    """One pass in the steady state, or, where `first`, the pass that begins with nothing loaded."""
    count = len(flow.reads)
    if not count:
        return Pass(flow.lead_s, 0.0)
    passes: list[Pass] = []
    for one in _passes(flow):
        passes.append(one)
        settled = len(passes) > 2 and abs(one.seconds - passes[-2].seconds) <= AGREE * one.seconds
        if first or settled or len(passes) == MOST_PASSES:
            break
    found = passes[-1]
    if len(passes) == MOST_PASSES:  # it swings: the mean of what comes after the first two
        late = passes[2:]
        found = Pass(sum(p.seconds for p in late) / len(late), sum(p.stall_s for p in late) / len(late))
    # Loaders that end together bring units in bursts: two passes may agree, and be short, before a long one.
    short_s = 0.0 if first else max(0.0, sum(flow.reads) / max(flow.rates) - found.seconds)
    return Pass(found.seconds + short_s, found.stall_s + short_s)


def _passes(flow: Flow) -> Iterator[Pass]:
    """Pass after pass, from nothing loaded."""
    reads, holds, gaps, rates = flow.reads, flow.holds, flow.gaps, flow.rates
    count, loaders, window, read_s = len(reads), flow.loaders, flow.window, flow.read_s
    orders = flow.orders * loaders
    now = began = stalled = 0.0
    starting: deque[tuple[float, int]] = deque()  # reads ordered, whose first byte is still to come: (when, which)
    left: list[float] = []  # bytes left of the reads that go on
    which: list[int] = []
    loaded: set[int] = set()
    started = released = 0  # numbers of streamed units, counted over all passes
    wanted = 0  # the streamed unit that compute wants or holds
    work, phase = flow.lead_s, 0  # phase 0: before it asks for `wanted`; 1: waits for it; 2: holds it
    while True:
        while starting and starting[0][0] <= now + 1e-12 and len(left) < loaders:
            unit = starting.popleft()[1]
            left.append(reads[unit % count])
            which.append(unit)
        while started - released < window and len(left) + len(starting) < orders:
            starting.append((now + read_s, started))
            started += 1
        if phase == 1 and wanted in loaded:
            loaded.discard(wanted)
            phase, work = 2, holds[wanted % count]
        busy = len(left)
        slow = flow.slow_compute if busy else 1.0
        step = work * slow if phase != 1 else 1e30
        speeds = _shared(rates, busy, flow.slow_reads if phase != 1 else 1.0)
        for index in range(busy):
            if speeds[index]:
                step = min(step, left[index] / speeds[index])
        if starting and busy < loaders:
            step = min(step, max(0.0, starting[0][0] - now))
        now += step
        if phase == 1:
            stalled += step
        else:
            work -= step / slow
        if busy:
            keep = 0
            for index in range(busy):
                rest = left[index] - step * speeds[index]
                if rest <= 1e-3:
                    loaded.add(which[index])
                    work += 0.0 if phase == 1 else flow.taken_s
                else:
                    left[keep], which[keep] = rest, which[index]
                    keep += 1
            del left[keep:], which[keep:]
        if phase == 1 or work > 1e-12:
            continue
        if phase == 0:
            phase = 1
            continue
        released += 1
        work, phase = gaps[wanted % count], 0
        wanted += 1
        if wanted % count == 0:
            # The last gap still belongs to this pass, the lead to the next: together they are one stretch.
            ended = now + work
            yield Pass(ended - began, stalled)
            began, stalled = ended, 0.0
            work += flow.lead_s


def _shared(rates: Sequence[float], busy: int, slow: float) -> list[float]:
    """Bytes per second of each of `busy` loaders, the one that began first has the first claim.

    In equal shares loaders that begin together would end together, and rest together, for ever.
    """
    total, most = rates[busy] / slow, rates[min(1, busy)] / slow
    speeds = []
    for _ in range(busy):
        speeds.append(min(most, total))
        total -= speeds[-1]
    return speeds
