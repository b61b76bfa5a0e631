"""Messages drawn from the annotations of messages.py; and what a well-typed one is, said again.

It shares no code with the codec on purpose: the two must agree.
"""

from __future__ import annotations

import dataclasses
import typing
from random import Random
from typing import Any

from hermes_mp import messages

UNIONS: dict[str, Any] = {
    "ToLoader": messages.ToLoader,
    "FromLoader": messages.FromLoader,
    "ToCompute": messages.ToCompute,
    "FromCompute": messages.FromCompute,
    "FromViewer": messages.FromViewer,
    "ToViewer": messages.ToViewer,
}
EDGES = [0, 1, 127, 128, 255, 256, 2**31, 2**32 - 1, 2**32, 2**63 - 1]
SCRIPTS = "abc xyz\n\t\0\x7fé\u0416\u3042\ufffd\N{ROCKET}\U0010ffff"


def kinds_of(union: Any) -> tuple[type, ...]:
    """The messages of a union, which may be of one."""
    return typing.get_args(union) or (union,)


def any_of(annotation: Any, chance: Random) -> Any:
    """Any value that `annotation` allows; of a union's kinds take one first."""
    annotation = getattr(annotation, "__supertype__", annotation)
    if annotation is int:
        return chance.choice(EDGES) if chance.random() < 0.5 else chance.getrandbits(chance.randint(1, 63))
    if annotation is bool:
        return chance.random() < 0.5
    if annotation is str:
        return "".join(chance.choice(SCRIPTS) for _ in range(chance.choice((0, 1, 5, 40))))
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return annotation(**{name: any_of(hint, chance) for name, hint in hints.items()})  # type: ignore[operator]
    item = typing.get_args(annotation)[0]
    return tuple(any_of(item, chance) for _ in range(chance.randint(0, 5)))


def is_well_typed(value: Any, annotation: Any) -> bool:
    """Whether `value` is exactly what `annotation` says, integers within 0 .. 2**63-1."""
    annotation = getattr(annotation, "__supertype__", annotation)
    if annotation in (bool, str):
        return type(value) is annotation
    if annotation is int:
        return type(value) is int and 0 <= value < 2**63
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return type(value) is annotation and all(is_well_typed(getattr(value, n), h) for n, h in hints.items())
    item = typing.get_args(annotation)[0]
    return type(value) is tuple and all(is_well_typed(part, item) for part in value)
