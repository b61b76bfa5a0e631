"""The header of a safetensors file, read from bytes that came from anywhere: it trusts nothing it is given.

It never accepts what the official reader rejects and is stricter where no model's file differs: `{` comes first; 3 MiB
instead of 100 MB (a quarter unless all of it is ASCII), 20,000 tensors, no name twice, no unknown fields, no null for
metadata, no number from 2**63 on. So a header takes less than 64 MiB to parse, whatever it holds. Every refusal is a
`CheckpointBroken`; the caller adds which file. It knows no file and no dtype of torch: offsets, shapes, names.
Format: https://huggingface.co/docs/safetensors#format
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from hermes_mp.errors import CheckpointBroken

LENGTH_NBYTES = 8
# Real headers are below 1 MiB. Without the counts 4 MiB of `{"":1},` parse into 130 MiB; 16 MiB took up to 300.
MAX_HEADER_NBYTES = 3 * 1024 * 1024
MAX_TENSORS = 20_000  # of one file; models of 92,000 tensors come in 163
MOST_OF = {"[{": 3 * MAX_TENSORS + 2, ":": 5 * MAX_TENSORS, ",": 8 * MAX_TENSORS}  # a matrix has 3, 4 and 5 of them
MAX_OTHER_NBYTES = MAX_HEADER_NBYTES // 4  # one character beyond the BMP makes 4 bytes of every one, in Python
MAX_COUNT = 2**63 - 1  # of elements and bits: what does not fit an int64 fits no reader
METADATA = "__metadata__"

BITS_BY_DTYPE = {
    "BOOL": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its bytes are `begin` to `end` of the file, row-major, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """All that a header says; tensors in the order of their bytes."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def header_length(first_bytes: bytes, file_nbytes: int) -> int:
    """The number of JSON bytes that follow the file's first 8 bytes."""
    if len(first_bytes) < LENGTH_NBYTES:
        raise CheckpointBroken(f"the file ends after {len(first_bytes)} bytes, before the length of its header")
    header_nbytes = int.from_bytes(first_bytes[:LENGTH_NBYTES], "little")
    if header_nbytes > MAX_HEADER_NBYTES:
        raise CheckpointBroken(f"a header of {header_nbytes} bytes is more than the {MAX_HEADER_NBYTES} we read")
    if LENGTH_NBYTES + header_nbytes > file_nbytes:
        raise CheckpointBroken(f"the header of {header_nbytes} bytes ends past the file's {file_nbytes} bytes")
    return header_nbytes


def parse_header(raw_json: bytes, file_nbytes: int, header_nbytes: int) -> Header:
    """Check `raw_json`, the `header_nbytes` bytes after the length, against a file of `file_nbytes` bytes."""
    if len(raw_json) != header_nbytes:
        raise CheckpointBroken(f"the file ends after {len(raw_json)} of the header's {header_nbytes} bytes")
    header_length(header_nbytes.to_bytes(LENGTH_NBYTES, "little"), file_nbytes)
    entries = _json_object(raw_json)
    metadata = _metadata(entries.pop(METADATA)) if METADATA in entries else {}
    data_begin = LENGTH_NBYTES + header_nbytes
    tensors = [_tensor(name, fields, data_begin) for name, fields in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_cover(tensors, data_begin, file_nbytes)
    return Header({tensor.name: tensor for tensor in tensors}, metadata)


def rows_of(info: TensorInfo, first: int, last: int) -> TensorInfo:
    """Rows `first` to `last` (excluded) of a tensor, as a tensor of its own, named `name[first:last]`."""
    rows = info.shape[0] if info.shape else 0
    row_nbytes = info.nbytes // rows if rows else 0
    if not 0 <= first < last <= rows or info.nbytes != rows * row_nbytes:
        raise ValueError(f"rows {first}:{last} of {info.name} with shape {info.shape}")
    return replace(
        info,
        name=f"{info.name}[{first}:{last}]",
        shape=(last - first, *info.shape[1:]),
        begin=info.begin + first * row_nbytes,
        end=info.begin + last * row_nbytes,
    )


def _json_object(raw_json: bytes) -> dict[str, Any]:
    if len(raw_json) > MAX_OTHER_NBYTES and not raw_json.isascii():
        raise CheckpointBroken(f"a header of {len(raw_json)} bytes that are not all ASCII is more than we read")
    try:
        text = raw_json.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointBroken(f"the header is not UTF-8: byte {error.start}") from error
    if not text.startswith("{"):
        raise CheckpointBroken("the header does not begin with {")
    if any(sum(map(text.count, chars)) > most for chars, most in MOST_OF.items()):
        raise CheckpointBroken(f"the header describes more than the {MAX_TENSORS} tensors we read")
    try:
        entries = json.loads(
            text,
            object_pairs_hook=_without_repeats,
            parse_int=_count,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except RecursionError as error:
        raise CheckpointBroken("the header is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise CheckpointBroken(f"the header is not JSON: {error}") from error
    assert isinstance(entries, dict)  # it begins with {
    return entries


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise CheckpointBroken(f"the header names {name!r} twice")
            seen.add(name)
    for name in entries:
        if not _is_unicode(name):
            raise CheckpointBroken(f"the header holds a name that is not Unicode: {name!r}")
    return entries


def _is_unicode(text: str) -> bool:
    """Python's JSON lets a lone surrogate pass ("\\ud800"), which no UTF-8 string can hold."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _count(digits: str) -> int:
    """A count as the official reader takes it: `-0` is none, and nothing above 64 bits."""
    if digits.startswith("-"):
        raise CheckpointBroken(f"the header holds a negative number: {digits[:24]}")
    if len(digits) > 19 or int(digits) > MAX_COUNT:
        raise CheckpointBroken(f"the header holds a number that is too large: {digits[:24]}")
    return int(digits)


def _no_number(text: str) -> int:
    raise CheckpointBroken(f"the header holds {text[:24]} where only whole numbers belong")


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise CheckpointBroken(f"{METADATA} is not an object")
    for key, text in value.items():
        if not isinstance(text, str) or not _is_unicode(text):
            raise CheckpointBroken(f"{METADATA} has something other than text for {key!r}")
    return value


def _tensor(name: str, fields: object, data_begin: int) -> TensorInfo:
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointBroken(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], _counts(name, fields["shape"]), _counts(name, fields["data_offsets"])
    if not isinstance(dtype, str) or dtype not in BITS_BY_DTYPE:
        raise CheckpointBroken(f"tensor {name!r} has a dtype that safetensors does not know: {dtype!r}")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointBroken(f"tensor {name!r} has data_offsets {list(offsets)}")
    nbits = 1
    for factor in (*shape, BITS_BY_DTYPE[dtype]):
        nbits *= factor
        if nbits > MAX_COUNT:  # before a later 0 hides it, as in the official reader
            raise CheckpointBroken(f"tensor {name!r} has a shape that is too large: {list(shape)}")
    begin, end = offsets
    if nbits != (end - begin) * 8:
        raise CheckpointBroken(f"tensor {name!r}: {dtype} {list(shape)} does not take {end - begin} bytes")
    return TensorInfo(name, dtype, shape, data_begin + begin, data_begin + end)


def _counts(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise CheckpointBroken(f"tensor {name!r} has a shape or data_offsets that is not a list of whole numbers")
    return tuple(value)


def _check_cover(tensors: list[TensorInfo], data_begin: int, file_nbytes: int) -> None:
    """The tensors follow each other without hole or overlap from the header's end to the file's end."""
    reached, before = data_begin, "the header"
    for tensor in tensors:
        if tensor.begin != reached:
            fault = "overlaps with" if tensor.begin < reached else "leaves a hole after"
            raise CheckpointBroken(f"tensor {tensor.name!r} {fault} {before}")
        reached, before = tensor.end, f"tensor {tensor.name!r}"
    if reached > file_nbytes:
        raise CheckpointBroken(f"the file has {file_nbytes} bytes, its header promises {reached}: it is truncated")
    if reached < file_nbytes:
        raise CheckpointBroken(f"the file has {file_nbytes - reached} bytes at its end that no tensor owns")
