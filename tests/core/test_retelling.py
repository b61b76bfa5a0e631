"""An answer that is told once more: nothing twice, nothing missing, in whatever pieces it comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_mp.core.retelling import Retelling
from hermes_mp.errors import AnswerDiffers


@given(st.text(), st.lists(st.lists(st.integers(0, 20)), max_size=4))
def test_what_is_shown_is_the_answer(answer: str, attempts: list[list[int]]) -> None:
    """Each attempt but the last is lost after some pieces, of these lengths."""
    told, shown = Retelling(), ""
    for lengths in attempts:
        at = 0
        for length in lengths:
            shown += told.tell(answer[at : at + length])
            at += length
        assert answer.startswith(shown)
        told.restart()
    shown += told.tell(answer)
    assert shown == answer


def test_another_answer_is_an_error() -> None:
    told = Retelling()
    assert told.tell("the ship ") == "the ship "
    told.restart()
    assert told.tell("the") == ""
    with pytest.raises(AnswerDiffers, match="another way at character 3"):
        told.tell(" shop is")


def test_an_answer_that_differs_after_what_was_shown_is_no_error() -> None:
    told = Retelling()
    told.tell("the ship")
    told.restart()
    assert told.tell("the ship sails") == " sails"


def test_a_shorter_answer_is_an_error() -> None:
    told = Retelling()
    told.tell("the ship")
    told.end()
    told.restart()
    told.tell("the")
    with pytest.raises(AnswerDiffers, match="ends at character 3"):
        told.end()
