"""What would help most: more memory, a faster disk, another board; and where somebody else would do better.

Every figure is a forecast of the planner for a machine that has it; nothing here is a rule of thumb but the size of a
model at 4 bits. It knows no file and no process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hermes_mp.core.planner import Plan, plan
from hermes_mp.core.profile import DeviceProfile, Granularity, ModelProfile

MORE_NBYTES = 256 << 20
FASTER = 2.0
BITS_OF_4 = 4.85  # per parameter, of llama.cpp's Q4_K_M
LLAMA_CPP_NBYTES = 150 << 20  # what it takes besides weights and KV cache


@dataclass(frozen=True)
class Help:
    """With `what` a pass takes `seconds`: that is `factor` times as fast."""

    what: str
    seconds: float
    factor: float


def helps(device: DeviceProfile, model: ModelProfile, chosen: Plan, budget: int, loaders: int | None) -> list[Help]:
    """What helps, the most helpful first; what changes less than 2 % is left out."""
    now_s = chosen.forecast.seconds
    found = []

    def consider(what: str, with_it: Plan) -> None:
        seconds = with_it.forecast.seconds
        if seconds < now_s * 0.98:
            found.append(Help(what, seconds, now_s / seconds))

    consider(f"{MORE_NBYTES >> 20} MiB more memory", plan(device, model, budget + MORE_NBYTES, loaders))
    consider(f"a disk {FASTER:g} times as fast", plan(device.faster(FASTER), model, budget, loaders))
    two = "a second board like this one, each with half of the layers"
    consider(two, plan(device, _half(model), budget, loaders))
    return sorted(found, key=lambda one: -one.factor)


def fits_at_4_bits(model: ModelProfile, chosen: Plan, budget: int) -> int | None:
    """Bytes that a generating model would take quantised to 4 bits in llama.cpp, where we stream and that would fit."""
    if not model.decodes or chosen.fits:
        return None
    kv_and_more = min(one.reserve_nbytes for one in model.granularities)
    nbytes = int(model.parameters * BITS_OF_4 / 8) + kv_and_more + LLAMA_CPP_NBYTES
    return nbytes if nbytes <= budget else None


def _half(model: ModelProfile) -> ModelProfile:
    """What one of two boards has: the other half of the units is computed elsewhere, while this board reads."""
    fine = model.granularities[0]
    kept = len(fine.units) - len(fine.units) // 2
    elsewhere_s = sum(unit.compute_s for unit in fine.units[kept:])

    def half(one: Granularity) -> Granularity:
        return replace(one, units=one.units[: len(one.units) - len(one.units) // 2])

    return replace(
        model,
        granularities=tuple(half(one) for one in model.granularities),
        other_s=model.other_s + elsewhere_s,
    )
