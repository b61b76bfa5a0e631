"""What is measured, written to a file of JSON lines as it is made: an interrupted run loses nothing and can go on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hermes_mp.errors import BadOption


@dataclass(frozen=True)
class ModelFacts:
    """A model by its headers: what its checkpoint holds, in bytes and numbers."""

    name: str
    nbytes: int
    parameters: int
    dtype: str


@dataclass(frozen=True)
class Sample:
    """One row in one round, or why there is none (`failed`). Seconds, bytes, bytes per second.

    `first`: from cold, with `load_s` of it spent before anything was computed. `steady`: each token or pass after it.
    `compute`: the same with all weights in memory, measured in this round. `raw`: of the disk, in this round.
    """

    group: str
    subject: str
    round: int
    failed: str = ""
    kind: str = ""  # tokens, text, image
    first_s: float = 0.0
    load_s: float = 0.0
    first_stalled_s: float = 0.0
    first_nbytes: int = 0
    steady_s: float = 0.0
    steady_stalled: float = 0.0  # the share of it
    steady_nbytes: float = 0.0
    weight_nbytes: int = 0
    raw: float | None = None
    compute_first_s: float | None = None
    compute_steady_s: float | None = None
    threads: int = 0
    slots: int = 0
    slot_nbytes: int = 0
    needed_nbytes: int = 0
    note: str = ""


@dataclass(frozen=True)
class PeakSample:
    """Memory of one row, of a run by itself that was not timed. Bytes; `beside`: all but the arena.

    `charged`: what the memory cgroup counted, page cache with it.
    """

    group: str
    subject: str
    total_nbytes: int = 0
    beside_nbytes: int = 0
    charged_nbytes: int | None = None
    oom_kills: int = 0
    failed: str = ""


@dataclass(frozen=True)
class GroupNote:
    """What held for a whole group: its raw rate in words, the rate of each reader, or why it was left out."""

    group: str
    text: str
    left_out: bool = False


class Journal:
    """Measurements in a file, each written when it is made. `path` None: in memory only."""

    def __init__(self, path: Path | None, header: dict[str, Any], resume: bool = False) -> None:
        """`header` says what is measured: a file of other measurements is not gone on with (BadOption)."""
        self.samples: dict[tuple[str, str, int], Sample] = {}
        self.peaks: dict[tuple[str, str], PeakSample] = {}
        self.notes: dict[str, GroupNote] = {}
        self._path = path
        header = json.loads(json.dumps(header))
        if path is None:
            return
        if resume and path.exists():
            self._recall(path, header)
        else:
            path.write_text("")
            self._write("header", header)

    def keep(self, measured: Sample | PeakSample | GroupNote) -> None:
        self._remember(measured)
        self._write(type(measured).__name__, asdict(measured))

    def failed(self, group: str, subject: str) -> str:
        """Why this row is not measured any more; empty where it is."""
        return next((s.failed for (g, u, _), s in self.samples.items() if (g, u) == (group, subject) and s.failed), "")

    def _remember(self, measured: Sample | PeakSample | GroupNote) -> None:
        if isinstance(measured, Sample):
            self.samples[measured.group, measured.subject, measured.round] = measured
        elif isinstance(measured, PeakSample):
            self.peaks[measured.group, measured.subject] = measured
        else:
            self.notes[measured.group] = measured

    def _write(self, what: str, values: dict[str, Any]) -> None:
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"what": what, **values}) + "\n")

    def _recall(self, path: Path, header: dict[str, Any]) -> None:
        kinds = {kind.__name__: kind for kind in (Sample, PeakSample, GroupNote)}
        whole = path.read_text(encoding="utf-8")
        kept = whole[: whole.rfind("\n") + 1]  # a run that was killed may have left half a line
        for number, line in enumerate(kept.splitlines()):
            values: dict[str, Any] = json.loads(line)
            what = values.pop("what", None)
            if number == 0:
                if what != "header" or values != header:
                    raise BadOption(
                        f"{path} holds other measurements than these", "name another --report, or leave --resume out"
                    )
                continue
            kind: Any = kinds.get(what or "")
            if kind is not None:
                known = {one.name for one in fields(kind)}
                self._remember(kind(**{name: value for name, value in values.items() if name in known}))
        path.write_text(kept, encoding="utf-8")
