"""What this machine keeps of other boards, in `$XDG_CONFIG_HOME/hermes-mp`: its own keys, and who is paired with it.

`identity.json` has name, address and key pair; `pairings.json` the boards that we may use, the heads that may use us,
and the join tokens that are open, by their public halves. Both are for our user alone, and written whole or not at all.
Several processes may change them: each reads, changes and writes under one lock. It knows no socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hermes_mp.config import is_name
from hermes_mp.core.address import split_address
from hermes_mp.core.pairing import is_key
from hermes_mp.errors import BadOption, BoardUnknown, SystemCallFailed, UnsafeAddress
from hermes_mp.host.keys import KeyPair

IDENTITY, PAIRINGS, LOCK = "identity.json", "pairings.json", "lock"
MAX_NBYTES = 1 << 20  # thousands of boards


@dataclass(frozen=True)
class Identity:
    """Who this board is; `address` where heads reach it, "" where it only is a head."""

    name: str
    address: str
    keys: KeyPair


@dataclass(frozen=True)
class PairedBoard:
    """A board that we may use."""

    address: str
    key: str


@dataclass
class Pairings:
    """By name; tokens by public key, with the second of 1970 in which they expire."""

    boards: dict[str, PairedBoard] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


def config_directory() -> Path:
    """`$XDG_CONFIG_HOME/hermes-mp`, or `~/.config/hermes-mp`."""
    root = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(root if os.path.isabs(root) else os.path.expanduser("~/.config")) / "hermes-mp"


class Store:
    """The files in one folder. UnsafeAddress where others can read them, BoardUnknown where they make no sense.

    SystemCallFailed where they cannot be read or written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = config_directory() if folder is None else folder
        self._seen: tuple[tuple[int, ...], Pairings] | None = None

    def identity(self) -> Identity | None:
        """None where this board has none yet."""
        said = _read(self.folder / IDENTITY)
        if said is None:
            return None
        try:
            name, address, public, secret = (said[key] for key in ("name", "address", "public", "secret"))
        except (KeyError, TypeError):
            raise _nonsense(self.folder / IDENTITY, "a key of it is missing") from None
        if not (is_name(name) and is_key(public) and is_key(secret) and _is_address(address, or_empty=True)):
            raise _nonsense(self.folder / IDENTITY, "a name, an address or a key in it is none")
        return Identity(name, address, KeyPair(public, secret))

    def keep_identity(self, identity: Identity) -> None:
        """Replace it."""
        with self._locked():
            keys = identity.keys
            said = {"name": identity.name, "address": identity.address, "public": keys.public, "secret": keys.secret}
            _write(self.folder / IDENTITY, said)

    def pairings(self) -> Pairings:
        """What is so now: read again only where the file has changed. To be looked at, not changed."""
        path = self.folder / PAIRINGS
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return Pairings()
        except OSError as error:
            raise _cannot(path, error) from error
        version = (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)  # each write makes a new inode
        if self._seen is None or self._seen[0] != version:
            self._seen = version, _pairings_of(path)
        return self._seen[1]

    @contextlib.contextmanager
    def change(self, now_s: float) -> Iterator[Pairings]:
        """What the caller makes of them is kept where nothing is raised; tokens that have expired by now are not."""
        with self._locked():
            pairings = _pairings_of(self.folder / PAIRINGS)
            yield pairings
            pairings.tokens = {key: expires_s for key, expires_s in pairings.tokens.items() if expires_s > now_s}
            _write(self.folder / PAIRINGS, asdict(pairings))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _cannot(self.folder, error) from error
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX)  # held for a few milliseconds by whoever has it
            yield
        finally:
            os.close(lock_fd)


def _read(path: Path) -> Any:
    """The JSON of a file that is ours alone; None where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot(path, error) from error
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if found.st_mode & 0o077 or found.st_uid not in (os.getuid(), 0):
            mode = stat.S_IMODE(found.st_mode)
            why = f"{path} holds keys and is not for you alone (mode {mode:04o}, user {found.st_uid})"
            raise UnsafeAddress(why, f"chmod 600 {path}; where others use this machine, remove it and pair again")
        text = file.read(MAX_NBYTES + 1)
    try:
        if len(text) > MAX_NBYTES:
            raise ValueError("too large")
        said = json.loads(text)
        if not isinstance(said, dict):
            raise ValueError("no object")
        return said
    except (ValueError, RecursionError):
        raise _nonsense(path, "it is no JSON of ours") from None


def _write(path: Path, said: object) -> None:
    """All of it or nothing, whatever happens to the power. Raises OSError."""
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.unlink(missing_ok=True)
    try:
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(said, file, indent=1)
            file.flush()
            os.fsync(fd)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _pairings_of(path: Path) -> Pairings:
    said = _read(path)
    if said is None:
        return Pairings()
    try:
        boards = {name: PairedBoard(one["address"], one["key"]) for name, one in said["boards"].items()}
        heads, tokens = dict(said["heads"]), dict(said["tokens"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _nonsense(path, "boards, heads or tokens are missing in it") from None
    good = all(is_name(name) for name in (*boards, *heads))
    good = good and all(is_key(one.key) and _is_address(one.address) for one in boards.values())
    good = good and all(is_key(key) for key in (*heads.values(), *tokens))
    good = good and all(type(expires_s) is int for expires_s in tokens.values())
    if not good:
        raise _nonsense(path, "a name, an address or a key in it is none")
    return Pairings(boards, heads, tokens)


def _is_address(text: object, or_empty: bool = False) -> bool:
    if text == "" and or_empty:
        return True
    try:
        return isinstance(text, str) and split_address(text)[1] > 0
    except BadOption:
        return False


def _cannot(path: Path, error: OSError) -> SystemCallFailed:
    why = f"{path}, where keys and pairings lie, cannot be used: {error.strerror}"
    return SystemCallFailed(why, "run it as the user whose it is, or set XDG_CONFIG_HOME to another directory")


def _nonsense(path: Path, why: str) -> BoardUnknown:
    return BoardUnknown(f"{path} cannot be understood: {why}", f"remove {path} and pair again")
