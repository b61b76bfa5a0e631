"""From the second run of a model on its loaders read before compute is up; a wrong memory costs reads, never an answer.

And nothing is read that no pass needs, and nothing is written near the model.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from launching import Ended, launch
from remembered import change, entry_of
from test_launch_shows import events

NO_LIMIT = ("--memory", "none")  # then there is one slot more than loaders
PROMPT = ("--prompt", "the ship", "--max-new-tokens", 4, "--json")
DAMAGES = ("garbage", "no number", "another model's", "too large", "another order", "fewer", "shifted")


def near(model: Path) -> list[tuple[str, int, int]]:
    """Everything about a directory that writing to it would change."""
    found = [model, *sorted(model.rglob("*"))]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]


def shifted(units: Any) -> Any:
    """Every range begins elsewhere in the file."""
    return [
        [nbytes, [[file, offset // 2 + 64, size, at] for file, offset, size, at in ranges]] for nbytes, ranges in units
    ]


def damage(how: str, entry: Path, other: Path) -> None:
    """Spoil what is remembered of a model; `other` is what is remembered of another."""
    if how == "garbage":
        entry.write_bytes(b"\xff\x00{")
    elif how == "no number":
        entry.write_text(json.dumps(json.loads(entry.read_text()) | {"base_nbytes": float("inf")}))
    elif how == "another model's":
        shutil.copyfile(other, entry)
    elif how == "too large":
        change(entry, lambda units: [[1 << 40, ranges] for _, ranges in units])
    elif how == "another order":
        change(entry, lambda units: units[::-1])
    elif how == "fewer":
        change(entry, lambda units: units[:-1])
    else:
        change(entry, shifted)


def test_the_second_run_reads_while_compute_still_imports(models: Path, home: Path) -> None:
    before = near(models / "big")
    cache = home.with_name("cache")
    answers, first_reads, ups = [], [], []
    for run in ("first", "second"):
        trace = home.with_name(f"{run}.json")
        arguments = ("--model", models / "big", *PROMPT, "--loaders", 2, "--trace", trace)
        ended = launch(home.with_name(run), *arguments, env={"XDG_CACHE_HOME": str(cache)})
        answers.append(ended.object["answers"])
        first_reads.append(min(event["ts"] for row in (0, 1) for event in events(trace, f"loader {row}", "read unit")))
        ups.append(events(trace, "compute", "building the model")[0]["ts"])
    assert answers[0] == answers[1]
    assert first_reads[0] > ups[0], "nothing was known of this model"
    assert first_reads[1] < ups[1], "torch is imported by then"
    assert near(models / "big") == before, "something was written near the model"


@pytest.mark.parametrize("how", DAMAGES)
def test_a_wrong_memory_costs_reads_never_an_answer(
    remembered: tuple[Path, Path, Any], spoilt: dict[str, tuple[Path, Future[Ended]]], how: str
) -> None:
    entry, _, answers = remembered
    mended, run = spoilt[how]
    ended = run.result()
    assert (ended.code, ended.object["answers"]) == (0, answers)
    assert json.loads(mended.read_text())["units"] == json.loads(entry.read_text())["units"], "it is put right"
    assert "ended (" not in ended.err, "loaders that read what was wrong are replaced, they have not died"


@pytest.fixture(scope="module")
def spoilt(
    models: Path, remembered: tuple[Path, Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Future[Ended]]]:
    """A run with every kind of damage, two at a time, and the damaged entry."""
    entry, other, _ = remembered
    folder = tmp_path_factory.mktemp("spoilt")
    started = {}
    with ThreadPoolExecutor(2) as pool:
        for how in DAMAGES:
            spoilt = folder / how / "hermes-mp/units" / entry.name
            spoilt.parent.mkdir(parents=True)
            shutil.copyfile(entry, spoilt)
            damage(how, spoilt, other)
            assert spoilt.read_bytes() != entry.read_bytes()
            env = {"XDG_CACHE_HOME": str(folder / how)}
            run = pool.submit(launch, folder / how / "home", "--model", models / "gpt2", *PROMPT, env=env)
            started[how] = spoilt, run
    return started


@pytest.fixture(scope="module")
def remembered(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """What is remembered of one model and of another, and the answer of the first."""
    folder = tmp_path_factory.mktemp("remembered")
    one = launch(folder / "1", "--model", models / "gpt2", *PROMPT, env={"XDG_CACHE_HOME": str(folder / "one")})
    launch(folder / "2", "--model", models / "chat", *PROMPT, env={"XDG_CACHE_HOME": str(folder / "two")})
    return entry_of(folder / "one"), entry_of(folder / "two"), one.object["answers"]


def test_a_cache_that_cannot_be_written(models: Path, home: Path, remembered: tuple[Path, Path, Any]) -> None:
    (home.with_name("file")).write_text("")
    cache = home.with_name("file") / "cache"
    ended = launch(home, "--model", models / "gpt2", *PROMPT, env={"XDG_CACHE_HOME": str(cache)})
    assert (ended.code, ended.object["answers"]) == (0, remembered[2])


@pytest.mark.parametrize(
    ("model", "asked", "passes"),
    [
        ("classify", ("--text", "the ship"), 1),
        ("big", ("--prompt", "the ship", "--max-new-tokens", 3), 3),
        ("big", ("--prompt", "the ship", "--prompt", "cold", "--max-new-tokens", 1), 2),
    ],
    ids=["one encoder pass", "a generation", "two requests"],
)
def test_nothing_is_read_that_no_pass_needs(models: Path, home: Path, model: str, asked: Any, passes: int) -> None:
    """Two slots: after the last pass they would hold the first units of the next one, if one was expected."""
    trace = home.with_name("trace.json")
    ended = launch(home, "--model", models / model, *asked, *NO_LIMIT, "--loaders", 1, "--trace", trace, "--json")
    report = ended.object["report"]
    assert (report["passes"]["count"], report["slots"]) == (passes, 2)
    assert report["read_nbytes_unused"] == 0
    units = [event["args"]["unit"] for event in events(trace, "loader 0", "read unit")]
    assert sorted(set(units)) == list(range(1 + max(units)))
    assert all(units.count(unit) <= passes for unit in units)
    weights = sum(file.stat().st_size for file in (models / model).glob("*.safetensors"))
    assert report["read_nbytes"] < passes * weights * 1.01


def test_a_head_that_no_pass_uses_is_not_read(home: Path, tmp_path: Path) -> None:
    """A masked language model that embeds: once 8 % of what bert-large read was its head, in vain."""
    from tiny_models import bert

    model = tmp_path / "deep"
    model.mkdir()
    bert(model, "BertForMaskedLM", hidden_size=128, num_hidden_layers=6, intermediate_size=256, vocab_size=4096)
    ended = launch(home, "--model", model, *NO_LIMIT, "--loaders", 2, "--json", stdin="the ship\ncold water\nstones\n")
    report = ended.object["report"]
    assert [answer["task"] for answer in ended.object["answers"]] == ["embedding"] * 3
    assert (report["passes"]["count"], report["slots"]) == (3, 3)
    assert report["read_nbytes_unused"] == 0
