"""Names that a package offers without importing their modules before they are used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module-level ``__getattr__`` (PEP 562) for ``package``.

    Args:
        package: the ``__name__`` of the package that offers the names.
        modules: for each name the module in which it really lives; a name that is the module itself maps to it.
    """

    def __getattr__(name: str) -> Any:
        try:
            module_name = modules[name]
        except KeyError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        module = importlib.import_module(module_name)
        return getattr(module, name)

    return __getattr__
