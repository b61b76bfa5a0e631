"""From a model directory to a skeleton, its units and its footprint: all that is known before the first weight byte.

Compute does this while the loaders already read. It binds nothing and knows no process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from hermes_mp.errors import ContextTooLong, UnsupportedCheckpoint
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.models.division import Division, cast_nbytes, kernels_nbytes
from hermes_mp.models.footprint import DEFAULT_CONTEXT, Footprint, measure, model_maximum
from hermes_mp.models.skeleton import Skeleton, Source, build_skeleton
from hermes_mp.models.trace import Trace, trace_forward
from hermes_mp.models.units import divide

MOST_ROOMS, LEAST_ROOM_NBYTES = 5, 4 << 20


@dataclass
class Prepared:
    skeleton: Skeleton
    division: Division
    footprint: Footprint


@dataclass
class Traced:
    """A model that is built and traced; it may be divided several times, until it is streamed.

    `footprint`: of `batch` sequences of `positions`, without what a division adds.
    """

    skeleton: Skeleton
    trace: Trace
    footprint: Footprint
    batch: int
    positions: int
    in_flight: int = 1

    def divide(self, room: int | None = None, loaders: int = 1, layers: Sequence[nn.Module] = ()) -> Prepared:
        """Into units of at most `room` bytes for so many loaders, see `units.divide`; raises what that does."""
        division = divide(self.skeleton, self.trace, room, loaders, layers)
        scratch = cast_nbytes(division)
        scratch += kernels_nbytes(division)
        scratch += self.batch * _matrices_nbytes(self.skeleton, self.trace, division, self.positions)
        return Prepared(self.skeleton, division, replace(self.footprint, constant_nbytes=scratch))

    def granularities(self) -> list[tuple[int | None, Prepared]]:
        """The divisions that are worth planning with: by layers, then each with half the room of the one before.

        A room in which too much would be used outside of its modules is left out. Raises what dividing by layers does.
        """
        found: list[tuple[int | None, Prepared]] = [(None, self.divide())]
        layer = found[0][1].division.list.slot_nbytes
        for room in (layer >> part for part in range(1, MOST_ROOMS + 1)):
            if room >= LEAST_ROOM_NBYTES:
                try:
                    finer = self.divide(room)
                except UnsupportedCheckpoint:  # a finer division need not bind what a coarser one does
                    continue
                if finer.division.list.slot_nbytes < 0.9 * found[-1][1].division.list.slot_nbytes:
                    found.append((room, finer))
        return found

    def kv_nbytes(self, layers: Sequence[int]) -> float:
        """Bytes of keys and values per sequence and position that these layers keep."""
        kept = self.trace.kv_nbytes
        return sum(kept[layer] for layer in layers if layer < len(kept)) / (self.batch * self.positions)

    def sources(self) -> set[Source]:
        """Every weight once."""
        return set(self.skeleton.parameters.values())


def trace_model(
    checkpoint: Checkpoint,
    dtype: str,
    context: int | None,
    batch: int,
    say: Callable[[str], None] = lambda _: None,
    in_flight: int = 1,
) -> Traced:
    """Build and trace the model of `checkpoint` for `batch` sequences of `context` positions, `in_flight` times.

    Raises the errors of `build_skeleton`; ContextTooLong where `context` exceeds the model's maximum.
    """
    directory: Path = checkpoint.directory
    say("building the model without its weights")
    skeleton = build_skeleton(directory, checkpoint, dtype)
    maximum = model_maximum(skeleton.model.config)
    if context is not None and maximum is not None and context > maximum:
        raise ContextTooLong(f"--context {context} is more than the {maximum} positions of {directory}", "lower it")
    positions = context or min(DEFAULT_CONTEXT, maximum or DEFAULT_CONTEXT)
    say("tracing the order of its weights")
    trace = trace_forward(skeleton.model, batch, positions)
    footprint = replace(measure(skeleton.model, trace, batch, positions, 0), in_flight=in_flight)
    return Traced(skeleton, trace, footprint, batch, positions, in_flight)


def _matrices_nbytes(skeleton: Skeleton, trace: Trace, division: Division, positions: int) -> int:
    """Bytes per sequence that matrices out of their modules need: rows looked up, and the product of one block."""
    head = skeleton.model.get_output_embeddings()
    looked_up = part = 0
    for matrix in division.matrices:
        if "rows" in matrix.kinds:
            looked_up += matrix.row_nbytes * positions
        if len(matrix.blocks) > 1:
            is_head = trace.logits_nbytes_per_position > 0 and any(module is head for module, _ in matrix.owners)
            rows = max(block.rows for block in matrix.blocks)
            part = max(part, rows * 4 if is_head else rows * positions * skeleton.dtype.itemsize)
    return looked_up + part
