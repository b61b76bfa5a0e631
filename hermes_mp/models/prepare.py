"""From a model directory to a skeleton, its units and its footprint: all that is known before the first weight byte.

Compute does this while the loaders already read. It binds nothing and knows no process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hermes_mp.errors import ContextTooLong
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.models.division import Division, cast_nbytes
from hermes_mp.models.footprint import DEFAULT_CONTEXT, Footprint, measure, model_maximum
from hermes_mp.models.skeleton import Skeleton, build_skeleton
from hermes_mp.models.trace import Trace, trace_forward
from hermes_mp.models.units import divide


@dataclass
class Prepared:
    skeleton: Skeleton
    division: Division
    footprint: Footprint


def prepare(
    checkpoint: Checkpoint,
    dtype: str,
    context: int | None,
    batch: int,
    say: Callable[[str], None] = lambda _: None,
    room: int | None = None,
) -> Prepared:
    """Build, trace and divide the model of `checkpoint` for `batch` sequences of `context` positions.

    `room`: bytes that a unit may take, see `divide`.

    Raises the errors of `build_skeleton` and `divide`; ContextTooLong where `context` exceeds the model's maximum.
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
    division = divide(skeleton, trace, room)
    scratch = cast_nbytes(division) + batch * _matrices_nbytes(skeleton, trace, division, positions)
    footprint = measure(skeleton.model, trace, batch, positions, scratch)
    return Prepared(skeleton, division, footprint)


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
