"""For every test of models: a cache directory of its own, one thread to compute with, and no chatter.

One thread: two that spin on a busy machine of two cores wait for each other twenty times as long as they compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers


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
