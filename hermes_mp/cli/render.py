"""An answer as text for people: one pure function of the dict that docs/json.md describes."""

from __future__ import annotations

from typing import Any

FIRST_VALUES = 6


def render(answer: dict[str, Any]) -> str:
    """Lines without a last newline. Generated text is given as it is: a terminal has usually streamed it already."""
    task = answer["task"]
    if task == "text-generation":
        text = answer["text"]
        return " ".join(str(one) for one in answer["token_ids"]) if text is None else str(text)
    if task == "ranking":
        rows = [f"{row['score']:6.3f}  {row['sentence']}" for row in answer["ranking"]]
        return "\n".join([f"closest in meaning to: {answer['text']}", *rows])
    if task == "fill-mask":
        return "\n\n".join(_mask(mask) for mask in answer["masks"])
    if "labels" in answer:
        return "\n".join(f"{row['score']:6.3f}  {row['label']}" for row in answer["labels"])
    return _embedding(answer)


def _mask(mask: dict[str, Any]) -> str:
    width = max(len(row["token"]) for row in mask["candidates"])
    return "\n".join(f"{row['score']:6.3f}  {row['token']:{width}}  {row['text']}" for row in mask["candidates"])


def _embedding(answer: dict[str, Any]) -> str:
    normalized = ", normalised" if answer["normalized"] else ""
    how = f"{answer['pooling']} of {answer['tokens']} tokens{normalized}"
    lines = [f"{answer['dimensions']} numbers ({how}): {_values(answer['embedding'])}"]
    lines += [f"token {at}: {_values(row)}" for at, row in enumerate(answer.get("token_embeddings", ()))]
    return "\n".join(lines)


def _values(vector: list[float]) -> str:
    dots = " ..." if len(vector) > FIRST_VALUES else ""
    return " ".join(f"{one:.4f}" for one in vector[:FIRST_VALUES]) + dots
