"""Asking the system once more, where its refusal may pass: a card that hiccups, memory that is short for a moment.

Python itself asks again where a signal came between (PEP 475). Bounded: what lasts longer than this is an error.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

PASSING = (errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS)
WAITS_S = (0.01, 0.1)

T = TypeVar("T")


def retried(call: Callable[..., T], *words: object) -> T:
    """`call(*words)`, three times at most."""
    for wait_s in WAITS_S:
        try:
            return call(*words)
        except OSError as error:
            if error.errno not in PASSING:
                raise
        time.sleep(wait_s)
    return call(*words)
