"""For tests of `load`: torch is imported only where a test asks for these; the other agents do without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def quiet_and_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, no chatter, a cache of unit lists of its own."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny GPT-2; nobody may change it."""
    from models.families import family

    directory = tmp_path_factory.mktemp("gpt2")
    family("gpt2").save(directory)
    return directory
