"""Writes the checkpoint of a random model in a real shape, as `save_pretrained` would, in constant memory.

The model is built on the meta device and saved by transformers itself, so names, tied weights, shards and config.json
are transformers' own; only the bytes are ours: a pool of random numbers, repeated. Run as a process of its own: torch.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import modeling_utils

from hermes_mp.bench.shapes import SHAPES, Shape

POOL = 16_777_213  # a prime: no row of a matrix equals another
WRITE_NBYTES = 64 << 20
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def main(arguments: Sequence[str]) -> int:
    """`arguments`: the shape's name and the directory to make."""
    name, directory = arguments
    make(SHAPES[name], Path(directory))
    return 0


def make(shape: Shape, directory: Path) -> None:
    """Write the model beside `directory`, and give it that name once it is whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f".{directory.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(shape, partial)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(shape: Shape, directory: Path) -> None:
    """The checkpoint of a random model of this shape."""
    transformers.logging.disable_progress_bar()
    config = getattr(transformers, shape.config)(**shape.settings)
    with torch.device("meta"):
        model = getattr(transformers, shape.model)(config).to(getattr(torch, shape.dtype))
    original: Callable[..., None] = modeling_utils.safe_save_file
    modeling_utils.safe_save_file = save_file
    try:
        model.save_pretrained(directory, max_shard_size=shape.shard)
    finally:
        modeling_utils.safe_save_file = original


def save_file(tensors: dict[str, torch.Tensor], path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    """What safetensors' `save_file` would write, for meta tensors; their order in the file is its order too."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pools: dict[torch.dtype, memoryview] = {}
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, (name, tensor) in enumerate(ordered):
            if tensor.dim() == 1:
                values = small_values(name, tensor.numel(), number).to(tensor.dtype)
                array: Any = values.view(torch.uint8).numpy()
                file.write(array)
                continue
            if tensor.dtype not in pools:
                pools[tensor.dtype] = make_pool(tensor.dtype)
            write_repeated(file, pools[tensor.dtype], number * 4 * 1_299_709, tensor.numel() * tensor.element_size())
        file.flush()
        os.fsync(file.fileno())


def make_pool(dtype: torch.dtype) -> memoryview:
    """Numbers like those of freshly initialised matrices: standard deviation 0.02."""
    values = torch.randn(POOL, generator=torch.Generator().manual_seed(7)).mul_(0.02).to(dtype)
    array: Any = values.view(torch.uint8).numpy()
    return memoryview(array)


def small_values(name: str, count: int, seed: int) -> torch.Tensor:
    """Vectors: scales of norms around 1, biases around 0."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.02
    return values + 1 if name.endswith("weight") else values


def write_repeated(file: Any, pool: memoryview, start: int, nbytes: int) -> None:
    """`nbytes` of the pool from byte `start` on, going round."""
    at = start % len(pool)
    while nbytes:
        part = min(nbytes, len(pool) - at, WRITE_NBYTES)
        file.write(pool[at : at + part])
        nbytes, at = nbytes - part, (at + part) % len(pool)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
