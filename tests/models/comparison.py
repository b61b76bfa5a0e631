"""A streamed model and the plain one side by side, and what it means that they agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from families import Family

from hermes_mp import load


@contextmanager
def both(family: Family, directory: Path, **settings: Any) -> Iterator[tuple[Any, Any]]:
    """(streamed, plain) of the family's checkpoint, with fewer slots than units and no gradients asked for."""
    plain = family.load_plain(directory)
    with load(directory, **{"loaders": 2, "_slots": 3, **settings}) as streamed, torch.no_grad():
        yield streamed, plain


def assert_same(streamed: Any, plain: Any, where: str = "answer") -> None:
    """Bit for bit, whatever is nested in what."""
    assert type(streamed) is type(plain), where
    if isinstance(plain, torch.Tensor):
        assert streamed.dtype == plain.dtype, where
        assert torch.equal(streamed, plain), where
    elif isinstance(plain, dict):
        assert streamed.keys() == plain.keys(), where
        for name, value in plain.items():
            assert_same(streamed[name], value, f"{where}.{name}")
    elif isinstance(plain, (tuple, list)):
        assert len(streamed) == len(plain), where
        for number, value in enumerate(plain):
            assert_same(streamed[number], value, f"{where}[{number}]")
    elif isinstance(plain, transformers.EncoderDecoderCache):
        assert_same(streamed.self_attention_cache, plain.self_attention_cache, where)
        assert_same(streamed.cross_attention_cache, plain.cross_attention_cache, where)
    elif isinstance(plain, transformers.Cache):
        for one, other in zip(streamed.layers, plain.layers, strict=True):
            assert_same((one.keys, one.values), (other.keys, other.values), f"{where} cache")
    else:
        assert streamed == plain, where
