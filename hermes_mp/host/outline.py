"""A model's outline: its small files whole, of its weights files the headers, followed by holes that take no room.

On such a directory `find_checkpoint` and everything that needs no weights works. Here is what a lender tells of its
copy, by names that cannot lead out of the directory, and what a borrower makes of that. It knows no socket.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from hermes_mp.core.header import LENGTH_NBYTES, header_length
from hermes_mp.errors import BadMessage, CheckpointBroken, ModelNotFound, ReadFailed, WriteFailed
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.host.retrying import retried

SMALL = (".json", ".model", ".txt", ".jinja", ".tiktoken")  # what models have beside their weights, and no programs
MAX_FILE_NBYTES = 64 << 20  # the largest tokenizers take 35 MB, the largest headers 16
MAX_FILES = 512
MAX_LISTED = 2 * MAX_FILES  # with those of weights
MAX_NAME_CHARS = 200
MAX_WEIGHTS_NBYTES = 1 << 44  # of one file: no file system of a board has larger ones
WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Told:
    """A file of `nbytes`, of which the first `told_nbytes` are told."""

    nbytes: int
    told_nbytes: int


def contents(checkpoint: Checkpoint) -> dict[str, Told]:
    """What can be told of this model, by name. Raises ReadFailed."""
    weights = {file.path.name for file in checkpoint.files}
    found: dict[str, Told] = {}
    try:
        with os.scandir(checkpoint.directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if is_plain(entry.name) and entry.is_file():  # of a link, as in the hub's cache, what it leads to
                    nbytes = entry.stat().st_size
                    if entry.name in weights:
                        found[entry.name] = Told(nbytes, _header_nbytes(Path(entry.path), nbytes))
                    elif entry.name.endswith(SMALL) and nbytes <= MAX_FILE_NBYTES and len(found) < MAX_FILES:
                        found[entry.name] = Told(nbytes, nbytes)
    except OSError as error:
        raise ReadFailed(f"{checkpoint.directory} cannot be listed: {error.strerror}") from error
    return found


def begin_of(checkpoint: Checkpoint, name: str) -> bytes:
    """What is told of the file `name`. Raises ModelNotFound where it is none of those, ReadFailed."""
    told = contents(checkpoint).get(name)
    if told is None:
        raise ModelNotFound(f"{checkpoint.directory.name} has no file {name[:MAX_NAME_CHARS]!r} that could be told")
    return _read(checkpoint.directory / name, told.told_nbytes)


def list_as_json(files: dict[str, Told]) -> bytes:
    """The list of names as it travels."""
    return json.dumps({name: [told.nbytes, told.told_nbytes] for name, told in files.items()}).encode()


def list_from_json(text: bytes) -> dict[str, Told]:
    """Raises BadMessage for anything that `list_as_json` does not write, and for names that lead elsewhere."""
    try:
        found = {name: Told(*sizes) for name, sizes in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise BadMessage("this is no list of files") from None
    if len(found) > MAX_LISTED:
        raise BadMessage(f"a list of {len(found)} files, more than {MAX_LISTED}")
    for name, told in found.items():
        good = type(told.nbytes) is int and type(told.told_nbytes) is int and is_plain(name)
        good = good and name.endswith((*SMALL, WEIGHTS)) and 0 <= told.told_nbytes <= min(told.nbytes, MAX_FILE_NBYTES)
        most = MAX_WEIGHTS_NBYTES if name.endswith(WEIGHTS) else told.told_nbytes  # others are told whole
        if not good or told.nbytes > most:
            raise BadMessage(f"{name[:MAX_NAME_CHARS]!r} is no file of an outline")
    return found


def write(folder: Path, name: str, told: Told, begin: bytes) -> None:
    """`begin`, and a hole up to the file's length. Raises WriteFailed."""
    try:
        with open(folder / name, "xb") as file:
            file.write(begin)
            file.truncate(told.nbytes)
        os.utime(folder / name, (0, 0))  # part of the checkpoint's digest: the next outline is to have the same
    except OSError as error:
        why = f"the outline of the model cannot be written to {folder}: {error.strerror}"
        raise WriteFailed(why, "make room there, or name another folder in TMPDIR") from error


def is_plain(name: str) -> bool:
    """Whether it names a file in its directory, and none that is hidden."""
    return 0 < len(name) <= MAX_NAME_CHARS and "/" not in name and "\0" not in name and not name.startswith(".")


def _header_nbytes(path: Path, nbytes: int) -> int:
    try:
        return LENGTH_NBYTES + header_length(_read(path, LENGTH_NBYTES), nbytes)
    except CheckpointBroken as error:
        raise CheckpointBroken(f"{path}: {error}") from error


def _read(path: Path, nbytes: int) -> bytes:
    found = bytearray()
    try:
        fd = retried(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            while len(found) < nbytes and (part := retried(os.pread, fd, nbytes - len(found), len(found))):
                found += part
        finally:
            os.close(fd)
    except OSError as error:
        raise ReadFailed(f"{path} cannot be read: {error.strerror}") from error
    if len(found) < nbytes:
        raise ReadFailed(f"{path} ends at byte {len(found)}, it was {nbytes} bytes long or more")
    return bytes(found)
