"""The big two: an embedding matrix gathered by rows, a vocabulary head streamed in blocks of rows.

Both give the bits of the whole matrix: a row is copied as it is, and a block of a multiple of 64 rows is multiplied
by the same kernels in the same order. Knows the supply, not the processes behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from hermes_mp.models.binding import Binder, as_loaded, byte_view, weight_at
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
        columns = self._matrix.source.info.shape[1]
        flat = inputs.reshape(-1, columns)
        if inputs.dim() != 2 or not inputs.is_contiguous() or flat.stride() != (columns, 1):
            flat = torch.empty((flat.shape[0], columns), dtype=inputs.dtype).copy_(flat)
        fused = inputs.dim() == 2 or _computed_as(inputs).is_contiguous()
        out: torch.Tensor | None = None
        for first, last, weight in self._weights():
            added = None if bias is None else bias[first:last]
            with as_loaded():
                part = F.linear(flat, weight, added if fused else None)
                if added is not None and not fused:
                    part += added  # as torch does: half precision is rounded once more than by the fused way
            del weight
            if out is None:
                whole = last - first == self._matrix.source.info.shape[0]
                out = part if whole else part.new_empty((flat.shape[0], self._matrix.source.info.shape[0]))
            if out is not part:
                out[:, first:last] = part
        assert out is not None
        return out.view(*inputs.shape[:-1], -1)

    def _weights(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """The matrix as (first row, last row excluded, these rows), each valid until the next one is asked for."""
        source = self._matrix.source
        columns = source.info.shape[1]
        for block in self._matrix.blocks:
            base = self._binder.hold(block.unit)
            try:
                offset = base + block.at
                rows = weight_at(self._binder.supply.buffer, offset, (block.last - block.first, columns), source)
                yield block.first, block.last, rows
            finally:
                self._binder.drop(block.unit, True)


def _computed_as(inputs: torch.Tensor) -> torch.Tensor:
    """What a linear map is given: autocast casts first, and a cast may lay the rows one after the other."""
    if torch.is_autocast_enabled("cpu") and inputs.is_floating_point() and inputs.dtype != torch.float64:
        return inputs.to(torch.get_autocast_dtype("cpu"))
    return inputs
