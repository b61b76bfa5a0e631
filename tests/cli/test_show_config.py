"""`--show-config`: what it prints runs the same, says where each value came from, and nothing runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import launch

from hermes_mp.cli import show_config
from hermes_mp.cli.options import key_of, parse, parse_with_sources
from hermes_mp.config import LaunchConfig, options_of

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=20)
SOME = {
    "model": TEXT.map(lambda text: "/" + text), "loaders": st.integers(1, 64), "memory": st.integers(1, 2**49),
    "context": st.integers(1, 2**24), "batch": st.integers(1, 4096), "dtype": st.sampled_from(["auto", "bfloat16"]),
    "prompt": st.lists(TEXT, min_size=1, max_size=3).map(tuple), "token_ids": st.just((5, 17, 9)),
    "temperature": st.floats(0, 100), "top_p": st.floats(1e-6, 1), "seed": st.integers(0, 2**63 - 1),
    "json": st.booleans(), "raw": st.booleans(), "stop": st.lists(TEXT, max_size=2).map(tuple),
}  # fmt: skip


@given(st.fixed_dictionaries({}, optional=SOME))
def test_a_launch_file_of_it_is_the_same_run(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    config = LaunchConfig(**values)  # type: ignore[arg-type]
    file = tmp_path_factory.mktemp("shown") / "run.toml"
    file.write_text(show_config.as_launch_file(config, {}), encoding="utf-8")
    assert parse([str(file)]) == config


def test_every_value_says_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('loaders = 2\nmemory = "700MiB"\nseed = 7\n')
    config, sources = parse_with_sources([str(file), "--seed", "8", "--prompt", "a", "--prompt", "b", "--show-config"])
    shown = json.loads(show_config.as_json(config, sources))["config"]
    assert list(shown) == [key_of(one.name) for one, _ in options_of(LaunchConfig) if one.name != "show_config"]
    assert shown["loaders"] == {"value": 2, "source": str(file), "in_words": None}
    assert shown["memory"] == {"value": 700 << 20, "source": str(file), "in_words": "700 MiB"}
    assert shown["seed"] == {"value": 8, "source": "flag", "in_words": None}
    assert shown["prompt"] == {"value": ["a", "b"], "source": "flag", "in_words": None}
    assert shown["batch"] == {"value": 1, "source": "default", "in_words": None}
    text = show_config.as_launch_file(config, sources)
    assert [line.split() for line in text.splitlines() if line.startswith(("seed", "loaders", "# context"))] == [
        ["loaders", "=", "2", "#", str(file)], ["#", "context", "#", "default"], ["seed", "=", "8", "#", "flag"],
    ]  # fmt: skip


def test_others_say_what_a_value_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(show_config.IN_WORDS, "loaders", lambda config: f"{config.loaders} of 4 cores")
    assert "loaders = 3" in (text := show_config.as_launch_file(LaunchConfig(), {}))
    assert "# default: 3 of 4 cores" in text


def test_the_command_prints_it_and_runs_nothing(home: Path) -> None:
    shown = launch(home, "--model", "no/such/model/anywhere", "--show-config")
    assert (shown.code, shown.err) == (0, "")
    assert 'model = "no/such/model/anywhere"' in shown.out
    as_json = launch(home.with_name("json"), "--json", "--show-config", "--loaders", 5)
    assert as_json.object["config"]["loaders"]["value"] == 5
    assert as_json.object["config"]["json"] == {"value": True, "source": "flag", "in_words": None}
    refused = launch(home.with_name("refused"), "--loaders", 0, "--show-config")
    assert refused.code == 2


def test_it_can_be_taken_back() -> None:
    assert parse(["--show-config", "--no-show-config"]) == LaunchConfig()
    assert parse(["--show-config"]) == replace(LaunchConfig(), show_config=True)
