"""Where the tensors of a unit lie in its slot, and which reads bring them there.

A tensor keeps its file offset modulo 4096 in the slot: O_DIRECT then needs no copy, and the matmuls see the same
alignment as in plain transformers (another residue modulo 64 changes the last bit of fp32 results).
It knows offsets and sizes; it opens no file and owns no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hermes_mp.core.header import TensorInfo
from hermes_mp.errors import BudgetTooSmall, UnsupportedCheckpoint
from hermes_mp.messages import MAX_RANGES, Range

ALIGN = 4096  # of file offsets, lengths and memory: the largest logical block that disks have, so O_DIRECT takes it
MERGE_GAP = 64 * 1024  # a disk of 1 GB/s reads over 64 KiB in 65 us, less than another request costs


@dataclass(frozen=True)
class Layout:
    """A slot of at least `nbytes`, filled by `ranges`; tensor `name` then begins at byte `at[name]` of the slot."""

    nbytes: int
    ranges: tuple[Range, ...]
    at: dict[str, int]


def lay_out(tensors: Sequence[tuple[int, TensorInfo]], files_nbytes: Sequence[int]) -> Layout:
    """Lay out tensors given as (file number, tensor); one that is named twice (tied weights) is laid once.

    A range's `nbytes` ends at the file's end at the latest; the slot has room for the whole aligned length, which
    is what an O_DIRECT read of that range asks for. Too many ranges for one message: `UnsupportedCheckpoint`.
    """
    placed = sorted(set(tensors), key=lambda place: (place[0], place[1].begin, place[1].end))
    ranges: list[Range] = []
    for file, begin, end in _merged([(file, tensor.begin, tensor.end) for file, tensor in placed if tensor.nbytes]):
        at = aligned_up(ranges[-1].at + ranges[-1].nbytes) if ranges else 0
        offset = _aligned_down(begin)
        ranges.append(Range(file, offset, min(aligned_up(end), files_nbytes[file]) - offset, at))
    if len(ranges) > MAX_RANGES:
        raise UnsupportedCheckpoint(
            f"a unit's weights lie in {len(ranges)} places of the file; {MAX_RANGES} is the most"
        )
    return Layout(
        nbytes=aligned_up(ranges[-1].at + ranges[-1].nbytes) if ranges else 0,
        ranges=tuple(ranges),
        at=_positions(placed, ranges),
    )


def split_rows(rows: int, row_nbytes: int, room: int, multiple: int = 64) -> list[tuple[int, int]]:
    """Split `rows` rows into equal blocks [first, last) of a multiple of `multiple` rows; the last may be shorter.

    A block fits `room` bytes of a slot wherever it begins in the file. Blocks are as few and as equal as that allows:
    blocks of a multiple of 64 rows gave the same bits as the whole matrix, ragged ones did not, nor did (in fp32) a
    last one of a few rows; so the last one has 64 rows or more, where the room is enough for that.
    """
    fitting = (room - 2 * ALIGN) // row_nbytes if row_nbytes else rows
    if rows <= fitting:
        return [(0, rows)]
    steps = fitting // multiple
    if steps <= 0:
        needed = multiple * row_nbytes + 2 * ALIGN
        raise BudgetTooSmall(f"{multiple} rows of a matrix take {needed} bytes, a slot has {max(room, 0)}")
    all_steps = -(-rows // multiple)
    blocks = -(-all_steps // steps)
    block = -(-all_steps // blocks) * multiple
    edges = [*range(0, rows, block), rows]
    if edges[-1] - edges[-2] < multiple < edges[-2] - edges[-3]:
        edges[-2] -= multiple
    return list(pairwise(edges))


def whole_rows(rows: int, fitting: int, multiple: int, least: int = 64) -> int:
    """How many of `rows` rows to cut off where `fitting` would fit: a multiple, that leaves `least` or more."""
    cut = fitting // multiple * multiple
    return max(0, cut - multiple) if 0 < rows - cut < least else cut


def powers_of_two(first: int, last: int, multiple: int = 64) -> list[tuple[int, int]]:
    """Rows `first` to `last` in pieces of `multiple` x 1, 2, 4 ... rows, the largest first, and a remainder."""
    pieces = []
    while last - first >= multiple:
        rows = multiple << ((last - first) // multiple).bit_length() - 1
        pieces.append((first, first + rows))
        first += rows
    return [*pieces, (first, last)] if first < last else pieces


def _merged(spans: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Sorted (file, begin, end) spans, those with at most MERGE_GAP between them made one."""
    merged: list[tuple[int, int, int]] = []
    for file, begin, end in spans:
        if merged and merged[-1][0] == file and begin - merged[-1][2] <= MERGE_GAP:
            merged[-1] = (file, merged[-1][1], max(end, merged[-1][2]))
        else:
            merged.append((file, begin, end))
    return merged


def _positions(placed: list[tuple[int, TensorInfo]], ranges: list[Range]) -> dict[str, int]:
    """Byte positions by name. An empty tensor has no bytes to lie anywhere and gets its residue."""
    at: dict[str, int] = {}
    current = 0
    for file, tensor in placed:
        position = tensor.begin % ALIGN
        if tensor.nbytes:
            while ranges[current].file != file or tensor.begin >= ranges[current].offset + ranges[current].nbytes:
                current += 1
            position = ranges[current].at + tensor.begin - ranges[current].offset
        if at.setdefault(tensor.name, position) != position:
            raise ValueError(f"two tensors of one unit are both named {tensor.name}")
    return at


def _aligned_down(offset: int) -> int:
    return offset // ALIGN * ALIGN


def aligned_up(offset: int) -> int:
    """The next multiple of ALIGN from `offset` on."""
    return -(-offset // ALIGN) * ALIGN
