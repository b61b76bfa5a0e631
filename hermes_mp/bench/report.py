"""A report of what is measured so far: report.md, results.jsonl and pictures in a directory, or text only."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from hermes_mp.bench import plots
from hermes_mp.bench.journal import Journal, writing
from hermes_mp.bench.measure import timeline_subjects
from hermes_mp.bench.models import Model
from hermes_mp.bench.plan import Group, Wanted
from hermes_mp.bench.rows import Row, rows_of
from hermes_mp.bench.table import LEGEND, group_text

REPORT, RESULTS, MEASUREMENTS = "report.md", "results.jsonl", "measurements.jsonl"


class Report:
    """What is measured of `groups`, whose models are known by name once they were opened."""

    def __init__(self, wanted: Wanted, journal: Journal, folder: Path | None, command: str) -> None:
        self._wanted, self._journal, self._folder, self._command = wanted, journal, folder, command
        self.models: dict[str, Model] = {}

    def rows(self, group: Group) -> list[Row]:
        model = self.models.get(group.model)
        if model is None:
            return []
        return rows_of(group, model.facts, self._journal, self._wanted.tokens, self._wanted.batch)

    def group(self, group: Group) -> str:
        """One group as Markdown; empty where nothing of it was measured."""
        rows, note = self.rows(group), self._journal.notes.get(group.label)
        return group_text(group.label, note, rows) if rows or note is not None else ""

    def write_results(self) -> None:
        """All rows so far, a JSON object a line: an interrupted run leaves what it has."""
        if self._folder is None:
            return
        lines = [json.dumps(asdict(row)) for group in self._wanted.groups() for row in self.rows(group)]
        part = self._folder / f".{RESULTS}"
        with writing(part):
            part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            part.replace(self._folder / RESULTS)

    def write(self, with_plots: bool, say: Callable[[str], None]) -> list[Path]:
        """Everything; the files made. The pictures stand in the report. Raises WriteFailed."""
        if self._folder is None:
            return []
        with writing(self._folder):
            return self._write(self._folder, with_plots, say)

    def _write(self, folder: Path, with_plots: bool, say: Callable[[str], None]) -> list[Path]:
        self.write_results()
        made = [folder / REPORT, folder / RESULTS]
        pyplot = plots.load_pyplot() if with_plots else None
        parts = [self.head()]
        for group in self._wanted.groups():
            text = self.group(group)
            if not text:
                continue
            parts.append(text)
            if pyplot is not None:
                say(f"drawing {group.label}")
                drawn = self._draw(pyplot, group)
                made += drawn
                parts += [f"![{path.stem}]({path.name})\n" for path in drawn if path.suffix == ".png"]
        if pyplot is not None:
            for drawn in self._over_cgroups(pyplot):
                made += drawn
                parts += [f"![{path.stem}]({path.name})\n" for path in drawn if path.suffix == ".png"]
        parts.append(LEGEND + "\n")
        (folder / REPORT).write_text("\n".join(parts), encoding="utf-8")
        return made

    def head(self) -> str:
        about = "; ".join(f"{name} {value}" for name, value in software().items())
        return f"# hermes-bench\n\n`{self._command}`\n\n{about}\n"

    def _over_cgroups(self, pyplot: object) -> Iterator[list[Path]]:
        """Speed against memory where each size of the memory cgroup is a group of its own."""
        assert self._folder is not None
        together: dict[str, list[Group]] = {}
        for group in self._wanted.groups():
            if group.cgroup is not None:
                together.setdefault(f"{group.name}-{group.regime.word}", []).append(group)
        for word, groups in together.items():
            rows = [row for group in groups for row in self.rows(group)]
            title = f"{groups[0].name}, {groups[0].regime.label}, each row in a memory cgroup of its budget"
            yield plots.against_budget(pyplot, title, rows, self._folder / f"{word}-budget")

    def _draw(self, pyplot: object, group: Group) -> list[Path]:
        assert self._folder is not None
        rows, name = self.rows(group), group.word
        made = plots.by_mode(pyplot, group.label, rows, self._folder / f"{name}-modes")
        made += plots.against_budget(pyplot, group.label, rows, self._folder / f"{name}-budget")
        for subject in timeline_subjects(group):
            trace = self._folder / f"{name}-{subject.word}.trace.json"
            if trace.exists():
                path = self._folder / f"{name}-{subject.word}-timeline"
                made += plots.timeline(pyplot, f"{subject.label}: {group.label}, one pass from cold", trace, path)
        return made


def software() -> dict[str, str]:
    """What the rows were measured with: processor, kernel, versions."""
    found = {"Linux": platform.release(), "Python": platform.python_version()}
    for name in ("torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        processors = [line.partition(":")[2].strip() for line in file if line.startswith(("model name", "Model"))]
        if processors:
            found["processor"] = f"{processors[0]} x {len(processors)}"
    return found
