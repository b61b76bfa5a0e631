"""Why a board has no part in a plan, in one line with figures.

What holds it up is found by asking: were only its disk, its link or its processor as fast as can be, what would the
same deal take? It knows no search.
"""

from __future__ import annotations

from dataclasses import replace

from hermes_mp.core.cluster.cluster import Cluster, LinkFacts
from hermes_mp.core.cluster.deals import least_budget
from hermes_mp.core.cluster.forecast import Forecaster, Way

FAST = 1e12  # bytes per second
SAME = 0.01  # forecasts that differ by less are the same
PART = 0.02  # of a pass: what changes less holds nobody up


def why_useless(cluster: Cluster, board: int) -> str:
    """Of a board that cannot be given a layer at all."""
    facts = cluster.boards[board]
    if facts.disk_nbytes_per_s is None:
        return "it has no copy of the model, and no other board has its disk to spare"
    least = least_budget(cluster, board, 1)
    have, needed = -(-facts.budget_nbytes // (1 << 20)), -(-least // (1 << 20))
    if facts.budget_nbytes < least:
        return f"its {have} MiB have no room for two slots and a layer's cache; the smallest budget is {needed} MiB"
    return f"its {have} MiB do not go with what the other boards have room for"


def why_left_out(cluster: Cluster, board: int, way: Way, seconds: float, without_s: float) -> str:
    """Of one that has a layer in `way`, which takes so many seconds; without the board it is `without_s`."""
    with_it, without = per_s(seconds, without_s), per_s(without_s, seconds)
    cause = _cause(cluster, board, way, seconds)
    if abs(seconds - without_s) <= SAME * without_s:
        return f"it would change nothing ({with_it} token/s instead of {without})" + (f": {cause}" if cause else "")
    return f"it would make it {with_it} token/s instead of {without}" + (f": {cause}" if cause else "")


def per_s(seconds: float, other_s: float | None = None) -> str:
    """Tokens per second, in as many digits as tell it from the other."""
    if seconds <= 0:
        return "any number of"
    for digits in (2, 3):
        text = f"{1 / seconds:.{digits}g}"
        if other_s is None or text != f"{1 / other_s:.{digits}g}":
            break
    return text if "e" not in text else f"{1 / seconds:.0f}"


def mb_per_s(nbytes_per_s: float) -> str:
    return f"{nbytes_per_s / 1e6:.0f} MB/s"


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def _cause(cluster: Cluster, board: int, way: Way, seconds: float) -> str:
    """What of the board holds the deal up most; empty where nothing of it does."""
    facts = cluster.boards[board]
    link = cluster.links[facts.name]
    disk = facts.disk_nbytes_per_s
    asked = [
        ("its link takes " + ms(cluster.hop_s(board)) + " there and back", facts, LinkFacts(FAST, 0.0, 0.0)),
        ("a layer takes it " + ms(facts.layer_s), replace(facts, layer_s=0.0), link),
    ]
    if disk is not None:
        asked.insert(0, ("its disk gives " + mb_per_s(disk), replace(facts, disk_nbytes_per_s=FAST), link))
    best, least_s = "", seconds * (1 - PART)
    for text, other, other_link in asked:
        boards = tuple(other if number == board else one for number, one in enumerate(cluster.boards))
        found = Forecaster(Cluster(cluster.model, boards, {**cluster.links, facts.name: other_link})).steady(way)
        if found is not None and found.seconds < least_s:
            best, least_s = text, found.seconds
    return best
