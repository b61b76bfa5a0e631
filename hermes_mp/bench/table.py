"""Rows as Markdown: what held for a group, its table, and a line that says how far from its limit each row is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hermes_mp.bench.journal import GroupNote
from hermes_mp.bench.rows import Row

Cell = Callable[[Row], str]


def _of(value: float | None, form: str, factor: float = 1.0, unit: str = "") -> str:
    return "" if value is None else format(value * factor, form) + unit


def _mb(value: float | None) -> str:
    return _of(value, ".0f", 1e-6)


COLUMNS: dict[str, Cell] = {
    "backend": lambda row: row.backend,
    "loaders": lambda row: str(row.loaders or ""),
    "budget MiB": lambda row: _of(row.budget_nbytes, ".0f", 1 / 2**20),
    "test": lambda row: row.test,
    "s": lambda row: "**failed**" if row.failed else _of(row.seconds, ".3f"),
    "t/s": lambda row: _of(row.per_s, ".2f" if (row.per_s or 0) < 100 else ".0f"),
    "vs pipeline": lambda row: _of(row.speedup, ".2f", 1, "x"),
    "possible": lambda row: _of(row.possible_speedup, ".2f", 1, "x") if row.loaders else "",
    "weights MB": lambda row: _mb(row.weight_nbytes),
    "of model": lambda row: _of(row.weight_share, ".1f", 100, " %"),
    "saved": lambda row: _of(row.saving, ".1f", 100, " %") if row.backend == "pipeload" else "",
    "peak MB": lambda row: _mb(row.peak_nbytes),
    "beside MB": lambda row: _mb(row.beside_nbytes),
    "cgroup MB": lambda row: _mb(row.charged_nbytes),
    "slots": lambda row: f"{row.slots} x {row.slot_nbytes / 1e6:.1f} MB" if row.slots else "",
    "resident": lambda row: _of(row.resident_share, ".0f", 100, " %"),
    "read MB": lambda row: _mb(row.read_nbytes),
    "MB/s": lambda row: _mb(row.read_rate) if row.read_nbytes else "",
    "raw MB/s": lambda row: _mb(row.raw_rate),
    "stall": lambda row: _of(row.stall_share, ".0f", 100, " %"),
    "load s": lambda row: _of(row.load_s, ".3f"),
    "compute s": lambda row: _of(row.compute_s, ".3f"),
    "of pipeline": lambda row: _of(row.pipeline_s, ".3f"),
    "limit s": lambda row: _of(row.limit_s, ".3f") + (f" ({row.limit_by})" if row.limit_s else ""),
    "x limit": lambda row: _of(row.over_limit, ".2f"),
    "note": lambda row: row.failed or row.note,
}
LEFT = {"backend", "test", "note"}
OPTIONAL = {"budget MiB", "cgroup MB", "load s", "note", "vs pipeline", "possible", "saved", "beside MB", "of pipeline"}
# Memory is that of the whole row: said once, beside its first test.
ONCE = {"weights MB", "of model", "saved", "peak MB", "beside MB", "cgroup MB", "slots"}
LEGEND = """\
All times are medians over the rounds, all rows measured in turns in each round. `cold`: processes up, model built
without weights, nothing of its files in the page cache; then the pass begins, and with it the reading. *weights*: the
arena's allocated memory, embedding rows, and weights that are always there; *peak*: all processes, sampled exactly in a
run of its own; *beside*: that without the arena. *raw*: the disk read by plain readers in the same rounds. *limit*: the
larger of computing with all weights in memory and reading what must be read at the raw rate; *vs pipeline*: the median
of the rounds' own ratios; *possible*: the speed-up that a row at its limit would have; *of pipeline*: what it computes
once it has loaded everything, measured in every round, where the rate of a reader is made of that."""


def group_text(title: str, note: GroupNote | None, rows: Sequence[Row]) -> str:
    """A group as Markdown."""
    lines = [f"## {title}", ""]
    if rows:
        one = rows[0]
        threads = next((row.threads for row in rows if row.threads), 0)
        lines += [
            f"{one.parameters / 1e6:.0f} M parameters, {one.size_nbytes / 1e6:.0f} MB, {one.dtype}, {threads} threads, "
            f"{max(row.rounds for row in rows)} rounds",
            "",
        ]
    if note is not None:
        lines += [note.text, ""]
    if not rows:
        return "\n".join(lines)
    names = [name for name in COLUMNS if name not in OPTIONAL or any(COLUMNS[name](row) for row in rows)]
    lines.append("| " + " | ".join(names) + " |")
    lines.append("|" + "|".join(" :--- " if name in LEFT else " ---: " for name in names) + "|")
    for row in rows:
        cells = ["" if name in ONCE and not row.is_first else COLUMNS[name](row) for name in names]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join([*lines, "", *summary(rows), ""])


def summary(rows: Sequence[Row]) -> list[str]:
    """How far from the limit each row is, and the best of pipeload against the baseline; Markdown list items."""
    lines = []
    for is_first in (True, False):
        parts = [
            f"{row_name(row)} {row.over_limit:.2f}x" + ("" if row.limit_by != "both" else " (not judged)")
            for row in rows
            if row.is_first == is_first and row.over_limit is not None
        ]
        if parts:
            test = next(row.test for row in rows if row.is_first == is_first and row.over_limit is not None)
            lines.append(f"- distance from the limit, {test}: {', '.join(parts)}")
    streamed = [row for row in rows if row.backend == "pipeload" and row.is_first and row.speedup and row.saving]
    if streamed:
        best = max(streamed, key=lambda row: row.speedup or 0.0)
        lines.append(
            f"- {row_name(best)} against pipeline, {best.test}: {best.speedup:.2f}x as fast "
            f"(physics allows {_of(best.possible_speedup, '.2f')}x) with {100 * (best.saving or 0):.1f} % less weight "
            "memory"
        )
    return lines


def row_name(row: Row) -> str:
    """'pipeload-4 700 MiB'."""
    loaders = f"-{row.loaders}" if row.loaders else ""
    return row.backend + loaders + ("" if row.budget_nbytes is None else f" {row.budget_nbytes / 2**20:.0f} MiB")
