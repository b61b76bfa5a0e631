"""Messages made from the annotations of messages.py, for property tests; and what a well-typed one is, said again.

It shares no code with the codec on purpose: the two must agree.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from hypothesis import strategies as st

from hermes_mp import messages

UNIONS: dict[str, Any] = {
    "ToLoader": messages.ToLoader,
    "FromLoader": messages.FromLoader,
    "ToCompute": messages.ToCompute,
    "FromCompute": messages.FromCompute,
    "FromViewer": messages.FromViewer,
    "ToViewer": messages.ToViewer,
}
INTS = st.integers(0, 2**63 - 1) | st.sampled_from([0, 127, 128, 255, 256, 2**31, 2**32 - 1, 2**32, 2**63 - 1])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)  # of any script, without lone surrogates


def of_annotation(annotation: Any) -> st.SearchStrategy[Any]:
    """Any value that `annotation` allows."""
    annotation = getattr(annotation, "__supertype__", annotation)
    if annotation is int:
        return INTS
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        return TEXTS
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return st.builds(annotation, **{name: of_annotation(hint) for name, hint in hints.items()})
    return st.lists(of_annotation(typing.get_args(annotation)[0]), max_size=5).map(tuple)


def kinds_of(union: Any) -> tuple[type, ...]:
    """The messages of a union, which may be of one."""
    return typing.get_args(union) or (union,)


def of_union(union: Any) -> st.SearchStrategy[Any]:
    """Any message of a union."""
    return st.one_of([of_annotation(kind) for kind in kinds_of(union)])


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
