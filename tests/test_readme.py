"""The README tells the truth: its tree is the tree, its commands parse. Run as a program it writes the tree."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

from hermes_mp.cli.options import parse

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
FOLDERS = {
    "hermes_mp": "the one import package",
    "hermes_mp/core": "pure: no clock, socket, file, process, torch",
    "hermes_mp/core/cluster": "several boards, as figures: who should run which layers, and what that comes to",
    "hermes_mp/host": "each facility of the operating system, touched in one file",
    "hermes_mp/models": "torch: from a checkpoint to a model on streamed weights",
    "hermes_mp/models/tasks": "what a model is for",
    "hermes_mp/agents": "the processes: thin shells around core",
    "hermes_mp/bench": "hermes-bench: modes, disks and peers side by side",
    "hermes_mp/cli": "the commands",
    "benchmarks": "scripts that print the figures above",
    "cluster": "what a board needs; a test bed: boards on one machine",
    "docs": "the JSON of --json, the exit codes, hermes-bench",
    "launch": "ready runs, one TOML each",
    "tests": "one folder per part; faults/ kills real processes, slow/ runs real sizes",
}


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    return re.split(r"(?<=[^.])[.;](?: |$)", text, maxsplit=1)[0]


def tree() -> str:
    """Every file of the package with one line, and the other folders with one."""
    lines = []
    for folder, what in FOLDERS.items():
        lines.append(f"{folder + '/':38}{what}")
        if folder.startswith("hermes_mp") or folder == "benchmarks":
            files = sorted((ROOT / folder).glob("*.py"))
            lines += [f"  {path.name:36}{summary(path)}" for path in files if path.name != "__init__.py"]
    return "```\n" + "\n".join(lines) + "\n```"


def written(text: str) -> str:
    return re.sub(r"(<!-- tree -->\n).*?(?=\n## |\Z)", lambda found: found[1] + tree() + "\n", text, flags=re.S)


def test_the_tree_in_the_readme_is_the_tree() -> None:
    text = README.read_text()
    assert written(text) == text, "run: python tests/test_readme.py"


def test_commands_in_the_readme_parse(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^hermes-launch (.+)$", README.read_text(), flags=re.M)
    assert len(commands) >= 5
    for command in commands:
        parse(shlex.split(command))


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
