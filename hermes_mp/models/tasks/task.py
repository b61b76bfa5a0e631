"""What all tasks have in common: opened for a model, then asked one request at a time.

A request is a dict with one of `prompt`, `text`, `image` (a path), `token_ids`, or `line` (a line of standard input:
whatever the model takes), and maybe of `room_nbytes`, how much memory preparing the input may take, its `number`, and
the tokens that were `said` of an answer that is to be gone on with.
An answer is a dict that JSON can hold, with its `task`; docs/json.md lists its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from hermes_mp.errors import WrongInput
from hermes_mp.models.tasks import choice

Answer = dict[str, Any]


class Say(Protocol):
    """Takes an answer as it comes: its text and, where that was asked for, its tokens ahead of their text."""

    def __call__(self, text: str, token_ids: Sequence[int] = ()) -> None: ...


class Task(Protocol):
    """One model doing what it is for."""

    def answer(self, request: dict[str, Any], say: Say, final: bool) -> Answer:
        """Answer one request. `say` gets text as it comes (generation only); `final`: no request will follow.

        Raises WrongInput, ContextTooLong, BadImage, CallTooLarge, and whatever the model's forward raises.
        """


def open_task(model: Any, directory: Path, options: dict[str, Any]) -> Task:
    """The task of `model`, a transformers model whose files lie in `directory`.

    `options` are fields of LaunchConfig by name; what is missing keeps its default there.
    Raises UnsupportedCheckpoint, MissingPackage.
    """
    from hermes_mp.models.tasks import classification, embedding, fill_mask, generation, image

    name = choice.choose_task(model.config, type(model).__name__, directory)
    kinds: dict[str, Callable[..., Task]] = {
        choice.GENERATION: generation.TextGeneration,
        choice.CLASSIFICATION: classification.TextClassification,
        choice.FILL_MASK: fill_mask.FillMask,
        choice.EMBEDDING: embedding.Embedding,
        choice.SENTENCE_EMBEDDING: embedding.Embedding,
        choice.IMAGE_CLASSIFICATION: image.ImageClassification,
        choice.IMAGE_EMBEDDING: image.ImageEmbedding,
    }
    return kinds[name](model, directory, options)


def passes(model: Any, count: int, final: bool) -> AbstractContextManager[None]:
    """Inside, at most `count` passes run; a streamed model is told so if nothing follows them, and reads no further."""
    if final and hasattr(model, "expect_passes"):
        expected: AbstractContextManager[None] = model.expect_passes(count)
        return expected
    return nullcontext()


def given(request: dict[str, Any], takes: tuple[str, ...], model: Any) -> tuple[str, Any]:
    """The input of a request and its kind, one of `takes`; a `line` counts as the first of them."""
    if "line" in request:
        return takes[0], request["line"]
    for kind in takes:
        if kind in request:
            return kind, request[kind]
    flags = " or ".join("--" + kind.replace("_", "-") for kind in takes)
    wrong = next((kind for kind in ("prompt", "text", "image", "token_ids") if kind in request), "nothing")
    wrong = wrong if wrong == "nothing" else "--" + wrong.replace("_", "-")
    raise WrongInput(f"{type(model).__name__} takes {flags}, not {wrong}")


def number(value: float) -> float:
    """A float32 as the shortest decimal that gives it back: half the JSON of the float64 that Python would print."""
    return float(f"{value:.9g}")
