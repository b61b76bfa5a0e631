"""Matrices that stay out of their modules: an embedding gathered by rows, a linear map streamed in blocks of rows.

Both give the bits of the whole matrix: a row is copied as it is, and a block of a multiple of 64 rows is multiplied
by the same kernels in the same order. Knows the supply, not the processes behind it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hermes_mp.core.layout import ALIGN, split_rows
from hermes_mp.errors import NeedsAllWeights
from hermes_mp.models.binding import Binder, as_loaded, byte_view, memory_like, weight_at
from hermes_mp.models.division import ROWS_MULTIPLE, Block, Matrix
from hermes_mp.models.supply import reading

UNFORESEEN_NBYTES = 4 << 20


class SuppliedMatrix:
    """A `StreamedMatrix` whose rows come from the file and whose blocks come through slots."""

    def __init__(self, matrix: Matrix, binder: Binder) -> None:
        self._matrix, self._binder = matrix, binder

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """`matrix[indices]`; raises IndexError as torch does when an index is outside."""
        source = self._matrix.source
        count, columns = source.info.shape
        wanted, inverse = torch.unique(indices.reshape(-1), return_inverse=True)
        if wanted.numel() and (int(wanted[0]) < 0 or int(wanted[-1]) >= count):
            raise IndexError("index out of range in self")
        gathered = torch.empty((wanted.numel(), columns), dtype=source.file_dtype)
        if gathered.numel():
            row_nbytes = source.info.nbytes // count
            ranges: list[tuple[int, int]] = []
            for row in wanted.tolist():
                offset = source.info.begin + row * row_nbytes
                if ranges and sum(ranges[-1]) == offset:
                    ranges[-1] = (ranges[-1][0], ranges[-1][1] + row_nbytes)
                else:
                    ranges.append((offset, row_nbytes))
            into = byte_view(gathered)
            with self._binder.lock, reading(source.info.name):
                self._binder.supply.read_rows(source.file, ranges, into)
        return gathered.to(source.dtype)[inverse].view(*indices.shape, columns)

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`_linear`, while no other thread uses the supply."""
        with self._binder.lock:
            return self._linear(inputs, bias)

    def _linear(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`inputs @ matrix.T + bias`, block by block.

        `inputs` that do not lie row after row are made a fresh 2-D tensor: a slice such as `h[:, -1:, :]` makes torch
        copy the whole weight.
        """
        if torch.is_grad_enabled() and inputs.requires_grad:
            raise NeedsAllWeights("an input requires grad, but gradients need every layer's weights kept")
        rows, columns = self._matrix.source.info.shape
        flat = inputs.reshape(-1, columns)
        if inputs.stride() != contiguous_strides(inputs.shape):  # is_contiguous() ignores dimensions of size 1
            flat = torch.empty((flat.shape[0], columns), dtype=inputs.dtype).copy_(flat)
        fused = inputs.dim() == 2 or _computed_as(inputs).is_contiguous()
        into = self._is_plain(flat, bias, fused)
        out: torch.Tensor | None = None
        for block in self._matrix.blocks or self._unforeseen():
            weight = self._hold(block)
            try:
                with as_loaded():
                    for first, last in block.parts(self._matrix):
                        part_weight = weight[first - block.first : last - block.first]
                        added = None if bias is None else bias[first:last]
                        if last - first < rows and into:
                            out = flat.new_empty((flat.shape[0], rows)) if out is None else out
                            _multiply(flat, part_weight, added, out[:, first:last])
                            continue
                        part = F.linear(flat, part_weight, added if fused else None)
                        if added is not None and not fused:
                            part += added  # as torch does: half precision is rounded once more than by the fused way
                        if out is None:
                            out = part if last - first == rows else part.new_empty((flat.shape[0], rows))
                        if out is not part:
                            out[:, first:last] = part
                    del weight, part_weight
            finally:
                if block.unit >= 0:
                    self._binder.drop(block.unit, block.ends_unit)
        assert out is not None
        return out.view(*inputs.shape[:-1], rows)

    def _is_plain(self, flat: torch.Tensor, bias: torch.Tensor | None, fused: bool) -> bool:
        """Whether blocks can be written where they belong: of one row alone the bits then differ now and then."""
        dtype = self._matrix.source.dtype
        alike = flat.dtype == dtype and (bias is None or (fused and bias.dtype == dtype))
        return alike and flat.shape[0] > 1 and not torch.is_autocast_enabled("cpu")

    def _hold(self, block: Block) -> torch.Tensor:
        """The block's weight, in its slot or read now."""
        source = self._matrix.source
        shape = (block.rows, source.info.shape[1])
        if block.unit >= 0:
            base = self._binder.hold(block.unit)
            return self._binder.weight(block, base + block.at, shape, source)
        info = source.info
        row_nbytes = self._matrix.row_nbytes
        offset, nbytes = info.begin + block.first * row_nbytes, block.rows * row_nbytes
        memory = memory_like(offset, nbytes)
        with self._binder.lock, reading(source.info.name):
            self._binder.supply.read_rows(source.file, [(offset, nbytes)], memory)
        return weight_at(memory, 0, shape, source)

    def _unforeseen(self) -> list[Block]:
        """Blocks of no unit: the trace saw this matrix looked up only. Right, but not read ahead."""
        rows, columns = self._matrix.source.info.shape
        room = max(UNFORESEEN_NBYTES, 2 * ALIGN + ROWS_MULTIPLE * columns * 4)
        split = split_rows(rows, self._matrix.row_nbytes, room, ROWS_MULTIPLE)
        return [Block(-1, first, last, 0) for first, last in split]


def _multiply(flat: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """What `F.linear` does with two dimensions, into columns of a larger matrix."""
    if bias is None:
        torch.mm(flat, weight.t(), out=out)
    else:
        torch.addmm(bias, flat, weight.t(), out=out)


def contiguous_strides(shape: torch.Size) -> tuple[int, ...]:
    """The strides of a tensor of this shape whose elements lie one after the other, and nothing else."""
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.insert(0, step)
        step *= extent
    return tuple(strides)


def _computed_as(inputs: torch.Tensor) -> torch.Tensor:
    """What a linear map is given: autocast casts first, and a cast may lay the rows one after the other."""
    if torch.is_autocast_enabled("cpu") and inputs.is_floating_point() and inputs.dtype != torch.float64:
        return inputs.to(torch.get_autocast_dtype("cpu"))
    return inputs
