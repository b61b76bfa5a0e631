"""Checkpoint files that are wrong, in every way there is one: drawn from a `Random`, so that each can be made again."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hermes_mp.core.header import BITS_BY_DTYPE, MAX_HEADER_NBYTES, MAX_OTHER_NBYTES, METADATA

NUMBERS = ["-0", "-1", "0", "1", "2", "01", "1.0", "1e1", "true", "null", '"1"', "NaN", "Infinity", "[1]", "{}"]
NUMBERS += [str(2**power - less) for power in (31, 32, 53, 60, 61, 62, 63, 64, 65) for less in (0, 1)]
TEXTS = [
    "", "F32", "F16", "BF16", "F8_E4M3", "F4", "f32", "F128", "dtype", "shape", METADATA, "a", "\\u0061", "\\ud800",
    "\\ud83d\\ude00", "é", "\\q", "\\u0000", "..\\/x", "\n",
]  # fmt: skip
BYTES = [b" ", b"\n", b"\t", b"\r", b"\x0b", b"\xef\xbb\xbf", b"\0", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"/**/"]
LENGTHS = [0, 1, 7, 100_000_000, 100_000_001, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 9, 2**64 - 1]


@dataclass
class Damaged:
    """A file: `content`, then bytes of data up to `nbytes`."""

    raw: bytes
    data_nbytes: int
    declared: int | None = None
    cut: int | None = None
    hows: list[str] = field(default_factory=list)

    @property
    def content(self) -> bytes:
        length = len(self.raw) if self.declared is None else self.declared
        return (struct.pack("<Q", length) + self.raw)[: self.nbytes]

    @property
    def nbytes(self) -> int:
        whole = 8 + len(self.raw) + self.data_nbytes
        return whole if self.cut is None else min(whole, self.cut)

    @property
    def is_sound(self) -> bool:
        return self.hows == ["sound"]

    @property
    def how(self) -> str:
        return ", ".join(self.hows)


def damaged(chance: Random, real: list[bytes]) -> Damaged:
    """A real header or a made one, damaged one to three times; one of ten is left as it is."""
    file = _of(json.loads(chance.choice(real)), chance) if chance.random() < 0.3 else _made(chance)
    if chance.random() < 0.1:
        file.hows.append("sound")
        return file
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        damage = chance.choice(DAMAGES)
        damage(file, chance)
        file.hows.append(damage.__name__.strip("_"))
    return file


def large(chance: Random) -> Damaged:
    """About as large as we read, and in some way made to take more memory than that."""
    most = chance.choice((MAX_HEADER_NBYTES, MAX_HEADER_NBYTES, MAX_OTHER_NBYTES, MAX_HEADER_NBYTES // 2)) - 8
    begin, fill, end = chance.choice(LARGE)
    emoji = chance.choice((b"", b"\\ud83d\\ude00", "\N{GRINNING FACE}".encode()))
    count = min(most // len(fill % 0 if b"%" in fill else fill), chance.choice((10_000, 60_000, 100_000, 10**7)))
    body = b"".join(fill % at for at in range(count)) if b"%" in fill else fill * count
    rest = max(0, most - len(begin) - len(body) - len(end) - len(emoji) - 2) if chance.random() < 0.5 else 0
    return Damaged(begin + body + b'"' + emoji + b"x" * rest + b'"' + end, 0, hows=["large"])


EMPTY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
LARGE = [
    (b'{"__metadata__":{', b'"%06d":"",', b':""}}'),
    (b'{"__metadata__":{', b'"%06d":"\\ud83d\\ude00",', b':""}}'),
    (b"{", b'"%06d":' + EMPTY + b",", b":" + EMPTY + b"}"),
    (b"{", b'"%06d":1,', b":1}"),
    (b'{"a":[', b'"ab",', b"]}"),
    (b'{"a":[', b"1000,", b"]}"),
    (b'{"a":[', b"[],", b"]}"),
    (b'{"a":[', b'{"":1},', b"]}"),
    (b'{"a":', b"[", b""),
    (b'{"a":', b'{"a":', b""),
    (b"{", b" ", b":1}"),
    (b"", b" ", b""),
]


def _made(chance: Random) -> Damaged:
    """A sound header of a few small tensors of any dtype, in any spelling."""
    entries: dict[str, Any] = {}
    if chance.random() < 0.5:
        entries[METADATA] = {_name(chance): _name(chance) for _ in range(chance.randint(0, 2))}
    reached = 0
    for _ in range(chance.randint(0, 4)):
        dtype = chance.choice(list(BITS_BY_DTYPE))
        shape = [chance.randint(0, 4) for _ in range(chance.randint(0, 3))] + [8] * (BITS_BY_DTYPE[dtype] % 8 > 0)
        nbits = BITS_BY_DTYPE[dtype]
        for size in shape:
            nbits *= size
        name = _name(chance)
        if name not in entries:
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [reached, reached + nbits // 8]}
            reached += nbits // 8
    return _of(entries, chance)


def _of(entries: dict[str, Any], chance: Random) -> Damaged:
    items = list(entries.items())
    chance.shuffle(items)
    separators = chance.choice(((",", ":"), (", ", ": ")))
    text = json.dumps(dict(items), ensure_ascii=chance.random() < 0.5, separators=separators)
    nbytes = max((one["data_offsets"][1] for name, one in items if name != METADATA), default=0)
    return Damaged(text.encode() + b" " * chance.randint(0, 8), nbytes)


def _name(chance: Random) -> str:
    return "".join(chance.choice('abc.0é\N{GRINNING FACE}\0"\\/ {}[]\n') for _ in range(chance.randint(0, 4)))


# --- what can be wrong with one


def _bits(file: Damaged, chance: Random) -> None:
    raw = bytearray(file.raw)
    for _ in range(chance.randint(1, 8) if raw else 0):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    file.raw = bytes(raw)


def _bytes(file: Damaged, chance: Random) -> None:
    at = chance.randint(0, len(file.raw))
    file.raw = file.raw[:at] + chance.randbytes(chance.randint(0, 2)) + file.raw[at + chance.randint(0, 2) :]


def _put_in(file: Damaged, chance: Random) -> None:
    at = chance.choice((0, len(file.raw), chance.randint(0, len(file.raw))))
    file.raw = file.raw[:at] + chance.choice(BYTES) * chance.choice((1, 1, 2, 50)) + file.raw[at:]


def _cut_header(file: Damaged, chance: Random) -> None:
    file.raw = file.raw[: chance.randint(0, len(file.raw))]


def _cut_file(file: Damaged, chance: Random) -> None:
    header = 8 + len(file.raw)
    file.cut = chance.choice((chance.randint(0, 8), chance.randint(0, header), header + file.data_nbytes - 1))
    file.cut = max(0, file.cut)


def _trailing(file: Damaged, chance: Random) -> None:
    file.data_nbytes = max(0, file.data_nbytes + chance.choice((-100, -8, -1, 1, 7, 8, 4096)))


def _length(file: Damaged, chance: Random) -> None:
    near = len(file.raw) + chance.choice((-8, -1, 1, 8))
    file.declared = max(0, chance.choice((near, chance.choice(LENGTHS), chance.getrandbits(64), MAX_HEADER_NBYTES + 1)))


def _nested(file: Damaged, chance: Random) -> None:
    depth = chance.choice((2, 100, 127, 128, 1000, 5000))
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
    _number(file, chance, opening * depth + b"1" + closing * chance.choice((depth, depth, 0)))


def _repeated(file: Damaged, chance: Random) -> None:
    """A key, an entry, a bracket."""
    at = chance.randint(0, len(file.raw))
    end = chance.randint(at, len(file.raw))
    file.raw = file.raw[:end] + file.raw[at:end] + file.raw[end:]


def _number(file: Damaged, chance: Random, token: bytes | None = None) -> None:
    """Another number in the place of one."""
    raw = file.raw
    starts = [at for at in range(len(raw)) if raw[at : at + 1].isdigit() and not raw[at - 1 : at].isdigit()]
    if starts:
        start = end = chance.choice(starts)
        while raw[end : end + 1].isdigit():
            end += 1
        file.raw = raw[:start] + (token or chance.choice(NUMBERS).encode()) + raw[end:]


def _text(file: Damaged, chance: Random) -> None:
    """Another text in the place of one: a name, a dtype, a field."""
    parts = file.raw.split(b'"')
    if len(parts) >= 3:
        parts[chance.randint(0, len(parts) // 2 - 1) * 2 + 1] = chance.choice(TEXTS).encode()
        file.raw = b'"'.join(parts)


def _respelt(file: Damaged, chance: Random) -> None:
    """The same number in other digits."""
    value = chance.choice((b"0", b"1", b"4", b"8"))
    others = (value + b".0", value + b"e0", b"0" + value, b"-" + value, b"+" + value, b"0x" + value)
    file.raw = file.raw.replace(b"[" + value + b",", b"[" + chance.choice(others) + b",", 1)


def _product(file: Damaged, chance: Random) -> None:
    """One that overflows, perhaps before a 0 ends it."""
    power = chance.choice((2**31, 2**32, 2**60, 2**61, 2**62, 2**63 - 1, 2**63))
    _fields(file, chance, lambda one: one.update(shape=[power, chance.choice((1, 2, power)), chance.choice((0, 1))]))


def _offsets(file: Damaged, chance: Random) -> None:
    """A hole, an overlap, the wrong way round, below nothing, beyond everything, or no offsets."""
    by = chance.choice((-8, -1, 1, 8, 2**40, 2**63))

    def change(one: dict[str, Any]) -> None:
        begin, end = one["data_offsets"]
        one["data_offsets"] = chance.choice((
            [begin + by, end + by], [begin, end + by], [begin + by, end], [end, begin], [begin], [begin, end, end], [],
            None, {}, [float(begin), end], [str(begin), end], [begin, None], [[begin], end], [True, end],
        ))  # fmt: skip

    _fields(file, chance, change)


def _moved(file: Damaged, chance: Random) -> None:
    """All from one tensor on, and the end of the file: a hole before it, or an overlap."""
    by = chance.choice((-8, -1, 1, 8))

    def change(entries: dict[str, Any]) -> None:
        offsets = [one["data_offsets"] for name, one in entries.items() if name != METADATA]
        first = chance.choice(offsets)[0]
        for at in offsets:
            at[:] = [edge + by if at[0] >= first else edge for edge in at]
        file.data_nbytes = max(0, file.data_nbytes + by)

    _entries(file, change)


def _other_fields(file: Damaged, chance: Random) -> None:
    """One more, one less, one of another kind."""
    which = chance.choice(("dtype", "shape", "data_offsets", "more", METADATA))
    value = chance.choice((None, 1, 1.5, "x", [], {}, ["F32"], {"a": 1}, [1, [2]], True))
    _fields(file, chance, lambda one: one.pop(which, None) if chance.random() < 0.3 else one.update({which: value}))


def _metadata(file: Damaged, chance: Random) -> None:
    value = chance.choice((None, 1, "x", [], {}, {"a": None}, {"a": 1}, {"a": {"b": "c"}}, {"a": ["b"]}, {"": ""}))
    _entries(file, lambda entries: entries.update({METADATA: value}))


def _fields(file: Damaged, chance: Random, change: Callable[[dict[str, Any]], object]) -> None:
    def of_one(entries: dict[str, Any]) -> None:
        change(entries[chance.choice([name for name in entries if name != METADATA])])

    _entries(file, of_one)


def _entries(file: Damaged, change: Callable[[dict[str, Any]], object]) -> None:
    try:
        entries = json.loads(file.raw)
        change(entries)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # damaged too much already
    file.raw = json.dumps(entries).encode(errors="surrogatepass")


DAMAGES = [
    _bits, _bytes, _put_in, _cut_header, _cut_file, _trailing, _length, _nested, _repeated, _number, _text, _respelt,
    _product, _offsets, _moved, _other_fields, _metadata,
]  # fmt: skip
