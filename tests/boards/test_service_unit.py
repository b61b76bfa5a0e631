"""cluster/hermes-board.service: systemd takes it, it leaves little open, and our processes work behind it."""

from __future__ import annotations

import ctypes.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from behind_unit import settings
from launching import launch
from served import SERVE, Served
from tiny_models import gpt2

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "cluster" / "hermes-board.service"
MOST_EXPOSED = 2.0  # of 10, as `systemd-analyze security` counts
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """It, with a program that is installed here: verify looks for it."""
    text = UNIT.read_text()
    assert "ExecStart=/usr/local/bin/hermes-board serve " in text
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace("/usr/local/bin/hermes-board", shutil.which("true") or "/bin/true"))
    return copy


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
def test_systemd_finds_nothing_wrong_with_it(unit: Path) -> None:
    found = analyze("verify", unit)
    assert (found.returncode, found.stdout, [line for line in found.stderr.splitlines() if unit.name in line]) == (
        0, "", []
    )  # fmt: skip


@needs_systemd
def test_it_leaves_little_open(unit: Path) -> None:
    found = analyze("security", "--offline=yes", unit)
    if "unrecognized option" in found.stderr:
        pytest.skip("this systemd judges no files (250 does)")
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", found.stdout)
    assert exposure is not None, found.stderr
    assert float(exposure[1]) <= MOST_EXPOSED


def test_its_flags_are_flags_of_ours() -> None:
    from hermes_mp.cli.board import SUBCOMMANDS
    from hermes_mp.cli.options import parse_for

    (start,) = settings(UNIT, "ExecStart")
    defaults = dict(word.split("=", 1) for word in settings(UNIT, "Environment")[0].split())
    words = start.split()
    assert words[1] == "serve"
    flags = [re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], word) for word in words[2:]]
    assert flags.pop() == "$HERMES_BOARD_FLAGS"
    assert parse_for(SUBCOMMANDS["serve"].command, flags).model_dir == "/srv/models"


@needs_systemd
@pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="there is no libseccomp")
def test_a_stage_needs_no_system_call_that_it_forbids(tmp_path: Path) -> None:
    model = gpt2(tmp_path / "gpt2", layers=4)
    confined = [sys.executable, Path(__file__).with_name("behind_unit.py"), UNIT, *SERVE]
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    flags = ["--model-dir", tmp_path, "--memory", "1GiB", "--listen", "127.0.0.1:0"]
    with Served(tmp_path / "config", *flags, env=env, program=confined) as board:
        names = board.boards_file(tmp_path / "boards.toml")
        words = ["--model", model, "--boards", names, "--prompt", "the ship", "--max-new-tokens", 3]
        shared = launch(tmp_path / "shared", *words, "--split", "head:2,shelf:2")
        alone = launch(tmp_path / "alone", *words[:2], *words[4:])
        assert (shared.code, shared.out) == (0, alone.out)
        assert "going on without" not in shared.err
        status = Path(f"/proc/{board.process.pid}/status").read_text()
        assert re.search(r"^Seccomp:\s+2$", status, flags=re.M)
        assert "killed" not in board.said, board.said
