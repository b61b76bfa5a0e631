"""What a run and a request may be told, each option written once: type, default, limits, help.

The flags of `hermes-launch`, the keys of launch/*.toml and the arguments of `load()` all derive from the fields below
(a flag or key is the field's name with dashes). Light on purpose: every process imports it. It does not know
argparse, TOML or files; see cli/options.py for those.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from hermes_mp.errors import BadOption
from hermes_mp.messages import MAX_IN_FLIGHT

MAX_SIZE_NBYTES = 2**50
MOST_FROM_ONE, MOST_LENDERS = 16, 8  # remote loaders of a board, and boards
MAX_SPAN_S = 365 * 86400
VERIFY = FIRST, ALWAYS, NEVER = "first", "always", "never"
REPLAY = EXACT, FAST = "exact", "fast"
_FACTORS: dict[str, int] = {"": 1, "b": 1}
_FACTORS |= {letter + "b": 10 ** (3 * n) for n, letter in enumerate("kmgt", 1)}
_FACTORS |= {letter + "ib": 2 ** (10 * n) for n, letter in enumerate("kmgt", 1)}


def parse_size(size: str | int) -> int:
    """Bytes in `700MiB`, `3GiB`, `2.5GB`, `1500000000` or a plain int. ValueError where it is none of these.

    A bare `M` or `G` is refused: half of the world means 1000s by it and the other half 1024s.
    """
    if isinstance(size, bool) or not isinstance(size, str | int):
        raise ValueError(f"{size!r} is no size")
    found = re.fullmatch(r"([0-9]{1,15})(\.[0-9]{1,9})?\s*([a-z]{0,3})", str(size).strip().lower(), re.ASCII)
    if not found or found[3] not in _FACTORS or (found[2] and found[3] in ("", "b")):
        raise ValueError(f"{size!r} is no size")
    fraction = int(found[2][1:]) / 10 ** len(found[2][1:]) if found[2] else 0.0
    nbytes: int = int(found[1]) * _FACTORS[found[3]] + round(fraction * _FACTORS[found[3]])
    if not 0 < nbytes <= MAX_SIZE_NBYTES:
        raise ValueError(f"{size!r} is out of range")
    return nbytes


def parse_span(text: str) -> int:
    """Seconds in `90s`, `10m`, `1h` or `7d`, a year at most. ValueError where it is none of these."""
    found = re.fullmatch(r"([0-9]{1,8})([smhd])", text.strip().lower(), re.ASCII)
    seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]] if found else 0
    if not 0 < seconds <= MAX_SPAN_S:
        raise ValueError(f"{text!r} is no span of time")
    return seconds


def is_name(text: object) -> bool:
    """Whether a board may be called so."""
    return isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", text, re.ASCII) is not None


@dataclass(frozen=True)
class Kind:
    """What values an option takes: `what` says it to people, `read` makes one of a flag's text, `check` of any value.

    `read` and `check` raise ValueError. `flag` tells how the flag behaves: "value", "repeated" or "switch".
    """

    what: str
    read: Callable[[str], object]
    check: Callable[[object], object]
    flag: str = "value"


@dataclass(frozen=True)
class Option:
    """One option as flags, TOML and `load()` share it."""

    kind: Kind
    help: str
    metavar: str
    group: str


def _require(value: object, good: bool) -> object:
    if not good:
        raise ValueError(repr(value))
    return value


def _whole(low: int, high: int) -> Kind:
    def check(value: object) -> object:
        return _require(value, isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)

    limits = f"from {low} to {high}" if high < 2**31 else f"from {low} to 2**{high.bit_length()} - 1"
    return Kind(f"a whole number {limits}", lambda text: check(int(text)), check)


def _number(low: float, high: float) -> Kind:
    def check(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(repr(value))
        return float(str(_require(value, math.isfinite(value) and low <= value <= high)))

    return Kind(f"a number from {low:g} to {high:g}", lambda text: check(float(text)), check)


_TOKEN_ID = _whole(0, 2**31 - 1)


def _choice(*names: str) -> Kind:
    def check(value: object) -> object:
        return _require(value, isinstance(value, str) and value in names)

    return Kind("one of " + ", ".join(names), check, check)


def _check_size(value: object) -> object:
    return parse_size(value)  # type: ignore[arg-type]  # it checks the type itself


def _check_text(value: object) -> object:
    return _require(value, isinstance(value, str) and value != "" and "\0" not in value)


def _check_texts(value: object) -> object:
    return tuple(_check_text(one) for one in (value if isinstance(value, list | tuple) else [value]))


def _check_remote(value: object) -> object:
    """`NAME=N`, and nothing else."""
    name, equals, count = str(_check_text(value)).partition("=")
    good = is_name(name) and equals and re.fullmatch("[0-9]{1,2}", count, re.ASCII) is not None
    return _require(value, bool(good) and 1 <= int(count) <= MOST_FROM_ONE)


def _check_each_remote(value: object) -> object:
    found = tuple(_check_remote(one) for one in (value if isinstance(value, list | tuple) else [value]))
    names = [str(one).partition("=")[0] for one in found]
    return _require(found, len(names) == len(set(names)) <= MOST_LENDERS)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_ids(value: object) -> object:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(repr(value))
    return tuple(_TOKEN_ID.check(one) for one in value)


def _check_switch(value: object) -> object:
    return _require(value, isinstance(value, bool))


def _check_memory(value: object) -> object:
    """`None` is what the word none stands for, which a file and a flag can say."""
    if value is None or value == "none":
        return None
    return "auto" if value == "auto" else parse_size(value)  # type: ignore[arg-type]  # it checks the type itself


def _check_loaders(value: object) -> object:
    return None if value is None or value == "auto" else _LOADERS.check(value)


def _check_span(value: object) -> object:
    return value if type(value) is int else parse_span(str(value))


NAME = Kind(
    "a name of letters, digits, - _ . (40 at most)",
    lambda text: _require(text, is_name(text)), lambda value: _require(value, is_name(value)),
)  # fmt: skip
REMOTE_LOADERS = Kind(
    f"a paired board and how many loaders take from it ({MOST_FROM_ONE} at most), such as nas=2",
    _check_remote, lambda value: _check_each_remote(value), "repeated",
)  # fmt: skip
NAMES = Kind(NAME.what, NAME.read, lambda value: tuple(NAME.check(one) for one in _listed(value)), "repeated")
SPAN = Kind("a span of time such as 10m, 1h or 7d", _check_span, _check_span)
SIZE = Kind("a size such as 700MiB, 3GiB or a number of bytes", _check_size, _check_size)
MEMORY = Kind("auto, none, a size such as 700MiB or 3GiB, or a number of bytes", _check_memory, _check_memory)
_LOADERS = _whole(1, 64)
LOADERS = Kind(
    "auto or " + _LOADERS.what, lambda text: _check_loaders(text if text == "auto" else int(text)), _check_loaders
)
TEXT = Kind("a text that is not empty", _check_text, _check_text)
TEXTS = Kind("a text that is not empty, or several", _check_text, _check_texts, "repeated")
IDS = Kind("token ids such as 5,17,9", lambda text: _check_ids([int(one) for one in text.split(",")]), _check_ids)
SWITCH = Kind("true or false", lambda text: _require(text, False), _check_switch, "switch")


def _option(default: object, kind: Kind, help: str, metavar: str, group: str) -> Any:
    return field(default=default, metadata={"option": Option(kind, help, metavar, group)})


_RUN, _REQUEST, _SAMPLING, _OUTPUT = "the run", "the request", "text generation", "what is shown"
_BOARDS = "several boards"
_LOOKED_AT = "what is looked at"


@dataclass(frozen=True)
class Config:
    """What a command may be told; its values are checked as they are set."""

    def __post_init__(self) -> None:
        for one, option in options_of(type(self)):
            value = getattr(self, one.name)
            if value is None and one.default is None:
                continue
            try:
                object.__setattr__(self, one.name, option.kind.check(value))
            except ValueError:
                raise BadOption(f"{one.name} takes {option.kind.what}, not {value!r}", "") from None


@dataclass(frozen=True)
class RunConfig(Config):
    """What a run needs, before any request."""

    model: str | None = _option(
        None, TEXT, "a directory with config.json and *.safetensors, or a hub id; without it the packaged "
        "all-MiniLM-L6-v2 ranks sentences by meaning", "MODEL", _RUN,
    )  # fmt: skip
    loaders: int | None = _option(
        None, LOADERS, "processes that read weights in parallel (default: auto, as many as hermes-plan would take)",
        "N", _RUN,
    )  # fmt: skip
    memory: int | str | None = _option(
        "auto", MEMORY, "never use more than this, all our processes together (700MiB, 3GiB); auto: what the machine "
        "and its cgroup can spare, less a reserve of 64 MiB or a twentieth; none: loaders + 1 slots and no limit",
        "SIZE", _RUN,
    )  # fmt: skip
    context: int | None = _option(
        None, _whole(1, 2**24), "positions to reserve memory for, prompt and answer (default: 2048, or the model's "
        "maximum where that is less)", "TOKENS", _RUN,
    )  # fmt: skip
    batch: int = _option(1, _whole(1, 4096), "sequences per pass to reserve memory for; beams count", "ROWS", _RUN)
    dtype: str = _option(
        "auto", _choice("auto", "float32", "float16", "bfloat16"),
        "number format to compute in; auto is what transformers takes", "TYPE", _RUN,
    )  # fmt: skip
    threads: int | None = _option(None, _whole(1, 1024), "threads that compute (default: torch decides)", "N", _RUN)


@dataclass(frozen=True)
class StreamConfig(RunConfig):
    """A run that streams: behind `load`, and with requests of its own below."""

    verify: str = _option(
        FIRST, _choice(*VERIFY), "check what is read against the checksums of earlier runs, and files against "
        "the SHA-256 that the hub or a SHA256SUMS beside them gives: each unit's first load, always, or never",
        "WHEN", _RUN,
    )  # fmt: skip
    soft_deadline: float = _option(
        2.0, _number(0.05, 86400), "read what a loader has made no progress with for so many seconds once more, by "
        "another; longer where reads take long", "SECONDS", _RUN,
    )  # fmt: skip
    hard_deadline: float = _option(
        30.0, _number(0.1, 86400), "kill and replace a loader that has made no progress for so many seconds",
        "SECONDS", _RUN,
    )  # fmt: skip


@dataclass(frozen=True)
class LaunchConfig(StreamConfig):
    """A run of `hermes-launch`: the run, its requests, and what is shown."""

    replay: str = _option(
        EXACT, _choice(*REPLAY), "how an answer that compute was lost in is gone on with: exact repeats all its "
        "passes, for the same tokens; fast begins behind the last token, and later ones may be others", "HOW", _RUN,
    )  # fmt: skip
    timeout: float = _option(
        60.0, _number(0, 86400), "end the run where the process that computes has work and does nothing for so many "
        "seconds; 0: never", "SECONDS", _RUN,
    )  # fmt: skip
    remote_loader: tuple[str, ...] = _option(
        (), REMOTE_LOADERS, "also read from the disk of this paired board, by so many loaders; a model that lies there "
        "and not here is run without a copy", "NAME=N", _BOARDS,
    )  # fmt: skip
    boards: str | None = _option(
        None, TEXT, "share the layers with the boards that this file names (cluster/boards.toml)", "FILE", _BOARDS
    )
    board: tuple[str, ...] = _option(
        (), NAMES, "share the layers with this board, which is paired with this one (hermes-board join)", "NAME",
        _BOARDS,
    )  # fmt: skip
    split: str | None = _option(
        None, TEXT, "who runs how many layers, in the order of the model, instead of what the planner would choose: "
        "head:4,pi2:6,head:4,pi2:6", "BOARD:LAYERS,...", _BOARDS,
    )  # fmt: skip
    prompt: tuple[str, ...] = _option((), TEXTS, "text to be continued by a generating model", "TEXT", _REQUEST)
    text: tuple[str, ...] = _option(
        (), TEXTS, "text to be classified, filled in ([MASK]), embedded or ranked", "TEXT", _REQUEST
    )
    image: tuple[str, ...] = _option((), TEXTS, "image file to be classified or embedded", "FILE", _REQUEST)
    token_ids: tuple[int, ...] | None = _option(
        None, IDS, "the input as token ids, for a model without a tokenizer", "5,17,9", _REQUEST
    )
    in_flight: int = _option(
        1, _whole(1, MAX_IN_FLIGHT), "answer so many requests at once, with one reading of the weights for all: the "
        "same answers, each a little later and all much sooner; memory is reserved for each", "N", _REQUEST,
    )  # fmt: skip
    prefill_chunk: int | None = _option(
        None, _whole(1, 2**24), "take a prompt through the layers in chunks of so many tokens (in 32 at most): of "
        "several boards that are dealt single layers in turns all then compute at once; last bits may differ from the "
        "whole prompt's", "TOKENS", _REQUEST,
    )  # fmt: skip
    raw: bool = _option(False, SWITCH, "do not use the tokenizer's chat template", "", _REQUEST)
    token_embeddings: bool = _option(False, SWITCH, "embeddings: also give the vector of every token", "", _REQUEST)
    max_new_tokens: int = _option(64, _whole(1, 2**24), "generate at most this many tokens", "N", _SAMPLING)
    temperature: float | None = _option(
        None, _number(0, 100), "0 always takes the likeliest token; above it, sample", "T", _SAMPLING
    )
    top_p: float | None = _option(
        None, _number(1e-6, 1), "sample among the likeliest tokens of this total probability", "P", _SAMPLING
    )
    top_k: int | None = _option(None, _whole(1, 2**24), "sample among the K likeliest tokens", "K", _SAMPLING)
    seed: int | None = _option(None, _whole(0, 2**63 - 1), "makes sampling repeatable", "N", _SAMPLING)
    stop: tuple[str, ...] = _option((), TEXTS, "end the answer before this text", "TEXT", _SAMPLING)
    json: bool = _option(False, SWITCH, "print one JSON object on standard output (docs/json.md)", "", _OUTPUT)
    trace: str | None = _option(None, TEXT, "write a trace that opens in ui.perfetto.dev", "FILE", _OUTPUT)
    sample_memory: bool = _option(
        False, SWITCH, "measure memory exactly, 20 times a second: slows the run", "", _OUTPUT
    )
    quiet: bool = _option(False, SWITCH, "show the answers only: no progress, no report", "", _OUTPUT)
    show_config: bool = _option(
        False, SWITCH, "print every value and where it came from, as a launch file, and do not run", "", _OUTPUT
    )


    @property
    def remote_loaders(self) -> dict[str, int]:
        """How many by board."""
        return {name: int(count) for name, _, count in (one.partition("=") for one in self.remote_loader)}


@dataclass(frozen=True)
class PlanConfig(RunConfig):
    """A question to `hermes-plan`: how would this model run on this machine?"""

    memory: int | None = _option(
        None, SIZE, "plan for this budget and say why; without it: a table from the smallest budget to the one with "
        "which everything fits", "SIZE", _RUN,
    )  # fmt: skip
    tokens: int = _option(128, _whole(1, 2**24), "length of the input, or of the prompt", "N", _RUN)
    boards: str | None = _option(
        None, TEXT, "plan for a run that is shared with the boards that this file names (cluster/boards.toml)", "FILE",
        _BOARDS,
    )  # fmt: skip
    board: tuple[str, ...] = _option(
        (), NAMES, "plan for a run that is shared with this board, which is paired with this one", "NAME", _BOARDS
    )
    split: str | None = _option(
        None, TEXT, "forecast this deal of the layers instead of looking for the best", "BOARD:LAYERS,...", _BOARDS
    )
    fresh: bool = _option(False, SWITCH, "measure again what is known from an earlier plan", "", _RUN)
    json: bool = _option(False, SWITCH, "print one JSON object on standard output (docs/json.md)", "", _OUTPUT)


@dataclass(frozen=True)
class DoctorConfig(Config):
    """A question to `hermes-doctor`: what can this machine do?"""

    model: str | None = _option(
        None, TEXT, "try the disk with the weights of this directory or hub id", "MODEL", _LOOKED_AT
    )
    json: bool = _option(False, SWITCH, "print one JSON object on standard output (docs/json.md)", "", _OUTPUT)


@dataclass(frozen=True)
class PsConfig(Config):
    """A question to `hermes-ps`: what runs here?"""

    json: bool = _option(False, SWITCH, "print one JSON object on standard output (docs/json.md)", "", _OUTPUT)


_BOARD, _TOKEN = "this board", "the join token"


@dataclass(frozen=True)
class BoardServeConfig(Config):
    """`hermes-board serve`: work for heads until the end."""

    model_dir: str | None = _option(
        None, TEXT, "the model that this board has a copy of, or a directory of such models", "DIR", _BOARD
    )
    memory: int | str | None = _option(
        "auto", MEMORY, "never use more than this, all processes of this board together; auto: what the machine and "
        "its cgroup can spare; none: no limit", "SIZE", _BOARD,
    )  # fmt: skip
    loaders: int | None = _option(None, LOADERS, "processes that read weights in parallel (default: 2)", "N", _BOARD)
    threads: int | None = _option(None, _whole(1, 1024), "threads that compute (default: torch decides)", "N", _BOARD)
    listen: str | None = _option(
        None, TEXT, "the address to listen on (default: the one that `init` has named; without keys 127.0.0.1:7946, "
        "where anybody on this machine is served)", "HOST[:PORT]", _BOARD,
    )  # fmt: skip


@dataclass(frozen=True)
class BoardInitConfig(Config):
    """`hermes-board init`: make this board's keys, and a join token."""

    name: str | None = _option(
        None, NAME, "what heads call this board (default: the name it has, or the host name)", "NAME", _BOARD
    )
    address: str | None = _option(
        None, TEXT, "where heads reach it (default: the one it has, or this machine's in the network, port 7946)",
        "HOST[:PORT]", _BOARD,
    )  # fmt: skip
    expires: int | str = _option("1h", SPAN, "how long the token may be used, once: 10m, 1h, 7d", "SPAN", _TOKEN)


@dataclass(frozen=True)
class BoardTokenConfig(Config):
    """`hermes-board token`: another join token."""

    expires: int | str = _option("1h", SPAN, "how long the token may be used, once: 10m, 1h, 7d", "SPAN", _TOKEN)


@dataclass(frozen=True)
class BoardJoinConfig(Config):
    """`hermes-board join`: pair with the board of a token."""

    name: str | None = _option(
        None, NAME, "what the board is to call this machine (default: its name, or the host name)", "NAME", _BOARD
    )


@dataclass(frozen=True)
class BoardListConfig(Config):
    """`hermes-board list`: who is paired with this machine?"""

    json: bool = _option(False, SWITCH, "print one JSON object on standard output (docs/json.md)", "", _OUTPUT)


@dataclass(frozen=True)
class BoardRevokeConfig(Config):
    """`hermes-board revoke`: forget a head or a board."""


def options_of(config: type[Config]) -> Iterator[tuple[Field[Any], Option]]:
    """Fields of a config class with their options, in order."""
    for one in fields(config):
        assert one.default is not MISSING
        yield one, one.metadata["option"]
