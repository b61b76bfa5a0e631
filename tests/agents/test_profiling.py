"""The profilers on real files and models: what they measure, and that it is kept."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import time
from pathlib import Path

import pytest
from tiny_models import bert, gpt2

from hermes_mp.agents.planning import gather
from hermes_mp.agents.profiler import ProfilerSettings, profile_in_own_process
from hermes_mp.core.planner import everything_fits, plan, smallest_budget
from hermes_mp.core.profile import ASSUMED_DEVICE
from hermes_mp.core.unitlist import UnitFile, UnitList, UnitSpec
from hermes_mp.errors import ContextTooLong
from hermes_mp.host import diskspeed, profilecache, unitcache
from hermes_mp.host.cachedir import FORMAT
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.messages import RunPlan
from hermes_mp.models.model_profile import with_usual


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hermes-mp"


def settings(directory: Path, tokens: int = 8, context: int | None = 32) -> ProfilerSettings:
    return ProfilerSettings(str(directory), "auto", context, 1, tokens, 1, False, 0.1)


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "weights"
    path.write_bytes(os.urandom(1 << 20) * 80)
    return path


def test_a_device_is_measured_every_way_there_is_time_for(large_file: Path) -> None:
    found = diskspeed.measure_device(large_file, 1.0)
    assert found is not None
    assert not found.assumed
    ways = {(rate.readers, rate.chunk_nbytes, rate.direct) for rate in found.rates}
    assert len(ways) == len(found.rates)
    assert ways <= set(diskspeed.WAYS)
    assert (1, diskspeed.CHUNKS[0], True) in ways or all(not direct for _, _, direct in ways)
    assert all(1e6 < rate.nbytes_per_s < 1e12 for rate in found.rates)
    assert 0 < found.read_s < 1


def test_how_fast_the_page_cache_is_copied_tells_nothing_of_a_device(large_file: Path) -> None:
    """Pages that are mapped cannot be dropped: a model that plain transformers has open."""
    with open(large_file, "rb") as file:
        os.fsync(file.fileno())
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped.find(b"hermes") <= len(mapped)  # which looks at every page
            assert diskspeed.stays_cached(file.fileno(), 80 << 20)
            found = diskspeed.measure_device(large_file, 1.0)
        assert found is not None
        if not any(rate.direct for rate in found.rates):
            pytest.skip("no O_DIRECT here")
        assert all(rate.direct for rate in found.rates)
        deadline = time.monotonic() + 5.0  # pages that were mapped a moment ago may stay for another
        while diskspeed.stays_cached(file.fileno(), 80 << 20):
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("tried", "settled"),
    [
        (([90.0], [96.0, 98.0], [105.0]), (90, 97, 100)),  # no more than is sustained
        (([250.0], [95.0], [91.0], [80.0, 110.0]), (100, 100, 91, 100)),  # a cap: one got more, and the next less
    ],
)
def test_what_a_device_sustains_is_the_most(tried: tuple[list[float], ...], settled: tuple[float, ...]) -> None:
    ways = {(readers, 1 << 20, True): tries for readers, tries in enumerate(tried)}
    assert tuple(diskspeed.settled(ways, 100.0).values()) == settled


def test_a_quick_look_leaves_the_page_cache_alone(large_file: Path) -> None:
    found = diskspeed.measure_device(large_file, 0.5, 32 << 20, buffered=False)
    assert found is not None
    assert len({rate.direct for rate in found.rates}) == 1, "all past it, or, where that cannot be, all through it"


def test_without_time_one_way_is_measured(large_file: Path) -> None:
    """Once every way had its least number of bytes, whatever they took: 20 seconds of an SD card."""
    found = diskspeed.measure_device(large_file, 0.0)
    assert found is not None
    (rate,) = found.rates
    assert (rate.readers, rate.chunk_nbytes) == (1, diskspeed.CHUNKS[0])


def test_every_way_is_in_the_order_once() -> None:
    direct = set(itertools.product(diskspeed.READERS, diskspeed.CHUNKS, (True,)))
    buffered = {(readers, diskspeed.BUFFERED_CHUNK, False) for readers in diskspeed.BUFFERED_READERS}
    assert len(diskspeed.WAYS) == len(direct | buffered)
    assert set(diskspeed.WAYS) == direct | buffered


@pytest.mark.parametrize(
    ("rates", "readers", "worth"),
    [
        ({}, 1, True), ({1: 100}, 2, True), ({1: 100, 2: 101}, 3, True), ({1: 100, 2: 101, 3: 102}, 4, False),
        ({1: 100, 2: 100, 3: 104}, 4, True), ({1: 100, 2: 150, 3: 170, 4: 152}, 6, False), ({1: 100, 2: 90}, 6, True),
    ],
)  # fmt: skip
def test_more_readers_are_tried_while_two_more_bring_something(
    rates: dict[int, float], readers: int, worth: bool
) -> None:
    found = {(count, 1 << 20, True): [rate] for count, rate in rates.items()}
    others = {(count, 1 << 20, False): [1.0] for count in (1, 2, 3, 4, 6)}
    assert diskspeed.worth_trying((readers, 1 << 20, True), {**found, **others}) == worth


def test_a_small_file_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 4096)
    assert diskspeed.measure_device(tmp_path / "small") is None


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        diskspeed.measure_device(tmp_path / "none")


def test_a_device_has_one_name_for_all_its_files(large_file: Path) -> None:
    assert diskspeed.device_name(large_file) == diskspeed.device_name(large_file.parent)
    assert diskspeed.device_name(large_file) != diskspeed.device_name(Path("/proc/self/status"))


@pytest.mark.parametrize("model", ["gpt2", "bert"])
def test_a_model_is_profiled_in_a_process_of_its_own(model: str, tmp_path: Path) -> None:
    directory = {"gpt2": gpt2, "bert": bert}[model](tmp_path / model)
    said: list[str] = []
    found = profile_in_own_process(settings(directory), said.append)
    (layers,) = found.granularities  # too small to be divided finer
    assert found.decodes == (model == "gpt2")
    assert (found.batch, found.tokens, found.context, found.threads) == (1, 8, 32, 1)
    assert found.weights_nbytes == (directory / "model.safetensors").stat().st_size
    assert 0 < layers.read_nbytes <= found.weights_nbytes + 4096 * len(layers.units)
    assert layers.slot_nbytes >= max(unit.nbytes for unit in layers.units)
    assert all(0 <= unit.compute_s < 1 and 0 <= unit.first_s < 1 for unit in layers.units)
    assert sum(unit.compute_s for unit in layers.units) > 0
    assert 100 << 20 < layers.base_nbytes < 1 << 30
    assert 0 < layers.use_nbytes <= layers.reserve_nbytes
    assert said[0] == "importing torch"
    assert plan(ASSUMED_DEVICE, found, smallest_budget(found)).forecast.peak_nbytes <= smallest_budget(found)
    assert plan(ASSUMED_DEVICE, found, everything_fits(found)).fits


def test_the_finest_units_of_a_wide_model(models: Path) -> None:
    """`big` has layers of 12 MB: halves of them are worth planning with, and take at least as long."""
    found = profile_in_own_process(settings(models / "big"), quiet)
    rooms = [one.room for one in found.granularities]
    assert rooms[0] is None
    slots = [one.slot_nbytes for one in found.granularities]
    assert slots == sorted(slots, reverse=True)
    assert all(one.compute_s >= 0.999 * found.granularities[0].compute_s for one in found.granularities)


def test_the_profilers_error_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(ContextTooLong, match="64 positions"):
        profile_in_own_process(settings(gpt2(tmp_path / "gpt2"), context=65), quiet)


def test_what_is_known_is_not_measured_again(tmp_path: Path, cache: Path) -> None:
    directory = gpt2(tmp_path / "gpt2")
    checkpoint = find_checkpoint(directory)
    said: list[str] = []
    first = gather(checkpoint, settings(directory), False, said.append)
    assert first.fresh
    assert "importing torch" in said
    said.clear()
    again = gather(checkpoint, settings(directory), False, said.append)
    assert (again.fresh, said) == (False, [])
    assert again.model == first.model
    assert gather(checkpoint, settings(directory), True, said.append).fresh
    assert gather(checkpoint, settings(directory, tokens=9), False, said.append).model.tokens == 9
    (entry, _) = (cache / "profiles").iterdir()
    for damaged in ("{", "[]", json.dumps({"format": FORMAT, "profile": {}}), '{"format": 0}'):
        entry.write_text(damaged)
        assert profilecache.recall_model(entry) is None


def test_a_device_is_measured_by_a_file_of_the_hubs_cache_alone(
    tmp_path: Path, large_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once all that lay beside the cache was walked, a home directory or a whole disk, and any file of it read."""
    checkpoint = find_checkpoint(gpt2(tmp_path / "gpt2"))
    place = tmp_path / "home" / "hub"
    place.parent.mkdir()
    (place.parent / "private").symlink_to(large_file)
    os.link(large_file, place.parent / "other")
    said: list[str] = []

    def planned() -> bool:
        return gather(checkpoint, settings(checkpoint.directory), False, said.append, place).device.assumed

    assert planned(), "the cache does not exist"
    place.mkdir()
    (place / "link").symlink_to(large_file)
    (place / "beside").symlink_to(place.parent)
    os.link(large_file, place / "blob.incomplete")
    assert planned(), "the cache holds nothing to measure by"
    assert "measuring the disk" not in said
    monkeypatch.setattr("hermes_mp.agents.planning.DEVICE_S", 0.1)
    (place / "blobs").mkdir()
    os.link(large_file, place / "blobs" / "blob")
    assert not planned()
    assert "measuring the disk" in said


@pytest.mark.parametrize("start_mib", [0, 900])
def test_what_a_launch_took_is_truer(tmp_path: Path, cache: Path, start_mib: int) -> None:
    """Its base corrects the base, its peak while starting only the start; a caller's (without one) is not asked."""
    directory = gpt2(tmp_path / "gpt2")
    checkpoint = find_checkpoint(directory)
    first = gather(checkpoint, settings(directory), False, quiet).model
    (layers,) = first.granularities
    assert layers.base_nbytes <= layers.start_nbytes < layers.base_nbytes + (100 << 20), "random weights are no start"
    files = tuple(UnitFile(str(file.path), file.nbytes) for file in checkpoint.files)
    units = UnitList(files, tuple(UnitSpec(unit.nbytes, ()) for unit in layers.units))
    base, start = layers.base_nbytes + (7 << 20), start_mib << 20
    entry = unitcache.Remembered(units, base, start, layers.reserve_nbytes, RunPlan(1))
    path = unitcache.entry_path(checkpoint.digest, "auto", 32, 1, None, None)
    unitcache.remember(path, entry)
    assert unitcache.recall(path) == entry
    (found,) = gather(checkpoint, settings(directory), False, quiet).model.granularities
    if start:
        assert (found.base_nbytes, found.start_nbytes) == (base, start)
    else:
        assert found == layers


def test_a_damaged_device_entry_is_no_entry(cache: Path) -> None:
    path = profilecache.device_path("x")
    assert profilecache.recall_device(path) is None
    profilecache.remember(path, ASSUMED_DEVICE)
    assert profilecache.recall_device(path) == ASSUMED_DEVICE
    path.write_text(json.dumps({"format": FORMAT, "profile": {"rates": []}}))
    assert profilecache.recall_device(path) is None


@pytest.mark.parametrize(
    ("measured", "share"),
    [((), 0.1), ((0.1, 0.1), 0.1), ((0.3, 0.3), 0.2), ((-0.1, 0.3), 0.1), ((-9.0,), 0.0), ((0.4,) * 98, 0.394)],
)
def test_a_few_noisy_shares_count_beside_the_usual_one(measured: tuple[float, ...], share: float) -> None:
    assert with_usual(measured, 0.1) == pytest.approx(share)
