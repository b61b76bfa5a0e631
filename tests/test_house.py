"""The house is in order: commands that CONTRIBUTING names exist, and are what the hooks run; the changelog is kept."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def commands() -> list[str]:
    """The commands a contributor needs, as CONTRIBUTING.md shows them."""
    block = re.search(r"```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert block
    return [line.partition("#")[0].strip() for line in block[1].splitlines()]


def test_contributors_need_three_commands_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert len(commands()) == 3
    assert {command.removeprefix("make ") for command in commands()} <= targets


def test_hooks_run_those_commands_and_fetch_nothing() -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [group["repo"] for group in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == commands()[:2]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {stage for hook in hooks for stage in hook["stages"]} == set(config["default_install_hook_types"])


def test_the_changelog_is_kept() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d{2}-\d{2})?$", text, re.M)
    assert len(versions) == len(re.findall(r"^## ", text, re.M)), "a version is a name in brackets, and a date"
    assert versions[0] == "Unreleased"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert versions[1] == project["version"]
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= KINDS


def test_links_of_the_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert len(documents) >= 5
    broken = [
        f"{document.name}: {target}"
        for document in documents
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert not broken
