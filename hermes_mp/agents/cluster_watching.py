"""Times the passes of a head whose layers are shared: how long each board was at it, and what is left for the head.

It knows the boards by their counters, and no plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hermes_mp.agents.board_link import BoardLink, LostBoard, StageForgotten
from hermes_mp.agents.boards import Boards
from hermes_mp.agents.cluster_planning import ClusterPlanning
from hermes_mp.core.cluster.watch import Turn


@dataclass
class _Sums:
    """Of the passes over one token, and how many."""

    passes: int = 0
    turn: Turn = field(default_factory=lambda: Turn(0, 0.0, 0.0, 0.0))


class Watching:
    """`began` is called at the beginning of every pass, `reset` where what follows is no pass of the same request."""

    def __init__(self, boards: Boards, planning: ClusterPlanning, stalled_ns: Callable[[], int]) -> None:
        self._boards, self._planning, self._stalled_ns = boards, planning, stalled_ns
        self._before: tuple[int, int, int, dict[str, Turn]] | None = None
        self._sums: dict[str, _Sums] = {}
        self._made = self._passes = 0

    def reset(self, divided: bool = False) -> None:
        """`divided`: and the layers are dealt anew."""
        self._before, self._made = None, 0
        if divided:
            self._sums, self._passes = {}, 0

    def began(self, tokens: int) -> None:
        """A pass over so many new positions begins, and with that the one before it is over."""
        now_ns, stalled_ns = time.monotonic_ns(), self._stalled_ns()
        turns = {name: _so_far(one) for name, one in self._boards.linked.items()}
        before, self._before = self._before, (now_ns, stalled_ns, tokens, turns)
        self._passes += 1
        if before is None or tokens != 1:  # the first of its request
            self._made = 0
            return
        pass_s = (now_ns - before[0]) / 1e9
        taken = {name: _between(before[3][name], turn) for name, turn in turns.items() if name in before[3]}
        self._learn(before[2], pass_s - (stalled_ns - before[1]) / 1e9 - sum(one.away_s for one in taken.values()))
        if before[2] == 1:
            self._made += 1
            used = {name: turn for name, turn in taken.items() if turn.hops}
            for name, turn in used.items():
                sums = self._sums.setdefault(name, _Sums())
                sums.passes, sums.turn = sums.passes + 1, _plus(sums.turn, turn)
            self._planning.passed(used, pass_s, self._made)

    def _learn(self, tokens: int, seconds: float) -> None:
        model, here = self._planning.model, self._planning.own_layers
        self._planning.learning.passed(
            tokens, max(0.0, seconds), here, model.mean_layer_nbytes, model.head_nbytes + model.before_nbytes
        )

    def tell(self, epoch: int) -> None:
        """What every board has taken so far goes to the daemon's report; who does not answer is told of without."""
        parts: dict[str, dict[str, Any]] = {}
        for name in self._boards.there:
            try:
                stage = self._boards.ask(name, epoch)
            except (LostBoard, StageForgotten):
                continue
            parts[name] = self._measured(name, stage)
        self._planning.tell_parts(parts)

    def _measured(self, name: str, stage: dict[str, Any]) -> dict[str, Any]:
        def whole(key: str) -> int | None:
            value = stage.get(key)
            return value if type(value) is int and value >= 0 else None

        read = whole("bytes_read")
        found: dict[str, Any] = {
            "slots": whole("slots"), "residents": whole("residents"), "units": whole("units"),
            "budget_nbytes": whole("budget_nbytes"), "peak_nbytes": whole("peak_nbytes"),
        }  # fmt: skip
        if self._passes and read is not None:
            streamed = max(0, read - self._planning.resident_nbytes.get(name, 0))
            found["read_nbytes_per_token"] = streamed // self._passes
        sums = self._sums.get(name)
        if sums is not None:
            count, turn = sums.passes, sums.turn
            found |= {
                "away_s": turn.away_s / count, "compute_s": turn.compute_s / count,
                "stalled_s": turn.stalled_s / count, "link_s": turn.link_s / count,
            }  # fmt: skip
        return found


def _so_far(one: BoardLink) -> Turn:
    return Turn(one.hops, one.away_ns / 1e9, one.took_ns / 1e9, one.stalled_ns / 1e9)


def _between(before: Turn, now: Turn) -> Turn:
    return Turn(
        now.hops - before.hops, now.away_s - before.away_s, now.took_s - before.took_s, now.stalled_s - before.stalled_s
    )


def _plus(one: Turn, other: Turn) -> Turn:
    return Turn(
        one.hops + other.hops, one.away_s + other.away_s, one.took_s + other.took_s, one.stalled_s + other.stalled_s
    )
