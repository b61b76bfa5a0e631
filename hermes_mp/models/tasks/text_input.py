"""From text to token ids, and how many of them a model takes. A directory without a tokenizer takes ids only."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from typing import Any

import torch

from hermes_mp.errors import ContextTooLong, UnsupportedCheckpoint, WrongInput
from hermes_mp.host import malloc
from hermes_mp.models.tasks.task import given

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json",
)  # fmt: skip


_opened: dict[Path, Any] = {}  # by `open_early`, for whoever asks next


def open_early(directory: Path) -> None:
    """Open the tokenizer before the model is built: opening one of 128,000 entries takes 130 MiB for a moment.

    What is wrong with it, or with the directory, is said when it is asked for.
    """
    with contextlib.suppress(UnsupportedCheckpoint):
        _opened[directory] = open_tokenizer(directory)
    malloc.trim()


def open_tokenizer(directory: Path) -> Any | None:
    """The model's tokenizer, or None where the directory has none. UnsupportedCheckpoint where it cannot be used."""
    from transformers import AutoTokenizer

    if directory in _opened:
        return _opened.pop(directory)
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise UnsupportedCheckpoint(f"the tokenizer of {directory} cannot be used: {one_line(error)}", "") from error


def one_line(error: BaseException) -> str:
    """The first sentence worth showing of another library's message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


class TextInput:
    """Turns requests of one model into its inputs, one row each."""

    def __init__(self, model: Any, directory: Path, takes: tuple[str, ...], max_tokens: int | None = None) -> None:
        self.model = model
        self.takes = takes
        self.tokenizer = open_tokenizer(directory)
        limits = [max_tokens, _positions(model)]
        if "prompt" not in takes and self.tokenizer is not None and self.tokenizer.model_max_length < 10**9:
            limits.append(self.tokenizer.model_max_length)  # RoBERTa: 512 of its 514 positions can be used
        self.limit = min((one for one in limits if one), default=None)
        self._forward_takes = inspect.signature(type(model).forward).parameters

    def read(self, request: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The inputs [1, tokens] of a request. WrongInput, ContextTooLong."""
        kind, value = given(request, self.takes, self.model)
        if kind == "token_ids" or (self.tokenizer is None and "line" in request):
            return self.from_ids(_ids(value))
        return self.from_texts([value])

    def from_texts(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """The inputs [len(texts), longest], padded with the tokenizer's padding token."""
        tokenizer = self._need_tokenizer()
        return self.checked(tokenizer(texts, return_tensors="pt", padding=len(texts) > 1))

    def from_ids(self, ids: list[int]) -> dict[str, torch.Tensor]:
        """The inputs [1, len(ids)] of token ids, taken as they are: no special token is added."""
        vocabulary = self.model.config.get_text_config().vocab_size
        if max(ids) >= vocabulary:
            raise WrongInput(f"token id {max(ids)} is not in the model's vocabulary of {vocabulary} tokens")
        inputs = torch.tensor([ids])
        return self.checked({"input_ids": inputs, "attention_mask": torch.ones_like(inputs)})

    def from_chat(self, text: str) -> dict[str, torch.Tensor]:
        """The inputs of one user's turn, in the words of the tokenizer's chat template."""
        return self.checked(
            self._need_tokenizer().apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        )

    def checked(self, inputs: Any) -> dict[str, torch.Tensor]:
        """Only what the model's forward takes (BERT's tokenizer serves DistilBERT), and not too much of it."""
        tokens = inputs["input_ids"].shape[1]
        if tokens == 0:
            raise WrongInput("the input holds no token")
        if self.limit is not None and tokens > self.limit:
            why = f"the input is {tokens} tokens long, the model takes {self.limit}"
            raise ContextTooLong(why, "shorten the input")
        return {name: value for name, value in inputs.items() if name in self._forward_takes}

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise WrongInput("the model has no tokenizer", "give --token-ids, such as --token-ids 5,17,9")
        return self.tokenizer


def _positions(model: Any) -> int | None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None  # ALiBi and recurrent models have no table of positions that could end
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return positions - int(module.padding_idx) - 1  # RoBERTa counts positions from behind the padding token
    return positions


def _ids(value: Any) -> list[int]:
    try:
        ids = [int(one) for one in (value.split(",") if isinstance(value, str) else value)]
    except ValueError:
        raise WrongInput(f"{value!r} is no list of token ids", "write them as 5,17,9") from None
    if not ids or min(ids) < 0:
        raise WrongInput(f"{value!r} is no list of token ids", "write them as 5,17,9")
    return ids
