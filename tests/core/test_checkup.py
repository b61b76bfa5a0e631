"""What `hermes-doctor` says of a machine: each fact that is not well has a line, and that line says what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hermes_mp.core.checkup import Disk, Facts, Finding, Level, Limit, check, worst

MIB = 1 << 20
GIB = 1 << 30
WELL = Facts(
    python=(3, 11, 7), kernel="6.12.1-rpi", architecture="aarch64", cpu_flags=frozenset({"asimd", "bf16"}), cores=4,
    governors=frozenset({"ondemand"}), clock_share=0.6, page_nbytes=16384, total_nbytes=8 * GIB,
    available_nbytes=6 * GIB, limits=(), cgroups=frozenset({2}), memory_controller=True, pressure=True, swap_nbytes=0,
    swap_used_nbytes=0, swaps_on_disk=(), overcommit=0, arena="", arena_pages="huge", shmem_enabled="never", fds=1024,
    run_directory="", cache_writable=True, packages={"torch": "2.13.0+cpu", "msgpack": "1.2.4"},
    wanted_packages={"torch": "2.4"}, temperature_c=50.0, throttled=0, throttle_count=None,
    disk=Disk("mmcblk0 (SSD or card)", "/models", True, 90e6, 128),
)  # fmt: skip


def found(what: str, **facts: Any) -> list[Finding]:
    """The findings about `what` on a machine that is well but for these facts."""
    return [finding for finding in check(replace(WELL, **facts)) if finding.what == what]


def test_a_machine_that_is_well() -> None:
    findings = check(WELL)
    assert worst(findings) is Level.OK
    assert not [finding.attempt for finding in findings if finding.attempt]
    assert len({finding.what for finding in findings}) == len(findings) == 18


@pytest.mark.parametrize(
    ("what", "facts", "level", "says"),
    [
        ("python", {"python": (3, 9, 2)}, Level.BAD, "3.9.2"),
        ("packages", {"packages": {"torch": "2.13.0", "msgpack": None}}, Level.BAD, "missing: msgpack"),
        ("packages", {"packages": {"torch": "2.3.9+cpu"}}, Level.BAD, "torch 2.3.9+cpu (needs 2.4)"),
        ("kernel", {"kernel": "4.19.0"}, Level.BAD, "4.19.0"),
        ("processor", {"cpu_flags": frozenset()}, Level.WARN, "without asimd"),
        ("processor", {"architecture": "x86_64", "cpu_flags": frozenset({"sse2"})}, Level.WARN, "without avx2"),
        ("processor", {"architecture": "riscv64"}, Level.WARN, "riscv64"),
        ("processor", {"cores": 1}, Level.WARN, "1 core "),
        ("clock", {"governors": frozenset({"powersave"}), "clock_share": 0.4}, Level.WARN, "40 %"),
        ("throttling", {"throttled": 0x50005}, Level.WARN, "now: too little voltage, throttling"),
        ("throttling", {"throttled": 0x80000}, Level.WARN, "since it was switched on: the temperature limit"),
        ("throttling", {"throttled": None, "throttle_count": 3}, Level.WARN, "3 times"),
        ("temperature", {"temperature_c": 78.0}, Level.WARN, "78 degrees"),
        ("temperature", {"temperature_c": 86.0}, Level.WARN, "86 degrees"),
        ("memory", {"available_nbytes": 500 * MIB}, Level.WARN, "500 MiB"),
        ("memory", {"available_nbytes": 300 * MIB}, Level.BAD, "300 MiB"),
        ("memory", {"limits": (Limit("/a", GIB, 200 * MIB),)}, Level.BAD, "200 MiB"),
        ("memory cgroups", {"cgroups": frozenset(), "memory_controller": False}, Level.WARN, "Raspberry"),
        (
            "swap", {"swap_nbytes": GIB, "swap_used_nbytes": GIB // 2, "swaps_on_disk": ("/swapfile",)}, Level.WARN,
            "/swapfile",
        ),
        ("overcommit", {"overcommit": 2}, Level.WARN, "is 2"),
        ("shared memory", {"arena": "Operation not permitted"}, Level.BAD, "not permitted"),
        ("huge pages", {"arena_pages": "small (4 KiB)"}, Level.WARN, "shmem_enabled is never"),
        ("huge pages", {"arena_pages": "small (4 KiB)", "shmem_enabled": ""}, Level.WARN, "not there"),
        ("open files", {"fds": 64}, Level.WARN, "64"),
        ("run directory", {"run_directory": "no run directory in /tmp"}, Level.BAD, "no run directory"),
        ("cache", {"cache_writable": False}, Level.WARN, "cannot be written"),
        ("disk", {"disk": replace(WELL.disk, direct=False)}, Level.WARN, "no direct reads"),
        ("disk speed", {"disk": replace(WELL.disk, rate=20e6)}, Level.WARN, "20 MB/s; the kernel reads 128 KiB ahead"),
    ],
)  # fmt: skip
def test_what_is_not_well_has_a_line(what: str, facts: dict[str, Any], level: Level, says: str) -> None:
    (finding,) = found(what, **facts)
    assert (finding.level, says in finding.found) == (level, True), finding
    assert finding.attempt


@pytest.mark.parametrize(
    ("what", "facts", "says"),
    [
        ("packages", {"wanted_packages": {}}, "torch 2.13.0+cpu"),
        ("processor", {"cpu_flags": frozenset({"asimd"})}, "bfloat16 in software"),
        ("memory cgroups", {"cgroups": frozenset(), "memory_controller": None}, "none are mounted"),
        ("memory cgroups", {"cgroups": frozenset({1, 2})}, "v1 and v2"),
        ("memory limit", {"limits": (Limit("/a", 2 * GIB, GIB),)}, "2048 MiB by /a, 1024 MiB free"),
        ("pressure", {"pressure": False}, "does not tell"),
        ("swap", {"swap_nbytes": GIB, "swap_used_nbytes": GIB // 2}, "compressed in memory"),
        ("swap", {"swap_nbytes": GIB, "swaps_on_disk": ("/swapfile",)}, "0 MiB in use"),
        ("huge pages", {"arena": "no memory", "arena_pages": ""}, "not tried"),
        ("disk", {"disk": Disk("vda", "/models")}, "no file there"),
    ],
)
def test_what_is_well_is_said_too(what: str, facts: dict[str, Any], says: str) -> None:
    (finding,) = found(what, **facts)
    assert (finding.level, says in finding.found, finding.attempt) == (Level.OK, True, "")


@pytest.mark.parametrize(
    ("what", "facts"),
    [
        ("clock", {"governors": frozenset(), "clock_share": None}), ("temperature", {"temperature_c": None}),
        ("throttling", {}), ("memory limit", {}), ("overcommit", {"overcommit": None}), ("disk", {"disk": None}),
        ("disk speed", {"disk": Disk("vda", "/models", True, None)}),
    ],
)  # fmt: skip
def test_what_the_machine_does_not_say_has_no_line(what: str, facts: dict[str, Any]) -> None:
    assert not found(what, **facts)


def test_the_worst_counts() -> None:
    assert worst([Finding(level, "", "") for level in Level]) is Level.BAD
    assert worst([Finding(level, "", "") for level in (Level.OK, Level.WARN)]) is Level.WARN
