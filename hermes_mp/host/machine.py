"""Looks at this machine for `hermes-doctor`: /proc, /sys, what packages are there, and a little memory and disk, tried.

Nothing is written, and nothing is changed. `root`: a tree other than this machine's, for its /proc and /sys. What
cannot be read is None or empty: whether that is bad `core.checkup` says.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from hermes_mp.core.checkup import Disk, Facts, Limit
from hermes_mp.errors import HermesError
from hermes_mp.host.arena import Arena
from hermes_mp.host.cachedir import cache_directory
from hermes_mp.host.ceilings import Ceilings
from hermes_mp.host.diskspeed import measure_device
from hermes_mp.host.reading import FileReader
from hermes_mp.host.rundir import RunDirectory

PACKAGE = "hermes-mp"
PACKAGES = ("torch", "transformers", "safetensors", "pyzmq", "msgpack", "huggingface-hub")
TRIED_NBYTES = 8 << 20  # of an arena
DISK_S = 1.0


def look(file: Path | None, place: Path, root: str = "") -> Facts:
    """Everything. `file`: a weights file to try the disk with, else None; `place`: where weights lie, or would."""
    arena, pages = _try_arena()
    with Ceilings(root) as ceilings:
        machine, *limits = ceilings.look()
    memory = dict(re.findall(r"^(\w+): +(\d+)", _text(f"{root}/proc/meminfo"), re.MULTILINE))
    swaps = [line.split()[0] for line in _text(f"{root}/proc/swaps").splitlines()[1:]]
    swap, free_swap = (int(memory.get(name, 0)) * 1024 for name in ("SwapTotal", "SwapFree"))
    return Facts(
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        kernel=os.uname().release,
        architecture=os.uname().machine,
        cpu_flags=_cpu_flags(root),
        cores=len(os.sched_getaffinity(0)),
        governors=frozenset(text for path in _cpus(root, "cpufreq/scaling_governor") if (text := _text(path))),
        clock_share=_clock_share(root),
        page_nbytes=os.sysconf("SC_PAGESIZE"),
        total_nbytes=machine.limit_nbytes,
        available_nbytes=machine.free_nbytes,
        limits=tuple(Limit(limit.name, limit.limit_nbytes, limit.free_nbytes) for limit in limits),
        cgroups=_cgroup_versions(root),
        memory_controller=_memory_controller(root),
        pressure=bool(_text(f"{root}/proc/pressure/memory")),
        swap_nbytes=swap,
        swap_used_nbytes=swap - free_swap,
        swaps_on_disk=tuple(name for name in swaps if "zram" not in name),
        overcommit=_number(f"{root}/proc/sys/vm/overcommit_memory"),
        arena=arena,
        arena_pages=pages,
        shmem_enabled=_chosen(_text(f"{root}/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
        fds=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        run_directory=_try_run_directory(),
        cache_writable=_is_writable(cache_directory()),
        packages={name: _version(name) for name in PACKAGES},
        wanted_packages=_wanted(),
        temperature_c=_hottest(root),
        throttled=_hex(f"{root}/sys/devices/platform/soc/soc:firmware/get_throttled"),
        throttle_count=_throttle_count(root),
        disk=_disk(file, place, root),
    )


def _try_arena() -> tuple[str, str]:
    """What is wrong with it, and the kind of its pages."""
    try:
        with Arena.create(TRIED_NBYTES) as arena:
            nbytes = arena.nbytes - arena.nbytes % arena.granule
            arena.allocate(0, nbytes)
            with arena.view(0, 1) as view:
                view[0] = 1
            return "", arena.pages
    except (OSError, HermesError) as error:
        return str(error), ""


def _try_run_directory() -> str:
    try:
        RunDirectory.create().remove()
    except HermesError as error:
        return str(error)
    return ""


def _is_writable(folder: Path) -> bool:
    there = next(one for one in (folder, *folder.parents) if os.path.exists(one))
    return os.access(there, os.W_OK | os.X_OK)


def _cpu_flags(root: str) -> frozenset[str]:
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _text(f"{root}/proc/cpuinfo"), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _cpus(root: str, name: str) -> Iterator[str]:
    yield from map(str, sorted(Path(f"{root}/sys/devices/system/cpu").glob(f"cpu[0-9]*/{name}")))


def _clock_share(root: str) -> float | None:
    shares = []
    for path in _cpus(root, "cpufreq"):
        now, most = _number(f"{path}/scaling_cur_freq"), _number(f"{path}/cpuinfo_max_freq")
        if now and most:
            shares.append(now / most)
    return min(shares, default=None)


def _throttle_count(root: str) -> int | None:
    counts = [_number(path) for path in _cpus(root, "thermal_throttle/*_throttle_count")]
    return max((count for count in counts if count is not None), default=None)


def _hottest(root: str) -> float | None:
    zones = Path(f"{root}/sys/class/thermal").glob("thermal_zone*/temp")
    found = [degrees / 1000 for path in zones if (degrees := _number(str(path))) is not None and degrees > 0]
    return max(found, default=None)


def _cgroup_versions(root: str) -> frozenset[int]:
    """Those that have a memory controller mounted."""
    found = set()
    for line in _text(f"{root}/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, *rest = right.split() or [""]
        mount = left.split()[4]
        if kind == "cgroup" and "memory" in rest[-1].split(","):
            found.add(1)
        elif kind == "cgroup2" and "memory" in _text(f"{root}{mount}/cgroup.controllers").split():
            found.add(2)
    return frozenset(found)


def _memory_controller(root: str) -> bool | None:
    found = re.search(r"^memory\s+\d+\s+\d+\s+([01])", _text(f"{root}/proc/cgroups"), re.MULTILINE)
    return None if found is None else found[1] == "1"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _wanted() -> dict[str, str]:
    """The least version of each package that ours asks for."""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from its source
        return {}
    found = (re.match(r"([\w-]+).*?>=([\d.]+)", line) for line in lines if "extra" not in line)
    return {one[1].lower(): one[2] for one in found if one}


def _disk(file: Path | None, place: Path, root: str) -> Disk:
    there = next(one for one in (place, *place.parents) if os.path.exists(one))
    number = os.stat(there).st_dev
    folder = Path(f"{root}/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    with contextlib.suppress(OSError):
        folder = folder.resolve()
    disk = folder if (folder / "queue").exists() else folder.parent
    known = (disk / "queue").exists()
    kind = {0: "SSD or card", 1: "rotating"}.get(_number(f"{disk}/queue/rotational") or 0, "") if known else ""
    name = f"{disk.name} ({kind})" if known else f"{os.major(number)}:{os.minor(number)}"
    direct = rate = None
    if file is not None:
        reader = FileReader(file, file.stat().st_size)
        direct = reader.direct
        reader.close()
        profile = measure_device(file, DISK_S)
        rate = None if profile is None else profile.best.nbytes_per_s
    return Disk(name, str(there), direct, rate, _number(f"{disk}/queue/read_ahead_kb"))


def _chosen(text: str) -> str:
    """The chosen word of 'always within_size advise [never] deny force'."""
    return text.partition("[")[2].partition("]")[0]


def _number(path: str) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _hex(path: str) -> int | None:
    try:
        return int(_text(path), 16)
    except ValueError:
        return None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
