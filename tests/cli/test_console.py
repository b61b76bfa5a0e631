"""The console on real terminals and pipes: nothing destroys an answer, no wait is silent, JSON is alone."""

from __future__ import annotations

import fcntl
import io
import json
import os
import select
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from screen import Screen

from hermes_mp.cli.console import Console, column_after
from hermes_mp.cli.render import render
from hermes_mp.core.ledger import Ledger
from hermes_mp.errors import WriteFailed

ANSWER: dict[str, Any] = {
    "task": "text-generation", "text": "the sea", "token_ids": [1], "tokens": 1, "prompt_tokens": 1, "stopped": "end",
}  # fmt: skip
LABELS = {
    "task": "text-classification",
    "labels": [{"label": "calm", "score": 0.75}, {"label": "rough", "score": 0.25}],
}
COLUMNS = 60


class Terminal:
    """A pseudo terminal that both streams of a program are connected to."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.out: TextIO = open(slave, "w", encoding="utf-8")  # noqa: SIM115
        self.err: TextIO = open(os.dup(slave), "w", encoding="utf-8")  # noqa: SIM115
        self.screen = Screen(COLUMNS)

    def take(self) -> str:
        """What was written since the last time."""
        data = b""
        while select.select([self.master], [], [], 0)[0]:
            data += os.read(self.master, 1 << 16)
        text = data.decode().replace("\r\n", "\n")
        self.screen.feed(text)
        return text

    def close(self) -> None:
        for end in (self.out, self.err):
            end.close()
        os.close(self.master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    one = Terminal()
    yield one
    one.close()


def console(out: TextIO, err: TextIO, **settings: Any) -> Console:
    return Console(out, err, 0.0, **settings)


def test_no_wait_on_a_terminal_is_silent(terminal: Terminal) -> None:
    shown = console(terminal.out, terminal.err)
    shown.phase("importing torch")
    for now in (0.5, 1.0, 1.5):
        shown.tick(now)
        assert "importing torch" in terminal.take(), "a dot or a second more, every time"
    shown.units(3, 12, 50_000_000)
    shown.tick(2.0)
    assert "3/12" in terminal.take()
    shown.units(6, 12, 100_000_000)
    shown.tick(2.5)
    text = terminal.take()
    assert "6/12" in text
    assert "100 MB/s" in text
    shown.answer(LABELS)
    shown.tick(3.0)
    shown.close()
    terminal.take()
    assert terminal.screen.lines()[:3] == [" 0.750  calm", " 0.250  rough", ""], "the bar has left no trace"


def test_progress_never_destroys_text_that_flows(terminal: Terminal) -> None:
    shown = console(terminal.out, terminal.err)
    pieces = [
        "The",
        " ship",
        " leaves",
        " the harbour",
        " at dawn,",
        "\n",
        "海は",
        "静かだ",
        " and",
        " nobody",
        " sees",
        " it",
        " go",
    ] * 3
    now = 0.0
    progress_seen = 0
    for piece in pieces:
        for done in range(4):
            now += 0.5
            shown.units(done, 12, done * 10**6)
            shown.tick(now)
            progress_seen += terminal.take() != ""
        shown.stream(piece)
    shown.answer(ANSWER)
    shown.close()
    terminal.take()
    expected = Screen(COLUMNS)
    expected.feed("".join(pieces) + "\n")
    assert terminal.screen.lines() == expected.lines()
    assert progress_seen > len(pieces), "and it was seen"


def test_words_behind_the_text_wait_until_it_has_settled(terminal: Terminal) -> None:
    shown = console(terminal.out, terminal.err)
    shown.units(1, 12, 0)
    shown.tick(1.0)
    terminal.take()
    shown.stream("The ship")
    shown.tick(1.5)
    terminal.take()
    assert terminal.screen.lines() == ["The ship"], "the bar is gone, and no words are there yet"
    shown.tick(2.0)
    assert "1/12" in terminal.take()
    assert terminal.screen.lines()[-1].startswith("The ship  [units 1/12")
    assert terminal.screen.column == len("The ship"), "the cursor is where the text goes on"


def test_a_model_cannot_command_the_terminal(terminal: Terminal) -> None:
    shown = console(terminal.out, terminal.err)
    shown.stream("red \x1b[31m, bell \x07, title \x1b]0;x\x07, back \r over\n")
    text = terminal.take()
    assert not set(text) & {"\x1b", "\x07", "\r"}
    assert "red" in text


def test_the_prompt_is_for_people(terminal: Terminal) -> None:
    console(terminal.out, terminal.err).prompt()
    assert terminal.take() == "> "
    err = io.StringIO()
    console(io.StringIO(), err).prompt()
    assert err.getvalue() == ""


def test_elsewhere_there_are_few_lines_and_only_news() -> None:
    out, err = io.StringIO(), io.StringIO()
    shown = console(out, err)
    shown.phase("importing torch")
    for now in range(1, 40):
        shown.tick(now / 10)
    assert err.getvalue() == "importing torch\n", "once, and not before 2 s"
    shown.units(1, 12, 1)
    for now in range(40, 400):
        shown.units(min(now // 33, 12), 12, now)
        shown.tick(now / 10)
    lines = err.getvalue().splitlines()
    assert 3 < len(lines) < 12
    assert len(set(lines)) == len(lines)
    assert "\r" not in err.getvalue()
    assert "\x1b" not in err.getvalue()
    assert out.getvalue() == ""


def test_quiet_shows_answers_only() -> None:
    out, err = io.StringIO(), io.StringIO()
    shown = console(out, err, quiet=True)
    shown.phase("importing torch")
    shown.tick(5.0)
    shown.answer(LABELS)
    shown.report(Ledger(1, None, 0).report())
    shown.close()
    assert out.getvalue() == render(LABELS) + "\n"
    assert err.getvalue() == ""


def test_json_is_one_object_alone_on_its_stream() -> None:
    out, err = io.StringIO(), io.StringIO()
    shown = console(out, err, as_json=True)
    shown.model("./m")
    shown.phase("importing torch")
    shown.tick(5.0)
    shown.stream("the sea")
    shown.answer(ANSWER)
    shown.failed("too long; shorten it", 19)
    shown.report(Ledger(1, None, 0).report())
    assert out.getvalue().startswith('{"schema": 1, "model": "./m", "answers": [{"task": ')  # written as they come
    shown.close()
    whole = json.loads(out.getvalue())
    assert out.getvalue().count("\n") == 1
    assert whole["answers"] == [ANSWER, {"error": {"exit_code": 19, "line": "too long; shorten it"}}]
    assert (whole["schema"], whole["model"], whole["error"]) == (1, "./m", None)
    assert whole["report"]["loaders"] == 1
    docs = (Path(__file__).parents[2] / "docs/json.md").read_text(encoding="utf-8")
    assert not [key for key in whole if f"`{key}`" not in docs]


def test_a_failed_run_is_an_object_too() -> None:
    out, err = io.StringIO(), io.StringIO()
    shown = console(out, err, as_json=True)
    shown.error("no such model; name another", 10)
    shown.close()
    whole = json.loads(out.getvalue())
    assert whole["error"] == {"exit_code": 10, "line": "no such model; name another"}
    assert whole["report"] is None
    assert err.getvalue() == "hermes-launch: no such model; name another\n"


def test_streamed_text_is_not_shown_twice_and_an_error_gets_its_own_line() -> None:
    out, err = io.StringIO(), io.StringIO()
    shown = console(out, err)
    shown.stream("the ")
    shown.stream("sea")
    shown.answer(ANSWER)
    shown.answer(LABELS, "second")
    shown.stream("half an ans")
    shown.error("it broke", 42)
    shown.close()
    assert out.getvalue() == f"the sea\n\nsecond\n{render(LABELS)}\nhalf an ans\n"
    assert err.getvalue() == "hermes-launch: it broke\n"


def test_each_of_several_streamed_answers_stands_under_its_request() -> None:
    out = io.StringIO()
    shown = console(out, io.StringIO())
    for label in ("a ship", "a crab"):
        shown.stream("on ", label)
        shown.stream("the sea", label)
        shown.answer(ANSWER, label)
    assert out.getvalue() == "a ship\non the sea\n\na crab\non the sea\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as out:
        shown = console(out, io.StringIO())
        shown.answer(LABELS)
        assert not shown.reader_gone
        os.close(reader)
        shown.answer(LABELS)
        assert shown.reader_gone
        shown.answer(LABELS)
        shown.close()


def test_a_full_disk_is_an_error() -> None:
    with open("/dev/full", "w", encoding="utf-8") as out:
        shown = console(out, io.StringIO())
        with pytest.raises(WriteFailed, match="standard output cannot be written: No space left"):
            shown.answer(LABELS)
        shown.error("it is full", 1)
        shown.close()


def test_a_full_disk_under_the_error_stream_stops_nothing() -> None:
    out = io.StringIO()
    with open("/dev/full", "w", encoding="utf-8") as err:
        shown = console(out, err)
        shown.note("a loader was lost")
        shown.answer(LABELS)
        assert not shown.reader_gone
    assert out.getvalue() == render(LABELS) + "\n"


def test_a_stream_that_cannot_show_a_character_shows_a_question_mark() -> None:
    raw = io.BytesIO()
    shown = console(io.TextIOWrapper(raw, encoding="ascii"), io.StringIO())
    shown.stream("caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    assert raw.getvalue() == b"caf?"


@pytest.mark.parametrize(
    ("text", "column"),
    [("abc", 3), ("a\n", 0), ("\t", 8), ("abc\t", 8), ("x" * 10, 10), ("x" * 11, 1), ("静" * 5 + "静", 2)],
)
def test_where_the_cursor_stands(text: str, column: int) -> None:
    assert column_after(text, 0, 10) == column


def test_render_of_every_task() -> None:
    vector = [0.123456] * 8
    embedding = {
        "task": "embedding",
        "pooling": "mean",
        "normalized": True,
        "tokens": 3,
        "dimensions": 8,
        "embedding": vector,
    }
    assert render(embedding) == f"8 numbers (mean of 3 tokens, normalised): {'0.1235 ' * 6}..."
    assert render(embedding | {"token_embeddings": [[1.0, 2.0]]}).endswith("\ntoken 0: 1.0000 2.0000")
    assert render(ANSWER) == "the sea"
    assert render(ANSWER | {"text": None, "token_ids": [5, 17]}) == "5 17"
    ranking = {"task": "ranking", "text": "bread", "ranking": [{"sentence": "Dough.", "score": 0.5}]}
    assert render(ranking) == "closest in meaning to: bread\n 0.500  Dough."
    candidate = {"token": "ship", "token_id": 6, "score": 0.5, "text": "the ship"}
    assert (
        render({"task": "fill-mask", "masks": [{"position": 2, "candidates": [candidate]}]}) == " 0.500  ship  the ship"
    )


def test_the_docs_name_every_key_of_the_answers() -> None:
    docs = (Path(__file__).parents[2] / "docs/json.md").read_text(encoding="utf-8")
    for word in ("text-generation", "stopped", "prompt_tokens", "masks", "candidates", "token_embeddings", "ranking"):
        assert f"`{word}`" in docs
    assert not [key for key in ANSWER if f"`{key}`" not in docs]


def test_the_console_brings_no_heavy_module() -> None:
    assert "hermes_mp.cli.console" in sys.modules
    import subprocess

    code = (
        "import sys, hermes_mp.cli.options, hermes_mp.cli.console, hermes_mp.cli.embedded, hermes_mp.cli.lines, "
        "hermes_mp.core.ledger, hermes_mp.host.trace\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tqdm', 'statistics', 'hashlib', 'multiprocessing', 'logging'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"
