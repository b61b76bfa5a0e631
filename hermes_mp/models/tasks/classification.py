"""Labels with scores, for texts; images share the scoring. Scores are what transformers' pipelines give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hermes_mp.models.tasks.choice import CLASSIFICATION
from hermes_mp.models.tasks.task import Answer, Say, number, passes
from hermes_mp.models.tasks.text_input import TextInput


class TextClassification:
    """Says which labels fit a text."""

    def __init__(self, model: Any, directory: Path, options: dict[str, Any]) -> None:
        self.model = model
        self.input = TextInput(model, directory, ("text", "token_ids"))

    def answer(self, request: dict[str, Any], say: Say, final: bool) -> Answer:
        """All labels, best first."""
        inputs = self.input.read(request)
        with passes(self.model, 1, final), torch.no_grad():
            logits = self.model(**inputs).logits[0]
        return {"task": CLASSIFICATION, "labels": scored(logits, self.model.config)}


def scored(logits: torch.Tensor, config: Any, most: int | None = None) -> list[dict[str, Any]]:
    """Labels with scores of logits [labels], best first, at most `most` of them."""
    values = logits.float()
    if config.problem_type == "regression":
        scores = values
    elif config.problem_type == "multi_label_classification" or len(values) == 1:
        scores = values.sigmoid()
    else:
        scores = values.softmax(dim=-1)
    names = config.id2label or {}
    best = scores.argsort(descending=True, stable=True)[:most].tolist()
    return [{"label": names.get(at, f"LABEL_{at}"), "score": number(scores[at].item())} for at in best]
