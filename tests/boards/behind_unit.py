"""`python behind_unit.py UNIT COMMAND...`: the command, with the system calls and sockets that a unit file allows.

As systemd would do it, by libseccomp, which it brings along; but a call that is not allowed ends the process (SIGSYS)
where systemd has it fail: so that none goes unnoticed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

ALLOW, KILL_PROCESS, ERRNO, EQUAL = 0x7FFF0000, 0x80000000, 0x00050000, 4
FAMILIES = 46


class _Argument(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint), ("compare", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)
    )  # fmt: skip


def settings(unit: Path, key: str) -> list[str]:
    """All values of a key, in order."""
    return [line.partition("=")[2] for line in unit.read_text().splitlines() if line.startswith(f"{key}=")]


def system_calls(words: list[str]) -> set[str]:
    """Names of calls, groups of them replaced by what is in them."""
    found: set[str] = set()
    for word in words:
        if not word.startswith("@"):
            found.add(word)
            continue
        command = ["systemd-analyze", "--no-pager", "syscall-filter", word]
        listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
        lines = [line.strip() for line in listed.splitlines()[1:]]
        found |= system_calls([line for line in lines if line and not line.startswith("#")])
    return found


def allowed_calls(unit: Path) -> set[str]:
    """What `SystemCallFilter=` comes to."""
    found = system_calls(["@default"])
    for line in settings(unit, "SystemCallFilter"):
        names = system_calls(line.lstrip("~").split())
        found = found - names if line.startswith("~") else found | names
    return found


def confine(unit: Path) -> None:
    """This process and its children, from now on."""
    names = allowed_calls(unit)
    families = {getattr(socket, name) for name in settings(unit, "RestrictAddressFamilies")[0].split()}
    library = ctypes.CDLL(ctypes.util.find_library("seccomp") or "libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    calls, sockets = ctypes.c_void_p(library.seccomp_init(KILL_PROCESS)), ctypes.c_void_p(library.seccomp_init(ALLOW))
    for name in names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # else of another machine
            assert library.seccomp_rule_add(calls, ALLOW, number, 0) == 0
    opening = library.seccomp_syscall_resolve_name(b"socket")
    for family in set(range(FAMILIES)) - families:
        which = _Argument(0, EQUAL, family, 0)
        assert library.seccomp_rule_add(sockets, ERRNO | errno.EAFNOSUPPORT, opening, 1, which) == 0
    assert library.seccomp_load(sockets) == 0
    assert library.seccomp_load(calls) == 0


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
