"""A store of its own for each test, a board process, and a head that is paired with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from campaigns.examined import Examined

from hermes_mp.host.keys import KeyPair
from hermes_mp.host.lan import LanLink, new_keys
from hermes_mp.host.pairings import Identity, Store


class Board:
    """A process of campaigns/lan_board.py, with the store in `$XDG_CONFIG_HOME`."""

    def __init__(self, process: Examined, store: Store, heads: dict[str, KeyPair]) -> None:
        self.process, self.store, self._heads = process, store, heads
        self.address = self.next().removeprefix("ready ")
        identity = store.identity()
        assert identity is not None
        self.key = identity.keys.public

    def next(self) -> str:
        return self.process.answer()

    def link(self, head: str = "laptop", server_key: str | None = None) -> LanLink:
        return LanLink("shelf", self.address, self._heads[head], server_key or self.key)

    def forget(self, head: str) -> None:
        with self.store.change(time.time()) as pairings:
            del pairings.heads[head]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Store()


@pytest.fixture
def start_board(store: Store) -> Iterator[Callable[..., Board]]:
    """Starts boards that know the heads `laptop` and `desk`, with these words."""
    store.keep_identity(Identity("shelf", "127.0.0.1:7946", new_keys()))
    heads = {"laptop": new_keys(), "desk": new_keys()}
    with store.change(0) as pairings:
        pairings.heads = {name: keys.public for name, keys in heads.items()}
    with ExitStack() as stack:

        def start(*words: object) -> Board:
            process = Examined("campaigns.lan_board", *words)
            stack.callback(process.close)
            return Board(process, store, heads)

        yield start


@pytest.fixture
def board(start_board: Callable[..., Board]) -> Board:
    return start_board()
