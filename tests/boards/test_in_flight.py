"""Several requests at once, as a user starts them: alone, on two boards, and where something dies in the middle."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from launching import Ended, Launch, launch
from serving import Serving

PROMPTS = ("the ship sails", "grey stones", "a small crab and the sea", "the")
SAMPLED = ("--temperature", "0.9", "--seed", "3", "--loaders", "1", "--max-new-tokens")
ROUNDS = ("--split", "head:1,b1:1,head:2,b1:2,head:1,b1:1")


def asked(prompts: tuple[str, ...] = PROMPTS, tokens: int = 24, memory: str = "none") -> list[str]:
    return [word for text in prompts for word in ("--prompt", text)] + [*SAMPLED, str(tokens), "--memory", memory]


@pytest.fixture(scope="module")
def alone(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """What they say one after the other."""
    home = tmp_path_factory.mktemp("alone") / "home"
    ended = launch(home, "--model", models / "big", *asked(), "--json")
    assert ended.code == 0, ended.err
    return ended


def answers(ended: Ended) -> list[dict[str, Any]]:
    assert ended.code == 0, ended.err
    found: list[dict[str, Any]] = ended.object["answers"]
    return found


def read(ended: Ended) -> int:
    found: int = ended.object["report"]["read_nbytes"]
    return found


@pytest.mark.parametrize("count", [2, 4])
def test_the_same_answers_in_the_order_of_the_requests(count: int, alone: Ended, models: Path, home: Path) -> None:
    ended = launch(home, "--model", models / "big", *asked(), "--json", "--in-flight", count)
    assert answers(ended) == answers(alone)


def test_the_bytes_are_read_once_for_all(models: Path, home: Path) -> None:
    """In two slots everything streams: of four requests of the same length a quarter is read."""
    words = ("--model", models / "big", *asked(tokens=12, memory="none"), "--json")
    one = launch(home / "one", *words)
    four = launch(home / "four", *words, "--in-flight", 4)
    assert answers(one) == answers(four)
    assert read(four) < 0.35 * read(one)


def test_a_person_sees_them_in_order(alone: Ended, models: Path, home: Path) -> None:
    ended = launch(home, "--model", models / "big", *asked(), "--in-flight", 4)
    assert ended.code == 0, ended.err
    shown = [f"{prompt}\n{one['text']}" for prompt, one in zip(PROMPTS, answers(alone), strict=True)]
    assert ended.out == "\n".join(f"{one}\n" for one in shown)


def test_one_line_is_answered_before_another_comes(models: Path, home: Path) -> None:
    words = ("--model", models / "big", *asked((), 8), "--in-flight", 3)
    with Launch(home, *words, lines=True) as run:
        run.write("the ship sails\n")
        run.wait_for(lambda run: run.out.count("\n") == 1)
        run.write("grey stones\nthe sea\nthe\n")
        run.wait_for(lambda run: run.out.count("\n") == 4)
        ended = run.ended()
    assert ended.code == 0, ended.err


def test_one_that_cannot_be_answered_keeps_its_place(alone: Ended, models: Path, home: Path) -> None:
    prompts = (PROMPTS[0], "the sea " * 3000, *PROMPTS[1:])
    ended = launch(home, "--model", models / "big", *asked(prompts), "--json", "--in-flight", 5)
    assert ended.code != 0
    found = ended.object["answers"]
    assert "error" in found.pop(1)
    assert [one["text"] for one in found] == [one["text"] for one in answers(alone)]


def test_the_budget_is_for_all_of_them(models: Path, home: Path) -> None:
    """Sixteen take more than one; the smallest budget for them is named, and kept."""
    words = ("--model", models / "big", *asked(PROMPTS * 4, tokens=8)[:-1])
    many = ("--in-flight", 16, "--json", "--sample-memory")
    refused = launch(home / "0", *words, "100MiB", *many)
    assert refused.code == 16
    found = re.search(r"KV cache and activations ([0-9]+) MiB", refused.line)
    assert found
    assert int(found[1]) > 16 * 4
    found = re.search(r"the smallest budget for this model, context and batch is ([0-9]+) MiB", refused.line)
    assert found
    budget_nbytes = int(found[1]) << 20
    ended = launch(home / "1", *words, budget_nbytes, *many)
    assert len(answers(ended)) == 16
    assert ended.object["report"]["memory"]["peak_nbytes"] <= budget_nbytes


def test_the_same_answers_on_two_boards(alone: Ended, models: Path, home: Path, tmp_path: Path) -> None:
    with Serving(tmp_path / "boards", models, 1) as boards:
        for number, split in enumerate((ROUNDS[1], "head:4,b1:4")):
            words = (*asked(), "--json", "--in-flight", 3, "--boards", boards.file, "--split", split)
            ended = launch(home / str(number), "--model", models / "big", *words)
            assert answers(ended) == answers(alone), split


@pytest.mark.parametrize("who", ["board", "compute"])
def test_a_death_in_the_middle_changes_no_answer(
    who: str, alone: Ended, models: Path, home: Path, tmp_path: Path
) -> None:
    """All that are in flight are asked once more; what was shown is not shown again."""
    with Serving(tmp_path / "boards", models, 1) as boards:
        words = (*asked(), "--in-flight", 4, "--boards", boards.file, *ROUNDS)
        with Launch(home, "--model", models / "big", *words) as run:
            run.wait_for(lambda run: len(run.out) > 20 + len(PROMPTS[0]))
            if who == "board":
                boards.kill("b1")
            else:
                run.send(run.process("compute"), signal.SIGKILL)
            ended = run.ended()
    assert ended.code == 0, ended.err
    if who == "board":
        assert "4 requests are repeated without it" in ended.err
    for prompt, one in zip(PROMPTS, answers(alone), strict=True):
        assert ended.out.count(f"{prompt}\n{one['text']}\n") == 1
    assert "Traceback" not in ended.err


def test_compute_alone_dies(alone: Ended, models: Path, home: Path) -> None:
    with Launch(home, "--model", models / "big", *asked(), "--in-flight", 4, "--json") as run:
        run.wait_for(lambda run: run.loaders())
        run.send(run.process("compute"), signal.SIGKILL)
        ended = run.ended()
    assert answers(ended) == answers(alone)
    assert ended.object["report"]["compute_restarted"] == 1


def chunked(models: Path, *words: object) -> tuple[object, ...]:
    """Fifty tokens of prompt."""
    ids = ",".join(str(5 + 7 * token % 90) for token in range(50))
    return "--model", models / "big", "--token-ids", ids, *SAMPLED, 8, "--memory", "none", "--json", *words


def test_a_prompt_in_chunks_on_one_board_and_two(models: Path, home: Path, tmp_path: Path) -> None:
    chunks = ("--prefill-chunk", 8)
    one = launch(home / "one", *chunked(models, *chunks))
    turns = ",".join(["head:1,b1:1"] * 4)
    with Serving(tmp_path / "boards", models, 1) as boards:
        for number, split in enumerate((turns, "head:4,b1:4", "b1:3,head:1,b1:4")):
            words = (*chunks, "--boards", boards.file, "--split", split, "--in-flight", 1 + number)
            two = launch(home / str(number), *chunked(models, *words))
            assert answers(two) == answers(one), split
    assert one.object["report"]["passes"]["count"] == 8


def test_a_board_dies_while_it_runs_chunks(models: Path, home: Path, tmp_path: Path) -> None:
    """While they wait for its disk, so that it is in the middle of them; the request is asked once more."""
    chunks = ("--prefill-chunk", 4, "--split", ",".join(["head:1,b1:1"] * 4))
    one = launch(home / "one", *chunked(models, *chunks[:2]))
    with Serving(tmp_path / "boards", models, 1) as boards, Launch(
        home / "two", *chunked(models, *chunks, "--boards", boards.file)
    ) as run:
        run.wait_for(lambda run: boards.process("b1", "loader 0") is not None)
        loader = boards.process("b1", "loader 0")
        assert loader is not None
        os.kill(loader, signal.SIGSTOP)
        run.wait_for(lambda run: "waiting for board b1: its disk" in run.err)
        boards.kill("b1")
        os.kill(loader, signal.SIGCONT)
        two = run.ended()
    assert answers(two) == answers(one)
    assert "going on without it" in two.err
