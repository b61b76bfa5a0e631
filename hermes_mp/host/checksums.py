"""What the weights of a model are to be: the SHA-256 that was published with them, the checksums of earlier runs.

An index of these lies in the user's cache, never beside the model. It goes by the files' inodes, sizes and times: a
file that was replaced or written to is a new one, and trusted at its first use where nothing was published.
Sources: the names of blobs in huggingface_hub's cache are the SHA-256 of large files; sha256sum(1).
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path

from hermes_mp.errors import CheckpointBroken
from hermes_mp.host.cachedir import cache_directory, keep
from hermes_mp.host.checkpoint import Checkpoint, CheckpointFile
from hermes_mp.host.reading import FileReader

SUMS = "SHA256SUMS"
MOST_SUMS_NBYTES = 1 << 20
CHUNK_NBYTES = 8 << 20
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_BLOB = re.compile(r"[0-9a-f]{64}")


@dataclass
class Index:
    """`sha256` by the names of the files that were found to have it, `units`: checksums as `core.integrity` knows."""

    path: Path
    sha256: dict[str, str] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)

    def keep(self) -> str:
        """See `cachedir.keep`."""
        return keep(self.path, json.dumps({"sha256": self.sha256, "units": self.units}))


def recall(checkpoint: Checkpoint) -> Index:
    """What is known of these files; nothing where that is damaged."""
    stamps = [[os.path.realpath(file.path), *astuple(file.stamp)] for file in checkpoint.files]
    name = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:32]
    path = cache_directory() / "checksums" / f"{name}.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        sha256 = {str(name): str(value) for name, value in document["sha256"].items()}
        units = {str(key): int(value) for key, value in document["units"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return Index(path)
    return Index(path, sha256, units)


def published(checkpoint: Checkpoint) -> dict[str, str]:
    """The SHA-256 by the names of the files, in hexadecimal, of as many as one is given for.

    By the hub's cache, or by a file SHA256SUMS beside them, which counts where both say something.
    """
    found = {}
    for file in checkpoint.files:
        blob = os.path.realpath(file.path)
        if os.path.basename(os.path.dirname(blob)) == "blobs" and _BLOB.fullmatch(os.path.basename(blob)):
            found[file.path.name] = os.path.basename(blob)
    return found | _sums(checkpoint)


def prove(checkpoint: Checkpoint, told: Mapping[str, str], say: Callable[[str], None]) -> str:
    """Compare each file, once, with the SHA-256 that was `published` or that is `told` here, by names.

    `say` hears how far it is. What it returns is as of `cachedir.keep`. Raises CheckpointBroken where one differs, and
    what `FileReader` raises.
    """
    wanted = published(checkpoint) | dict(told)
    if not wanted:
        return ""
    index = recall(checkpoint)
    named = [file for file in checkpoint.files if file.path.name in wanted]
    todo = [file for file in named if index.sha256.get(file.path.name) != wanted[file.path.name]]
    for file in todo:
        name = file.path.name
        found = sha256_of(file, functools.partial(_progress, say, name))
        if found != wanted[name]:
            raise CheckpointBroken(f"{file.path} has the SHA-256 {found}, it was published with {wanted[name]}")
        index.sha256[name] = found
    return index.keep() if todo else ""


def sha256_of(file: CheckpointFile, say: Callable[[int], None]) -> str:
    """In hexadecimal; `say` hears the percentage that is done. The page cache keeps nothing of it."""
    found = hashlib.sha256()
    with (
        FileReader(file.path, file.nbytes) as reader,
        mmap.mmap(-1, CHUNK_NBYTES) as memory,
        memoryview(memory) as buffer,
    ):
        for done in range(0, file.nbytes, CHUNK_NBYTES):
            say(100 * done // file.nbytes)
            nbytes = min(CHUNK_NBYTES, file.nbytes - done)
            reader.read_into(buffer, done, nbytes)
            with buffer[:nbytes] as part:
                found.update(part)
    return found.hexdigest()


def _progress(say: Callable[[str], None], name: str, percent: int) -> None:
    say(f"comparing {name} with its SHA-256: {percent} %")


def _sums(checkpoint: Checkpoint) -> dict[str, str]:
    """What the file SHA256SUMS says of the weights files; lines of another form are somebody else's."""
    path = checkpoint.directory / SUMS
    if not path.is_file():  # a FIFO would have us wait for ever
        return {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [_LINE.fullmatch(line) for line in file.read(MOST_SUMS_NBYTES).splitlines()]
    except OSError:
        return {}
    names = {file.path.name for file in checkpoint.files}
    told = {line[2].removeprefix("./"): line[1].lower() for line in lines if line is not None}
    return {name: value for name, value in told.items() if name in names}
