"""What each board of a run did, forecast and measured: for the report, as JSON and in a line for people.

It measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hermes_mp.core.cluster.stretches import ranges_text


@dataclass(frozen=True)
class BoardPart:
    """One board. Seconds are of a token, their mean; `forecast_*` as planned, None without a plan.

    `away_s`: from asking it to its answers, of which `compute_s` computing, `stalled_s` in wait for its units, and
    `link_s` on the way; None where no token was made, and for the head, whose figures are the report's own.
    `differs`: in what it is another machine than the head: then the model is the same, but not every bit is promised.
    `lends_to`: so many remote loaders of the head, which read its disk.
    """

    board: str
    layers: tuple[int, ...] = ()
    forecast_s: float | None = None
    forecast_stalled_s: float | None = None
    forecast_peak_nbytes: int | None = None
    forecast_read_nbytes: int | None = None
    away_s: float | None = None
    compute_s: float | None = None
    stalled_s: float | None = None
    link_s: float | None = None
    slots: int | None = None
    residents: int | None = None
    units: int | None = None
    read_nbytes_per_token: int | None = None
    budget_nbytes: int | None = None
    peak_nbytes: int | None = None
    differs: tuple[str, ...] = ()
    left_out: str = ""
    lends_to: int = 0


def board_lines(parts: Sequence[BoardPart]) -> list[str]:
    """For people."""
    lines = []
    for number, one in enumerate(parts):
        label = "boards" if number == 0 else ""
        lines.append(f"{label:<9} {_line(one)}")
    differs = [f"{one.board} has {', '.join(one.differs)}" for one in parts if one.differs and one.layers]
    if differs:
        lines.append(f"          same model, bits not promised: {'; '.join(differs)}")
    return lines


def _line(one: BoardPart) -> str:
    if one.left_out:
        return f"{one.board}: left out: {one.left_out}"
    if not one.layers:
        lends = f", lends its disk to {one.lends_to} remote loader{'s' * (one.lends_to > 1)}" if one.lends_to else ""
        return f"{one.board}: no layers{lends}"
    noun = "layer" if len(one.layers) == 1 else "layers"
    parts = [f"{one.board}: {noun} {ranges_text(one.layers)}"]
    if one.away_s is not None:
        text = f"{_seconds(one.away_s)} of a token"
        if one.forecast_s is not None:
            text += f" ({_seconds(one.forecast_s)} forecast)"
        stalled, link = one.stalled_s or 0.0, one.link_s or 0.0
        parts += [text, f"{_seconds(stalled)} of it waiting for weights, {_seconds(link)} on the way"]
    if one.slots is not None:
        residents = f", {one.residents} of {one.units} units resident" if one.residents else ""
        parts.append(f"{one.slots} slots{residents}")
    if one.read_nbytes_per_token is not None:
        parts.append(f"reads {_size(one.read_nbytes_per_token)} a token")
    if one.peak_nbytes is not None:
        limit = "" if one.budget_nbytes is None else f" of {_size(one.budget_nbytes)}"
        parts.append(f"{_size(one.peak_nbytes)} at most{limit}")
    return "; ".join(parts)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB" if nbytes < 10 * 2**30 else f"{nbytes / 2**30:.1f} GiB"
