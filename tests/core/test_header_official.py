"""Against the official reader: damaged headers of every kind; what it rejects, we must reject."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open

from hermes_mp.core.header import BITS_BY_DTYPE, TensorInfo, header_length, parse_header
from hermes_mp.errors import CheckpointBroken

NUMBERS = ["-0", "-1", "0", "1", "2", "01", "1.0", "1e1", "true", "null", '"1"', "NaN", "Infinity", "[1]", "{}"]
NUMBERS += [str(2**power - less) for power in (31, 32, 53, 60, 61, 62, 63, 64, 65) for less in (0, 1)]
TEXTS = [
    "",
    "F32",
    "F16",
    "F8_E4M3",
    "F4",
    "f32",
    "dtype",
    "__metadata__",
    "a",
    "\\u0061",
    "\\ud800",
    "\\ud83d\\ude00",
    "é",
    "\\q",
]


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """(JSON, data) of a sound file; names may collide with each other only by Hypothesis' choice of distinct ones."""
    entries: dict[str, object] = {}
    if draw(st.booleans()):
        entries["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
    reached = 0
    names = draw(st.lists(st.text(max_size=4).filter(lambda name: name != "__metadata__"), unique=True, max_size=4))
    for name in names:
        dtype = draw(st.sampled_from(sorted(BITS_BY_DTYPE)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        if BITS_BY_DTYPE[dtype] % 8:
            shape.append(8)
        nbytes = BITS_BY_DTYPE[dtype]
        for size in shape:
            nbytes *= size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [reached, reached + nbytes // 8]}
        reached += nbytes // 8
    shuffled = dict(draw(st.permutations(list(entries.items()))))
    text = json.dumps(
        shuffled, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    )
    return text.encode() + b" " * draw(st.integers(0, 8)), bytes(position % 251 for position in range(reached))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file with one to three things wrong with it (sometimes harmless ones)."""
    raw, data = draw(headers())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(raw)))
        match draw(st.integers(0, 10)):
            case 0:
                raw = raw[:at] + draw(st.binary(max_size=2)) + raw[at + draw(st.integers(0, 2)) :]
            case 1:
                raw = _replace_token(draw, raw, b"0123456789", draw(st.sampled_from(NUMBERS)).encode())
            case 2:
                raw = _replace_text(draw, raw, draw(st.sampled_from(TEXTS)).encode())
            case 3:
                data = data[: draw(st.integers(0, len(data)))] + b"x" * draw(st.integers(0, 2))
            case 4:
                end = draw(st.integers(at, len(raw)))
                raw = raw[:end] + raw[at:end] + raw[end:]  # repeats a key, an entry, a bracket
            case 5:
                raw = (
                    raw[:at]
                    + draw(st.sampled_from([b" ", b"\n", b"\t", b"\r", b"\x0b", b"\xef\xbb\xbf", b"\0"]))
                    + raw[at:]
                )
            case 6:
                raw = raw.replace(b"}", b',"more":' + draw(st.sampled_from(NUMBERS)).encode() + b"}", 1)
            case 7:  # the same number, spelt otherwise
                raw = _respell(draw, raw)
            case 8:  # a product that overflows before a 0 ends it
                raw = raw.replace(b"[0", b"[4611686018427387904, 4611686018427387904, 0", 1)
            case 9:  # a hole in front of a tensor
                raw, data = _shift(draw, raw), data + b"x"
            case _:
                raw = raw[:at]
    length = len(raw) if draw(st.integers(0, 9)) else draw(st.integers(0, 2 * len(raw)))
    return struct.pack("<Q", length) + raw + data


def _respell(draw: st.DrawFn, raw: bytes) -> bytes:
    value = draw(st.sampled_from([b"0", b"1", b"4", b"8"]))
    spellings = [value + b".0", value + b"e0", b"0" + value, b"-" + value, b"true" if value == b"1" else b"false"]
    return raw.replace(b"[" + value + b",", b"[" + draw(st.sampled_from(spellings)) + b",", 1)


def _shift(draw: st.DrawFn, raw: bytes) -> bytes:
    try:
        entries = json.loads(raw)
        shifted = draw(st.sampled_from([name for name in entries if name != "__metadata__"] or [""]))
        begin, end = entries[shifted]["data_offsets"]
        entries[shifted]["data_offsets"] = [begin + 1, end + 1]
    except (ValueError, KeyError, TypeError):
        return raw  # damaged too much already
    return json.dumps(entries).encode()


def _replace_token(draw: st.DrawFn, raw: bytes, alphabet: bytes, token: bytes) -> bytes:
    starts = [at for at in range(len(raw)) if raw[at] in alphabet and (at == 0 or raw[at - 1] not in alphabet)]
    if not starts:
        return raw
    start = end = draw(st.sampled_from(starts))
    while end < len(raw) and raw[end] in alphabet:
        end += 1
    return raw[:start] + token + raw[end:]


def _replace_text(draw: st.DrawFn, raw: bytes, text: bytes) -> bytes:
    parts = raw.split(b'"')
    if len(parts) < 3:
        return raw
    parts[draw(st.integers(0, len(parts) // 2 - 1)) * 2 + 1] = text
    return b'"'.join(parts)


def ours(file: bytes) -> dict[str, TensorInfo]:
    length = header_length(file[:8], len(file))
    return parse_header(file[8 : 8 + length], len(file), length).tensors


@settings(max_examples=500, deadline=None)
@given(headers())
def test_sound_files_are_read_alike(file: tuple[bytes, bytes]) -> None:
    raw, data = file
    _alike(struct.pack("<Q", len(raw)) + raw + data)


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=damaged())
def test_what_the_official_reader_rejects_we_reject(file: bytes, tmp_path: Path) -> None:
    try:
        ours(file)
    except CheckpointBroken:
        return  # stricter is allowed; that sound files are accepted is the other test's
    _alike(file)
    path = tmp_path / "x.safetensors"
    path.write_bytes(file)
    with safe_open(path, framework="np") as official:
        assert sorted(official.keys()) == sorted(ours(file))


def _alike(file: bytes) -> None:
    """Same names, shapes, dtypes and bytes; an official refusal is a failure of this test."""
    try:
        official = {
            name: (told["dtype"], tuple(told["shape"]), bytes(told["data"])) for name, told in deserialize(file)
        }
    except SafetensorError as error:
        pytest.fail(f"we accept {file!r}, the official reader says: {error}")
    assert {
        name: (info.dtype, info.shape, file[info.begin : info.end]) for name, info in ours(file).items()
    } == official
