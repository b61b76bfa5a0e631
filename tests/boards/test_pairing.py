"""Pairing by `hermes-board`, with real processes: tokens good once and for a while, and what lies on the disk after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from campaigns.examined import Examined
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_mp.agents.gatekeeper import Gatekeeper
from hermes_mp.board_messages import Paired, PairHead, Refused, StopStage
from hermes_mp.config import is_name, parse_span
from hermes_mp.core.pairing import Token, is_key, read_token, write_token
from hermes_mp.errors import BoardLost, BoardUnknown, NotAllowed, TokenRefused, UnsafeAddress
from hermes_mp.host.lan import LanLink, keys_of, new_keys
from hermes_mp.host.pairings import Identity, Store

ROOT = Path(__file__).parents[2]


def token_of(board, expires_s: int | None = None) -> Token:  # type: ignore[no-untyped-def]
    """An open token of a running board, as `hermes-board token` would make it."""
    keys, until_s = new_keys(), int(time.time()) + 60 if expires_s is None else expires_s
    with board.store.change(0) as pairings:
        pairings.tokens[keys.public] = until_s
    return Token("shelf", board.address, board.key, keys.secret, until_s)


def hermes_board(config: Path, *words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hermes_mp.cli.board", *map(str, words)]
    environment = os.environ | {"XDG_CONFIG_HOME": str(config), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, input=stdin, env=environment, timeout=60, check=False
    )


def use(token: Token, message: object) -> object:
    with closing(LanLink("shelf", token.address, keys_of(token.secret), token.key)) as link:
        link.send(message)
        return link.receive(2.0)


def test_join_pairs_and_the_token_is_used_up(board, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    line = write_token(token_of(board))
    joined = hermes_board(tmp_path / "head", "join", "--name", "cabin", stdin=line + "\n")
    assert (joined.returncode, joined.stdout, joined.stderr) == (
        0, f"paired with board shelf at {board.address}\n", ""
    )  # fmt: skip
    head = Store(tmp_path / "head" / "hermes-mp")
    identity, paired = head.identity(), head.pairings().boards["shelf"]
    assert identity is not None
    with closing(LanLink("shelf", paired.address, identity.keys, paired.key)) as link:
        link.send(StopStage(1))
        while board.next() != "cabin StopStage":
            pass
    again = hermes_board(tmp_path / "head", "join", line)
    assert again.returncode == TokenRefused.exit_code
    assert "was used" in again.stderr
    assert json.loads(hermes_board(tmp_path / "head", "list", "--json").stdout)["boards"] == [
        {"name": "shelf", "address": board.address, "key": board.key}
    ]
    assert hermes_board(tmp_path / "config", "revoke", "cabin").returncode == 0
    with pytest.raises(NotAllowed):
        LanLink("shelf", paired.address, identity.keys, paired.key)


def test_a_bearer_pairs_once_and_says_nothing_else(board) -> None:  # type: ignore[no-untyped-def]
    token = token_of(board)
    assert use(token, StopStage(1)) is None
    key = new_keys().public
    for message in (PairHead("x", "cabin"), PairHead(key, "a b"), PairHead(key, ""), PairHead(key, "laptop")):
        refusal = use(token, message)
        assert isinstance(refusal, Refused)
        assert refusal.exit_code == TokenRefused.exit_code
    assert use(token, PairHead(key, "cabin")) == Paired("shelf")
    with pytest.raises(NotAllowed):
        use(token, PairHead(new_keys().public, "other"))
    assert set(board.store.pairings().heads) == {"laptop", "desk", "cabin"}


def test_a_token_that_is_replayed_on_an_open_connection_is_refused(board) -> None:  # type: ignore[no-untyped-def]
    token = token_of(board)
    with closing(LanLink("shelf", token.address, keys_of(token.secret), token.key)) as link:
        for number in range(5):
            link.send(PairHead(new_keys().public, f"head-{number}"))
        assert link.receive(2.0) == Paired("shelf")
        with pytest.raises(BoardLost):
            link.receive(2.0)
    assert len(board.store.pairings().heads) == 3


def test_an_expired_token_is_refused(board, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    line = write_token(token_of(board, expires_s=int(time.time()) - 1))
    refused = hermes_board(tmp_path / "head", "join", line)
    assert refused.returncode == TokenRefused.exit_code
    assert "has expired" in refused.stderr
    assert line not in refused.stderr


def test_a_token_of_a_board_that_has_other_keys_now(board, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = token_of(board)
    other = Token("shelf", made.address, new_keys().public, made.secret, made.expires_s)
    refused = hermes_board(tmp_path / "head", "join", write_token(other))
    assert refused.returncode == TokenRefused.exit_code
    assert len(refused.stderr.splitlines()) == 1


TOKEN = Token("shelf", "192.168.1.7:7946", new_keys().public, new_keys().secret, 1_800_000_000)


def test_a_token_survives_a_terminal() -> None:
    line = write_token(TOKEN)
    assert read_token(f"  {line[:70]}\n{line[70:]} \n") == TOKEN
    assert "\n" not in line
    assert TOKEN.secret not in repr(TOKEN)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 400), put=st.text("abcXYZ019-_ =+/$\n", max_size=3), take=st.integers(0, 3))
def test_a_mistyped_token_is_refused_and_not_repeated(at: int, put: str, take: int) -> None:
    line = write_token(TOKEN)
    changed = line[:at] + put + line[at + take :]
    if "".join(changed.split()) == line:
        assert read_token(changed) == TOKEN
        return
    with pytest.raises(TokenRefused) as refusal:
        read_token(changed)
    assert TOKEN.secret not in refusal.value.line()
    assert line[20:40] not in refusal.value.line()


def test_random_tokens_are_refused() -> None:
    chance = Random(1)
    for _ in range(500):
        text = "".join(chance.choices("hermes1-abcdefABCDEF012_é\0", k=chance.choice((1, 8, 20, 200, 2000))))
        for line in (text, "hermes1-" + text):
            with pytest.raises(TokenRefused):
                read_token(line)


def test_keys_names_and_spans() -> None:
    assert is_key(new_keys().public)
    assert not any(map(is_key, ("", "0" * 39, "0" * 41, "#" * 40, "é" * 40, None, 7)))
    assert is_name("board-a.lan_2")
    assert not any(map(is_name, ("", "-x", ".x", "a b", "x" * 41, "é", "token:1", None)))
    assert [parse_span(text) for text in ("90s", "10m", "1h", "7d")] == [90, 600, 3600, 604800]
    for text in ("", "1", "h", "-1h", "0m", "1.5h", "400d", "1h30m"):
        with pytest.raises(ValueError, match="span"):
            parse_span(text)


def test_init_makes_files_for_us_alone_and_keeps_the_keys(tmp_path: Path) -> None:
    made = hermes_board(tmp_path, "init", "--name", "shelf", "--address", "127.0.0.1", "--expires", "10m")
    assert made.returncode == 0
    token = read_token(made.stdout)
    assert (token.board, token.address) == ("shelf", "127.0.0.1:7946")
    assert 500 < token.expires_s - time.time() <= 600
    assert len(made.stderr.splitlines()) == 3
    folder = tmp_path / "hermes-mp"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {"hermes-mp": 0o700, "identity.json": 0o600, "pairings.json": 0o600, "lock": 0o600}
    again = read_token(hermes_board(tmp_path, "init").stdout)
    assert (again.board, again.address, again.key) == (token.board, token.address, token.key)
    assert again.secret != token.secret
    identity = Store(folder).identity()
    assert identity is not None
    for text in (made.stderr, repr(identity), hermes_board(tmp_path, "list", "--json").stdout):
        assert identity.keys.secret not in text
    assert identity.keys.secret not in (folder / "pairings.json").read_text()
    assert token.secret not in (folder / "pairings.json").read_text()


def test_keys_that_others_can_read_are_refused(store: Store) -> None:
    store.keep_identity(Identity("shelf", "127.0.0.1:7946", new_keys()))
    os.chmod(store.folder / "identity.json", 0o640)
    with pytest.raises(UnsafeAddress, match=r"mode 0640"):
        store.identity()
    refused = hermes_board(store.folder.parent, "token")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (UnsafeAddress.exit_code, 1)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "null", '{"boards": {}, "heads": {"a": 1}, "tokens": {}}', "[" * 100_000,
     '{"boards": {"x": {"address": "?", "key": "k"}}, "heads": {}, "tokens": {}}'],
)  # fmt: skip
def test_a_broken_store_lets_nobody_in_and_is_one_line(store: Store, text: str) -> None:
    with store.change(0) as pairings:
        pairings.heads["laptop"] = key = new_keys().public
    keeper = Gatekeeper(store, "shelf")
    assert keeper.allow(key) == "laptop"
    (store.folder / "pairings.json").write_text(text)
    assert keeper.allow(key) is None
    assert "cannot be understood" in keeper.trouble
    with pytest.raises(BoardUnknown):
        store.pairings()


def test_several_processes_change_the_store_at_once(store: Store, tmp_path: Path) -> None:
    store.keep_identity(Identity("shelf", "127.0.0.1:7946", new_keys()))
    command = [sys.executable, "-m", "hermes_mp.cli.board", "token"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    makers = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(6)]
    assert [maker.wait(60) for maker in makers] == [0] * 6
    assert len(store.pairings().tokens) == 6


def test_no_secret_is_among_the_words_of_a_process(store: Store, start_board: Callable[..., object]) -> None:
    board = start_board()
    identity = store.identity()
    assert identity is not None
    mute = token_of(board)
    with _mute() as address:
        line = write_token(Token("shelf", address, mute.key, mute.secret, mute.expires_s))
        joining = Examined("hermes_mp.cli.board", "join", line)
        try:
            words = Path(f"/proc/{joining.pid}/cmdline")
            until_s = time.monotonic() + 20
            while "hermes-board join" not in words.read_text():
                assert time.monotonic() < until_s
            assert line not in words.read_text()
        finally:
            joining.close()
    assert identity.keys.secret not in Path(f"/proc/{board.process.pid}/cmdline").read_text()  # type: ignore[attr-defined]


class _mute:
    """An address where somebody listens and never answers."""

    def __enter__(self) -> str:
        import socket

        self._socket = socket.create_server(("127.0.0.1", 0))
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._socket.close()
