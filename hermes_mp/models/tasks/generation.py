"""Text generation: a prompt is continued by the model's own `generate`, and said token by token.

The model's generation_config decides whatever the options leave open, as in transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hermes_mp.config import FAST
from hermes_mp.errors import ContextTooLong, WrongInput
from hermes_mp.models.tasks.choice import GENERATION
from hermes_mp.models.tasks.task import Answer, Say, given, passes
from hermes_mp.models.tasks.text_input import TextInput
from hermes_mp.models.tasks.text_stream import TextStream


class _Listener:
    """Sees every new token before the next pass; a stopping criterion, because streamers come before it or after it
    depending on the version of transformers, and cannot end a generation."""

    def __init__(self, stream: TextStream, first: int, tell: Say | None) -> None:
        """Tokens from number `first` on are new; `tell` takes their ids."""
        self.stream = stream
        self.seen = first
        self.tell = tell

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        rows, length = input_ids.shape
        if rows == 1:  # beams have no text before the end
            new: list[int] = input_ids[0, self.seen :].tolist()
            self.seen = length
            if self.tell is not None:
                self.tell("", new)
            self.stream.push(new)
        return torch.full((rows,), self.stream.stopped, dtype=torch.bool, device=input_ids.device)


class TextGeneration:
    """Continues a prompt."""

    def __init__(self, model: Any, directory: Path, options: dict[str, Any]) -> None:
        self.model = model
        self.input = TextInput(model, directory, ("prompt", "token_ids"))
        self.raw = bool(options.get("raw"))
        self.stop = tuple(options.get("stop") or ())
        self.seed: int | None = options.get("seed")
        self.run_seed = int(options.get("run_seed") or 0)
        self.max_new_tokens = int(options.get("max_new_tokens") or 64)
        self.settings = sampling(options)
        self.chunk: int | None = options.get("prefill_chunk")
        if self.chunk is not None and model.config.is_encoder_decoder:
            raise WrongInput("prompts in chunks are for models that only decode", "leave --prefill-chunk out")
        self.tells = options.get("replay") == FAST
        if self.stop and self.input.tokenizer is None:
            raise WrongInput("the model has no tokenizer, so no text can end an answer", "leave --stop out")

    def answer(self, request: dict[str, Any], say: Say, final: bool) -> Answer:
        """`text` is what was said; `token_ids` are all the tokens it was made of, those of a stop string included."""
        inputs = self._read(request)
        prompt_tokens = inputs["input_ids"].shape[1]
        limit = self.input.limit
        if limit is not None and prompt_tokens + self.max_new_tokens > limit:
            raise ContextTooLong(
                f"{prompt_tokens} tokens of input and {self.max_new_tokens} new ones make "
                f"{prompt_tokens + self.max_new_tokens}, the model was built for {limit}"
            )
        stream = TextStream(self._decode, self.stop, say)
        said: list[int] = request.get("said", [])
        stream.push(said)
        token_ids = said
        if not stream.stopped and not self._ended(said):
            # Of every request its own, so that another process can repeat it.
            seed = self.run_seed + request.get("number", 0) if self.seed is None else self.seed
            torch.manual_seed(seed + len(said))
            listener = _Listener(stream, prompt_tokens + len(said), say if self.tells else None)
            token_ids = self._go_on(inputs, said, listener, final)
            stream.push(token_ids[listener.seen - prompt_tokens :])
        stream.finish()
        why = "length" if len(token_ids) >= self.max_new_tokens else "end"
        return {
            "task": GENERATION,
            "text": stream.said if self.input.tokenizer is not None else None,
            "token_ids": token_ids,
            "tokens": len(token_ids),
            "prompt_tokens": prompt_tokens,
            "stopped": "stop string" if stream.stopped else why,
        }

    def _go_on(
        self, inputs: dict[str, torch.Tensor], said: list[int], listener: _Listener, final: bool
    ) -> list[int]:
        """All tokens of an answer that begins with those that were said."""
        prompt_tokens, left = inputs["input_ids"].shape[1], self.max_new_tokens - len(said)
        if said:
            more = torch.tensor([said])
            inputs = {
                "input_ids": torch.cat([inputs["input_ids"], more], 1),
                "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1),
            }
        with passes(self.model, left, final), torch.no_grad():
            generated = self.model.generate(
                **inputs, **self.settings, **self._padding(), **self._at_least(said),
                prefill_chunk_size=self.chunk, max_new_tokens=left, stopping_criteria=[listener],
                return_dict_in_generate=False,
            )  # fmt: skip
        token_ids: list[int] = generated[0, prompt_tokens:].tolist()
        return token_ids

    def _ended(self, said: list[int]) -> bool:
        """Whether nothing can follow those."""
        ends = self.model.generation_config.eos_token_id
        known = ends if isinstance(ends, list) else [ends]
        return len(said) >= self.max_new_tokens or said[-1:] in [[one] for one in known]

    def _at_least(self, said: list[int]) -> dict[str, int]:
        """`generate` counts from where it begins."""
        least = self.model.generation_config.min_new_tokens
        return {"min_new_tokens": max(0, least - len(said))} if least and said else {}

    def _read(self, request: dict[str, Any]) -> dict[str, torch.Tensor]:
        kind, value = given(request, self.input.takes, self.model)
        chats = self.input.tokenizer is not None and self.input.tokenizer.chat_template and not self.raw
        inputs = self.input.from_chat(value) if kind == "prompt" and chats else self.input.read(request)
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}

    def _decode(self, ids: list[int]) -> str:
        if self.input.tokenizer is None:
            return "".join(f"{one} " for one in ids)
        text: str = self.input.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _padding(self) -> dict[str, int]:
        config = self.model.generation_config
        ends = config.eos_token_id
        if config.pad_token_id is not None or ends is None:
            return {}
        # What generate would choose by itself, with a warning.
        return {"pad_token_id": ends[0] if isinstance(ends, list) else ends}


def sampling(options: dict[str, Any]) -> dict[str, Any]:
    """`generate`'s arguments for the options that are set; the generation_config has the rest."""
    chosen = {name: options[name] for name in ("temperature", "top_p", "top_k") if options.get(name) is not None}
    if chosen.get("temperature") == 0:
        # Neutral values, or generate warns that sampling settings go unused.
        return {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    return {"do_sample": True, **chosen} if chosen else {}
