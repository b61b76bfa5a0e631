"""What physics allows: the least time a pass can take with this compute, this disk and this much memory.

limit = max(computing with all weights in memory, (bytes a pass needs - memory left for weights) / raw rate), where the
memory left is the budget less what was measured beside the weights: spare memory must be used. Pure arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

NEAR = 0.15  # where computing and reading differ by less, both decide and neither is judged


@dataclass(frozen=True)
class Limit:
    """Seconds; either part may be unknown (None)."""

    compute_s: float | None
    storage_s: float | None

    @property
    def seconds(self) -> float | None:
        known = [part for part in (self.compute_s, self.storage_s) if part is not None]
        return max(known) if known else None

    @property
    def by(self) -> str:
        """What decides: 'compute', 'storage', 'both' (within 15 % of each other), or '?' where a part is unknown."""
        if self.compute_s is None or self.storage_s is None:
            return "?"
        larger, smaller = max(self.compute_s, self.storage_s), min(self.compute_s, self.storage_s)
        if smaller > (1 - NEAR) * larger:
            return "both"
        return "compute" if self.compute_s > self.storage_s else "storage"

    def times(self, seconds: float) -> float | None:
        """How many times the limit something took."""
        return seconds / self.seconds if self.seconds else None


def cold_limit(compute_s: float | None, needed_nbytes: float, raw: float | None) -> Limit:
    """Of a first pass: all that it needs must be read."""
    return Limit(compute_s, needed_nbytes / raw if raw else None)


def steady_limit(
    compute_s: float | None, needed_nbytes: float, raw: float | None, budget: int | None, footprint: int | None
) -> Limit:
    """Of the passes after it: what the budget leaves beside the footprint need not be read again.

    Without a budget `needed_nbytes` should be what was in fact read: a window that the user made small is not spare.
    """
    spare = 0 if budget is None or footprint is None else max(0, budget - footprint)
    return Limit(compute_s, max(0.0, needed_nbytes - spare) / raw if raw else None)


def roofline(
    compute_s: float, needed_nbytes: float, raw: float, footprint: int, budgets: list[float]
) -> list[float]:
    """Seconds per pass at each budget, as `steady_limit` has it."""
    return [max(compute_s, max(0.0, needed_nbytes - max(0.0, budget - footprint)) / raw) for budget in budgets]


def reader_rate(nbytes: int, compute_s: float, factor: float) -> float:
    """Bytes per second at which one reader takes `factor` times `compute_s` for `nbytes`."""
    return nbytes / (factor * compute_s)
