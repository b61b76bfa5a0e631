"""In a process of a run: writes down where hermes_mp makes system calls, or has one such place fail.

A site is (role of the process, function, file, name of the caller, line): the innermost frame of hermes_mp, with none
but the standard library's, pyzmq's and `host/retrying.py` between it and the call. What others open is not ours.
`CALLS` holds what to do as JSON: {"record": FILE}, or {"site", "how", "first", "forever", "fired": FILE}: `site` is its
beginning, `how` an errno, "short", "flip" (a bit of what `preadv` brings), or "frame:" or "before:" and, in hex, what
to `send` instead or ahead; `first` counts its calls in a process; unless `forever` it fails once in a run.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

CALLS = "HERMES_FAILING_CALLS"
SHORT, FLIP, FRAME, BEFORE = "short", "flip", "frame:", "before:"
HERE = os.path.dirname(os.path.abspath(__file__))
RETRYING = "/hermes_mp/host/retrying.py"
BETWEEN = (sysconfig.get_path("stdlib") + os.sep, HERE + os.sep)
OF_LIBC = {"fallocate": -1, "madvise": -1, "mmap": 2 ** (8 * ctypes.sizeof(ctypes.c_void_p)) - 1}  # what failures give

_plan: dict[str, Any] = {}
_role = ""
_counts: Counter[str] = Counter()
_lock = threading.RLock()
_busy = threading.local()
_open, _write, _close = os.open, os.write, os.close


def install() -> None:
    """From now on, in this process and in those that it starts; does nothing unless `CALLS` is set."""
    global _role
    text = os.environ.get(CALLS)
    if not text:
        return
    _plan.update(json.loads(text))
    found = re.findall(r"hermes_mp(?:\.\w+)*\.(\w+)", " ".join(sys.orig_argv))
    _role = found[0] if found else "caller"
    for name in ("preadv", "pread", "read", "fstat", "memfd_create", "posix_fallocate"):
        setattr(os, name, _wrapped(name, getattr(os, name)))
    os.open = _wrapped("open", os.open)
    builtins.open = io.open = _wrapped("open", io.open)
    ctypes.CDLL.__getitem__ = _of_libc(ctypes.CDLL.__getitem__)  # type: ignore[method-assign]
    subprocess.Popen.__init__ = _spawning(subprocess.Popen.__init__)  # type: ignore[method-assign]
    import zmq

    for name, what in (("send", "send"), ("send_multipart", "send"), ("recv", "recv"), ("recv_multipart", "recv")):
        setattr(zmq.Socket, name, _wrapped(what, getattr(zmq.Socket, name)))


def site_of(function: str) -> str | None:
    """Where hermes_mp makes the call that is under way; None where it is not ours."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        at = path.rfind("/hermes_mp/")
        if at >= 0 and not path.endswith(RETRYING):
            return f"{_role} {function} {path[at + 1 :]} {frame.f_code.co_name} {frame.f_lineno}"
        ours = at >= 0 or "/zmq/" in path
        if not ours and (not path.startswith(BETWEEN) or "/site-packages/" in path or path == subprocess.__file__):
            return None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _failing(function: str) -> int | str | None:
    """How the call that is under way is to fail; None where it is not to."""
    site = site_of(function)
    if site is None or getattr(_busy, "in_call", False):
        return None
    with _lock:
        _counts[site] += 1
        count = _counts[site]
    if "record" in _plan:
        if count & (count - 1) == 0:
            _note(_plan["record"], f"{site} {count}\n", os.O_APPEND)
        return None
    if not site.startswith(_plan["site"]) or count < _plan["first"]:
        return None
    if not _note(_plan["fired"], "", os.O_EXCL) and not _plan["forever"]:
        return None
    how: int | str = _plan["how"]
    return how


def _note(path: str, text: str, flag: int) -> bool:
    try:
        fd = _open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600)
    except FileExistsError:
        return False
    _write(fd, text.encode())
    _close(fd)
    return True


def _wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*words: Any, **more: Any) -> Any:
        how = _failing(name)
        if how is None:
            if name not in ("send", "recv"):
                return call(*words, **more)
            _busy.in_call = True  # pyzmq's methods call each other
            try:
                return call(*words, **more)
            finally:
                _busy.in_call = False
        if how == SHORT:
            return _short(name, call, words)
        if how == FLIP:
            return _flipped(call, words)
        if isinstance(how, str) and how.startswith((FRAME, BEFORE)):
            kind, _, frame = how.partition(":")
            sent = call(words[0], bytes.fromhex(frame), *words[2:], **more)
            return sent if kind + ":" == FRAME else call(*words, **more)
        if name in ("send", "recv"):
            import zmq

            raise zmq.Again() if how == zmq.EAGAIN else zmq.ZMQError(how)
        named = [words[0]] if name == "open" else []
        raise OSError(how, os.strerror(how), *named)  # type: ignore[arg-type]

    return wrapper


def _short(name: str, call: Callable[..., Any], words: tuple[Any, ...]) -> Any:
    """Half of what was asked for."""
    if name == "preadv":
        first = memoryview(words[1][0])
        with first[: max(1, len(first) // 2)] as half:
            return call(words[0], [half], *words[2:])
    return call(words[0], max(1, words[1] // 2), *words[2:])


def _flipped(call: Callable[..., Any], words: tuple[Any, ...]) -> Any:
    """Somewhere in the first half: what lies behind the end of a range may be anything."""
    nbytes = call(*words)
    if nbytes:
        into = memoryview(words[1][0])
        into[random.randrange((nbytes + 1) // 2)] ^= 1 << random.randrange(8)
    return nbytes


class _Function:
    """A function of libc that may fail; its types can be set as the other's can."""

    def __init__(self, name: str, function: Any) -> None:
        self.__dict__.update(_name=name, _function=function)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._function, name, value)

    def __call__(self, *words: Any) -> Any:
        how = _failing(self._name)
        if how is None:
            return self._function(*words)
        ctypes.set_errno(int(how))
        return OF_LIBC[self._name]


def _of_libc(get: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(library: ctypes.CDLL, name: Any) -> Any:
        return _Function(name, get(library, name)) if name in OF_LIBC else get(library, name)

    return wrapper


def _spawning(init: Callable[..., None]) -> Callable[..., None]:
    """An interpreter that our bootstrap starts without `site` loads this module, too."""

    def wrapper(self: Any, command: Any, *words: Any, **more: Any) -> None:
        how = _failing("spawn")
        if how is not None:
            self.returncode = None
            self._child_created = False
            raise OSError(how, os.strerror(how))  # type: ignore[arg-type]
        if isinstance(command, list) and "-S" in command and "-c" in command:
            at = command.index("-c") + 1
            more_code = f"; sys.path.insert(0, {HERE!r}); import failing_calls; failing_calls.install(); from "
            command = [*command[:at], command[at].replace("; from ", more_code, 1), *command[at + 1 :]]
        init(self, command, *words, **more)

    return wrapper
