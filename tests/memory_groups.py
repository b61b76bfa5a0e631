"""What a memory cgroup made for a test allows, uses and has killed; version 1 or 2, whichever this machine has."""

from __future__ import annotations

import re
from pathlib import Path

MIB = 1 << 20


def limit(cgroup: Path, mib: int) -> None:
    names = [name for name in ("memory.max", "memory.limit_in_bytes") if (cgroup / name).exists()]
    (cgroup / names[0]).write_text(str(mib * MIB))


def usage_nbytes(cgroup: Path) -> int:
    names = [name for name in ("memory.current", "memory.usage_in_bytes") if (cgroup / name).exists()]
    return int((cgroup / names[0]).read_text())


def oom_kills(cgroup: Path) -> int:
    names = [name for name in ("memory.events", "memory.oom_control") if (cgroup / name).exists()]
    return int(re.findall(r"^oom_kill (\d+)$", (cgroup / names[0]).read_text(), re.MULTILINE)[0])
