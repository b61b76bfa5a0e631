"""A supply without processes: units come from the file, each into a slot that is spoilt when it is given back."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.models.division import Division
from hermes_mp.models.skeleton import Skeleton, build_skeleton
from hermes_mp.models.streamed import stream
from hermes_mp.models.trace import trace_forward
from hermes_mp.models.units import divide

ROOMS = (24 << 10, 40 << 10, 150 << 10)  # bytes: a matrix, half a layer or so, two layers


def divided(
    directory: Path, dtype: str = "auto", room: int | None = None, loaders: int = 1
) -> tuple[Skeleton, Division]:
    skeleton = build_skeleton(directory, find_checkpoint(directory), dtype)
    trace = trace_forward(skeleton.model, 1, 16)
    assert not trace.failed
    return skeleton, divide(skeleton, trace, room, loaders)


@dataclass
class FileSupply:
    """Reads a unit when it is wanted, into a slot of its own that is spoilt when it is given back."""

    division: Division
    held: list[int] = field(default_factory=list)
    passes: list[str] = field(default_factory=list)
    rows_nbytes: int = 0
    interrupt: int | None = None  # Ctrl-C comes while this unit is waited for
    residents: frozenset[int] = frozenset()  # there without being asked for
    acquired: list[int] = field(default_factory=list)
    shift: int = 0  # in which slot, counted from its own, a unit lies

    def __post_init__(self) -> None:
        self.slot_nbytes = self.division.list.slot_nbytes
        self.buffer = mmap.mmap(-1, self.slot_nbytes * len(self.division.layouts) or 1)

    def acquire(self, unit: int) -> int:
        assert unit not in self.held
        if unit == self.interrupt:
            raise KeyboardInterrupt
        base = self._slot(unit)
        for part in self.division.list.units[unit].ranges:
            self.buffer[base + part.at : base + part.at + part.nbytes] = self._read(part.file, part.offset, part.nbytes)
        self.held.append(unit)
        self.acquired.append(unit)
        return base

    def keeps(self, unit: int) -> bool:
        return unit in self.residents

    def release(self, unit: int, computed: bool) -> None:
        self.held.remove(unit)
        base = self._slot(unit)
        self.buffer[base : base + self.slot_nbytes] = b"\xff" * self.slot_nbytes  # all NaN

    def _slot(self, unit: int) -> int:
        return (unit + self.shift) % len(self.division.layouts) * self.slot_nbytes

    def read_rows(self, file: int, ranges: Sequence[tuple[int, int]], into: memoryview) -> None:
        data = b"".join(self._read(file, offset, nbytes) for offset, nbytes in ranges)
        self.rows_nbytes += len(data)
        into[:] = data

    def forecast(self, more: bool, units: int | None) -> None: ...

    def pass_started(self, rows: int, tokens: int) -> None:
        self.passes.append(f"{rows}x{tokens}")

    def pass_ended(self, complete: bool) -> None:
        self.passes.append("complete" if complete else "cut short")

    def _read(self, file: int, offset: int, nbytes: int) -> bytes:
        with open(self.division.list.files[file].path, "rb") as opened:
            data = os.pread(opened.fileno(), nbytes, offset)
        assert len(data) == nbytes
        return data


def streamed(directory: Path, room: int | None = None) -> tuple[Any, FileSupply]:
    skeleton, division = divided(directory, room=room)
    supply = FileSupply(division)
    return stream(skeleton, division, supply, lambda call: None, lambda *call: None), supply
