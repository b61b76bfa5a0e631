"""Messages to bytes and back: `[kind, [field, ...]]` in msgpack, checked against the annotations of messages.py.

One sentence the fuzz test holds it to: whatever the bytes are, `unpack` returns a message of the union whose every
field has its annotated type and range, or raises BadMessage. It knows no single message by name, and no socket.
The checks of a kind are compiled once; after that a small message costs a few microseconds each way.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgpack

from hermes_mp.errors import BadMessage, InvariantBroken
from hermes_mp.messages import MAX_FRAME_NBYTES, MAX_RANGES, MAX_TEXT_CHARS

MAX_INT = 2**63 - 1
MAX_CHAR_NBYTES = 4  # of one character in UTF-8


class _Shape(NamedTuple):
    """How one annotated type is checked and turned over; a BadMessage starts with the rest of the path."""

    from_wire: Callable[[Any], Any]
    to_wire: Callable[[Any], Any]


def pack(message: object) -> bytes:
    """The frame of a message; raises BadMessage where it breaks a limit, so that no peer ever has to refuse it."""
    kind = type(message)
    if not dataclasses.is_dataclass(kind):
        raise BadMessage(f"{kind.__name__} is no message")
    try:
        fields = _record(kind).to_wire(message)
    except BadMessage as wrong:
        raise BadMessage(f"{kind.__name__}{wrong}") from None
    frame: bytes = msgpack.packb((kind.__name__, fields))
    if len(frame) > MAX_FRAME_NBYTES:
        raise BadMessage(f"{kind.__name__}: {len(frame)} bytes, more than the {MAX_FRAME_NBYTES} of a frame")
    return frame


def unpack(frame: bytes | memoryview, union: object) -> Any:
    """The message of `union` (such as `messages.ToLoader`) that `frame` holds, or BadMessage and nothing else."""
    if len(frame) > MAX_FRAME_NBYTES:
        raise BadMessage(f"{len(frame)} bytes, more than the {MAX_FRAME_NBYTES} of a frame")
    try:
        wire = msgpack.unpackb(
            frame,
            use_list=False,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_TEXT_CHARS * MAX_CHAR_NBYTES,
            max_array_len=MAX_RANGES,
            max_map_len=0,
            max_bin_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as reason:
        raise BadMessage(f"no msgpack within our limits: {reason or type(reason).__name__}") from None
    if type(wire) is not tuple or len(wire) != 2 or type(wire[0]) is not str:
        raise BadMessage("expected [kind, [field, ...]]")
    name, fields = wire
    shape = _kinds(union).get(name)
    if shape is None:
        raise BadMessage(f"{name[:40]!r} is no kind of this direction")
    try:
        return shape.from_wire(fields)
    except BadMessage as wrong:
        raise BadMessage(f"{name}{wrong}") from None


@functools.cache
def _kinds(union: object) -> Mapping[str, _Shape]:
    return {kind.__name__: _record(kind) for kind in typing.get_args(union) or (union,)}


@functools.cache
def _record(kind: type[Any]) -> _Shape:
    """A dataclass travels as its fields in order."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    shapes = [_shape(hints[name]) for name in names]
    readers = [shape.from_wire for shape in shapes]
    writers = [(name, shape.to_wire) for name, shape in zip(names, shapes, strict=True)]

    def from_wire(wire: Any) -> Any:
        if type(wire) is not tuple:
            raise BadMessage(f": expected {len(readers)} fields, got {type(wire).__name__}")
        if len(wire) != len(readers):
            raise BadMessage(f": expected {len(readers)} fields, got {len(wire)}")
        values: list[Any] = []
        try:
            for read, value in zip(readers, wire, strict=True):
                values.append(read(value))
        except BadMessage as wrong:
            raise BadMessage(f".{names[len(values)]}{wrong}") from None
        return kind(*values)

    def to_wire(message: Any) -> tuple[Any, ...]:
        if type(message) is not kind:
            raise BadMessage(f": expected {kind.__name__}, got {type(message).__name__}")
        values: list[Any] = []
        try:
            for name, write in writers:
                values.append(write(getattr(message, name)))
        except BadMessage as wrong:
            raise BadMessage(f".{names[len(values)]}{wrong}") from None
        return tuple(values)

    return _Shape(from_wire, to_wire)


def _shape(annotation: Any) -> _Shape:
    annotation = getattr(annotation, "__supertype__", annotation)  # NewType: a Ticket travels as an int
    if annotation is int:
        return _Shape(_int, _int)
    if annotation is bool:
        return _Shape(_bool, _bool)
    if annotation is str:
        return _Shape(_text, _text)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _record(annotation)
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        item = _shape(arguments[0])
        return _Shape(_sequence(item.from_wire), _sequence(item.to_wire))
    raise InvariantBroken(f"messages hold int, bool, str, dataclasses and tuple[X, ...] only, not {annotation!r}")


def _int(value: Any) -> int:
    if type(value) is not int:  # exactly: True is an int to isinstance
        raise BadMessage(f": expected int, got {type(value).__name__}")
    if not 0 <= value <= MAX_INT:
        raise BadMessage(": expected an int of 0 .. 2**63-1")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise BadMessage(f": expected bool, got {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise BadMessage(f": expected str, got {type(value).__name__}")
    if len(value) > MAX_TEXT_CHARS:
        raise BadMessage(f": {len(value)} characters, more than {MAX_TEXT_CHARS}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadMessage(": expected valid Unicode, got a lone surrogate") from None
    return value


def _sequence(item: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not tuple:
            raise BadMessage(f": expected tuple, got {type(value).__name__}")
        if len(value) > MAX_RANGES:
            raise BadMessage(f": {len(value)} items, more than {MAX_RANGES}")
        values: list[Any] = []
        try:
            for part in value:
                values.append(item(part))
        except BadMessage as wrong:
            raise BadMessage(f"[{len(values)}]{wrong}") from None
        return tuple(values)

    return check
