"""What the system refuses may pass: it is asked again, but not for ever."""

from __future__ import annotations

import errno
import os

import pytest

from hermes_mp.host.retrying import PASSING, WAITS_S, retried


class Refusing:
    """Refuses so many times, then answers."""

    def __init__(self, number: int, times: int) -> None:
        self._number, self.left, self.calls = number, times, 0

    def __call__(self, word: str) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise OSError(self._number, os.strerror(self._number))
        return word


@pytest.mark.parametrize("number", PASSING)
def test_what_passes_is_no_error(number: int) -> None:
    call = Refusing(number, len(WAITS_S))
    assert retried(call, "yes") == "yes"
    assert call.calls == len(WAITS_S) + 1


def test_what_lasts_is() -> None:
    call = Refusing(errno.EIO, 100)
    with pytest.raises(OSError, match="Input/output error"):
        retried(call, "yes")
    assert call.calls == len(WAITS_S) + 1


def test_what_cannot_pass_is_at_once() -> None:
    call = Refusing(errno.ENOENT, 1)
    with pytest.raises(FileNotFoundError):
        retried(call, "yes")
    assert call.calls == 1
