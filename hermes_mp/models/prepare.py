"""From a model directory to a skeleton, its units and its footprint: all that is known before the first weight byte.

Compute does this while the loaders already read. It binds nothing and knows no process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from hermes_mp.errors import ContextTooLong
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.host.code_pages import give_back_code
from hermes_mp.models.footprint import DEFAULT_CONTEXT, Footprint, measure, model_maximum
from hermes_mp.models.skeleton import Skeleton, build_skeleton
from hermes_mp.models.trace import trace_forward
from hermes_mp.models.units import Division, cast_nbytes, divide


@dataclass
class Prepared:
    skeleton: Skeleton
    division: Division
    footprint: Footprint


def prepare(
    checkpoint: Checkpoint,
    dtype: str,
    context: int | None,
    batch: int,
    say: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Build, trace and divide the model of `checkpoint` for `batch` sequences of `context` positions.

    Raises the errors of `build_skeleton` and `divide`; ContextTooLong where `context` exceeds the model's maximum.
    """
    directory: Path = checkpoint.directory
    say("building the model without its weights")
    skeleton = build_skeleton(directory, checkpoint, dtype)
    maximum = model_maximum(skeleton.model.config)
    if context is not None and maximum is not None and context > maximum:
        raise ContextTooLong(f"--context {context} is more than the {maximum} positions of {directory}", "lower it")
    positions = context or min(DEFAULT_CONTEXT, maximum or DEFAULT_CONTEXT)
    say("tracing the order of its weights")
    trace = trace_forward(skeleton.model, batch, positions)
    division = divide(skeleton, trace)
    blocks = [block for matrix in division.matrices for block in matrix.blocks]
    scratch = cast_nbytes(division) + 4 * batch * max((b.last - b.first for b in blocks), default=0)
    scratch += sum(m.source.info.nbytes // m.source.info.shape[0] for m in division.matrices) * batch * positions
    footprint = measure(skeleton.model, trace, batch, positions, scratch)
    return Prepared(skeleton, division, footprint)


def settle(dtype: torch.dtype, images: bool = False) -> None:
    """Give back what only the start needed, then do once what passes do: what is measured next is what they take.

    Torch's lazy allocations are made, and the pages of its code are mapped that passes and sampling run through.
    """
    give_back_code()
    chance = torch.Generator()  # not the caller's random numbers
    with torch.no_grad():
        states = torch.randn(1, 64, 256, dtype=dtype, generator=chance)
        weight = torch.randn(256, 256, dtype=dtype, generator=chance)
        for inputs in (states, states[:, :1]):
            F.gelu(F.layer_norm(F.linear(inputs, weight, weight[0]), (256,)))
            torch.softmax(F.linear(inputs, weight), -1, dtype=torch.float32)
        heads = states.view(1, 64, 4, 64).transpose(1, 2)
        F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        _activate(F.embedding(torch.arange(8)[None], weight))
        _sample(F.linear(states[:, -1], weight).float(), chance)
        if images:
            F.conv2d(torch.zeros(1, 3, 32, 32, dtype=dtype), torch.zeros(8, 3, 16, 16, dtype=dtype), stride=16)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
    if trim is not None:
        trim(0)


def _activate(states: torch.Tensor) -> None:
    """What layers do besides multiplying: `states` [1, 8, 256]."""
    joined = torch.cat([F.silu(states), torch.tanh(states), F.gelu(states, approximate="tanh")], -1).float()
    joined *= torch.rsqrt(joined.pow(2).mean(-1, keepdim=True) + 1e-6)
    angles = torch.arange(8)[:, None] * torch.arange(4.0)
    torch.where(torch.full((8, 8), 1.0).triu(1).bool(), 0.0, -1e9)
    (joined[..., :4] * angles.cos() + joined[..., 4:8] * angles.sin()).to(states.dtype)


def _sample(logits: torch.Tensor, chance: torch.Generator) -> None:
    """What `generate` does with `logits` [1, words]."""
    logits.argmax(-1)
    kept, _ = torch.sort(logits.masked_fill(logits < 0, -1e9), descending=True)
    torch.topk(logits.log_softmax(-1), 5)
    torch.isin(torch.arange(8), torch.arange(4))
    torch.multinomial(kept.softmax(-1).cumsum(-1), 1, generator=chance)
