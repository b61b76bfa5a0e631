"""`hermes-plan` as a user runs it: tables, one budget, a hub id of which only headers travel, and refusals."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from local_hub import local_hub
from tiny_models import gpt2

from hermes_mp.errors import BudgetTooSmall, HubUnreachable, ModelNotFound

MIB = 1 << 20


class Planned:
    """One run to its end."""

    def __init__(self, *words: object, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "hermes_mp.cli.plan", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180, check=False)
        self.code, self.out, self.err = ended.returncode, ended.stdout, ended.stderr
        assert "Traceback" not in self.err, self.err

    @property
    def object(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found


@pytest.fixture(scope="module")
def planned(models: Path) -> dict[str, Any]:
    """`big`, profiled."""
    return Planned("--model", models / "big", "--tokens", 8, "--threads", 1, "--json").object


def test_the_table_as_an_object(planned: dict[str, Any]) -> None:
    assert planned["error"] is None
    assert planned["compute"]["unit"] == "token"
    budgets = [plan["budget_nbytes"] for plan in planned["plans"]]
    assert budgets == sorted(budgets)
    assert len(budgets) >= 3
    seconds = [plan["forecast"]["seconds"] for plan in planned["plans"]]
    assert all(later <= earlier * 1.02 for earlier, later in itertools.pairwise(seconds))
    assert planned["plans"][-1]["fits"]
    assert not planned["plans"][0]["fits"]
    for plan in planned["plans"]:
        assert plan["forecast"]["peak_nbytes"] <= plan["budget_nbytes"]
        assert plan["residents"] <= plan["slots"] <= plan["units"]


def test_once_profiled_it_is_quick_and_says_the_same(models: Path, planned: dict[str, Any]) -> None:
    again = Planned("--model", models / "big", "--tokens", 8, "--threads", 1)
    assert again.err == ""
    lines = again.out.splitlines()
    assert lines[0].startswith(f"model    {models / 'big'}, 0.1")
    rows = lines[lines.index("") + 2 :]
    assert len(rows) == len(planned["plans"])
    assert rows[-1].endswith("compute, all is resident")


def test_once_profiled_it_needs_no_torch_and_hardly_any_time(models: Path, planned: dict[str, Any]) -> None:
    """Neither itself nor by a process of its own, whose imports would be listed, too; counted by the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ("--model", models / "big", "--tokens", 8, "--threads", 1, "--json")
    again = Planned(*words, env={"PYTHONPROFILEIMPORTTIME": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert again.object["plans"] == planned["plans"]
    imported = {line.rpartition("|")[2].strip() for line in again.err.splitlines() if line.startswith("import time:")}
    assert "hermes_mp.core.planner" in imported
    assert not {"torch", "transformers", "numpy"} & imported
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5.0


def test_one_budget_and_why(models: Path, planned: dict[str, Any]) -> None:
    words = ("--model", models / "big", "--tokens", 8, "--threads", 1, "--memory", planned["plans"][1]["budget_nbytes"])
    found = Planned(*words, "--loaders", 2, "--json").object
    (plan,) = found["plans"]
    assert plan["loaders"] == 2
    assert all(one["factor"] > 1 for one in found["helps"])
    said = Planned(*words).out
    for word in ("loaders  ", "slots    ", "weights  ", "why      "):
        assert f"\n{word}" in said


def test_too_small_a_budget_names_the_smallest(models: Path, planned: dict[str, Any]) -> None:
    words = ("--model", models / "big", "--tokens", 8, "--threads", 1)
    refused = Planned(*words, "--memory", "64MiB")
    assert refused.code == BudgetTooSmall.exit_code
    smallest = planned["plans"][0]["budget_nbytes"]
    found = re.search(r"smallest budget for this model, context and batch is ([0-9]+) MiB", refused.err)
    assert found, refused.err
    assert abs(int(found[1]) - smallest // MIB) <= 4  # it was measured in another process
    assert Planned(*words, "--memory", smallest, "--json").object["error"] is None
    as_object = Planned(*words, "--memory", "64MiB", "--json")
    assert as_object.object["error"]["exit_code"] == as_object.code == BudgetTooSmall.exit_code


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("--memory", "3G"), 2, "--memory takes a size"),
        (("--loader", "3"), 2, "did you mean --loaders?; see hermes-plan --help"),
        (("--tokens", "0"), 2, "--tokens takes a whole number"),
        (("--model", "./nowhere"), ModelNotFound.exit_code, "there is no directory"),
    ],
)
def test_refusals(words: tuple[str, ...], code: int, line: str) -> None:
    refused = Planned(*words)
    assert (refused.code, refused.out) == (code, "")
    assert refused.err.startswith("hermes-plan: ")
    assert line in refused.err


def test_a_hub_that_is_gone(tmp_path: Path) -> None:
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    assert Planned("--model", "someone/model", env=gone).code == HubUnreachable.exit_code


def test_of_a_hub_id_only_headers_travel(tmp_path: Path, models: Path) -> None:
    files = {path.name: path.read_bytes() for path in (models / "big").iterdir()}
    files["pytorch_model.bin"] = b"x" * (10 << 20)
    with local_hub({"someone/big": files}) as hub:
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        found = Planned("--model", "someone/big", "--tokens", 8, "--threads", 1, "--json", env=env).object
        assert hub.sent_nbytes < 1 << 20
        first = hub.sent_nbytes
        again = Planned("--model", "someone/big", "--tokens", 8, "--threads", 1, env=env)
        assert "importing torch" not in again.err  # what was measured of an outline is found again
        assert hub.sent_nbytes < 2 * first + 1024
    assert found["headers_only"]
    assert found["compute"]["weights_nbytes"] == pytest.approx(len(files["model.safetensors"]), abs=4096)
    assert found["plans"][-1]["fits"]
    assert not list(Path(tmp_path).rglob("*.safetensors"))


def test_a_model_in_the_hubs_cache_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = gpt2(tmp_path / "gpt2")
    with local_hub({"someone/gpt2": {path.name: path.read_bytes() for path in directory.iterdir()}}) as hub:
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        fetch = "import sys; from hermes_mp.host.hub import main; sys.exit(main(['someone/gpt2']))"
        words = [sys.executable, "-c", fetch]
        subprocess.run(words, env={**os.environ, **env}, check=True, capture_output=True, timeout=60)
    found = Planned("--model", "someone/gpt2", "--tokens", 8, "--threads", 1, "--json", env=env).object
    assert not found["headers_only"]


def test_help_names_every_option() -> None:
    helped = Planned("--help")
    assert helped.code == 0
    for flag in ("--model", "--memory", "--loaders", "--context", "--batch", "--tokens", "--dtype", "--threads",
                 "--json", "--fresh"):  # fmt: skip
        assert flag in helped.out


def test_it_imports_nothing_heavy() -> None:
    code = "import sys, hermes_mp.cli.plan; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "huggingface_hub", "zmq"} & set(loaded)
