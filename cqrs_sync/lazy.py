"""Names that a module offers without importing the modules they live in before they are used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a module-level ``__getattr__`` and ``__dir__`` (PEP 562) for ``package``.

    A name that was used once becomes a plain global of ``package``.

    Args:
        package: the ``__name__`` of the package or module that offers the names.
        modules: for each name the module in which it really lives.
    """

    def load(name: str) -> Any:
        try:
            module_name = modules[name]
        except KeyError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        value = getattr(importlib.import_module(module_name), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return load, names
