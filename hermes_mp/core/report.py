"""What a run was like, as figures: JSON for programs (keys in docs/json.md), a few lines for people.

It measures nothing: core/ledger.py gathers the figures.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from hermes_mp.core.cluster.report import BoardPart, board_lines

LOADERS_NAMED = 6  # more are summed up in one word


@dataclass(frozen=True)
class Seconds:
    """A median over `count` passes."""

    median_s: float
    count: int


@dataclass(frozen=True)
class Memory:
    """Peaks in bytes; `peak_nbytes` is the largest total of one moment, not the sum of the peaks.

    `squeezes`: how often residents left because the machine ran short of memory, down to `least_slots` slots.
    """

    budget_nbytes: int | None
    peak_nbytes: int | None
    peak_by_process: dict[str, int]
    exact: bool
    auto: bool = False
    reserve_nbytes: int | None = None
    squeezes: int = 0
    least_slots: int | None = None


@dataclass(frozen=True)
class Verified:
    """`mode`: that of `--verify`; loads that were `compared` with a known checksum, and that were `trusted`.

    `sha256`: whether the files are those that were published.
    """

    mode: str
    compared: int
    trusted: int
    sha256: bool


@dataclass(frozen=True)
class Report:
    """The end of every run. None stands for what did not happen (no pass, no token, no budget)."""

    passes: Seconds | None
    tokens: Seconds | None
    prefills: Seconds | None
    first_read_s: float | None
    read_nbytes: int
    read_nbytes_per_pass: int | None
    read_nbytes_unused: int
    read_rate_nbytes_per_s: float | None
    read_mode: str
    stall_percent: float | None
    memory: Memory
    loaders: int
    loaders_restarted: int
    compute_restarted: int
    slots: int
    slot_nbytes: int
    residents: int
    pages: str
    forecast_s: float | None = None
    planned_by: str | None = None  # what the plan knew: see `messages.RunPlan`
    verified: Verified | None = None
    boards: tuple[BoardPart, ...] = ()  # of a run that is shared; the head first
    remote_loaders: dict[str, int] = field(default_factory=dict)  # how many took from other boards, by board
    degraded: tuple[str, ...] = ()  # what the run had to do without in the end, and why

    def as_json(self) -> dict[str, object]:
        """The report as JSON holds it."""
        return asdict(self)


def render_report(report: Report) -> str:
    """The report for people, at most eleven lines where nothing was lost."""
    lines = []
    if report.passes:
        plural = "" if report.passes.count == 1 else f" (median of {report.passes.count})"
        lines.append(f"pass      {report.passes.median_s:.3g} s{plural}" + _stall(report))
    if report.tokens:
        first = f"; first {report.prefills.median_s:.3g} s" if report.prefills else ""
        lines.append(f"token     {report.tokens.median_s:.3g} s (median of {report.tokens.count}){first}")
    lines.append(_reads(report))
    if report.verified is not None:
        lines.append(f"weights   {_verified(report.verified)}")
    memory = report.memory
    if memory.peak_nbytes is not None:
        how = "" if memory.exact else ", estimated"
        limit = _limit(memory)
        lines.append(f"memory    {_size(memory.peak_nbytes)} at most{how}, {limit}")
        if memory.peak_by_process:
            lines.append("          " + _by_process(memory.peak_by_process))
    elif memory.budget_nbytes is None:
        lines.append("memory    no limit was set")
    if memory.squeezes:
        least = f", {counted(memory.least_slots, 'slot')} were left" if memory.least_slots is not None else ""
        lines.append(f"          residents left {counted(memory.squeezes, 'time')} for want of memory{least}")
    restarted = f" ({report.loaders_restarted} restarted)" if report.loaders_restarted else ""
    residents = f", {counted(report.residents, 'unit')} resident" if report.residents else ""
    slots = f"{counted(report.slots, 'slot')} of {_size(report.slot_nbytes)}"
    remote = "".join(f", and {count} of {board}" for board, count in report.remote_loaders.items())
    loaders = f"{report.loaders or 'none here'}{remote}{restarted}"
    lines.append(f"loaders   {loaders}; {slots}{residents}, {report.pages} pages")
    lines += [f"degraded  {why}" for why in report.degraded]
    if report.compute_restarted:
        lines.append(f"compute   restarted {counted(report.compute_restarted, 'time')}; its requests were repeated")
    lines += board_lines(report.boards)
    if report.forecast_s is not None:
        how = "as profiled" if report.planned_by == "measured" else f"{report.planned_by}; `hermes-plan` measures"
        lines.append(f"plan      {report.forecast_s:.3g} s per pass was forecast ({how})")
    return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """'1 slot', '2 slots'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _limit(memory: Memory) -> str:
    if memory.budget_nbytes is None:
        return "no limit was set"
    if not memory.auto:
        return f"of {_size(memory.budget_nbytes)} allowed"
    kept = "" if memory.reserve_nbytes is None else f" beyond a reserve of {_size(memory.reserve_nbytes)}"
    return f"of {_size(memory.budget_nbytes)} that the machine could spare{kept}"


def _by_process(peaks: dict[str, int]) -> str:
    loaders = sorted(nbytes for name, nbytes in peaks.items() if name.startswith("loader "))
    named = peaks
    if len(loaders) > LOADERS_NAMED:
        named = {name: nbytes for name, nbytes in peaks.items() if not name.startswith("loader ")}
    parts = [f"{name} {_size(nbytes)}" for name, nbytes in named.items()]
    if named is not peaks:
        parts.append(f"{len(loaders)} loaders {_size(loaders[0])} to {_size(loaders[-1])} each")
    return ", ".join(parts)


def _stall(report: Report) -> str:
    return "" if report.stall_percent is None else f", {report.stall_percent:.0f} % of it waiting for weights"


def _reads(report: Report) -> str:
    parts = []
    if report.read_nbytes_per_pass is not None:
        parts.append(f"{_size(report.read_nbytes_per_pass)} per pass")
    if report.read_rate_nbytes_per_s is not None:
        parts.append(f"at {report.read_rate_nbytes_per_s / 1e6:.0f} MB/s ({report.read_mode})")
    if report.read_nbytes_unused:
        parts.append(f"{_size(report.read_nbytes_unused)} in vain")
    if report.first_read_s is not None:
        parts.append(f"first after {report.first_read_s:.2f} s")
    return "read      " + (", ".join(parts) or "nothing")


def _verified(found: Verified) -> str:
    if found.mode == "never":
        return "not checked (--verify never)"
    parts = [f"{counted(found.compared, 'load')} had the known checksum"] if found.compared else []
    if found.trusted:
        parts.append(f"{counted(found.trusted, 'unit')} {'read' if found.sha256 else 'trusted at first use'}")
    if found.sha256:
        parts.append("the files have their published SHA-256")
    return ", ".join(parts) or "none was read"


def _size(nbytes: int) -> str:
    if nbytes < 2**20:
        return f"{nbytes / 2**10:.0f} KiB"
    return f"{nbytes / 2**20:.0f} MiB" if nbytes < 10 * 2**30 else f"{nbytes / 2**30:.1f} GiB"
