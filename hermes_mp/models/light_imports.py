"""What torch and transformers import for nothing, kept out of a compute process until someone asks for it.

`torch.compile`'s machinery, symbolic shapes, distributed tensors and packages that serve training are a third of the
memory and of the start of a process that runs models on the CPU (docs/memory.md has the figures). Nothing is
forbidden: whatever is used after all is loaded then, and is what it would have been. Knows no model.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from hermes_mp.host.code_pages import give_back_code

# transformers imports these where they are installed, and does without where they are not: weights spread over
# devices, adapters, training losses, assisted decoding. `None` is how Python spells "not installed".
NOT_INSTALLED = ("accelerate", "peft", "scipy", "sklearn")
SYMBOLIC = "torch.fx.experimental.symbolic_shapes"


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
    import torch.fx.experimental._config  # functions on meta tensors expect that the module of symbolic shapes did it

    give_back_code()  # or the start would take more than what comes after it


def _as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator that tells a compiler something; where nothing is compiled it changes nothing."""
    return function if function is not None else _as_it_is


def _itself(value: Any, *_: Any) -> Any:
    return value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, (tuple, list)) else type(value) in (bool, int)


def _unless_symbolic(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    """The function `name` of the module of symbolic shapes; of plain numbers it is `answer`, without that module."""

    def asked(*values: Any, **more: Any) -> Any:
        if not more and ((len(values) == 1 and type(values[0]) is bool) or _is_plain(values)):
            return answer(*values)
        return getattr(_filled(SYMBOLIC), name)(*values, **more)

    return asked


class _NobodysClass:
    """A class of a hollow module, for `isinstance`: before the module's code has run it has no instance."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __instancecheck__(self, instance: object) -> bool:
        module = sys.modules[self._module]
        return not isinstance(module, _Hollow) and isinstance(instance, getattr(module, self._name))

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (getattr(_filled(self._module), self._name),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(_filled(self._module), self._name)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(_filled(self._module), self._name), name)


PLAIN_ANSWERS: dict[str, Callable[..., Any]] = {
    "expect_true": _itself,
    "guard_or_false": _itself,
    "guard_or_true": _itself,
    "guard_size_oblivious": _itself,
    "guarding_hint_or_throw": _itself,
    "has_guarding_hint": lambda _: True,
    "is_nested_int": lambda _: False,
    "statically_known_true": _itself,
    "sym_and": lambda *conditions: all(conditions),
    "sym_eq": _equal,
    "sym_or": lambda *conditions: any(conditions),
}
# Modules whose code does not run when they are imported, with the names that can be had of them all the same: those
# that torch and transformers use while they are imported, and when they run on meta tensors. Any other name, or
# submodule, runs the code.
HOLLOW: dict[str, dict[str, Any]] = {
    "torch._dynamo": dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _as_it_is),
    SYMBOLIC: {name: _unless_symbolic(name, answer) for name, answer in PLAIN_ANSWERS.items()},
    "sympy": {"Basic": _NobodysClass("sympy", "Basic")},
}
APART = {"torch._dynamo._trace_wrapped_higher_order_op"}  # submodules that do not need their package's code
FILLING = "__filling__"
_filling = threading.RLock()


class _Hollow(ModuleType):
    """A module whose code has not run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of every module
            raise AttributeError(name)
        self.fill()
        if type(self) is _Hollow:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
        return getattr(self, name)

    def fill(self) -> None:
        """Run the module's code, once: then it is what it would have been."""
        with _filling:
            if type(self) is not _Hollow or self.__dict__.get(FILLING):
                return  # another thread did it; or this one is at it, and the module asks for what it has not yet
            assert self.__spec__ is not None
            assert isinstance(self.__spec__.loader, _HollowLoader)
            self.__dict__[FILLING] = True
            for name in HOLLOW[self.__name__]:
                self.__dict__.pop(name, None)
            try:
                self.__spec__.loader.real.exec_module(self)
            finally:
                del self.__dict__[FILLING]
            self.__class__ = ModuleType  # type: ignore[assignment]  # as importlib's own lazy modules do


def _filled(name: str) -> ModuleType:
    module = sys.modules[name]
    if isinstance(module, _Hollow):
        module.fill()
    return module


class _HollowLoader(Loader):
    def __init__(self, real: Any) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Not now."""
        module.__dict__.update(HOLLOW[module.__name__])


class _FoundLoader(Loader):
    """Of a module that was imported while it was looked for: it must not be loaded a second time."""

    def __init__(self, real: ModuleSpec | None) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Its code has run."""
        module.__spec__ = self.real


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
            found = sys.modules.get(fullname)
            if found is not None:
                # The import system would take the module's own specification for a better one.
                found.__spec__ = ModuleSpec(fullname, _FoundLoader(found.__spec__))
                return found.__spec__
        return None
