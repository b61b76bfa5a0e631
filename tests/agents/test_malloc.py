"""The allocator's environment: ours unless the user has one, and told apart from one in which the heap grows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hermes_mp.host import malloc

APART = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


@pytest.mark.parametrize(
    ("theirs", "tuned"),
    [
        ("", False),
        (APART, True),
        ("glibc.malloc.tcache_count=0", False),
        ("glibc.malloc.tcache_count=7:glibc.malloc.mxfast=0", False),
        (f"glibc.malloc.hugetlb=0:{APART}", True),
    ],
)
def test_whether_the_heap_is_kept_together(theirs: str, tuned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(malloc.VARIABLE, theirs)
    assert malloc.is_tuned() == tuned


def test_what_the_user_tunes_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(malloc.VARIABLE, "glibc.malloc.hugetlb=0:glibc.rtm.skip=1")
    words = malloc.tunables().split(":")
    assert words[:2] == ["glibc.malloc.hugetlb=0", "glibc.rtm.skip=1"]
    assert sorted(word.partition("=")[0] for word in words[1:] if "malloc" in word) == sorted(
        set(malloc.TUNABLES) - {"glibc.malloc.hugetlb"}
    )


@pytest.mark.parametrize(
    ("theirs", "budget", "freed_mib", "least", "most"),
    [
        ("", False, 100, 0, 0),
        ("", True, 30, 0, 0),
        ("", True, 100, 95, 105),
        (f"{malloc.TRIM_THRESHOLD}=1000000000", True, 100, 0, 0),
        (f"{malloc.THRESHOLD}=33554431", True, 100, 95, 105),
    ],
)
def test_what_is_free_at_the_end_of_a_heap_stays_up_to_64_mib_where_a_budget_is_to_be_kept(
    theirs: str, budget: bool, freed_mib: int, least: int, most: int
) -> None:
    words = [sys.executable, "-c", END.format(count=freed_mib, budget=budget)]
    environment = os.environ | {malloc.VARIABLE: tuned_with(theirs)}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert least <= int(done.stdout) <= most


@pytest.mark.parametrize(("theirs", "apart"), [("", True), (f"{malloc.THRESHOLD}=33554431", False)])
def test_large_blocks_leave_the_heap_where_a_budget_is_to_be_kept(theirs: str, apart: bool) -> None:
    words = [sys.executable, "-c", FREED.format(apart=True, kib=20 << 10, count=10)]
    environment = os.environ | {malloc.VARIABLE: tuned_with(theirs)}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert (int(done.stdout) >= 150) == apart


def tuned_with(theirs: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(malloc.VARIABLE, theirs)
        return malloc.tunables()


END = """
import ctypes
from hermes_mp.host import malloc
malloc.keep_large_blocks_apart() if {budget} else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
blocks = [libc.malloc(1 << 20) for _ in range({count})]
end = libc.sbrk(0)
for block in blocks:
    libc.free(block)
print(round((end - libc.sbrk(0)) / 2**20))
"""

FREED = """
import ctypes, os
from hermes_mp.host import malloc, memory
malloc.keep_large_blocks_apart() if {apart} else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [libc.malloc({kib} << 10) for _ in range({count})]
for block in blocks:
    ctypes.memset(block, 1, {kib} << 10)
full = memory.quick(os.getpid()).private_nbytes
for block in blocks[:-1]:  # the last one would keep a heap from shrinking
    libc.free(block)
print(round((full - memory.quick(os.getpid()).private_nbytes) / 2**20))
"""


@pytest.mark.parametrize(("apart", "least", "most"), [(True, 27, 30), (False, -2, 10)])
def test_blocks_that_are_kept_apart_go_when_they_are_freed(apart: bool, least: int, most: int) -> None:
    words = [sys.executable, "-c", FREED.format(apart=apart, kib=100, count=300)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert least <= int(done.stdout) <= most
