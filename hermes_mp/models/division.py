"""What a model is divided into: pieces that bind their weights, matrices that are used by rows or blocks, units.

A *piece* is a module that binds all weights below it while its forward runs. A *matrix* stays out of its module: an
embedding is gathered by rows, a linear map is multiplied block of rows by block of rows. Units hold pieces and blocks
in the order of their use. Nothing here decides anything; see units.py.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import nn

from hermes_mp.core.layout import Layout, powers_of_two
from hermes_mp.core.unitlist import UnitList
from hermes_mp.models.skeleton import Source
from hermes_mp.models.trace import UseKind

KERNEL_NBYTES = 650 << 10
ROWS_MULTIPLE = 64  # blocks of a multiple of 64 rows give the same bits as the whole matrix


@dataclass(frozen=True)
class Bound:
    """One parameter as a module sees it, and where it lies in its unit's slot."""

    module: nn.Module
    leaf: str
    name: str
    source: Source


@dataclass(eq=False)
class Piece:
    """`ends_unit`: nothing that its unit holds is used after it."""

    name: str
    module: nn.Module
    bounds: list[Bound]
    unit: int = -1
    ends_unit: bool = False


@dataclass(eq=False)
class Block:
    """Rows `first` to `last` (excluded) of a matrix, in unit `unit`; they begin at byte `at` of the slot."""

    unit: int
    first: int
    last: int
    at: int
    ends_unit: bool = True

    @property
    def rows(self) -> int:
        return self.last - self.first

    def parts(self, matrix: Matrix) -> list[tuple[int, int]]:
        """Rows that are multiplied at once. In bfloat16 every number of rows has machine code of its own: so, few."""
        if matrix.source.dtype != torch.bfloat16 or self.rows == matrix.source.info.shape[0]:
            return [(self.first, self.last)]
        return powers_of_two(self.first, self.last, ROWS_MULTIPLE)


@dataclass(eq=False)
class Matrix:
    """A weight of two dimensions; `owners`: the (module, leaf) pairs that hold it. No `blocks`: only rows are used."""

    name: str
    source: Source
    owners: list[tuple[nn.Module, str]]
    kinds: set[UseKind]
    blocks: list[Block] = field(default_factory=list)

    @property
    def row_nbytes(self) -> int:
        return self.source.info.nbytes // self.source.info.shape[0]


@dataclass
class Division:
    """A model's units. `layouts[u]` says where the tensors of unit u lie; `pinned` stay in memory for good.

    `ends`, for the model and its base model by id: the unit before which a forward is expected to end.
    """

    pieces: list[Piece]
    matrices: list[Matrix]
    pinned: list[Bound]
    layouts: list[Layout]
    list: UnitList
    ends: dict[int, int] = field(default_factory=dict)


def cast_nbytes(division: Division) -> int:
    """The most bytes that bound weights take in private memory because their dtype differs from the file's."""

    def cast(source: Source) -> int:
        return source.info.nbytes // source.file_dtype.itemsize * source.dtype.itemsize

    by_unit: dict[int, int] = defaultdict(int)
    for piece in division.pieces:
        for bound in piece.bounds:
            if bound.source.dtype != bound.source.file_dtype:
                by_unit[piece.unit] += cast(bound.source)
    most = max(by_unit.values(), default=0)
    for matrix in division.matrices:
        if matrix.source.dtype != matrix.source.file_dtype and matrix.blocks:
            rows = max(block.rows for block in matrix.blocks)
            most = max(most, rows * matrix.source.info.shape[1] * matrix.source.dtype.itemsize)
    return most


def kernels_nbytes(division: Division) -> int:
    """What the machine code takes that oneDNN makes in bfloat16 for every shape of a product: prompt and token."""
    shapes = {
        bound.source.info.shape
        for piece in division.pieces
        for bound in piece.bounds
        if bound.source.dtype == torch.bfloat16 and len(bound.source.info.shape) == 2
    }
    parts = {
        (last - first, *matrix.source.info.shape)
        for matrix in division.matrices
        if matrix.source.dtype == torch.bfloat16
        for block in matrix.blocks
        for first, last in block.parts(matrix)
    }
    return 2 * KERNEL_NBYTES * len(shapes | parts)
