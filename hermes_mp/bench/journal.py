"""What is measured, written to a file of JSON lines as it is made: an interrupted run loses nothing and can go on."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hermes_mp.errors import BadOption, WriteFailed

TYPES: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "None": type(None)}
ELSEWHERE = "name another --report, or leave --resume out"


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
    pipeline_s: float | None = None  # that `pipeline` computes, where that sets the rate of a reader in this round
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
    """What held for a whole group: its raw rate and conditions in words, or why it was left out."""

    group: str
    text: str
    left_out: bool = False


class Journal:
    """Measurements in a file, each written when it is made (or WriteFailed). `path` None: in memory only.

    `kept_as`: where measurements lie now that were there, and were not to be gone on with.
    """

    def __init__(self, path: Path | None, header: dict[str, Any], resume: bool = False) -> None:
        """`header` says what is measured. A file of other measurements, or damaged, is not gone on with (BadOption)."""
        self.samples: dict[tuple[str, str, int], Sample] = {}
        self.peaks: dict[tuple[str, str], PeakSample] = {}
        self.notes: dict[str, GroupNote] = {}
        self.kept_as: Path | None = None
        self._path = path
        header = json.loads(json.dumps(header))
        if path is None:
            return
        if resume and path.exists():
            self._recall(path, header)
        else:
            with writing(path):
                self.kept_as = _keep_earlier(path)
                path.write_text("")
            self._write("header", header)

    def pipeline_s(self, group: str, number: int) -> float | None:
        """What `pipeline` computed for in this round of a group, where some row of it is measured."""
        found = (one.pipeline_s for (label, _, round), one in self.samples.items() if (label, round) == (group, number))
        return next((seconds for seconds in found if seconds is not None), None)

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
            with writing(self._path), open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"what": what, **values}) + "\n")

    def _recall(self, path: Path, header: dict[str, Any]) -> None:
        try:
            whole = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadOption(f"{path} cannot be read: {error}", ELSEWHERE) from error
        kept = whole[: whole.rfind("\n") + 1]  # a run that was killed may have left half a line
        for number, line in enumerate(kept.splitlines()):
            try:
                values: dict[str, Any] = {**json.loads(line)}
                if number:
                    self._recall_one(values)
            except (ValueError, TypeError) as error:
                raise BadOption(f"{path}, line {number + 1} is damaged: {error}", ELSEWHERE) from error
            if not number and values != {"what": "header", **header}:
                raise BadOption(f"{path} holds other measurements than these", ELSEWHERE)
        with writing(path):
            path.write_text(kept, encoding="utf-8")
        if not kept:
            self._write("header", header)

    def _recall_one(self, values: dict[str, Any]) -> None:
        """TypeError where it lacks a field that another version did not have, or one is of another kind."""
        kinds: dict[str, Any] = {kind.__name__: kind for kind in (Sample, PeakSample, GroupNote)}
        kind = kinds.get(values.pop("what", None))
        if kind is not None:
            known = {one.name: one.type for one in fields(kind)}
            for name, value in values.items():
                if name in known and not isinstance(value, tuple(TYPES[word] for word in known[name].split(" | "))):
                    raise TypeError(f"{name} is {value!r}")
            self._remember(kind(**{name: value for name, value in values.items() if name in known}))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses in here, a full disk or a folder of somebody else's, is WriteFailed."""
    try:
        yield
    except OSError as error:
        why = f"{error.filename or path} cannot be written: {error.strerror or error}"
        raise WriteFailed(why, "name another --report, or see whether its disk has room") from error


def _keep_earlier(path: Path) -> Path | None:
    """Put measurements aside that took somebody an hour; a file with nothing but a header is none."""
    if not path.is_file() or path.read_bytes().count(b"\n") < 2:
        return None
    aside = next(one for number in itertools.count(1) if not (one := path.with_name(f"{path.name}.{number}")).exists())
    return path.rename(aside)
