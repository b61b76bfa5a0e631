"""Where the user's cache is; nothing of ours is ever written anywhere else."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/hermes-mp`, or `~/.cache/hermes-mp`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return Path(root if os.path.isabs(root) else os.path.expanduser("~/.cache")) / "hermes-mp"
