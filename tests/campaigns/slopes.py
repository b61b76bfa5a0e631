"""Whether a figure of a process grows: a robust slope through its samples, and what it must not exceed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import combinations

Point = tuple[float, float]  # when, and how much


def theil_sen(points: Sequence[Point]) -> float:
    """The median of the slopes through all pairs: a step, or a third of all samples gone astray, does not move it."""
    slopes = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in combinations(points, 2)]
    return statistics.median(slopes)


def growth(points: Sequence[Point]) -> float:
    """What the slope makes of the time that the points cover."""
    return theil_sen(points) * (points[-1][0] - points[0][0])
