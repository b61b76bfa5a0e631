"""The pictures of a report: latency and memory by mode, speed against budget, and the timeline of one row.

Each is drawn as PNG and SVG by matplotlib (the optional extra `bench`). Knows rows and traces, measures nothing.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hermes_mp.bench.limits import roofline
from hermes_mp.bench.rows import Row
from hermes_mp.errors import MissingPackage

COLOURS = {
    "resident": "#7a7a7a", "sequential": "#b58a3a", "pipeline": "#3a6ea5", "pipeload": "#2e8b57",
    "accelerate": "#a0527a", "llama.cpp": "#8a4fbf",
}  # fmt: skip
READ, COMPUTE, WAIT = "#3a6ea5", "#2e8b57", "#d98c8c"
SLOT_STATES = {"held": "#2e8b57", "loaded": "#9fd0b0", "lent": "#3a6ea5", "empty": "#e6e6e6"}
SLOT_WORDS = {"held": "held by compute", "loaded": "loaded", "lent": "being read", "empty": "empty"}
FORMATS = ("png", "svg")


def load_pyplot() -> Any:
    """Raises MissingPackage."""
    try:
        import matplotlib
    except ImportError:
        raise MissingPackage("plots need matplotlib", "pip install 'hermes-mp[bench]', or add --no-plots") from None
    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none",
        "axes.titlesize": 10, "figure.titlesize": 11,
    })  # fmt: skip
    from matplotlib import pyplot

    return pyplot


def save(pyplot: Any, figure: Any, path: Path) -> list[Path]:
    """As `path` with each format's suffix."""
    made = []
    for suffix in FORMATS:
        made.append(path.with_name(f"{path.name}.{suffix}"))
        figure.savefig(made[-1], dpi=150, bbox_inches="tight")
    pyplot.close(figure)
    return made


def by_mode(pyplot: Any, title: str, rows: Sequence[Row], path: Path) -> list[Path]:
    """Horizontal bars: seconds (cold, and again) with the limit of each, and memory (weights, and all)."""
    firsts = [row for row in rows if row.is_first and not row.failed and row.seconds is not None]
    if not firsts:
        return []
    again = {(row.backend, row.loaders, row.budget_nbytes): row for row in rows if not row.is_first}
    figure, (left, middle, right) = pyplot.subplots(
        1, 3, figsize=(12.5, 1.4 + 0.42 * len(firsts)), sharey=True, layout="constrained"
    )
    names = [_name(row) for row in firsts]
    places = range(len(firsts))
    colours = [COLOURS.get(row.backend, "#555555") for row in firsts]
    followers = [again.get((row.backend, row.loaders, row.budget_nbytes)) for row in firsts]
    _bars(left, firsts, colours, firsts[0].test)
    shown = [row for row in followers if row is not None]
    _bars(middle, followers, colours, shown[0].test if shown else "")
    weights = [(row.weight_nbytes or 0) / 1e6 for row in firsts]
    peaks = [(row.peak_nbytes or 0) / 1e6 for row in firsts]
    right.barh(places, peaks, height=0.62, color=colours, alpha=0.35)
    right.barh(places, weights, height=0.62, color=colours)
    widest = max([*peaks, *weights, 1e-9])
    for place, row, weight, peak in zip(places, firsts, weights, peaks, strict=True):
        text = f"{weight:.0f} of {peak:.0f}" if peak and weight else f"{peak or weight:.0f}"
        text += "" if row.weight_share is None else f" ({100 * row.weight_share:.0f} %)"
        right.text(max(peak, weight) + 0.015 * widest, place, text, va="center", fontsize=8)
    right.set_xlim(0, 1.45 * widest)
    right.set_xlabel("MB (dark: weights, and their share of the model's)")
    right.set_title("peak memory")
    left.set_yticks(list(places), names)
    left.invert_yaxis()
    for axes in (left, middle, right):
        axes.tick_params(axis="y", length=0)
    figure.suptitle("\n".join(textwrap.wrap(title, 120)))
    return save(pyplot, figure, path)


def _bars(axes: Any, rows: Sequence[Row | None], colours: list[str], title: str) -> None:
    known = [row.seconds or 0.0 for row in rows if row is not None]
    widest = max([*known, 1e-9])
    for place, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        if row is None or row.seconds is None:
            continue
        axes.barh(place, row.seconds, height=0.62, color=colour)
        if row.limit_s is not None and row.limit_s <= 1.3 * widest:
            axes.plot([row.limit_s] * 2, [place - 0.38, place + 0.38], color="black", linewidth=1.6)
        text = _seconds(row.seconds) + (f"  {_times(row.speedup)}" if row.speedup and row.backend != "pipeline" else "")
        end = max(row.seconds, row.limit_s or 0.0) if (row.limit_s or 0.0) <= 1.3 * widest else row.seconds
        axes.text(end + 0.015 * widest, place, text, va="center", fontsize=8)
    axes.set_xlim(0, 1.65 * widest)
    axes.set_xlabel("seconds (black: the limit)")
    axes.set_title(title)


def against_budget(pyplot: Any, title: str, rows: Sequence[Row], path: Path) -> list[Path]:
    """Seconds of a pass or token at each budget, with what physics allows drawn in. Needs two budgets.

    Rows may come from groups of several memory cgroups: then what knows no budget is drawn over those.
    """
    steady = [
        row for row in rows if row.backend == "pipeload" and not row.is_first and row.budget_nbytes and row.seconds
    ]
    budgets = sorted({row.budget_nbytes or 0 for row in steady})
    if len(budgets) < 2:
        return []
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    for number, loaders in enumerate(sorted({row.loaders for row in steady})):
        line = sorted((row for row in steady if row.loaders == loaders), key=lambda row: row.budget_nbytes or 0)
        axes.plot(
            [(row.budget_nbytes or 0) / 2**20 for row in line], [row.seconds for row in line], "o-",
            color=pyplot.get_cmap("viridis")(0.15 + 0.7 * number / max(1, len({row.loaders for row in steady}) - 1)),
            label=f"pipeload, {loaders} loader{'s' * (loaders > 1)}",
        )  # fmt: skip
    one = steady[0]
    beside = [row.beside_nbytes for row in rows if row.beside_nbytes and row.backend == "pipeload"]
    if one.compute_s and one.raw_rate and beside:
        footprint = min(beside)
        low, high = 0.9 * budgets[0], max(1.1 * budgets[-1], 1.05 * (one.size_nbytes + footprint))
        points = [low + (high - low) * step / 200 for step in range(201)]
        times = roofline(one.compute_s, one.size_nbytes, one.raw_rate, footprint, points)
        axes.plot([point / 2**20 for point in points], times, color="black", linewidth=1.2, label="limit (roofline)")
        axes.fill_between([point / 2**20 for point in points], times, color="black", alpha=0.06)
    for backend in ("resident", "accelerate", "llama.cpp"):
        others = [row for row in rows if row.backend == backend and not row.is_first and row.seconds]
        limited = sorted((row.cgroup_nbytes, row.seconds) for row in others if row.cgroup_nbytes and row.seconds)
        if len(limited) > 1:
            places = [nbytes / 2**20 for nbytes, _ in limited]
            axes.plot(places, [seconds for _, seconds in limited], "s--", color=COLOURS[backend], label=backend)
        elif others and others[0].seconds is not None:
            axes.axhline(others[0].seconds, color=COLOURS[backend], linestyle="--", linewidth=1.2, label=backend)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("budget of all processes, MiB")
    axes.set_ylabel(f"seconds ({one.test})")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("\n".join(textwrap.wrap(title, 90)))
    return save(pyplot, figure, path)


def timeline(pyplot: Any, title: str, trace: Path, path: Path) -> list[Path]:
    """Reads of every loader, computations and waits, and below what the slots are, over the first pass of a trace."""
    events = _events(trace)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = [event for event in events if event["ph"] == "X"]
    passes = [event for event in spans if names[event["tid"]] == "passes"]
    if not passes:
        return []
    start, end = passes[0]["ts"], passes[0]["ts"] + passes[0]["dur"]
    loaders = sorted(name for name in names.values() if name.startswith("loader "))
    rows = ["compute", *loaders]
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(10, 2.4 + 0.34 * len(rows)), sharex=True, layout="constrained",
        height_ratios=[0.34 * len(rows) + 0.3, 1.5],
    )  # fmt: skip
    seen: set[str] = set()
    for event in spans:
        row, begun = names[event["tid"]], event["ts"]
        if row not in rows or begun >= end or begun + event["dur"] <= start:
            continue
        kind, colour = _kind(event["name"])
        left, right = max(begun, start), min(begun + event["dur"], end)
        above.barh(
            rows.index(row), (right - left) / 1e6, left=(left - start) / 1e6, height=0.72, color=colour,
            edgecolor="white", linewidth=0.4, label=None if kind in seen else kind,
        )  # fmt: skip
        seen.add(kind)
    above.set_yticks(range(len(rows)), rows)
    above.invert_yaxis()
    above.tick_params(axis="y", length=0)
    above.set_title("\n".join(textwrap.wrap(title, 110)))
    above.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, -0.02 - 0.9 / len(rows)))
    _occupancy(below, [event for event in events if event["ph"] == "C" and event["name"] == "slots"], start, end)
    below.set_xlim(0, (end - start) / 1e6)
    below.set_xlabel("seconds from the start of the pass")
    return save(pyplot, figure, path)


def _occupancy(axes: Any, counters: list[dict[str, Any]], start: float, end: float) -> None:
    before = [event for event in counters if event["ts"] <= start][-1:]
    inside = [event for event in counters if start < event["ts"] < end]
    shown = before + inside
    if not shown:
        return
    times = [max(0.0, (event["ts"] - start) / 1e6) for event in shown] + [(end - start) / 1e6]
    stacks = [[event["args"][state] for event in shown] + [shown[-1]["args"][state]] for state in SLOT_STATES]
    axes.stackplot(
        times, stacks, step="post", colors=list(SLOT_STATES.values()), labels=[SLOT_WORDS[one] for one in SLOT_STATES]
    )
    axes.set_ylabel("slots")
    axes.set_ylim(0, max(sum(column) for column in zip(*stacks, strict=True)))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper left", bbox_to_anchor=(0, -0.32))


def _events(trace: Path) -> list[dict[str, Any]]:
    """Also of a run that was cut off, which lacks the closing bracket."""
    text = trace.read_text(encoding="utf-8").rstrip().rstrip(",")
    found: list[dict[str, Any]] = json.loads(text if text.endswith("]") else text + "]")
    return found


def _kind(name: str) -> tuple[str, str]:
    if name.startswith("read"):
        return "reading", READ
    return ("waiting for weights", WAIT) if name.startswith("wait") else ("computing", COMPUTE)


def _name(row: Row) -> str:
    loaders = f", {row.loaders} loader{'s' * (row.loaders > 1)}" if row.backend == "pipeload" else ""
    return row.backend + loaders + ("" if row.budget_nbytes is None else f"\nin {row.budget_nbytes / 2**20:.0f} MiB")


def _times(speedup: float) -> str:
    """Against pipeline, as a reader takes it in at once."""
    return f"{speedup:.1f}x as fast" if speedup >= 0.95 else f"{1 / speedup:.1f}x slower"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
