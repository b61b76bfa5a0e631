"""Lost boards are tried again before a request, without making requests wait for boards that stay away."""

from __future__ import annotations

import pytest

from hermes_mp.agents import boards as module
from hermes_mp.agents.board_link import BoardEntry, BoardLink, LostBoard
from hermes_mp.agents.boards import LEFT_ALONE, Boards
from hermes_mp.agents.greeting import Greeting


class Network:
    """Greetings that take time; `there` is who answers."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s, self.there, self.tried = 100.0, set[str](), list[str]()
        self.takes_s = 1.0
        patch.setattr(module.time, "monotonic", lambda: self.now_s)
        patch.setattr(Boards, "greet", lambda boards, name, deadline_s: self.greet(boards, name))

    def greet(self, boards: Boards, name: str) -> None:
        self.tried.append(name)
        if name not in self.there:
            self.now_s += self.takes_s
            raise LostBoard(name, "away")
        boards.linked[name]._lan = object()  # type: ignore[assignment]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


@pytest.fixture
def boards() -> Boards:
    entries = [BoardEntry(name, "127.0.0.1:9", "") for name in ("near", "far")]
    return Boards(entries, None, Greeting("1", "head", "model", ""), print, print, -1)


def test_who_is_there_again_is_greeted_at_once(network: Network, boards: Boards) -> None:
    network.there = {"near"}
    assert boards.come_back() == ["near"]
    assert boards.come_back() == []
    assert network.tried == ["near", "far"]


def test_one_that_lets_us_wait_is_left_alone_for_a_while(network: Network, boards: Boards) -> None:
    assert boards.come_back() == []
    network.there = {"near", "far"}
    network.now_s += LEFT_ALONE - 2  # `far` was tried a second later
    assert boards.come_back() == []
    network.now_s += 1
    assert boards.come_back() == ["near"]
    network.now_s += 1
    assert boards.come_back() == ["far"]


def test_one_that_refuses_the_connection_is_tried_each_time(network: Network, boards: Boards) -> None:
    network.takes_s = 0.0
    for _ in range(3):
        assert boards.come_back() == []
    assert network.tried == ["near", "far"] * 3


def test_one_that_was_refused_for_good_is_not(network: Network, boards: Boards) -> None:
    boards.linked["far"].refuses = True
    boards.come_back()
    assert network.tried == ["near"]


def test_one_that_only_lends_is_not(network: Network, boards: Boards) -> None:
    boards.linked["far"].lends = True
    boards.come_back()
    assert network.tried == ["near"]


def test_a_greeting_that_another_boards_loss_breaks_off_has_not_been(
    monkeypatch: pytest.MonkeyPatch, boards: Boards
) -> None:
    class Lan:
        def close(self, last_words: bool) -> None:
            pass

    def lose_near(*_: object) -> None:
        raise LostBoard("near", "away")

    monkeypatch.setattr(BoardLink, "greet", lambda one, *_: setattr(one, "_lan", Lan()))
    monkeypatch.setattr(Boards, "_await", lose_near)
    with pytest.raises(LostBoard, match="away"):
        boards.greet("far")
    assert boards.there == []
