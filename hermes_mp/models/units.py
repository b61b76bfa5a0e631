"""Divides a model's weights into units: the module tree says what belongs together, the trace says in which order.

By default a unit is a layer. With `room` it is at most so many bytes: several layers, a part of one, a matrix, or a
block of rows of a matrix, whatever fills it. Knows no process, slot number or budget.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hermes_mp.models.division import Division
from hermes_mp.models.packing import pack
from hermes_mp.models.pieces import Pieces
from hermes_mp.models.skeleton import Skeleton
from hermes_mp.models.trace import Trace


def divide(
    skeleton: Skeleton, trace: Trace, room: int | None = None, loaders: int = 1, layers: Sequence[nn.Module] = ()
) -> Division:
    """Find pieces and matrices, order them by first use, and pack them into units of at most `room` bytes.

    For many `loaders` the first of them are smaller. Each of the `layers` has units of its own.

    A unit is larger where a weight cannot be cut: the transposed matrices of GPT-2, a convolution, 64 rows of a
    matrix; or where the trace failed, so that it is not known how weights are used. Room for a layer or more, and
    none at all, divide by layers.
    Raises UnsupportedCheckpoint where too much is used outside of any hooked module.
    """
    found = Pieces(skeleton, trace).find(room)
    layouts, units = pack(skeleton, trace, found.pieces, found.matrices, room, loaders, layers)
    division = Division(found.pieces, found.matrices, found.pinned, layouts, units)
    model = skeleton.model
    if not trace.failed and not model.config.is_encoder_decoder:  # whose encoder and decoder are called apart
        division.ends = {id(part): _end(division, trace, id(part)) for part in (model, model.base_model)}
    return division


def units_of(division: Division, module: nn.Module) -> list[int]:
    """The units that hold weights of this module, in order."""
    inside = {id(part) for part in module.modules()}
    found = {piece.unit for piece in division.pieces if id(piece.module) in inside}
    for matrix in division.matrices:
        if id(matrix.owners[0][0]) in inside:
            found |= {block.unit for block in matrix.blocks}
    return sorted(found)


def _end(division: Division, trace: Trace, part: int) -> int:
    """The unit before which a forward of module `part` is expected to end."""
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
    inside = (use for use in trace.uses if part in use.inside)
    return max((after.get((use.parameter, use.kind), 0) for use in inside), default=0)
