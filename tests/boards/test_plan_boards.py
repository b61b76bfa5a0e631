"""`hermes-plan` and runs over boards on loopback: who runs which layers, and what each of them took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Serving

from hermes_mp.errors import BadOption, BoardUnknown

MIB = 1 << 20
SPLIT = "head:1,b1:1,head:2,b2:4"  # of the 8 layers of `big`
DEADLINE_S = 180


class Ended:
    """One command to its end."""

    def __init__(self, module: str, home: Path, *words: object) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
        command = [sys.executable, "-m", f"hermes_mp.cli.{module}", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=DEADLINE_S, check=False)
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        assert "Traceback" not in self.err, self.err

    @property
    def object(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("boards")


@pytest.fixture(scope="module")
def boards(models: Path, folder: Path) -> Iterator[Serving]:
    with Serving(folder, models, 2, "800MiB") as serving:
        yield serving


@pytest.fixture(autouse=True)
def boards_at_rest(boards: Serving) -> Iterator[None]:
    """What a test has asked of them ends with it."""
    yield
    boards.await_rest()


def words(models: Path, boards: Serving) -> list[object]:
    return ["--model", models / "big", "--boards", boards.file, "--memory", "700MiB", "--threads", 1]


def test_a_plan_says_who_would_run_which_layers(models: Path, boards: Serving, folder: Path) -> None:
    ended = Ended("plan", folder / "head", *words(models, boards), "--tokens", 8, "--json")
    assert ended.code == 0, ended.err
    found = ended.object
    assert found["error"] is None
    assert found["lost"] == {}
    assert set(found["facts"]) == {"head", "b1", "b2"}
    assert found["facts"]["b1"]["budget_nbytes"] == 800 * MIB
    assert found["facts"]["b1"]["link_nbytes_per_s"] > 1e6
    named = {one["board"] for one in found["boards"]} | set(found["left_out"])
    assert named == {"head", "b1", "b2"}
    at = 0
    for one in found["stretches"]:
        assert one["first"] == at
        at = one["last"]
    for one in found["boards"]:
        assert one["peak_nbytes"] <= found["facts"][one["board"]]["budget_nbytes"]


def test_a_deal_that_is_given_is_forecast_and_then_run(models: Path, boards: Serving, folder: Path) -> None:
    home = folder / "head"
    ended = Ended("plan", home, *words(models, boards), "--split", SPLIT, "--tokens", 8)
    assert ended.code == 0, ended.err
    first = ended.out.splitlines()[0]
    assert "3 boards: " in first
    assert "token/s" in first

    asked = ("--split", SPLIT, "--token-ids", "5,6,7", "--max-new-tokens", 8, "--json")
    report = Ended("launch", home, *words(models, boards), *asked).object["report"]
    assert report["forecast_s"] > 0
    parts = {one["board"]: one for one in report["boards"]}
    assert set(parts) == {"head", "b1", "b2"}
    assert parts["b1"]["layers"] == [1]
    for name in ("b1", "b2"):
        one = parts[name]
        assert one["away_s"] > 0
        assert one["away_s"] >= one["link_s"] > 0
        assert 0 < one["peak_nbytes"] <= one["budget_nbytes"] == 800 * MIB
        assert one["forecast_peak_nbytes"] <= one["budget_nbytes"]
        assert one["units"] >= one["residents"] >= 0


def test_what_a_run_has_shown_is_planned_with(models: Path, boards: Serving, folder: Path) -> None:
    home = folder / "other head"
    before = Ended("plan", home, *words(models, boards), "--json").object["facts"]
    assert before["head"]["source"] == "estimated"
    asked = ("--split", SPLIT, "--token-ids", "5,6,7", "--max-new-tokens", 12, "--json")
    assert Ended("launch", home, *words(models, boards), *asked).object["answers"]
    after = Ended("plan", home, *words(models, boards), "--json").object["facts"]
    assert {after[name]["source"] for name in ("head", "b1", "b2")} == {"measured"}
    fresh = Ended("plan", home, *words(models, boards), "--json", "--fresh").object["facts"]
    assert {fresh[name]["source"] for name in ("head", "b1", "b2")} == {"estimated"}


def test_without_torch_in_its_own_process(models: Path) -> None:
    code = "import sys, hermes_mp.cli.plan_boards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_board_that_is_not_there_is_named(models: Path, boards: Serving, folder: Path) -> None:
    file = folder / "more.toml"
    file.write_text(boards.file.read_text() + '[gone]\naddress = "127.0.0.1:9"\n')
    ended = Ended("plan", folder / "head", "--model", models / "big", "--boards", file, "--json")
    assert ended.code == 0, ended.err
    assert set(ended.object["lost"]) == {"gone"}


def test_one_clear_line_for_what_cannot_be(models: Path, boards: Serving, folder: Path) -> None:
    home = folder / "head"
    for more, kind, what in (
        (("--split", "head:1,nobody:3"), BadOption, "nobody"),
        (("--split", "head:1,b1:99"), BadOption, "the split names 100 layers"),
        (("--board", "stranger"), BoardUnknown, "no board called 'stranger' is paired"),
    ):
        ended = Ended("plan", home, *words(models, boards), *more)
        assert ended.code == kind.exit_code
        assert what in ended.err.splitlines()[-1]

