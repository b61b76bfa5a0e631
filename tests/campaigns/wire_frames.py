"""Frames that are wrong, in every way there is one, and a few that are not: drawn from a `Random`."""

from __future__ import annotations

import struct
from random import Random
from typing import Any

import msgpack
from any_message import UNIONS, any_of, kinds_of

from hermes_mp.host.codec import pack
from hermes_mp.messages import MAX_FRAME_NBYTES

KINDS = [kind for union in UNIONS.values() for kind in kinds_of(union)]
# First bytes of msgpack that promise so many items or bytes: str, bin, ext, array and map of 32 bits, and of 16.
PROMISES_32 = (0xDB, 0xC6, 0xC9, 0xDD, 0xDF)
PROMISES_16 = (0xDA, 0xC5, 0xC8, 0xDC, 0xDE)
NESTS = (b"\x91", b"\x92\xa1a", b"\x81\xa1a", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\xde\x00\x01\xa1a")


def frame(chance: Random, unions: dict[str, Any] = UNIONS) -> tuple[str, bytes, str]:
    """(how it was made, the frame, for whom)."""
    union = chance.choice(list(unions))
    make = chance.choice(MADE)
    return make.__name__.strip("_"), make(chance, unions[union])[: 2 * MAX_FRAME_NBYTES], union


def sound(chance: Random, union: Any) -> bytes:
    """A message of the union."""
    return pack(any_of(chance.choice(kinds_of(union)), chance))


def _random(chance: Random, union: Any) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 2, 8, 40, 200)))


def _cut(chance: Random, union: Any) -> bytes:
    whole = sound(chance, union)
    return whole[: chance.randrange(len(whole))]


def _mutated(chance: Random, union: Any) -> bytes:
    changed = bytearray(sound(chance, union))
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(changed))
        changed[at : at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
    return bytes(changed)


def _doubled(chance: Random, union: Any) -> bytes:
    return sound(chance, union) + chance.choice((b"\0", b"\xc1", sound(chance, union)))


def _tree(chance: Random, union: Any) -> bytes:
    packed: bytes = msgpack.packb(_any_tree(chance, 3))
    return packed


def _wrong_values(chance: Random, union: Any) -> bytes:
    """A kind's name and number of fields; what is in them is its own, edges, or anything."""
    _, fields = msgpack.unpackb(sound(chance, union))
    for _ in range(chance.randint(1, 3)):
        if fields:
            fields[chance.randrange(len(fields))] = _any_tree(chance, 2)
    if chance.random() < 0.2:
        fields = fields[:-1] if chance.random() < 0.5 else [*fields, _any_tree(chance, 1)]
    packed: bytes = msgpack.packb([chance.choice(kinds_of(union)).__name__, fields])
    return packed


def _other_kind(chance: Random, union: Any) -> bytes:
    """A name that is none: of a class that is no message, of a method, long, of other letters, or no text."""
    name = chance.choice(("Range", "__class__", "", "x" * 12_000, "StopLoader\n", any_of(str, chance), 7, None))
    packed: bytes = msgpack.packb([name, [any_of(int, chance) for _ in range(chance.randint(0, 4))]])
    return packed


def _other_direction(chance: Random, union: Any) -> bytes:
    return pack(any_of(chance.choice(KINDS), chance))


def _nested(chance: Random, union: Any) -> bytes:
    deep = chance.choice(NESTS) * chance.choice((3, 100, 511, 512, 1024, 20_000))
    return chance.choice((b"", b"\x92\xaaUnitFailed\x93", b"\x92\xabStopCompute")) + deep + b"\x01"


def _promised(chance: Random, union: Any) -> bytes:
    """A length that no frame has, after nothing or after the beginning of a message."""
    if chance.random() < 0.5:
        count = chance.choice((12_001, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1))
        promise = struct.pack(">BI", chance.choice(PROMISES_32), count)
    else:
        promise = struct.pack(">BH", chance.choice(PROMISES_16), chance.choice((1024, 1025, 12_001, 2**16 - 1)))
    return _cut(chance, union) * (chance.random() < 0.7) + promise + chance.randbytes(chance.choice((0, 4, 1000)))


def _long(chance: Random, union: Any) -> bytes:
    """About as long as a frame may be, or longer."""
    nbytes = chance.choice((48_000, 48_004, MAX_FRAME_NBYTES - 20, MAX_FRAME_NBYTES, MAX_FRAME_NBYTES + 1))
    filling = chance.choice(("x" * nbytes, [0] * 1024, [[0, 0, 1, 0]] * 1024, [[0] * 8] * 1025, b"x" * nbytes))
    packed: bytes = msgpack.packb([chance.choice(KINDS).__name__, [1, 2, filling]])
    return packed


def _any_tree(chance: Random, depth: int) -> Any:
    draw = chance.randrange(13 if depth else 11)
    if draw == 0:
        return None
    if draw == 1:
        return chance.random() < 0.5
    if draw in (2, 3):
        return chance.choice((-(2**63), -1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1))
    if draw in (4, 5):
        return chance.choice((0.0, -1.5, 1e308, float("nan"), float("inf")))
    if draw in (6, 7):
        return any_of(str, chance) + chance.choice(("", "x" * 12_001, "\0"))
    if draw == 8:
        return chance.randbytes(chance.choice((0, 1, 300)))
    if draw == 9:
        return msgpack.ExtType(chance.randrange(128), chance.randbytes(chance.choice((0, 1, 16))))
    if draw == 10:
        return msgpack.Timestamp(chance.getrandbits(40), 999)
    items = [_any_tree(chance, depth - 1) for _ in range(chance.randint(0, 5))]
    return items if draw == 11 else {any_of(str, chance)[:3]: item for item in items}


MADE = (
    sound, _random, _cut, _mutated, _mutated, _doubled, _tree, _wrong_values, _wrong_values, _other_kind,
    _other_direction, _nested, _promised, _long,
)  # fmt: skip
