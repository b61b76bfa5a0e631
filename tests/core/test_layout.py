"""The layout of a slot, by properties over any tensors in any files, and the row blocks of a large matrix."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_mp.core.header import TensorInfo, rows_of
from hermes_mp.core.layout import ALIGN, MERGE_GAP, Layout, lay_out, split_rows, whole_rows
from hermes_mp.errors import BudgetTooSmall, UnsupportedCheckpoint
from hermes_mp.messages import MAX_RANGES, Range

Placed = list[tuple[int, TensorInfo]]


def info(name: str, begin: int, end: int) -> TensorInfo:
    return TensorInfo(name, "U8", (end - begin,), begin, end)


@st.composite
def units(draw: st.DrawFn) -> tuple[Placed, list[int]]:
    """Some of the tensors of one to three files, in any order, some named twice; and the files' sizes."""
    sizes = st.one_of(
        st.just(0), st.integers(1, 300), st.integers(1, 5 * ALIGN), st.integers(MERGE_GAP - 9, 2 * MERGE_GAP)
    )
    placed: Placed = []
    files_nbytes = []
    for file in range(draw(st.integers(1, 3))):
        reached = draw(st.integers(8, 5000))
        for number, nbytes in enumerate(draw(st.lists(sizes, max_size=12))):
            if draw(st.booleans()):
                placed.append((file, info(f"{file}.{number}", reached, reached + nbytes)))
            reached += nbytes
        files_nbytes.append(reached)
    if placed:
        placed += draw(st.lists(st.sampled_from(placed), max_size=3))
    return draw(st.permutations(placed)), files_nbytes


@given(units())
def test_every_byte_arrives_where_its_tensor_is(unit: tuple[Placed, list[int]]) -> None:
    placed, files_nbytes = unit
    layout = lay_out(placed, files_nbytes)
    for file, tensor in placed:
        at = layout.at[tensor.name]
        assert at % ALIGN == tensor.begin % ALIGN
        if tensor.nbytes:
            (read,) = [read for read in layout.ranges if read.file == file and _holds(read, tensor)]
            assert at == read.at + tensor.begin - read.offset
    assert layout.at.keys() == {tensor.name for _, tensor in placed}


def _holds(read: Range, tensor: TensorInfo) -> bool:
    return read.offset <= tensor.begin and tensor.end <= read.offset + read.nbytes


@given(units())
def test_reads_are_aligned_end_with_the_file_and_share_no_byte_of_the_slot(unit: tuple[Placed, list[int]]) -> None:
    placed, files_nbytes = unit
    layout = lay_out(placed, files_nbytes)
    free = 0
    for read in layout.ranges:
        assert read.at == free
        assert read.offset % ALIGN == 0
        assert read.nbytes > 0
        assert read.nbytes % ALIGN == 0 or read.offset + read.nbytes == files_nbytes[read.file]
        assert read.offset + read.nbytes <= files_nbytes[read.file]
        free = -(-(read.at + read.nbytes) // ALIGN) * ALIGN
    assert layout.nbytes == free


@given(units())
def test_tensors_share_no_byte_of_the_slot(unit: tuple[Placed, list[int]]) -> None:
    placed, files_nbytes = unit
    at = lay_out(placed, files_nbytes).at
    spans = sorted((at[tensor.name], at[tensor.name] + tensor.nbytes) for _, tensor in set(placed) if tensor.nbytes)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


@given(units())
def test_no_byte_is_read_that_is_neither_wanted_nor_a_small_gap(unit: tuple[Placed, list[int]]) -> None:
    placed, files_nbytes = unit
    ranges = lay_out(placed, files_nbytes).ranges
    wanted = sum(tensor.nbytes for _, tensor in set(placed))
    used = sum(1 for _, tensor in set(placed) if tensor.nbytes)
    assert sum(read.nbytes for read in ranges) <= wanted + max(used - len(ranges), 0) * MERGE_GAP + 2 * ALIGN * len(
        ranges
    )
    for before, after in itertools.pairwise(ranges):
        assert before.file != after.file or after.offset > before.offset + before.nbytes


def test_neighbours_are_one_read_and_a_wide_gap_parts_them() -> None:
    near, far = info("near", 10_100 + MERGE_GAP, 90_000), info("far", 90_001 + MERGE_GAP, 160_000)
    layout = lay_out([(0, far), (0, info("first", 10_000, 10_100)), (0, near)], [160_000])
    assert layout == Layout(
        nbytes=86_016 + 8_192,
        ranges=(Range(0, 8_192, 81_920, 0), Range(0, 155_648 - 4_096, 160_000 - 151_552, 81_920)),
        at={"first": 1_808, "near": 10_100 + MERGE_GAP - 8_192, "far": 81_920 + 90_001 + MERGE_GAP - 151_552},
    )


def test_nothing_takes_nothing() -> None:
    assert lay_out([], [100]) == Layout(0, (), {})


def test_two_tensors_of_one_name_are_a_bug() -> None:
    with pytest.raises(ValueError, match="both named x"):
        lay_out([(0, info("x", 0, 10)), (0, info("x", 10, 20))], [20])


def test_a_matrix_and_a_block_of_its_rows_lie_on_the_same_bytes() -> None:
    whole = TensorInfo("wte", "F32", (1000, 16), 5_000, 69_000)
    block = rows_of(whole, 64, 128)
    layout = lay_out([(0, whole), (0, block)], [69_000])
    assert layout.at[block.name] - layout.at["wte"] == block.begin - whole.begin


def test_more_reads_than_a_message_holds() -> None:
    step = MERGE_GAP + 2
    scattered = [(0, info(str(number), number * step, number * step + 1)) for number in range(MAX_RANGES + 1)]
    assert len(lay_out(scattered[:-1], [2**40]).ranges) == MAX_RANGES
    with pytest.raises(UnsupportedCheckpoint, match=f"{MAX_RANGES + 1} places"):
        lay_out(scattered, [2**40])


@settings(deadline=None)  # a busy machine is no failure
@given(
    rows=st.integers(0, 150_000),
    row_nbytes=st.integers(1, 20_000),
    slack=st.integers(0, 10**8),
    multiple=st.sampled_from([32, 64, 128]),
)
def test_row_blocks_are_equal_fit_and_cover(rows: int, row_nbytes: int, slack: int, multiple: int) -> None:
    room = multiple * row_nbytes + 2 * ALIGN + slack
    blocks = split_rows(rows, row_nbytes, room, multiple)
    assert [first for first, _ in blocks] == [0, *(last for _, last in blocks[:-1])]
    assert blocks[-1][1] == rows
    sizes = [last - first for first, last in blocks]
    assert max(sizes) * row_nbytes + 2 * ALIGN <= max(room, 2 * ALIGN)
    assert len(set(sizes[:-2])) <= 1
    assert max(sizes[-2:]) <= sizes[0] if len(sizes) != 2 else sizes[1] < sizes[0] + multiple
    assert sizes[-1] >= multiple or sizes[0] <= multiple or len(sizes) == 1
    assert all(size % multiple == 0 for size in sizes[:-1])
    fewest = -(-rows // ((room - 2 * ALIGN) // row_nbytes // multiple * multiple)) or 1
    assert len(blocks) <= fewest


@given(
    rows=st.integers(1, 2_000),
    row_nbytes=st.integers(1, 9_000),
    room=st.integers(2 * ALIGN + 64 * 9_000, 4_000_000),
    begin=st.integers(8, 9_000),
)
def test_a_row_block_fits_its_slot_wherever_it_begins(rows: int, row_nbytes: int, room: int, begin: int) -> None:
    whole = TensorInfo("head", "U8", (rows, row_nbytes), begin, begin + rows * row_nbytes)
    for first, last in split_rows(rows, row_nbytes, room):
        assert lay_out([(0, rows_of(whole, first, last))], [whole.end]).nbytes <= room


def test_a_vocabulary_in_blocks() -> None:
    assert split_rows(50_257, 3_072, 40 * 2**20) == [(0, 12_608), (12_608, 25_216), (25_216, 37_824), (37_824, 50_257)]
    assert split_rows(100, 4, 100_000) == [(0, 100)]
    assert split_rows(32_001, 4_096, 40 * 2**20)[-1] == (24_192, 32_001)
    assert split_rows(769, 4_096, 200 * 4_096) == [(0, 192), (192, 384), (384, 576), (576, 704), (704, 769)]


def test_what_is_left_is_no_sliver() -> None:
    """In fp32 a block of one to nine rows gave other last bits than the whole matrix."""
    for rows in range(65, 400):
        for fitting in range(64, rows):
            cut = whole_rows(rows, fitting, 64)
            assert cut % 64 == 0
            assert cut <= fitting
            assert rows - cut >= 64


def test_a_slot_too_small_for_64_rows() -> None:
    with pytest.raises(BudgetTooSmall, match="64 rows of a matrix take 270336 bytes, a slot has 270335"):
        split_rows(1_000, 4_096, 270_335)
