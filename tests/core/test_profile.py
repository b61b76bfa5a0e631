"""Profiles: rates between measured numbers of readers, and what comes back from JSON, whole or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.core.profile import ASSUMED_DEVICE, DeviceProfile, Granularity, ModelProfile, ReadRate, UnitCost
from hermes_mp.errors import BadMessage

seconds = st.floats(0, 1e3)
sizes = st.integers(0, 2**40)
some = st.integers(1, 2**40)
units = st.builds(UnitCost, sizes, sizes, seconds, seconds)
granularities = st.builds(
    lambda room, slot, base, use, more, units: Granularity(
        room, slot, base, base, use + more, use, tuple(units), base + more
    ),
    st.none() | some, some, sizes, sizes, sizes, st.lists(units, min_size=1, max_size=3),
)  # fmt: skip
models = st.builds(
    ModelProfile, st.lists(granularities, min_size=1, max_size=3).map(tuple), seconds, seconds, sizes, sizes,
    sizes, sizes, sizes, st.booleans(), sizes, st.floats(0, 1), st.floats(0, 1), st.booleans(),
)  # fmt: skip
RATES = tuple(ReadRate(readers, 1 << 20, True, rate) for readers, rate in ((1, 100.0), (3, 160.0), (4, 150.0)))


def test_rates_lie_on_a_line_between_measured_numbers_of_readers() -> None:
    assert DeviceProfile(RATES).by_readers(1 << 20, True, 6) == (0, 100, 130, 160, 150, 150, 150)
    assert DeviceProfile(RATES[1:]).by_readers(1 << 20, True, 2) == pytest.approx((0, 160 / 3, 320 / 3))


def test_the_best_way_and_a_faster_disk() -> None:
    assert DeviceProfile(RATES).best == RATES[1]
    assert DeviceProfile(RATES).faster(2).best.nbytes_per_s == 320.0


@given(models)
def test_a_model_profile_comes_back(profile: ModelProfile) -> None:
    assert ModelProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_a_device_profile_comes_back() -> None:
    for profile in (ASSUMED_DEVICE, DeviceProfile(RATES, 0.001)):
        assert DeviceProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


GOOD = ModelProfile(
    (Granularity(None, 8, 0, 1, 1, 1, (UnitCost(8, 8, 0.1, 0.1),)),), 0.1, 0.1, 8, 8, 1, 1, 1, True, 1
).to_json()
NO_UNITS = {"room": None, "nbytes": [8, 0, 1, 1, 1, 0], "units": []}
NEGATIVE = {"room": None, "nbytes": [8, 0, 1, 1, 1, 0], "units": [[8, 8, -1.0, 0.1]]}
NO_SLOT = {"room": None, "nbytes": [0, 0, 1, 1, 1, 0], "units": [[8, 8, 0.1, 0.1]]}
NOT_READ = {"room": None, "nbytes": [8, 0, 1, 1, 1, 0], "units": [[8, -8, 0.1, 0.1]]}
NO_ROOM = {"room": 0, "nbytes": [8, 0, 1, 1, 1, 0], "units": [[8, 8, 0.1, 0.1]]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("granularities", []), ("granularities", [NO_UNITS]), ("granularities", [NEGATIVE]), ("granularities", 7),
        ("other_s", "soon"), ("batch", None), ("unheard_of", 1), ("batch", -1),
        ("granularities", [NO_SLOT]), ("granularities", [NOT_READ]), ("granularities", [NO_ROOM]),
        *[(name, value) for name in ("other_s", "first_other_s", "beside_compute", "beside_read")
          for value in (float("nan"), float("inf"), -1.0, 1e9)],
    ],
)  # fmt: skip
def test_a_damaged_model_profile_is_refused(key: str, value: object) -> None:
    with pytest.raises(BadMessage):
        ModelProfile.from_json(GOOD | {key: value})


def device(read_s: float = 0.001, readers: int = 1, nbytes_per_s: float = 1e8) -> dict[str, object]:
    rate = {"readers": readers, "chunk_nbytes": 1 << 20, "direct": True, "nbytes_per_s": nbytes_per_s}
    return {"rates": [rate], "read_s": read_s, "assumed": False}


def test_what_the_tests_of_damage_begin_with_is_whole() -> None:
    assert ModelProfile.from_json(GOOD).to_json() == GOOD
    assert DeviceProfile.from_json(device()).to_json()["read_s"] == 0.001


@pytest.mark.parametrize(
    "document",
    [
        None, [], {}, {"rates": [], "read_s": 1, "assumed": False}, {"rates": [{}]},
        device(float("nan")), device(-0.001), device(float("inf")), device(readers=0), device(readers=10**9),
        device(nbytes_per_s=float("nan")), device(nbytes_per_s=0.0), device(nbytes_per_s=float("inf")),
    ],
)  # fmt: skip
def test_a_damaged_device_profile_is_refused(document: object) -> None:
    with pytest.raises(BadMessage):
        DeviceProfile.from_json(document)
