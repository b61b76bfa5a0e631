"""The header reader by a table: what it accepts, and one refusal for every way in which a header can lie."""

from __future__ import annotations

import json
import struct

import pytest

from hermes_mp.core.header import (
    BITS_BY_DTYPE,
    MAX_HEADER_NBYTES,
    MAX_OTHER_NBYTES,
    MAX_TENSORS,
    Header,
    TensorInfo,
    header_length,
    parse_header,
    rows_of,
)
from hermes_mp.errors import CheckpointBroken


def parse(entries: object, data_nbytes: int) -> Header:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return parse_header(raw, 8 + len(raw) + data_nbytes, len(raw))


def tensor(dtype: object = "F32", shape: object = (2, 3), begin: object = 0, end: object = 24) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_offsets_are_those_of_the_file() -> None:
    entries = {"b": tensor("BF16", [2], 24, 28), "__metadata__": {"format": "pt"}, "a": tensor()}
    raw_nbytes = len(json.dumps(entries))
    header = parse(entries, 28)
    begin = 8 + raw_nbytes
    assert list(header.tensors.values()) == [
        TensorInfo("a", "F32", (2, 3), begin, begin + 24),
        TensorInfo("b", "BF16", (2,), begin + 24, begin + 28),
    ]
    assert header.metadata == {"format": "pt"}
    assert header.tensors["a"].nbytes == 24


@pytest.mark.parametrize(("dtype", "bits"), BITS_BY_DTYPE.items())
def test_every_dtype_of_the_format_is_sized(dtype: str, bits: int) -> None:
    assert parse({"x": tensor(dtype, [8], 0, bits)}, bits).tensors["x"].dtype == dtype
    with pytest.raises(CheckpointBroken, match="does not take"):
        parse({"x": tensor(dtype, [8], 0, bits + 1)}, bits + 1)


@pytest.mark.parametrize("shape", [[], [0], [0, 5], [1, 1, 1]])
def test_scalars_and_empty_tensors(shape: list[int]) -> None:
    end = 0 if 0 in shape else 4
    assert parse({"x": tensor(shape=shape, end=end)}, end).tensors["x"].shape == tuple(shape)


def test_nothing_at_all() -> None:
    assert parse(b"{}  ", 0) == Header({}, {})


TWICE = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'

REFUSED = [
    ("begin with", b"[]", 0),
    ("begin with", b" {}", 0),
    ("begin with", b"", 0),
    ("not JSON", b"{", 0),
    ("not JSON", b"{}\0", 0),
    ("not JSON", b'{"a\n":1}', 0),
    ("not UTF-8: byte 2", b'{"\xff":1}', 0),
    ("not Unicode", b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    ("names 'a' twice", TWICE, 1),
    ("names 'dtype' twice", b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    ("nested too deeply", b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}", 0),
    ("more than the", b'{"a":[' + b"[]," * (3 * MAX_TENSORS) + b"[]]}", 0),
    ("negative", b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', 0),
    ("negative", {"a": tensor(shape=[-2, -3])}, 24),
    ("too large", {"a": tensor(shape=[2**63])}, 24),
    ("too large", b'{"a":' + b"9" * 5000 + b"}", 0),
    ("too large", {"a": tensor(shape=[2**62, 2**62, 0], end=0)}, 0),
    ("too large", {"a": tensor("F64", [2**60], 0, 0)}, 0),
    ("more than the", b'{"a":[' + b"1," * (8 * MAX_TENSORS + 1) + b"1]}", 0),
    ("more than the", b'{"__metadata__":{' + b'"":"",' * (5 * MAX_TENSORS) + b'"":""}}', 0),
    ("not all ASCII", b'{"\xc3\xa9":"' + b"x" * MAX_OTHER_NBYTES + b'"}', 0),
    ("only whole numbers", b'{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}', 1),
    ("only whole numbers", b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', 1),
    ("only whole numbers", {"a": tensor(shape=[6.0])}, 24),
    ("not a list of whole numbers", {"a": tensor(shape=[True, 6])}, 24),
    ("not a list of whole numbers", {"a": tensor(shape=["6"])}, 24),
    ("not a list of whole numbers", {"a": tensor(shape=6)}, 24),
    ("not a list of whole numbers", {"a": tensor(begin=None)}, 24),
    ("dtype", {"a": tensor("F31")}, 24),
    ("dtype", {"a": tensor(None)}, 24),
    ("dtype", {"a": tensor([])}, 24),
    ("data_offsets", {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, 1),
    ("data_offsets", {"a": tensor(begin=24, end=0)}, 24),
    ("is not described", {"a": {"dtype": "U8", "shape": [1]}}, 1),
    ("is not described", {"a": {**tensor(), "more": 1}}, 24),
    ("is not described", {"a": ["F32", [2, 3], [0, 24]]}, 24),
    ("does not take 24 bytes", {"a": tensor(shape=[7])}, 24),
    ("does not take 1 bytes", {"a": tensor("F4", [3], 0, 1)}, 1),
    ("overlaps with", {"a": tensor(), "b": tensor(begin=20, end=44)}, 44),
    ("overlaps with", {"a": tensor(), "b": tensor()}, 24),
    ("leaves a hole after tensor 'a'", {"a": tensor(), "b": tensor(begin=25, end=49)}, 49),
    ("leaves a hole after the header", {"a": tensor(begin=1, end=25)}, 25),
    ("it is truncated", {"a": tensor()}, 23),
    ("that no tensor owns", {"a": tensor()}, 25),
    ("that no tensor owns", {}, 1),
    ("__metadata__ is not", {"__metadata__": []}, 0),
    ("__metadata__ is not", {"__metadata__": None}, 0),
    ("other than text", {"__metadata__": {"a": 1}}, 0),
    ("other than text", {"__metadata__": {"a": {"b": "c"}}}, 0),
]


@pytest.mark.parametrize(("reason", "entries", "data_nbytes"), REFUSED)
def test_refused(reason: str, entries: object, data_nbytes: int) -> None:
    with pytest.raises(CheckpointBroken, match=reason):
        parse(entries, data_nbytes)


@pytest.mark.parametrize(
    ("reason", "length", "file_nbytes"),
    [
        ("ends after 3 bytes", b"abc", 3),
        ("is more than the", struct.pack("<Q", MAX_HEADER_NBYTES + 1), 2**40),
        ("is more than the", b"\xff" * 8, 2**40),
        ("ends past", struct.pack("<Q", 100), 107),
    ],
)
def test_a_length_that_lies(reason: str, length: bytes, file_nbytes: int) -> None:
    with pytest.raises(CheckpointBroken, match=reason):
        header_length(length, file_nbytes)


def test_the_length_of_a_header() -> None:
    assert header_length(struct.pack("<Q", 100) + b"{", 108) == 100


def test_a_header_that_ends_early() -> None:
    with pytest.raises(CheckpointBroken, match="ends after 2 of the header's 9"):
        parse_header(b"{}", 100, 9)


def test_rows_of_a_matrix() -> None:
    whole = TensorInfo("wte", "F32", (10, 3), 1000, 1120)
    assert rows_of(whole, 2, 5) == TensorInfo("wte[2:5]", "F32", (3, 3), 1024, 1060)
    assert rows_of(whole, 0, 10).nbytes == whole.nbytes


@pytest.mark.parametrize("rows", [(-1, 2), (2, 2), (5, 4), (9, 11)])
def test_rows_that_are_not_there(rows: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="rows"):
        rows_of(TensorInfo("wte", "F32", (10, 3), 0, 120), *rows)


def test_a_row_that_begins_inside_a_byte() -> None:
    with pytest.raises(ValueError, match="rows"):
        rows_of(TensorInfo("x", "F4", (2, 1), 0, 1), 0, 1)
