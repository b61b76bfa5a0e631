"""Hermes-mp: transformers that do not fit in memory, layer by layer, by processes that load while one computes.

`load` is the Python interface, `hermes-launch` the command. Light on purpose: every process imports this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hermes_mp.api import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from hermes_mp.api import load

        return load
    raise AttributeError(f"module 'hermes_mp' has no attribute {name!r}")
