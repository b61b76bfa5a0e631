"""The limits above us: arithmetic on trees of files as kernels show them, v1 and v2, and this machine's own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hermes_mp.host import memory
from hermes_mp.host.ceilings import Ceilings, own_oom_kills

MIB = 1 << 20
LOOK_S = 0.0002


class Tree:
    """A /proc and cgroup mounts below a directory, for a process in the group /a/b."""

    def __init__(self, root: Path) -> None:
        self.root = root
        sizes = {"MemTotal": 8000 << 10, "MemFree": 1, "MemAvailable": 4000 << 10}
        self.write("proc/meminfo", "".join(f"{name}: {kib} kB\n" for name, kib in sizes.items()))
        self.write("proc/self/cgroup", "5:cpu:/elsewhere\n4:memory:/a/b\n0::/a/b\n")
        self.mounts("34 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw")

    def mounts(self, *lines: str) -> None:
        self.write("proc/self/mountinfo", "\n".join(["22 1 0:20 / /proc rw - proc proc rw", *lines]) + "\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def group(self, path: str, **numbers: object) -> None:
        """`max=5` writes memory.max; `stat` is a dict."""
        for name, value in numbers.items():
            if isinstance(value, dict):
                value = "".join(f"{key} {number}\n" for key, number in value.items())
            self.write(f"sys/fs/cgroup/{path}/memory.{name}", f"{value}\n")

    def free_mib(self) -> dict[str, float]:
        with Ceilings(str(self.root)) as ceilings:
            found = ceilings.look()
        return {one.name.removeprefix(f"{self.root}/sys/fs/cgroup"): one.free_nbytes / MIB for one in found}


def stat(inactive: int = 0, active: int = 0, mapped: int = 0, shared: int = 0) -> dict[str, int]:
    """memory.stat of v2, from MiB."""
    kinds = {"inactive_file": inactive, "active_file": active, "file_mapped": mapped, "shmem": shared}
    return {name: mib * MIB for name, mib in kinds.items()}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_how_many_of_our_own_group_were_killed(tree: Tree) -> None:
    assert own_oom_kills(str(tree.root)) == 0
    tree.group("a/b", events={"low": 0, "oom": 9, "oom_kill": 3, "oom_group_kill": 1})
    tree.group("a", events={"oom_kill": 7})
    assert own_oom_kills(str(tree.root)) == 3


def test_without_cgroups_the_machine_is_the_limit(tree: Tree) -> None:
    assert tree.free_mib() == {"machine": 4000}


def test_a_group_without_a_limit_is_none(tree: Tree) -> None:
    tree.group("a/b", max="max", high="max", current=100 * MIB, stat=stat())
    assert tree.free_mib() == {"machine": 4000}


def test_every_group_above_us_counts(tree: Tree) -> None:
    tree.group("a/b", max=1000 * MIB, high="max", current=300 * MIB, stat=stat())
    tree.group("a", max=1200 * MIB, high="max", current=1100 * MIB, stat=stat())
    assert tree.free_mib() == {"machine": 4000, "/a/b": 700, "/a": 100}


def test_high_is_a_limit_as_well_and_may_be_lowered_below_what_is_used(tree: Tree) -> None:
    tree.group("a/b", max=1000 * MIB, high=900 * MIB, current=300 * MIB, stat=stat())
    with Ceilings(str(tree.root)) as ceilings:
        assert [one.free_nbytes // MIB for one in ceilings.look()] == [4000, 600]
        tree.group("a/b", high=250 * MIB)
        assert [one.free_nbytes // MIB for one in ceilings.look()] == [4000, -50]
        tree.group("a/b", high="max")
        assert [one.free_nbytes // MIB for one in ceilings.look()] == [4000, 700]


@pytest.mark.parametrize(
    ("pages", "free", "mapped"),
    [
        (stat(inactive=50, active=20), 770, 0),  # page cache can be had back
        (stat(inactive=50, active=20, mapped=30), 740, 30),  # but not code that runs
        (stat(inactive=50, active=20, mapped=230, shared=200), 740, 30),  # an arena is mapped, and no page cache
        (stat(mapped=200, shared=200), 700, 0),
        (stat(inactive=10, mapped=99), 700, 10),  # figures of different moments
    ],
)
def test_page_cache_is_free_but_for_what_is_mapped(tree: Tree, pages: dict[str, int], free: int, mapped: int) -> None:
    tree.group("a/b", max=1000 * MIB, high="max", current=300 * MIB, stat=pages)
    with Ceilings(str(tree.root)) as ceilings:
        group = ceilings.look()[1]
    assert (group.free_nbytes, group.mapped_nbytes, group.limit_nbytes) == (free * MIB, mapped * MIB, 1000 * MIB)


def test_version_1(tree: Tree) -> None:
    tree.mounts(
        "34 24 0:30 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory",
        "35 24 0:31 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu",
    )
    pages = {f"total_{name}": number for name, number in stat(50, 20, 230, 200).items() if name != "file_mapped"}
    whole = {"inactive_file": 1, "mapped_file": 2} | pages | {"total_mapped_file": 230 * MIB}
    tree.group("memory/a/b", limit_in_bytes=1000 * MIB, usage_in_bytes=300 * MIB, stat=whole)
    tree.group("memory/a", limit_in_bytes=2**63 - 4096, usage_in_bytes=400 * MIB, stat=whole)
    assert tree.free_mib() == {"machine": 4000, "/memory/a/b": 740}


def test_a_container_sees_its_own_group_as_the_top(tree: Tree) -> None:
    tree.mounts("34 24 0:30 /a /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw")
    tree.group("b", max=1000 * MIB, high="max", current=300 * MIB, stat=stat())
    tree.group(".", max=900 * MIB, high="max", current=300 * MIB, stat=stat())
    assert tree.free_mib() == {"machine": 4000, "/b": 700, "": 600}


def test_a_kernel_that_does_not_say_what_is_available(tree: Tree) -> None:
    tree.write("proc/meminfo", "MemTotal: 2048 kB\nMemFree: 1024 kB\n")
    assert tree.free_mib() == {"machine": 1}


def test_a_look_is_cheap_and_of_now() -> None:
    with Ceilings() as ceilings:
        times = []
        for _ in range(50):
            started = time.perf_counter()
            found = ceilings.look()
            times.append(time.perf_counter() - started)
    assert sorted(times)[10] < LOOK_S  # this machine may be busy
    assert found[0].limit_nbytes == memory.total_nbytes()
