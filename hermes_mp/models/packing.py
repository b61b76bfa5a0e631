"""Packs pieces and blocks of matrices into units, in the order in which the trace saw them used.

By layers a matrix is cut into as few and as equal blocks as fit a slot. Finer, units are filled to the brim: a matrix
goes on in the next unit, cut at a multiple of 64 rows, so that equally large slots hold next to nothing but weights.
For many loaders, who take as many times as long for a unit, the first units grow up to that size: compute has the first
one sooner, and loaders that begin together do not end together. A small window would hold too little of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hermes_mp.core.header import TensorInfo, rows_of
from hermes_mp.core.layout import ALIGN, Layout, lay_out, split_rows, whole_rows
from hermes_mp.core.unitlist import UnitFile, UnitList, UnitSpec
from hermes_mp.models.division import ROWS_MULTIPLE, Block, Matrix, Piece
from hermes_mp.models.skeleton import Skeleton
from hermes_mp.models.trace import Trace

Tensors = list[tuple[int, TensorInfo]]
MANY_LOADERS = 4
RAMP = 6  # units until they are as large as they may be: not the loaders' number, which may change from run to run
SLIVER = 16  # less than this part of a unit is not worth another product: the unit is closed


def pack(
    skeleton: Skeleton,
    trace: Trace,
    pieces: list[Piece],
    matrices: list[Matrix],
    room: int | None,
    loaders: int,
    layers: Sequence[nn.Module] = (),
) -> tuple[list[Layout], UnitList]:
    """Give every piece its unit and every matrix its blocks; the units. `room`: how large they may be, else a layer.

    A unit is larger than `room` where a piece is, or where 64 rows of a matrix are. No unit holds weights of two of
    the `layers`, or of one of them and of anything else.
    """
    layer_of = {id(module): number for number, layer in enumerate(layers) for module in layer.modules()}
    ramp = RAMP if loaders >= MANY_LOADERS else 1
    packing = _Packing([file.nbytes for file in skeleton.checkpoint.files], room, ramp)
    blocked = [matrix for matrix in matrices if "matrix" in matrix.kinds]
    ordered = _in_order(pieces, blocked, trace)
    packing.choose_room(pieces, blocked)
    before: int | None = None
    for item in ordered:
        layer = layer_of.get(id(item.module if isinstance(item, Piece) else item.owners[0][0]))
        if layer != before:
            packing.close()
        before = layer
        if isinstance(item, Piece):
            packing.add_piece(item)
        else:
            packing.add_matrix(item)
    packing.close()
    position = {id(item): number for number, item in enumerate(ordered)}
    pieces.sort(key=lambda piece: position[id(piece)])
    units = UnitList(
        tuple(UnitFile(str(file.path), file.nbytes) for file in skeleton.checkpoint.files),
        tuple(UnitSpec(layout.nbytes, layout.ranges) for layout in packing.layouts),
    )
    return packing.layouts, units


class _Packing:
    def __init__(self, files_nbytes: Sequence[int], room: int | None, ramp: int) -> None:
        self.layouts: list[Layout] = []
        self._files = files_nbytes
        self._fills = room is not None
        self._room = room or 0
        self._ramp = ramp
        self._least = 0  # what the largest block needs: a piece that is larger than its unit's room has one for itself
        self._tensors: Tensors = []  # of the unit that is being filled
        self._items: list[Piece | tuple[Block, str]] = []

    def choose_room(self, pieces: list[Piece], matrices: list[Matrix]) -> None:
        largest = max((self._lay_out(_tensors(piece)).nbytes for piece in pieces), default=0)
        widest = max((_least_rows(m.source.info.shape[0]) * m.row_nbytes for m in matrices), default=0)
        widest += 4 * ALIGN
        largest = max(largest, widest)
        if self._fills:
            self._least = widest
            self._room = max(self._room, largest)
        else:
            self._room = largest + max(2 * ALIGN, largest // 64)  # a final norm joins the last layer for 1.6 %

    def add_piece(self, piece: Piece) -> None:
        if self._items and self._lay_out(self._tensors + _tensors(piece)).nbytes > self._unit_room():
            self.close()
        self._tensors = list(dict.fromkeys(self._tensors + _tensors(piece)))
        self._items.append(piece)

    def add_matrix(self, matrix: Matrix) -> None:
        info = matrix.source.info
        if not self._fills:
            self.close()
            for first, last in split_rows(info.shape[0], matrix.row_nbytes, self._room, ROWS_MULTIPLE):
                self._add_block(matrix, first, last)
                self.close()
            return
        first = 0
        while first < info.shape[0]:
            rows = self._fitting(matrix, first)
            assert rows or self._items, "an empty unit takes some rows"
            if rows:
                self._add_block(matrix, first, first + rows)
                first += rows
            if first < info.shape[0]:
                self.close()

    def _unit_room(self) -> int:
        """Of the unit that is being filled."""
        if not self._fills:
            return self._room
        return max(self._least, self._room * min(self._ramp, len(self.layouts) + 1) // self._ramp)

    def close(self) -> None:
        """The unit is full."""
        if not self._items:
            return
        layout = self._lay_out(self._tensors)
        unit = len(self.layouts)
        for item in self._items:
            if isinstance(item, Piece):
                item.unit, item.ends_unit = unit, item is self._items[-1]
            else:
                block, name = item
                block.unit, block.at, block.ends_unit = unit, layout.at[name], item is self._items[-1]
        self.layouts.append(layout)
        self._tensors, self._items = [], []

    def _fitting(self, matrix: Matrix, first: int) -> int:
        """How many rows from `first` on the unit still takes: all, or a multiple of 64 worth the while."""
        rows = matrix.source.info.shape[0] - first
        taken = self._lay_out(self._tensors).nbytes if self._tensors else 0
        fitting = min(rows, max(0, self._unit_room() - taken) // matrix.row_nbytes)
        while fitting > 0:
            fitting = rows if fitting >= rows else whole_rows(rows, fitting, self._step(matrix), ROWS_MULTIPLE)
            part = rows_of(matrix.source.info, first, first + fitting) if fitting else None
            if part is None or self._lay_out([*self._tensors, (matrix.source.file, part)]).nbytes <= self._unit_room():
                break
            fitting -= 1
        is_sliver = fitting < rows and fitting * matrix.row_nbytes * SLIVER < self._unit_room()
        return 0 if is_sliver and self._items else fitting

    def _step(self, matrix: Matrix) -> int:
        """A matrix is cut at multiples of so many rows: 64 x 1, 2, 4 ... but no more than a sliver."""
        step = ROWS_MULTIPLE
        while 2 * step * matrix.row_nbytes * SLIVER <= self._unit_room():
            step *= 2
        return step

    def _add_block(self, matrix: Matrix, first: int, last: int) -> None:
        part = rows_of(matrix.source.info, first, last)
        block = Block(-1, first, last, 0)
        matrix.blocks.append(block)
        self._tensors.append((matrix.source.file, part))
        self._items.append((block, part.name))

    def _lay_out(self, tensors: Tensors) -> Layout:
        return lay_out(list(set(tensors)), self._files)


def _least_rows(rows: int) -> int:
    """So many rows a unit must have room for: 64, and a remainder that may not be a block of its own."""
    return rows if rows < ROWS_MULTIPLE else ROWS_MULTIPLE + rows % ROWS_MULTIPLE


def _tensors(piece: Piece) -> Tensors:
    return [(bound.source.file, bound.source.info) for bound in piece.bounds]


def _in_order(pieces: list[Piece], matrices: list[Matrix], trace: Trace) -> list[Piece | Matrix]:
    """By first use; what was never used comes last."""
    first: dict[tuple[int, bool], int] = {}
    for position, use in enumerate(trace.uses):
        first.setdefault((use.parameter, use.kind == "matrix"), position)
    never = len(trace.uses)

    def piece_position(piece: Piece) -> int:
        ids = {id(bound.module._parameters[bound.leaf]) for bound in piece.bounds}
        return min((first.get((i, kind), never) for i in ids for kind in (True, False)), default=never)

    def matrix_position(matrix: Matrix) -> int:
        module, leaf = matrix.owners[0]
        return first.get((id(module._parameters[leaf]), True), never)

    items: list[tuple[int, int, Piece | Matrix]] = [
        (piece_position(piece), number, piece) for number, piece in enumerate(pieces)
    ]
    items += [(matrix_position(matrix), len(pieces) + number, matrix) for number, matrix in enumerate(matrices)]
    return [item for _, _, item in sorted(items, key=lambda entry: entry[:2])]
