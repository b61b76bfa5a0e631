"""The shape of the code: which way imports point, who may touch what, what an agent's process holds, docstrings."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hermes_mp"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_DOCSTRING_LINES = 8
LONG_DOCSTRINGS = {"messages.py", "board_messages.py", "errors.py"}  # the protocol, the tree of errors

# What the files of a part may import of the package. The parts are its folders; `base` is ids, messages, config and
# errors; `top` is __init__.py and api.py, what the user's program imports.
MAY_IMPORT = {
    "base": {"base"},
    "core": {"core", "base"},
    "host": {"host", "core", "base"},
    "models": {"models", "host", "core", "base"},
    "agents": {"agents", "models", "host", "core", "base"},
    "bench": {"bench", "agents", "models", "host", "core", "base", "top"},
    "cli": {"cli", "bench", "agents", "models", "host", "core", "base", "top"},
    "top": {"top", "agents", "models", "host", "core", "base"},
}
# Facilities that exactly these files may touch; a trailing * is any ending.
ONLY_IN = {
    "zmq": {"host/wire.py", "host/lan.py", "host/lan_frames.py", "host/lan_link.py"},
    "msgpack": {"host/codec.py"},
    "torch": {"models/*", "agents/compute*", "api.py", "bench/worker.py", "bench/make_model.py"},
    "transformers": {"models/*", "agents/compute*", "api.py", "bench/worker.py", "bench/make_model.py"},
    "matplotlib": {"bench/plots.py"},
    "psutil": {"bench/process.py"},
    "accelerate": {"bench/worker.py"},
    "numpy": {"models/*", "agents/compute*"},
    "huggingface_hub": {"host/hub.py"},
    "ctypes": {
        "host/arena.py", "host/code_pages.py", "host/deathwatch.py", "host/gate.py", "host/malloc.py",
        "host/scheduling.py", "models/*", "bench/worker.py",
    },
    "multiprocessing": set(),
    "pickle": set(),
}
# core is pure: what of the standard library computes, and nothing that sees a clock, a file, a process or chance.
PURE = {
    "__future__", "abc", "base64", "bisect", "collections", "copy", "dataclasses", "enum", "functools", "hashlib",
    "heapq", "itertools", "json", "math", "operator", "re", "struct", "types", "typing",
}  # fmt: skip
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}

# What runs code that it finds in data.
EXECUTING_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
EXECUTING_NAMES = {"eval", "exec", "compile", "__import__"}
EXECUTING_METHODS = (
    "torch.load", "numpy.load", "np.load", "yaml.load", "recv_pyobj", "send_pyobj", "builtins.exec", "builtins.eval",
)  # fmt: skip

# What a process of an agent may load beyond the standard library, and what of that it must not.
AGENT_PACKAGES = {
    "hermes_mp.agents.loader": {"hermes_mp", "zmq", "msgpack"},
    "hermes_mp.agents.remote_loader": {"hermes_mp", "zmq", "msgpack"},
    "hermes_mp.agents.lending": {"hermes_mp", "zmq", "msgpack"},
    "hermes_mp.agents.daemon": {"hermes_mp", "zmq", "msgpack"},
}
HEAVY = {
    "asyncio", "concurrent", "ctypes.util", "email", "http", "logging", "multiprocessing", "sqlite3", "ssl",
    "tempfile", "unittest", "urllib.request", "xml",
}  # fmt: skip


def part_of(module: str) -> str:
    """'hermes_mp.core.slots' -> 'core'."""
    name = module.split(".")[1] if "." in module else "__init__"
    if name in ("ids", "messages", "board_messages", "config", "errors"):
        return "base"
    return name if name in MAY_IMPORT else "top"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of a file, wherever in it, also those for type checking only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            if module.count(".") < 2 and module.partition(".")[0] == "hermes_mp":  # names may be modules themselves
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def allowed(path: Path, places: set[str]) -> bool:
    name = path.relative_to(PACKAGE).as_posix()
    return any(name == place or (place.endswith("*") and name.startswith(place[:-1])) for place in places)


def loaded_modules(module: str) -> set[str]:
    """What a bare interpreter holds once it has imported `module`, the way `host.children` starts a light child."""
    code = "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); import {0}; print('\\n'.join(sys.modules))"
    path = "\n".join([str(ROOT), *(entry for entry in sys.path if entry)])
    command = [sys.executable, "-I", "-S", "-c", code.format(module), path]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(module_of(path))
    wrong = [
        f"line {line}: {part} imports {module}"
        for line, module in imports(path)
        if module.partition(".")[0] == "hermes_mp" and part_of(module) not in MAY_IMPORT[part]
    ]
    assert not wrong


def test_every_facility_is_touched_where_it_belongs() -> None:
    wrong = [
        f"{module_of(path)}:{line} imports {module}"
        for path in FILES
        for line, module in imports(path)
        if not allowed(path, ONLY_IN.get(module.partition(".")[0], {"*"}))
    ]
    assert not wrong


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=module_of)
def test_core_is_pure(path: Path) -> None:
    impure = [
        f"line {line}: {module}"
        for line, module in imports(path)
        if module.partition(".")[0] not in PURE | {"hermes_mp"}
    ]
    calls = [
        f"line {node.lineno}: {node.func.id}()"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS
    ]
    assert not impure + calls


@pytest.mark.parametrize("module", AGENT_PACKAGES)
def test_an_agent_loads_only_what_is_on_its_list(module: str) -> None:
    loaded = loaded_modules(module)
    assert module in loaded
    packages = {name.partition(".")[0] for name in loaded if "cython" not in name.partition(".")[0]}  # its runtime
    assert packages - sys.stdlib_module_names - {"__main__"} == AGENT_PACKAGES[module]
    assert not loaded & HEAVY


def test_a_benchmark_imports_no_torch_but_in_its_workers() -> None:
    """It would take memory and threads beside what it measures."""
    assert not {"torch", "transformers", "numpy"} & loaded_modules("hermes_mp.bench.measure")
    assert not {"torch", "transformers", "numpy", "matplotlib"} & loaded_modules("hermes_mp.cli.bench")


def executing(source: str) -> list[str]:
    """What of this source would run code that comes in data: calls, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"line {node.lineno}: {name}" for name in names if name.partition(".")[0] in EXECUTING_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        safe_load = name.endswith("torch.load") and words.get("weights_only") == "True"
        if name in EXECUTING_NAMES or (name.endswith(EXECUTING_METHODS) and not safe_load):
            found.append(f"line {node.lineno}: {name}")
        if words.get("trust_remote_code", "False") != "False":
            found.append(f"line {node.lineno}: trust_remote_code")
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_data_is_run_as_code(path: Path) -> None:
    assert not executing(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from marshal import loads", "import os, shelve", "import cloudpickle as c", "eval(text)",
        "exec(text)", "builtins.exec(text)", "torch.load(path)", "torch.load(path, weights_only=False)",
        "socket.recv_pyobj()", "f(x, trust_remote_code=True)", "numpy.load(path, allow_pickle=True)", "yaml.load(text)",
    ],
)  # fmt: skip
def test_what_would_run_data_is_found(source: str) -> None:
    assert executing(source)


@pytest.mark.parametrize("source", ["torch.load(path, weights_only=True)", "model.eval()", "json.load(file)"])
def test_what_runs_no_data_is_not(source: str) -> None:
    assert not executing(source)


def test_launch_and_cluster_are_no_packages() -> None:
    """An installed top-level package `launch` would break ROS 2, which has one."""
    for name in ("launch", "cluster"):
        assert (ROOT / name).is_dir()
        assert not list((ROOT / name).rglob("__init__.py"))


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=module_of)
def test_every_file_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, "no module docstring"
    if path.name not in LONG_DOCSTRINGS:
        assert len(docstring.splitlines()) <= MAX_DOCSTRING_LINES


def test_every_folder_of_the_package_is_one() -> None:
    folders = {path.parent for path in FILES}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]
