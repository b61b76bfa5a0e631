"""A compute process holds no more than it must: a ceiling on its memory, and a list of what it must not have imported.

What is left out is there when it is asked for, and nothing else changes: each test runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.models.prepare import trace_model

MIB = 1 << 20
# With torch 2.13 and transformers 5.23 on x86-64: 184 and 36. docs/memory.md has the parts.
PRIVATE_CEILING = 200 * MIB
FILE_CEILING = 56 * MIB
MUST_NOT_HOLD = (
    "accelerate", "pandas", "scipy", "sklearn", "sympy.core", "torch._dynamo.utils", "torch._inductor",
    "torch.distributed.fsdp", "torch.distributed.tensor", "torch.fx.experimental.validator", "torch.onnx",
    "torchvision",
)  # fmt: skip
PREPARE = """
import json, os, sys
from pathlib import Path
from hermes_mp.models.light_imports import import_lightly
import_lightly()
from hermes_mp.host import memory
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.models.prepare import trace_model
from hermes_mp.models.settle import settle
from hermes_mp.models.tasks.task import open_task
checkpoint = find_checkpoint(Path(sys.argv[1]))
made = trace_model(checkpoint, "auto", None, 1).divide()
open_task(made.skeleton.model, checkpoint.directory, {})
settle(made.skeleton.dtype, images=made.skeleton.model.main_input_name == "pixel_values")
taken = memory.quick(os.getpid())
print(json.dumps({
    "private": taken.private_nbytes, "file": taken.file_nbytes, "modules": sorted(sys.modules),
    "units": made.division.list.digest(), "footprint": repr(made.footprint),
}))
"""


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module", params=["gpt2", "bert", "vit"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp(request.param)
    getattr(tiny_models, request.param)(directory)
    return directory, json.loads(run(PREPARE, directory))


def test_a_compute_process_stays_below_its_ceiling(prepared: tuple[Path, dict[str, Any]]) -> None:
    _, held = prepared
    assert held["private"] < PRIVATE_CEILING
    assert held["file"] < FILE_CEILING


def test_a_compute_process_does_not_hold_what_it_has_no_use_for(prepared: tuple[Path, dict[str, Any]]) -> None:
    _, held = prepared
    assert set(held["modules"]) & {"torch._dynamo", "sympy"} == {"torch._dynamo", "sympy"}  # hollow ones
    wrong = {name for name in held["modules"] if name in MUST_NOT_HOLD}
    assert wrong <= {"accelerate", "scipy", "sklearn"}  # there as None: not installed


def test_units_and_footprint_are_those_of_a_process_that_imports_everything(
    prepared: tuple[Path, dict[str, Any]],
) -> None:
    directory, held = prepared
    made = trace_model(find_checkpoint(directory), "auto", None, 1).divide()
    assert held["units"] == made.division.list.digest()
    assert held["footprint"] == repr(made.footprint)


def test_what_was_left_out_is_there_when_asked_for() -> None:
    code = """
from hermes_mp.models.light_imports import import_lightly
import_lightly()
import sys, types
import torch, sympy, torch._dynamo
hollow = [name for name, module in sys.modules.items() if type(module) is not types.ModuleType and name == "sympy"]
assert hollow == ["sympy"]
assert not isinstance(1, sympy.Basic)
assert "sympy.core" not in sys.modules
from sympy.core.symbol import Symbol           # a submodule first
assert isinstance(Symbol("x"), sympy.Basic)
assert sympy.Symbol is Symbol and sys.modules["sympy.core.symbol"].Symbol is Symbol
assert sympy.simplify("x + x") == 2 * Symbol("x")
assert type(sympy) is types.ModuleType
doubled = torch.compile(lambda x: x.sin() * 2, backend="eager")
x = torch.arange(4.0)
assert torch.equal(doubled(x), x.sin() * 2)
assert torch._dynamo.utils.counters["frames"]["ok"] == 1
try:
    torch._dynamo.no_such_thing
except AttributeError as error:
    assert "no_such_thing" in str(error)
else:
    raise AssertionError
"""
    run(code)


def test_classes_of_a_hollow_module_can_be_subclassed_and_made() -> None:
    code = """
from hermes_mp.models.light_imports import import_lightly
import_lightly()
import sympy, sys
class Mine(sympy.Basic):
    pass
assert "sympy.core" in sys.modules
assert issubclass(Mine, sympy.Basic) and sympy.Basic() == sympy.Basic()
"""
    run(code)


def test_questions_about_plain_numbers_are_answered_as_by_the_module_itself() -> None:
    code = """
from hermes_mp.models.light_imports import import_lightly
import_lightly()
import sys
import torch.fx.experimental.symbolic_shapes as shapes
from hermes_mp.models.light_imports import PLAIN_ANSWERS
hollow = {name: getattr(shapes, name) for name in PLAIN_ANSWERS}
calls = [
    ("expect_true", True), ("expect_true", False), ("guard_or_false", True), ("guard_or_false", False),
    ("guard_or_true", False), ("guard_or_true", True), ("guard_size_oblivious", True), ("is_nested_int", 3),
    ("guarding_hint_or_throw", 5), ("guarding_hint_or_throw", True), ("has_guarding_hint", 5),
    ("statically_known_true", False), ("statically_known_true", True), ("sym_and", True, False), ("sym_and", True),
    ("sym_or", False, True), ("sym_or", False), ("sym_eq", 2, 3), ("sym_eq", 2, 2), ("sym_eq", (1, 2), [1, 2]),
    ("sym_eq", (1, 2), (1, 2, 3)), ("sym_eq", ((1,), 2), ((1,), 3)),
]
answers = [hollow[name](*values) for name, *values in calls]
assert "sympy.core" not in sys.modules
shapes.ShapeEnv
assert "sympy.core" in sys.modules
for (name, *values), answer in zip(calls, answers):
    if hasattr(shapes, name):  # some came or went with versions of torch
        assert getattr(shapes, name)(*values) == answer, (name, values)
assert {name for name, *_ in calls} == set(PLAIN_ANSWERS)
"""
    run(code)


def test_torch_that_is_already_there_is_left_alone() -> None:
    code = """
import torch
from hermes_mp.models.light_imports import import_lightly
import_lightly()
import sys, types
assert torch.distributed.is_available.__module__ == "torch.distributed"
import sympy
assert type(sympy) is types.ModuleType and sympy.Symbol
assert sys.modules.get("scipy", 0) is not None
"""
    run(code)
