"""The big two: an embedding matrix gathered by rows, a vocabulary head streamed in blocks of rows.

Both give the bits of the whole matrix: a row is copied as it is, and a block of a multiple of 64 rows is multiplied
by the same kernels in the same order. Knows the supply, not the processes behind it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hermes_mp.models.binding import Binder, byte_view, view
from hermes_mp.models.units import Matrix


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
            with self._binder.lock:
                self._binder.supply.read_rows(source.file, ranges, into)
        return gathered.to(source.dtype)[inverse].view(*indices.shape, columns)

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`inputs @ matrix.T + bias`, block by block.

        `inputs` is made a fresh 2-D tensor: a slice such as `h[:, -1:, :]` makes torch copy the whole weight.
        """
        source = self._matrix.source
        count, columns = source.info.shape
        flat = inputs.reshape(-1, columns)
        if inputs.dim() != 2 or not inputs.is_contiguous() or flat.stride() != (columns, 1):
            flat = torch.empty((flat.shape[0], columns), dtype=inputs.dtype).copy_(flat)
        out: torch.Tensor | None = None
        for block in self._matrix.blocks:
            base = self._binder.hold(block.unit)
            try:
                weight = view(self._binder.supply.buffer, base + block.at, (block.last - block.first, columns), source)
                part = F.linear(flat, weight, None if bias is None else bias[block.first : block.last])
                del weight
            finally:
                self._binder.drop(block.unit, True)
            if out is None:
                out = part if len(self._matrix.blocks) == 1 else part.new_empty((flat.shape[0], count))
            if out is not part:
                out[:, block.first : block.last] = part
        assert out is not None
        return out.view(*inputs.shape[:-1], count)
