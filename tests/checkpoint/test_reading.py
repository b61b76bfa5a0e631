"""Reading real files, on the disk and in /dev/shm, directly and buffered, and files that change under us."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermes_mp.core.layout import ALIGN
from hermes_mp.errors import ReadFailed
from hermes_mp.host import reading
from hermes_mp.host.reading import LEAST_BLOCK_NBYTES, FileReader

NBYTES = 5 * 2**20 + 1234
CONTENT = random.Random(1).randbytes(NBYTES)


@pytest.fixture(params=["disk", "shm"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path if request.param == "disk" else Path("/dev/shm")
    path = folder / f"hermes-reading-{os.getpid()}"
    path.write_bytes(CONTENT)
    with path.open("rb") as written:
        os.fsync(written.fileno())  # the page cache only drops clean pages
    yield path
    path.unlink()


@pytest.fixture(params=["direct", "buffered"])
def reader(request: pytest.FixtureRequest, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileReader]:
    """`buffered`: as the second file on a device that took no O_DIRECT for the first."""
    known = {} if request.param == "direct" else {file.stat().st_dev: False}
    monkeypatch.setattr(reading, "_direct_by_device", known)
    with FileReader(file, NBYTES) as opened:
        if request.param == "direct" and not opened.direct:
            pytest.skip("this file system takes no O_DIRECT")
        yield opened


@pytest.fixture
def memory() -> Iterator[memoryview]:
    """Page-aligned, as an arena's slot is; never less than the file."""
    with mmap.mmap(-1, 8 * 2**20) as mapped, memoryview(mapped) as view:
        yield view


def resident_pages(path: Path) -> int:
    """Pages of the file in the page cache: mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        anchor = ctypes.c_char.from_buffer(mapped)
        try:
            assert libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(len(mapped)), found) == 0
        finally:
            del anchor
        return sum(page & 1 for page in found)


def bytes_from_disk() -> int:
    """What this process has had read so far: proc_pid_io(5)."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["read_bytes"])


def test_a_whole_file(reader: FileReader, memory: memoryview) -> None:
    direct = reader.direct
    reader.read_into(memory, 0, NBYTES)
    assert memory[:NBYTES] == CONTENT
    assert reader.direct == direct


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_piece_and_not_a_byte_more(data: st.DataObject, reader: FileReader, memory: memoryview) -> None:
    places = st.one_of(st.integers(0, NBYTES), st.integers(0, NBYTES // ALIGN).map(lambda block: block * ALIGN))
    begin, end = sorted((data.draw(places), data.draw(st.one_of(places, st.just(NBYTES)))))
    misaligned = data.draw(st.sampled_from([0, 0, 0, 512, 1]))
    memory[: NBYTES + 2 * ALIGN] = b"\xaa" * (NBYTES + 2 * ALIGN)
    with memory[misaligned : misaligned + end - begin] as exact:
        reader.read_into(exact, begin, end - begin)
        assert exact == CONTENT[begin:end]
    after = misaligned + end - begin
    assert memory[:misaligned] == b"\xaa" * misaligned
    assert memory[after : after + ALIGN] == b"\xaa" * ALIGN


def test_nothing_past_a_piece_inside_the_file_is_touched(reader: FileReader, memory: memoryview) -> None:
    memory[:ALIGN] = b"\xaa" * ALIGN
    reader.read_into(memory, ALIGN, 100)
    assert memory[:ALIGN] == CONTENT[ALIGN : ALIGN + 100] + b"\xaa" * (ALIGN - 100)


def test_reads_leave_no_second_copy_in_the_page_cache(reader: FileReader, memory: memoryview) -> None:
    if str(reader.path).startswith("/dev/shm"):
        pytest.skip("there the page cache is the file")
    descriptor = os.open(reader.path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    assert resident_pages(Path(reader.path)) == 0
    reader.read_into(memory, 0, NBYTES)
    assert resident_pages(Path(reader.path)) == 0
    reader.read_into(memory, 2**20, 2**20 + 100)
    reader.read_rows([(offset, 5000) for offset in range(100, NBYTES - 5000, 300_000)], memory)
    assert resident_pages(Path(reader.path)) == 0


def test_rows(reader: FileReader, memory: memoryview) -> None:
    rows = [(184 + row * 1536, 1536) for row in (7, 3, 3, 1000, 0, 3000)] + [(NBYTES - 10, 10), (5, 0)]
    wanted = b"".join(CONTENT[offset : offset + nbytes] for offset, nbytes in rows)
    assert reader.read_rows(rows, memory) == len(wanted)
    assert memory[: len(wanted)] == wanted
    assert reader.read_rows([], memory) == 0


def test_many_rows_in_any_order(reader: FileReader, memory: memoryview) -> None:
    rows = [(184 + row * 1536, 1536) for row in random.Random(0).choices(range(3000), k=500)] + [(70, 100_000)]
    wanted = b"".join(CONTENT[offset : offset + nbytes] for offset, nbytes in rows)
    assert reader.read_rows(rows, memory) == len(wanted)
    assert memory[: len(wanted)] == wanted


def test_rows_cost_their_blocks_not_their_pages(reader: FileReader, memory: memoryview) -> None:
    rows = [(184 + row * 15_360, 1536) for row in range(200)]
    before = bytes_from_disk()
    got = os.preadv(reader._direct_fd, [memory[:LEAST_BLOCK_NBYTES]], 0) if reader.direct else -1
    if got != bytes_from_disk() - before:
        pytest.skip("no disk here that gives single blocks")
    before = bytes_from_disk()
    reader.read_rows(rows, memory)
    read = bytes_from_disk() - before
    assert len(rows) * 1536 <= read <= len(rows) * (1536 + LEAST_BLOCK_NBYTES)  # by pages 4096 or 8192 each


@pytest.mark.parametrize("accepted", [ALIGN, 1 << 30])
def test_rows_of_a_device_of_larger_blocks(
    reader: FileReader, memory: memoryview, monkeypatch: pytest.MonkeyPatch, accepted: int
) -> None:
    direct, plain = reader.direct, os.preadv

    def refusing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if descriptor == reader._direct_fd and (len(buffers[0]) % accepted or offset % accepted):
            raise OSError(errno.EINVAL, "Invalid argument")
        return plain(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", refusing)
    rows = [(184 + row * 1536, 1536) for row in range(100)]
    assert reader.read_rows(rows, memory) == 153_600
    assert memory[:153_600] == CONTENT[184:153_784]
    assert reader.direct == (direct and accepted == ALIGN)


@pytest.mark.parametrize("others", [1, 100])
def test_rows_past_the_end(reader: FileReader, memory: memoryview, others: int) -> None:
    with pytest.raises(ReadFailed, match=f"ends at byte {NBYTES}"):
        reader.read_rows([(0, 10)] * others + [(NBYTES - 5, 10)], memory)


def test_rows_where_the_system_gives_no_threads(
    reader: FileReader, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert reader.read_rows([(184 + row * 1536, 1536) for row in range(100)], memory) == 153_600
    assert memory[:153_600] == CONTENT[184:153_784]


def test_rows_of_a_disk_that_gives_less_than_asked(
    reader: FileReader, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return plain(descriptor, [buffers[0][:512]] if descriptor == reader._direct_fd else buffers, offset)

    monkeypatch.setattr(os, "preadv", short)
    rows = [(184, 1536), (70, 100), (9000, 60_000)]
    assert reader.read_rows(rows, memory) == 61_636
    assert memory[:61_636] == b"".join(CONTENT[offset : offset + nbytes] for offset, nbytes in rows)


@pytest.mark.parametrize("left", [0, ALIGN, 2**20 + 77])
def test_a_file_truncated_while_open(reader: FileReader, memory: memoryview, left: int) -> None:
    os.truncate(reader.path, left)
    with pytest.raises(ReadFailed, match=f"{reader.path} ends at byte {left}, it was {NBYTES}"):
        reader.read_into(memory, 0, NBYTES)


def test_a_disk_that_fails(memory: memoryview, file: Path) -> None:
    with FileReader(file, NBYTES) as reader:
        broken = os.open("/proc/self/mem", os.O_RDONLY)  # reading address 0 gives EIO, as a bad block does
        os.dup2(broken, reader._fd)
        os.close(broken)
        with pytest.raises(ReadFailed, match=r"cannot be read at byte 1: Input/output error"):
            reader.read_into(memory, 1, 100)


def test_a_device_that_refuses_midway_is_read_buffered_from_then_on(file: Path, memory: memoryview) -> None:
    with FileReader(file, NBYTES) as reader, memory[1 : NBYTES + ALIGN] as odd:
        direct = reader.direct
        refused = direct and _refuses_odd_memory(file, odd)  # block devices do, tmpfs does not
        reader.read_into(odd, 0, NBYTES)
        assert odd[:NBYTES] == CONTENT
        assert reader.direct == (direct and not refused)
        reader.read_into(memory, 0, NBYTES)
        assert memory[:NBYTES] == CONTENT


def _refuses_odd_memory(file: Path, odd: memoryview) -> bool:
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(descriptor, [odd[:ALIGN]], 0)
    except OSError as error:
        return error.errno == errno.EINVAL
    finally:
        os.close(descriptor)
    return False


def test_a_file_of_another_size(file: Path) -> None:
    with pytest.raises(ReadFailed, match=f"has {NBYTES} bytes, it had {NBYTES + 1}"):
        FileReader(file, NBYTES + 1)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ReadFailed, match="none cannot be read at byte 0: No such file"):
        FileReader(tmp_path / "none", 1)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(ReadFailed, match="is not a file"):
            FileReader(path, 0)


def test_reading_leaves_no_trace(file: Path, memory: memoryview) -> None:
    before = file.stat()
    os.utime(file, ns=(before.st_mtime_ns - 10**12, before.st_mtime_ns))  # older than mtime: relatime would renew it
    with FileReader(file, NBYTES) as reader:
        reader.read_into(memory, 0, NBYTES)
        reader.read_rows([(1, 10)], memory)
    assert file.stat().st_atime_ns == before.st_mtime_ns - 10**12
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_closing_twice(file: Path) -> None:
    reader = FileReader(file, NBYTES)
    reader.close()
    reader.close()
    assert not reader.direct
