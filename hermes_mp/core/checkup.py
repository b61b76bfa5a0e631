"""What a machine can do for us, judged: facts in, one line each out, and what to do. It looks at nothing itself.

`host.machine` gathers the facts; None stands for what the machine does not say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

MIB = 1 << 20
LEAST_FREE_NBYTES, SMALL_FREE_NBYTES = 330 * MIB, 700 * MIB  # no model starts below the first, see docs/memory.md
HOT_C, THROTTLED_C = 75.0, 85.0
FEW_FDS = 256
PI_BITS = {0: "too little voltage", 1: "a capped clock", 2: "throttling", 3: "the temperature limit"}
PI_BEFORE = 16  # bits further up: since it was switched on
# What vector instructions are called, the widest first, and those for half precision.
VECTORS = {"x86_64": ("avx512f", "avx2"), "aarch64": ("sve", "asimd")}
HALVES = {"x86_64": ("amx_bf16", "avx512_bf16"), "aarch64": ("bf16", "i8mm")}


class Level(Enum):
    """How good a finding is: `BAD` is what nothing runs with."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One line: `what` was looked at, what was `found`, and what to do where that is not well."""

    level: Level
    what: str
    found: str
    attempt: str = ""


@dataclass(frozen=True)
class Limit:
    """A memory limit above us, in bytes."""

    name: str
    limit_nbytes: int
    free_nbytes: int


@dataclass(frozen=True)
class Disk:
    """Where the weights lie, or would: `direct` whether O_DIRECT is taken there, `rate` in bytes per second."""

    name: str
    place: str
    direct: bool | None = None
    rate: float | None = None
    read_ahead_kib: int | None = None


@dataclass(frozen=True)
class Facts:
    """One machine at one moment, for one user."""

    python: tuple[int, int, int]
    kernel: str
    architecture: str
    cpu_flags: frozenset[str]
    cores: int
    governors: frozenset[str]
    clock_share: float | None  # of its highest clock, the slowest core's, now
    page_nbytes: int
    total_nbytes: int
    available_nbytes: int
    limits: tuple[Limit, ...]
    cgroups: frozenset[int]  # versions with a memory controller
    memory_controller: bool | None  # what the kernel says: False where it is switched off
    pressure: bool
    swap_nbytes: int
    swap_used_nbytes: int
    swaps_on_disk: tuple[str, ...]
    overcommit: int | None
    arena: str  # what is wrong with shared memory; "" where nothing is
    arena_pages: str  # what kind of pages it got
    shmem_enabled: str
    fds: int
    run_directory: str  # what is wrong with it; "" where nothing is
    cache_writable: bool
    packages: dict[str, str | None]
    wanted_packages: dict[str, str]  # least versions
    temperature_c: float | None
    throttled: int | None  # a Raspberry Pi's bits
    throttle_count: int | None
    disk: Disk | None = None


def check(facts: Facts) -> list[Finding]:
    """Every finding, in the order in which a person reads them."""
    return [
        _python(facts), *_packages(facts), _kernel(facts), _processor(facts), *_clock(facts), *_heat(facts),
        _memory(facts), *_limits(facts), _controller(facts), _pressure(facts), _swap(facts), *_overcommit(facts),
        _arena(facts), _pages(facts), _page_size(facts), *_disk(facts), _fds(facts), _run_directory(facts),
        _cache(facts),
    ]  # fmt: skip


def worst(findings: list[Finding]) -> Level:
    """BAD, else WARN, else OK."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.BAD, Level.WARN) if level in levels), Level.OK)


def _python(facts: Facts) -> Finding:
    text = ".".join(map(str, facts.python))
    if facts.python < (3, 10, 0):
        return Finding(Level.BAD, "python", text, "use Python 3.10 or newer")
    return Finding(Level.OK, "python", text)


def _packages(facts: Facts) -> list[Finding]:
    missing = sorted(name for name, version in facts.packages.items() if version is None)
    old = sorted(
        f"{name} {version} (needs {facts.wanted_packages[name]})"
        for name, version in facts.packages.items()
        if version is not None and name in facts.wanted_packages
        and version_of(version) < version_of(facts.wanted_packages[name])
    )  # fmt: skip
    shown = ", ".join(f"{name} {version}" for name, version in facts.packages.items() if version is not None)
    findings = []
    if missing:
        findings.append(Finding(Level.BAD, "packages", f"missing: {', '.join(missing)}", "pip install hermes-mp"))
    if old:
        findings.append(Finding(Level.BAD, "packages", f"too old: {', '.join(old)}", "pip install -U hermes-mp"))
    return findings or [Finding(Level.OK, "packages", shown)]


def version_of(text: str) -> tuple[int, ...]:
    """The numbers a version begins with, as many as count: (2, 13) of '2.13.0+cpu'."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    numbers = list(map(int, found[0].split("."))) if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _kernel(facts: Facts) -> Finding:
    version = version_of(facts.kernel)[:2]
    if version < (5, 3):
        return Finding(Level.BAD, "kernel", facts.kernel, "use Linux 5.3 or newer, for pidfds")
    return Finding(Level.OK, "kernel", facts.kernel)


def _processor(facts: Facts) -> Finding:
    found = f"{facts.architecture}, {_counted(facts.cores, 'core')}"
    if facts.architecture not in VECTORS:
        return Finding(Level.WARN, "processor", found, "only x86-64 and aarch64 are tried")
    wide = [name for name in VECTORS[facts.architecture] if name in facts.cpu_flags][:1]
    half = [name for name in HALVES[facts.architecture] if name in facts.cpu_flags]
    if not wide:
        without = f"{found}, without {VECTORS[facts.architecture][-1]}"
        return Finding(Level.WARN, "processor", without, "computing will be slow: torch has no faster code for it")
    named = ", ".join(wide + half)
    if facts.cores < 2:
        return Finding(Level.WARN, "processor", f"{found} ({named})", "reading and computing take turns on one core")
    slow = "" if half else "; bfloat16 in software: float32 models compute faster"
    return Finding(Level.OK, "processor", f"{found} ({named}){slow}")


def _clock(facts: Facts) -> list[Finding]:
    if not facts.governors and facts.clock_share is None:
        return []
    share = "" if facts.clock_share is None else f", {100 * facts.clock_share:.0f} % of the clock it can have"
    found = f"governor {', '.join(sorted(facts.governors)) or 'unknown'}{share}"
    if "powersave" in facts.governors and facts.clock_share is not None and facts.clock_share < 0.5:
        return [Finding(Level.WARN, "clock", found, "as root: cpupower frequency-set -g performance")]
    return [Finding(Level.OK, "clock", found)]


def _heat(facts: Facts) -> list[Finding]:
    findings = []
    if facts.throttled:
        now = [text for bit, text in PI_BITS.items() if facts.throttled >> bit & 1]
        before = [text for bit, text in PI_BITS.items() if facts.throttled >> (bit + PI_BEFORE) & 1]
        found = f"now: {', '.join(now)}" if now else f"since it was switched on: {', '.join(before)}"
        findings.append(Finding(Level.WARN, "throttling", found, "see to its power supply and its cooling"))
    elif facts.throttle_count:
        times = _counted(facts.throttle_count, "time")
        findings.append(Finding(Level.WARN, "throttling", f"{times} since it was switched on", "see to its cooling"))
    if facts.temperature_c is not None:
        found = f"{facts.temperature_c:.0f} degrees Celsius"
        if facts.temperature_c >= THROTTLED_C:
            findings.append(Finding(Level.WARN, "temperature", found, "it is too hot to keep its clock: cool it"))
        elif facts.temperature_c >= HOT_C:
            findings.append(Finding(Level.WARN, "temperature", found, "little is left: longer runs will be throttled"))
        else:
            findings.append(Finding(Level.OK, "temperature", found))
    return findings


def _memory(facts: Facts) -> Finding:
    free = min([facts.available_nbytes, *(limit.free_nbytes for limit in facts.limits)])
    found = f"{_mib(free)} may be taken, of {_mib(facts.total_nbytes)}"
    if free < LEAST_FREE_NBYTES:
        return Finding(
            Level.BAD, "memory", found, f"end other programs: the smallest models need {_mib(LEAST_FREE_NBYTES)}"
        )
    if free < SMALL_FREE_NBYTES:
        return Finding(Level.WARN, "memory", found, "enough for small runs only; hermes-plan --model says for which")
    return Finding(Level.OK, "memory", found)


def _limits(facts: Facts) -> list[Finding]:
    return [
        Finding(
            Level.OK,
            "memory limit",
            f"{_mib(limit.limit_nbytes)} by {limit.name}, {_mib(max(0, limit.free_nbytes))} free",
        )
        for limit in facts.limits
    ]


def _controller(facts: Facts) -> Finding:
    if facts.cgroups:
        return Finding(Level.OK, "memory cgroups", " and ".join(f"v{version}" for version in sorted(facts.cgroups)))
    if facts.memory_controller is False:
        what = "switched off, as on Raspberry Pi OS: nobody can be given a limit"
        return Finding(
            Level.WARN, "memory cgroups", what, "to have them, add cgroup_enable=memory to /boot/firmware/cmdline.txt"
        )
    return Finding(Level.OK, "memory cgroups", "none are mounted: no limit but the machine's")


def _pressure(facts: Facts) -> Finding:
    if facts.pressure:
        return Finding(Level.OK, "pressure", "the kernel tells how long processes wait for memory (PSI)")
    return Finding(Level.OK, "pressure", "the kernel does not tell it (PSI): free memory alone is looked at")


def _swap(facts: Facts) -> Finding:
    if not facts.swap_nbytes:
        return Finding(Level.OK, "swap", "none")
    found = f"{_mib(facts.swap_nbytes)}, {_mib(facts.swap_used_nbytes)} in use"
    if facts.swaps_on_disk:
        what = f"{found}, on {', '.join(facts.swaps_on_disk)}"
        if facts.swap_used_nbytes > facts.swap_nbytes // 10:
            return Finding(
                Level.WARN, "swap", what, "it is being swapped: end other programs, or what streams reads twice"
            )
        return Finding(Level.OK, "swap", what)
    return Finding(Level.OK, "swap", f"{found}, compressed in memory")


def _overcommit(facts: Facts) -> list[Finding]:
    if facts.overcommit != 2:
        return []
    found = "vm.overcommit_memory is 2: address space counts as memory"
    return [Finding(Level.WARN, "overcommit", found, "as root: sysctl vm.overcommit_memory=0")]


def _arena(facts: Facts) -> Finding:
    if facts.arena:
        return Finding(
            Level.BAD,
            "shared memory",
            facts.arena,
            "memfd_create with seals is needed: Linux 3.17, not in every sandbox",
        )
    return Finding(Level.OK, "shared memory", "a sealed memfd, taken and given back piece by piece")


def _pages(facts: Facts) -> Finding:
    if facts.arena_pages == "huge":
        return Finding(Level.OK, "huge pages", "slots get them")
    if facts.arena:
        return Finding(Level.OK, "huge pages", "not tried")
    found = f"slots get {facts.arena_pages or 'small'} pages; shmem_enabled is {facts.shmem_enabled or 'not there'}"
    attempt = "reads and products are slower: as root, echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
    return Finding(
        Level.WARN, "huge pages", found, attempt if facts.shmem_enabled else "the kernel was built without them"
    )


def _page_size(facts: Facts) -> Finding:
    return Finding(Level.OK, "page size", f"{facts.page_nbytes >> 10} KiB")


def _disk(facts: Facts) -> list[Finding]:
    disk = facts.disk
    if disk is None:
        return []
    where = f"{disk.name} at {disk.place}"
    findings = []
    if disk.direct is None:
        findings.append(Finding(Level.OK, "disk", f"{where}: no file there to try it with, name one with --model"))
    elif disk.direct:
        findings.append(Finding(Level.OK, "disk", f"{where}: takes direct reads"))
    else:
        findings.append(
            Finding(
                Level.WARN,
                "disk",
                f"{where}: takes no direct reads",
                "reads go through the page cache, which costs processor time: put the weights on ext4, XFS or btrfs",
            )
        )
    if disk.rate is not None:
        ahead = "" if disk.read_ahead_kib is None else f"; the kernel reads {disk.read_ahead_kib} KiB ahead"
        found = f"{disk.rate / 1e6:.0f} MB/s{ahead}"
        slow = disk.rate < 45e6
        findings.append(
            Finding(
                Level.WARN if slow else Level.OK,
                "disk speed",
                found,
                "a faster card or an SSD helps more than anything else" if slow else "",
            )
        )
    return findings


def _fds(facts: Facts) -> Finding:
    if facts.fds < FEW_FDS:
        return Finding(Level.WARN, "open files", f"at most {facts.fds}", "ulimit -n 1024")
    return Finding(Level.OK, "open files", f"at most {facts.fds}")


def _run_directory(facts: Facts) -> Finding:
    if facts.run_directory:
        return Finding(Level.BAD, "run directory", facts.run_directory, "set TMPDIR to a directory that is yours")
    return Finding(Level.OK, "run directory", "can be made, for us alone")


def _cache(facts: Facts) -> Finding:
    if not facts.cache_writable:
        return Finding(Level.WARN, "cache", "cannot be written", "set XDG_CACHE_HOME: else every start measures anew")
    return Finding(Level.OK, "cache", "can be written")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:.0f} MiB" if nbytes < 10 << 30 else f"{nbytes / (1 << 30):.0f} GiB"
