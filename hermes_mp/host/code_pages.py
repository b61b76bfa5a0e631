"""Gives back the pages of program code that this process has mapped and may never run again.

A library's start-up code, and the pages around it that the kernel maps along, count in the budget as file-backed
memory: 75 of torch's 80 MiB. Dropped pages stay in the page cache, and come back by a fault when they are run.
Knows nothing of what the code is for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

MADV_DONTNEED = 4


def give_back_code() -> None:
    """Unmap all pages of code; those that are needed come back one by one."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in _code():
        libc.madvise(start, end - start, MADV_DONTNEED)  # refused (locked in memory): then they stay


def _code() -> Iterator[tuple[int, int]]:
    """Mappings of files that can be executed, cannot be written, and hold no page that differs from the file."""
    start = end = 0
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            if "-" in name:  # the head line of a mapping: 'start-end perms offset device inode path'
                words = line.split(None, 5)
                wanted = words[1] == "r-xp" and len(words) == 6 and words[5].startswith("/")
                low, _, high = words[0].partition("-")
                start, end = (int(low, 16), int(high, 16)) if wanted else (0, 0)
            elif end and name == "Anonymous" and int(rest.split()[0]) == 0:
                yield start, end
                end = 0
