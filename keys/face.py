"""The names that a package offers, each imported at its first use, because some load libraries of 100 MB."""

from __future__ import annotations

import importlib
from collections.abc import Callable


def lazily(package: str, **modules: str) -> Callable[[str], object]:
    """A package's `__getattr__` (PEP 562).

    Args:
        package: Its `__name__`.
        modules: Name -> its module.
    """

    def attribute(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return attribute
