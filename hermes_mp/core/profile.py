"""What was measured before a run is planned: how fast the disk is, and what each unit of a model takes to compute.

Plain figures (bytes, seconds); who measured them, and when, is not known here. `to_json` and `from_json` are for the
user's cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hermes_mp.errors import BadMessage

MOST_S, MOST_SHARE, MOST_READERS = 1e6, 10.0, 64  # what no machine measures; beyond them an entry is damaged


@dataclass(frozen=True)
class ReadRate:
    """What `readers` readers at once reach together, each reading `chunk_nbytes` at a time."""

    readers: int
    chunk_nbytes: int
    direct: bool
    nbytes_per_s: float


@dataclass(frozen=True)
class DeviceProfile:
    """How fast weights are read. `read_s`: of a read, what passes before its first byte. `assumed`: not measured."""

    rates: tuple[ReadRate, ...]
    read_s: float = 0.0005
    assumed: bool = False

    @property
    def best(self) -> ReadRate:
        """The fastest way to read this device."""
        return max(self.rates, key=lambda rate: rate.nbytes_per_s)

    def ways(self) -> list[tuple[int, bool]]:
        """The (chunk_nbytes, direct) that were measured."""
        return sorted({(rate.chunk_nbytes, rate.direct) for rate in self.rates}, reverse=True)

    def by_readers(self, chunk_nbytes: int, direct: bool, readers: int) -> tuple[float, ...]:
        """Bytes per second of 0, 1, .. `readers` readers together; between measured numbers a straight line.

        More readers than were measured are as fast as the most that were.
        """
        known = {
            rate.readers: rate.nbytes_per_s
            for rate in self.rates
            if (rate.chunk_nbytes, rate.direct) == (chunk_nbytes, direct)
        }
        known.setdefault(0, 0.0)
        points = sorted(known.items())
        return tuple(_on_line(points, count) for count in range(readers + 1))

    def faster(self, factor: float) -> DeviceProfile:
        """The same device, `factor` times as fast."""
        rates = tuple(
            ReadRate(one.readers, one.chunk_nbytes, one.direct, one.nbytes_per_s * factor) for one in self.rates
        )
        return DeviceProfile(rates, self.read_s / factor, self.assumed)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> DeviceProfile:
        """Raises BadMessage for what `to_json` did not write."""
        try:
            rates = tuple(
                ReadRate(int(r["readers"]), int(r["chunk_nbytes"]), bool(r["direct"]), float(r["nbytes_per_s"]))
                for r in document["rates"]
            )
            found = cls(rates, float(document["read_s"]), bool(document["assumed"]))
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise BadMessage(f"this is no device profile: {error}") from error
        if not rates or not all(map(_is_possible, rates)) or not 0 <= found.read_s < MOST_S:
            raise BadMessage("a device profile without a rate, or with one out of range")
        return found


# What computing and reading take longer while the other goes on: on two cores of an x86-64 machine, at such a rate.
USUAL_BESIDE_COMPUTE, USUAL_BESIDE_READ, USUAL_BESIDE_RATE = 0.12, 0.15, 2.4e9
# Where nothing was measured: between an SD card and an NVMe, and it gains from a second and a third reader.
ASSUMED_DEVICE = DeviceProfile(
    tuple(ReadRate(readers, 16 << 20, True, rate) for readers, rate in ((1, 400e6), (2, 470e6), (3, 500e6))),
    assumed=True,
)


def usual_beside(nbytes_per_s: float) -> tuple[float, float]:
    """By what shares computing, and reading at this rate, are usually slower beside the other.

    A slower disk has its next order before it has ended the last: computing hardly keeps it waiting.
    """
    share = min(1.0, nbytes_per_s / USUAL_BESIDE_RATE)
    return USUAL_BESIDE_COMPUTE * share, USUAL_BESIDE_READ * share**3


@dataclass(frozen=True)
class UnitCost:
    """One unit: bytes of a slot, bytes read, and seconds from asking for it to asking for the next, were it there.

    `compute_s` in a pass that repeats (one more token; one more text), `first_s` in the pass over a prompt.
    """

    nbytes: int
    read_nbytes: int
    compute_s: float
    first_s: float


@dataclass(frozen=True)
class Granularity:
    """One way to divide the model: into units that fit `room` bytes (None: a layer), in slots of `slot_nbytes`.

    `base_nbytes`: compute before it binds. `reserve_nbytes`: KV cache and activations at the whole context,
    `use_nbytes` at the tokens that were measured. `rounding_nbytes`: what all slots together may take more.
    `start_nbytes`: the most that compute takes while it starts, before it has slots; 0 where that is not known.
    """

    room: int | None
    slot_nbytes: int
    rounding_nbytes: int
    base_nbytes: int
    reserve_nbytes: int
    use_nbytes: int
    units: tuple[UnitCost, ...]
    start_nbytes: int = 0

    @property
    def read_nbytes(self) -> int:
        return sum(unit.read_nbytes for unit in self.units)

    @property
    def compute_s(self) -> float:
        return sum(unit.compute_s for unit in self.units)


@dataclass(frozen=True)
class ModelProfile:
    """A model at one batch and number of tokens, on this machine.

    `other_s`, `first_other_s`: of a pass, outside of all units.
    `beside_compute`, `beside_read`: by what share computing takes longer while the disk is read, and the reverse.
    `decodes`: a pass gives one token more; else it is one whole input. `estimated`: of compute, what was not measured.
    """

    granularities: tuple[Granularity, ...]
    other_s: float
    first_other_s: float
    weights_nbytes: int
    parameters: int
    batch: int
    tokens: int
    context: int
    decodes: bool
    threads: int
    beside_compute: float = 0.0
    beside_read: float = 0.0
    estimated: bool = False

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["granularities"] = [
            {
                "room": one.room,
                "nbytes": [one.slot_nbytes, one.rounding_nbytes, one.base_nbytes, one.reserve_nbytes, one.use_nbytes,
                           one.start_nbytes],
                "units": [[u.nbytes, u.read_nbytes, u.compute_s, u.first_s] for u in one.units],
            }
            for one in self.granularities
        ]  # fmt: skip
        return document

    @classmethod
    def from_json(cls, document: Any) -> ModelProfile:
        """Raises BadMessage for what `to_json` did not write."""
        try:
            values = dict(document)
            found = tuple(_granularity(one) for one in values.pop("granularities"))
            for name, annotation in cls.__annotations__.items():
                if name in values:
                    values[name] = {"int": int, "float": float, "bool": bool}[annotation](values[name])
            profile = cls(found, **values)
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise BadMessage(f"this is no model profile: {error}") from error
        seconds = (profile.other_s, profile.first_other_s)
        shares = (profile.beside_compute, profile.beside_read)
        # Written so that what is not a number is out of range, too.
        if not all(0 <= one < MOST_S for one in seconds) or not all(0 <= one <= MOST_SHARE for one in shares):
            raise BadMessage("a model profile with seconds or shares out of range")
        if not found or min(profile.batch, profile.tokens, profile.context, profile.threads) < 0:
            raise BadMessage("a model profile without units, or of less than nothing")
        return profile


def _is_possible(rate: ReadRate) -> bool:
    return 0 < rate.nbytes_per_s < 1e15 and 1 <= rate.readers <= MOST_READERS and rate.chunk_nbytes >= 1


def _granularity(document: Mapping[str, Any]) -> Granularity:
    room = document["room"]
    units = tuple(UnitCost(int(n), int(r), float(c), float(f)) for n, r, c, f in document["units"])
    if not all(
        min(unit.nbytes, unit.read_nbytes) >= 0 and 0 <= unit.compute_s < MOST_S and 0 <= unit.first_s < MOST_S
        for unit in units
    ):
        raise ValueError("a unit out of range")
    figures = [int(nbytes) for nbytes in document["nbytes"]]
    slot, rounding, base, reserve, use, start = figures
    if not units or use > reserve or not all(0 <= nbytes < 2**50 for nbytes in figures):
        raise ValueError("a granularity out of range")
    if slot < 1 or (room is not None and int(room) < 1):
        raise ValueError("slots of no bytes")
    return Granularity(None if room is None else int(room), slot, rounding, base, reserve, use, units, start)


def _on_line(points: Sequence[tuple[int, float]], at: int) -> float:
    for (low, below), (high, above) in itertools.pairwise(points):
        if low <= at <= high:
            return below + (above - below) * (at - low) / (high - low)
    return points[-1][1]
