"""For launches: models to run, made once; a fresh home and a cache of unit lists that is not the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of them."""
    from tiny_models import make_models

    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a launch runs; it makes the directory itself."""
    return tmp_path / "home"
