"""How models are divided into units, and what the trace sees of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from families import FAMILIES, Family
from file_supply import ROOMS, divided

from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.models.division import ROWS_MULTIPLE, Division, cast_nbytes
from hermes_mp.models.packing import MANY_LOADERS, RAMP
from hermes_mp.models.skeleton import Skeleton, build_skeleton
from hermes_mp.models.trace import trace_forward
from hermes_mp.models.units import divide

Folder = Callable[[str], Path]


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
