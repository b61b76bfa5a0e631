"""Whether a board does in a run what was forecast of it: which one is slow, and what it waits on.

Each pass it is told how long every board was at it; after several that are all far longer than forecast it names the
board, and the figure to plan with from then on. It knows no clock and no socket.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hermes_mp.core.cluster.cluster import Cluster, ClusterPlan

SLOW = 2.0  # times what was forecast of it
PASSES = 8  # in a row: what else runs on a board disturbs a few
LEAST_S = 0.002  # of a pass: less is the unrest of a link
LEAST_GAIN = 0.1  # of a token, that dividing anew is worth
HORIZON = 16  # tokens that a request is taken to have left at least
DISK, PROCESSOR, LINK = "its disk", "its processor", "the link"


@dataclass(frozen=True)
class Turn:
    """A board's part of one pass, in seconds: all its hops took `away_s`; there, layers took `took_s`, of which units
    were waited for `stalled_s`. `hops` of them.
    """

    hops: int
    away_s: float
    took_s: float
    stalled_s: float

    @property
    def compute_s(self) -> float:
        return max(0.0, self.took_s - self.stalled_s)

    @property
    def link_s(self) -> float:
        return max(0.0, self.away_s - self.took_s)


@dataclass(frozen=True)
class Slow:
    """A board that takes `seconds` of a pass instead of `forecast_s`, mostly in wait for `what`."""

    board: str
    what: str
    seconds: float
    forecast_s: float
    turn: Turn
    pass_s: float

    def text(self) -> str:
        return (
            f'board "{self.board}" takes {_ms(self.seconds)} of a token instead of {_ms(self.forecast_s)}, '
            f"mostly for {self.what}"
        )


def expected(cluster: Cluster, plan: ClusterPlan) -> dict[str, Turn]:
    """Of every board but the head that runs layers: what the forecast says of its part of a token."""
    found = {}
    head = cluster.boards[cluster.head].name
    for one in plan.boards:
        if one.board == head or not one.layers:
            continue
        hops = len(one.layers)
        took = (one.compute_share + one.stall_share) * plan.seconds
        link_s = hops * cluster.hop_s(cluster.number(one.board))
        found[one.board] = Turn(hops, took + link_s, took, one.stall_share * plan.seconds)
    return found


class Watch:
    """One for each plan that is run by."""

    def __init__(self, forecast: Mapping[str, Turn]) -> None:
        self._forecast = dict(forecast)
        self._recent: dict[str, deque[tuple[Turn, float]]] = {name: deque(maxlen=PASSES) for name in forecast}
        self._named: set[str] = set()

    def look(self, turns: Mapping[str, Turn], pass_s: float) -> Slow | None:
        """A pass over one token is over. A board is named once."""
        for name, recent in self._recent.items():
            if name not in turns:
                recent.clear()
                continue
            recent.append((turns[name], pass_s))
            forecast = self._forecast[name]
            slow = all(one.away_s > max(SLOW * forecast.away_s, LEAST_S) for one, _ in recent)
            if len(recent) == PASSES and slow and name not in self._named:
                self._named.add(name)
                turn, whole_s = sorted(recent, key=lambda one: one[0].away_s)[PASSES // 2]
                return Slow(name, _what(turn, forecast), turn.away_s, forecast.away_s, turn, whole_s)
        return None


def corrected(cluster: Cluster, plan: ClusterPlan, slow: Slow) -> Cluster:
    """The same boards with the figure as it was measured, instead of as it was thought to be."""
    number = cluster.number(slow.board)
    facts, link = cluster.boards[number], cluster.links[slow.board]
    part = next(one for one in plan.boards if one.board == slow.board)
    layers = sum(last - first for first, last in part.layers)
    if slow.what == PROCESSOR:
        facts = replace(facts, layer_s=slow.turn.compute_s / max(1, layers))
    elif slow.what == DISK and facts.disk_nbytes_per_s is not None and part.streamed_nbytes:
        # A disk that is waited for so long has read all the time, whoever's turn it was.
        rate = part.streamed_nbytes / slow.pass_s
        facts = replace(facts, disk_nbytes_per_s=min(rate, facts.disk_nbytes_per_s))
    else:
        states_s = 2 * cluster.model.hidden_nbytes_per_token / link.nbytes_per_s
        link = replace(link, round_trip_s=max(0.0, slow.turn.link_s / max(1, slow.turn.hops) - states_s - link.hop_s))
    boards = tuple(facts if at == number else one for at, one in enumerate(cluster.boards))
    return replace(cluster, boards=boards, links={**cluster.links, slow.board: link})


def when_to_change(now_s: float, then_s: float, first_s: float, made: int) -> str:
    """ "now", "next" (request) or "never", of dividing anew: a token takes `now_s`, and would take `then_s`.

    To change now the request must be repeated, with its first token in `first_s` and the `made` ones after it; how many
    it has left nobody knows. So it is done where a few tokens more make up for that.
    """
    if then_s > now_s * (1 - LEAST_GAIN):
        return "never"
    return "now" if first_s + made * then_s < HORIZON * (now_s - then_s) else "next"


def _what(turn: Turn, forecast: Turn) -> str:
    excess = {
        DISK: turn.stalled_s - forecast.stalled_s,
        PROCESSOR: turn.compute_s - forecast.compute_s,
        LINK: turn.link_s - forecast.link_s,
    }
    return max(excess, key=lambda one: excess[one])


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2g} s"
