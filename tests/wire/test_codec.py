"""The codec: every message comes back, every wrong one is refused with its path. The campaign `wire` fuzzes it."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

import msgpack
import pytest
from any_message import UNIONS, any_of, is_well_typed, kinds_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_mp import messages
from hermes_mp.errors import BadMessage, InvariantBroken
from hermes_mp.host.codec import MAX_INT, pack, unpack
from hermes_mp.messages import (
    MAX_FRAME_NBYTES,
    MAX_RANGES,
    MAX_TEXT_CHARS,
    AskUnit,
    ComputeFailed,
    FromCompute,
    LoadUnit,
    OpenFile,
    Range,
    StopLoader,
    ToCompute,
    ToLoader,
    UnitDescribed,
    UnitReady,
)

KINDS = [(name, kind) for name, union in UNIONS.items() for kind in kinds_of(union)]
RANGE = Range(0, 0, 1, 0)


def frame_of(kind: str, *fields: Any) -> bytes:
    packed: bytes = msgpack.packb([kind, list(fields)])
    return packed


# --- what is legal comes back


@pytest.mark.parametrize(("union", "kind"), KINDS, ids=lambda it: getattr(it, "__name__", it))
def test_every_message_of_every_union_comes_back(union: str, kind: type) -> None:
    chance = Random(kind.__name__)
    for _ in range(50):
        message = any_of(kind, chance)
        frame = pack(message)
        assert unpack(frame, UNIONS[union]) == message
        assert is_well_typed(unpack(memoryview(frame), UNIONS[union]), kind)


def test_a_kind_is_of_one_union_only_and_every_message_of_one() -> None:
    names = [kind.__name__ for _, kind in KINDS]
    assert len(names) == len(set(names))
    declared = {c.__name__ for c in vars(messages).values() if dataclasses.is_dataclass(c)}
    assert declared - set(names) == {"Range", "RunPlan", "LayerRange", "LayerCalls", "TensorSpec"}


def test_the_largest_of_everything_fits_a_frame() -> None:
    widest = Range(MAX_INT, MAX_INT, MAX_INT, MAX_INT)
    load = LoadUnit(MAX_INT, MAX_INT, MAX_INT, MAX_INT, MAX_INT, (widest,) * MAX_RANGES)
    assert unpack(pack(load), ToLoader) == load
    named = OpenFile(MAX_INT, "\N{ROCKET}" * MAX_TEXT_CHARS, MAX_INT)
    assert unpack(pack(named), ToLoader) == named


# --- what is not is refused, and the text names the path

REFUSED = {
    "empty": (b"", "no msgpack"),
    "cut short": (pack(UnitReady(1, 2, 3))[:-1], "no msgpack"),
    "trailing bytes": (pack(UnitReady(1, 2, 3)) + b"\0", "no msgpack"),
    "too large": (b"\xc0" * (MAX_FRAME_NBYTES + 1), f"^{MAX_FRAME_NBYTES + 1} bytes, more than"),
    "not an array": (msgpack.packb(7), r"expected \[kind"),
    "no fields": (msgpack.packb(["StopCompute"]), r"expected \[kind"),
    "kind is no text": (msgpack.packb([["StopCompute"], []]), r"expected \[kind"),
    "unknown kind": (frame_of("Nonsense"), "'Nonsense' is no kind of this direction"),
    "kind of another direction": (frame_of("StopLoader"), "'StopLoader' is no kind of this direction"),
    "a class that is no message": (frame_of("Range", 0, 0, 0, 0), "'Range' is no kind"),
    "long kind is not repeated": (frame_of("x" * 9000), "^'x{40}' is no kind"),
    "too few fields": (frame_of("UnitReady", 1, 2), "^UnitReady: expected 4 fields, got 2$"),
    "too many fields": (frame_of("UnitReady", 1, 2, 3, True, 5), "^UnitReady: expected 4 fields, got 5$"),
    "fields are no array": (msgpack.packb(["UnitReady", 3]), "^UnitReady: expected 4 fields, got int$"),
    "fields by name": (msgpack.packb(["StopCompute", {"a": 1}]), "no msgpack"),
    "empty map": (msgpack.packb(["StopCompute", {}]), "^StopCompute: expected 0 fields, got dict$"),
    "bool is not int": (frame_of("UnitReady", 1, True, 3, True), r"^UnitReady\.unit: expected int, got bool$"),
    "float is not int": (frame_of("UnitReady", 1, 2, 3.0, True), r"^UnitReady\.base: expected int, got float$"),
    "nil is not int": (frame_of("UnitReady", None, 2, 3, True), r"^UnitReady\.ticket: expected int, got NoneType$"),
    "negative": (frame_of("UnitReady", -1, 2, 3, True), r"^UnitReady\.ticket: expected an int of 0 \.\. 2\*\*63-1$"),
    "2**63": (frame_of("UnitReady", 1, 2, 2**63, True), r"^UnitReady\.base: expected an int of"),
    "int is not bool": (frame_of("RunRequest", 1, 1, 0, False, ""), r"^RunRequest\.last: expected bool, got int$"),
    "int is not text": (frame_of("UnitFailed", 1, 2, 3), r"^UnitFailed\.text: expected str, got int$"),
    "bytes are not text": (frame_of("UnitFailed", 1, 2, b""), r"^UnitFailed\.text: expected str, got bytes$"),
    "bytes with content": (frame_of("UnitFailed", 1, 2, b"text"), "no msgpack"),
    "ext type": (msgpack.packb(["StopCompute", msgpack.ExtType(5, b"x")]), "no msgpack"),
    "empty ext type": (b"\x92\xabStopCompute\xc7\x00\x05", r"^StopCompute: expected 0 fields, got ExtType$"),
    "timestamp": (msgpack.packb(["StopCompute", msgpack.Timestamp(1, 0)]), "no msgpack"),
    "invalid UTF-8": (b"\x92\xaaUnitFailed\x93\x01\x02\xa2\xff\xfe", "no msgpack"),
    "UTF-8 of a surrogate": (b"\x92\xaaUnitFailed\x93\x01\x02\xa3\xed\xa0\x80", "no msgpack"),
    "long text": (frame_of("UnitFailed", 1, 2, "x" * (MAX_TEXT_CHARS + 1)), r"^UnitFailed\.text: 12001 characters"),
    "long array": (msgpack.packb(["StopCompute", [0] * (MAX_RANGES + 1)]), "no msgpack"),
    "deep nesting": (b"\x91" * 60_000 + b"\x01", "no msgpack"),
    "reserved byte": (b"\xc1", "no msgpack"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_frames_are_refused_with_their_path(case: str) -> None:
    frame, text = REFUSED[case]
    with pytest.raises(BadMessage, match=text):
        unpack(frame, ToCompute)


def test_the_path_leads_into_ranges() -> None:
    good = [0, 0, 1, 0]
    with pytest.raises(BadMessage, match=r"^UnitDescribed\.ranges\[3\]\.offset: expected int, got str$"):
        unpack(frame_of("UnitDescribed", 0, 1, [good, good, good, [0, "0", 1, 0]]), FromCompute)
    with pytest.raises(BadMessage, match=r"^UnitDescribed\.ranges\[1\]: expected 4 fields, got 3$"):
        unpack(frame_of("UnitDescribed", 0, 1, [good, [0, 0, 1]]), FromCompute)
    with pytest.raises(BadMessage, match=r"^UnitDescribed\.ranges\[0\]: expected 4 fields, got int$"):
        unpack(frame_of("UnitDescribed", 0, 1, [7]), FromCompute)
    with pytest.raises(BadMessage, match=r"^UnitDescribed\.ranges: expected tuple, got int$"):
        unpack(frame_of("UnitDescribed", 0, 1, 7), FromCompute)


NOT_PACKED = {
    "negative": (UnitReady(-1, 2, 3), r"^UnitReady\.ticket: expected an int of"),
    "too big": (UnitReady(1, 2, 2**63), r"^UnitReady\.base: expected an int of"),
    "bool for int": (UnitReady(True, 2, 3), r"^UnitReady\.ticket: expected int, got bool"),
    "int for bool": (AskUnit(1, 1), r"^AskUnit\.waiting: expected bool, got int"),
    "lone surrogate": (OpenFile(0, "/model-\udcff", 1), r"^OpenFile\.path: expected valid Unicode"),
    "long path": (OpenFile(0, "x" * (MAX_TEXT_CHARS + 1), 1), r"^OpenFile\.path: 12001 characters"),
    "long ranges": (UnitDescribed(0, 1, (RANGE,) * (MAX_RANGES + 1)), r"^UnitDescribed\.ranges: 1025 items"),
    "list for tuple": (UnitDescribed(0, 1, [RANGE]), r"^UnitDescribed\.ranges: expected tuple, got list"),
    "wrong item": (UnitDescribed(0, 1, (RANGE, 3)), r"^UnitDescribed\.ranges\[1\]: expected Range, got int"),
    "wrong in an item": (UnitDescribed(0, 1, (Range(0, -5, 1, 0),)), r"^UnitDescribed\.ranges\[0\]\.offset: exp"),
    "frame too large": (ComputeFailed(1, "\N{ROCKET}" * 12_000, "\N{ROCKET}" * 12_000), "^ComputeFailed: 96.* bytes"),
    "no dataclass": ("StopLoader", "^str is no message$"),
    "a class": (StopLoader, "^type is no message$"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_PACKED)
def test_pack_refuses_what_unpack_would(case: str) -> None:
    message, text = NOT_PACKED[case]
    with pytest.raises(BadMessage, match=text):
        pack(message)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(), max_size=20))
def test_a_text_is_packed_exactly_if_it_is_unicode(text: str) -> None:
    try:
        frame = pack(OpenFile(0, text, 1))
    except BadMessage:
        with pytest.raises(UnicodeEncodeError):
            text.encode()
    else:
        assert unpack(frame, ToLoader).path == text


def test_an_annotation_the_codec_cannot_check_is_our_bug() -> None:
    @dataclasses.dataclass(frozen=True)
    class Weighed:
        grams: float

    with pytest.raises(InvariantBroken, match="float"):
        pack(Weighed(1.0))
