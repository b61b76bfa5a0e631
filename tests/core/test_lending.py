"""What a lender owes whom: every byte once and in order, whoever dies, leaves, or grants nothing."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_mp.board_messages import UnitLent, UnitPart
from hermes_mp.core.borrowing import Borrowing, why_not_worth_it
from hermes_mp.core.layout import ALIGN
from hermes_mp.core.lending import (
    GRANT_NBYTES,
    HANGS_NS,
    MAX_ORDERS,
    PATIENCE_NS,
    PIECE_NBYTES,
    PIECE_RANGES,
    SLOT_NBYTES,
    TRIES,
    Lent,
    Loans,
    Part,
    Refusal,
    pieces_of,
    reads_of,
    room_of,
    stretches,
)
from hermes_mp.errors import BadMessage, BoardLost, ReadFailed, WeightsChanged
from hermes_mp.messages import Range

MIB = 1 << 20
FILES = [64 * MIB, 3 * MIB + 17]


def unit(*parts: tuple[int, int, int, int]) -> tuple[Range, ...]:
    return tuple(Range(*part) for part in parts)


def loans(nbytes: int = 32 * MIB, slots: int = 8, loaders: int = 1) -> Loans[str, int]:
    found: Loans[str, int] = Loans(slots, nbytes)
    for number in range(loaders):
        found.started(number, 0)
    return found


def read_all(found: Loans[str, int]) -> int:
    """Every read that may be begins and ends; how many."""
    count = 0
    while (given := found.next_read()) is not None:
        found.read(given[0], given[1].number, 5, 0)
        count += 1
    for borrower, order, _ in found.to_look_at():
        found.looked(borrower, order, None)
    return count


def words(found: Loans[str, int], borrower: str) -> list[Part | Lent | Refusal]:
    said = []
    while (word := found.next_word(borrower)) is not None:
        found.said(borrower, word, 0)
        said.append(word)
    return said


@pytest.mark.parametrize(
    ("ranges", "filled"),
    [
        ((), []),
        (unit((0, 0, 10, 0)), [(0, 10)]),
        (unit((0, 0, 10, 0), (0, 90, 5, 10)), [(0, 15)]),
        (unit((0, 0, 10, 0), (1, 90, 5, 4096)), [(0, 10), (4096, 5)]),
        (unit((0, 0, 0, 0), (1, 90, 5, 4096)), [(4096, 5)]),
    ],
)
def test_stretches(ranges: tuple[Range, ...], filled: list[tuple[int, int]]) -> None:
    assert stretches(ranges) == filled


@st.composite
def orders(draw: st.DrawFn) -> tuple[Range, ...]:
    """Ranges one after the other, with gaps and without, aligned or not."""
    found, at = [], draw(st.sampled_from([0, 0, 5, ALIGN]))
    for _ in range(draw(st.integers(0, 6))):
        file = draw(st.integers(0, 1))
        nbytes = draw(st.sampled_from([0, 1, 100, ALIGN, 3 * MIB, PIECE_NBYTES, PIECE_NBYTES + 1]))
        offset = draw(st.integers(0, max(0, FILES[file] - nbytes)))
        found.append(Range(file, offset, min(nbytes, FILES[file] - offset), at))
        at += found[-1].nbytes + draw(st.sampled_from([0, 0, 7, ALIGN]))
    return tuple(found)


@given(orders())
def test_pieces_are_the_order_and_fit_their_slots(ranges: tuple[Range, ...]) -> None:
    """Byte for byte: which byte of which file comes to which byte of the slot."""
    wanted = [(one.at, one.at + one.nbytes, one.file, one.offset - one.at) for one in ranges if one.nbytes]
    got: list[tuple[int, int, int, int]] = []
    for at, reads in pieces_of(ranges):
        nbytes = sum(one.nbytes for one in reads)
        assert 0 < nbytes <= PIECE_NBYTES
        assert len(reads) <= PIECE_RANGES
        assert stretches(reads) == [(0, nbytes)]
        for one in reads:
            piece = (at + one.at, at + one.at + one.nbytes, one.file, one.offset - at - one.at)
            if got and got[-1][1] == piece[0] and got[-1][2:] == piece[2:] and piece[0] not in {w[0] for w in wanted}:
                got[-1] = (got[-1][0], piece[1], *piece[2:])
            else:
                got.append(piece)
    assert got == wanted


def test_a_read_keeps_its_place_modulo_a_block_and_has_room_for_its_last_one() -> None:
    found = loans()
    found.granted("a", 8 * MIB, 0)
    found.ordered("a", 1, unit((1, ALIGN, 3 * MIB + 17 - ALIGN, 3 * ALIGN + 5)), FILES, "m", 0)
    while (given := found.next_read()) is not None:
        piece = given[1]
        (read,) = reads_of(piece, 7)
        assert read.file == 8
        assert read.at % ALIGN == 5
        assert read.at + read.nbytes <= room_of(piece) <= SLOT_NBYTES
        found.read(given[0], piece.number, 0, 0)


def test_an_order_is_sent_whole_and_in_order_and_then_said_to_be() -> None:
    found = loans()
    found.granted("a", 8 * MIB, 0)
    assert found.ordered("a", 1, unit((0, 0, 5 * MIB, 0)), FILES, "m", 0) is None
    assert read_all(found) == 3
    said = words(found, "a")
    assert [(word.at, word.nbytes) for word in said if isinstance(word, Part)] == [(n * MIB, MIB) for n in range(5)]
    assert said[-1] == Lent(1, 5 * MIB, 5)
    assert found.is_idle
    found.check()


def test_pieces_that_are_read_in_another_order_are_sent_in_theirs() -> None:
    found = loans(loaders=2)
    found.granted("a", 8 * MIB, 0)
    found.ordered("a", 1, unit((0, 0, 4 * MIB, 0)), FILES, "m", 0)
    first, second = found.next_read(), found.next_read()
    assert first is not None
    assert second is not None
    found.read(second[0], second[1].number, 0, 0)
    assert words(found, "a") == []
    found.read(first[0], first[1].number, 0, 0)
    assert [word.at for word in words(found, "a") if isinstance(word, Part)] == [0, MIB, 2 * MIB, 3 * MIB]


def test_nothing_is_read_without_credit_and_all_of_it_with() -> None:
    found = loans()
    found.ordered("a", 1, unit((0, 0, 6 * MIB, 0)), FILES, "m", 0)
    assert read_all(found) == 0
    found.granted("a", PIECE_NBYTES - 1, 0)
    assert read_all(found) == 0
    found.granted("a", 1, 0)
    assert read_all(found) == 1
    assert len(words(found, "a")) == 2
    found.granted("a", 2 * PIECE_NBYTES, 0)
    assert read_all(found) == 2
    assert isinstance(words(found, "a")[-1], Lent)


def test_borrowers_take_turns_whatever_they_have_ordered() -> None:
    found = loans(nbytes=8 * PIECE_NBYTES, slots=8)
    for name, count in (("a", 20), ("b", 2), ("c", 2)):
        found.granted(name, 64 * MIB, 0)
        found.ordered(name, 1, unit((0, 0, count * PIECE_NBYTES, 0)), FILES, "m", 0)
    sent: dict[str, int] = defaultdict(int)
    for _ in range(4):
        read_all(found)
        for name in found.borrowers:
            nbytes = sum(word.nbytes for word in words(found, name) if isinstance(word, Part))
            sent[name] += nbytes
            found.granted(name, nbytes, 0)
        if sent["b"] == sent["c"] == 2 * PIECE_NBYTES:
            break
    assert sent["a"] <= 3 * PIECE_NBYTES


def test_who_grants_nothing_holds_nothing_and_is_named_after_a_while() -> None:
    found = loans(nbytes=4 * PIECE_NBYTES, slots=2)
    for name in ("mute", "good"):
        found.ordered(name, 1, unit((0, 0, 4 * MIB, 0)), FILES, "m", 0)
    found.granted("good", 8 * MIB, 0)
    assert read_all(found) == 2
    assert isinstance(words(found, "good")[-1], Lent)
    assert found.stuck(PATIENCE_NS - 1) == []
    assert found.stuck(PATIENCE_NS) == ["mute"]
    found.left("mute")
    assert found.is_idle


def test_who_takes_nothing_is_named_and_a_slow_disk_of_ours_is_not_its_fault() -> None:
    found = loans()
    found.granted("a", 8 * MIB, 0)
    found.ordered("a", 1, unit((0, 0, 2 * MIB, 0)), FILES, "m", 0)
    given = found.next_read()
    assert given is not None
    assert found.stuck(PATIENCE_NS) == []
    found.read(given[0], given[1].number, 0, 10)
    assert found.stuck(PATIENCE_NS) == []
    assert found.stuck(PATIENCE_NS + 10) == ["a"]


@pytest.mark.parametrize(
    ("number", "ranges", "why"),
    [
        (0, unit((0, 0, 1, 0)), "came after order 3"),
        (3, unit((0, 0, 1, 0)), "came after order 3"),
        (4, unit((2, 0, 1, 0)), "there is no file 2"),
        (4, unit((0, FILES[0], 1, 0)), "not all in a file"),
        (4, unit((1, 2**62, 2**62, 0)), "not all in a file"),
        (4, unit((0, 0, 5, 0), (0, 0, 5, 4)), "not one after the other"),
    ],
)
def test_nonsense_is_refused(number: int, ranges: tuple[Range, ...], why: str) -> None:
    found = loans()
    found.ordered("a", 3, (), FILES, "m", 0)
    refusal = found.ordered("a", number, ranges, FILES, "m", 0)
    assert refusal is not None
    assert refusal.order == number
    assert isinstance(refusal.error, BadMessage)
    assert why in str(refusal.error)


def test_orders_without_end_are_refused() -> None:
    found = loans()
    answers = [found.ordered("a", number, unit((0, 0, 1, 0)), FILES, "m", 0) for number in range(MAX_ORDERS + 1)]
    assert [answer is None for answer in answers] == [True] * MAX_ORDERS + [False]


def test_an_order_of_nothing_says_that_the_files_are_what_they_were() -> None:
    found = loans()
    found.ordered("a", 1, (), FILES, "m", 0)
    assert found.to_look_at() == [("a", 1, "m")]
    assert words(found, "a") == []
    found.looked("a", 1, None)
    assert words(found, "a") == [Lent(1, 0, 0)]


def test_a_file_that_has_changed_is_said_in_place_of_the_end() -> None:
    found = loans()
    found.granted("a", 8 * MIB, 0)
    found.ordered("a", 1, unit((0, 0, MIB, 0)), FILES, "m", 0)
    given = found.next_read()
    assert given is not None
    found.read(given[0], given[1].number, 0, 0)
    assert len(words(found, "a")) == 1
    error = WeightsChanged("it was replaced")
    found.looked("a", 1, error)
    assert words(found, "a") == [Refusal(1, error)]


def test_a_read_that_failed_as_its_file_has_changed_says_that() -> None:
    found = loans()
    found.granted("a", 8 * MIB, 0)
    found.ordered("a", 1, unit((0, 0, MIB, 0)), FILES, "m", 0)
    given = found.next_read()
    assert given is not None
    found.broken(given[0], given[1].number, ReadFailed("it ends too soon"))
    change = WeightsChanged("it was truncated")
    found.looked("a", 1, change)
    assert words(found, "a") == [Refusal(1, change)]


def test_what_a_dead_loader_was_at_is_read_by_another_and_not_for_ever() -> None:
    found = loans(loaders=TRIES + 1)
    found.granted("a", 8 * MIB, 0)
    found.ordered("a", 1, unit((0, 0, 2 * MIB, 0)), FILES, "m", 0)
    for _ in range(TRIES):
        given = found.next_read()
        assert given is not None
        found.gone(given[0])
        found.check()
    assert found.next_read() is None
    (refusal,) = words(found, "a")
    assert isinstance(refusal, Refusal)
    assert "loaders died" in str(refusal.error)
    assert found.is_idle


def test_a_read_that_fails_ends_its_order_and_not_the_next() -> None:
    found = loans(loaders=2)
    found.granted("a", 8 * MIB, 0)
    found.ordered("a", 1, unit((0, 0, 4 * MIB, 0)), FILES, "m", 0)
    found.ordered("a", 2, unit((0, 0, 2 * MIB, 0)), FILES, "m", 0)
    first, second = found.next_read(), found.next_read()
    assert first is not None
    assert second is not None
    error = ReadFailed("the disk")
    found.broken(first[0], first[1].number, error)
    found.check()
    found.read(second[0], second[1].number, 0, 0)
    assert words(found, "a") == []
    assert found.to_look_at() == [("a", 1, "m")]
    found.looked("a", 1, None)
    assert words(found, "a") == [Refusal(1, error)]
    read_all(found)
    assert isinstance(words(found, "a")[-1], Lent)
    found.check()


def test_a_borrower_that_leaves_frees_all_but_what_is_being_read() -> None:
    found = loans(slots=2)
    found.granted("a", 8 * MIB, 0)
    found.ordered("a", 1, unit((0, 0, 8 * MIB, 0)), FILES, "m", 0)
    given = found.next_read()
    assert given is not None
    found.left("a")
    assert not found.is_idle
    found.check()
    found.read(given[0], given[1].number, 0, 0)
    assert found.is_idle
    found.check()


def test_a_loader_that_hangs_is_named_and_one_at_rest_is_not() -> None:
    found = loans(loaders=2)
    found.granted("a", 8 * MIB, 0)
    found.ordered("a", 1, unit((0, 0, 2 * MIB, 0)), FILES, "m", 0)
    given = found.next_read()
    assert given is not None
    for number in range(2):
        found.seen(number, 0, HANGS_NS)
    assert found.hanging(HANGS_NS) == [given[0]]
    found.seen(given[0], 1, HANGS_NS)
    assert found.hanging(HANGS_NS) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 3))
def test_whatever_happens_every_order_ends_once_and_every_byte_comes_once(seed: int, slots: int, count: int) -> None:
    """Borrowers as they are (`core.borrowing`), loaders that die, reads that fail, a borrower that leaves."""
    chance = random.Random(seed)
    found = loans(nbytes=chance.choice([PIECE_NBYTES, 6 * MIB, 32 * MIB]), slots=slots, loaders=2)
    names = [f"b{number}" for number in range(count)]
    theirs = {name: Borrowing() for name in names}
    ended: dict[str, list[int]] = {name: [] for name in names}
    asked: dict[str, int] = dict.fromkeys(names, 0)
    loaders, reading, last = [0, 1], [], 0
    for name in names:
        found.granted(name, 8 * MIB, 0)
    for step in range(4000):
        done = step > 400 and found.is_idle
        if done:
            break
        what = chance.random()
        name = chance.choice(names)
        if what < 0.1 and step <= 400 and asked[name] < 12:
            asked[name] += 1
            ranges = unit((0, chance.randrange(MIB), chance.randrange(6 * MIB), 0))
            theirs[name].order(asked[name], ranges)
            assert found.ordered(name, asked[name], ranges, FILES, "m", step) is None or len(ended[name]) < asked[name]
        elif what < 0.45 and (given := found.next_read()) is not None:
            assert given[1].number > last  # a loader leaves out what is not newer than what it had
            last = given[1].number
            reading.append((given[0], last))
        elif what < 0.7 and reading:
            loader, number = reading.pop(chance.randrange(len(reading)))
            if chance.random() < 0.03:
                found.broken(loader, number, ReadFailed("the disk"))
            else:
                found.read(loader, number, 1, step)
        elif what < 0.72:
            dead = loaders.pop(0)
            found.gone(dead)
            reading = [(loader, number) for loader, number in reading if loader != dead]
            loaders.append(dead + 2)
            found.started(dead + 2, step)
        else:
            for borrower, order, _ in found.to_look_at():
                found.looked(borrower, order, None)
            word = found.next_word(name)
            if isinstance(word, Part):
                assert theirs[name].place(UnitPart(word.order, word.at, word.nbytes)) == word.at
                found.said(name, word, step)
            elif isinstance(word, Lent):
                theirs[name].complete(UnitLent(word.order, word.nbytes, 0))
                ended[name].append(word.order)
                found.said(name, word, step)
            elif word is not None:
                assert theirs[name].failed(word.order)
                ended[name].append(word.order)
                found.said(name, word, step)
            found.granted(name, theirs[name].grant(), step)
        found.check()
    assert found.is_idle
    assert all(numbers == sorted(set(numbers)) for numbers in ended.values())


def test_lost_loaders_end_what_was_ordered() -> None:
    found = loans(loaders=0)
    found.granted("a", 8 * MIB, 0)
    found.ordered("a", 1, unit((0, 0, 8 * MIB, 0)), FILES, "m", 0)
    error = BoardLost("none is left")
    found.lost(error)
    assert words(found, "a") == [Refusal(1, error)]


# --- the borrower's side


def test_parts_go_where_the_order_says_and_nowhere_else() -> None:
    mine = Borrowing()
    mine.order(4, unit((0, 0, 3 * MIB, 0), (0, 9 * MIB, 10, 4 * MIB)))
    mine.order(5, unit((0, 0, 10, 0)))
    assert mine.place(UnitPart(4, 0, MIB)) == 0
    for wrong in [(4, 0, MIB), (4, MIB, 3 * MIB), (4, MIB, 0), (5, 0, 10), (9, 0, 1), (4, 4 * MIB, 10)]:
        with pytest.raises(BadMessage):
            mine.place(UnitPart(*wrong))
    assert mine.place(UnitPart(4, MIB, 2 * MIB)) == MIB
    with pytest.raises(BadMessage, match="10 bytes lack"):
        mine.complete(UnitLent(4, 3 * MIB + 10, 0))
    assert mine.place(UnitPart(4, 4 * MIB, 10)) == 4 * MIB
    mine.complete(UnitLent(4, 3 * MIB + 10, 0))
    assert 4 not in mine
    assert mine.failed(5)
    assert not mine.failed(5)


def test_grants_are_said_in_large_steps_and_all_at_the_end() -> None:
    mine = Borrowing()
    mine.order(1, unit((0, 0, GRANT_NBYTES + 5, 0)))
    mine.place(UnitPart(1, 0, 5))
    assert mine.grant() == 0
    mine.place(UnitPart(1, 5, GRANT_NBYTES))
    assert mine.grant() == GRANT_NBYTES + 5
    assert mine.grant() == 0
    mine.complete(UnitLent(1, GRANT_NBYTES + 5, 0))
    mine.order(2, unit((0, 0, 5, 0)))
    mine.place(UnitPart(2, 0, 5))
    mine.complete(UnitLent(2, 5, 0))
    assert mine.grant() == 5


@pytest.mark.parametrize(
    ("local", "lent", "pays"),
    [
        (45e6, 100e6, True), (45e6, None, True), (None, 100e6, True), (3e9, 100e6, False), (3e9, 3e9, False),
        (900e6, 3e9, True),
    ],
)  # fmt: skip
def test_next_to_a_fast_disk_borrowing_is_said_not_to_pay(local: float | None, lent: float | None, pays: bool) -> None:
    word = why_not_worth_it("nas", local, lent)
    assert (word == "") == pays
    assert pays or "the disk here gives 3000 MB/s and nas at most" in word
