"""What a memory cgroup made for a test allows, uses and has killed; version 1 or 2, whichever this machine has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
TOPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # v1, v2
LEFT_S = 10.0  # until the last process that was in it is gone
# Takes memory in that cgroup until the kernel has killed somebody there, maybe itself. As shared memory, which counts
# for the cgroup and hardly for who fills it: others there are taken first.
CROWDER = """
import os, re, sys
folder = sys.argv[1]
def kills():
    return re.findall("^oom_kill .*$", open(folder + "/" + sys.argv[2]).read(), re.M)
before = kills()
with open(folder + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
fd = os.memfd_create("crowd")
while kills() == before:
    os.write(fd, bytes(1 << 14))  # little by little: it asks for no more than what one of them frees
"""


@contextmanager
def memory_group(name: str, mib: int) -> Iterator[Path | None]:
    """A memory cgroup of so much, without swap; None where we may not make one."""
    for top in TOPS:
        folder = top / f"hermes-{name}-{os.getpid()}"
        if not (top / "cgroup.procs").exists():
            continue
        try:
            folder.mkdir()
        except OSError:
            continue
        if any((folder / one).exists() for one in ("memory.max", "memory.limit_in_bytes")):
            limit(folder, mib)
            try:
                yield folder
            finally:
                _remove(folder)
            return
        folder.rmdir()
    yield None


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + LEFT_S
    while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    folder.rmdir()


def limit(cgroup: Path, mib: int) -> None:
    names = [name for name in ("memory.max", "memory.limit_in_bytes") if (cgroup / name).exists()]
    (cgroup / names[0]).write_text(str(mib * MIB))


def usage_nbytes(cgroup: Path) -> int:
    names = [name for name in ("memory.current", "memory.usage_in_bytes") if (cgroup / name).exists()]
    return int((cgroup / names[0]).read_text())


def oom_kills(cgroup: Path) -> int:
    return int(re.findall(r"^oom_kill (\d+)$", (cgroup / _counter(cgroup)).read_text(), re.MULTILINE)[0])


def crowd_out(cgroup: Path) -> None:
    """Have the kernel kill somebody in that cgroup for lack of memory: who has the most by its score."""
    words = [sys.executable, "-I", "-S", "-c", CROWDER, str(cgroup), _counter(cgroup)]
    subprocess.run(words, timeout=60, check=False)


def _counter(cgroup: Path) -> str:
    return next(name for name in ("memory.events", "memory.oom_control") if (cgroup / name).exists())
