"""The last step before memory is measured: gives back what only the start needed, and does once what passes do.

Measured next is what the process takes from then on, weights and activations apart. Knows no model.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F

from hermes_mp.host import malloc, memory
from hermes_mp.host.code_pages import give_back_code

CODE_NBYTES = 28 << 20  # of libraries, that passes and sampling run through: 30 to 45 MiB were measured


def settle(dtype: torch.dtype, images: bool = False) -> int:
    """Bytes that this process takes from now on.

    Make torch's lazy allocations, and map the pages of its code that passes and sampling run through.

    In `dtype`, the model's; `images`: it looks at images. Freed memory goes back to the system. In a full
    cgroup the kernel takes code away as fast as it is mapped; it counts all the same, as it must come back.
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
    malloc.trim()
    found = memory.quick(os.getpid())
    return found.total_nbytes + max(0, CODE_NBYTES - found.file_nbytes)


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
