"""A plan as text for people and as an object for programs (docs/json.md): pure functions of what was found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hermes_mp.core.advice import Help
from hermes_mp.core.planner import BOUND_BY_COMPUTE, BOUND_BY_DISK, Plan
from hermes_mp.core.profile import DeviceProfile, ModelProfile

SCHEMA = 1


@dataclass(frozen=True)
class Found:
    """What `hermes-plan` found. `advice` and `at_4_bits` belong to the plan for `--memory`, if one was asked for."""

    model: str
    device: DeviceProfile
    profile: ModelProfile
    rows: list[tuple[int, Plan]]
    chosen: tuple[int, Plan] | None = None
    advice: tuple[Help, ...] = ()
    at_4_bits: int | None = None
    headers_only: bool = False


def as_object(found: Found) -> dict[str, Any]:
    """The JSON object of `hermes-plan --json`."""
    best, profile = found.device.best, found.profile
    plans = found.rows if found.chosen is None else [found.chosen]
    return {
        "schema": SCHEMA,
        "model": found.model,
        "headers_only": found.headers_only,
        "device": {
            "assumed": found.device.assumed,
            "best_nbytes_per_s": best.nbytes_per_s,
            "rates": [asdict(rate) for rate in found.device.rates],
        },
        "compute": {
            "unit": _unit(profile),
            "seconds": profile.other_s + profile.granularities[0].compute_s,
            "first_s": profile.first_other_s + sum(unit.first_s for unit in profile.granularities[0].units),
            "tokens": profile.tokens,
            "batch": profile.batch,
            "context": profile.context,
            "threads": profile.threads,
            "weights_nbytes": profile.weights_nbytes,
            "parameters": profile.parameters,
        },
        "plans": [_plan_object(budget, plan) for budget, plan in plans],
        "helps": [asdict(one) for one in found.advice],
        "at_4_bits_nbytes": found.at_4_bits,
        "error": None,
    }


def _plan_object(budget: int, plan: Plan) -> dict[str, Any]:
    document = asdict(plan)
    forecast = document.pop("forecast")
    document["room_nbytes"] = document.pop("room")
    document |= {"budget_nbytes": budget, "resident_share": plan.resident_share, "fits": plan.fits}
    document["forecast"] = forecast | {"stall_share": plan.forecast.stall_share}
    return document


def as_text(found: Found) -> str:
    """What a person sees."""
    if found.chosen is not None:
        return "\n".join([*_facts(found), "", *_one(found, *found.chosen)])
    return "\n".join([*_facts(found), "", *_table(found)])


def _facts(found: Found) -> list[str]:
    profile, best = found.profile, found.device.best
    compute_s = profile.other_s + profile.granularities[0].compute_s
    per = "token" if profile.decodes else "pass"
    how = "assumed; nothing here to measure it by" if found.device.assumed else _way(best.chunk_nbytes, best.direct)
    readers = "" if found.device.assumed else f", {best.readers} at once"
    lines = [
        f"model    {found.model}, {profile.weights_nbytes / 1e9:.2f} GB"
        + (" (its headers; the weights are not here)" if found.headers_only else ""),
        f"disk     {best.nbytes_per_s / 1e6:.0f} MB/s ({how}{readers})",
        f"compute  {_seconds(compute_s)} per {per} with {profile.threads} threads, were all weights in memory",
    ]
    asked = f"batch {profile.batch}, context {profile.context}"
    asked += f", after a prompt of {profile.tokens} tokens" if profile.decodes else f", {profile.tokens} tokens"
    return [*lines, f"for      {asked}"]


def _table(found: Found) -> list[str]:
    per = "s/token" if found.profile.decodes else "s/pass"
    lines = [
        f"{'budget':>9} {'loaders':>7} {'slots':>5} {'of':>8} {'resident':>8} {per:>8} {'stall':>5} {'peak':>9}"
        "  bound by"
    ]
    for budget, plan in found.rows:
        forecast = plan.forecast
        bound = "compute, all is resident" if plan.fits else forecast.bound_by
        lines.append(
            f"{_size(budget):>9} {plan.loaders:>7} {plan.slots:>5} {_size(plan.slot_nbytes):>8} "
            f"{plan.resident_share:>8.0%} {forecast.seconds:>8.3g} {forecast.stall_share:>5.0%} "
            f"{_size(forecast.peak_nbytes):>9}  {bound}"
        )
    return lines


def _one(found: Found, budget: int, plan: Plan) -> list[str]:
    forecast, profile = plan.forecast, found.profile
    per = "token" if profile.decodes else "pass"
    lines = [
        f"{_size(budget)}: {_seconds(forecast.seconds)} per {per}, {forecast.stall_share:.0%} of it waiting for "
        f"weights; peak {_size(forecast.peak_nbytes)}",
        f"loaders  {plan.loaders}, reading {_way(plan.chunk_nbytes, plan.direct)}",
        f"slots    {plan.slots} of {_size(plan.slot_nbytes)} for {plan.units} units ({_room(plan)})",
    ]
    if plan.fits:
        lines.append("weights  all stay in memory; after the first pass nothing is read")
    else:
        lines.append(
            f"weights  {plan.resident_share:.0%} stay in memory ({plan.residents} units), "
            f"{_size(forecast.streamed_nbytes)} stream through {plan.window} slots per {per}"
        )
    first = "first token" if profile.decodes else "first pass"
    lines.append(f"start    {first} {_seconds(forecast.first_s)} after everything has started")
    lines.append(f"why      {_why(found, plan)}")
    for number, one in enumerate(found.advice):
        label = "helps" if number == 0 else ""
        lines.append(f"{label:<8} {one.what}: {_seconds(one.seconds)} per {per}, {one.factor:.2f} times as fast")
    if not found.advice and not plan.fits:
        lines.append("helps    a faster processor; neither memory nor disk would change much")
    if found.at_4_bits is not None:
        lines.append(
            f"or       at 4 bits it fits, with about {_size(found.at_4_bits)}: if other answers than the "
            "original's are fine, use llama.cpp"
        )
    return lines


def _why(found: Found, plan: Plan) -> str:
    forecast = plan.forecast
    if plan.fits:
        return "everything fits, so nothing could be faster than computing"
    limit = f"no way to stream is faster than {_seconds(forecast.limit_s)} here"
    if forecast.bound_by == BOUND_BY_COMPUTE:
        return f"computing takes longer than reading: {limit}"
    if forecast.bound_by == BOUND_BY_DISK:
        return f"the disk is read all the time: {limit}"
    return f"the window is too small to keep the disk busy: {limit}"


def _room(plan: Plan) -> str:
    return "layers" if plan.room is None else "parts of layers"


def _way(chunk_nbytes: int, direct: bool) -> str:
    return f"{_size(chunk_nbytes)} at a time, {'past the page cache' if direct else 'through the page cache'}"


def _unit(profile: ModelProfile) -> str:
    return "token" if profile.decodes else "pass"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB" if nbytes < 10 * 2**30 else f"{nbytes / 2**30:.1f} GiB"
