"""Memory figures, held against a process that takes a known amount of each kind."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes_mp.bench.board import evict
from hermes_mp.host import memory

MIB = 1 << 20
ANON, SHARED, FILE = 40 * MIB, 64 * MIB, 24 * MIB

TAKER = """
import mmap, os, sys
from hermes_mp.host.arena import Arena
private = bytearray(b"x") * int(sys.argv[1])
arena = Arena.create(int(sys.argv[2]), huge="off")
arena.view(0, arena.nbytes)[:] = bytes(arena.nbytes)
file = os.open(sys.argv[4], os.O_RDONLY)
mapped = mmap.mmap(file, int(sys.argv[3]), prot=mmap.PROT_READ)
sum(mapped[at] for at in range(0, len(mapped), mmap.PAGESIZE))
print("up", flush=True)
sys.stdin.read()
"""
IDLE = "from hermes_mp.host.arena import Arena; import mmap, sys; print('up', flush=True); sys.stdin.read()"


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.fixture
def idle_and_taker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    path = tmp_path_factory.mktemp("memory") / "file"
    path.write_bytes(os.urandom(FILE))
    with start(IDLE) as idle, start(TAKER, ANON, SHARED, FILE, path) as taker:
        yield idle.pid, taker.pid
        idle.communicate(timeout=20)
        taker.communicate(timeout=20)


def near(nbytes: int, expected: int) -> bool:
    return abs(nbytes - expected) < 4 * MIB


def test_each_kind_is_counted_as_what_it_is(idle_and_taker: tuple[int, int]) -> None:
    idle, taker = idle_and_taker
    for measure in (memory.exact, memory.quick):
        before, after = measure(idle), measure(taker)
        assert near(after.private_nbytes - before.private_nbytes, ANON)
        assert near(after.file_nbytes - before.file_nbytes, FILE)
        mapped_nbytes = ANON + SHARED + FILE
        assert 0 < after.tables_nbytes - before.tables_nbytes < mapped_nbytes // 256
        assert after.total_nbytes == after.private_nbytes + after.file_nbytes + after.tables_nbytes
    assert near(memory.uss_nbytes(taker) - memory.uss_nbytes(idle), ANON + FILE)  # not SHARED, though Private_Dirty


def test_a_library_that_two_share_counts_half_in_each(idle_and_taker: tuple[int, int]) -> None:
    idle, _ = idle_and_taker
    assert memory.exact(idle).file_nbytes < memory.quick(idle).file_nbytes


def test_a_process_that_is_gone_has_no_memory() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
    assert memory.exact(process.pid).total_nbytes == 0
    process.wait()
    assert memory.exact(process.pid) == memory.quick(process.pid) == memory.Memory(0, 0, 0)
    assert memory.uss_nbytes(process.pid) == 0


def test_available_memory_ends_at_the_cgroup(memory_cgroup: object) -> None:
    code = (
        "import os, sys; from hermes_mp.host import memory; before = memory.available_nbytes()\n"
        "os.mkdir(sys.argv[1] + '/inner')\n"  # the limit is one level above us
        "open(sys.argv[1] + '/inner/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "limited = memory.available_nbytes(); hold = b'x' * (24 << 20)\n"
        "print(before, limited, memory.available_nbytes())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(memory_cgroup)], capture_output=True, text=True, timeout=20
    )
    os.rmdir(f"{memory_cgroup}/inner")
    assert answer.returncode == 0, answer.stderr
    before, limited, less = map(int, answer.stdout.split())
    assert 32 * MIB < limited <= 64 * MIB < before
    assert near(limited - less, 24 * MIB)


def test_page_cache_counts_as_available(memory_cgroup: object, tmp_path: object) -> None:
    code = (
        "import os, sys; from hermes_mp.host import memory\n"
        "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "before = memory.available_nbytes()\n"
        "with open(sys.argv[2], 'wb') as file:\n"
        "    for _ in range(32): file.write(bytes(1 << 20))\n"
        "    os.fsync(file)\n"  # dirty pages cannot be had back at once
        "print(before, memory.available_nbytes())"
    )
    command = [sys.executable, "-c", code, str(memory_cgroup), f"{tmp_path}/file"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    before, after = map(int, answer.stdout.split())
    assert near(after, before)


def test_the_peak_of_a_process_stays_when_its_memory_goes() -> None:
    code = f"held = bytearray({ANON}); del held; print('up', flush=True); import sys; sys.stdin.read()"
    with start(code) as process:
        peak, now = memory.peak_nbytes(process.pid), memory.quick(process.pid).total_nbytes
        assert now < ANON < peak - now // 2
        process.communicate(timeout=20)
    assert memory.peak_nbytes(process.pid) == 0


def test_waits_for_pages_of_a_file_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 << 20))
    if evict([path]) > 0.5:
        pytest.skip("this file system keeps its files in memory")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        before = memory.major_faults(os.getpid())
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        assert memory.major_faults(os.getpid()) > before
    assert memory.major_faults(1 << 22) == 0
