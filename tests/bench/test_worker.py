"""A worker as its parent asks it: how its model is divided."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hermes_mp.bench.models import open_model
from hermes_mp.bench.plan import Regime, Subject, Wanted
from hermes_mp.bench.process import WorkerProcess, worker_settings, worker_words
from hermes_mp.bench.worker import HEAP_BLOCK_NBYTES, copied
from hermes_mp.host import environment
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.host.memory import exact
from hermes_mp.models.prepare import trace_model


@pytest.mark.parametrize("mode", ["pipeline", "sequential"])
def test_a_baseline_has_a_slot_for_every_layer(models: Path, tmp_path: Path, mode: str) -> None:
    """Packed as one unit of 4 MiB this model would be all there at once."""
    model = open_model(str(models / "gpt2"), tmp_path, print)
    settings = worker_settings(Wanted((model.facts.name,), tokens=8), model, Subject(mode, 1), Regime(factor=6.0))
    with WorkerProcess(worker_words(settings), (), {"XDG_CACHE_HOME": str(tmp_path)}) as worker:
        opened = worker.ask("open")
    layers = trace_model(find_checkpoint(model.directory), "auto", 8, 1).divide().division.list.units
    assert opened["units"] == opened["slots"] == len(layers) >= 3


@pytest.mark.parametrize(("mode", "slots"), [("pipeload", 3), ("pipeline", None)])
def test_slots_are_those_of_pipeload_alone(models: Path, tmp_path: Path, mode: str, slots: int | None) -> None:
    model = open_model(str(models / "gpt2"), tmp_path, print)
    wanted = Wanted((model.facts.name,), tokens=8, slot=16 << 10, slots=3)
    settings = worker_settings(wanted, model, Subject(mode, 1), Regime())
    with WorkerProcess(worker_words(settings), (), {"XDG_CACHE_HOME": str(tmp_path)}) as worker:
        opened = worker.ask("open")
        assert "failed" not in opened, opened
        assert opened["slots"] == (slots or opened["units"])
        assert opened["units"] > 3
        assert worker.ask("first")["kind"] == "tokens"


def test_a_warm_heap_keeps_the_memory_that_a_pass_takes(models: Path, tmp_path: Path) -> None:
    model = open_model(str(models / "gpt2"), tmp_path, print)
    wanted = Wanted((model.facts.name,), tokens=8, batch=1000)
    settings = worker_settings(wanted, model, Subject("pipeload", 1), Regime())
    taken = []
    for warm in (False, True):
        variables = environment.for_computing() | {"XDG_CACHE_HOME": str(tmp_path)}
        with WorkerProcess(worker_words(settings), (), variables) as worker:
            opened = worker.ask("open", warm)
            assert "failed" not in opened, opened
            taken.append(exact(opened["pid"]).private_nbytes)
    assert taken[1] - taken[0] > HEAP_BLOCK_NBYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residue", [0, 8, 40])
def test_a_copy_lies_as_the_weight_does(residue: int, dtype: torch.dtype) -> None:
    memory = torch.arange(1200, dtype=torch.uint8)
    begin = (residue - memory.data_ptr()) % 64
    weight = memory[begin : begin + 960].view(dtype).view(4, -1)
    copy = copied(weight)
    assert torch.equal(copy.view(torch.uint8), weight.view(torch.uint8))
    assert copy.data_ptr() != weight.data_ptr()
    assert copy.data_ptr() % 64 == weight.data_ptr() % 64 == residue
