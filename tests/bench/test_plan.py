"""Which rows there are: groups by model, disk and memory limit, in each the modes with their loaders and budgets."""

from __future__ import annotations

import pytest

from hermes_mp.bench.plan import MODES, Regime, Subject, Wanted, in_turn, unit_nbytes


def labels(wanted: Wanted) -> list[list[str]]:
    return [[subject.label for subject in group.subjects] for group in wanted.groups()]


def test_pipeload_has_a_row_for_each_number_of_loaders_and_each_budget() -> None:
    wanted = Wanted(("m",), loaders=(2, 4), memory=(1 << 30, None))
    assert labels(wanted) == [[
        "resident", "sequential-1", "pipeline-1",
        "pipeload-2 1024 MiB", "pipeload-4 1024 MiB", "pipeload-2", "pipeload-4",
    ]]  # fmt: skip


def test_every_model_meets_every_disk_and_the_extra_group_comes_last() -> None:
    wanted = Wanted(
        ("a", "some/where/b/"), disks=(None, 400e6), per_reader=(Regime(factor=6.0),), read_ahead_kib=128
    )
    regimes = [
        "disk as it is", "disk capped at 400 MB/s", "each reader takes 6x the computing time",
        "disk as it is, read-ahead 128 KiB",
    ]  # fmt: skip
    assert [group.label for group in wanted.groups()] == [f"{model}, {regime}" for model in "ab" for regime in regimes]
    words = ["a-as-is", "a-400MBps", "a-6x-per-reader", "a-readahead-128"]
    assert [group.word for group in wanted.groups()][:4] == words


def test_a_cgroup_is_the_budget_unless_budgets_are_named() -> None:
    size = 900 * 10**6
    budgets = [group.subjects[-1].memory for group in Wanted(("m",), loaders=(1,), cgroups=(None, size)).groups()]
    assert budgets == [None, size]
    named = Wanted(("m",), loaders=(1,), cgroups=(size,), memory=(1 << 28,))
    assert [group.subjects[-1].memory for group in named.groups()] == [1 << 28]


def test_peers_come_last_and_have_no_loaders() -> None:
    (group,) = Wanted(("m",), modes=("pipeline",), peers=("accelerate", "llama.cpp")).groups()
    assert group.subjects == (Subject("pipeline", 1), Subject("accelerate"), Subject("llama.cpp"))


@pytest.mark.parametrize("number", range(6))
def test_each_round_has_all_rows_and_begins_with_another(number: int) -> None:
    subjects = tuple(Subject(mode) for mode in MODES)
    turn = in_turn(subjects, number)
    assert sorted(one.backend for one in turn) == sorted(MODES)
    assert turn[0] == subjects[number % 4]


@pytest.mark.parametrize(
    ("mode", "regime", "slot", "nbytes"),
    [
        ("pipeline", Regime(), None, 0),
        ("sequential", Regime(factor=6.0), None, 0),
        ("pipeline", Regime(factor=6.0), 3 << 20, 3 << 20),
        ("pipeload", Regime(), None, None),
        ("pipeload", Regime(), 3 << 20, 3 << 20),
        ("pipeload", Regime(total=1e8), None, None),
        ("pipeload", Regime(factor=6.0), None, 13 << 20),
        ("pipeload", Regime(per_reader=1e8), None, 13 << 20),
    ],
)
def test_baselines_go_layer_by_layer(mode: str, regime: Regime, slot: int | None, nbytes: int | None) -> None:
    assert unit_nbytes(mode, regime, slot, 1_340_000_000) == nbytes


@pytest.mark.parametrize(("model", "nbytes"), [(10**6, 4 << 20), (12 * 10**9, 64 << 20)])
def test_units_without_a_planner_have_bounds(model: int, nbytes: int) -> None:
    assert unit_nbytes("pipeload", Regime(factor=6.0), None, model) == nbytes
