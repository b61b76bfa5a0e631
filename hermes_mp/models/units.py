"""Divides a model's weights into units: the module tree says what belongs together, the trace says in which order.

A *piece* is a module that binds all weights below it while its forward runs (a layer; an embedding block; a head).
Small consecutive pieces share a unit. The big two leave their piece: an embedding matrix is gathered by rows, a
vocabulary head streams in blocks of rows that are units of their own. Knows no process, slot number or budget.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from hermes_mp.core.header import TensorInfo, rows_of
from hermes_mp.core.layout import ALIGN, Layout, lay_out, split_rows
from hermes_mp.core.unitlist import UnitFile, UnitList, UnitSpec
from hermes_mp.errors import UnsupportedCheckpoint
from hermes_mp.models.skeleton import Skeleton, Source
from hermes_mp.models.trace import Trace, UseKind

ROWS_MULTIPLE = 64  # blocks of a multiple of 64 rows give the same bits as the whole matrix
MAX_PINNED_NBYTES = 64 << 20  # weights used outside of any module we could hook; a few scalars in practice


@dataclass(frozen=True)
class Bound:
    """One parameter as a module sees it, and where it lies in its unit's slot."""

    module: nn.Module
    leaf: str
    name: str
    source: Source


@dataclass(eq=False)
class Piece:
    name: str
    module: nn.Module
    bounds: list[Bound]
    unit: int = -1


@dataclass(frozen=True)
class Block:
    """Rows `first` to `last` (excluded) of a matrix, as unit `unit`; they begin at byte `at` of the slot."""

    unit: int
    first: int
    last: int
    at: int


@dataclass(eq=False)
class Matrix:
    """One of the big two; `owners` are the (module, leaf) pairs that hold it. No `blocks`: only rows are used."""

    name: str
    source: Source
    owners: list[tuple[nn.Module, str]]
    kinds: set[UseKind]
    blocks: list[Block] = field(default_factory=list)


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

    def last_piece(self) -> dict[int, Piece]:
        """For each unit with pieces the one that comes last in the predicted order."""
        return {piece.unit: piece for piece in self.pieces}


def divide(skeleton: Skeleton, trace: Trace) -> Division:
    """Find pieces and matrices, order them by first use, and pack them into units.

    Raises UnsupportedCheckpoint where too much is used outside of any hooked module.
    """
    return _Divider(skeleton, trace).divide()


class _Divider:
    def __init__(self, skeleton: Skeleton, trace: Trace) -> None:
        self.skeleton, self.trace = skeleton, trace
        self.owners: dict[int, list[tuple[str, nn.Module, str]]] = defaultdict(list)
        for name, module in skeleton.model.named_modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    self.owners[id(parameter)].append((f"{name}.{leaf}" if name else leaf, module, leaf))
        self.kinds = self._kinds()
        self.streamed: set[int] = set()

    def divide(self) -> Division:
        self.streamed = self._choose_streamed()
        pieces = list(self._pieces(self.skeleton.model, ""))
        pinned = self._pinned(pieces)
        for piece in pieces:
            piece.bounds = [bound for bound in piece.bounds if bound not in pinned]
        pieces = [piece for piece in pieces if piece.bounds]
        matrices = [self._matrix(parameter) for parameter in self.owners if parameter in self.streamed]
        division = self._pack(pieces, matrices, pinned)
        model = self.skeleton.model
        if not self.trace.failed and not model.config.is_encoder_decoder:  # whose encoder and decoder are called apart
            division.ends = {id(part): self._end(division, id(part)) for part in (model, model.base_model)}
        return division

    def _end(self, division: Division, part: int) -> int:
        after = {
            (id(bound.module._parameters[bound.leaf]), kind): piece.unit + 1
            for piece in division.pieces
            for bound in piece.bounds
            for kind in ("rows", "matrix", "other")
        }
        for matrix in division.matrices:
            module, leaf = matrix.owners[0]
            if matrix.blocks:
                after[id(module._parameters[leaf]), "matrix"] = matrix.blocks[-1].unit + 1
        inside = (use for use in self.trace.uses if part in use.inside)
        return max((after.get((use.parameter, use.kind), 0) for use in inside), default=0)

    # --- which parameters are used how

    def _kinds(self) -> dict[int, set[UseKind]]:
        kinds: dict[int, set[UseKind]] = defaultdict(set)
        for use in self.trace.uses:
            kinds[use.parameter].add(use.kind)
        if not self.trace.failed:
            return kinds
        # The trace ended early, so go by what the modules are.
        head = self.skeleton.model.get_output_embeddings()
        for parameter, owners in self.owners.items():
            unseen = not kinds[parameter]
            for _, module, leaf in owners:
                if module is head and isinstance(module, nn.Linear) and leaf == "weight":
                    kinds[parameter].add("matrix")
                elif unseen:
                    kinds[parameter].add("rows" if isinstance(module, nn.Embedding) else "other")
        return kinds

    def _choose_streamed(self) -> set[int]:
        """Matrices that are better not held whole: looked up by rows, or larger than any layer."""
        rows = {p for p in self.owners if self.kinds[p] and self.kinds[p] <= {"rows", "matrix"} and self._is_matrix(p)}
        self.streamed = {p for p in rows if "rows" in self.kinds[p]}
        pieces = list(self._pieces(self.skeleton.model, ""))
        layers = [piece for piece in pieces if self._is_member(piece.module)] or pieces
        largest = max((self._nbytes(piece) for piece in layers), default=0)
        return {p for p in rows if self._parameter_nbytes(p) > (largest // 4 if "rows" in self.kinds[p] else largest)}

    def _is_matrix(self, parameter: int) -> bool:
        return len(self.skeleton.parameters[parameter].info.shape) == 2

    def _parameter_nbytes(self, parameter: int) -> int:
        return self.skeleton.parameters[parameter].info.nbytes

    def _nbytes(self, piece: Piece) -> int:
        return sum({bound.source.info: bound.source.info.nbytes for bound in piece.bounds}.values())

    # --- which modules bind

    def _is_member(self, module: nn.Module) -> bool:
        return id(module) in self._members()

    def _members(self) -> set[int]:
        return {
            id(child)
            for module in self.skeleton.model.modules()
            if isinstance(module, (nn.ModuleList, nn.Sequential))
            for child in module.children()
        }

    def _bounds(self, module: nn.Module, prefix: str, recurse: bool = True) -> list[Bound]:
        found = []
        for name, part in module.named_modules() if recurse else [("", module)]:
            for leaf, parameter in part._parameters.items():
                if parameter is not None and id(parameter) not in self.streamed:
                    full = ".".join(text for text in (prefix, name, leaf) if text)
                    found.append(Bound(part, leaf, full, self.skeleton.source(parameter)))
        return found

    def _pieces(self, module: nn.Module, prefix: str) -> Iterator[Piece]:
        """Modules to hook: split while lists of layers hold most of a module's bytes."""
        bounds = self._bounds(module, prefix)
        if not bounds or self._owns_head(module):
            return  # what a head owns besides its matrix, a bias, would keep a slot while the matrix streams: pinned
        whole = sum(bound.source.info.nbytes for bound in bounds)
        listed = 0
        for part in module.modules():
            if isinstance(part, nn.ModuleList) or (isinstance(part, nn.Sequential) and len(part) > 1):
                listed = max(listed, sum(bound.source.info.nbytes for bound in self._bounds(part, "")))
        has_head = any(self._owns_head(part) for part in module.modules())
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) or listed * 2 > whole or has_head:
            for name, child in module.named_children():
                yield from self._pieces(child, f"{prefix}.{name}" if prefix else name)
        else:
            yield Piece(prefix, module, bounds)

    def _owns_head(self, module: nn.Module) -> bool:
        return not isinstance(module, nn.Embedding) and any(
            id(parameter) in self.streamed and "matrix" in self.kinds[id(parameter)]
            for parameter in module._parameters.values()
        )

    def _pinned(self, pieces: list[Piece]) -> list[Bound]:
        """Parameters that no piece binds when they are used: of split modules, or used from outside."""
        hooked = {id(bound.module): piece for piece in pieces for bound in piece.bounds}
        loose = {bound for bound in self._bounds(self.skeleton.model, "") if id(bound.module) not in hooked}
        by_parameter: dict[int, list[Bound]] = defaultdict(list)
        inside: dict[int, set[int]] = defaultdict(set)
        for piece in pieces:
            for bound in piece.bounds:
                parameter = id(bound.module._parameters[bound.leaf])
                by_parameter[parameter].append(bound)
                inside[parameter].add(id(piece.module))
        for use in self.trace.uses:
            if use.parameter in by_parameter and not inside[use.parameter] & set(use.inside):
                loose.update(by_parameter[use.parameter])
        nbytes = sum({bound.source.info: bound.source.info.nbytes for bound in loose}.values())
        if nbytes > MAX_PINNED_NBYTES:
            names = ", ".join(sorted(bound.name for bound in loose)[:3])
            raise UnsupportedCheckpoint(
                f"{nbytes >> 20} MiB of weights are used outside of the modules that own them ({names} ...)",
                "please report this model",
            )
        return sorted(loose, key=lambda bound: bound.name)

    def _matrix(self, parameter: int) -> Matrix:
        owners = self.owners[parameter]
        source = self.skeleton.parameters[parameter]
        return Matrix(owners[0][0], source, [(module, leaf) for _, module, leaf in owners], self.kinds[parameter])

    # --- units

    def _pack(self, pieces: list[Piece], matrices: list[Matrix], pinned: list[Bound]) -> Division:
        files = [file.nbytes for file in self.skeleton.checkpoint.files]
        largest = max((self._layout([piece], files).nbytes for piece in pieces), default=0)
        heads = [matrix.source.info for matrix in matrices if "matrix" in matrix.kinds]
        widest = max((info.nbytes // info.shape[0] for info in heads), default=0)
        largest = max(largest, ROWS_MULTIPLE * widest + 4 * ALIGN)
        room = largest + max(2 * ALIGN, largest // 64)  # a final norm joins the last layer for 1.6 % of a slot

        division = Division(pieces, matrices, pinned, [], UnitList((), ()))
        group: list[Piece] = []

        def close() -> None:
            if group:
                for piece in group:
                    piece.unit = len(division.layouts)
                division.layouts.append(self._layout(group, files))
                group.clear()

        ordered = self._in_order(pieces, matrices)
        for item in ordered:
            if isinstance(item, Piece):
                if group and self._layout([*group, item], files).nbytes > room:
                    close()
                group.append(item)
            else:
                close()
                self._add_blocks(item, room, files, division.layouts)
        close()
        pieces.sort(key=lambda piece: ordered.index(piece))
        division.list = UnitList(
            tuple(UnitFile(str(file.path), file.nbytes) for file in self.skeleton.checkpoint.files),
            tuple(UnitSpec(layout.nbytes, layout.ranges) for layout in division.layouts),
        )
        return division

    def _in_order(self, pieces: list[Piece], matrices: list[Matrix]) -> list[Piece | Matrix]:
        first: dict[tuple[int, bool], int] = {}
        for position, use in enumerate(self.trace.uses):
            first.setdefault((use.parameter, use.kind == "matrix"), position)
        never = len(self.trace.uses)

        def piece_position(piece: Piece) -> int:
            ids = {id(bound.module._parameters[bound.leaf]) for bound in piece.bounds}
            return min((first.get((i, kind), never) for i in ids for kind in (True, False)), default=never)

        def matrix_position(matrix: Matrix) -> int:
            module, leaf = matrix.owners[0]
            return first.get((id(module._parameters[leaf]), True), never)

        items: list[tuple[int, int, Piece | Matrix]] = [
            (piece_position(piece), number, piece) for number, piece in enumerate(pieces)
        ]
        heads = [matrix for matrix in matrices if "matrix" in matrix.kinds]
        items += [(matrix_position(matrix), len(pieces) + number, matrix) for number, matrix in enumerate(heads)]
        return [item for _, _, item in sorted(items, key=lambda entry: entry[:2])]

    def _layout(self, group: list[Piece], files: list[int]) -> Layout:
        return lay_out(list({(b.source.file, b.source.info) for piece in group for b in piece.bounds}), files)

    def _add_blocks(self, matrix: Matrix, room: int, files: list[int], layouts: list[Layout]) -> None:
        info = matrix.source.info
        for first, last in split_rows(info.shape[0], info.nbytes // info.shape[0], room, ROWS_MULTIPLE):
            part: TensorInfo = rows_of(info, first, last)
            layout = lay_out([(matrix.source.file, part)], files)
            matrix.blocks.append(Block(len(layouts), first, last, layout.at[part.name]))
            layouts.append(layout)


def cast_nbytes(division: Division) -> int:
    """The most bytes that bound weights take in private memory because their dtype differs from the file's."""

    def cast(source: Source) -> int:
        return source.info.nbytes // source.file_dtype.itemsize * source.dtype.itemsize

    most = 0
    by_unit: dict[int, int] = defaultdict(int)
    for piece in division.pieces:
        for bound in piece.bounds:
            if bound.source.dtype != bound.source.file_dtype:
                by_unit[piece.unit] += cast(bound.source)
    most = max(by_unit.values(), default=0)
    for matrix in division.matrices:
        if matrix.source.dtype != matrix.source.file_dtype and matrix.blocks:
            rows = max(block.last - block.first for block in matrix.blocks)
            most = max(most, rows * matrix.source.info.shape[1] * matrix.source.dtype.itemsize)
    return most
