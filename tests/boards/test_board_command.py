"""`hermes-board` with every flag once, and with wrong input: one line of what is wrong, where, and what to try."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import closing
from pathlib import Path

import pytest
from served import Served
from test_pairing import hermes_board
from tiny_models import gpt2

from hermes_mp.cli.boards_file import read_boards_file
from hermes_mp.core.pairing import Token, read_token, write_token
from hermes_mp.errors import BadOption, BoardLost, BoardUnknown, ModelNotFound, SystemCallFailed, UnsafeAddress
from hermes_mp.host.lan import new_keys

ROOT = Path(__file__).parents[2]
INIT = ("init", "--name", "shelf", "--address", "127.0.0.1:7950")


def refusal(config: Path, *words: object, stdin: str = "") -> tuple[int, str]:
    """Exit code, and the one line."""
    found = hermes_board(config, *words, stdin=stdin)
    (line,) = found.stderr.splitlines()
    assert line.startswith("hermes-board: ")
    assert found.stdout == ""
    return found.returncode, line


@pytest.mark.parametrize(("words", "code", "said"), [
    (("frob",), 2, "one of init, token, join"),
    (("token",), 23, "run hermes-board init"),
    (("init", "now"), 2, "init takes flags only"),
    (("init", "--address", "shelf:99999"), 2, "is no address; write HOST:PORT"),
    (("init", "--address", "127.0.0.1:0"), 2, "name the one that they shall use"),
    (("init", "--address", "0.0.0.0"), 2, "name the one that they shall use"),
    (("init", "--name", "a b"), 2, "--name takes a name"),
    (("init", "--expires", "5"), 2, "--expires takes a span"),
    (("init", "--expires"), 2, "--expires: expected one argument"),
    (("join",), 26, "standard input is empty"),
    (("join", "what"), 26, "begins with hermes1-"),
    (("join", "hermes1-abc"), 26, "copy the whole line once more"),
    (("join", "a", "b"), 2, "join takes [TOKEN] only"),
    (("revoke",), 2, "see hermes-board list"),
    (("revoke", "nobody"), 23, "'nobody' is paired with this machine"),
    (("list", "--jsn"), 2, "did you mean --json?"),
    (("serve", "--model-dir", "/nowhere"), 10, "/nowhere is no directory; name the directory of a model"),
    (("serve", "--model-dir", "/etc/passwd"), 10, "/etc/passwd is no directory"),
    (("serve", "--memory", "lots"), 2, "--memory takes"),
    (("serve", "--loaders", "0"), 2, "--loaders takes"),
    (("serve", "--threads", "x"), 2, "--threads takes"),
    (("serve", "--listen", "shelf:x"), 2, "is no address"),
    (("serve", "--listen", "192.0.2.1:7950"), 2, "nothing can listen on 192.0.2.1:7950"),
    (("serve", "here"), 2, "serve takes flags only"),
])  # fmt: skip
def test_wrong_words(words: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    found, line = refusal(tmp_path, *words)
    assert found == code, line
    assert said in line
    assert not (tmp_path / "hermes-mp" / "identity.json").exists()


def test_listening_beyond_loopback_without_keys(tmp_path: Path) -> None:
    code, line = refusal(tmp_path, "serve", "--listen", "0.0.0.0:0")
    assert code == UnsafeAddress.exit_code
    assert "run hermes-board init first" in line


def test_a_store_that_cannot_be_used_is_said_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words in (("list",), ("init", "--address", "127.0.0.1"), ("serve",), ("revoke", "x")):
        code, line = refusal(tmp_path / "file", *words)
        assert code == SystemCallFailed.exit_code
        assert f"{tmp_path}/file/hermes-mp" in line
        assert "set XDG_CONFIG_HOME" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_store_of_another_user(tmp_path: Path) -> None:
    assert hermes_board(tmp_path, *INIT).returncode == 0
    (tmp_path / "hermes-mp").chmod(0)
    try:
        assert refusal(tmp_path, "list")[0] == SystemCallFailed.exit_code
    finally:
        (tmp_path / "hermes-mp").chmod(0o700)


def test_a_board_does_not_serve_where_nobody_could_come_in(tmp_path: Path) -> None:
    assert hermes_board(tmp_path, *INIT).returncode == 0
    (tmp_path / "hermes-mp" / "pairings.json").write_text("[")
    code, line = refusal(tmp_path, "serve", "--listen", "127.0.0.1:0")
    assert code == BoardUnknown.exit_code
    assert "cannot be understood" in line


def test_every_flag_once(tmp_path: Path) -> None:
    model = gpt2(tmp_path / "models" / "gpt2", tokenizer=False)
    board, head = tmp_path / "board", tmp_path / "head"
    assert hermes_board(board, "--version").stdout.startswith("hermes-mp")
    for word in ("init", "token", "join", "list", "serve", "revoke"):
        assert f"usage: hermes-board {word}" in hermes_board(board, word, "--help").stdout
    made = hermes_board(board, *INIT, "--expires", "10m")
    assert "hermes-board join TOKEN" in made.stderr
    again = hermes_board(board, "init")
    assert read_token(again.stdout).address == "127.0.0.1:7950"  # a name and an address stay
    flags = ["--model-dir", model.parent, "--memory", "1GiB", "--loaders", 1, "--threads", 1, "--listen", "127.0.0.1:0"]
    with Served(board, *flags) as served:
        assert "encrypted, for paired heads only" in served.said
        second = Served(board, "--listen", served.address, await_ready=False)
        with second:
            assert second.ended() == BadOption.exit_code
        assert "Address already in use; choose another port" in second.said
        moved = hermes_board(board, "init", "--address", served.address)
        assert hermes_board(head, "join", "--name", "laptop", moved.stdout.strip()).returncode == 0
        told = json.loads(hermes_board(head, "list", "--json").stdout)
        assert [one["name"] for one in told["boards"]] == ["shelf"]
        assert told["this"]["address"] is None
        assert "  serves head laptop\n" in hermes_board(board, "list").stdout
        assert hermes_board(board, "revoke", "laptop").stdout == "head laptop forgotten\n"
        assert hermes_board(head, "revoke", "shelf").stdout == "board shelf forgotten\n"
        served.process.send_signal(signal.SIGTERM)
        assert served.ended() == 128 + signal.SIGTERM


@pytest.mark.parametrize(("flags", "said"), [
    ((), "it has no copy of a model"), (("--model-dir", "empty"), "no model lies in"),
])  # fmt: skip
def test_a_board_without_models_says_so(flags: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = [tmp_path / "empty" if word == "empty" else word for word in flags]
    with Served(tmp_path, *words, "--listen", "127.0.0.1:0") as board:
        board.wait_for(said)
        assert "in plaintext, on loopback only" in board.said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_model_directory_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir(mode=0)
    code, line = refusal(tmp_path, "serve", "--model-dir", tmp_path / "models")
    assert code == ModelNotFound.exit_code
    assert "cannot be read by this user" in line


def test_joining_a_board_that_does_not_serve(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    token = Token("shelf", f"127.0.0.1:{port}", new_keys().public, new_keys().secret, 2**31)
    code, line = refusal(tmp_path, "join", stdin=write_token(token) + "\n")
    assert code == BoardLost.exit_code
    assert "hermes-board serve" in line
    assert hermes_board(tmp_path, "list").stdout.count("\n") == 1  # of no board


def test_the_boards_file_that_we_show_is_one() -> None:
    path = ROOT / "cluster" / "boards.toml"
    assert read_boards_file(str(path)) == {"shelf": None, "attic": None}
    text = path.read_text()
    shown = text[text.index("# [here]") :].replace("# ", "")
    assert shown == '[here]\naddress = "127.0.0.1:7950"\n'


@pytest.mark.parametrize(("text", "kind", "said"), [
    ("", BoardUnknown, "names no board"),
    ("[shelf", BoardUnknown, "is no TOML"),
    ("shelf = 1", BoardUnknown, "a board is a table"),
    ("[head]", BoardUnknown, "not 'head'"),
    ("['a b']", BoardUnknown, "not 'a b'"),
    ("[shelf]\nport = 1", BoardUnknown, "may say `address` only, not `port`"),
    ("[shelf]\naddress = 1", BoardUnknown, "shelf: an address is a text"),
    ("[shelf]\naddress = 'x:y'", BadOption, "shelf: 'x:y' is no address"),
    ("[shelf]\naddress = '192.168.1.7:7946'", UnsafeAddress, "shelf: 192.168.1.7:7946 is not on loopback"),
])  # fmt: skip
def test_a_boards_file_that_is_wrong(text: str, kind: type[Exception], said: str, tmp_path: Path) -> None:
    path = tmp_path / "boards.toml"
    path.write_text(text)
    with pytest.raises(kind) as refusal:
        read_boards_file(str(path))
    assert said in str(refusal.value)
    assert str(path) in str(refusal.value)
