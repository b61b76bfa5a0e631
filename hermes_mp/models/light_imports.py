"""What torch and transformers import for nothing, kept out of a compute process until someone asks for it.

`torch.compile`'s machinery, symbolic shapes, distributed tensors and packages that serve training are more than a
third of the memory and of the start of a process that runs models on the CPU (docs/memory.md has the figures).
Nothing is forbidden: whatever is used after all is loaded then, and is what it would have been. Knows no model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# transformers imports these where they are installed, and does without where they are not: weights spread over
# devices, adapters, training losses, assisted decoding. `None` is how Python spells "not installed".
NOT_INSTALLED = ("accelerate", "peft", "scipy", "sklearn")


def import_lightly() -> None:
    """Import torch, and prepare that transformers comes as light: for a process that is ours alone.

    Does nothing where torch is already there.
    """
    if "torch" in sys.modules:
        return
    for name in NOT_INSTALLED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # documented: the import then fails
    sys.meta_path.insert(0, _Finder())
    import torch

    # As in a torch built without it, which transformers knows: one process has no use for tensors spread over many.
    torch.distributed.is_available = lambda: False


def _as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator that tells a compiler something; where nothing is compiled it changes nothing."""
    return function if function is not None else _as_it_is


def _plain(name: str) -> Callable[..., Any]:
    """A question about a condition that may be symbolic; a plain one is its own answer."""

    def asked(condition: Any, *args: Any, **kwargs: Any) -> Any:
        if type(condition) is bool:
            return condition
        module = sys.modules[SYMBOLIC]
        if isinstance(module, _Hollow):
            module.fill()
        return getattr(module, name)(condition, *args, **kwargs)

    return asked


class _NoInstances:
    """Stands for a class that nothing can be an instance of before its module is loaded."""


SYMBOLIC = "torch.fx.experimental.symbolic_shapes"
# Modules whose code does not run when they are imported, with the names that can be had of them all the same, as
# torch and transformers ask for them while they are imported and when they run on meta tensors. Any other name, or
# submodule, runs the code.
HOLLOW: dict[str, dict[str, Any]] = {
    "torch._dynamo": dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _as_it_is),
    SYMBOLIC: {name: _plain(name) for name in ("expect_true", "guard_or_false", "guard_or_true")},
    "sympy": {"Basic": _NoInstances, "Expr": _NoInstances, "Symbol": _NoInstances},
}
APART = {"torch._dynamo._trace_wrapped_higher_order_op"}  # submodules that do not need their package's code


class _Hollow(ModuleType):
    """A module whose code has not run."""

    def __getattr__(self, name: str) -> Any:
        if name in HOLLOW[self.__name__]:
            return HOLLOW[self.__name__][name]
        if name.startswith("__"):  # what the import system asks of every module
            raise AttributeError(name)
        self.fill()
        return getattr(self, name)

    def fill(self) -> None:
        """Run the module's code: it is what it would have been."""
        assert self.__spec__ is not None
        assert isinstance(self.__spec__.loader, _HollowLoader)
        self.__class__ = ModuleType  # type: ignore[assignment]  # as importlib's own lazy modules do
        self.__spec__.loader.real.exec_module(self)


class _HollowLoader(Loader):
    def __init__(self, real: Any) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Not now."""


class _FoundLoader(Loader):
    """Of a module that was imported while it was looked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Its code has run."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in HOLLOW:
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = _HollowLoader(spec.loader)
            return spec
        package = sys.modules.get(fullname.rpartition(".")[0])
        if isinstance(package, _Hollow) and fullname not in APART:
            package.fill()
            if fullname in sys.modules:
                return ModuleSpec(fullname, _FoundLoader(), is_package=hasattr(sys.modules[fullname], "__path__"))
        return None
