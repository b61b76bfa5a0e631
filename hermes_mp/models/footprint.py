"""How much memory a call takes besides weights: KV cache, logits, activations; estimated from meta forwards.

The estimate is linear plus quadratic in the positions of a sequence, fitted to two traces of the model itself. It is
reserved from the start, and a call that needs more is refused before its first pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from hermes_mp.errors import CallTooLarge
from hermes_mp.models.trace import Trace, trace_forward

DEFAULT_CONTEXT = 2048
SAMPLING_COPIES = 8  # of the last logits in float32: processors, softmax, sort
FALLBACK_NBYTES = 128 << 20  # where the trace fails
MANY_HEADS = 64  # where the configuration does not say


@dataclass(frozen=True)
class Footprint:
    """`batch` sequences of `context` positions are reserved for, and that `in_flight` times: `reserve_nbytes` bytes.

    What is constant is used by one request at a time.
    """

    batch: int
    context: int
    row_nbytes: int  # per sequence
    linear_nbytes: float  # per sequence and position
    quadratic_nbytes: float  # per sequence and position squared
    logits_nbytes: int  # per position whose logits are kept
    constant_nbytes: int
    states_nbytes: float  # per sequence and position, of a call that keeps every layer's hidden states
    attentions_nbytes: float  # per sequence and position squared, of a call that keeps every layer's attention
    in_flight: int = 1

    @property
    def reserve_nbytes(self) -> int:
        return self._for_all(self.need_nbytes(self.batch, self.context, 1))

    def need_nbytes(self, rows: int, positions: int, logits: int) -> int:
        """Bytes for `rows` sequences of `positions`, `logits` of each with logits kept."""
        each = self.row_nbytes + positions * (self.linear_nbytes + positions * self.quadratic_nbytes)
        return self.constant_nbytes + int(rows * (each + logits * self.logits_nbytes))

    def _for_all(self, need_nbytes: int) -> int:
        """Where every request that is in flight needs so much."""
        return self.constant_nbytes + self.in_flight * (need_nbytes - self.constant_nbytes)

    def without(self, kv_nbytes: float, logits: bool) -> Footprint:
        """Of a board that keeps so many bytes of keys and values less per position, and makes `logits` or does not."""
        linear = max(0.0, self.linear_nbytes - kv_nbytes)
        return replace(self, linear_nbytes=linear, logits_nbytes=self.logits_nbytes if logits else 0)

    def kept_nbytes(self, tokens: int, positions: int, asked: Callable[[str], Any]) -> int:
        """Per sequence: what a call of `tokens` new of all `positions` keeps of its layers, as `asked` by option."""
        states = tokens * self.states_nbytes if asked("output_hidden_states") else 0.0
        return int(states + (tokens * positions * self.attentions_nbytes if asked("output_attentions") else 0.0))

    def check(self, room_nbytes: int, rows: int, positions: int, logits: int = 1, kept_nbytes: int = 0) -> None:
        """Raises CallTooLarge with the two numbers where a call needs more than is reserved.

        `room_nbytes`: what the budget in fact left, if that is more.
        """
        need = self._for_all(self.need_nbytes(rows, positions, logits) + rows * kept_nbytes)
        reserved = max(self.reserve_nbytes, room_nbytes)
        if need > reserved:
            kept = f" with the logits of {logits} positions each" if logits > 1 else ""
            kept += " with hidden states or attentions kept" if kept_nbytes else ""
            times = f", {self.in_flight} times" if self.in_flight > 1 else ""
            raise CallTooLarge(
                f"{rows} sequences of {positions} positions{kept}{times} need {need / 2**20:.1f} MiB, but "
                f"{reserved / 2**20:.1f} MiB are reserved, for {self.batch} of {self.context}"
            )


def measure(model: Any, trace: Trace, batch: int, context: int, extra_nbytes: int) -> Footprint:
    """Fit the footprint to `trace` (of `batch` x `context`) and to one more trace of half the context.

    `extra_nbytes`: what else the binding needs, casts of weights for instance.
    """
    logits = trace.logits_nbytes_per_position * SAMPLING_COPIES
    kept = _kept_each(model, trace)
    if trace.failed:
        return Footprint(batch, context, FALLBACK_NBYTES, 0.0, 0.0, logits, extra_nbytes, *kept)
    peak = trace.peak_nbytes / batch
    if model.main_input_name == "pixel_values" or context < 2:
        return Footprint(batch, context, int(peak), 0.0, 0.0, logits, extra_nbytes, *kept)
    half = trace_forward(model, batch, context // 2).peak_nbytes / batch
    short = context // 2
    quadratic = max(0.0, (peak / context - half / short) / (context - short))
    return Footprint(batch, context, 0, peak / context - quadratic * context, quadratic, logits, extra_nbytes, *kept)


def _kept_each(model: Any, trace: Trace) -> tuple[float, float]:
    """Bytes of every layer's hidden states per position, and of its attention per position squared.

    Each of an image's passes counts as one position (see `check_call`), so its patches are in the figures.
    """
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(text, "num_attention_heads", MANY_HEADS)
    heads = heads if isinstance(heads, int) else max(heads, default=MANY_HEADS)
    itemsize: int = model.dtype.itemsize
    states = attentions = 0.0
    for _, positions, width in trace.layers:
        counted = 1 if model.main_input_name == "pixel_values" else positions
        states += positions * width * itemsize / counted
        attentions += heads * positions**2 * itemsize / counted**2
    attentions *= 2 if config.is_encoder_decoder else 1  # to itself, and to the encoder's states
    return states * (1 + 1 / max(1, len(trace.layers))), attentions  # the embedding's states too


def model_maximum(config: Any) -> int | None:
    """The most positions the model was built for, if its configuration says so."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def check_call(footprint: Footprint, room_nbytes: int, config: Any, call: dict[str, Any]) -> None:
    """Check one forward, given its arguments by name; what it does not say the model's `config` does."""
    rows, tokens = 1, 1
    for name in ("input_ids", "inputs_embeds", "hidden_states", "pixel_values"):
        value = call.get(name)
        if isinstance(value, torch.Tensor) and value.dim() >= 2:
            rows, tokens = value.shape[0], 1 if name == "pixel_values" else value.shape[1]
            break
    else:
        return
    past = call.get("past_key_values")
    positions = tokens + (past.get_seq_length() if past is not None and hasattr(past, "get_seq_length") else 0)
    keep = call.get("logits_to_keep", 0)
    kept = tokens if isinstance(keep, int) and keep == 0 else keep if isinstance(keep, int) else len(keep)
    # One float32 copy less than sampling makes: the logits of a plain forward are kept once.
    logits = max(1, -(-kept // SAMPLING_COPIES)) if footprint.logits_nbytes else 1

    def asked(name: str) -> Any:
        return call.get(name, getattr(config, name, False))

    footprint.check(room_nbytes, rows, positions, logits, footprint.kept_nbytes(tokens, positions, asked))


def check_generate(
    footprint: Footprint, room_nbytes: int, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Check a whole `generate` call before its first pass: beams and returned sequences count as batch."""
    inputs = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids", kwargs.get("inputs_embeds")))
    if not isinstance(inputs, torch.Tensor) or inputs.dim() < 2:
        return
    config = (args[1] if len(args) > 1 else kwargs.get("generation_config")) or model.generation_config

    def setting(name: str) -> Any:
        given = kwargs.get(name)
        return getattr(config, name, None) if given is None else given

    def asked(name: str) -> Any:
        return setting(name) or getattr(model.config, name, False)

    rows = inputs.shape[0] * max(setting("num_beams") or 1, setting("num_return_sequences") or 1)
    new = setting("max_new_tokens")
    positions = inputs.shape[1] + new if new is not None else max(setting("max_length") or 20, inputs.shape[1])
    footprint.check(room_nbytes, rows, positions, kept_nbytes=footprint.kept_nbytes(positions, positions, asked))
