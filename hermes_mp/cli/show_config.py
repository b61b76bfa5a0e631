"""`--show-config`: every value of a run, and whether a flag, the launch file or the default said it.

For people a launch file that runs the same, for programs one JSON object (docs/json.md). Pure: what a value such as
`auto` comes to on this machine is said by whoever registers it in `IN_WORDS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hermes_mp.cli.options import key_of
from hermes_mp.config import LaunchConfig, options_of

DEFAULT = "default"


def _memory_in_words(config: LaunchConfig) -> str | None:
    return f"{config.memory / 2**20:g} MiB" if isinstance(config.memory, int) else None


# By field: what its value comes to, where that is more than the value says; None where it is not.
IN_WORDS: dict[str, Callable[[LaunchConfig], str | None]] = {"memory": _memory_in_words}


def as_launch_file(config: LaunchConfig, sources: Mapping[str, str]) -> str:
    """A launch file with the source of every value as a comment; what is not set stands in a comment too."""
    lines = []
    for name, value, words in _values(config):
        text = f"# {key_of(name)}" if value is None or value == () else f"{key_of(name)} = {_toml(value)}"
        source = sources.get(name, DEFAULT)
        lines.append(f"{text:40}  # {source}" + (f": {words}" if words else ""))
    return "\n".join(lines)


def as_json(config: LaunchConfig, sources: Mapping[str, str]) -> str:
    """One JSON object on one line; see docs/json.md."""
    values = {
        key_of(name): {"value": value, "source": sources.get(name, DEFAULT), "in_words": words}
        for name, value, words in _values(config)
    }
    return json.dumps({"schema": 1, "config": values})


def _values(config: LaunchConfig) -> Iterator[tuple[str, Any, str | None]]:
    for one, _ in options_of(LaunchConfig):
        if one.name != "show_config":
            in_words = IN_WORDS.get(one.name)
            yield one.name, getattr(config, one.name), in_words(config) if in_words is not None else None


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):  # a JSON string is a TOML string, but for one control character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
