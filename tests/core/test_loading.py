"""A loader's mind: orders in, reads and news out."""

from __future__ import annotations

import pytest

from hermes_mp.core.loading import Exit, LoadBroken, Loading, LoadRead, Open, OpenFailed, Read, Send
from hermes_mp.errors import BadMessage, CheckpointBroken, ReadFailed
from hermes_mp.messages import (
    Epoch,
    LoaderNo,
    LoadFailed,
    LoadUnit,
    OpenFile,
    Range,
    StopLoader,
    Ticket,
    UnitLoaded,
    UnitNo,
)

FILE = OpenFile(0, "/models/a.safetensors", 1000)
FIRST, SECOND = Range(0, 100, 40, 4), Range(0, 300, 20, 44)


def order(ticket: int, *ranges: Range, epoch: int = 3, base: int = 64, room: int = 64) -> LoadUnit:
    return LoadUnit(Epoch(epoch), Ticket(ticket), UnitNo(7), base, room, ranges)


def failed(ticket: int, exit_code: int, text: str) -> list[Send]:
    return [Send(LoadFailed(LoaderNo(1), Epoch(3), Ticket(ticket), exit_code, text))]


@pytest.fixture
def loading() -> Loading:
    mind = Loading(LoaderNo(1), Epoch(3), 1024)
    told = OpenFile(0, "/models/a.safetensors", 1000, 4096, direct=False)
    assert mind.handle(told, 0) == [Open(0, "/models/a.safetensors", 1000, 4096, direct=False)]
    assert mind.handle(FILE, 0) == [Open(0, "/models/a.safetensors", 1000)]
    return mind


def loaded(ticket: int, nbytes: int, direct: bool, started_ns: int, ended_ns: int) -> Send:
    return Send(UnitLoaded(LoaderNo(1), Epoch(3), Ticket(ticket), nbytes, direct, started_ns, ended_ns))


def test_a_unit_is_read_and_told(loading: Loading) -> None:
    assert loading.handle(order(5, FIRST, SECOND), 10) == [Read(order(5, FIRST, SECOND))]
    assert loading.handle(LoadRead(Ticket(5), False, 12), 30) == [loaded(5, 60, False, 12, 30)]


def test_the_longest_read_of_a_load_is_told(loading: Loading) -> None:
    loading.handle(order(5, FIRST), 10)
    told = UnitLoaded(LoaderNo(1), Epoch(3), Ticket(5), 40, True, 12, 30, 17)
    assert loading.handle(LoadRead(Ticket(5), True, 12, 17), 30) == [Send(told)]


def test_two_loads_are_read_side_by_side_and_their_times_add_up(loading: Loading) -> None:
    loading.handle(order(5, FIRST), 10)
    assert loading.handle(order(6, SECOND), 11) == [Read(order(6, SECOND))]
    assert loading.handle(LoadRead(Ticket(5), True, 10), 20) == [loaded(5, 40, True, 10, 20)]
    assert loading.handle(LoadRead(Ticket(6), True, 15), 30) == [loaded(6, 20, True, 20, 30)]


def test_the_second_load_may_end_first(loading: Loading) -> None:
    loading.handle(order(5, FIRST), 10)
    loading.handle(order(6, SECOND), 11)
    assert loading.handle(LoadRead(Ticket(6), True, 15), 20) == [loaded(6, 20, True, 15, 20)]
    assert loading.handle(LoadRead(Ticket(5), True, 10), 21) == [loaded(5, 40, True, 20, 21)]


def test_a_repeated_or_old_order_is_dropped(loading: Loading) -> None:
    loading.handle(order(5, FIRST), 10)
    assert loading.handle(order(5, FIRST), 11) == []
    loading.handle(LoadRead(Ticket(5), True, 11), 20)
    assert loading.handle(order(5, FIRST), 21) == []
    assert loading.handle(order(4, FIRST), 22) == []
    assert loading.handle(order(6, FIRST, epoch=2), 23) == []
    assert loading.handle(order(6, FIRST), 24) == [Read(order(6, FIRST))]


def test_the_end_of_a_load_is_told_once(loading: Loading) -> None:
    loading.handle(order(5, FIRST), 10)
    loading.handle(LoadRead(Ticket(5), True, 11), 20)
    assert loading.handle(LoadRead(Ticket(5), True, 11), 21) == []
    assert loading.handle(LoadBroken(Ticket(5), 31, "old"), 21) == []


def test_a_load_that_breaks_is_told_and_the_next_one_goes_on(loading: Loading) -> None:
    loading.handle(order(5, FIRST, SECOND), 10)
    loading.handle(order(6, FIRST), 10)
    text = "a.safetensors: input/output error"
    assert loading.handle(LoadBroken(Ticket(5), ReadFailed.exit_code, text), 20) == failed(5, 31, text)
    assert loading.handle(LoadRead(Ticket(6), True, 11), 30) == [loaded(6, 40, True, 11, 30)]


@pytest.mark.parametrize(
    ("bad", "exit_code", "text"),
    [
        (order(5, Range(0, 0, 61, 4)), BadMessage.exit_code, "unit 7: a range lies outside of its slot"),
        (order(5, Range(0, 0, 4, -1)), BadMessage.exit_code, "unit 7: a range lies outside of its slot"),
        (order(5, FIRST, Range(0, 0, 65, 0)), BadMessage.exit_code, "unit 7: a range lies outside of its slot"),
        (order(5, Range(0, -1, 4, 0)), BadMessage.exit_code, "unit 7: a range lies outside of its slot"),
        (order(5, Range(1, 0, 4, 0)), BadMessage.exit_code, "unit 7: file 1 was never named"),
        (order(5, FIRST, base=961), BadMessage.exit_code, "unit 7: its slot lies outside of the arena"),
        (order(5, FIRST, base=-1), BadMessage.exit_code, "unit 7: its slot lies outside of the arena"),
        (
            order(5, Range(0, 961, 40, 0)),
            CheckpointBroken.exit_code,
            "/models/a.safetensors: unit 7 lies past the end of the file",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_a_byte_is_read(
    loading: Loading, bad: LoadUnit, exit_code: int, text: str
) -> None:
    assert loading.handle(bad, 10) == failed(5, exit_code, text)
    assert loading.handle(order(6, FIRST), 11) == [Read(order(6, FIRST))]


def test_the_edges_fit(loading: Loading) -> None:
    edge = Range(0, 936, 64, 0)
    assert loading.handle(order(5, edge, base=960), 0) == [Read(order(5, edge, base=960))]


def test_stop_ends_at_once_when_idle_and_after_what_was_ordered_when_busy(loading: Loading) -> None:
    loading.handle(order(5, FIRST), 10)
    loading.handle(order(6, FIRST), 11)
    assert loading.handle(StopLoader(), 12) == []
    assert loading.handle(order(7, FIRST), 13) == []
    assert loading.handle(LoadRead(Ticket(5), True, 10), 20) == [loaded(5, 40, True, 10, 20)]
    assert loading.handle(LoadBroken(Ticket(6), 31, "no"), 21) == [*failed(6, 31, "no"), Exit()]
    idle = Loading(LoaderNo(1), Epoch(3), 1024)
    assert idle.handle(StopLoader(), 0) == [Exit()]


def test_a_file_that_could_not_be_opened_is_tried_again_with_the_next_order(loading: Loading) -> None:
    again = Open(0, "/models/a.safetensors", 1000)
    loading.handle(OpenFailed(0, ReadFailed.exit_code, "input/output error"), 0)
    assert loading.handle(order(5, FIRST), 1) == [*failed(5, ReadFailed.exit_code, "input/output error"), again]
    assert loading.handle(order(6, FIRST), 2) == [Read(order(6, FIRST))]
