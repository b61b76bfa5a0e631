"""Which modules bind their weights, which matrices stay out of their modules, and which weights stay for good.

By layers: a layer is a piece, and only what is larger than a layer, or looked up by rows, is a matrix. Finer: every
matrix of a linear map is one, what is left of the layers is small and stays, or is the smallest module that holds it.
The module tree says what belongs together, the trace how it is used. Knows no unit and no slot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from torch import nn

from hermes_mp.errors import UnsupportedCheckpoint
from hermes_mp.models.division import Bound, Matrix, Piece
from hermes_mp.models.skeleton import Skeleton
from hermes_mp.models.trace import Trace, UseKind

MAX_PINNED_NBYTES = 64 << 20  # weights used outside of any module we could hook; a few scalars in practice
SMALL_NBYTES = 256 << 10  # where units are fine weights up to this size, norms and biases, stay in memory,
SMALL_SHARE = 32  # or up to this part of a slot


class Pieces:
    """What `find` returns: `pieces` in the order of their definition, `matrices`, and `pinned`."""

    def __init__(self, skeleton: Skeleton, trace: Trace) -> None:
        self._skeleton, self._trace = skeleton, trace
        self.pieces: list[Piece] = []
        self.matrices: list[Matrix] = []
        self.pinned: list[Bound] = []
        self._owners: dict[int, list[tuple[str, nn.Module, str]]] = defaultdict(list)
        for name, module in skeleton.model.named_modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    self._owners[id(parameter)].append((f"{name}.{leaf}" if name else leaf, module, leaf))
        self._kinds = self._kinds_of_use()
        self._apart = self._used_apart()
        self._streamed: set[int] = set()
        self._room: int | None = None

    def find(self, room: int | None) -> Pieces:
        """Divide by layers, or (`room`: bytes that a unit may take) finer than that."""
        self._room = None
        self._streamed = {p for p in self._matrices_of_two_kinds() if "rows" in self._kinds[p]}
        pieces = list(self._split(self._skeleton.model, ""))
        layers = [piece for piece in pieces if self._is_member(piece.module)] or pieces
        largest = max((self._nbytes(piece.bounds) for piece in layers), default=0)
        self._room = None if room is None or self._trace.failed or largest <= room else room
        self._streamed = self._choose_streamed(largest)
        pieces = list(self._split(self._skeleton.model, ""))
        if self._room is not None:
            pieces = [piece for piece in pieces if self._nbytes(piece.bounds) > _small(self._room)]
        self.pinned = self._pin(pieces)
        pinned = set(self.pinned)
        for piece in pieces:
            piece.bounds = [bound for bound in piece.bounds if bound not in pinned]
        self.pieces = [piece for piece in pieces if piece.bounds]
        self.matrices = [self._matrix(parameter) for parameter in self._owners if parameter in self._streamed]
        return self

    # --- which parameters are used how

    def _kinds_of_use(self) -> dict[int, set[UseKind]]:
        kinds: dict[int, set[UseKind]] = defaultdict(set)
        for use in self._trace.uses:
            kinds[use.parameter].add(use.kind)
        if not self._trace.failed:
            return kinds
        # The trace ended early, so go by what the modules are.
        head = self._skeleton.model.get_output_embeddings()
        for parameter, owners in self._owners.items():
            unseen = not kinds[parameter]
            for _, module, leaf in owners:
                if module is head and isinstance(module, nn.Linear) and leaf == "weight":
                    kinds[parameter].add("matrix")
                elif unseen:
                    kinds[parameter].add("rows" if isinstance(module, nn.Embedding) else "other")
        return kinds

    def _used_apart(self) -> set[int]:
        """Parameters that some code outside of the modules that own them uses."""
        owners = {parameter: {id(module) for _, module, _ in owned} for parameter, owned in self._owners.items()}
        return {use.parameter for use in self._trace.uses if not owners.get(use.parameter, set()) & set(use.inside)}

    def _matrices_of_two_kinds(self) -> set[int]:
        """Of two dimensions, and used in no other way than by rows and in linear maps."""
        return {p for p in self._owners if self._kinds[p] and self._kinds[p] <= {"rows", "matrix"} and self._is_flat(p)}

    def _choose_streamed(self, layer_nbytes: int) -> set[int]:
        """Matrices that are better not held whole: looked up by rows, or larger than a layer; finer: all but small."""
        rows = layer_nbytes // 4 if self._room is None else min(self._room, layer_nbytes) // 4
        matrix = layer_nbytes if self._room is None else _small(self._room)
        return {
            p
            for p in self._matrices_of_two_kinds()
            if self._parameter_nbytes(p) > (rows if "rows" in self._kinds[p] else matrix)
        }

    def _is_flat(self, parameter: int) -> bool:
        return len(self._skeleton.parameters[parameter].info.shape) == 2

    def _parameter_nbytes(self, parameter: int) -> int:
        return self._skeleton.parameters[parameter].info.nbytes

    @staticmethod
    def _nbytes(bounds: list[Bound]) -> int:
        return sum({bound.source.info: bound.source.info.nbytes for bound in bounds}.values())

    # --- which modules bind

    def _is_member(self, module: nn.Module) -> bool:
        return id(module) in {
            id(child)
            for part in self._skeleton.model.modules()
            if isinstance(part, (nn.ModuleList, nn.Sequential))
            for child in part.children()
        }

    def _bounds(self, module: nn.Module, prefix: str) -> list[Bound]:
        found = []
        for name, part in module.named_modules():
            for leaf, parameter in part._parameters.items():
                if parameter is not None and id(parameter) not in self._streamed:
                    full = ".".join(text for text in (prefix, name, leaf) if text)
                    found.append(Bound(part, leaf, full, self._skeleton.source(parameter)))
        return found

    def _split(self, module: nn.Module, prefix: str) -> Iterator[Piece]:
        """Modules to hook. What a split module owns itself, and a bias beside a streamed matrix, is pinned."""
        bounds = self._bounds(module, prefix)
        if not bounds:
            return
        if self._is_split(module, bounds):
            for name, child in module.named_children():
                yield from self._split(child, f"{prefix}.{name}" if prefix else name)
        else:
            yield Piece(prefix, module, bounds)

    def _is_split(self, module: nn.Module, bounds: list[Bound]) -> bool:
        """Lists of layers, modules that they make up the most of, and modules with a matrix that streams in blocks.

        Such a module would keep a slot while its matrix goes through others. Finer: whatever exceeds the room.
        """
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) or any(map(self._owns_blocks, module.modules())):
            return True
        whole = self._nbytes(bounds)
        listed = 0
        for part in module.modules():
            if isinstance(part, nn.ModuleList) or (isinstance(part, nn.Sequential) and len(part) > 1):
                listed = max(listed, self._nbytes(self._bounds(part, "")))
        if listed * 2 > whole:
            return True
        if self._room is None or whole <= self._room or not list(module.children()):
            return False
        return not any(id(bound.module._parameters[bound.leaf]) in self._apart for bound in bounds)

    def _owns_blocks(self, module: nn.Module) -> bool:
        return not isinstance(module, nn.Embedding) and any(
            id(parameter) in self._streamed and "matrix" in self._kinds[id(parameter)]
            for parameter in module._parameters.values()
        )

    def _pin(self, pieces: list[Piece]) -> list[Bound]:
        """Parameters that no piece binds when they are used: of split modules, or used from outside."""
        hooked = {id(bound.module): piece for piece in pieces for bound in piece.bounds}
        loose = {bound for bound in self._bounds(self._skeleton.model, "") if id(bound.module) not in hooked}
        by_parameter: dict[int, list[Bound]] = defaultdict(list)
        inside: dict[int, set[int]] = defaultdict(set)
        for piece in pieces:
            for bound in piece.bounds:
                parameter = id(bound.module._parameters[bound.leaf])
                by_parameter[parameter].append(bound)
                inside[parameter].add(id(piece.module))
        for use in self._trace.uses:
            if use.parameter in by_parameter and not inside[use.parameter] & set(use.inside):
                loose.update(by_parameter[use.parameter])
        nbytes = self._nbytes(list(loose))
        if nbytes > MAX_PINNED_NBYTES:
            names = ", ".join(sorted(bound.name for bound in loose)[:3])
            raise UnsupportedCheckpoint(
                f"{nbytes >> 20} MiB of weights are used outside of the modules that own them ({names} ...)",
                "please report this model",
            )
        return sorted(loose, key=lambda bound: bound.name)

    def _matrix(self, parameter: int) -> Matrix:
        owners = self._owners[parameter]
        source = self._skeleton.parameters[parameter]
        return Matrix(owners[0][0], source, [(module, leaf) for _, module, leaf in owners], self._kinds[parameter])


def _small(room: int) -> int:
    return min(SMALL_NBYTES, room // SMALL_SHARE)
