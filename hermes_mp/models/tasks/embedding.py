"""Vectors for texts, pooled as the model's own directory says, and sentences ranked by them against a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hermes_mp.models.tasks.choice import EMBEDDING
from hermes_mp.models.tasks.sentence_config import pool, read_sentence_config
from hermes_mp.models.tasks.task import Answer, Say, given, number, passes
from hermes_mp.models.tasks.text_input import TextInput


class Embedding:
    """Embeds a text; with `sentences` in the request, ranks those by how close they are to it."""

    def __init__(self, model: Any, directory: Path, options: dict[str, Any]) -> None:
        self.model = model
        self.base = model.base_model
        self.rows = int(options.get("batch") or 1)
        self.with_tokens = bool(options.get("token_embeddings"))
        self.pooling = read_sentence_config(directory)
        self.input = TextInput(model, directory, ("text", "token_ids"), self.pooling.max_tokens)

    def answer(self, request: dict[str, Any], say: Say, final: bool) -> Answer:
        """An embedding, or a ranking where the request has `sentences`."""
        if "sentences" in request:
            return self._rank(given(request, ("text",), self.model)[1], list(request["sentences"]), final)
        inputs = self.input.read(self._prepared(request))
        with passes(self.model, 1, final):
            vectors, pooled = self._embed(inputs)
        answer: Answer = {
            "task": EMBEDDING,
            "pooling": self.pooling.pooling,
            "normalized": self.pooling.normalized,
            "tokens": vectors.shape[1],
            "dimensions": pooled.shape[1],
            "embedding": [number(one) for one in pooled[0].tolist()],
        }
        if self.with_tokens:
            answer["token_embeddings"] = [[number(one) for one in row] for row in vectors[0].float().tolist()]
        return answer

    def _rank(self, text: str, sentences: list[str], final: bool) -> Answer:
        texts = [self._prepare(one) for one in (text, *sentences)]
        padded = self.input.tokenizer is not None and self.input.tokenizer.pad_token is not None
        rows = self.rows if padded else 1
        chunks = [self.input.from_texts(texts[at : at + rows]) for at in range(0, len(texts), rows)]
        with passes(self.model, len(chunks), final):
            pooled = [self._embed(inputs)[1] for inputs in chunks]
        vectors = torch.nn.functional.normalize(torch.cat(pooled), dim=1)
        scores = (vectors[1:] @ vectors[0]).tolist()
        best = sorted(range(len(sentences)), key=lambda at: -scores[at])
        return {
            "task": "ranking",
            "text": text,
            "ranking": [{"sentence": sentences[at], "score": number(scores[at])} for at in best],
        }

    def _embed(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            vectors = self.base(**inputs).last_hidden_state
        mask = inputs.get("attention_mask")
        return vectors, pool(vectors, torch.ones(vectors.shape[:2]) if mask is None else mask, self.pooling)

    def _prepared(self, request: dict[str, Any]) -> dict[str, Any]:
        return {key: self._prepare(one) if key in ("text", "line") else one for key, one in request.items()}

    def _prepare(self, text: str) -> str:
        text = self.pooling.prefix + text
        return text.lower() if self.pooling.lower_case else text
