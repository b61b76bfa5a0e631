"""How models are divided, and that binding gives back what it takes; weights come from the file, without a process."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import transformers
from comparison import assert_same
from families import FAMILIES, Family, family

from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.models.division import ROWS_MULTIPLE, Division, cast_nbytes
from hermes_mp.models.packing import MANY_LOADERS, RAMP
from hermes_mp.models.skeleton import Skeleton, build_skeleton
from hermes_mp.models.streamed import stream
from hermes_mp.models.trace import trace_forward
from hermes_mp.models.units import divide

Folder = Callable[[str], Path]


ROOMS = (24 << 10, 40 << 10, 150 << 10)  # bytes: a matrix, half a layer or so, two layers


def divided(
    directory: Path, dtype: str = "auto", room: int | None = None, loaders: int = 1
) -> tuple[Skeleton, Division]:
    skeleton = build_skeleton(directory, find_checkpoint(directory), dtype)
    trace = trace_forward(skeleton.model, 1, 16)
    assert not trace.failed
    return skeleton, divide(skeleton, trace, room, loaders)


@dataclass
class FileSupply:
    """Reads a unit when it is wanted, into a slot of its own that is spoilt when it is given back."""

    division: Division
    held: list[int] = field(default_factory=list)
    passes: list[str] = field(default_factory=list)
    rows_nbytes: int = 0
    interrupt: int | None = None  # Ctrl-C comes while this unit is waited for
    shift: int = 0  # in which slot, counted from its own, a unit lies

    def __post_init__(self) -> None:
        self.slot_nbytes = self.division.list.slot_nbytes
        self.buffer = mmap.mmap(-1, self.slot_nbytes * len(self.division.layouts) or 1)

    def acquire(self, unit: int) -> int:
        assert unit not in self.held
        if unit == self.interrupt:
            raise KeyboardInterrupt
        base = self._slot(unit)
        for part in self.division.list.units[unit].ranges:
            self.buffer[base + part.at : base + part.at + part.nbytes] = self._read(part.file, part.offset, part.nbytes)
        self.held.append(unit)
        return base

    def release(self, unit: int, computed: bool) -> None:
        self.held.remove(unit)
        base = self._slot(unit)
        self.buffer[base : base + self.slot_nbytes] = b"\xff" * self.slot_nbytes  # all NaN

    def _slot(self, unit: int) -> int:
        return (unit + self.shift) % len(self.division.layouts) * self.slot_nbytes

    def read_rows(self, file: int, ranges: Sequence[tuple[int, int]], into: memoryview) -> None:
        data = b"".join(self._read(file, offset, nbytes) for offset, nbytes in ranges)
        self.rows_nbytes += len(data)
        into[:] = data

    def forecast(self, more: bool, units: int | None) -> None: ...

    def pass_started(self, rows: int, tokens: int) -> None:
        self.passes.append(f"{rows}x{tokens}")

    def pass_ended(self, complete: bool) -> None:
        self.passes.append("complete" if complete else "cut short")

    def _read(self, file: int, offset: int, nbytes: int) -> bytes:
        with open(self.division.list.files[file].path, "rb") as opened:
            data = os.pread(opened.fileno(), nbytes, offset)
        assert len(data) == nbytes
        return data


def streamed(directory: Path, room: int | None = None) -> tuple[Any, FileSupply]:
    skeleton, division = divided(directory, room=room)
    supply = FileSupply(division)
    return stream(skeleton, division, supply, lambda call: None, lambda *call: None), supply


# --- the division


@pytest.mark.parametrize("one", FAMILIES, ids=lambda one: one.name)
def test_every_weight_is_in_one_place(one: Family, tmp_path: Path) -> None:
    one.save(tmp_path, sharded=FAMILIES.index(one) % 2 == 1)
    skeleton, division = divided(tmp_path)
    check_places(skeleton, division)
    assert sum(bound.source.info.nbytes for bound in division.pinned) < 64 << 10
    units = [piece.unit for piece in division.pieces]
    assert units == sorted(units)
    blocks = [block for matrix in division.matrices for block in matrix.blocks]
    assert sorted({*units, *(block.unit for block in blocks)}) == list(range(len(division.layouts)))
    layers = [piece for piece in division.pieces if piece.name.rpartition(".")[2].isdigit()]
    assert len(layers) == 6
    assert len({piece.unit for piece in layers}) == 6
    assert max(unit.nbytes for unit in division.list.units) < 3 * max(division.layouts[p.unit].nbytes for p in layers)


@pytest.mark.parametrize(("room", "loaders"), [*((room, 3) for room in ROOMS), (ROOMS[-1], 6)])
@pytest.mark.parametrize("one", FAMILIES, ids=lambda one: one.name)
def test_finer_units_are_filled_to_the_brim(one: Family, room: int, loaders: int, tmp_path: Path) -> None:
    """And for many loaders the first ones are small."""
    one.save(tmp_path)
    skeleton, division = divided(tmp_path, room=room, loaders=loaders)
    check_places(skeleton, division)
    atoms = [sum(bound.source.info.nbytes for bound in piece.bounds) for piece in division.pieces]
    rows_nbytes = 64 * 192 * 4  # 64 of the widest that any family has
    least = max(rows_nbytes + 4096 * 4, 4096 * 8 + max(atoms, default=0))
    sizes = [unit.nbytes for unit in division.list.units]
    ramp = RAMP if loaders >= MANY_LOADERS else 1
    for number, nbytes in enumerate(sizes):
        assert nbytes <= max(least, room * min(ramp, number + 1) // ramp)
    # A large piece further on does not make the first unit large.
    assert sizes[0] <= max(rows_nbytes + 4096 * 4, 4096 * 8 + max(atoms[:1], default=0), room // ramp)
    if not division.pieces:
        filled = sizes[ramp - 1 : -1]  # the last one is what is left
        assert sum(filled) >= 0.6 * room * len(filled)
    assert division.list.read_nbytes < 1.5 * divided(tmp_path)[1].list.read_nbytes


def check_places(skeleton: Skeleton, division: Division) -> None:
    """Every weight is in one place, blocks cover their matrix, and residues modulo 4096 are kept."""
    places = [("unit", bound.source.info.name, bound.name) for piece in division.pieces for bound in piece.bounds]
    places += [("matrix", matrix.source.info.name, matrix.name) for matrix in division.matrices]
    places += [("pinned", bound.source.info.name, bound.name) for bound in division.pinned]
    tensors = {source.info.name for source in skeleton.parameters.values()}
    assert {tensor for _, tensor, _ in places} == tensors
    assert len({tensor for _, tensor, _ in places}) == len({(kind, tensor) for kind, tensor, _ in places})
    enders = [piece.unit for piece in division.pieces if piece.ends_unit]
    for matrix in division.matrices:
        assert ("matrix" in matrix.kinds) == bool(matrix.blocks)
        edges = [edge for block in matrix.blocks for edge in (block.first, block.last)]
        if edges:
            assert edges[0] == 0
            assert edges[-1] == matrix.source.info.shape[0]
            assert edges[1:-1:2] == edges[2:-1:2]
            assert not any(edge % ROWS_MULTIPLE for edge in edges[:-1])
        for block in matrix.blocks:
            assert block.at % 4096 == (matrix.source.info.begin + block.first * matrix.row_nbytes) % 4096
            enders += [block.unit] if block.ends_unit else []
    assert sorted(enders) == list(range(len(division.layouts)))
    for piece in division.pieces:
        for bound in piece.bounds:
            assert division.layouts[piece.unit].at[bound.source.info.name] % 4096 == bound.source.info.begin % 4096


def test_matrices_larger_than_a_unit_are_cut(folder: Folder) -> None:
    """The smallest unit is set by 64 rows of a matrix, not by the largest layer, nor by the largest matrix."""
    for name in ("gptj",):
        _, by_layers = divided(folder(name))
        _, division = divided(folder(name), room=40 << 10)
        cut = {matrix.name for matrix in division.matrices if len(matrix.blocks) > 1}
        assert [one for one in cut if ".mlp." in one], (name, cut)
        assert division.list.slot_nbytes < 0.6 * by_layers.list.slot_nbytes


def test_a_head_larger_than_a_layer_streams_in_blocks(folder: Folder) -> None:
    for name in ("llama-tied", "llama-untied", "gpt2", "gptj"):
        (head,) = [matrix for matrix in divided(folder(name))[1].matrices if matrix.blocks]
        assert len(head.blocks) > 1
        assert head.blocks[-1].unit == head.blocks[0].unit + len(head.blocks) - 1


def test_no_casts_unless_dtypes_differ(folder: Folder) -> None:
    assert cast_nbytes(divided(folder("llama-tied"))[1]) == 0
    division = divided(folder("llama-tied"), "bfloat16")[1]
    assert 0 < cast_nbytes(division) <= division.list.slot_nbytes // 2


def test_the_trace_sees_the_order(folder: Folder) -> None:
    skeleton, _ = divided(folder("gpt2"))
    trace = trace_forward(skeleton.model, 2, 8)
    names = {id(parameter): name for name, parameter in skeleton.model.named_parameters()}
    order = list(dict.fromkeys(names[use.parameter] for use in trace.uses))
    assert order[:3] == ["transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.ln_1.weight"]
    assert [name for name in order if name.endswith("mlp.c_fc.weight")] == [
        f"transformer.h.{layer}.mlp.c_fc.weight" for layer in range(6)
    ]
    kinds = {use.kind for use in trace.uses if names[use.parameter] == "transformer.wte.weight"}
    assert kinds == {"rows", "matrix"}
    assert trace.logits_nbytes_per_position == 1213 * 4
    assert trace.peak_nbytes > 2 * 8 * 48 * 4


# --- binding


@pytest.mark.parametrize("room", [None, *ROOMS])
@pytest.mark.parametrize("one", FAMILIES, ids=lambda one: one.name)
def test_no_weight_is_used_outside_its_lease(one: Family, room: int | None, tmp_path: Path) -> None:
    """A slot is spoilt as soon as it is given back, so what still pointed into it would answer NaN."""
    one.save(tmp_path)
    model, supply = streamed(tmp_path, room)
    plain = one.load_plain(tmp_path)
    with torch.no_grad():
        for _ in range(2):
            inputs = one.inputs()
            assert_same(model(**inputs), plain(**inputs))
            assert supply.held == []
    assert supply.passes == ["2x1" if one.pixels else "2x9", "complete"] * 2


def test_a_matrix_looked_up_only_can_still_be_multiplied(folder: Folder) -> None:
    """Whatever the trace foresaw: here the base model, and a caller that ties a head to it by hand."""
    for name in ("gpt2-base", "bert"):
        model, supply = streamed(folder(name))
        plain = family(name).load_plain(folder(name))
        hidden = torch.randn(3, 4, 48)
        with torch.no_grad():
            answer = F.linear(hidden, model.get_input_embeddings().weight)
            assert torch.equal(answer, F.linear(hidden, plain.get_input_embeddings().weight))
        assert supply.rows_nbytes >= plain.get_input_embeddings().weight.nbytes


@pytest.mark.parametrize("unit", [0, 3, 6, 8])
def test_ctrl_c_while_waiting_leaves_nothing_held(unit: int, folder: Folder) -> None:
    model, supply = streamed(folder("llama-untied"))
    plain = family("llama-untied").load_plain(folder("llama-untied"))
    inputs = family("llama-untied").inputs()
    with torch.no_grad():
        supply.interrupt = unit
        with pytest.raises(KeyboardInterrupt):
            model(**inputs)
        assert supply.held == []
        assert supply.passes == ["2x9", "cut short"]
        supply.interrupt = None
        assert_same(model(**inputs), plain(**inputs))


def test_a_base_model_alone_is_a_pass_without_the_head(folder: Folder) -> None:
    model, supply = streamed(folder("llama-untied"))
    taken: list[int] = []
    acquire = supply.acquire
    supply.acquire = lambda unit: (taken.append(unit), acquire(unit))[1]  # type: ignore[method-assign]
    model.model(**family("llama-untied").inputs())
    assert taken == list(range(max(taken) + 1))
    assert max(taken) < len(supply.division.layouts) - 1
    assert supply.passes == ["2x9", "complete"]


@pytest.mark.parametrize("room", [None, ROOMS[0]])
def test_a_weight_is_one_object_wherever_its_unit_lies(folder: Folder, room: int | None) -> None:
    """A weight made in a pass would lie between activations for as long as it lives, and their places be lost."""
    model, supply = streamed(folder("gpt2"), room)
    binder = model._hermes_binder
    seen: dict[int, list[tuple[int, int]]] = {}
    point = binder.weight

    def weight(key: object, *words: Any) -> torch.nn.Parameter:
        found: torch.nn.Parameter = point(key, *words)
        seen.setdefault(id(key), []).append((id(found), found.data_ptr()))
        return found

    binder.weight = weight
    made = {key: id(weight) for key, (_, weight) in binder._weights.items()}
    model.eval()
    inputs = family("gpt2").inputs()
    expected = family("gpt2").load_plain(folder("gpt2"))(**inputs).logits
    for supply.shift in (0, 1, 1, 2):
        assert torch.equal(model(**inputs).logits, expected)
    assert set(seen) == set(made)
    for key, each in seen.items():
        assert [weight for weight, _ in each] == [made[key]] * 4
        first, moved, stayed, again = (place for _, place in each)
        assert len({first, moved, again}) == 3
        assert moved == stayed


class Pair(NamedTuple):
    ours: torch.Tensor
    other: torch.Tensor


@dataclass(frozen=True)
class Record:
    inner: dict[str, list[Pair]]


def test_an_output_that_lies_in_a_slot_is_copied_wherever_it_is(folder: Folder) -> None:
    """What a layer hands out must outlive the slot: alone, in containers, in named tuples and in objects."""
    model, supply = streamed(folder("gpt2"))
    ours = torch.frombuffer(supply.buffer, dtype=torch.float32, count=4, offset=64)
    other = torch.zeros(4)
    owned = model._hermes_binder.own([Record({"a": [Pair(ours, other)]}), (ours[1:2],), Pair(other, ours)])
    record, (view,), pair = owned
    found = record.inner["a"][0]
    assert isinstance(found, Pair)
    assert isinstance(pair, Pair)
    assert found.other is other is pair.ours
    low, high = ours.data_ptr(), ours.data_ptr() + len(supply.buffer)
    assert not [one for one in (found.ours, view, pair.other) if low <= one.data_ptr() < high]


def test_where_a_pass_should_end(folder: Folder) -> None:
    """The whole model's ends behind the last block of its head, the base model's before the first one."""
    skeleton, division = divided(folder("llama-untied"))
    (head,) = [matrix for matrix in division.matrices if matrix.blocks]
    model = skeleton.model
    assert division.ends == {id(model): len(division.layouts), id(model.base_model): head.blocks[0].unit}


def test_dropping_the_model_drops_all_of_it(folder: Folder) -> None:
    """No cycle through the hooks keeps it: what is behind it ends when the last reference does."""
    import gc
    import weakref

    model, _ = streamed(folder("gpt2"))
    model(**family("gpt2").inputs())
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_a_trace_that_fails_leaves_the_order_of_definition(tmp_path: Path) -> None:
    config = transformers.LongformerConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, vocab_size=401,
        max_position_embeddings=66, attention_window=8,
    )  # fmt: skip
    transformers.LongformerForMaskedLM(config).save_pretrained(tmp_path)
    skeleton = build_skeleton(tmp_path, find_checkpoint(tmp_path))
    trace = trace_forward(skeleton.model, 1, 16)
    assert "meta" in trace.failed
    division = divide(skeleton, trace)
    layers = [piece.name for piece in division.pieces if ".layer." in piece.name]
    assert layers == [f"longformer.encoder.layer.{number}" for number in range(3)]
    (head,) = [matrix for matrix in division.matrices if matrix.blocks]
    assert head.kinds == {"rows", "matrix"}
