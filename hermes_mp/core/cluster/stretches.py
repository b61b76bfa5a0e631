"""Which board runs which layers: stretches of consecutive layers, in the order in which a pass goes through them.

Pure data with its rules; the planner chooses them, a user may name them: `head:4,pi2:6,head:4,pi2:6`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hermes_mp.errors import BadOption
from hermes_mp.messages import LayerRange


@dataclass(frozen=True, order=True)
class Stretch:
    """Layers `first` to `last` (excluded), run by `board`."""

    board: str
    first: int
    last: int


def check_stretches(stretches: Sequence[Stretch], layers: int) -> None:
    """Raises BadOption unless they are all layers, each once and in order."""
    at = 0
    for one in stretches:
        if one.first != at or one.last <= one.first:
            raise BadOption(f"layers {one.first} to {one.last} of board {one.board} do not follow layer {at}")
        at = one.last
    if at != layers:
        raise BadOption(f"the split names {at} layers, but the model has {layers}")


def merged(stretches: Iterable[Stretch]) -> list[Stretch]:
    """The same, neighbours on one board being one stretch, and empty ones left out."""
    found: list[Stretch] = []
    for one in stretches:
        if one.first == one.last:
            continue
        if found and found[-1].board == one.board:
            found[-1] = Stretch(one.board, found[-1].first, one.last)
        else:
            found.append(one)
    return found


def of_board(stretches: Iterable[Stretch], board: str) -> tuple[LayerRange, ...]:
    """What this board runs, in order."""
    return tuple(LayerRange(one.first, one.last) for one in stretches if one.board == board)


def layers_of(stretches: Iterable[Stretch], board: str) -> list[int]:
    """The numbers of its layers."""
    return [layer for one in stretches if one.board == board for layer in range(one.first, one.last)]


def parse_split(text: str) -> list[tuple[str, int]]:
    """`head:4,pi2:6` as (board, layers) pairs, in order. Raises BadOption."""
    found: list[tuple[str, int]] = []
    for part in text.split(","):
        board, colon, count = part.strip().rpartition(":")
        if not colon or not board or not count.isascii() or not count.isdigit() or not 0 < int(count) < 10_000:
            raise BadOption(f"a split is BOARD:LAYERS,BOARD:LAYERS,..., not {part.strip()!r}")
        found.append((board, int(count)))
    return found


def split_of(pairs: Iterable[tuple[str, int]]) -> list[Stretch]:
    """(board, layers) pairs as stretches from layer 0 on."""
    found: list[Stretch] = []
    at = 0
    for board, count in pairs:
        found.append(Stretch(board, at, at + count))
        at += count
    return merged(found)


def ranges_text(layers: Sequence[int]) -> str:
    """`0-3, 8-11`."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and spans[-1][1] == layer - 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
