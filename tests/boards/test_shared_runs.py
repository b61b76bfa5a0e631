"""Runs whose layers are shared between boards, as a user starts them; and boards that die in the middle."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from launching import Ended, Launch, launch
from serving import Serving

PROMPT = ("--prompt", "the ship sails", "--seed", "3", "--temperature", "0.9", "--memory", "none", "--loaders", "1")
LONG = (*PROMPT, "--max-new-tokens", "40")
HALF = ("--split", "head:4,b1:4")
SPLITS = {
    2: ["head:4,b1:4", "head:1,b1:7", "head:1,b1:1,head:2,b1:2,head:1,b1:1"],
    3: ["head:2,b1:3,b2:3", "b1:5,b2:3", "head:1,b1:1,b2:1,head:1,b1:2,b2:2"],
    4: ["head:2,b1:2,b2:2,b3:2", "head:1,b1:1,b2:5,b3:1", "head:1,b1:1,b2:1,b3:1,head:1,b1:1,b2:1,b3:1"],
}


@pytest.fixture(scope="module")
def alone(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """What one board says."""
    ended = launch(tmp_path_factory.mktemp("alone") / "home", "--model", models / "big", *LONG, "--json")
    assert ended.code == 0, ended.err
    return ended


def tokens(ended: Ended) -> list[int]:
    assert ended.code == 0, ended.err
    found: list[int] = ended.object["answers"][0]["token_ids"]
    return found


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_same_tokens_on_several_boards(count: int, alone: Ended, models: Path, home: Path, tmp_path: Path) -> None:
    with Serving(tmp_path / "boards", models, count - 1) as boards:
        for number, split in enumerate(SPLITS[count]):
            ended = launch(
                home / str(number), "--model", models / "big", *LONG, "--json", "--boards", boards.file,
                "--split", split,
            )  # fmt: skip
            assert tokens(ended) == tokens(alone), split


@pytest.mark.parametrize(("name", "arguments"), [
    ("classify", ("--text", "the grey crab")), ("bert", ("--text", "a small ship")), ("mlm", ("--text", "the [MASK]")),
    ("vit", ("--image", "PICTURE")),
])  # fmt: skip
def test_encoders_over_two_boards(
    name: str, arguments: tuple[str, ...], models: Path, home: Path, tmp_path: Path
) -> None:
    from tiny_models import picture

    words = [str(picture(tmp_path / "picture.png")) if word == "PICTURE" else word for word in arguments]
    with Serving(tmp_path / "boards", models, 1) as boards:
        one = launch(home / "one", "--model", models / name, *words, "--json")
        two = launch(home / "two", "--model", models / name, *words, "--json", "--boards", boards.file)
    assert one.code == two.code == 0, two.err
    assert two.object["answers"] == one.object["answers"]


@pytest.mark.parametrize("who", ["board", "compute", "loader 0"])
def test_a_death_on_a_board_changes_no_token(
    who: str, alone: Ended, models: Path, home: Path, tmp_path: Path
) -> None:
    with Serving(tmp_path / "boards", models, 2) as boards:
        arguments = ("--model", models / "big", *LONG, "--boards", boards.file, "--split", SPLITS[3][2])
        with Launch(home, *arguments) as run:
            run.wait_for(lambda run: len(run.out) > 20)
            if who == "board":
                boards.kill("b1")
                run.wait_for(lambda run: "the request is repeated without it" in run.err)
            else:
                pid = boards.process("b1", who)
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
            ended = run.ended()
    assert ended.code == 0, ended.err
    assert alone.object["answers"][0]["text"] in ended.out
    if who == "board":
        assert "board b1 (127.0.0.1:" in ended.err
    if who == "compute":
        assert "board b1: its compute process died" in ended.err
    assert "Traceback" not in ended.err


def test_a_death_of_the_heads_compute(alone: Ended, models: Path, home: Path, tmp_path: Path) -> None:
    with Serving(tmp_path / "boards", models, 2) as boards:
        arguments = ("--model", models / "big", *LONG, "--boards", boards.file, "--split", SPLITS[3][2])
        with Launch(home, *arguments) as run:
            run.wait_for(lambda run: len(run.out) > 20)
            run.send(run.process("compute"), signal.SIGKILL)
            ended = run.ended()
    assert ended.code == 0, ended.err
    assert alone.object["answers"][0]["text"] in ended.out


def test_a_board_that_stands_still_is_left_out(alone: Ended, models: Path, home: Path, tmp_path: Path) -> None:
    """Its connection stays: only time tells."""
    with Serving(tmp_path / "boards", models, 2) as boards:
        arguments = ("--model", models / "big", *LONG, "--boards", boards.file, "--split", SPLITS[3][2])
        with Launch(home, *arguments) as run:
            run.wait_for(lambda run: len(run.out) > 20)
            began_s = run.now_s
            boards.kill("b2", signal.SIGSTOP)
            run.wait_for(lambda run: "the request is repeated without it" in run.err)
            assert run.now_s - began_s < 7
            ended = run.ended()
    assert ended.code == 0, ended.err
    assert alone.object["answers"][0]["text"] in ended.out


def test_a_compute_that_stands_still_while_the_layers_are_dealt_anew(
    alone: Ended, models: Path, home: Path, tmp_path: Path
) -> None:
    """Nothing was asked of it when it was stopped; the next deal of layers waited for it for two minutes."""
    words = ("--model", models / "big", *LONG[2:], "--timeout", "3", "--split", SPLITS[3][2])
    with Serving(tmp_path / "boards", models, 2) as boards, Launch(
        home, *words, "--boards", boards.file, lines=True
    ) as run:
        run.write("grey stones\n")
        run.wait_for(lambda run: run.out.count("\n") >= 1)
        pid = boards.process("b2", "compute")
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        boards.kill("b1")
        run.write("the ship sails\n")
        run.wait_for(lambda run: re.search(r"board b2: compute \(epoch \d+\) has done nothing for 3 s", run.err))
        run.wait_for(lambda run: alone.object["answers"][0]["text"] in run.out)
        ended = run.ended()
    assert ended.code == 0, ended.err


def test_a_board_lost_while_another_loss_is_mended(alone: Ended, models: Path, home: Path, tmp_path: Path) -> None:
    """The layers are divided twice, and the request is asked for twice; it was then answered twice."""
    lines = [str(word) for word in LONG[2:]]
    with Serving(tmp_path / "boards", models, 2) as boards, Launch(
        home, "--model", models / "big", *lines, "--boards", boards.file, "--split", SPLITS[3][2], lines=True
    ) as run:
        run.write("the ship sails\n")
        run.wait_for(lambda run: len(run.out) > 20)
        boards.kill("b2", signal.SIGSTOP)
        boards.kill("b1")
        run.wait_for(lambda run: "board b2 (127.0.0.1:" in run.err)
        run.wait_for(lambda run: alone.object["answers"][0]["text"] in run.out)
        run.write("grey stones\n")
        ended = run.ended()
    assert ended.code == 0, ended.err
    assert ended.out.count(alone.object["answers"][0]["text"]) == 1


def test_a_board_that_comes_back_joins_at_the_next_request(models: Path, home: Path, tmp_path: Path) -> None:
    with Serving(tmp_path / "boards", models, 1) as boards:
        words = ("--model", models / "big", *LONG[2:], "--boards", boards.file)
        with Launch(home, *words, lines=True) as run:
            run.write("the ship\n")
            run.wait_for(lambda run: run.out.count("\n") >= 1)
            boards.kill("b1")
            run.write("the crab\n")
            run.wait_for(lambda run: "the request is repeated without it" in run.err)
            boards.start("b1")
            boards.await_up("b1")
            run.wait_for(lambda run: run.out.count("\n") >= 2)
            run.write("grey stones\n")
            run.wait_for(lambda run: "board b1 is there again and joins" in run.err)
            ended = run.ended()
    assert ended.code == 0, ended.err


def test_boards_that_are_not_there_are_left_out(alone: Ended, models: Path, home: Path, tmp_path: Path) -> None:
    with Serving(tmp_path / "boards", models, 2) as boards:
        file = boards.file
        boards.kill("b2")
        ended = launch(home, "--model", models / "big", *LONG, "--json", "--boards", file)
    assert tokens(ended) == tokens(alone)
    assert "board b2 (127.0.0.1:" in ended.err
    assert "going on without it" in ended.err


def test_a_board_with_too_little_memory_is_asked_once(
    alone: Ended, models: Path, home: Path, tmp_path: Path
) -> None:
    """It is there, and was asked for the same stage again and again: no answer ever came."""
    with Serving(tmp_path / "boards", models, 1, memory="100MiB") as boards:
        ended = launch(home, "--model", models / "big", *LONG, "--json", "--boards", boards.file, *HALF)
    assert tokens(ended) == tokens(alone)
    assert ended.err.count("--memory 100 MiB is too small") == 1
    assert "board b1: --memory 100 MiB" in ended.err


def test_another_model_of_that_name_is_refused(models: Path, home: Path, tmp_path: Path) -> None:
    from tiny_models import gpt2

    (tmp_path / "theirs" / "big").mkdir(parents=True)
    gpt2(tmp_path / "theirs" / "big", width=512, layers=4)
    with Serving(tmp_path / "boards", tmp_path / "theirs", 1) as boards:
        ended = launch(home, "--model", models / "big", *LONG, "--boards", boards.file)
    assert ended.code == 24
    assert "board b1: big is " in ended.line
