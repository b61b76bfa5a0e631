"""Real shapes, random weights: writes checkpoints as `save_pretrained` would, tensor by tensor in constant memory.

    python benchmarks/make_models.py bert-large llama-3.2-1b --into bench-models

The model is built on the meta device and saved by transformers itself, so names, tied weights, shards and config.json
are transformers' own; only the bytes are ours: a pool of random numbers, repeated. A checkpoint that is there is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import modeling_utils

POOL = 16_777_213  # a prime: no row of a matrix equals another
WRITE_NBYTES = 64 << 20
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Shape:
    """A model class, its configuration, and how it is stored."""

    model: str
    config: str
    dtype: torch.dtype
    settings: dict[str, Any] = field(default_factory=dict)
    shard: str = "50GB"


BERT = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SHAPES = {
    "bert-large": Shape("BertForMaskedLM", "BertConfig", torch.float32, BERT),
    "vit-large": Shape("ViTForImageClassification", "ViTConfig", torch.float32, BERT | {"num_labels": 1000}),
    "gpt2": Shape("GPT2LMHeadModel", "GPT2Config", torch.float32),
    "llama-3.2-1b": Shape(
        "LlamaForCausalLM", "LlamaConfig", torch.bfloat16,
        {
            "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 131072,
            "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "bos_token_id": 128000, "eos_token_id": 128001,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "high_freq_factor": 4.0,
                "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            },
        },
    ),
    "gpt-j-6b": Shape(
        "GPTJForCausalLM", "GPTJConfig", torch.bfloat16, {"tie_word_embeddings": False}, shard="5GB"
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHAPES)}; none: all of them")
    parser.add_argument("--into", type=Path, default=Path("bench-models"))
    options = parser.parse_args()
    unknown = set(options.names) - set(SHAPES)
    if unknown:
        parser.error(f"no such shape: {', '.join(sorted(unknown))}")
    for name in options.names or SHAPES:
        print(make(name, options.into))


def make(name: str, into: Path) -> Path:
    """Write the model unless it is there; its directory."""
    directory = into / name
    if not directory.exists():
        partial = into / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write(SHAPES[name], partial)
        partial.rename(directory)
    return directory


def write(shape: Shape, directory: Path) -> None:
    """The checkpoint of a random model of this shape."""
    config = getattr(transformers, shape.config)(**shape.settings)
    with torch.device("meta"):
        model = getattr(transformers, shape.model)(config).to(shape.dtype)
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
                file.write(values.view(torch.uint8).numpy())
                continue
            if tensor.dtype not in pools:
                pools[tensor.dtype] = make_pool(tensor.dtype)
            write_repeated(file, pools[tensor.dtype], number * 4 * 1_299_709, tensor.numel() * tensor.element_size())
        file.flush()
        os.fsync(file.fileno())


def make_pool(dtype: torch.dtype) -> memoryview:
    """Numbers like those of freshly initialised matrices: standard deviation 0.02."""
    values = torch.randn(POOL, generator=torch.Generator().manual_seed(7)).mul_(0.02).to(dtype)
    return memoryview(values.view(torch.uint8).numpy())


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
    main()
