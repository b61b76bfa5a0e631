"""How glibc allocates activations, which come and go all day, so that its heap does not grow beyond a budget.

As it comes it keeps small freed chunks apart that lie beside large ones (tcache, fast bins), so a freed block is a
little too small for the next of its size, which torch wants aligned, and the heap grows: BERT-Large at 384 tokens took
677 MiB instead of 310. Elsewhere (musl) nothing happens, nor need it.
"""

from __future__ import annotations

import ctypes
import os

# For a process of our own, from its start: one heap, joined up whenever something is freed, in huge pages where the
# kernel gives them on advice. Without a budget what is free at its end stays for the next layer; where glibc gives it
# back (by itself from 128 KiB to 64 MiB on) it is mapped and zeroed anew for each. With 64 MiB GPT-2 (1000 tokens, two
# sequences) took 2.94 s and then 2.34, with 1 GiB 2.57 and then 2.26.
THRESHOLD = "glibc.malloc.mmap_threshold"
TRIM_THRESHOLD = "glibc.malloc.trim_threshold"
TUNABLES = {
    "glibc.malloc.tcache_count": "0",
    "glibc.malloc.mxfast": "0",
    "glibc.malloc.hugetlb": "1",
    THRESHOLD: str(32 << 20),  # the most there is
    TRIM_THRESHOLD: str(1 << 30),
}
TOGETHER = ("glibc.malloc.tcache_count", "glibc.malloc.mxfast")  # without these the heap grows
VARIABLE = "GLIBC_TUNABLES"

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGE_NBYTES = 64 << 10
TUNED_LARGE_NBYTES = 4 << 20  # where the heap is kept together
LEFT_NBYTES = 64 << 20  # stays at the heap's end: what glibc comes to by itself where nobody sets a threshold


def tunables() -> str:
    """What `VARIABLE` is for a process that computes; what the user tunes wins."""
    theirs = [word for word in os.environ.get(VARIABLE, "").split(":") if word]
    named = {word.partition("=")[0] for word in theirs}
    ours = [f"{name}={value}" for name, value in TUNABLES.items() if name not in named]
    return ":".join(theirs + ours)


def is_tuned() -> bool:
    """Whether this process was started in such an environment, or in one that keeps the heap together as well."""
    words = os.environ.get(VARIABLE, "").split(":")
    return all(f"{name}={TUNABLES[name]}" in words for name in TOGETHER)


def keep_large_blocks_apart() -> None:
    """Where a budget is to be kept: let every large allocation be a mapping of its own, that goes when it is freed.

    A heap that is kept together still comes to half as much again as lies in it where blocks are of 16 or 30 MB
    (the shape of Llama-3.2-1B, bfloat16, 2,000 tokens: 595 MiB of compute, with mappings from 4 MiB on 442); with these
    a pass of BERT-Large over 500 tokens took as long. Otherwise, which is all that can be had later on, from 64 KiB
    on: a page fault for every 4 KiB of activations, a tenth of a pass of some hundred tokens. What the user tunes wins.
    """
    named = dict(word.split("=", 1) for word in os.environ.get(VARIABLE, "").split(":") if "=" in word)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    if not is_tuned() or named.get(THRESHOLD, TUNABLES[THRESHOLD]) == TUNABLES[THRESHOLD]:
        mallopt(M_MMAP_THRESHOLD, TUNED_LARGE_NBYTES if is_tuned() else LARGE_NBYTES)
    if named.get(TRIM_THRESHOLD) == TUNABLES[TRIM_THRESHOLD]:
        mallopt(M_TRIM_THRESHOLD, LEFT_NBYTES)


def keep_one_heap() -> None:
    """Where a budget is to be kept and threads take turns: each would have a heap of its own, and keep what is free."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def trim() -> None:
    """Give freed memory back to the system."""
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if found is not None:
        found(0)
