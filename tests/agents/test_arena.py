"""The arena and the progress board: real memfds, a real second process, real direct reads, a real memory cgroup."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes_mp.errors import InvariantBroken, OutOfMemory
from hermes_mp.host import memory
from hermes_mp.host.arena import Arena, sealed_nbytes
from hermes_mp.host.progress import ProgressBoard
from hermes_mp.messages import LoaderNo

MIB = 1 << 20


@pytest.fixture(params=["auto", "off"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    with Arena.create(64 * MIB, huge=request.param) as made:
        yield made


def test_memory_is_taken_and_given_back_piece_by_piece(arena: Arena) -> None:
    assert arena.allocated_nbytes() == 0
    arena.allocate(8 * MIB, 16 * MIB)
    arena.allocate(40 * MIB, 4 * MIB)
    assert arena.allocated_nbytes() == 20 * MIB
    view = arena.view(8 * MIB, 16 * MIB)
    view[:4], view[-4:] = b"head", b"tail"
    arena.free(8 * MIB, 16 * MIB)
    assert arena.allocated_nbytes() == 4 * MIB
    arena.allocate(8 * MIB, 16 * MIB)
    assert arena.view(8 * MIB, 16 * MIB) == bytes(16 * MIB)


def test_pieces_need_not_be_whole_huge_pages(arena: Arena) -> None:
    base, nbytes = MIB + mmap.PAGESIZE, 4 * MIB + mmap.PAGESIZE
    arena.allocate(base, nbytes)
    allocated = arena.allocated_nbytes()
    assert nbytes <= allocated <= nbytes + 2 * MIB
    arena.view(base, nbytes)[:] = b"\7" * nbytes
    assert arena.allocated_nbytes() == allocated
    arena.free(base, nbytes)
    assert arena.allocated_nbytes() == 0


@pytest.mark.parametrize("way", ["_collapse", "_populate", "_small"])
def test_every_way_to_get_pages_gives_all_of_them(way: str) -> None:
    with Arena.create(8 * MIB) as arena:
        arena._ways = [getattr(arena, way), arena._small]
        arena.allocate(2 * MIB, 6 * MIB)
        assert arena.allocated_nbytes() == 6 * MIB
        assert arena.view(0, 8 * MIB) == bytes(8 * MIB)


def test_it_reports_the_pages_it_got() -> None:
    with Arena.create(8 * MIB, huge="off") as arena:
        assert arena.pages == "none yet"
        arena.allocate(0, 8 * MIB)
        assert arena.pages == f"small ({mmap.PAGESIZE >> 10} KiB)"
    with Arena.create(8 * MIB) as arena:
        arena.allocate(0, 8 * MIB)
        huge = memory.mapping_nbytes("ShmemPmdMapped", ctypes.addressof(ctypes.c_char.from_buffer(arena.view(0, 1))))
        assert arena.pages == {8 * MIB: "huge", 0: arena.pages}.get(huge, f"{100 * huge // (8 * MIB)}% huge")
        assert ("huge" in arena.pages) == (huge > 0)


def test_another_process_sees_the_same_bytes(arena: Arena) -> None:
    arena.allocate(0, 4 * MIB)
    arena.view(3 * MIB, 4)[:] = b"ping"
    code = (
        "import sys; from hermes_mp.host.arena import Arena; arena = Arena.attach(int(sys.argv[1]));"
        "view = arena.view(3 * 2**20, 8); assert view[:4] == b'ping'; view[4:] = b'pong'; print(arena.nbytes)"
    )
    command = [sys.executable, "-c", code, str(arena.fd)]
    answer = subprocess.run(command, pass_fds=[arena.fd], capture_output=True, text=True, timeout=20, check=True)
    assert int(answer.stdout) == arena.nbytes
    assert arena.view(3 * MIB, 8) == b"pingpong"


def test_a_disk_reads_straight_into_it(arena: Arena, tmp_path: Path) -> None:
    content = os.urandom(2 * MIB)
    path = tmp_path / "weights"
    path.write_bytes(content)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        pytest.skip("this file system has no direct reads")
    try:
        arena.allocate(0, 8 * MIB)
        assert os.preadv(fd, [arena.view(4 * MIB, 2 * MIB)], 0) == 2 * MIB
    finally:
        os.close(fd)
    assert arena.view(4 * MIB, 2 * MIB) == content


def test_its_length_is_fixed(arena: Arena) -> None:
    assert sealed_nbytes(arena.fd) == arena.nbytes
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, arena.nbytes // 2)
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, arena.nbytes * 2)


def test_a_file_that_could_shrink_is_no_arena() -> None:
    fd = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with pytest.raises(InvariantBroken, match="not a sealed memfd"):
            Arena.attach(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(("base", "nbytes"), [(-mmap.PAGESIZE, MIB), (0, 65 * MIB), (1, MIB), (0, MIB + 1), (0, 0)])
def test_only_whole_pages_inside_it_can_be_allocated(arena: Arena, base: int, nbytes: int) -> None:
    with pytest.raises(InvariantBroken):
        arena.allocate(base, nbytes)
    with pytest.raises(InvariantBroken):
        arena.free(base, nbytes)


def test_no_view_reaches_outside(arena: Arena) -> None:
    with pytest.raises(InvariantBroken):
        arena.view(arena.nbytes - 1, 2)


def test_more_than_the_machine_has_is_refused_untaken() -> None:
    too_much = -(-2 * memory.available_nbytes() // (2 * MIB)) * 2 * MIB
    with Arena.create(too_much + 2 * MIB) as large:
        assert large.allocated_nbytes() == 0  # sparse: the length costs nothing
        large.allocate(0, 2 * MIB)
        with pytest.raises(OutOfMemory, match=r"0\.0 MiB taken, then .* MiB available"):
            large.allocate(2 * MIB, too_much)
        assert large.allocated_nbytes() == 2 * MIB


@pytest.mark.parametrize("huge", ["auto", "off"])
def test_a_full_cgroup_is_an_error_not_a_kill(huge: str, memory_cgroup: Path) -> None:
    code = (
        "import os, sys; from hermes_mp.host.arena import Arena; from hermes_mp.errors import OutOfMemory\n"
        "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "arena = Arena.create(256 << 20, huge=sys.argv[2])\n"
        "arena.allocate(0, 16 << 20)\n"
        "try: arena.allocate(16 << 20, 128 << 20)\n"
        "except OutOfMemory as error: print(arena.allocated_nbytes() >> 20, error.line())\n"
    )
    command = [sys.executable, "-c", code, str(memory_cgroup), huge]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("16 no memory for 128.0 MiB"), answer.stdout
    assert OutOfMemory.attempt in answer.stdout


def test_progress_is_seen_from_another_process() -> None:
    board = ProgressBoard.create()
    code = (
        "import sys; from hermes_mp.host.progress import ProgressBoard; board = ProgressBoard.attach(int(sys.argv[1]));"
        "[board.bump(63) for _ in range(1000)]; board.bump(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(board.fd)], pass_fds=[board.fd], timeout=20, check=True)
    assert [board.read(LoaderNo(number)) for number in (0, 1, 62, 63)] == [1, 0, 0, 1000]
    board.close()
