"""For every test of models: a cache directory of its own, one thread to compute with, no chatter; and checkpoints.

One thread: two that spin on a busy machine of two cores wait for each other twenty times as long as they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from families import add_tokenizer, family


@pytest.fixture(scope="session", autouse=True)
def quiet_and_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the unit lists of the tests' models are remembered."""
    cache = tmp_path_factory.mktemp("cache")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield cache


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a family's checkpoint with a tokenizer, written once; nobody may change it."""
    made: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            family(name).save(made[name])
            if not family(name).pixels:
                add_tokenizer(made[name])
        return made[name]

    return directory
