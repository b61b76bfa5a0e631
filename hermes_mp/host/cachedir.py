"""Where the user's cache is, and how a file of it is written; nothing of ours is ever written anywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

PACKAGES = ("torch", "transformers", "hermes-mp")

FORMAT = 8  # of profiles, and so of what is planned by them; an entry of another format is made anew


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/hermes-mp`, or `~/.cache/hermes-mp`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return Path(root if os.path.isabs(root) else os.path.expanduser("~/.cache")) / "hermes-mp"


def keep(path: Path, text: str) -> str:
    """Write a file of the cache, all of it or nothing, whatever happens to the power; why it could not, or "".

    Where it cannot be done the next start is merely slower.
    """
    scratch = path.with_suffix(f".{os.getpid()}-{threading.get_native_id()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(scratch, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        return f"nothing can be kept in {path.parent} ({error.strerror})"
    return ""


def versions() -> list[str]:
    """Installed versions by the names of the metadata folders: importing or parsing them would take 25 ms."""
    found = []
    wanted = tuple(name.replace("-", "_") + "-" for name in PACKAGES)
    for folder in sys.path:
        with contextlib.suppress(OSError):
            found += [name for name in os.listdir(folder or ".") if name.startswith(wanted) and "-info" in name]
    return sorted(set(found))
