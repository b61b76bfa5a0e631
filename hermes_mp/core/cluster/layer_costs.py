"""What computing costs on one board, by bytes of weights: estimated at first, and corrected by what runs have taken.

Kept in the user's cache as JSON. It knows no clock and no model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from hermes_mp.core.cluster.facts import ESTIMATED, MEASURED
from hermes_mp.errors import BadMessage

LAYER_S = 0.0005  # of Python and small operations, per layer and pass
OUTSIDE_S = 0.002  # of a pass, outside of layers and matrices: choosing the token
LEAST_FACTOR, MOST_FACTOR = 0.05, 50.0  # what lies beyond was no measurement of computing
ENOUGH = 4  # passes that are a measurement
RECENT = 64
PROMPT_TOKENS = 8  # a shorter one says nothing of what a further position costs


@dataclass(frozen=True)
class LayerCosts:
    """Seconds per byte of weights: for one position, and for every further one; times what runs have shown."""

    token_s_per_byte: float
    prompt_s_per_byte: float
    token_factor: float = 1.0
    prompt_factor: float = 1.0
    measured: bool = False

    @property
    def source(self) -> str:
        return MEASURED if self.measured else ESTIMATED

    def layer_s(self, nbytes: float) -> float:
        """Of a layer of so many bytes, and one position."""
        return self.token_factor * (LAYER_S + nbytes * self.token_s_per_byte)

    def prefill_s_per_token(self, nbytes: float) -> float:
        return self.prompt_factor * nbytes * self.prompt_s_per_byte

    def outside_s(self, nbytes: float) -> float:
        """Of a pass and one position: weights of so many bytes that are no layer's, and all that has none."""
        return self.token_factor * (OUTSIDE_S + nbytes * self.token_s_per_byte)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> LayerCosts:
        """Raises BadMessage for what `to_json` did not write."""
        try:
            found = cls(
                float(document["token_s_per_byte"]), float(document["prompt_s_per_byte"]),
                float(document["token_factor"]), float(document["prompt_factor"]), bool(document["measured"]),
            )  # fmt: skip
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise BadMessage(f"these are no costs of layers: {error}") from error
        good = all(0 <= one < 1e-3 for one in (found.token_s_per_byte, found.prompt_s_per_byte))
        if not good or not all(LEAST_FACTOR <= one <= MOST_FACTOR for one in (found.token_factor, found.prompt_factor)):
            raise BadMessage("costs of layers that are out of range")
        return found


class Learning:
    """Passes of a run, against what they should have cost; `learned()` is what to expect from now on."""

    def __init__(self, costs: LayerCosts) -> None:
        self._costs = replace(costs, token_factor=1.0, prompt_factor=1.0)
        self._known = costs
        self._tokens: deque[float] = deque(maxlen=RECENT)
        self._prompts: deque[float] = deque(maxlen=RECENT)

    def passed(
        self, tokens: int, seconds: float, layers: int, layer_nbytes: float, outside_nbytes: float = -1.0
    ) -> None:
        """`seconds` of computing, for `tokens` new positions; `outside_nbytes`: of a head, what is no layer's."""
        costs = self._costs
        expected_s = layers * costs.layer_s(layer_nbytes)
        expected_s += costs.outside_s(outside_nbytes) if outside_nbytes >= 0 else 0.0
        if not expected_s:
            return
        if tokens == 1:
            self._tokens.append(seconds / expected_s)
        elif tokens >= PROMPT_TOKENS and layers:
            further_s = seconds - expected_s * self.learned().token_factor
            each_s = layers * costs.prefill_s_per_token(layer_nbytes) * (tokens - 1)
            if each_s:
                self._prompts.append(further_s / each_s)

    def learned(self) -> LayerCosts:
        found = self._known
        if len(self._tokens) >= ENOUGH:
            found = replace(found, token_factor=_within(_median(self._tokens)), measured=True)
        if self._prompts:
            found = replace(found, prompt_factor=_within(_median(self._prompts)))
        return found


def _median(figures: Iterable[float]) -> float:
    ordered = sorted(figures)
    return ordered[len(ordered) // 2]


def _within(factor: float) -> float:
    return min(MOST_FACTOR, max(LEAST_FACTOR, factor))
