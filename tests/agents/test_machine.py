"""Looking at a machine: this one, and trees of other machines' /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hermes_mp.core.checkup import Level, check, worst
from hermes_mp.host import machine

MOUNTS = {
    1: "30 20 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
    2: "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
}


def tree(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n" * bool(text))
    return str(folder)


def test_this_machine_can_run_us(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(80 << 20))
    facts = machine.look(path, tmp_path)
    assert worst(check(facts)) is not Level.BAD
    assert facts.packages.keys() <= set(machine.PACKAGES)
    assert None not in facts.packages.values()
    assert facts.wanted_packages.items() >= {("torch", "2.4"), ("pyzmq", "26.4")}
    assert facts.disk is not None
    assert facts.disk.direct is not None
    assert facts.disk.rate is not None
    assert facts.disk.rate > 1e6
    assert 0 < facts.available_nbytes < facts.total_nbytes
    assert facts.arena == "" != facts.arena_pages


def test_a_board(tmp_path: Path) -> None:
    """As a Raspberry Pi 5 with its own system has it."""
    root = tree(tmp_path, {
        "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimdhp\n", "proc/cgroups": "#subsys\nmemory\t0\t80\t0",
        "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 2000 kB\nSwapFree: 500 kB",
        "proc/swaps": "Filename Type\n/dev/zram0 partition 2000 1500\n/var/swap file 1 1", "proc/self/mountinfo": "",
        "proc/sys/vm/overcommit_memory": "1", "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always [never] deny",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1200000",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "600000",
        "sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq": "2400000",
        "sys/class/thermal/thermal_zone0/temp": "61500", "sys/class/thermal/thermal_zone1/temp": "40000",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50000",
    })  # fmt: skip
    facts = machine.look(None, tmp_path, root)
    assert facts.cpu_flags == {"fp", "asimd", "asimdhp"}
    assert (facts.governors, facts.clock_share) == ({"ondemand"}, 0.25)
    assert (facts.cgroups, facts.memory_controller, facts.pressure) == (frozenset(), False, False)
    assert (facts.total_nbytes, facts.available_nbytes) == (8_192_000_000, 6_144_000_000)
    assert (facts.swap_nbytes, facts.swap_used_nbytes, facts.swaps_on_disk) == (2_048_000, 1_536_000, ("/var/swap",))
    assert (facts.overcommit, facts.shmem_enabled) == (1, "never")
    assert (facts.temperature_c, facts.throttled, facts.throttle_count) == (61.5, 0x50000, None)


@pytest.mark.parametrize(
    ("mounts", "controllers", "versions"),
    [([1], "", {1}), ([2], "cpu memory", {2}), ([2], "cpu", set()), ([], "", set())],
)  # fmt: skip
def test_versions_of_memory_cgroups(tmp_path: Path, mounts: list[int], controllers: str, versions: set[int]) -> None:
    root = tree(tmp_path, {
        "proc/self/mountinfo": "\n".join(MOUNTS[version] for version in mounts),
        "sys/fs/cgroup/cgroup.controllers": controllers,
    })  # fmt: skip
    assert machine.look(None, tmp_path, root).cgroups == versions


def test_what_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / ("x" * 120)))
    facts = machine.look(None, tmp_path / "not" / "there", str(tmp_path))
    assert "not permitted" in facts.arena
    assert "too long" in facts.run_directory
    bad = {finding.what for finding in check(facts) if finding.level is Level.BAD}
    assert bad >= {"shared memory", "run directory"}
