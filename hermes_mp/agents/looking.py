"""Looks at files in a thread of its own: a disk that does not answer stops nobody who asks. It knows no models."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from typing import Generic, TypeVar

from hermes_mp.errors import WeightsChanged
from hermes_mp.host.watched import WatchedFiles

END_S = 0.2  # the thread ends with the process, if a look at a dead disk holds it

K = TypeVar("K")


class Looking(Generic[K]):
    """`fd` is readable when looks have ended."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._asked: queue.SimpleQueue[tuple[K, WatchedFiles] | None] = queue.SimpleQueue()
        self._ended: deque[tuple[K, WeightsChanged | None]] = deque()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, key: K, files: WatchedFiles) -> None:
        """Look whether these are what they were; `ended` will say it under this key."""
        self._asked.put((key, files))

    def ended(self) -> list[tuple[K, WeightsChanged | None]]:
        """Those since this was asked last, and what has changed."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return []
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join(END_S)
        with self._lock:
            os.close(self.fd)
            self.fd = -1

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            key, files = asked
            changed = None
            try:
                files.look()
            except WeightsChanged as change:
                changed = change
            self._ended.append((key, changed))
            with self._lock:
                if self.fd < 0:
                    return
                os.eventfd_write(self.fd, 1)
