"""Masked language models: the five best words for every mask token; a text without one is embedded instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hermes_mp.models.tasks.choice import FILL_MASK
from hermes_mp.models.tasks.embedding import Embedding
from hermes_mp.models.tasks.task import Answer, Say, number, passes

TOP = 5


class FillMask:
    """Guesses what is behind the mask."""

    def __init__(self, model: Any, directory: Path, options: dict[str, Any]) -> None:
        self.model = model
        self.embedding = Embedding(model, directory, options)
        self.input = self.embedding.input

    def answer(self, request: dict[str, Any], say: Say, final: bool) -> Answer:
        """`masks`, in the order of the text: each with its `position` and its `candidates`, best first."""
        inputs = self.input.read(request)
        tokenizer = self.input.tokenizer
        ids = inputs["input_ids"][0]
        if tokenizer is None or tokenizer.mask_token_id is None or not (ids == tokenizer.mask_token_id).any():
            return self.embedding.answer(request, say, final)
        with passes(self.model, 1, final), torch.no_grad():
            logits = self.model(**inputs).logits[0]
        masks = []
        for position in (ids == tokenizer.mask_token_id).nonzero()[:, 0].tolist():
            best = logits[position].float().softmax(dim=-1).topk(min(TOP, logits.shape[1]))
            candidates = [
                {
                    "token": tokenizer.decode([one]).strip(),
                    "token_id": one,
                    "score": number(score),
                    "text": tokenizer.decode(
                        torch.cat([ids[:position], torch.tensor([one]), ids[position + 1 :]]), skip_special_tokens=True
                    ),
                }
                for score, one in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
            masks.append({"position": position, "candidates": candidates})
        return {"task": FILL_MASK, "masks": masks}
