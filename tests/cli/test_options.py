"""Flags and launch files: what beats what, and one clear line for everything that is wrong."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.cli.options import parse
from hermes_mp.config import MAX_SIZE_NBYTES, LaunchConfig, RunConfig, options_of, parse_size
from hermes_mp.errors import BadOption

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [
        ("700MiB", 700 << 20), ("3GiB", 3 << 30), ("2GB", 2 * 10**9), ("1500000000", 15 * 10**8), ("2.5gib", 5 << 29),
        (" 1 kB ", 1000), ("64b", 64), (4096, 4096), ("1TiB", 1 << 40),
    ],
)  # fmt: skip
def test_sizes(size: str | int, nbytes: int) -> None:
    assert parse_size(size) == nbytes


@pytest.mark.parametrize(
    "size",
    [
        "",
        "3G",
        "700M",
        "0",
        0,
        -1,
        "-1",
        "1e9",
        "1.5",
        "1.5B",
        "GiB",
        "3 GiB more",
        "９GiB",
        "9999999TiB",
        "inf",
        "0.1B",
    ],
)
def test_what_is_no_size(size: str | int) -> None:
    with pytest.raises(ValueError, match=r"no size|out of range"):
        parse_size(size)


@given(
    st.one_of(
        st.text(max_size=12), st.from_regex(r"[0-9]{1,20}(\.[0-9]{1,10})?\s?[kKmMgGtT]?[iI]?[bB]?", fullmatch=True)
    )
)
def test_a_size_is_in_range_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 < parse_size(text) <= MAX_SIZE_NBYTES


def test_defaults() -> None:
    config = parse([])
    assert config == LaunchConfig()
    assert (config.loaders, config.model, config.memory, config.max_new_tokens, config.dtype) == (
        None,
        None,
        "auto",
        64,
        "auto",
    )


def test_flags_beat_the_file_and_the_file_beats_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'loaders = 5\nmemory = "700MiB"\ntext = ["a", "b"]\njson = true\ntop-p = 0.5\ntoken-ids = [5, 17]\n'
    )
    config = parse([str(file), "--loaders", "2", "--no-json", "--text", "c", "--text", "d e"])
    assert (config.loaders, config.json, config.text) == (2, False, ("c", "d e"))
    assert (config.memory, config.top_p, config.token_ids, config.batch) == (700 << 20, 0.5, (5, 17), 1)


@pytest.mark.parametrize(("said", "memory"), [("auto", "auto"), ("none", None), ("1MiB", 1 << 20)])
def test_memory_is_a_size_or_one_of_two_words(said: str, memory: object, tmp_path: Path) -> None:
    assert parse(["--memory", said]).memory == memory
    file = tmp_path / "run.toml"
    file.write_text(f'memory = "{said}"\n')
    assert parse([str(file)]).memory == memory
    assert RunConfig(memory=said).memory == memory
    assert RunConfig(memory=None).memory is None


def test_every_option_can_be_said_both_ways(tmp_path: Path) -> None:
    samples = {
        "model": "./m", "loaders": 7, "memory": "1GiB", "context": 99, "batch": 2, "in-flight": 5, "prefill-chunk": 6,
        "dtype": "bfloat16", "threads": 4,
        "verify": "always", "replay": "fast", "timeout": 9.5, "soft-deadline": 1.5, "hard-deadline": 7.5,
        "prompt": "p", "text": "t", "image": "/i", "token-ids": "1,2", "raw": True,
        "token-embeddings": True, "max-new-tokens": 3, "temperature": 0.5, "top-p": 0.25, "top-k": 9, "seed": 8,
        "boards": "b.toml", "board": "pi", "split": "head:1", "remote-loader": "nas=2",
        "stop": "s", "json": True, "trace": "/t", "sample-memory": True, "quiet": True, "show-config": True,
    }  # fmt: skip
    assert {one.name.replace("_", "-") for one, _ in options_of(LaunchConfig)} == set(samples)
    argv = [word for name, value in samples.items() for word in (f"--{name}", str(value)) if word != "True"]
    file = tmp_path / "all.toml"
    file.write_text(
        "\n".join(f"{name} = {json.dumps(value)}" for name, value in samples.items()).replace('"1,2"', "[1, 2]")
    )
    by_flags, by_file = parse(argv), parse([str(file)])
    for one, _ in options_of(LaunchConfig):
        assert getattr(by_flags, one.name) != one.default, one.name
        if one.name != "model":
            assert getattr(by_file, one.name) == getattr(by_flags, one.name), one.name


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    file = tmp_path / "run.toml"
    file.write_text('model = "../gpt-j"\nimage = ["cat.png", "/dog.png", "~/cow.png"]\ntrace = "t.json"')
    config = parse([str(file)])
    assert config.model == str(tmp_path.parent / "gpt-j")
    assert config.image == (str(tmp_path / "cat.png"), "/dog.png", "/home/someone/cow.png")
    assert config.trace == str(tmp_path / "t.json")
    file.write_text('model = "openai-community/gpt2"')
    assert parse([str(file)]).model == "openai-community/gpt2"
    assert parse([str(file), "--trace", "t.json"]).trace == "t.json"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--loaders", "0"], "--loaders takes auto or a whole number from 1 to 64, not '0'"),
        (["--loaders", "65"], "from 1 to 64, not '65'"),
        (["--loaders", "three"], "not 'three'"),
        (["--loadrs", "3"], "'--loadrs', did you mean --loaders?"),
        (["--load", "3"], "'--load'"),
        (["--loaders"], "expected one argument"),
        (["--memory", "3G"], "--memory takes auto, none, a size such as 700MiB or 3GiB, or a number"),
        (["--memory", "Auto"], "not 'Auto'"),
        (["--dtype", "int8"], "--dtype takes one of auto, float32, float16, bfloat16, not 'int8'"),
        (["--temperature", "nan"], "--temperature takes a number"),
        (["--top-p", "1.5"], "--top-p"),
        (["--token-ids", "5,x"], "--token-ids takes token ids such as 5,17,9"),
        (["--token-ids", "5,-1"], "--token-ids"),
        (["--text", ""], "--text takes a text that is not empty"),
        (["--json=yes"], "--json"),
        (["no-such.toml"], "no-such.toml cannot be read: No such file"),
        (["."], "Is a directory; a model is named with --model"),
        (["a.toml", "b.toml"], "b.toml"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_2(argv: list[str], says: str) -> None:
    with pytest.raises(BadOption) as caught:
        parse(argv)
    assert says in caught.value.line()
    assert "\n" not in caught.value.line()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loadrs = 3", "unknown key 'loadrs'; the nearest is 'loaders'"),
        ("max_new_tokens = 3", "unknown key 'max_new_tokens'; the nearest is 'max-new-tokens'"),
        ("zzz = 3", "unknown key 'zzz'"),
        ('loaders = "3"', "loaders takes auto or a whole number from 1 to 64, not '3'"),
        ("loaders = true", "not True"),
        ("loaders = 2.0", "not 2.0"),
        ("loaders = 65", "not 65"),
        ("memory = 1.5", "memory takes auto, none, a size"),
        ('json = "yes"', "json takes true or false"),
        ("text = [1]", "text takes"),
        ("token-ids = [1, true]", "token-ids takes"),
        ("model = 3", "model takes"),
        ("[run]\nloaders = 3", "unknown key 'run'"),
        ("loaders = ", "is no TOML"),
        ("loaders = 3\nloaders = 4", "is no TOML"),
    ],
)
def test_wrong_keys_name_the_file_the_key_and_what_would_do(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(BadOption) as caught:
        parse([str(file)])
    assert says in caught.value.line()
    assert str(file) in caught.value.line()
    assert "\n" not in caught.value.line()


def test_the_python_api_is_held_to_the_same_limits() -> None:
    assert RunConfig(model="m", memory="3GiB").memory == 3 << 30  # type: ignore[arg-type]  # load() takes both
    for wrong in (
        {"loaders": 0},
        {"loaders": 65},
        {"loaders": "3"},
        {"memory": "3G"},
        {"dtype": "int8"},
        {"batch": None},
    ):
        with pytest.raises(BadOption, match=next(iter(wrong))):
            RunConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.toml")), ids=lambda path: path.stem)
def test_every_ready_run_parses(path: Path) -> None:
    assert (parse([str(path)]).loaders or 1) >= 1


def test_there_are_ready_runs_and_launch_is_no_package() -> None:
    assert (ROOT / "launch/single-board.toml").exists()
    assert not list((ROOT / "launch").rglob("*.py")), "an installed top-level package `launch` would break ROS 2"


@pytest.mark.parametrize(("flag", "says"), [("--help", "--max-new-tokens N"), ("--version", "hermes-mp")])
def test_help_and_version(flag: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([flag])
    assert caught.value.code == 0
    assert says in capsys.readouterr().out


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    from hermes_mp.errors import by_exit_code

    rows = [row.split("|") for row in (ROOT / "docs/exit-codes.md").read_text().splitlines() if row.startswith("| ")]
    documented = {int(row[1]): row[2].strip() for row in rows if row[1].strip().isdigit() and row[2].strip()}
    assert documented == {code: kind.__name__ for code, kind in by_exit_code().items()}


@pytest.mark.parametrize(("words", "loaders"), [([], None), (["--loaders", "auto"], None), (["--loaders", "4"], 4)])
def test_loaders_are_a_number_or_auto(words: list[str], loaders: int | None, tmp_path: Path) -> None:
    assert parse(words).loaders == loaders
    file = tmp_path / "run.toml"
    file.write_text('loaders = "auto"\n')
    assert parse([str(file), *words]).loaders == loaders


def test_remote_loaders_by_board(tmp_path: Path) -> None:
    config = parse(["--remote-loader", "nas=2", "--remote-loader", "pi-1=16"])
    assert config.remote_loaders == {"nas": 2, "pi-1": 16}
    file = tmp_path / "run.toml"
    file.write_text('remote-loader = ["nas=2"]')
    assert parse([str(file)]).remote_loaders == {"nas": 2}
    assert LaunchConfig().remote_loaders == {}


@pytest.mark.parametrize(
    "value", ["nas", "nas=", "nas=0", "nas=17", "nas=-1", "nas=1.5", "=2", "-nas=2", "nas=2=3", "a b=1"]
)
def test_a_remote_loader_that_is_none(value: str) -> None:
    with pytest.raises(BadOption, match="--remote-loader takes a paired board and how many loaders"):
        parse([f"--remote-loader={value}"])


def test_a_board_is_named_once() -> None:
    with pytest.raises(BadOption, match="nas=2"):
        parse(["--remote-loader", "nas=1", "--remote-loader", "nas=2"])
