"""A run that begins plans itself: by the cache where it holds something, else by an estimate that is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import bert, gpt2, vit

from hermes_mp.core.planner import smallest_budget
from hermes_mp.errors import UnsupportedCheckpoint
from hermes_mp.host import diskspeed, profilecache
from hermes_mp.host.checkpoint import Checkpoint, find_checkpoint
from hermes_mp.models import pieces
from hermes_mp.models.choose_plan import ASSUMED, ESTIMATED, MEASURED, PROFILED_TOKENS, Told, choose_plan
from hermes_mp.models.model_profile import Wanted, profile_model
from hermes_mp.models.prepare import Traced, trace_model

TOLD = Told("auto", 32, 1, None, None, None, 4096)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hermes-mp"


def traced(directory: Path) -> tuple[Traced, Checkpoint]:
    checkpoint = find_checkpoint(directory)
    return trace_model(checkpoint, "auto", 32, 1), checkpoint


def test_without_any_profile_and_a_file_too_small_to_measure_by(tmp_path: Path) -> None:
    chosen = choose_plan(*traced(gpt2(tmp_path / "gpt2")), TOLD)
    assert (chosen.room, chosen.plan.source) == (None, ASSUMED)
    assert 1 <= chosen.plan.loaders <= 3
    assert chosen.plan.forecast_us > 0


def test_the_disk_is_measured_once_and_the_estimate_kept(models: Path, cache: Path) -> None:
    first = choose_plan(*traced(models / "big"), TOLD)
    assert first.plan.source == ESTIMATED
    entries = {path: path.read_text() for path in cache.rglob("*.json")}
    assert len(entries) == 2
    assert choose_plan(*traced(models / "big"), TOLD) == first
    assert {path: path.read_text() for path in cache.rglob("*.json")} == entries


def test_an_image_is_estimated_at_its_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the positions of a text of unknown length: computing was once taken for three times as fast."""
    rows: list[int] = []
    monkeypatch.setattr(
        "hermes_mp.models.choose_plan.seconds_per_byte", lambda dtype, count: rows.append(count) or 1e-9
    )
    model, checkpoint = traced(vit(tmp_path / "vit"))
    choose_plan(model, checkpoint, TOLD)
    config = model.skeleton.model.config
    assert rows == [1 + (config.image_size // config.patch_size) ** 2]


def test_as_many_loaders_as_were_asked_for(models: Path) -> None:
    assert choose_plan(*traced(models / "big"), replace(TOLD, loaders=5)).plan.loaders == 5


def test_what_cannot_fit_is_left_to_the_daemon_to_refuse(models: Path) -> None:
    model, checkpoint = traced(models / "big")
    chosen = choose_plan(model, checkpoint, replace(TOLD, memory=1 << 20))
    rooms = [room for room, _ in model.granularities()]
    assert chosen.room == rooms[-1]
    assert (chosen.plan.loaders, chosen.plan.source) == (1, "")


def test_a_room_that_cannot_be_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Divided finer than by layers this model pins its biases: too much for that room is no reason to refuse a run."""
    wide = {"hidden_size": 768, "num_hidden_layers": 2, "intermediate_size": 3072, "vocab_size": 128}
    model, _ = traced(bert(tmp_path / "wide", **wide))
    assert len(model.granularities()) > 1
    monkeypatch.setattr(pieces, "MAX_PINNED_NBYTES", 1024)
    with pytest.raises(UnsupportedCheckpoint):
        model.divide(8 << 20)
    assert [room for room, _ in model.granularities()] == [None]


def test_what_hermes_plan_measured_counts(models: Path) -> None:
    checkpoint = find_checkpoint(models / "big")
    profile = profile_model(checkpoint, Wanted("auto", 32, 1, PROFILED_TOKENS, None), 0.1, lambda text: None)
    # The most that this process ever took is no matter here: it would decide the budget.
    profile = replace(profile, granularities=tuple(replace(one, start_nbytes=0) for one in profile.granularities))
    name = diskspeed.device_name(checkpoint.files[0].path)
    path = profilecache.model_path(checkpoint.digest, "auto", 32, 1, PROFILED_TOKENS, None, name)
    profilecache.remember(path, profile)
    told = replace(TOLD, memory=smallest_budget(profile))
    chosen = choose_plan(*traced(models / "big"), told)
    assert chosen.plan.source == MEASURED
    assert chosen.room == profile.granularities[-1].room
    # Units that all fit are divided as they were planned: of many small ones some might not.
    four = replace(TOLD, loaders=4)
    assert choose_plan(*traced(models / "big"), replace(four, memory=8 << 30)).streamed_by == 1
    assert choose_plan(*traced(models / "big"), replace(four, memory=smallest_budget(profile, 4))).streamed_by == 4
