"""A plan for several boards as text for people and as an object for programs: pure functions of the plan."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hermes_mp.core.cluster.cluster import BoardPlan, ClusterPlan
from hermes_mp.core.cluster.reasons import per_s
from hermes_mp.core.cluster.remote_loaders import RemoteLoaders

SCHEMA = 1
COLUMNS: tuple[str, ...] = (
    "board", "layers", "resident", "streamed", "disk", "link", "compute", "waits", "peak",
)  # fmt: skip
MOST_NAMED = 3  # of the boards left out, in the first line
MOST_RANGES = 4  # of a board's layers in the table, before the rest is a number


def as_object(plan: ClusterPlan) -> dict[str, Any]:
    """The JSON object of a plan; layers are numbered from 0, the last one of a range is excluded."""
    return {
        "schema": SCHEMA,
        "seconds": plan.seconds,
        "first_s": plan.first_s,
        "prompt_tokens": plan.prompt_tokens,
        "alone_s": plan.alone_s,
        "hops": plan.hops,
        "stretches": [asdict(one) for one in plan.stretches],
        "boards": [asdict(one) | {"resident_units": len(one.residents)} for one in plan.boards],
        "lendings": [asdict(one) for one in plan.lendings],
        "left_out": {name: {"why": one.why, "seconds": one.seconds} for name, one in plan.left_out.items()},
    }


def as_lines(plan: ClusterPlan) -> list[str]:
    """What a person sees: the figures in one line, the boards as a table, who was left out."""
    lines = [summary(plan), *table(plan)]
    for one in plan.lendings:
        lines.append(
            f"{one.lender} reads for {one.receiver}, through {one.loaders} remote "
            f"{'loader' if one.loaders == 1 else 'loaders'}"
            + (f", with {one.share:.0%} of its disk" if one.share < 1 else "")
        )
    lines += [f'"{name}" is left out: {one.why}' for name, one in plan.left_out.items()]
    lines.append(f"the first token of a prompt of {plan.prompt_tokens} takes {_seconds(plan.first_s)}")
    return lines


def summary(plan: ClusterPlan) -> str:
    """`1 board: 0.8 token/s; 3 boards: 2.3; adding "pi3" makes it 1.4, left out`."""
    count = len(plan.boards)
    parts = []
    if plan.alone_s is not None and count > 1:
        parts.append(f"1 board: {per_s(plan.alone_s, plan.seconds)} token/s")
    unit = " token/s" if not parts else ""
    parts.append(f"{count} {'board' if count == 1 else 'boards'}: {per_s(plan.seconds, plan.alone_s)}{unit}")
    for name, one in list(plan.left_out.items())[:MOST_NAMED]:
        if one.seconds is None:
            parts.append(f'"{name}" cannot be used, left out')
        else:
            parts.append(f'adding "{name}" makes it {per_s(one.seconds, plan.seconds)}, left out')
    if len(plan.left_out) > MOST_NAMED:
        parts.append(f"{len(plan.left_out) - MOST_NAMED} more left out")
    return "; ".join(parts)


def table(plan: ClusterPlan) -> list[str]:
    """One line for each board. Shares are of the time of a token."""
    rows = [COLUMNS, *(_row(one) for one in plan.boards)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def remote_lines(found: RemoteLoaders) -> list[str]:
    """What was decided of remote loaders."""
    lines = []
    for one in found.lendings:
        lines.append(f"{one.lender} reads for {one.receiver}: {one.loaders} remote loader{'s' * (one.loaders > 1)}")
    if found.lendings and found.local_s is not None:
        lines.append(
            f"{per_s(found.seconds, found.local_s)} token/s instead of {per_s(found.local_s, found.seconds)}, "
            f"{found.factor:.1f} times as fast"
        )
    return lines + [f'no remote loader on "{name}": {why}' for name, why in found.declined.items()]


def ranges(layers: tuple[tuple[int, int], ...]) -> str:
    """Layers as people count them, the last one included: `0-5, 12-17`."""
    shown = [str(first) if last == first + 1 else f"{first}-{last - 1}" for first, last in layers[:MOST_RANGES]]
    count = sum(last - first for first, last in layers)
    if len(layers) > MOST_RANGES:
        shown.append(f".. ({count} layers in {len(layers)} stretches)")
    return ", ".join(shown) or "-"


def _row(one: BoardPlan) -> tuple[str, ...]:
    return (
        one.board,
        ranges(one.layers),
        _size(one.resident_nbytes),
        _size(one.streamed_nbytes),
        f"{one.disk_share:.0%}",
        f"{one.link_share:.0%}",
        f"{one.compute_share:.0%}",
        f"{one.stall_share:.0%}",
        _size(one.peak_nbytes),
    )


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB" if nbytes < 10 * 2**30 else f"{nbytes / 2**30:.1f} GiB"
