"""Where the tensors of a bundle lie: one after the other, each at a multiple of 64, as torch would have them.

A bundle is what crosses between boards at once: the tensors that a message announces. Raises BadMessage where what is
announced cannot be: it came from another machine. It knows no torch and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hermes_mp.errors import BadMessage
from hermes_mp.messages import TensorSpec

ALIGN = 64
MAX_DIMENSIONS = 8
MAX_NBYTES = 2 << 30  # of a bundle: 32 sequences of 4096 positions, 4096 wide, in float32
ITEMSIZES = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """A tensor of a bundle: its `nbytes` bytes begin at byte `at`."""

    spec: TensorSpec
    at: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.at + self.nbytes


def nbytes_of(spec: TensorSpec) -> int:
    """Shape x itemsize. Raises BadMessage where either is none that we know, or too large."""
    itemsize = ITEMSIZES.get(spec.dtype)
    if itemsize is None:
        raise BadMessage(f"a tensor of {spec.dtype[:40]!r} does not cross between boards")
    if len(spec.shape) > MAX_DIMENSIONS:
        raise BadMessage(f"a tensor of {len(spec.shape)} dimensions, more than {MAX_DIMENSIONS}")
    nbytes = itemsize
    for extent in spec.shape:
        nbytes *= extent
    if nbytes > MAX_NBYTES:
        raise BadMessage(f"a tensor of {nbytes} bytes, more than {MAX_NBYTES}")
    return nbytes


def place(specs: Sequence[TensorSpec], start: int = 0) -> list[Placed]:
    """Where each of them lies in a bundle that begins at byte `start`, itself a multiple of 64."""
    placed: list[Placed] = []
    at = start
    for spec in specs:
        nbytes = nbytes_of(spec)
        placed.append(Placed(spec, at, nbytes))
        at = aligned(at + nbytes)
        if at - start > MAX_NBYTES:
            raise BadMessage(f"a bundle of more than {MAX_NBYTES} bytes")
    return placed


def aligned(nbytes: int) -> int:
    """The next multiple of 64."""
    return -(-nbytes // ALIGN) * ALIGN


def parts(placed: Sequence[Placed], most: int) -> Iterator[tuple[int, int, int]]:
    """(number of the tensor, first byte of it, bytes): in pieces of at most `most` bytes, in order."""
    for number, one in enumerate(placed):
        for first in range(0, one.nbytes, most):
            yield number, first, min(most, one.nbytes - first)


class Arrival:
    """What is still to come of a bundle: parts must come in order, each at the place where it belongs."""

    def __init__(self, placed: Sequence[Placed], most: int) -> None:
        self._expected = [(placed[number].at + first, nbytes) for number, first, nbytes in parts(placed, most)]
        self._next = 0

    @property
    def complete(self) -> bool:
        return self._next == len(self._expected)

    def take(self, offset: int, nbytes: int) -> None:
        """The next part. Raises BadMessage where it is not the one that belongs here."""
        if self.complete:
            raise BadMessage(f"a part at byte {offset}, where none was announced")
        if (offset, nbytes) != self._expected[self._next]:
            at, wanted = self._expected[self._next]
            raise BadMessage(f"a part of {nbytes} bytes at byte {offset}, where {wanted} at byte {at} belong")
        self._next += 1
