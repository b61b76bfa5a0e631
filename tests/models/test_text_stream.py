"""TextStream: whatever the tokens, the pieces make the text, no character is halved, no stop string shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.models.tasks.text_stream import HALF, TextStream


def from_bytes(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def from_words(ids: list[int]) -> str:
    return " ".join(f"w{one}" for one in ids)


def run(decode: object, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[TextStream, list[str]]:
    said: list[str] = []
    stream = TextStream(decode, stop, said.append)  # type: ignore[arg-type]
    for one in ids:
        stream.push([one])
    stream.finish()
    return stream, said


@given(st.text(max_size=40))
def test_characters_stay_whole(text: str) -> None:
    _, said = run(from_bytes, list(text.encode()))
    assert "".join(said) == text
    assert len(said) == len(text), "one piece per character: as soon as it is complete, and not before"


@given(st.lists(st.integers(0, 255), max_size=40))
def test_bytes_that_are_no_text_get_out_in_the_end(ids: list[int]) -> None:
    stream, said = run(from_bytes, ids)
    assert "".join(said) == stream.said
    assert stream.said.replace(HALF, "") == from_bytes(ids).replace(HALF, "")


@given(st.lists(st.integers(0, 99), max_size=20))
def test_spaces_between_words_survive(ids: list[int]) -> None:
    assert run(from_words, ids)[0].said == from_words(ids)


@given(st.text("abc", max_size=60), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_where_the_first_stop_string_begins(text: str, stop: list[str]) -> None:
    stream, said = run(from_bytes, list(text.encode()), tuple(stop))
    # The first stop string to be complete ends the text; of those complete at the same moment, the longest.
    ends = [(at + len(one), at) for one in stop if (at := text.find(one)) >= 0]
    expected = text[: min(ends)[1]] if ends else text
    assert "".join(said) == stream.said == expected
    assert stream.stopped == bool(ends)
