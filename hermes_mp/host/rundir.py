"""The private directory of one run, for its socket: fresh, 0700, gone when the run is, even after SIGKILL.

Its owner holds an flock on the file `lock` in it. The kernel drops that with the process, however it ends, and no
process id is compared, so a reused one cannot mislead: whoever gets the lock knows that the owner is gone.
`create` sweeps what dead owners of the same user left. It holds files and sockets only, and knows none of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path

from hermes_mp.errors import BadOption, InvariantBroken

PREFIX = "hermes-mp-"
LOCK_NAME = "lock"
MAX_SOCKET_PATH_NBYTES = 107  # sun_path holds 108 with the closing zero; unix(7)
SOCKET_NAME = "hub"
ATTEMPTS = 100
LOOKS = 10
NOT_ITS_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of the directory: another one would be refused as well


class RunDirectory:
    """`path` exists, is ours alone, and is locked until `remove` or the end of this process."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd: int | None = lock_fd

    @property
    def endpoint(self) -> str:
        """Where the hub in it listens, or will."""
        return f"ipc://{self.path / SOCKET_NAME}"

    @staticmethod
    def create() -> RunDirectory:
        """A fresh one in $XDG_RUNTIME_DIR, else in the directory for temporary files; BadOption if neither will do."""
        base = _base()
        _sweep(base)
        try:
            for _ in range(ATTEMPTS):
                path = base / f"{PREFIX}{os.urandom(4).hex()}"
                lock_fd = _make_locked(path)
                if lock_fd is not None:
                    return RunDirectory(path, lock_fd)
        except OSError as reason:
            if reason.errno in NOT_ITS_FAULT:
                raise
            raise BadOption(f"no run directory in {base}: {reason.strerror}", "set TMPDIR to another one") from reason
        raise BadOption(f"no run directory stays in {base}: somebody removes them", "set TMPDIR to another one")

    def remove(self) -> None:
        """Remove it with all it holds; may be called again, and after somebody else removed it."""
        if self._lock_fd is not None:
            remove_path(self.path)
            os.close(self._lock_fd)
            self._lock_fd = None


def live() -> list[Path]:
    """The run directories of this user whose owners are alive, wherever one may be made."""
    found: dict[str, Path] = {}
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    import tempfile

    for base in (runtime, tempfile.gettempdir()):
        with contextlib.suppress(OSError), os.scandir(base or "/nowhere") as entries:
            found |= {os.path.realpath(entry.path): Path(entry.path) for entry in entries if _is_ours(entry)}
    return [path for _, path in sorted(found.items()) if _is_locked(path)]


def _is_locked(path: Path) -> bool:
    try:
        lock_fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock_fd)
    return False


def remove_path(path: Path) -> None:
    """Remove a run directory whose owner is known to be dead; several children may do so at the same time.

    It does not ask for the lock: a dying owner's pipe may close just before its lock does.
    """
    if not path.name.startswith(PREFIX):
        raise InvariantBroken(f"{path} is no run directory")
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return
    # The lock goes last: without it a directory is empty, so whatever a remover that dies half-way leaves is swept.
    for name in sorted(names, key=lambda name: name == LOCK_NAME):
        (path / name).unlink(missing_ok=True)
    try:
        path.rmdir()
    except FileNotFoundError:
        return


def _base() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and _is_private(Path(runtime)) and _socket_excess(Path(runtime)) <= 0:
        return Path(runtime)
    import tempfile  # here, as its shutil and compressors cost 0.4 MB, which children need not pay for `remove_path`

    try:
        base = Path(tempfile.gettempdir())
    except FileNotFoundError as reason:
        raise BadOption(f"no directory for temporary files: {reason.strerror}", "set TMPDIR to one") from reason
    excess = _socket_excess(base)
    if excess > 0:
        raise BadOption(
            f"the directory for temporary files is {excess} bytes too long for a socket in it: {base}",
            "set TMPDIR to a directory with a shorter path",
        )
    return base


def _is_private(directory: Path) -> bool:
    try:
        found = directory.stat()
    except OSError:  # set for a session that is over, or in a container that does not have it
        return False
    ours = found.st_uid == os.getuid() and found.st_mode & 0o077 == 0
    return stat.S_ISDIR(found.st_mode) and ours and os.access(directory, os.W_OK | os.X_OK)


def _socket_excess(base: Path) -> int:
    return len(os.fsencode(base / f"{PREFIX}{'0' * 8}" / SOCKET_NAME)) - MAX_SOCKET_PATH_NBYTES


def _make_locked(path: Path) -> int | None:
    """Make the directory and hold its lock; None where the name was taken or a sweeper got there in between."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return None
    try:
        lock_fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        with contextlib.suppress(OSError):  # a sweeper took it as one that is half removed
            path.rmdir()
        if isinstance(error, FileNotFoundError):
            return None
        raise
    try:
        for _ in range(LOOKS):
            if _lock(path, lock_fd):
                return lock_fd
            if not (path / LOCK_NAME).exists():
                break
            time.sleep(0.005)  # `live` looks at it at this moment
    except OSError:
        remove_path(path)
        os.close(lock_fd)
        raise
    os.close(lock_fd)
    return None


def _lock(path: Path, lock_fd: int) -> bool:
    """Take the lock without waiting; False if another holds it, or has removed the file since it was opened."""
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock_fd), os.lstat(path / LOCK_NAME))
    except (BlockingIOError, FileNotFoundError):
        return False


def _sweep(base: Path) -> None:
    """Remove what dead owners of this user left in `base`; what cannot be removed now is left to the next one."""
    try:
        with os.scandir(base) as entries:
            found = [Path(entry.path) for entry in entries if _is_ours(entry)]
    except OSError:
        return
    for path in found:
        try:
            _sweep_one(path)
        except OSError:  # another sweeper, or its owner, is at it; a directory of strange content stays
            continue


def _is_ours(entry: os.DirEntry[str]) -> bool:
    if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
        return False
    return entry.stat(follow_symlinks=False).st_uid == os.getuid()


def _sweep_one(path: Path) -> None:
    try:
        lock_fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        path.rmdir()  # empty: half removed, or just made by an owner, who then takes another name
        return
    try:
        if _lock(path, lock_fd):
            remove_path(path)
    finally:
        os.close(lock_fd)
