"""LineSource over real pipes and terminals: lines however the bytes are cut, and an end."""

from __future__ import annotations

import os
import select
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.cli.lines import MAX_LINE_NBYTES, LineSource
from hermes_mp.errors import WrongInput


def read_all(pieces: list[bytes]) -> list[str]:
    reader, writer = os.pipe()
    source = LineSource(reader)
    lines: list[str] = []
    try:
        for piece in pieces:
            if piece:
                os.write(writer, piece)
                lines += source.read_lines()
        os.close(writer)
        while not source.ended:
            lines += source.read_lines()
    finally:
        os.close(reader)
    return lines


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=60),
    st.lists(st.integers(0, 80), max_size=4),
)
def test_lines_are_whole_however_they_come(text: str, cuts: list[int]) -> None:
    data = text.encode()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(edges)]
    assert read_all(pieces) == [line for line in text.split("\n") if line.strip()]


def test_windows_lines_bad_bytes_and_a_last_line_without_its_end() -> None:
    assert read_all([b"one\r\n", b"\xff two\n\n  \nthr", b"ee"]) == ["one", "\N{REPLACEMENT CHARACTER} two", "three"]


def test_a_line_without_end_is_refused() -> None:
    reader, writer = os.pipe()
    source = LineSource(reader)
    try:
        for _ in range(MAX_LINE_NBYTES // 4096):
            os.write(writer, b"x" * 4096)
            assert source.read_lines() == []
        os.write(writer, b"x")
        with pytest.raises(WrongInput):
            source.read_lines()
        assert source.ended
    finally:
        os.close(reader)
        os.close(writer)


def test_a_terminal_gives_lines_and_ends_when_it_is_gone() -> None:
    master, slave = os.openpty()
    source = LineSource(slave)
    os.write(master, b"hello\n")
    assert select.select([source], [], [], 5)[0]
    assert source.read_lines() == ["hello"]
    os.close(master)
    assert source.read_lines() == []
    assert source.ended
    os.close(slave)
