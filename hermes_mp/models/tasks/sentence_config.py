"""How a sentence-transformers directory wants its token vectors made into one: modules.json, 1_Pooling/config.json.

It knows no model and no tokenizer; `pool` is plain arithmetic on [rows, tokens, width].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hermes_mp.errors import CheckpointBroken, UnsupportedCheckpoint

POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
SUPPORTED = ("cls", "mean", "max", "lasttoken")


@dataclass(frozen=True)
class SentenceConfig:
    """What happens to the token vectors, and to the text before."""

    pooling: str = "mean"
    normalized: bool = False
    max_tokens: int | None = None
    lower_case: bool = False
    prefix: str = ""


def read_sentence_config(directory: Path) -> SentenceConfig:
    """The directory's own wish; the mean, as it is, where it has none. UnsupportedCheckpoint, CheckpointBroken."""
    modules = _json(directory / "modules.json", [])
    if not modules:
        return SentenceConfig()
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise UnsupportedCheckpoint(f"{directory} asks for {', '.join(unknown)} modules, which are not supported", "")
    pooling = "mean"
    if "Pooling" in kinds:
        pooling = _pooling(_json(directory / _path_of(modules, "Pooling") / "config.json", {}))
    if pooling not in SUPPORTED:
        raise UnsupportedCheckpoint(f"{directory} asks for {pooling} pooling, which is not supported", "")
    text = _json(directory / _path_of(modules, "Transformer") / "sentence_bert_config.json", {})
    prompts = _json(directory / "config_sentence_transformers.json", {})
    prefix = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name") or "", "")
    return SentenceConfig(
        pooling, "Normalize" in kinds, text.get("max_seq_length"), bool(text.get("do_lower_case")), prefix
    )


def pool(vectors: torch.Tensor, mask: torch.Tensor, config: SentenceConfig) -> torch.Tensor:
    """[rows, width] of [rows, tokens, width] in float32; `mask` [rows, tokens] is 1 where a token is no padding."""
    vectors = vectors.float()
    weights = mask.unsqueeze(-1).to(vectors.dtype)
    if config.pooling == "cls":
        pooled = vectors[torch.arange(len(mask)), mask.argmax(dim=1)]
    elif config.pooling == "lasttoken":
        pooled = vectors[torch.arange(len(mask)), mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)]
    elif config.pooling == "max":
        pooled = vectors.masked_fill(weights == 0, -torch.inf).amax(dim=1)
    else:
        pooled = (vectors * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
    return torch.nn.functional.normalize(pooled, dim=1) if config.normalized else pooled


def _pooling(settings: dict[str, Any]) -> str:
    named = settings.get("pooling_mode")
    modes = [named] if isinstance(named, str) else [name for key, name in POOLINGS.items() if settings.get(key)]
    return "+".join(modes) or "mean"


def _path_of(modules: list[dict[str, Any]], kind: str) -> str:
    return next((str(one.get("path", "")) for one in modules if str(one.get("type", "")).endswith("." + kind)), "")


def _json(path: Path, default: Any) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise CheckpointBroken(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, type(default)):
        raise CheckpointBroken(f"{path} is not what it should be")
    return value
