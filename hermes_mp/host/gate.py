"""The gate of a listening socket that ZeroMQ accepts from: it lets in one connection, then rests until `admit`.

ZeroMQ takes whoever comes: 1000 strangers who began a handshake took 14 MB and all descriptors of a board. So its
epoll entry for the socket is made one-shot by us; that also ends its spinning where no descriptor is left to accept.
It knows sockets by their numbers only. Sources: epoll_ctl(2), proc_pid_fdinfo(5), src/epoll.cpp of libzmq 4.3.5.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import socket
import stat
import time
from pathlib import Path

from hermes_mp.core.address import join_address
from hermes_mp.errors import BadOption, SystemCallFailed

BACKLOG = 16  # who waits in the kernel; whoever comes after them tries again a second later
ENTRY_DEADLINE_S = 2.0  # ZeroMQ's thread makes its entry within a millisecond
_EPOLL_CTL_MOD = 3


class _Event(ctypes.Structure):
    _pack_ = 1 if os.uname().machine == "x86_64" else 0
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


class Gate:
    """Listens; `fd` is for ZMQ_USE_FD, and ZeroMQ's from the bind on. Raises BadOption where nobody can listen."""

    def __init__(self, host: str, port: int) -> None:
        shown = join_address(host, port)
        try:
            family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family, socket.SOCK_STREAM)
        except OSError as reason:
            why = f"{shown} is no address to listen on: {reason.strerror}"
            raise BadOption(why, "name one of this machine") from None
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(place)
            listener.listen(BACKLOG)
        except OSError as reason:
            listener.close()
            attempt = "choose another port, or end what listens there" if reason.errno == errno.EADDRINUSE else None
            attempt = attempt or "name an address of this machine, and a port above 1023"
            raise BadOption(f"nothing can listen on {shown}: {reason.strerror}", attempt) from None
        self.host: str
        self.port: int
        self.host, self.port = listener.getsockname()[:2]
        self.is_ipv6 = family == socket.AF_INET6
        self.fd = listener.detach()
        self._entry: tuple[int, int] | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host.startswith("127.") or self.host == "::1"

    def close(self) -> None:
        """Where it does not become ZeroMQ's."""
        os.close(self.fd)

    def take_over(self) -> None:
        """After the bind: from now on a connection is let in by `admit` only."""
        deadline = time.monotonic() + ENTRY_DEADLINE_S
        while self._entry is None:
            self._entry = _entry_of(self.fd)
            if self._entry is None and time.monotonic() > deadline:
                raise SystemCallFailed("this build of ZeroMQ does not wait by epoll", "install pyzmq from PyPI")
        self.admit()

    def admit(self) -> None:
        """Let in one more, who may wait already or come later."""
        if self._entry is not None:
            epoll_fd, data = self._entry
            event = _Event(select.EPOLLIN | select.EPOLLONESHOT, data)
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.epoll_ctl(epoll_fd, _EPOLL_CTL_MOD, self.fd, ctypes.byref(event)) != 0:
                raise SystemCallFailed(f"no connection can be accepted: {os.strerror(ctypes.get_errno())}")


def inode_of(fd: int) -> int | None:
    """What tells a socket from a later one of the same number; None where this is no socket (any more)."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else None


def show_out(fd: int, inode: int) -> None:
    """End the connection, whose fd is ZeroMQ's, as if its peer had: ZeroMQ has no call for it."""
    try:
        own = os.dup(fd)  # pinned: from here on the number cannot become another's
    except OSError:
        return
    with socket.socket(fileno=own) if inode_of(own) == inode else os.fdopen(own) as connection:
        if isinstance(connection, socket.socket):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended by itself
                return


def _entry_of(fd: int) -> tuple[int, int] | None:
    """The epoll that waits on `fd`, and the word that it keeps with it."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") != "anon_inode:[eventpoll]":
                continue
            text = Path(f"/proc/self/fdinfo/{name}").read_text()
        except OSError:  # closed meanwhile
            continue
        found = re.search(rf"^tfd:\s+{fd}\s.*?data:\s+([0-9a-f]+)", text, re.M)
        if found is not None:
            return int(name), int(found[1], 16)
    return None
